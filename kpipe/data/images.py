"""Decode image files, or parts of them, and resize images to the form in which a set is kept.

TensorFlow decodes upright JPEG files, and PNG files that have nothing but pixels. All others are left to Pillow, see
`kpipe.data.image_files`.

H height, W width, C channels, S or I pixels a side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow as tf

from kpipe.catalog.evaluation import RESIZES
from kpipe.data.conversions import Conversions
from kpipe.data.image_files import MOST_PIXELS, RATIOS, Color, Decoded, decode_upright, read_sides

JPEG_TABLE = b"\xff\xdb"  # the marker of the tables with which the image itself begins
TURNED = (
    r"(?:II\C*\x12\x01[\x01-\x0d]\x00\x01\x00\x00\x00[\x02-\x08]|"
    r"MM\C*\x01\x12\x00[\x01-\x0d]\x00\x00\x00\x01\x00{0,3}[\x02-\x08])\C*"
)
"""EXIF, in either order of bytes, with an orientation other than 1, a number of any type."""
PNG = r"\CPNG\r\n\x1a\n\C{4}IHDR\C{8}[\x01\x02\x04\x08][\x00\x02\x03]\C*"
"""A PNG of gray, colors or a palette, of at most 8 bits, without an alpha channel."""
PNG_COLOR_TYPE = 25  # the byte that says it: 0 is gray
PNG_EXTRAS = r"\C*(?:tRNS|eXIf|Raw profile type exif)\C*"
"""Transparency or EXIF in the beginning of a PNG."""


@dataclass(frozen=True)
class Form:
    """Form in which the images of a set are kept."""

    size: int | None = None
    """Pixels a side; None: the images keep their size."""
    resize: Literal[*RESIZES] = "crop"
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


def decode_to_form(contents: tf.Tensor, form: Form, noting: Noting | None = None) -> tf.Tensor:
    """Decode the contents of an image file, string [], to its form, uint8 [S, S, C].

    Without a size in the form, it is uint8 [H, W, C]. A large JPEG is decoded at a fraction of its size. What was done
    to the image is noted in `noting`. A damaged file is a `tf.errors.OpError`.
    """
    size = form.size
    choose, choose_tensor = (max, tf.reduce_max) if form.resize == "pad" else (min, tf.reduce_min)

    def by_pillow(contents, number):
        # Twice the wanted size is left to the antialiasing filter, whose result is better than the decoder's.
        times = (lambda sides: choose(sides) // (2 * size)) if size else None
        return _decode_by_pillow(contents, times, form, noting, number).pixels

    def from_jpeg():
        if size is None:
            return tf.io.decode_jpeg(contents, channels=3)
        sides = tf.io.extract_jpeg_shape(contents)[:2]
        # Whole, TensorFlow refuses an image of too many pixels.
        times = tf.where(_is_small_enough(sides), choose_tensor(sides) // (2 * size), 1)
        branches = [lambda ratio=ratio: tf.io.decode_jpeg(contents, channels=3, ratio=ratio) for ratio in RATIOS]
        return tf.switch_case(_ratio_index(times), branches)

    def from_png():
        return tf.io.decode_png(contents, channels=3)

    def from_other():
        return _in_python(by_pillow, contents, noting.number if noting else 0, dtype=tf.uint8)

    def from_colors():
        image = tf.switch_case(decoder, [from_jpeg, from_png, from_other])
        return to_channels(tf.ensure_shape(image, [None, None, 3]), form.channels)

    decoder = _decoder(contents)
    if form.channels == 1:
        # The luminance of gray is the same gray, and of a small image it takes as long as the decoding.
        is_gray_png = (decoder == 1) & (tf.strings.substr(contents, PNG_COLOR_TYPE, 1) == b"\0")
        image = tf.cond(is_gray_png, lambda: tf.io.decode_png(contents, channels=1), from_colors)
    else:
        image = from_colors()
    return to_form(tf.ensure_shape(image, [None, None, form.channels or 3]), form)


def decode_crop(
    contents: tf.Tensor, box: tf.Tensor, size: int, form: Form = Form(), noting: Noting | None = None
) -> tf.Tensor:
    """Decode the part of an image that a crop shows, and scale it to uint8 [I, I, C].

    Only the box of a JPEG is decoded. Up to two pixels from the edge of the box, colors may differ a little from those
    of the whole image, since the decoder interpolates them from the pixels that it has decoded.

    Args:
        contents: contents of the file, string [].
        box: top, left, height, width in pixels of the whole upright image, int32 [4].
        size: I.
        form: its channels and its background are used.
        noting: where to note what was done to the image.
    """

    def by_pillow(contents, box, number):
        decoded = _decode_by_pillow(contents, lambda sides: box[2:].min() // size, form, noting, number)
        top, left, height, width = box // decoded.ratio
        return decoded.pixels[top : top + height, left : left + width]

    def from_jpeg(ratio):
        return tf.io.decode_and_crop_jpeg(contents, box // ratio, channels=3, ratio=ratio)

    def from_png():
        return smooth(cut(tf.io.decode_png(contents, channels=3), box))

    def from_other():
        return smooth(_in_python(by_pillow, contents, box, noting.number if noting else 0, dtype=tf.uint8))

    def smooth(crop):  # scaling it again changes nothing
        return scale(tf.ensure_shape(crop, [None, None, 3]), size, antialias=True)

    branches = [*(lambda ratio=ratio: from_jpeg(ratio) for ratio in RATIOS), from_png, from_other]
    decoder, ratio_index = _decoder(contents), _ratio_index(tf.reduce_min(box[2:]) // size)
    # One choice of small branches, since the operations that are not chosen cost time as well.
    crop = tf.switch_case(tf.where(decoder == 0, ratio_index, len(RATIOS) - 1 + decoder), branches)
    image = scale(tf.ensure_shape(crop, [None, None, 3]), size, antialias=False)
    return to_channels(image, form.channels)


def sides_of(contents: tf.Tensor) -> tf.Tensor:
    """Return height and width of an encoded image as it is shown, after its EXIF orientation: int32 [2].

    A damaged header is a `tf.errors.OpError`.
    """

    def of_jpeg():
        sides = tf.io.extract_jpeg_shape(contents)[:2]
        with tf.control_dependencies([tf.debugging.Assert(_is_small_enough(sides), ["too many pixels:", sides])]):
            return tf.identity(sides)

    def of_png():
        return tf.io.decode_raw(tf.strings.substr(contents, 16, 8), tf.int32, little_endian=False)[::-1]

    def of_other():
        return _in_python(lambda contents: np.array(read_sides(contents), np.int32), contents, dtype=tf.int32)

    return tf.ensure_shape(tf.switch_case(_decoder(contents), [of_jpeg, of_png, of_other]), [2])


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


def _decode_by_pillow(
    contents: bytes,
    times: Callable[[tuple[int, int]], int] | None,
    form: Form,
    noting: Noting | None,
    number: np.int64,
) -> Decoded:
    decoded = decode_upright(contents, form.background, times)
    if noting:
        noting.conversions.note(number, transparent=decoded.has_transparency, deep=decoded.has_16_bits)
    return decoded


def _in_python(function: Callable, contents: tf.Tensor, *more: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Call a function (contents as bytes, ...) -> array while the graph is run."""

    def call(contents, *more):
        # Outside a graph a string arrives as an array.
        return function(contents if isinstance(contents, bytes) else contents.item(), *more)

    return tf.numpy_function(call, [contents, *more], dtype)


def _decoder(contents: tf.Tensor) -> tf.Tensor:
    """Return what decodes a file as a person sees it, int32 []: 0 TensorFlow's JPEG decoder, 1 its PNG decoder,
    2 Pillow.
    """
    return tf.cond(_is_upright_jpeg(contents), lambda: tf.constant(0), lambda: tf.where(_is_plain_png(contents), 1, 2))


def _is_small_enough(sides: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.cast(sides, tf.float64)) <= MOST_PIXELS


def _is_plain_png(contents: tf.Tensor) -> tf.Tensor:
    """Return whether TensorFlow decodes a PNG as a person sees it: bool []."""
    head = tf.strings.substr(contents, 0, 2**12)  # not cut at the pixels: a text before them may hold IDAT as well
    is_plain = tf.strings.regex_full_match(head, PNG) & ~tf.strings.regex_full_match(head, PNG_EXTRAS)
    # Some programs write EXIF after the pixels. It has 64 kB at most.
    end = tf.strings.substr(contents, tf.maximum(tf.strings.length(contents) - 70_000, 0), 70_000)
    return is_plain & (tf.size(_split(head, b"IDAT")) > 1) & (tf.size(_split(end, b"eXIf")) == 1)


def _is_upright_jpeg(contents: tf.Tensor) -> tf.Tensor:
    """Return whether a file is a JPEG that TensorFlow decodes as a person sees it: bool [].

    In most, the tables follow the first segment, and there is no EXIF. In the others it is searched.
    """

    def is_upright():
        is_cmyk = tf.io.extract_jpeg_shape(contents)[2] == 4  # programs do not agree whether it is inverted
        return ~(is_cmyk | _is_turned(contents))

    is_jpeg = tf.io.is_jpeg(contents)
    has_more = is_jpeg & (tf.strings.substr(contents, 20, 2) != JPEG_TABLE)
    return tf.cond(has_more, is_upright, lambda: is_jpeg)


def _is_turned(contents: tf.Tensor) -> tf.Tensor:
    """Return whether the first 256 kB of a JPEG have an EXIF orientation other than 1: bool []."""
    after_mark = _split(tf.strings.substr(contents, 0, 2**18), b"Exif\0\0")[-1]
    return tf.strings.regex_full_match(tf.strings.substr(after_mark, 0, 2**14), TURNED)


def _split(text: tf.Tensor, separator: bytes) -> tf.Tensor:
    """Return what stands before the first separator and after it: string [1 or 2]."""
    return tf.raw_ops.StringSplitV2(input=text[None], sep=separator, maxsplit=1).values


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


def _ratio_index(times: tf.Tensor) -> tf.Tensor:
    """Return the index of the largest of `RATIOS` that is at most `times`: int32 []."""
    return tf.reduce_sum(tf.cast(times >= RATIOS[1:], tf.int32))


def _bytes(values: tf.Tensor) -> tf.Tensor:
    """Round means of bytes to the nearest byte. Only rounding errors could take them out of 0..255."""
    return tf.cast(tf.round(values), tf.uint8)
