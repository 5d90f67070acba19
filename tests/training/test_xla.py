import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import ConfigError
from kpipe.training.losses import CrossEntropy
from kpipe.training.metrics import Accuracy
from kpipe.training.optimizers import make_optimizer
from kpipe.training.trainer import Trainer
from kpipe.training.xla import can_compile, translate_xla_errors


@keras.saving.register_keras_serializable(package="tests")
class InPython(keras.layers.Layer):
    def call(self, x):
        return x + tf.ensure_shape(tf.numpy_function(lambda array: array, [x], tf.float32), x.shape)


def make_trainer(*, xla, layer=None, pieces=1, strategy=None):
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3, activation="relu")(images))
    x = layer(x) if layer else x
    model = keras.Model(images, keras.layers.Dense(3, name="logits")(keras.layers.Flatten()(x)))
    optimizer = make_optimizer("adam", {}, 0.05, clip={"global_norm": 0.3})
    model.compile(optimizer, CrossEntropy(), metrics=[Accuracy()], jit_compile=False)
    return Trainer(model, thaws={"logits": 3}, pieces=pieces, xla=xla)


def batches(step=0):
    def make_batch(step):
        images = tf.random.stateless_uniform((6, 4, 4, 1), (7, step))
        return images, tf.cast(tf.reduce_sum(images, (1, 2, 3)), tf.int32) % 3

    return tf.data.Dataset.range(step, 6).map(make_batch)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_compiled_step_is_the_same_step(pieces):
    """Layers that thaw on the way are trained, too."""
    compiled, plain = (make_trainer(xla=xla, pieces=pieces) for xla in (True, False))
    for trainer in (compiled, plain):
        trainer.fit(batches, steps_per_epoch=6, epochs=1)
    for ours, theirs in zip(compiled.model.weights, plain.model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)
    chunks = [trainer.run_steps(iter(batches()), 2) for trainer in (compiled, plain)]
    assert chunks[0].metrics == pytest.approx(chunks[1].metrics, rel=1e-4)
    assert chunks[0].gradient_norm == pytest.approx(chunks[1].gradient_norm, rel=1e-3)


def test_what_cannot_be_compiled_is_said():
    trainer = make_trainer(xla=True, layer=InPython())
    with pytest.raises(
        ConfigError,
        match="^training.xla: XLA cannot compile the training step: it has no operation PyFunc. Use training.xla=off$",
    ):
        trainer.run_steps(iter(batches()), 1)


def test_determinism_may_be_what_xla_cannot_compile():
    """As TensorFlow 2.21 words it; determinism cannot be switched off again in a process."""
    message = (
        "Graph execution error:\n\nDetected at node pool/MaxPoolGrad defined at (most recent call last):\n"
        "<stack traces unavailable>\n"
        "GPU MaxPool gradient ops do not yet have a deterministic XLA implementation.\n\t [[{{node MaxPoolGrad}}]]\n"
        "\ttf2xla conversion failed while converting __inference__train_step_473[]."
    )
    with (
        pytest.raises(
            ConfigError,
            match="do not yet have a deterministic XLA implementation. Use training.xla=off or "
            "training.deterministic=false",
        ),
        translate_xla_errors(),
    ):
        raise tf.errors.UnimplementedError(None, None, message)


def test_other_errors_of_tensorflow_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError, match="no image"), translate_xla_errors():
        raise tf.errors.InvalidArgumentError(None, None, "no image")


def test_a_machine_that_cannot_compile(monkeypatch):
    assert can_compile()

    def refuse(*arguments, **options):
        raise tf.errors.InternalError(None, None, "libdevice not found at ./libdevice.10.bc")

    monkeypatch.setattr("kpipe.training.xla.tf.function", lambda *arguments, **options: refuse)
    assert not can_compile()


def test_several_replicas_are_not_compiled(monkeypatch):
    monkeypatch.setattr(type(tf.distribute.get_strategy()), "num_replicas_in_sync", 2)
    with pytest.raises(
        ConfigError,
        match="training.xla: expected one device, got 2: XLA cannot compile a step that sums gradients over devices. "
        "Use training.xla=off",
    ):
        make_trainer(xla=True)
