"""The rules that end a trial before its last epoch."""

import itertools
import json
import math
import random
import re
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from tiny_searches import PEAKS, rows_of

from kpipe.catalog.networks import GoogLeNetOptions
from kpipe.catalog.search import MedianStopping
from kpipe.errors import Diverged
from kpipe.models.googlenet import HEADED, WithAuxiliaryHeads
from kpipe.search.records import read_records
from kpipe.search.stopping import StopBelowMedian, StopIfStuck
from kpipe.training.callback_state import remember_callbacks, restore_callbacks
from kpipe.training.control import Cadence
from kpipe.training.trainer import Trainer


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


def steps_of_training(callbacks, losses, steps_per_epoch=9, cuts=range(1, 1000)):
    """Call callbacks as the trainer does that logs or saves at `cuts`; yield after each call."""
    asked_for = {step for callback in callbacks for step in getattr(callback, "callback_steps", ())}
    for step in range(1, len(losses) + 1):
        epoch, batch = divmod(step - 1, steps_per_epoch)
        if batch == 0:
            [callback.on_epoch_begin(epoch) for callback in callbacks]
        logs = {"loss": mean(losses[step - batch - 1 : step]), "val_accuracy": 0.5}
        if step in cuts or step in asked_for or batch + 1 == steps_per_epoch:
            [callback.on_train_batch_end(batch, logs) for callback in callbacks]
        if batch + 1 == steps_per_epoch:
            [callback.on_epoch_end(epoch, logs) for callback in callbacks]
        yield


def replay(*losses):
    """Return a training with these losses, each for 50 steps."""

    def replayed(options):
        each_step = [loss for loss in losses for _ in range(50)]
        for _ in steps_of_training(options.callbacks, each_step):
            pass
        raise Diverged("it was not stuck")

    return replayed


def test_a_loss_of_guessing_ends_a_trial(kpipe, experiment, search, trained):
    """Two classes: ln 2 = 0.693; within 2 % is 0.679 to 0.707. It is looked at once, over the second 50 steps."""
    trained.errors = {1: replay(0.5, 0.70), 2: replay(0.693, 0.6, 0.693), 3: replay(0.9, 0.68)}
    kpipe("search", experiment, "search.trials=4", "search.stuck_after=50")
    messages = {n: record.message for n, record in read_records(search()).items()}
    assert messages[1] == (
        "stuck at guessing; the mean training loss of the steps 51 to 100 is 0.700, within 2% of 0.693, that of "
        "guessing among 2 classes"
    )
    assert messages[2] == "it was not stuck"
    assert "51 to 100 is 0.680" in messages[3]
    assert messages[4] is None


@pytest.mark.parametrize("seed", range(3))
def test_whether_a_training_is_stuck_depends_on_its_losses_alone(seed):
    """Not on log lines, epochs or saves, nor on kills: after each of them it is decided as without them."""
    generator = random.Random(seed)
    losses = [0.7 + 0.2 * generator.random() for _ in range(200)]
    deciding = mean(losses[60:110])

    def is_stuck(guessing, cuts, steps_per_epoch, kill):
        def start(memory):
            callback = StopIfStuck(guessing, classes=2, steps_per_epoch=steps_per_epoch, stuck_after=60)
            restore_callbacks([callback], memory)
            return callback

        callback = start({})
        try:
            for step, _ in enumerate(steps_of_training([callback], losses, steps_per_epoch, cuts), 1):
                if kill and step in cuts:
                    vars(callback).update(vars(start(json.loads(json.dumps(remember_callbacks([callback]))))))
        except Diverged:
            return True
        return False

    for log_every, steps_per_epoch, kill in itertools.product((1, 7, 50, 1000), (1, 9, 45, 200), (False, True)):
        for factor, expected in ((1, True), (1 / 1.019, True), (1 / 0.981, True), (1 / 1.021, False), (0.9, False)):
            cuts = range(log_every, 201, log_every)
            assert is_stuck(deciding * factor, cuts, steps_per_epoch, kill) == expected, (log_every, steps_per_epoch)


def test_a_training_is_judged_alike_however_often_it_logs():
    """A network that learns nothing from noise."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    weights, trainer, said = model.get_weights(), Trainer(model), set()
    noise = tf.data.Dataset.range(240).map(
        lambda step: (tf.random.stateless_normal((8, 4), (0, step)) / 9, tf.range(8) % 2)
    )
    for log_every in (1, 7, 50, 1000):
        model.set_weights(weights)
        rule = StopIfStuck(math.log(2), classes=2, steps_per_epoch=60, stuck_after=100)
        cadence = Cadence(log_every=log_every)
        with pytest.raises(Diverged) as caught:
            trainer.fit(noise.skip, steps_per_epoch=60, epochs=4, callbacks=[rule], cadence=cadence)
        said.add(str(caught.value))
    [message] = said
    assert message.startswith("stuck at guessing; the mean training loss of the steps 101 to 150 is 0.")


def test_auxiliary_heads_guess_too(kpipe, experiment, search, trained):
    """ln 2, and 0.3 times that for each of two heads: 1.109. Without stuck_after, 100 steps do not count."""
    trained.errors = {1: replay(0, 0, 1.11)}
    heads = ("model.name=googlenet", "model.auxiliary_heads=true", "data.image_size=20")
    kpipe("search", experiment, "search.trials=1", *heads)
    assert read_records(search())[1].message.startswith(
        "stuck at guessing; the mean training loss of the steps 101 to 150 is 1.110, within 2% of 1.109"
    )


@pytest.mark.parametrize("heads", [False, True])
def test_the_options_know_the_weights_of_the_auxiliary_heads(heads):
    expected = len(HEADED) * WithAuxiliaryHeads.auxiliary_weight if heads else 0.0
    assert GoogLeNetOptions(auxiliary_heads=heads).auxiliary_loss_weight == expected


def test_only_a_cross_entropy_has_a_known_loss_of_guessing(kpipe, experiment, search, trained):
    trained.errors = {1: replay(0.693, 0.693, 0.693)}
    kpipe("search", experiment, "search.trials=1", "training.loss.name=euclidean")
    assert read_records(search())[1].message == "it was not stuck"
