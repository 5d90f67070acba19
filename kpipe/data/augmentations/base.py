"""What an augmentation is, and what several of them need.

B batch, H height, W width, C channels, K classes, n uniforms an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """A change of images that keeps their size.

    It never draws random numbers itself. The pipeline draws them, from the seed and the step alone, so that a run that
    is resumed sees the images that it would have seen.
    """

    name: str
    uniforms: int
    """Number n of uniforms, random numbers in [0, 1), that each image needs; 0 for a change without chance."""
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    """(images [B, H, W, C], uniforms float32 [B, n] in [0, 1)) -> images of the same shape and dtype. H, W and C are
    known when the graph is built; XLA compiles the function."""
    moves: bool = False
    """Whether it only takes pixels from other places. XLA compiles it together with its neighbors of the same kind, and
    with the reading from memory. An operation that computes is compiled alone, since a neighbor would compute it anew
    for each pixel that it reads. So is one that reads a pixel from two places, as a flip does to choose between them:
    what its neighbors do before it would be done twice."""
    is_flip: bool = False
    """Whether it leaves an image as it is, or makes one certain other image of it where its only uniform is below
    0.5."""


@dataclass(frozen=True)
class Mix:
    """A change of images and their labels together. Training alone sees the soft labels."""

    name: str
    uniforms: int
    apply: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    """(images [B, H, W, C], labels float32 [B, K] that add up to 1, uniforms float32 [B, n]) -> (images, labels). Row
    2i is mixed with row 2i + 1 and with no other, so that a worker's rows never need another worker's; the last row of
    an odd batch stays as it is. The images may become float32, in 0..255."""


def spread(uniforms: tf.Tensor, largest: float) -> tf.Tensor:
    """Map uniforms in [0, 1) to [-largest, largest)."""
    return (2 * uniforms - 1) * largest


def per_image(values: tf.Tensor) -> tf.Tensor:
    """Reshape [B] to [B, 1, 1, 1]."""
    return values[:, None, None, None]


def in_dtype_of(images: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Clip float32 `values` to 0..255 and cast them to the dtype of the images, rounded where that is uint8."""
    values = tf.clip_by_value(values, 0.0, 255.0)
    return values if images.dtype.is_floating else tf.cast(tf.round(values), images.dtype)


def box(images: tf.Tensor, centers: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Return a mask of a rectangle in each image, cut at the border: bool [B, H, W, 1].

    Args:
        images: [B, H, W, C].
        centers: uniforms float32 [B, 2]: row, column. An even side has one pixel more before its center than after.
        height, width: whole numbers, or int32 [B].
    """

    def inside(uniforms, side, size):
        start = tf.cast(uniforms * side, tf.int32) - size // 2
        places = tf.range(side)
        return (places >= start[:, None]) & (places < (start + size)[:, None])

    rows = inside(centers[:, 0], images.shape[1], height)
    columns = inside(centers[:, 1], images.shape[2], width)
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def turn(images: tf.Tensor, angles: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return where each pixel comes from when images turn counter-clockwise about their centers.

    Args:
        images: [B, H, W, C].
        angles: float32 [B], radians.

    Returns:
        Rows and columns, float32 [B, H, W]; the center of the first pixel is (0, 0).
    """
    row, column = (images.shape[1] - 1) / 2, (images.shape[2] - 1) / 2
    down = (tf.range(images.shape[1], dtype=tf.float32) - row)[:, None]
    right = tf.range(images.shape[2], dtype=tf.float32) - column
    cos, sin = tf.cos(angles)[:, None, None], tf.sin(angles)[:, None, None]
    return cos * down + sin * right + row, cos * right - sin * down + column
