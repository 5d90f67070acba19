"""Decode image files, or parts of them, and resize images to the form in which a set is kept.

H height, W width, C channels, S or I pixels a side.
"""

from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

RATIOS = (1, 2, 4, 8)  # by which the decoder can reduce the sides of a JPEG


@dataclass(frozen=True)
class Form:
    """Form in which the images of a set are kept."""

    size: int | None = None
    """Pixels a side; None: the images keep their size."""
    resize: Literal["crop", "pad", "squash"] = "crop"
    """How an image becomes square. `crop`: scale the shorter side to `size`, keep the center. `pad`: scale the longer
    side, fill the rest with black. `squash`: scale both sides, each by its own factor."""
    channels: int | None = None
    """1: color becomes its luminance (ITU-R 601). 3: gray is copied. None: the images keep their channels."""


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decode a JPEG, PNG, GIF (its first frame) or BMP file, string [], to uint8 [H, W, 3]."""
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def decode_to_form(contents: tf.Tensor, form: Form) -> tf.Tensor:
    """Decode a file to its form, uint8 [S, S, C]. A large JPEG is decoded at a fraction of its size."""

    def from_jpeg():
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(contents))
        side = (tf.maximum if form.resize == "pad" else tf.minimum)(height, width)
        # Twice the wanted size is left to the antialiasing filter, whose result is better than the decoder's.
        branches = [lambda ratio=ratio: tf.io.decode_jpeg(contents, channels=3, ratio=ratio) for ratio in RATIOS]
        return tf.switch_case(_ratio_number(side // (2 * form.size)), branches)

    if form.size is None:
        return to_form(decode(contents), form)
    return to_form(tf.cond(tf.io.is_jpeg(contents), from_jpeg, lambda: decode(contents)), form)


def decode_crop(contents: tf.Tensor, box: tf.Tensor, size: int, channels: int | None = None) -> tf.Tensor:
    """Decode the part of an image that a crop shows, and scale it to uint8 [I, I, C].

    Only the box of a JPEG is decoded. Up to two pixels from the edge of the box, colors may differ a little from those
    of the whole image, since the decoder interpolates them from the pixels that it has decoded.

    Args:
        contents: contents of the file, string [].
        box: top, left, height, width in pixels of the whole image, int32 [4].
        size: I.
        channels: as in `Form`.
    """

    def from_jpeg(ratio):
        return tf.io.decode_and_crop_jpeg(contents, box // ratio, channels=3, ratio=ratio)

    branches = [lambda ratio=ratio: from_jpeg(ratio) for ratio in RATIOS]
    branches.append(lambda: scale(cut(decode(contents), box), size, antialias=True))  # scaling it again changes nothing
    number = _ratio_number(tf.reduce_min(box[2:]) // size)
    # The branches are small, since the operations that are not chosen cost time as well.
    crop = tf.switch_case(tf.where(tf.io.is_jpeg(contents), number, len(RATIOS)), branches)
    image = scale(tf.ensure_shape(crop, [None, None, 3]), size, antialias=False)
    return to_channels(image, channels)


def sides_of(contents: tf.Tensor) -> tf.Tensor:
    """Return height and width of an encoded image, int32 [2]."""
    return tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.extract_jpeg_shape(contents)[:2],
        lambda: tf.shape(decode(contents))[:2],
    )


def cut(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Cut the box (top, left, height, width: int32 [4]) out of an image [H, W, C]."""
    top, left, height, width = tf.unstack(box)
    return image[top : top + height, left : left + width]


def scale(image: tf.Tensor, size: int, *, antialias: bool) -> tf.Tensor:
    """Scale an image uint8 [H, W, C] to uint8 [I, I, C], bilinearly.

    An image that shrinks by less than a half needs no antialiasing, since each of its pixels still counts. Antialiasing
    takes as long as all the rest, 0.9 ms for an image of 224 pixels.
    """
    scaled = tf.image.resize(image, [size, size], method="bilinear", antialias=antialias)
    return _bytes(tf.ensure_shape(scaled, [size, size, image.shape[-1]]))


def to_form(image: tf.Tensor, form: Form) -> tf.Tensor:
    """Bring an image uint8 [H, W, C] to its form, uint8 [S, S, C], bilinearly and with antialiasing."""
    image = to_channels(image, form.channels)
    size = form.size
    if size is None or image.shape[:2] == (size, size):
        return image
    height, width = tf.unstack(tf.shape(image)[:2])
    if form.resize == "squash":
        sides = tf.constant([size, size])
    else:
        side = (tf.maximum if form.resize == "pad" else tf.minimum)(height, width)
        sides = tf.maximum(tf.cast(tf.round(tf.stack([height, width]) * size / side), tf.int32), 1)
    scaled = tf.image.resize(image, sides, method="bilinear", antialias=True)
    if form.resize == "pad":
        before = (size - sides) // 2
        around = tf.stack([before, size - sides - before], axis=1)
        scaled = tf.pad(scaled, tf.concat([around, [[0, 0]]], axis=0))
    elif form.resize == "crop":
        scaled = cut(scaled, tf.concat([(sides - size) // 2, [size, size]], axis=0))
    return _bytes(tf.ensure_shape(scaled, [size, size, image.shape[-1]]))


def to_channels(image: tf.Tensor, channels: int | None) -> tf.Tensor:
    """Convert an image uint8 [H, W, 1 or 3] to uint8 [H, W, channels]."""
    if channels in (None, image.shape[-1]):
        return image
    return tf.image.rgb_to_grayscale(image) if channels == 1 else tf.image.grayscale_to_rgb(image)


def _ratio_number(times: tf.Tensor) -> tf.Tensor:
    """Return the index of the largest of `RATIOS` that is at most `times`: int32 []."""
    return tf.reduce_sum(tf.cast(times >= RATIOS[1:], tf.int32))


def _bytes(values: tf.Tensor) -> tf.Tensor:
    """Round means of bytes to the nearest byte. Only rounding errors could take them out of 0..255."""
    return tf.cast(tf.round(values), tf.uint8)
