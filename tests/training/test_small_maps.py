"""The gradients of kernels over small maps are those of TensorFlow's own operation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.training.precision import precision_scope
from kpipe.training.small_maps import kernel_gradient, kernel_gradients_as_products


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


def gradients_of(model, images):
    """Return what the model returns, and its gradients, in a compiled function as in training."""

    @tf.function
    def compute():
        with tf.GradientTape() as tape, kernel_gradients_as_products(model):
            outputs = model(images, training=True)
            loss = tf.reduce_mean(outputs**2)
        return outputs, tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    kinds = [node.op for node in compute.get_concrete_function().graph.as_graph_def().node]
    return *compute(), kinds.count("Conv2DBackpropFilter")


def make_network(policy):
    """Maps of 12, 8 and 4 pixels; strides; and a block of layers."""
    keras.utils.set_random_seed(0)
    with precision_scope(policy):
        images = keras.Input((12, 12, 3))
        x = keras.layers.Conv2D(8, 5, activation="relu", name="large")(images)
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="small")(x)
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="strided")(x)
        block = keras.Sequential([keras.Input((4, 4, 8)), keras.layers.Conv2D(8, 3, use_bias=False, name="inner")])
        return keras.Model(images, keras.layers.Dense(2, dtype="float32")(keras.layers.Flatten()(block(x))))


def test_small_maps_in_bfloat16_alone_have_it():
    """The own operation of TensorFlow is left for the first layer, whose map is large, and for the one with strides."""
    images = tf.random.stateless_uniform((4, 12, 12, 3), (1, 2))
    exact, expected, plain = gradients_of(make_network("float32"), images)
    found, gradients, left = gradients_of(make_network("mixed_bfloat16"), images)
    assert (plain, left) == (4, 2)
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=0.02)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


def test_the_layers_are_as_they_were():
    model = make_network("mixed_bfloat16")
    with pytest.raises(ZeroDivisionError), kernel_gradients_as_products(model):
        assert "convolution_op" in vars(model.get_layer("small"))
        raise ZeroDivisionError
    assert "convolution_op" not in vars(model.get_layer("small"))
