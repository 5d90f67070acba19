"""Statistics of layers by hand, and at the right steps whatever happens to the training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.training.control import Cadence, Hooks, TrainState
from kpipe.training.layer_statistics import LayerHistograms, LayerStatistics
from kpipe.training.losses import CrossEntropy
from kpipe.training.trainer import Trainer

RATE, STEPS_PER_EPOCH, EPOCHS = 0.1, 10, 3


def make_model():
    keras.utils.set_random_seed(0)
    images = keras.Input((3,))
    x = keras.layers.Dense(4, activation="relu", name="hidden")(images)
    model = keras.Model(images, keras.layers.Dense(2, name="logits")(x))
    model.compile(keras.optimizers.SGD(RATE), CrossEntropy(), jit_compile=False)
    return model


def batches_from(first):
    def make_batch(step):
        return tf.random.stateless_normal((8, 3), (0, step)), tf.range(8) % 2

    return tf.data.Dataset.range(first, STEPS_PER_EPOCH * EPOCHS).map(make_batch)


def fit(trainer, statistics, state=None, chunk=4, **hooks):
    length = {"steps_per_epoch": STEPS_PER_EPOCH, "epochs": EPOCHS}
    settings = {"cadence": Cadence(chunk=chunk), "hooks": Hooks(**hooks)}
    return trainer.fit(batches_from, **length, state=state, callbacks=[statistics], **settings)


class Written(dict):
    """What was written, by step."""

    def write(self, step, values):
        assert step not in self
        self[step] = values


def measure(model, images):
    """Return the statistics of one training step."""
    written = Written()
    fit(Trainer(model), LayerStatistics(tf.constant(images), 30, written.write))
    assert list(written) == [30]
    return written[30]


def test_a_unit_that_is_0_for_all_images_is_dead():
    model = make_model()
    # Without a gradient the weights stay: x1, 0, -1 and x2 - 9.
    kernel = np.float32([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    model.get_layer("hidden").set_weights([kernel, np.float32([0, 0, -1, -9])])
    model.get_layer("logits").set_weights([np.zeros((4, 2), "float32"), np.zeros(2, "float32")])
    model.optimizer.learning_rate = 0.0
    assert measure(model, np.float32([[1, 1, 1], [-1, 8, 0]]))["dead_relus/hidden"] == 0.75
    assert measure(model, np.float32([[1, 1, 1], [-1, 10, 0]]))["dead_relus/hidden"] == 0.5


def test_layers_with_a_relu_count_and_others_do_not():
    """A filter is dead that is 0 for all images at every position."""
    images = keras.Input((4, 4, 1))
    bias = keras.initializers.Constant([0, -1, -1])
    x = keras.layers.Conv2D(3, 1, kernel_initializer="zeros", bias_initializer=bias, name="conv")(images)
    x = keras.layers.ReLU(name="relu")(x)  # all dead: 0, 0, 0
    x = keras.layers.Activation("relu", name="again")(x)
    x = keras.layers.ReLU(negative_slope=0.1, name="leaky")(x)
    x = keras.layers.Conv2D(2, 3, activation="relu", kernel_initializer="zeros", name="inside")(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(images, keras.layers.Dense(2, activation="tanh", name="logits")(x))
    # The second filter is 1 at one position of one image.
    inside = model.get_layer("inside")
    model.get_layer("conv").set_weights([np.float32([[[[0, 0, 1]]]]), np.float32([0, -1, -1])])
    kernel = np.zeros((3, 3, 3, 2), "float32")
    kernel[1, 1, 2, 1] = 1
    inside.set_weights([kernel, np.zeros(2, "float32")])
    written = Written()
    images = tf.constant(np.eye(16, dtype="float32")[3:7].reshape(4, 4, 4, 1) * 2)
    statistics = LayerStatistics(images, 1, written.write)
    statistics.set_model(model)
    statistics.measure()
    assert written[0] == pytest.approx({"dead_relus/relu": 2 / 3, "dead_relus/again": 2 / 3, "dead_relus/inside": 0.5})


def test_under_plain_sgd_the_update_is_the_rate_times_the_gradient():
    """Of the last of 30 steps, over kernel and bias of each layer."""
    before = make_model()
    images, labels = next(iter(batches_from(29)))
    fit(Trainer(before), LayerStatistics(images, 30, print), should_stop=stop_at(before, 29))
    with tf.GradientTape() as tape:
        loss = before.loss(labels, before(images))
    weights = {layer.name: layer.trainable_weights for layer in before.layers if layer.trainable_weights}
    expected = {
        f"update_ratio/{name}": RATE * float(tf.linalg.global_norm(gradients) / tf.linalg.global_norm(weights[name]))
        for name, gradients in tape.gradient(loss, weights).items()
    }
    measured = measure(make_model(), images)
    assert {tag: measured[tag] for tag in expected} == pytest.approx(expected, rel=1e-4)
    assert set(measured) == {*expected, "dead_relus/hidden"}


def test_a_layer_that_is_not_trained_has_no_update():
    model = make_model()
    model.get_layer("hidden").trainable = False
    assert set(measure(model, np.ones((1, 3), "float32"))) == {"dead_relus/hidden", "update_ratio/logits"}


def stop_at(model, step):
    return lambda: int(model.optimizer.iterations) == step


@pytest.mark.slow
def test_a_training_may_be_interrupted_after_any_step():
    """What is written is neither missing nor there twice, and the same."""
    whole = Written()
    images = next(iter(batches_from(0)))[0]
    fit(Trainer(make_model()), LayerStatistics(images, 7, whole.write))
    assert list(whole) == [7, 14, 21, 28]
    for step in (6, 7, 10, 16):
        model, written = make_model(), Written()
        stop = stop_at(model, step)
        state = fit(Trainer(model), LayerStatistics(images, 7, written.write), chunk=1, should_stop=stop)
        assert (state.step, state.interrupted) == (step, True)
        fit(Trainer(model), LayerStatistics(images, 7, written.write), TrainState(**state.to_dict()))
        assert written == whole, step


@pytest.mark.parametrize("made", [LayerStatistics, LayerHistograms])
def test_they_may_be_asked_for_when_a_training_is_resumed(made):
    trainer, written = Trainer(make_model()), Written()
    stop = {"should_stop": lambda: int(trainer.model.optimizer.iterations) >= 13}
    state = fit(trainer, keras.callbacks.Callback(), **stop)
    assert state.step % STEPS_PER_EPOCH
    fit(trainer, made(tf.zeros((4, 3)), 7, written.write), TrainState(**state.to_dict()))
    assert list(written) == [step for step in (7, 14, 21, 28) if step > state.step]


def test_histograms_are_of_the_values_after_a_step():
    model, written = make_model(), Written()
    images = tf.random.stateless_normal((5, 3), (1, 2))
    fit(Trainer(model), LayerHistograms(images, 15, written.write))
    assert list(written) == [15, 30]
    expected = {f"weights/{weight.path}": weight.numpy() for weight in model.trainable_weights}
    hidden, logits = (model.get_layer(name) for name in ("hidden", "logits"))
    expected["activations/hidden"] = hidden(images).numpy()
    expected["activations/logits"] = logits(hidden(images)).numpy()
    assert written[30].keys() == expected.keys()
    for tag, values in expected.items():
        np.testing.assert_allclose(written[30][tag], values.ravel(), rtol=1e-6)


def test_a_histogram_of_many_values_is_of_some_spread_over_all():
    images = keras.Input((500,))
    model, written = keras.Model(images, keras.layers.Dense(1000, use_bias=False)(images)), Written()
    histograms = LayerHistograms(tf.zeros((1, 500)), 1, written.write)
    histograms.set_model(model)
    histograms.measure()
    [weights] = [values for tag, values in written[0].items() if tag.startswith("weights/")]
    np.testing.assert_array_equal(weights, model.layers[1].kernel.numpy().ravel()[::5])
    assert len(weights) == 100_000
