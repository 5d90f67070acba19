"""Fixed kernels, whose effect can be foreseen: what a convolution does to an image before anything is learned.

H height, W width, C channels.
"""

import keras
import numpy as np

KERNELS = {
    "blur": np.full((5, 5), 1 / 25),
    "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "edges": np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]),
    "vertical edges": np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
    "horizontal edges": np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
    "tail": np.array([[0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]]) / 7,
}
"""Kernels by name. The edges of one direction are Sobel's; `tail` answers where an image has its own pattern."""


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the response of an image to a kernel, channel by channel, as a network computes it.

    Args:
        image: [H, W, C], 0..255.
        kernel: [h, w].

    Returns:
        float32 [H, W, C]. Outside of the image is 0.
    """
    channels = image.shape[-1]
    kernel = np.repeat(kernel.astype(np.float32)[..., None, None], channels, axis=2)
    images = image[None].astype(np.float32)
    return keras.ops.convert_to_numpy(keras.ops.depthwise_conv(images, kernel, padding="same"))[0]
