"""Decode image files, or parts of them, and resize images to the form in which a set is kept.

TensorFlow decodes JPEG files, which are turned upright afterwards, and PNG files that have nothing but pixels. All
others are left to Pillow, see `kpipe.data.image_files`.

H height, W width, C channels, S or I pixels a side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow as tf

from kpipe.data.conversions import Conversions
from kpipe.data.image_files import MOST_PIXELS, Color, decode_upright, read_orientation, read_sides

RATIOS = (1, 2, 4, 8)  # by which the decoder can reduce the sides of a JPEG

APP1, TABLE = b"\xff\xe1", b"\xff\xdb"  # what begins a segment of EXIF, and the first table of a JPEG
TURNED = r"(?:II\C*\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]|MM\C*\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08])\C*"
"""EXIF, in either order of bytes, with an orientation other than 1."""
PLAIN_PNG = (
    r"\CPNG\r\n\x1a\n\x00\x00\x00\rIHDR\C{8}[\x01\x02\x04\x08][\x00\x02]\C{7}"
    r"(?:\x00\x00\x00(?:\x01sRGB\C|\x04gAMA\C{4}|\x20cHRM\C{32}|\x09pHYs\C{9}|\x07tIME\C{7}|\x02bKGD\C{2}|\x06bKGD\C{6})"
    r"\C{4})*\C{4}IDAT\C*"
)
"""Beginning of a PNG of gray or colors of at most 8 bits that are not transparent. Before the pixels come only chunks
that do not change them."""
STEPS = np.array([[1, 1], [1, 1], [1, -1], [-1, -1], [-1, 1], [1, 1], [-1, 1], [-1, -1], [1, -1]], np.int32)
"""Steps through rows and columns that undo the mirroring of each EXIF orientation; there is no orientation 0. From 5
on, rows and columns change places after that."""


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
    background: Color = (255, 255, 255)
    """Red, green and blue, 0..255, that transparent pixels show."""


@dataclass(frozen=True)
class Noting:
    """Where to note what was done to an image."""

    conversions: Conversions
    number: tf.Tensor
    """Number of the image, int64 []."""


def decode(contents: tf.Tensor, form: Form = Form(), noting: Noting | None = None) -> tf.Tensor:
    """Decode an image file, string [], to the upright image, uint8 [H, W, 3]; of an animation, the first frame.

    Args:
        contents: contents of the file.
        form: its background is used.
        noting: where to note what was done to the image.
    """
    return _decode_whole(contents, lambda: tf.io.decode_jpeg(contents, channels=3), form, noting)


def decode_to_form(contents: tf.Tensor, form: Form, noting: Noting | None = None) -> tf.Tensor:
    """Decode a file to its form, uint8 [S, S, C]. A large JPEG is decoded at a fraction of its size.

    Args:
        contents, noting: as `decode`.
        form: form of the image.
    """

    def from_jpeg():
        sides = tf.io.extract_jpeg_shape(contents)[:2]
        side = (tf.reduce_max if form.resize == "pad" else tf.reduce_min)(sides)
        # Whole, TensorFlow refuses an image of too many pixels.
        side = tf.where(tf.reduce_prod(tf.cast(sides, tf.float64)) <= MOST_PIXELS, side, 0)
        # Twice the wanted size is left to the antialiasing filter, whose result is better than the decoder's.
        branches = [lambda ratio=ratio: tf.io.decode_jpeg(contents, channels=3, ratio=ratio) for ratio in RATIOS]
        return tf.switch_case(_ratio_number(side // (2 * form.size)), branches)

    if form.size is None:
        return to_form(decode(contents, form, noting), form)
    return to_form(_decode_whole(contents, from_jpeg, form, noting), form)


def decode_crop(
    contents: tf.Tensor, box: tf.Tensor, size: int, form: Form = Form(), noting: Noting | None = None
) -> tf.Tensor:
    """Decode the part of an image that a crop shows, and scale it to uint8 [I, I, C].

    Only the box of a JPEG is decoded. Up to two pixels from the edge of the box, colors may differ a little from those
    of the whole image, since the decoder interpolates them from the pixels that it has decoded.

    Args:
        contents, noting: as `decode`.
        box: top, left, height, width in pixels of the whole upright image, int32 [4].
        size: I.
        form: its channels and its background are used.
    """
    number = _ratio_number(tf.reduce_min(box[2:]) // size)

    def from_jpeg(box, ratio):
        return tf.io.decode_and_crop_jpeg(contents, box // ratio, channels=3, ratio=ratio)

    def from_turned_jpeg():
        orientation = _orientation_of(contents)
        lying = _turn_back(box, orientation, _jpeg_sides(contents))
        branches = [lambda ratio=ratio: from_jpeg(lying, ratio) for ratio in RATIOS]
        return _turn(tf.switch_case(number, branches), orientation)

    def from_whole():
        return scale(cut(decode(contents, form, noting), box), size, antialias=True)  # scaled again, it stays the same

    branches = [lambda ratio=ratio: from_jpeg(box, ratio) for ratio in RATIOS]
    branches.append(_one_operation(lambda: tf.cond(tf.io.is_jpeg(contents), from_turned_jpeg, from_whole)))
    crop = tf.switch_case(tf.where(_is_upright_jpeg(contents), number, len(RATIOS)), branches)
    image = scale(tf.ensure_shape(crop, [None, None, 3]), size, antialias=False)
    return to_channels(image, form.channels)


def sides_of(contents: tf.Tensor) -> tf.Tensor:
    """Return height and width of an encoded image, when it is upright: int32 [2]."""

    def of_png():
        return tf.io.decode_raw(tf.strings.substr(contents, 16, 8), tf.int32, little_endian=False)[::-1]

    def of_others():
        return _in_python(lambda contents: np.array(read_sides(contents), np.int32), contents, dtype=tf.int32)

    def of_no_jpeg():
        return tf.cond(_is_plain_png(contents), of_png, of_others)

    return tf.ensure_shape(tf.cond(_is_upright_jpeg(contents), lambda: _jpeg_sides(contents), of_no_jpeg), [2])


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
    """Bring an image uint8 [H, W, C] to its form, uint8 [S, S, C], bilinearly and with antialiasing.

    A strip that would have more than MOST_PIXELS when its shorter side is scaled to `size` ends in an error.
    """
    image = to_channels(image, form.channels)
    size, channels = form.size, image.shape[-1]
    if size is None or image.shape[:2] == (size, size):
        return image
    height, width = tf.unstack(tf.shape(image)[:2])
    # Scaling takes longer than decoding where images are small, and many sets have their form already.
    fitted = tf.cond((height == size) & (width == size), lambda: image, lambda: _fit(image, form))
    return tf.ensure_shape(fitted, [size, size, channels])


def to_channels(image: tf.Tensor, channels: int | None) -> tf.Tensor:
    """Convert an image uint8 [H, W, 1 or 3] to uint8 [H, W, channels]."""
    if channels in (None, image.shape[-1]):
        return image
    return tf.image.rgb_to_grayscale(image) if channels == 1 else tf.image.grayscale_to_rgb(image)


def _decode_whole(
    contents: tf.Tensor, from_jpeg: Callable[[], tf.Tensor], form: Form, noting: Noting | None
) -> tf.Tensor:
    """Decode an image file to uint8 [H, W, 3], upright; `from_jpeg` decodes a JPEG as it lies in the file."""

    def by_pillow(contents, number):
        decoded = decode_upright(contents, form.background)
        if noting:
            noting.conversions.note(number, transparent=decoded.has_transparency, deep=decoded.has_16_bits)
        return decoded.pixels

    def from_other():
        return _in_python(by_pillow, contents, noting.number if noting else 0, dtype=tf.uint8)

    def from_turned_jpeg():
        return _turn(from_jpeg(), _orientation_of(contents))

    def from_png():
        return tf.io.decode_png(contents, channels=3)

    slowly = _one_operation(lambda: tf.cond(tf.io.is_jpeg(contents), from_turned_jpeg, from_other))
    image = tf.cond(_is_upright_jpeg(contents), from_jpeg, lambda: tf.cond(_is_plain_png(contents), from_png, slowly))
    return tf.ensure_shape(image, [None, None, 3])


def _one_operation(branch: Callable[[], tf.Tensor]) -> Callable[[], tf.Tensor]:
    """Make a branch that is seldom taken one operation of the graph: all others take time even if it is not taken."""
    if tf.executing_eagerly():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def _is_plain_png(contents: tf.Tensor) -> tf.Tensor:
    """Return whether TensorFlow decodes a PNG as a person sees it: bool []."""
    begins_so = tf.strings.regex_full_match(tf.strings.substr(contents, 0, 256), PLAIN_PNG)
    return begins_so & (tf.size(_split(contents, b"eXIf")) == 1)  # some programs write EXIF after the pixels


def _is_upright_jpeg(contents: tf.Tensor) -> tf.Tensor:
    """Return whether a file is a JPEG that TensorFlow decodes as a person sees it: bool [].

    Most have no EXIF: after the first segment comes a table, or one more segment and a table. In the others it is
    searched.
    """

    def stands(marker, place):
        return tf.strings.substr(contents, place, len(marker)) == marker

    def is_upright_after_another_segment():
        is_jfif = stands(b"\xff\xe0\x00\x10", 2) & ~stands(APP1, 20)
        length = tf.io.decode_raw(tf.strings.substr(contents, 22, 2), tf.uint16, little_endian=False)
        place = tf.where(is_jfif, 22 + tf.cast(tf.reshape(length, []), tf.int32), 2)
        return tf.cond(stands(TABLE, place), lambda: True, lambda: ~_is_turned(contents))

    def is_upright():
        return tf.cond(stands(TABLE, 20), lambda: True, is_upright_after_another_segment)

    return tf.cond(tf.io.is_jpeg(contents), is_upright, lambda: False)


def _is_turned(contents: tf.Tensor) -> tf.Tensor:
    """Return whether the first 64 kB of a JPEG have an EXIF orientation other than 1: bool []."""
    parts = _split(tf.strings.substr(contents, 0, 2**16), b"Exif\0\0")
    return tf.cond(
        tf.size(parts) > 1,
        lambda: tf.strings.regex_full_match(tf.strings.substr(parts[1], 0, 2**14), TURNED),
        lambda: False,
    )


def _split(text: tf.Tensor, separator: bytes) -> tf.Tensor:
    """Return what stands before the first separator and after it: string [1 or 2]."""
    return tf.raw_ops.StringSplitV2(input=text[None], sep=separator, maxsplit=1).values


def _jpeg_sides(contents: tf.Tensor) -> tf.Tensor:
    """Return height and width of a JPEG as it lies in the file, int32 [2]."""
    sides = tf.io.extract_jpeg_shape(contents)[:2]
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    with tf.control_dependencies([tf.debugging.assert_less_equal(pixels, tf.constant(MOST_PIXELS, tf.int64))]):
        return tf.identity(sides)


def _orientation_of(contents: tf.Tensor) -> tf.Tensor:
    """Return the EXIF orientation of an image file, int32 []."""
    found = _in_python(lambda contents: np.int32(read_orientation(contents)), contents, dtype=tf.int32)
    return tf.ensure_shape(found, [])


def _in_python(function: Callable, contents: tf.Tensor, *more: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Call a function (contents as bytes, ...) -> array while the graph is run."""

    def call(contents, *more):
        # Outside a graph a string arrives as an array.
        return function(contents if isinstance(contents, bytes) else contents.item(), *more)

    return tf.numpy_function(call, [contents, *more], dtype)


def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn an image uint8 [H, W, C] of this EXIF orientation upright."""
    rows, columns = tf.unstack(tf.gather(STEPS, orientation))
    return tf.transpose(image[::rows, ::columns], tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))


def _turn_back(box: tf.Tensor, orientation: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
    """Return where a box of the upright image lies in the file, int32 [4].

    Args:
        box: top, left, height, width, int32 [4].
        orientation: EXIF orientation, int32 [].
        sides: height and width of the image as it lies in the file, int32 [2].
    """
    box = tf.gather(box, tf.where(orientation >= 5, [1, 0, 3, 2], [0, 1, 2, 3]))
    start, length = box[:2], box[2:]
    is_mirrored = tf.gather(STEPS, orientation) < 0
    return tf.concat([tf.where(is_mirrored, sides - start - length, start), length], axis=0)


def _fit(image: tf.Tensor, form: Form) -> tf.Tensor:
    """Scale an image uint8 [H, W, C] and make it square, uint8 [S, S, C]."""
    size = form.size
    height, width = tf.unstack(tf.shape(image)[:2])
    if form.resize == "squash":
        sides = tf.constant([size, size])
    else:
        side = (tf.maximum if form.resize == "pad" else tf.minimum)(height, width)
        exact = tf.cast([height, width], tf.float64) * size / tf.cast(side, tf.float64)
        sides = tf.maximum(tf.cast(tf.round(exact), tf.int32), 1)
        sides = tf.where(tf.reduce_prod(exact) <= MOST_PIXELS, sides, 0)  # TensorFlow refuses to scale to nothing
    scaled = tf.image.resize(image, sides, method="bilinear", antialias=True)
    if form.resize == "pad":
        before = (size - sides) // 2
        around = tf.stack([before, size - sides - before], axis=1)
        scaled = tf.pad(scaled, tf.concat([around, [[0, 0]]], axis=0))
    elif form.resize == "crop":
        scaled = cut(scaled, tf.concat([(sides - size) // 2, [size, size]], axis=0))
    return _bytes(scaled)


def _ratio_number(times: tf.Tensor) -> tf.Tensor:
    """Return the index of the largest of `RATIOS` that is at most `times`: int32 []."""
    return tf.reduce_sum(tf.cast(times >= RATIOS[1:], tf.int32))


def _bytes(values: tf.Tensor) -> tf.Tensor:
    """Round means of bytes to the nearest byte. Only rounding errors could take them out of 0..255."""
    return tf.cast(tf.round(values), tf.uint8)
