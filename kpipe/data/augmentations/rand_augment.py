"""RandAugment: operations drawn from a fixed list, for a whole batch at once.

Cubuk, Zoph, Shlens and Le, "RandAugment: Practical automated data augmentation with a reduced search space", 2020. The
list, the ranges and the steps of the magnitude are torchvision's.

Whatever an image drew, three results are computed for it: its pixels moved, their values mapped by a table, and a blend
with another image. One of them is taken. For the identity it is the move, which is then zero.

B batch, H height, W width, C channels.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from kpipe.catalog.data import RandAugmentOptions
from kpipe.catalog.rows import check_options
from kpipe.data.augmentations.base import Augmentation, in_dtype_of, per_image, turn
from kpipe.data.augmentations.color import blend, check_channels, luminance

MOVES = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("brightness", "color", "contrast", "sharpness")
TABLES = ("posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = MOVES + BLENDS + TABLES
LARGEST_MAGNITUDE = 30
# At the largest magnitude. AutoAugment's search shifted its images of 331 pixels by 150.
SHEAR, SHIFT, DEGREES, FACTOR, BITS = 0.3, 150 / 331, 30, 0.9, 4


def rand_augment(operations: int = 2, magnitude: int = 9) -> Augmentation:
    """Apply operations drawn from 14, one after the other (2 uniforms for each operation: which one, and its sign).

    Equally likely are identity, shear and shift along either axis, rotation; brightness, color, contrast, sharpness;
    posterize, solarize, autocontrast and equalize. Moves take the nearest pixel, and vacated pixels are 0. Images of
    one channel are gray: color leaves them alone. Float images are rounded to whole numbers first. Pillow, which
    torchvision calls, drops the fraction after a blend or a stretch of contrast; here it is rounded.

    Args:
        operations: number for each image, at least 1.
        magnitude: their strength, 0..30. At 30: shear by 0.3, shift by 150/331 of the side, rotation by 30 degrees,
            factors of 0.1 or 1.9, 4 bits less, all values inverted.

    Raises:
        ConfigError: an argument is not a whole number of its range.
        ValueError: when applied, the images have neither 1 nor 3 channels.
    """
    options = check_options("rand_augment", RandAugmentOptions, operations=operations, magnitude=magnitude)
    operations, magnitude = options.operations, options.magnitude

    def apply(images, uniforms):
        check_channels("rand_augment", images)

        def operate(number, batch):
            chosen = tf.cast(uniforms[:, 2 * number] * len(OPERATIONS), tf.int32)
            signs = tf.where(uniforms[:, 2 * number + 1] < 0.5, -1.0, 1.0)
            return number + 1, _operate(batch, _Choice(chosen, signs * (magnitude / LARGEST_MAGNITUDE)), magnitude)

        # Unrolled, XLA would compute the first operation anew wherever the second one reads: six times the work, and
        # twice the time to compile.
        whole = tf.cast(tf.round(images), tf.uint8)
        _, whole = tf.while_loop(lambda number, batch: number < operations, operate, (0, whole))
        return tf.cast(whole, images.dtype)

    return Augmentation("rand_augment", 2 * operations, apply)


@dataclass(frozen=True)
class _Choice:
    """Operations that the images drew."""

    operations: tf.Tensor
    """Indices into `OPERATIONS`, int32 [B]."""
    strengths: tf.Tensor
    """Signed fractions of the largest magnitude, float32 [B] in -1..1."""

    def among(self, names: tuple[str, ...]) -> tf.Tensor:
        """Return whether each image drew one of these neighbors in `OPERATIONS`: bool [B]."""
        first, last = OPERATIONS.index(names[0]), OPERATIONS.index(names[-1])
        return (self.operations >= first) & (self.operations <= last)

    def amount(self, *names: str) -> tf.Tensor:
        """Return the strength where the image drew one of these, elsewhere 0: float32 [B]."""
        return tf.where(self.among(names), self.strengths, 0.0)


def _operate(images: tf.Tensor, choice: _Choice, magnitude: int) -> tf.Tensor:
    """Apply one operation to each of the images uint8 [B, H, W, C]."""
    result = tf.where(per_image(choice.among(BLENDS)), _blend(images, choice), _move(images, choice))
    return tf.where(per_image(choice.among(TABLES)), _map_values(images, choice, magnitude), result)


def _move(images: tf.Tensor, choice: _Choice) -> tf.Tensor:
    """Rotate about the center, shear about the upper left corner, shift by whole pixels."""
    height, width, channels = images.shape[1:]

    def amount(name, largest):
        return (choice.amount(name) * largest)[:, None, None]

    rows, columns = turn(images, choice.amount("rotate") * math.radians(DEGREES))
    down = (tf.range(height, dtype=tf.float32) + 0.5)[:, None]
    right = tf.range(width, dtype=tf.float32) + 0.5
    rows += amount("shear_y", SHEAR) * right
    columns += amount("shear_x", SHEAR) * down
    # The cast drops the fraction of a shift.
    row = tf.cast(tf.floor(rows + 0.5), tf.int32) - tf.cast(amount("translate_y", SHIFT * height), tf.int32)
    column = tf.cast(tf.floor(columns + 0.5), tf.int32) - tf.cast(amount("translate_x", SHIFT * width), tf.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = tf.clip_by_value(row, 0, height - 1) * width + tf.clip_by_value(column, 0, width - 1)
    moved = tf.gather(tf.reshape(images, [-1, height * width, channels]), place, axis=1, batch_dims=1)
    return tf.where(inside[..., None], moved, tf.zeros([], images.dtype))


def _blend(images: tf.Tensor, choice: _Choice) -> tf.Tensor:
    """Change brightness, color, contrast and sharpness: blend with black, gray, the mean gray or a smooth image."""
    pixels = tf.cast(images, tf.float32)
    gray = tf.floor(luminance(pixels) + 0.5)
    mean = tf.floor(tf.reduce_mean(gray, axis=[1, 2], keepdims=True) + 0.5)
    other = tf.zeros([], tf.float32)
    for name, values in (("color", gray), ("contrast", mean), ("sharpness", _smooth(pixels))):
        other = tf.where(per_image(choice.among((name,))), values, other)
    return in_dtype_of(images, blend(pixels, other, 1 + FACTOR * choice.amount(*BLENDS)))


def _smooth(pixels: tf.Tensor) -> tf.Tensor:
    """Apply Pillow's filter SMOOTH, [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, rounded; the border stays."""
    height, width, channels = pixels.shape[1:]
    length, line = height * width * channels, width * channels
    # Laid out as one line, neighbors are at fixed distances, and XLA adds them four times as fast as from rows.
    flat = tf.reshape(pixels, [-1, length])
    padded = tf.pad(flat, [[0, 0], [line + channels, line + channels]])
    starts = [row * line + column * channels for row in range(3) for column in range(3)]
    neighbors = sum(padded[:, start : start + length] for start in starts)
    inner = np.zeros((height, width, channels), bool)
    inner[1:-1, 1:-1] = True
    smooth = tf.where(inner.ravel(), tf.round((neighbors + 4 * flat) / 13), flat)
    return tf.reshape(smooth, tf.shape(pixels))


def _map_values(images: tf.Tensor, choice: _Choice, magnitude: int) -> tf.Tensor:
    """Posterize, solarize, autocontrast or equalize by a table of 256 values for each image and channel."""
    values, channels = np.arange(256, dtype=np.int32), images.shape[3]
    bits = round(BITS * magnitude / LARGEST_MAGNITUDE)
    solarized = np.where(values >= 255 - 255 * magnitude / LARGEST_MAGNITUDE, 255 - values, values)
    counts = _histograms(images)
    tables = [values >> bits << bits, solarized, _stretch(counts), _equalize(counts)]
    tables = tf.stack([tf.broadcast_to(table, tf.shape(counts)) for table in tables], axis=1)
    # The choice is a product, since XLA would fuse a select into the gather and build the tables for each pixel.
    chosen = tf.one_hot(choice.operations - OPERATIONS.index(TABLES[0]), len(TABLES))
    table = tf.einsum("bt,btcv->bcv", chosen, tf.cast(tables, tf.float32))
    table = tf.reshape(tf.cast(table, tf.uint8), [-1, channels * 256])
    return tf.gather(table, tf.cast(images, tf.int32) + 256 * tf.range(channels), axis=1, batch_dims=1)


def _histograms(images: tf.Tensor) -> tf.Tensor:
    """Count the pixels of each value: int32 [B, C, 256]."""
    batch, channels = tf.shape(images)[0], images.shape[3]
    table = tf.reshape(tf.range(batch * channels), [batch, 1, 1, channels])
    places = tf.cast(images, tf.int32) + 256 * table
    counts = tf.math.unsorted_segment_sum(tf.ones_like(places), places, batch * channels * 256)
    return tf.reshape(counts, [batch, channels, 256])


def _stretch(counts: tf.Tensor) -> tf.Tensor:
    """Return the table of Pillow's autocontrast: the darkest value that occurs becomes 0, the brightest 255."""
    values = tf.range(256)
    darkest = tf.reduce_min(tf.where(counts > 0, values, 255), axis=-1, keepdims=True)
    span = _brightest(counts) - darkest
    # 255 * x / span, rounded. No pixel has a value outside the span.
    stretched = (510 * (values - darkest) + span) // (2 * tf.maximum(span, 1))
    return tf.where(span > 0, tf.clip_by_value(stretched, 0, 255), values)


def _equalize(counts: tf.Tensor) -> tf.Tensor:
    """Return the table of Pillow's equalize: each range of values then holds equally many pixels."""
    values = np.arange(256)
    before = tf.cumsum(counts, axis=-1, exclusive=True)
    step = tf.reduce_sum(tf.where(values < _brightest(counts), counts, 0), axis=-1, keepdims=True) // 255
    equalized = tf.minimum((step // 2 + before) // tf.maximum(step, 1), 255)
    return tf.where(step > 0, equalized, tf.range(256))


def _brightest(counts: tf.Tensor) -> tf.Tensor:
    """Return the largest value that occurs: int32 [B, C, 1]."""
    return tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=-1, keepdims=True)
