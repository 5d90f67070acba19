"""The faster operations of layers give what those of Keras give, but for rounding."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.training.cpu_layers import faster_on_cpu, kernel_gradient
from kpipe.training.precision import precision_scope
from kpipe.training.steps import train_step


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (2, 4), (5, 3)])
def test_a_product_is_the_gradient_of_the_kernel(kernel_size, padding):
    draws = np.random.default_rng(0)
    images, kernel = draws.normal(size=(3, 7, 6, 4)), tf.constant(draws.normal(size=(*kernel_size, 4, 5)))
    upstream = draws.normal(size=tf.nn.conv2d(images, kernel, 1, padding.upper()).shape)
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        total = tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, padding.upper()) * upstream)
    found = kernel_gradient(tf.constant(images), tf.constant(upstream), kernel_size, padding)
    np.testing.assert_allclose(found, tape.gradient(total, kernel), rtol=1e-10)


def step(model, images, context=faster_on_cpu):
    """Return outputs, gradients and variables after a compiled step, and the kinds of its operations."""

    @tf.function
    def compute():
        with tf.GradientTape() as tape, context(model):
            outputs = model(images, training=True)
            loss = tf.reduce_mean((outputs - 1) ** 2)
        return outputs, tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    outputs, gradients = compute()
    return [outputs, *gradients, *model.variables], kinds_of(compute.get_concrete_function())


def kinds_of(function):
    return [node.op for node in function.graph.as_graph_def().node]


def plainly(model):
    return nullcontext()


def assert_close(ours, theirs, tolerance):
    for found, expected in zip(ours, theirs, strict=True):
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


# Convolutions.


def convolutions(policy):
    """Maps of 12, 8 and 4 pixels; strides; and a block of layers."""
    keras.utils.set_random_seed(0)
    with precision_scope(policy):
        images = keras.Input((12, 12, 3))
        x = keras.layers.Conv2D(8, 5, activation="relu", name="large")(images)
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="small")(x)
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="strided")(x)
        block = keras.Sequential([keras.Input((4, 4, 8)), keras.layers.Conv2D(8, 3, use_bias=False, name="inner")])
        return keras.Model(images, keras.layers.Dense(2, dtype="float32")(keras.layers.Flatten()(block(x))))


def test_small_maps_in_bfloat16_alone_have_a_product():
    """TensorFlow's own operation is left for the first layer, whose map is large, and for the one with strides."""
    images = tf.random.stateless_uniform((4, 12, 12, 3), (1, 2))
    _, plain = step(convolutions("float32"), images)
    theirs, _ = step(convolutions("mixed_bfloat16"), images, plainly)
    ours, left = step(convolutions("mixed_bfloat16"), images)
    assert (plain.count("Conv2DBackpropFilter"), left.count("Conv2DBackpropFilter")) == (4, 2)
    assert_close(ours, theirs, 0.03)


# Batch normalization.


def normalizations(**options):
    keras.utils.set_random_seed(0)
    images = keras.Input((6, 5, 3))
    x = keras.layers.BatchNormalization(momentum=0.8, epsilon=1e-2, name="first", **options)(images)
    inner = [keras.layers.Conv2D(4, 3, use_bias=False), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    block = keras.Sequential([keras.Input((6, 5, 3)), *inner])
    x = keras.layers.Dense(4, use_bias=False)(keras.layers.Flatten()(block(keras.layers.ReLU()(x))))
    x = keras.layers.BatchNormalization(name="of_vectors")(x)
    return keras.Model(images, keras.layers.Dense(2, dtype="float32")(x))


def batch(images=4):
    return tf.random.stateless_normal((images, 6, 5, 3), (1, 2), mean=3.0, stddev=2.0)


def count_fused(kinds):
    return kinds.count("FusedBatchNormV3")


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-4), ("mixed_bfloat16", 0.02)])
@pytest.mark.parametrize("axis", [-1, 3])
def test_the_fused_operation_matches_keras(policy, tolerance, axis):
    """The normalization of vectors stays as it is."""
    with precision_scope(policy):
        theirs, plain = step(normalizations(axis=axis), batch(), plainly)
        ours, kinds = step(normalizations(axis=axis), batch())
    assert (count_fused(kinds), count_fused(plain)) == (2, 0)
    assert_close(ours, theirs, tolerance)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_moving_averages_match_keras(policy):
    """They are float32 in both. The variance of one pixel is 0, and that of twelve is divided by twelve."""
    for images in (batch(1)[:, :1, :1], batch(1)[:, :4, :3]):
        layers = [keras.layers.BatchNormalization(dtype=policy) for _ in range(2)]
        layers[1](images, training=True)
        with faster_on_cpu(keras.Sequential([keras.Input(images.shape[1:]), layers[0]])):
            layers[0](images, training=True)
        for ours, theirs in zip(layers[0].variables, layers[1].variables, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"axis": 1}, {"scale": False}, {"center": False}, {"synchronized": True}, {"renorm": True}, {"dtype": "bfloat16"}],
)
def test_other_kinds_stay_as_they_are(options):
    _, kinds = step(normalizations(**options), batch())
    assert count_fused(kinds) == 1


def test_inference_and_masks_stay_as_they_are():
    for options in ({"training": False}, {"training": True, "mask": tf.reshape(tf.range(120) % 3 > 0, (4, 6, 5))}):
        layers = [keras.layers.BatchNormalization() for _ in range(2)]
        theirs = layers[1](batch(), **options)
        with faster_on_cpu(keras.Sequential([keras.Input((6, 5, 3)), layers[0]])):
            ours = layers[0](batch(), **options)
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(layers[0].moving_mean, layers[1].moving_mean)


def test_frozen_layers_and_whole_numbers_stay_as_they_are():
    model = normalizations()
    model.get_layer("first").trainable = False
    assert count_fused(step(model, batch())[1]) == 1
    numbers = keras.Input((6, 5, 3), dtype="uint8")
    model = keras.Model(numbers, keras.layers.BatchNormalization()(numbers))
    assert count_fused(step(model, tf.cast(batch(), tf.uint8))[1]) == 0


# Both.


def test_a_training_step_uses_them():
    model = normalizations()
    model.compile(
        optimizer=keras.optimizers.SGD(0.1), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(batch(), tf.zeros(4, tf.int32), tf.zeros((4, 2)))

    @tf.function
    def train(images, labels):
        return train_step(model, (images, labels), measures=tf.constant(True))

    assert count_fused(kinds_of(train.get_concrete_function(batch(), tf.zeros(4, tf.int32)))) == 2


def test_the_layers_are_as_they_were():
    with precision_scope("mixed_bfloat16"):
        models = [convolutions("mixed_bfloat16"), normalizations()]
    for model, name, method in zip(models, ("small", "first"), ("convolution_op", "call"), strict=True):
        layer = model.get_layer(name)
        with pytest.raises(ZeroDivisionError), faster_on_cpu(model), faster_on_cpu(model):
            assert method in vars(layer)
            raise ZeroDivisionError
        assert method not in vars(layer)
