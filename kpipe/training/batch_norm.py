"""Batch normalization as one operation of TensorFlow, in the steps of training.

Keras makes it out of about twenty operations, each of which reads and writes arrays as large as the images, in float32
under every dtype policy. On a CPU that takes up to six times as long, a sixth of a step of VGG-16 at 32 pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import keras
import tensorflow as tf


@contextmanager
def batch_norm_as_one_operation(model: keras.Model) -> Iterator[None]:
    """Let the layers of batch normalization that are called inside the `with` use one operation, where that is faster.

    Those are the plain `keras.layers.BatchNormalization` of images on a CPU, which is not synchronized over devices,
    while it is trained. What it returns, its gradients and its moving averages stay the same but for rounding. In
    mixed_bfloat16 the operation reads and writes bfloat16, and computes in float32, as Keras does.
    """
    faster = [] if tf.config.list_physical_devices("GPU") else list(filter(_is_plain, model._flatten_layers()))
    for layer in faster:
        layer.call = partial(_normalize, layer, layer.call)
    try:
        yield
    finally:
        for layer in faster:
            del layer.call  # that of the class again


def _is_plain(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.compute_dtype in ("float32", "bfloat16")
        and layer.axis in (-1, 3)
        and layer.scale
        and layer.center
        and layer.trainable
        and not (layer.renorm or layer.synchronized)
    )


def _normalize(layer: keras.layers.BatchNormalization, plain: Callable, inputs, training=None, mask=None):
    """Do what `plain`, the layer's own `call`, does."""
    inputs = tf.convert_to_tensor(inputs)
    if not training or mask is not None or inputs.shape.rank != 4:
        return plain(inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma.value,
        offset=layer.beta.value,
        mean=tf.zeros(0),
        variance=tf.zeros(0),
        epsilon=layer.epsilon,
        is_training=True,
    )
    count = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
    variance *= (count - 1) / count  # the operation divides by the count less one, Keras by the count
    for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + new * (1.0 - layer.momentum))
    return outputs
