"""Augmentations of whole batches: each is a pure function of the images and of given random numbers.

None of them draws. The pipeline draws once a batch (a draw under XLA gives other numbers than without) and passes each
augmentation its columns, so that a batch depends on (seed, step) alone. XLA fuses the gathers and selects below into
one loop over the output.

B batch, H height, W width, C channels, n uniforms an image.
"""

import math

import tensorflow as tf

from kpipe.catalog.data import CutoutOptions, PadCropOptions, RotateOptions, TranslateOptions
from kpipe.catalog.rows import check_options
from kpipe.data.augmentations.base import Augmentation, box, in_dtype_of, spread, turn


def pad_crop(padding: int = 4) -> Augmentation:
    """Pad with zeros on all sides, then crop the old size at a random place (2 uniforms: row, column).

    Args:
        padding: pixels added on each side, at least 1.

    Raises:
        ConfigError: `padding` is not a whole number of at least 1.
    """
    padding = check_options("pad_crop", PadCropOptions, padding=padding).padding

    def apply(images, uniforms):
        # The crop moves by the uniform, the image against it.
        shifts = -_whole_shifts(uniforms, padding)
        return _shift(images, shifts[:, 0], shifts[:, 1])

    return Augmentation("pad_crop", 2, apply, moves=True)


def translate(height: float = 0.1, width: float = 0.1) -> Augmentation:
    """Shift by whole pixels; vacated pixels are 0 (2 uniforms: row, column).

    Args:
        height, width: largest shift as a fraction of the image, in [0, 1), rounded to the nearest pixel.

    Raises:
        ConfigError: a fraction is outside [0, 1).
    """
    check_options("translate", TranslateOptions, height=height, width=width)

    def apply(images, uniforms):
        down = _whole_shifts(uniforms[:, 0], round(height * images.shape[1]))
        right = _whole_shifts(uniforms[:, 1], round(width * images.shape[2]))
        return _shift(images, down, right)

    return Augmentation("translate", 2, apply, moves=True)


def flip_horizontal() -> Augmentation:
    """Mirror left and right where the uniform is below 0.5, in half of the images on average (1 uniform)."""

    def apply(images, uniforms):
        return tf.where(uniforms[:, :1, None, None] < 0.5, tf.reverse(images, axis=[2]), images)

    return Augmentation("flip_horizontal", 1, apply, is_flip=True)


def flip_vertical() -> Augmentation:
    """Mirror top and bottom where the uniform is below 0.5, in half of the images on average (1 uniform)."""

    def apply(images, uniforms):
        return tf.where(uniforms[:, :1, None, None] < 0.5, tf.reverse(images, axis=[1]), images)

    return Augmentation("flip_vertical", 1, apply, is_flip=True)


def rotate(degrees: float = 15.0, fill: int = 0) -> Augmentation:
    """Rotate about the center by an angle uniform in +-`degrees`, with bilinear interpolation (1 uniform).

    Args:
        degrees: largest angle, above 0 and at most 180.
        fill: value around the image, 0..255. Pixels at the border are interpolated towards it.

    Raises:
        ConfigError: an argument is out of its range.
    """
    fill = check_options("rotate", RotateOptions, degrees=degrees, fill=fill).fill

    def apply(images, uniforms):
        rows, columns = turn(images, spread(uniforms[:, 0], math.radians(degrees)))
        return in_dtype_of(images, _interpolate(images, rows, columns, fill))

    return Augmentation("rotate", 1, apply)


def cutout(size: int = 16, fill: int = 0) -> Augmentation:
    """Cover a square whose center is uniform over the image; the border cuts it (2 uniforms: row, column).

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017, section 3.2. They
    cover with 0 after the mean is subtracted, which is the mean of the training images.

    Args:
        size: side of the square in pixels, at least 1.
        fill: value inside the square, 0..255.

    Raises:
        ConfigError: an argument is not a whole number of its range.
    """
    options = check_options("cutout", CutoutOptions, size=size, fill=fill)

    def apply(images, uniforms):
        covered = box(images, uniforms, options.size, options.size)
        return tf.where(covered, tf.constant(options.fill, images.dtype), images)

    return Augmentation("cutout", 2, apply)


def _interpolate(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, fill: int) -> tf.Tensor:
    """Sample bilinearly at `rows` and `columns` [B, H, W], with `fill` around the images: float32 [B, H, W, C]."""
    height, width, channels = images.shape[1:]
    # One pixel of fill before and two after are all that samples outside can see, once they are clipped.
    padded = tf.pad(images, [[0, 0], [1, 2], [1, 2], [0, 0]], constant_values=fill)
    flat = tf.reshape(padded, [-1, (height + 3) * (width + 3), channels])
    rows = tf.clip_by_value(rows, -1.0, height) + 1
    columns = tf.clip_by_value(columns, -1.0, width) + 1
    top, left = tf.floor(rows), tf.floor(columns)
    corner = tf.cast(top, tf.int32) * (width + 3) + tf.cast(left, tf.int32)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def pixels(offset):
        return tf.cast(tf.gather(flat, corner + offset, axis=1, batch_dims=1), tf.float32)

    upper = pixels(0) * (1 - right) + pixels(1) * right
    lower = pixels(width + 3) * (1 - right) + pixels(width + 4) * right
    return upper * (1 - down) + lower * down


def _whole_shifts(uniforms: tf.Tensor, largest: int) -> tf.Tensor:
    """Map uniforms in [0, 1) to int32 in -largest..largest, all equally likely."""
    # Even the last float32 below 1 stays below 2 * largest + 1: for an odd factor the product rounds down.
    return tf.cast(uniforms * (2 * largest + 1), tf.int32) - largest


def _shift(images: tf.Tensor, down: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Move each image [H, W, C] by its own int32 `down` [B] and `right` [B]; vacated pixels are 0."""
    height, width = images.shape[1:3]
    rows = tf.range(height) - down[:, None]  # [B, H]
    columns = tf.range(width) - right[:, None]  # [B, W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    moved = tf.gather(images, tf.clip_by_value(rows, 0, height - 1), axis=1, batch_dims=1)
    moved = tf.gather(moved, tf.clip_by_value(columns, 0, width - 1), axis=2, batch_dims=1)
    return tf.where(inside[..., None], moved, tf.zeros([], images.dtype))
