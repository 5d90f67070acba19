import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.models.googlenet import WithAuxiliaryHeads
from kpipe.training.losses import CrossEntropy
from kpipe.training.metrics import Accuracy
from kpipe.training.optimizers import make_optimizer
from kpipe.training.precision import precision_scope
from kpipe.training.trainer import Trainer

BATCH = 12


def make_trainer(pieces, optimizer="sgd", auxiliary=False, policy="float32"):
    keras.utils.set_random_seed(0)
    with precision_scope(policy):
        images = keras.Input((4, 4, 1))
        x = keras.layers.Flatten()(keras.layers.Conv2D(3, 3, activation="relu")(images))
        logits = [keras.layers.Dense(3, name=name, dtype="float32")(x) for name in ("logits", "auxiliary")]
        model = WithAuxiliaryHeads(images, logits) if auxiliary else keras.Model(images, logits[0])
        made = make_optimizer(optimizer, {}, 0.05, clip={"global_norm": 0.3})
        model.compile(made, CrossEntropy(), metrics=[Accuracy()], jit_compile=False)
    return Trainer(model, pieces=pieces)


def batches(kind):
    def make_batch(step):
        images = tf.random.stateless_uniform((BATCH, 4, 4, 1), (7, step))
        labels = tf.cast(tf.reduce_sum(images, (1, 2, 3)), tf.int32) % 3
        weights = tf.random.stateless_uniform((BATCH,), (8, step))
        return {
            "classes": (images, labels),
            "soft": (images, 0.9 * tf.one_hot(labels, 3) + 0.1 / 3),
            "weighted": (images, labels, weights),
        }[kind]

    return tf.data.Dataset.range(5).map(make_batch)


@pytest.mark.parametrize(
    ("kind", "auxiliary", "pieces"), [("classes", False, 12), ("soft", True, 3), ("weighted", True, 3)]
)
def test_a_step_in_pieces_is_the_step_of_the_whole_batch(kind, auxiliary, pieces):
    whole, in_pieces = (make_trainer(number, auxiliary=auxiliary) for number in (1, pieces))
    expected, found = (trainer.run_steps(iter(batches(kind)), 5).metrics for trainer in (whole, in_pieces))
    assert found == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(in_pieces.model.weights, whole.model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_norm_is_that_of_the_gradient_of_the_last_step_before_it_is_clipped(pieces, policy):
    """Whatever the loss is scaled with."""
    trainer, twin = (make_trainer(pieces, policy=policy) for _ in range(2))
    found = trainer.run_steps(iter(batches("classes")), 5).gradient_norm
    twin.run_steps(iter(batches("classes")), 4)
    images, labels = list(batches("classes"))[-1]
    with tf.GradientTape() as tape:
        log_probabilities = tf.nn.log_softmax(twin.model(images, training=True))
        loss = -tf.reduce_mean(tf.gather(log_probabilities, labels, batch_dims=1))
    gradients = tape.gradient(loss, [variable.value for variable in twin.model.trainable_variables])
    expected = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients))
    assert found == pytest.approx(expected, rel=1e-5 if policy == "float32" else 1e-2)
    assert found > 0.3  # the optimizer's `clip`


@pytest.mark.parametrize("optimizer", ["adam", "nadam"])
def test_optimizers_count_a_step_once(optimizer):
    whole, in_pieces = (make_trainer(pieces, optimizer) for pieces in (1, 4))
    for trainer in (whole, in_pieces):
        trainer.run_steps(iter(batches("classes")), 5)
    assert int(in_pieces.model.optimizer.iterations) == 5
    for ours, theirs in zip(in_pieces.model.weights, whole.model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_pieces_work_under_loss_scaling():
    whole, in_pieces = (make_trainer(pieces, policy="mixed_float16") for pieces in (1, 3))
    for trainer in (whole, in_pieces):
        trainer.run_steps(iter(batches("classes")), 5)
    for ours, theirs in zip(in_pieces.model.weights, whole.model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-2, atol=1e-3)
