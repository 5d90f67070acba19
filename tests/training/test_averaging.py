import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.training.averaging import WeightAverage, average_of
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.control import Cadence, Hooks
from kpipe.training.losses import CrossEntropy
from kpipe.training.metrics import Accuracy
from kpipe.training.optimizers import make_optimizer
from kpipe.training.trainer import Trainer
from kpipe.training.variables import count_kept, count_values, estimate_disk

STEPS = 20


def make_trainer(decay=0.9, warmup=True, thaws=None):
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1))
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.Conv2D(3, 3, name="conv")(images))
    x = keras.layers.Dropout(0.3, seed=1)(keras.layers.Flatten()(x))
    model = keras.Model(images, keras.layers.Dense(3, name="logits")(x), name="tiny")
    optimizer = make_optimizer("sgd", {"momentum": 0.9}, 0.05, average=WeightAverage(decay, warmup=warmup))
    model.compile(optimizer, CrossEntropy(), metrics=[Accuracy()], jit_compile=False)
    return Trainer(model, thaws=thaws)


def batches_from(first, last=STEPS):
    def make_batch(step):
        images = tf.random.stateless_uniform((6, 4, 4, 1), (7, step))
        return images, tf.cast(tf.reduce_sum(images, (1, 2, 3)), tf.int32) % 3

    return tf.data.Dataset.range(first, last).map(make_batch)


def averages(trainer):
    return {path: value.numpy() for path, value in average_of(trainer.model.optimizer).named_variables().items()}


def weights(trainer):
    return {variable.path: variable.numpy() for variable in trainer.model.weights}


def fit(trainer, **options):
    hooks = Hooks(**{name: options.pop(name) for name in list(options) if name.startswith("on_")})
    options = {"steps_per_epoch": 10, "epochs": 2, "cadence": Cadence(log_every=10, chunk=1)} | options
    return trainer.fit(batches_from, hooks=hooks, **options)


@pytest.mark.parametrize("warmup", [False, True])
def test_averages_are_those_of_the_formula(warmup):
    """Over weights and the statistics of batch normalization, whose updates come with the forward pass."""
    trainer = make_trainer(0.8, warmup)
    expected = weights(trainer)

    def follow(step, metrics):
        decay = min(0.8, step / (step + 9)) if warmup else 0.8  # t = step - 1 steps were done before it
        for path, value in weights(trainer).items():
            expected[path] = decay * expected[path] + (1 - decay) * value

    fit(trainer, on_progress=follow)
    found = averages(trainer)
    assert found.pop("steps") == STEPS
    assert set(found) == set(expected)
    for path, value in found.items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_the_training_does_not_see_the_averages():
    averaged, plain = make_trainer(), make_trainer()
    plain.model.optimizer.average = None
    for trainer in (averaged, plain):
        fit(trainer, validation=batches_from(100, 103))
    for path, value in weights(averaged).items():
        np.testing.assert_array_equal(value, weights(plain)[path], err_msg=path)


def test_both_kinds_are_validated():
    trainer, held_out, logged = make_trainer(), batches_from(100, 103), []
    fit(trainer, validation=held_out, on_log=logged.append)
    record = [record for record in logged if record["split"] == "validation"][-1]
    assert [record["loss"], record["accuracy"]] == pytest.approx(_scores(trainer, held_out))
    with average_of(trainer.model.optimizer).in_place():
        expected = _scores(trainer, held_out)
    assert [record["averaged_loss"], record["averaged_accuracy"]] == pytest.approx(expected)
    assert record["averaged_loss"] != record["loss"]


def _scores(trainer, batches):
    scores = trainer.evaluate(batches)
    return [scores["loss"], scores["accuracy"]]


@pytest.mark.slow
def test_a_training_that_is_stopped_while_the_averages_are_validated_keeps_its_weights():
    trainer, calls = make_trainer(), []

    def should_stop():
        calls.append(weights(trainer))
        return len(calls) == 25  # in the second validation of the second epoch

    state = trainer.fit(
        batches_from,
        steps_per_epoch=10,
        epochs=2,
        validation=batches_from(100, 110),
        cadence=Cadence(log_every=10, chunk=10, max_chunk_seconds=0),
        hooks=Hooks(should_stop=should_stop),
    )
    assert state.interrupted and state.ending
    whole = make_trainer()
    fit(whole, epochs=1 + (state.step == 20))
    for path, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(trainer)[path], err_msg=path)


def test_averages_are_restored_from_a_checkpoint(tmp_path):
    trainer, other = make_trainer(), make_trainer()
    fit(trainer)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.commit(trainer.model, {}, step=STEPS)
    Checkpoints(tmp_path / "checkpoints").restore(other.model)
    for path, value in averages(trainer).items():
        np.testing.assert_array_equal(value, averages(other)[path], err_msg=path)
    checkpoints.load_weights(STEPS, other.model, averaged=True)
    for path, value in averages(trainer).items():
        if path != "steps":
            np.testing.assert_array_equal(value, weights(other)[path], err_msg=path)
    checkpoints.load_weights(STEPS, other.model)
    for path, value in weights(trainer).items():
        np.testing.assert_array_equal(value, weights(other)[path], err_msg=path)


def test_the_averages_of_layers_that_are_trained_later_take_memory_and_disk():
    later, never = (make_trainer(thaws={"logits": step}).model for step in (10, np.inf))
    more = count_values(later.get_layer("logits").weights)
    kept = [(count_kept(model, []), estimate_disk(model, [], 1).checkpoint) for model in (later, never)]
    assert np.diff(kept, axis=0).tolist() == [[-more, -4 * more]]


def test_layers_that_are_frozen_for_good_are_not_averaged():
    found = averages(make_trainer(thaws={"conv": float("inf"), "bn": 10}))
    assert {path.partition("/")[0] for path in found} == {"steps", "bn", "logits"}
