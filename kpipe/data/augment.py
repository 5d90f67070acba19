"""Augmentations of whole batches: each is a pure function of the images and of given random numbers.

None of them draws. The pipeline draws once a batch (a draw under XLA gives other numbers than without) and
hands each augmentation its columns, so that a batch depends on (seed, step) alone. XLA fuses the gathers and
selects below into one loop over the output.

B batch, H height, W width, C channels, n uniforms an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """Changes images and keeps their size."""

    name: str
    uniforms: int
    """How many random numbers an image needs."""
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    """(images [B, H, W, C], uniforms float32 [B, n] in [0, 1)) -> images of the same shape and dtype. H, W and C are
    known when the graph is built; the function is compiled by XLA together with its neighbours."""


@dataclass(frozen=True)
class Mix:
    """Changes images and their labels together: training alone sees the labels as shares of classes."""

    name: str
    uniforms: int
    apply: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    """(images [B, H, W, C], labels float32 [B, K] that add up to 1, uniforms float32 [B, n]) -> (images, labels). Row
    2i is mixed with row 2i + 1 and with no other, so that a worker's rows never need another worker's; the last row of
    an odd batch stays as it is. The images may become float32, in 0..255."""


def pad_crop(padding: int = 4) -> Augmentation:
    """Pads with zeros on all sides, then crops to the old size at a random place (2 uniforms: row, column).

    Args:
        padding: pixels a side, at least 1.

    Raises:
        ValueError: `padding` is not a whole number of at least 1.
    """
    if not isinstance(padding, int) or padding < 1:
        raise ValueError(f"pad_crop.padding: expected a whole number of at least 1, got {padding!r}")

    def apply(images, uniforms):
        # The crop moves by the uniform, the image against it.
        shifts = -_whole_shifts(uniforms, padding)
        return _shift(images, shifts[:, 0], shifts[:, 1])

    return Augmentation("pad_crop", 2, apply)


def translate(height: float = 0.1, width: float = 0.1) -> Augmentation:
    """Shifts by whole pixels; what becomes vacant is 0 (2 uniforms: row, column).

    Args:
        height, width: the largest shift as a share of the image, in [0, 1), rounded to the nearest pixel.

    Raises:
        ValueError: a share is outside [0, 1).
    """
    for name, share in (("height", height), ("width", width)):
        if not 0 <= share < 1:
            raise ValueError(f"translate.{name}: expected a share of at least 0 and below 1, got {share!r}")

    def apply(images, uniforms):
        down = _whole_shifts(uniforms[:, 0], round(height * images.shape[1]))
        right = _whole_shifts(uniforms[:, 1], round(width * images.shape[2]))
        return _shift(images, down, right)

    return Augmentation("translate", 2, apply)


def flip_horizontal() -> Augmentation:
    """Mirrors left and right where the uniform is below 0.5: every second image on average (1 uniform)."""

    def apply(images, uniforms):
        return tf.where(uniforms[:, :1, None, None] < 0.5, tf.reverse(images, axis=[2]), images)

    return Augmentation("flip_horizontal", 1, apply)


def _whole_shifts(uniforms: tf.Tensor, largest: int) -> tf.Tensor:
    """Uniforms in [0, 1) to int32 in -largest..largest, all equally likely."""
    # Even the last float32 below 1 stays below 2 * largest + 1: for an odd factor the product rounds down.
    return tf.cast(uniforms * (2 * largest + 1), tf.int32) - largest


def _shift(images: tf.Tensor, down: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Moves each image [H, W, C] by its own int32 `down` [B] and `right` [B]; vacated pixels are 0."""
    height, width = images.shape[1:3]
    rows = tf.range(height) - down[:, None]  # [B, H]
    columns = tf.range(width) - right[:, None]  # [B, W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    moved = tf.gather(images, tf.clip_by_value(rows, 0, height - 1), axis=1, batch_dims=1)
    moved = tf.gather(moved, tf.clip_by_value(columns, 0, width - 1), axis=2, batch_dims=1)
    return tf.where(inside[..., None], moved, tf.zeros([], images.dtype))
