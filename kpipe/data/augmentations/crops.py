"""The crop of an image that the network sees: crops of training, and the ten crops of evaluation.

A crop never draws: it gets its uniforms, as an augmentation does.

B batch, H height, W width, C channels, S pixels a side of the kept image, I of what the network sees, n uniforms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from kpipe.catalog.data import ImageFacts, RandomResizedCropOptions, ScaleJitterOptions
from kpipe.catalog.rows import check_options

TRIES = 10  # of random_resized_crop before it takes the center, as in torchvision


@dataclass(frozen=True)
class Crop:
    """What `make_pipeline` needs to know about a crop."""

    name: str
    uniforms: int
    """Number of uniforms that an image needs."""
    boxes: Callable[[tf.Tensor, tf.Tensor, int], tf.Tensor]
    """(heights and widths int32 [B, 2], uniforms float32 [B, n] in [0, 1), I) -> the box of each image that the network
    sees, in its pixels: top, left, height, width, int32 [B, 4]."""
    resamples: bool
    """Whether the box has another size than I x I, and is scaled to it."""


def random_crop() -> Crop:
    """Crop I x I anywhere in the kept image (2 uniforms: row, column). AlexNet, section 4.1."""

    def boxes(sides, uniforms, size):
        crops = tf.fill(tf.shape(sides), size)
        return tf.concat([_whole(uniforms, sides - crops), crops], axis=1)

    return Crop("random_crop", 2, boxes, resamples=False)


def center_crop() -> Crop:
    """Crop the center I x I of the kept image, as in evaluation (no uniforms)."""

    def boxes(sides, uniforms, size):
        crops = tf.fill(tf.shape(sides), size)
        return tf.concat([(sides - crops) // 2, crops], axis=1)

    return Crop("center_crop", 0, boxes, resamples=False)


def random_resized_crop(area: Sequence[float] = (0.08, 1.0), aspect: Sequence[float] = (3 / 4, 4 / 3)) -> Crop:
    """Crop a random area and aspect ratio, and scale to I x I. Szegedy et al. 2015, section 6.

    As in torchvision, the area is drawn uniformly and the aspect ratio uniformly in its logarithm, until the crop fits
    into the image. After ten tries it is the largest crop at the center whose ratio is allowed (22 uniforms).

    Args:
        area: smallest and largest fraction of the image's area, in (0, 1].
        aspect: smallest and largest width / height, above 0.

    Raises:
        ConfigError: a range is empty or out of bounds.
    """
    check_options("random_resized_crop", RandomResizedCropOptions, area=area, aspect=aspect)
    low, high = math.log(aspect[0]), math.log(aspect[1])

    def boxes(sides, uniforms, size):
        floats = tf.cast(sides, tf.float32)
        pixels = (area[0] + uniforms[:, :TRIES] * (area[1] - area[0])) * tf.reduce_prod(floats, 1, keepdims=True)
        ratios = tf.exp(low + uniforms[:, TRIES : 2 * TRIES] * (high - low))
        tried = tf.cast(tf.round(tf.sqrt(tf.stack([pixels / ratios, pixels * ratios], axis=2))), tf.int32)
        fits = tf.reduce_all((tried > 0) & (tried <= sides[:, None]), axis=2)  # [B, TRIES]
        found = tf.reduce_any(fits, axis=1, keepdims=True)
        first = tf.gather(tried, tf.argmax(tf.cast(fits, tf.int32), axis=1), axis=1, batch_dims=1)
        widest = tf.reverse(floats, axis=[1]) * tf.constant([1 / aspect[0], aspect[1]], tf.float32)
        fallback = tf.maximum(tf.cast(tf.round(tf.minimum(floats, widest)), tf.int32), 1)
        crops = tf.where(found, first, fallback)
        free = sides - crops
        return tf.concat([tf.where(found, _whole(uniforms[:, -2:], free), free // 2), crops], axis=1)

    return Crop("random_resized_crop", 2 * TRIES + 2, boxes, resamples=True)


def scale_jitter(low: int = 256, high: int = 512) -> Crop:
    """Scale the shorter side to `low` to `high` pixels, all equally likely, and crop I x I anywhere (3 uniforms).

    Simonyan and Zisserman 2015, section 3.1, multi-scale training. The uniforms are for the side, the row, the column.

    Args:
        low, high: smallest and largest length in pixels; `low` is at least I.

    Raises:
        ConfigError: `low` is not at least 1, or `high` is below `low`.
        ValueError: when applied, `low` is below I.
    """
    options = check_options("scale_jitter", ScaleJitterOptions, low=low, high=high)

    def boxes(sides, uniforms, size):
        for message in options.conflicts_with(ImageFacts(size=size)):
            raise ValueError(f"scale_jitter: {message}")
        scaled = low + _whole(uniforms[:, :1], high - low)
        # The number of pixels of the stored image that I pixels of the scaled one are.
        crop = tf.cast(tf.round(tf.reduce_min(sides, axis=1, keepdims=True) * size / scaled), tf.int32)
        crops = tf.repeat(tf.maximum(crop, 1), 2, axis=1)
        return tf.concat([_whole(uniforms[:, 1:], sides - crops), crops], axis=1)

    return Crop("scale_jitter", 3, boxes, resamples=True)


def ten_crop(images: tf.Tensor, size: int) -> tf.Tensor:
    """Crop the four corners and the center of each image, then mirror these five. AlexNet, section 4.1.

    Args:
        images: [B, S, S, C] of any dtype.
        size: I, at most S.

    Returns:
        [B, 10, I, I, C] of the same dtype: top left, top right, bottom left, bottom right, center, then mirrored.

    Raises:
        ValueError: the crop is larger than the images.
    """
    height, width = images.shape[1:3]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"ten_crop.size: expected 1 to {min(height, width)} pixels, got {size}")
    bottom, right = height - size, width - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = tf.stack([images[:, top : top + size, left : left + size] for top, left in corners], axis=1)
    return tf.concat([crops, tf.reverse(crops, axis=[3])], axis=1)


def take_crops(images: tf.Tensor, crop: Crop, uniforms: tf.Tensor, size: int) -> tf.Tensor:
    """Crop images [B, S, S, C] to [B, I, I, C], by a crop that does not resample."""
    height, width = images.shape[1:3]
    sides = tf.tile(tf.constant([[height, width]]), [tf.shape(images)[0], 1])
    top, left = tf.unstack(crop.boxes(sides, uniforms, size)[:, :2, None], axis=1)
    images = tf.gather(images, top + tf.range(size), axis=1, batch_dims=1)
    return tf.gather(images, left + tf.range(size), axis=2, batch_dims=1)


def _whole(uniforms: tf.Tensor, largest) -> tf.Tensor:
    """Map uniforms in [0, 1) to int32 in 0..largest, all equally likely. `largest` is a number or int32 like them."""
    # The product of the last float32 below 1 may round up to the next whole number.
    count = tf.cast(largest + 1, tf.float32)
    return tf.minimum(tf.cast(uniforms * count, tf.int32), largest)
