"""The rules that end a trial before its last epoch."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_searches import PEAKS, rows_of

from kpipe.catalog.networks import GoogLeNetOptions
from kpipe.catalog.search import MedianStopping
from kpipe.errors import Diverged
from kpipe.models.googlenet import HEADED, WithAuxiliaryHeads
from kpipe.search.records import read_records
from kpipe.search.stopping import StopBelowMedian


def test_the_median_rule_by_hand():
    """Running means of the others at epoch 2: 0.6, 0.7, 0.8; their median is 0.7."""
    curves = [[0.5, 0.7], [0.6, 0.8], [0.7, 0.9], [0.9]]

    def is_stopped(*scores, **rule):
        callback = StopBelowMedian(MedianStopping(**rule), "val_accuracy", curves, epochs=3)
        model = SimpleNamespace(stop_training=False)
        callback.set_model(model)
        for epoch, value in enumerate(scores):
            callback.on_epoch_end(epoch, {"val_accuracy": value})
        assert callback.has_stopped(scores) == model.stop_training
        return model.stop_training

    assert is_stopped(0.1, 0.69, trials=3, epochs=2)
    assert not is_stopped(0.1, 0.71, trials=3, epochs=2)
    assert not is_stopped(0.75, 0.1, trials=3, epochs=2)  # its best epoch counts
    assert not is_stopped(0.1, 0.69, trials=4, epochs=2)  # only three have come so far
    assert not is_stopped(0.1, trials=3, epochs=2)
    assert not is_stopped(0.1, 0.1, 0.1, trials=1, epochs=3)  # there is nothing left to stop


def test_the_median_rule_stops_what_is_worse_than_the_others(kpipe, experiment, search, trained):
    rule = ("search.median_stopping.epochs=1", "search.median_stopping.trials=2")
    grid = ("search.method=grid", f"{PEAKS}=[0.01,0.02,0.5,0.011]", *rule)
    code, out, _ = kpipe("search", experiment, *grid)
    assert code == 0
    rows = {row["trial"]: row for row in rows_of(search())}
    assert [rows[number]["status"] for number in "1234"] == ["finished", "finished", "stopped", "finished"]
    assert (rows["3"]["epochs"], rows["4"]["epochs"]) == ("1", "2")
    assert re.search(r"^trial 3 of 4 .* 1 epoch  1.0 s  stopped$", out, re.M)


def test_the_median_rule_and_a_lost_record(kpipe, experiment, search, trained):
    """A trial that the rule has stopped is still stopped when its record is lost, however many executions it has."""
    rule = ("search.median_stopping.trials=2", "search.executions_per_trial=2")
    grid = ("search.method=grid", f"{PEAKS}=[0.01,0.02,0.5]", *rule)
    kpipe("search", experiment, *grid)
    before = read_records(search())
    assert (before[3].status, len(before[3].scores), len(trained)) == ("stopped", 1, 5)
    (search() / "trials" / "0003.json").unlink()
    (search() / "trials" / "0002.json").write_text("{")
    code, out, _ = kpipe("search", experiment, *grid)
    assert code == 0
    assert "  note: a record is lost or damaged; these trials are looked up in their runs again: 2\n" in out
    timeless = [{n: replace(r, ended=None) for n, r in found.items()} for found in (before, read_records(search()))]
    assert timeless[0] == timeless[1]
    assert len(trained) == 5


def test_a_loss_of_guessing_ends_a_trial(kpipe, experiment, search, trained):
    """Two classes: ln 2 = 0.693; within 2 % is 0.679 to 0.707."""

    def losses(*values):
        def watched(options):
            for step, loss in enumerate(values, 1):
                options.on_record({"split": "train", "span": "steps", "step": 10 * step, "loss": loss})
                options.on_record({"split": "train", "span": "epoch", "step": 10 * step, "loss": 0.693})
            raise Diverged("it was not stuck")

        return watched

    trained.errors = {1: losses(0.693, 0.693, 0.70), 2: losses(0.693, 0.693, 0.6), 3: losses(0.6, 0.72, 0.68)}
    kpipe("search", experiment, "search.trials=4", "search.stuck_after=30")
    messages = {n: record.message for n, record in read_records(search()).items()}
    assert messages[1] == (
        "stuck: the training loss is 0.700 after 30 steps, within 2% of 0.693, that of guessing among 2 classes"
    )
    assert messages[2] == "it was not stuck"
    assert messages[3].startswith("stuck: the training loss is 0.680")
    assert messages[4] is None


def test_auxiliary_heads_guess_too(kpipe, experiment, search, trained):
    """ln 2, and 0.3 times that for each of two heads: 1.109."""
    guess = {"split": "train", "span": "steps", "step": 100, "loss": 1.11}
    trained.errors = {1: lambda options: options.on_record(guess)}
    kpipe(
        "search",
        experiment,
        "search.trials=1",
        "model.name=googlenet",
        "model.auxiliary_heads=true",
        "data.image_size=20",
    )
    assert read_records(search())[1].message.startswith(
        "stuck: the training loss is 1.110 after 100 steps, within 2% of 1.109"
    )


@pytest.mark.parametrize("heads", [False, True])
def test_the_options_know_the_weights_of_the_auxiliary_heads(heads):
    expected = len(HEADED) * WithAuxiliaryHeads.auxiliary_weight if heads else 0.0
    assert GoogLeNetOptions(auxiliary_heads=heads).auxiliary_loss_weight == expected


def test_only_a_cross_entropy_has_a_known_loss_of_guessing(kpipe, experiment, search, trained):
    guess = {"split": "train", "span": "steps", "step": 999, "loss": 0.693}
    trained.errors = {1: lambda options: options.on_record(guess) or 1 / 0}
    with pytest.raises(ZeroDivisionError):
        kpipe("search", experiment, "search.trials=1", "training.loss.name=euclidean")
