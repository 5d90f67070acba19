"""Layers of Keras whose training steps take less time on a CPU when other operations of TensorFlow compute them.

What they return, their gradients and their variables stay the same but for rounding.

Batch normalization: Keras builds it from about twenty operations, several of which read and write whole feature maps in
float32, even in mixed_bfloat16. One fused operation takes a quarter of the time on maps of 32x32, a sixth in bfloat16.

Convolutions over small maps in bfloat16: with one matrix product as the gradient of the kernel, a layer takes less than
half the time on maps of 2x2, and a little less on 8x8; on larger maps it takes longer. `benchmarks/cpu_layers.py`
measures both.

B batch, H height, W width, C channels, F filters, M and N height and width of a kernel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

LARGEST = 8
"""Height and width of the largest map for which the gradient of a kernel is computed as a matrix product."""


@contextmanager
def faster_on_cpu(model: keras.Model) -> Iterator[None]:
    """Let the layers that are called inside the `with` use the faster operations; there are none with a GPU.

    It is done for plain `keras.layers.BatchNormalization` of feature maps [B, H, W, C] while it is trained and is not
    synchronized over devices, and for plain `keras.layers.Conv2D` in bfloat16, for maps of at most LARGEST.
    """
    replaced = []
    for layer in [] if tf.config.list_physical_devices("GPU") else model._flatten_layers():
        if _is_plain_normalization(layer):
            replaced.append((layer, "call", _normalize))
        elif _is_plain_convolution(layer):
            replaced.append((layer, "convolution_op", _convolve))
    for layer, name, function in replaced:
        setattr(layer, name, partial(function, layer))
    try:
        yield
    finally:
        for layer, name, _ in replaced:
            if name in vars(layer):  # else the thread of another replica was here before
                delattr(layer, name)  # the method of the class is found again


def kernel_gradient(images: tf.Tensor, upstream: tf.Tensor, kernel_size: tuple[int, int], padding: str) -> tf.Tensor:
    """Return the gradient of the kernel of a convolution without strides, as one matrix product.

    Args:
        images: what was convolved, [B, H, W, C].
        upstream: gradient of the result, [B, H', W', F].
        kernel_size: (M, N).
        padding: same or valid.

    Returns:
        [M, N, C, F], in the dtype of the images.
    """
    height, width = kernel_size
    if padding == "same":
        around = [[(size - 1) // 2, size // 2] for size in kernel_size]
        images = tf.pad(images, [[0, 0], *around, [0, 0]])
    rows, columns, channels = images.shape[1:]
    seen = sliding_window_view(np.arange(rows * columns).reshape(rows, columns), kernel_size)  # [H', W', M, N]
    # One gather takes less time than slices that are put together.
    windows = tf.gather(tf.reshape(images, (-1, rows * columns, channels)), seen.reshape(-1), axis=1)
    windows = tf.reshape(windows, (-1, height * width * channels))
    product = tf.matmul(windows, tf.reshape(upstream, (-1, upstream.shape[-1])), transpose_a=True)
    return tf.reshape(product, (height, width, channels, -1))


def _is_plain_convolution(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and layer.compute_dtype == "bfloat16"
        and layer.data_format == "channels_last"
        and set(layer.strides) | set(layer.dilation_rate) | {layer.groups} == {1}
    )


def _convolve(layer: keras.layers.Conv2D, images, kernel):
    """Do what `keras.layers.Conv2D.convolution_op` does."""
    images, kernel = tf.convert_to_tensor(images), tf.convert_to_tensor(kernel)
    plain = partial(keras.layers.Conv2D.convolution_op, layer)
    if None in images.shape[1:3] or max(images.shape[1:3]) > LARGEST:
        return plain(images, kernel)

    @tf.custom_gradient
    def convolve(images, kernel):
        def gradients(upstream):
            options = {"strides": [1] * 4, "padding": layer.padding.upper()}
            of_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, **options
            )
            return of_images, kernel_gradient(images, upstream, layer.kernel_size, layer.padding)

        return plain(images, kernel), gradients

    return convolve(images, kernel)


def _is_plain_normalization(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.compute_dtype in ("float32", "bfloat16")
        and layer.variable_dtype == "float32"
        and layer.axis in (-1, 3)
        and layer.scale
        and layer.center
        and layer.trainable
        and not (layer.renorm or layer.synchronized)
    )


def _normalize(layer: keras.layers.BatchNormalization, inputs, training=None, mask=None):
    """Do what `keras.layers.BatchNormalization.call` does."""
    inputs = tf.convert_to_tensor(inputs)
    is_image = inputs.shape.rank == 4 and inputs.dtype == layer.compute_dtype
    if not training or mask is not None or not is_image:
        return keras.layers.BatchNormalization.call(layer, inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma.value,
        offset=layer.beta.value,
        mean=tf.zeros(0),
        variance=tf.zeros(0),
        epsilon=layer.epsilon,
        is_training=True,
    )
    count = tf.cast(tf.size(inputs, tf.int64) // inputs.shape[-1], variance.dtype)
    variance *= (count - 1) / count  # Keras divides by the count, the operation by the count less one
    for moving, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moving.assign(moving * layer.momentum + new * (1.0 - layer.momentum))
    return outputs
