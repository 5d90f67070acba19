import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import Diverged
from kpipe.training.control import Cadence, Hooks, TrainState
from kpipe.training.divergence import check_loss
from kpipe.training.loss_scaling import LossScaling, loss_scaling_of
from kpipe.training.precision import precision_scope
from kpipe.training.trainer import Trainer

STEPS = 130


class RootOfNothing(keras.losses.Loss):
    """The mean of the logits, whose gradient is not finite where all labels are 1: that of a root at 0."""

    def call(self, labels, logits):
        poison = tf.where(tf.reduce_all(labels == 1), tf.sqrt(0.0 * tf.reduce_sum(logits)), 0.0)
        return tf.reduce_mean(logits, axis=-1) + poison


def test_a_loss_beyond_float16_is_said():
    with pytest.raises(
        Diverged, match=r"the loss became inf at step 3; .*or numbers are beyond 65,504, the largest of"
    ):
        check_loss(float("inf"), 3, 3, in_float16=True)


def make_trainer():
    keras.utils.set_random_seed(0)
    with precision_scope("mixed_float16"):
        images = keras.Input((2, 2, 1))
        model = keras.Model(images, keras.layers.Dense(2, dtype="float32")(keras.layers.Flatten()(images)))
        model.compile(LossScaling(keras.optimizers.SGD(0.01)), RootOfNothing(), jit_compile=False)
    return Trainer(model)


def fit(trainer, poisoned, *, chunk, log_every=200):
    """Train with labels of 1 in the steps of which `poisoned` is true; return what was logged."""
    records = []

    def make_batch(step):
        label = tf.cast(tf.gather(tf.constant(poisoned), step), tf.int32)
        return tf.ones((4, 2, 2, 1)), tf.fill([4], label)

    state = TrainState()
    options = {"cadence": Cadence(log_every=log_every, chunk=chunk), "hooks": Hooks(on_log=records.append)}
    batches = tf.data.Dataset.range(STEPS).map(make_batch)
    trainer.fit(lambda step: batches.skip(step), steps_per_epoch=STEPS, epochs=1, state=state, **options)
    return records


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 130])
def test_fifty_skipped_steps_in_a_row_end_the_training(chunk):
    trainer = make_trainer()
    poisoned = [step == 3 or 20 <= step for step in range(STEPS)]
    with pytest.raises(
        Diverged,
        match=r"the gradients of 50 steps in a row, 21 to 70, were not finite in mixed_float16, down to a loss scale "
        r"of 1; these steps were skipped, and the weights are those of step 20\. Likely causes: numbers beyond 65,504",
    ):
        fit(trainer, poisoned, chunk=chunk)
    scaling = loss_scaling_of(trainer.model.optimizer)
    assert int(scaling.iterations) == 19  # a skipped step does not count
    assert scaling.read() == {"loss_scale": 1.0, "skipped_steps": 51}
    expected = make_trainer().model.get_weights()[1] - 0.005 * 19
    np.testing.assert_allclose(trainer.model.get_weights()[1], expected, rtol=1e-4)


def test_fewer_in_a_row_do_not_and_are_logged():
    poisoned = [step < 49 or 50 <= step < 99 for step in range(STEPS)]
    first, second, *_ = fit(make_trainer(), poisoned, chunk=130, log_every=60)
    assert (first["skipped_steps"], first["loss_scale"]) == (59, 1.0)
    assert (second["skipped_steps"], second["loss_scale"]) == (98, 1.0)


def test_other_precisions_scale_no_loss():
    assert loss_scaling_of(keras.optimizers.SGD()) is None
