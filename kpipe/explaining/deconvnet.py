"""The deconvolutional network: what in an image has excited a feature map.

M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1. It goes back from
one activation to the pixels: through the switches of each pooling, which say where its maximum was, through a
rectification, and through the transposed filters.

A gradient goes back in the same way, but for the rectification (K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside
Convolutional Networks", 2014, section 4). The gradient of a ReLU passes where its input was positive on the way
forward. The deconvolutional network passes what is positive on the way back. So this computes it as the gradient of a
network whose ReLUs have the other rule.

Differences from the paper: where windows of a pooling overlap, what several of them send to one switch is added. A
normalization scales on the way back by what it has scaled forward.

B batch, H height, W width, C channels, F feature maps.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from kpipe.explaining.feature_maps import find_layer
from kpipe.models.layers import LocalResponseNormalization


def deconvolve(
    network: keras.Model,
    images: np.ndarray,
    maps: Sequence[int],
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Project one activation of each image back to its pixels.

    Args:
        network: what `build_deconvnet` returned for a layer.
        images: [B, H, W, C], 0..255.
        maps: number of the feature map for each image, 0..F - 1: int [B].
        positions: (row, column) of the activation, int [B, 2]; None: that of the largest.

    Returns:
        What the deconvolutional network draws, float32 [B, H, W, C]: above 0 where a brighter pixel would have
        excited the map more, below 0 where a darker one would have.
    """
    images = tf.convert_to_tensor(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        activations = tf.transpose(tf.cast(network(images, training=False), tf.float32), [0, 3, 1, 2])
        own = tf.gather(activations, np.asarray(maps, np.int64), axis=1, batch_dims=1)  # [B, h, w]
        flat = tf.reshape(own, [own.shape[0], -1])
        if positions is None:
            places = tf.argmax(flat, axis=1)
        else:
            places = np.asarray(positions)[:, 0] * own.shape[2] + np.asarray(positions)[:, 1]
        # Only this activation goes back; the others of its layer are set to 0.
        value = tf.gather(flat, places, batch_dims=1)
        signal = tf.reduce_sum(value * tf.stop_gradient(value))
    return tape.gradient(signal, images).numpy()


def build_deconvnet(model: keras.Model, layer: str) -> keras.Model:
    """Build the part of a network up to a layer, whose gradient is what the deconvolutional network computes.

    Args:
        model: the network.
        layer: name of a layer with feature maps.

    Returns:
        Images [B, H, W, C] to the feature maps of this layer.

    Raises:
        ConfigError: there is no such layer.
    """
    part = keras.Model(model.inputs[0], find_layer(model, layer).output)

    def call(each, x, **options):
        if isinstance(each, LocalResponseNormalization):
            return x * ops.cast(ops.stop_gradient(each.scale(x)), x.dtype)
        if isinstance(each, layers.ReLU):
            return layers.Activation(_rectify)(x)
        if getattr(each, "activation", None) is not keras.activations.relu:
            return each(x, **options)
        if isinstance(each, layers.Activation):
            return layers.Activation(_rectify)(x)
        return layers.Activation(_rectify)(_without_activation(each, x))

    return keras.models.clone_model(part, clone_function=lambda each: each, call_function=call)


def _rectify(x):
    """Rectify on the way forward, and the signal on the way back."""
    return tf.custom_gradient(lambda x: (tf.nn.relu(x), tf.nn.relu))(x)


def _without_activation(layer: layers.Layer, x):
    """Apply a layer with its weights, and without its activation."""
    twin = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    outputs = twin(x)
    twin.set_weights(layer.get_weights())
    return outputs
