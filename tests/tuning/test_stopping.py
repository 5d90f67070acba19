"""The rules that end a trial before its last epoch."""

import re
from dataclasses import replace
from types import SimpleNamespace

from tiny_searches import PEAKS, rows_of

from kpipe.catalog.search import MedianStopping
from kpipe.errors import Stuck
from kpipe.tuning.records import read_records
from kpipe.tuning.stopping import StopBelowMedian


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


def test_a_trial_that_is_stuck_has_failed(kpipe, experiment, search, trained):
    """A run knows by itself that it is stuck; a trial always stops then, with the reason in its record."""
    trained.errors = {1: Stuck("stuck at guessing; the mean training loss is 0.700", "What is trained is kept")}
    code, out, _ = kpipe("search", experiment, "search.trials=2")
    assert code == 0
    assert read_records(search())[1].message == "stuck at guessing; the mean training loss is 0.700"
    assert re.search(r"^trial 1 of 2  failed .* \(stuck at guessing\)$", out, re.M)
    [(tried, _, _)] = trained
    assert tried.training.when_stuck == "stop"
