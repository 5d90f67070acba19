"""Augmentations of color and brightness. The pixels keep their places.

Images have 3 channels (red, green, blue) or 1 (gray, which has no saturation and no hue).

B batch, H height, W width, C channels.
"""

import numpy as np
import tensorflow as tf

from kpipe.catalog.data import AUGMENTATIONS, ColorJitterOptions, GrayscaleOptions, PcaColorOptions
from kpipe.catalog.rows import check_options
from kpipe.data.augmentations.base import Augmentation, in_dtype_of, per_image, spread

# Of the colors of ImageNet's training images in [0, 1]. The vectors are the columns.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
# ITU-R 601-2: 0.299, 0.587, 0.114, in the 1/65536 that Pillow counts in. For whole pixels float32 sums are then exact.
LUMA = 19595 / 65536, 38470 / 65536, 7471 / 65536
SMALLEST_UNIFORM = 2.0**-24  # as far from 0 as the largest float32 below 1 is from 1


def color_jitter(
    brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0
) -> Augmentation:
    """Change brightness, contrast, saturation and hue, in this order (4 uniforms, one each).

    The operations are torchvision's, which draws their order too. The first three blend an image with black, with the
    mean of its luminance and with its luminance, by a factor uniform in 1 +- the argument. The last turns the hue of
    HSV. Each clips to 0..255; uint8 is rounded once, at the end. The last two leave gray images alone.

    Args:
        brightness, contrast, saturation: 0..1; 0 leaves the operation out.
        hue: largest shift in turns, 0..0.5; 0 leaves it out.

    Raises:
        ConfigError: an argument is out of its range.
        ValueError: when applied, the images have neither 1 nor 3 channels.
    """
    check_options(
        "color_jitter", ColorJitterOptions, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )

    def apply(images, uniforms):
        check_channels("color_jitter", images)
        pixels, colored = tf.cast(images, tf.float32), images.shape[3] == 3
        if brightness:
            pixels = blend(pixels, 0.0, 1 + spread(uniforms[:, 0], brightness))
        if contrast:
            mean = tf.reduce_mean(luminance(pixels), axis=[1, 2], keepdims=True)
            pixels = blend(pixels, mean, 1 + spread(uniforms[:, 1], contrast))
        if saturation and colored:
            pixels = blend(pixels, luminance(pixels), 1 + spread(uniforms[:, 2], saturation))
        if hue and colored:
            pixels = _shift_hue(pixels, spread(uniforms[:, 3], hue))
        return in_dtype_of(images, pixels)

    return Augmentation("color_jitter", 4, apply)


def pca_color(deviation: float = 0.1, scale: str = "paper") -> Augmentation:
    """Shift all pixels of an image along the principal components of ImageNet's colors (3 uniforms, one each).

    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012, section
    4.1: component i is multiplied by its eigenvalue and by a normal number of standard deviation 0.1. An eigenvalue is
    a square of a color, so the result depends on the range of the pixels. Here it is [0, 1], where the shift has a
    standard deviation of 5.6 of 255 in all (3.2 a channel). In 0..255 the same formula would give 1,400.

    Args:
        deviation: standard deviation of the normal numbers, above 0.
        scale: `paper`: multiply by the eigenvalues. `deviation`: multiply by their square roots, the standard
            deviations of the colors themselves: 12.5 of 255 in all (7.2 a channel), in any range of the pixels.

    Raises:
        ConfigError: an argument is out of its range.
        ValueError: when applied, the images do not have 3 channels.
    """
    check_options("pca_color", PcaColorOptions, deviation=deviation, scale=scale)
    lengths = EIGENVALUES if scale == "paper" else np.sqrt(EIGENVALUES)
    shifts = 255 * deviation * lengths[:, None] * EIGENVECTORS.T  # a row for each component

    def apply(images, uniforms):
        check_channels("pca_color", images)
        normal = tf.math.ndtri(tf.maximum(uniforms, SMALLEST_UNIFORM))  # at 0 it is infinite
        shift = tf.matmul(normal, shifts)
        return in_dtype_of(images, tf.cast(images, tf.float32) + shift[:, None, None, :])

    return Augmentation("pca_color", 3, apply)


def grayscale(probability: float = 0.1) -> Augmentation:
    """Put the luminance into all channels where the uniform is below `probability` (1 uniform).

    Args:
        probability: 0..1. Gray images stay as they are.

    Raises:
        ConfigError: `probability` is out of its range.
        ValueError: when applied, the images have neither 1 nor 3 channels.
    """
    check_options("grayscale", GrayscaleOptions, probability=probability)

    def apply(images, uniforms):
        check_channels("grayscale", images)
        gray = in_dtype_of(images, luminance(tf.cast(images, tf.float32)))
        return tf.where(per_image(uniforms[:, 0] < probability), gray, images)

    return Augmentation("grayscale", 1, apply)


def check_channels(name: str, images: tf.Tensor) -> None:
    """Raise a ValueError if the images have a number of channels that the augmentation's row does not allow."""
    allowed = AUGMENTATIONS[name].channels
    if images.shape[3] not in allowed:
        numbers = " or ".join(map(str, allowed))
        # Inside a graph TensorFlow rebuilds an error of its own type from a built-in class only.
        raise ValueError(f"{name}: expected images of {numbers} channels, got {images.shape[3]}")


def luminance(pixels: tf.Tensor) -> tf.Tensor:
    """Return ITU-R 601-2 luma float32 [B, H, W, 1] of pixels float32 [B, H, W, 3]; one channel is returned as it is."""
    if pixels.shape[3] == 1:
        return pixels
    return LUMA[0] * pixels[..., :1] + LUMA[1] * pixels[..., 1:2] + LUMA[2] * pixels[..., 2:]


def blend(pixels: tf.Tensor, other: tf.Tensor | float, factors: tf.Tensor) -> tf.Tensor:
    """Return `pixels` float32 [B, H, W, C] where the factor [B] is 1, `other` where it is 0; clip to 0..255 beyond."""
    return tf.clip_by_value(other + per_image(factors) * (pixels - other), 0.0, 255.0)


def _shift_hue(pixels: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Turn the hue of `pixels` float32 [B, H, W, 3] by `turns` [B]; saturation and value of HSV stay."""
    red, green, blue = tf.unstack(pixels, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    span = tf.where(chroma > 0, chroma, 1.0)  # gray has no hue, and no chroma for it to show in
    ahead = tf.where(value == green, 2 + (blue - red) / span, 4 + (red - green) / span)
    hue = tf.where(value == red, (green - blue) / span, ahead) / 6 + turns[:, None, None]

    def channel(offset):
        # Each channel is a trapezoid of the hue. floormod would take three times as long as x - floor(x).
        sixths = 6 * (hue + offset / 6 - tf.floor(hue + offset / 6))
        return value - chroma * tf.clip_by_value(tf.minimum(sixths, 4 - sixths), 0.0, 1.0)

    return tf.stack([channel(5), channel(3), channel(1)], axis=-1)
