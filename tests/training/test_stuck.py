"""A training that learns nothing is noticed."""

import itertools
import json
import math
import random
from statistics import mean

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.models.googlenet import WithAuxiliaryHeads
from kpipe.training.callback_state import remember_callbacks, restore_callbacks
from kpipe.training.control import Cadence
from kpipe.training.losses import CrossEntropy, Euclidean
from kpipe.training.stuck import StuckWatcher, losses_of_guessing
from kpipe.training.trainer import Trainer

EVEN = np.array([0.5, 0.5])


def make_model(loss, heads=0, classes=2):
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(classes)(inputs) for _ in range(1 + heads)]
    model = WithAuxiliaryHeads(inputs, outputs) if heads else keras.Model(inputs, outputs[0])
    model.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    return model


def steps_of_training(callback, losses, steps_per_epoch=9, cuts=range(1, 1000)):
    """Call a callback as the trainer does that logs or saves at `cuts`; yield after each call."""
    for step in range(1, len(losses) + 1):
        epoch, batch = divmod(step - 1, steps_per_epoch)
        if batch == 0:
            callback.on_epoch_begin(epoch)
        logs = {"loss": mean(losses[step - batch - 1 : step])}
        if step in cuts or step in callback.callback_steps or batch + 1 == steps_per_epoch:
            callback.on_train_batch_end(batch, logs)
        if batch + 1 == steps_per_epoch:
            callback.on_epoch_end(epoch, logs)
        yield


def reasons_after(*losses, stuck_after=50, model=None):
    """Return what is reported of a training with these losses, each for 50 steps."""
    reasons = []
    watcher = StuckWatcher(EVEN, reasons.append, steps_per_epoch=9, stuck_after=stuck_after)
    watcher.set_model(model or make_model(CrossEntropy()))
    for _ in steps_of_training(watcher, [loss for loss in losses for _ in range(50)]):
        pass
    return reasons


def test_a_training_at_the_loss_of_guessing_is_reported_once():
    """Two classes: ln 2 = 0.693; within 2 % is 0.679 to 0.707. It is looked at once, over the second 50 steps."""
    assert reasons_after(0.5, 0.70, 0.70, 0.70) == [
        "stuck at guessing; the mean training loss of the steps 51 to 100 is 0.700, within 2% of 0.693, that of "
        "guessing among 2 classes; likely causes: the learning rate is too low or too high, the initial weights do not "
        "suit a network of this depth, normalization is missing (data.normalize, batch normalization), or the labels "
        "do not fit the images"
    ]
    assert reasons_after(0.693, 0.6, 0.693) == []
    [reason] = reasons_after(0.9, 0.68)
    assert "51 to 100 is 0.680" in reason


def test_without_a_length_100_steps_do_not_count():
    assert reasons_after(0.693, 0.693, 0.5, stuck_after=None) == []
    [reason] = reasons_after(0.5, 0.5, 0.693, stuck_after=None)
    assert "of the steps 101 to 150 is 0.693" in reason


def test_auxiliary_heads_guess_too():
    """ln 2, and 0.3 times that for each of two heads: 1.109."""
    [reason] = reasons_after(0, 1.11, model=make_model(CrossEntropy(), heads=2))
    assert "is 1.110, within 2% of 1.109, that of guessing" in reason


@pytest.mark.parametrize("loss", [Euclidean(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)])
def test_only_a_cross_entropy_has_a_known_loss_of_guessing(loss):
    assert reasons_after(0.693, 0.693, model=make_model(loss)) == []


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_losses_of_guessing_are_those_of_constant_predictions(label_smoothing):
    """The frequencies of the smoothed labels are the best constant prediction, and their entropy is its loss."""
    frequencies = np.array([0.7, 0.3, 0.0])
    smoothed = (1 - label_smoothing) * frequencies + label_smoothing / 3
    entropy = -sum(each * math.log(each) for each in smoothed if each)
    model = make_model(CrossEntropy(label_smoothing), classes=3)
    assert losses_of_guessing(model, frequencies) == pytest.approx([entropy, math.log(3)], rel=1e-6)
    assert losses_of_guessing(model, np.full(3, 1 / 3)) == pytest.approx([math.log(3)] * 2, rel=1e-6)


def test_one_class_is_no_guess():
    assert losses_of_guessing(make_model(CrossEntropy(), classes=1), np.ones(1)) == []


@pytest.mark.parametrize("seed", range(3))
def test_whether_a_training_is_stuck_depends_on_its_losses_alone(seed, monkeypatch):
    """Not on log lines, epochs or saves, nor on kills: after each of them it is decided as without them."""
    generator = random.Random(seed)
    losses = [0.7 + 0.2 * generator.random() for _ in range(200)]
    deciding = mean(losses[60:110])

    def is_stuck(guessing, cuts, steps_per_epoch, kill):
        reasons = []
        monkeypatch.setattr("kpipe.training.stuck.losses_of_guessing", lambda model, frequencies: [guessing])

        def start(memory):
            watcher = StuckWatcher(EVEN, reasons.append, steps_per_epoch=steps_per_epoch, stuck_after=60)
            restore_callbacks([watcher], memory)
            return watcher

        watcher = start({})
        for step, _ in enumerate(steps_of_training(watcher, losses, steps_per_epoch, cuts), 1):
            if kill and step in cuts:
                vars(watcher).update(vars(start(json.loads(json.dumps(remember_callbacks([watcher]))))))
        assert len(reasons) <= 1
        return bool(reasons)

    for log_every, steps_per_epoch, kill in itertools.product((1, 7, 50, 1000), (1, 9, 45, 200), (False, True)):
        for factor, expected in ((1, True), (1 / 1.019, True), (1 / 0.981, True), (1 / 1.021, False), (0.9, False)):
            cuts = range(log_every, 201, log_every)
            assert is_stuck(deciding * factor, cuts, steps_per_epoch, kill) == expected, (log_every, steps_per_epoch)


@pytest.mark.slow
def test_a_training_is_judged_alike_however_often_it_logs():
    """A network that learns nothing from noise."""
    keras.utils.set_random_seed(0)
    model = make_model(CrossEntropy())
    weights, trainer, reasons = model.get_weights(), Trainer(model), []
    noise = tf.data.Dataset.range(240).map(
        lambda step: (tf.random.stateless_normal((8, 4), (0, step)) / 9, tf.range(8) % 2)
    )
    for log_every in (1, 7, 50, 1000):
        model.set_weights(weights)
        watcher = StuckWatcher(EVEN, reasons.append, steps_per_epoch=60, stuck_after=100)
        cadence = Cadence(log_every=log_every)
        trainer.fit(noise.skip, steps_per_epoch=60, epochs=4, callbacks=[watcher], cadence=cadence)
    assert len(reasons) == 4
    [reason] = set(reasons)
    assert reason.startswith("stuck at guessing; the mean training loss of the steps 101 to 150 is 0.")
