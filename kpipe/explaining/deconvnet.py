"""The deconvolutional network: what in an image has excited a feature map.

M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1. It goes back from
one activation to the pixels: through the switches of each pooling, which say where its maximum was, through a
rectification, and through the transposed filters.

A gradient goes back in the same way, but for the rectification (K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside
Convolutional Networks", 2014, section 4). The gradient of a ReLU passes where its input was positive on the way
forward. The deconvolutional network passes what is positive on the way back. So this computes it as the gradient of a
network whose ReLUs have the other rule. The signal starts with the value of the activation, so the projection is that
gradient times this value.

Differences from the paper:
- Where windows of a pooling overlap, what several of them send to one switch is added.
- An average pooling has no switches: it spreads the signal evenly over its window.
- A local response normalization scales on the way back by what it has scaled forward, and a batch normalization by its
  own scale over the standard deviation.
- An activation other than a ReLU, such as tanh, a leaky ReLU or ReLU6, passes its gradient.

B batch, H height, W width, C channels, F feature maps.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from kpipe.explaining.feature_maps import find_layer
from kpipe.explaining.receptive_fields import find_field
from kpipe.models.fully_convolutional import CONVOLUTIONAL
from kpipe.models.geometry import LayerGeometry
from kpipe.models.layers import LocalResponseNormalization
from kpipe.models.preprocessing import flips_channels


def deconvolve(
    network: keras.Model,
    images: np.ndarray,
    maps: Sequence[int],
    positions: np.ndarray | None = None,
    *,
    geometry: LayerGeometry | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Project one activation of each image back to its pixels.

    Args:
        network: what `build_deconvnet` returned for a layer.
        images: [B, H, W, C], 0..255.
        maps: number of the feature map for each image, 0..F - 1: int [B].
        positions: (row, column) of the activation, int [B, 2]; None: that of the largest.
        geometry: of the layer, from `measure`. With it and positions, a network for images of any size computes no
            more than the receptive field of each activation, which changes nothing but the time.
        advance: called with 1 after each image.

    Returns:
        What the deconvolutional network draws, float32 [B, H, W, C]: above 0 where a brighter pixel would have
        excited the map more, below 0 where a darker one would have.
    """
    channels = images.shape[-1]

    # A graph leaves out the gradients of the weights, which a tape outside of one computes as well.
    @tf.function(
        input_signature=[
            tf.TensorSpec((1, *network.input_shape[1:3], channels)),
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((2,), tf.int64),
        ]
    )
    def project(image, number, position):
        with tf.GradientTape() as tape:
            tape.watch(image)
            own = tf.cast(network(image, training=False), tf.float32)[0, :, :, number]
            flat = tf.reshape(own, [-1])
            place = position[0] * tf.shape(own, tf.int64)[1] + position[1]
            # Only this activation goes back; the others of its layer are set to 0.
            value = flat[tf.argmax(flat) if positions is None else place]
            signal = value * tf.stop_gradient(value)
        return tape.gradient(signal, image)

    has_field = geometry is not None and geometry.receptive_field is not None
    cuts = has_field and positions is not None and None in network.input_shape[1:3]
    projections = np.zeros(images.shape, np.float32)
    for place, (image, number) in enumerate(zip(images, maps, strict=True)):
        position = np.zeros(2, np.int64) if positions is None else np.asarray(positions[place], np.int64)
        part = np.s_[:, :]
        if cuts:
            part, skipped = _find_part(geometry, position, image.shape[:2])
            position = position - skipped
        projections[place][part] = project(image[part][None].astype(np.float32), int(number), position)[0]
        advance(1)
    return projections


def _find_part(geometry: LayerGeometry, position: np.ndarray, size: tuple[int, int]) -> tuple[tuple, np.ndarray]:
    """Return the part of an image [H, W] that a position sees, and by how many positions that of the part is less.

    What is cut off at each side is a multiple of the total stride. So each window of a convolution or pooling lies as
    in the whole image, and where the part ends at an edge of the image, the padding is the same.
    """
    field = find_field(geometry, position)
    part, skipped = [], []
    for axis, stride in enumerate(geometry.total_stride):
        before = max(0, field[axis]) // stride
        after = max(0, size[axis] - field[axis] - field[axis + 2]) // stride
        part.append(slice(before * stride, size[axis] - after * stride))
        skipped.append(before)
    return tuple(part), np.array(skipped)


def build_deconvnet(model: keras.Model, layer: str) -> keras.Model:
    """Build the part of a network up to a layer, whose gradient is what the deconvolutional network computes.

    Args:
        model: the network.
        layer: name of a layer with feature maps.

    Returns:
        Images [B, H, W, C] to the feature maps of this layer. Images of any size where no layer needs one size.

    Raises:
        ConfigError: there is no such layer.
    """
    part = keras.Model(model.inputs, find_layer(model, layer).output)
    takes_any_size = all(isinstance(each, CONVOLUTIONAL) or flips_channels(each) for each in part.operations)

    def call(each, x, **options):
        if isinstance(each, LocalResponseNormalization):
            return x * ops.cast(ops.stop_gradient(each.scale(x)), x.dtype)
        if not _is_plain_relu(each):
            # A layer without weights may have been built for one size.
            if takes_any_size and not getattr(each, "weights", True):
                each = type(each).from_config(each.get_config())
            return each(x, **options)
        if isinstance(each, layers.ReLU | layers.Activation):
            return layers.Activation(_rectify)(x)
        return layers.Activation(_rectify)(_without_activation(each, x))

    images = keras.Input((None, None, model.input_shape[-1])) if takes_any_size else keras.Input(model.input_shape[1:])
    return keras.models.clone_model(part, [images], clone_function=lambda each: each, call_function=call)


def _is_plain_relu(layer: keras.Operation) -> bool:
    """Return whether a layer is max(x, 0), or ends in it; ReLU6, for one, is another function."""
    if isinstance(layer, layers.ReLU):
        return layer.max_value is None and not layer.negative_slope and not layer.threshold
    return getattr(layer, "activation", None) is keras.activations.relu


def _rectify(x):
    """Rectify on the way forward, and the signal on the way back."""
    return tf.custom_gradient(lambda x: (tf.nn.relu(x), tf.nn.relu))(x)


def _without_activation(layer: layers.Layer, x):
    """Apply a layer with its weights, and without its activation."""
    twin = type(layer).from_config({**layer.get_config(), "activation": "linear"})
    outputs = twin(x)
    twin.set_weights(layer.get_weights())
    return outputs
