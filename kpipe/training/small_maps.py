"""Gradients of the kernels of convolutions over small maps, as one matrix product.

In bfloat16 on a CPU, the ready-made operation takes most of a step there: for 512 channels and 512 filters on a map of
2x2 it takes four times as long as this one, on a map of 8x8 one and a half times as long.

B batch, H height, W width, C channels, F filters, M and N height and width of a kernel.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view

LARGEST = 8
"""Height and width of the largest map for which the product is faster."""


@contextmanager
def kernel_gradients_as_products(model: keras.Model) -> Iterator[None]:
    """Let the convolutions of a model that are called inside the `with` have such gradients, where these are faster.

    Those are the plain `keras.layers.Conv2D` in bfloat16 on a CPU, for maps of at most 8x8. What they return stays the
    same, their gradients stay the same but for rounding.
    """
    faster = [] if tf.config.list_physical_devices("GPU") else list(filter(_is_plain, model._flatten_layers()))
    for layer in faster:
        layer.convolution_op = partial(_convolve, layer, layer.convolution_op)
    try:
        yield
    finally:
        for layer in faster:
            del layer.convolution_op  # that of the class again


def kernel_gradient(images: tf.Tensor, upstream: tf.Tensor, kernel_size: tuple[int, int], padding: str) -> tf.Tensor:
    """Return the gradient of the kernel of a convolution without strides.

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
    places = np.arange(rows * columns).reshape(rows, columns)
    places = sliding_window_view(places, kernel_size)  # [H', W', M, N]
    windows = tf.gather(tf.reshape(images, (-1, rows * columns, channels)), places.reshape(-1), axis=1)
    windows = tf.reshape(windows, (-1, height * width * channels))
    product = tf.matmul(windows, tf.reshape(upstream, (-1, upstream.shape[-1])), transpose_a=True)
    return tf.reshape(product, (height, width, channels, -1))


def _is_plain(layer: keras.Layer) -> bool:
    return (
        type(layer) is keras.layers.Conv2D
        and layer.compute_dtype == "bfloat16"
        and layer.data_format == "channels_last"
        and set(layer.strides) | set(layer.dilation_rate) | {layer.groups} == {1}
    )


def _convolve(layer: keras.layers.Conv2D, plain: Callable, images, kernel):
    """Do what `plain`, the layer's own `convolution_op`, does."""
    images, kernel = tf.convert_to_tensor(images), tf.convert_to_tensor(kernel)
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
