"""Image files of all kinds, read by Pillow: upright, in color, without transparency, in 8 bits.

TensorFlow's decoders read most JPEG and PNG files faster, see `kpipe.data.images`. They know nothing of orientation and
transparency, and not all kinds of files.

H height, W width, C channels.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from kpipe.errors import first_line
from kpipe.names import path_shown

JPEG = ("JPEG", "MPO")  # the second has more pictures after the first
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = (2**29 - 1) // 3  # 178,956,970: Pillow's limit, and TensorFlow's decoders end at 2**29 bytes
RATIOS = (1, 2, 4, 8)  # by which a decoder can reduce the sides of a JPEG
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"P5", b"P6")
_DAMAGE = (OSError, SyntaxError, EOFError, struct.error, zlib.error, LookupError, TypeError, OverflowError, ValueError)
"""What Pillow raises for a damaged file."""
DEPTHS = (8, 10, 12, 14, 16)  # bits in which cameras and scanners measure
Color = tuple[int, int, int]
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

# Pillow warns at half of the limit, and a warning cannot be held back in one thread alone.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_METHODS = Image.Transpose
_TURNS = {
    2: _METHODS.FLIP_LEFT_RIGHT,
    3: _METHODS.ROTATE_180,
    4: _METHODS.FLIP_TOP_BOTTOM,
    5: _METHODS.TRANSPOSE,
    6: _METHODS.ROTATE_270,
    7: _METHODS.TRANSVERSE,
    8: _METHODS.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright."""

_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "RGBX;16N": "RGBX;16B",
    "LA;16B": "RGBA",
}
"""Pillow's names of 16-bit colors, of which it reads the high bytes -> names by which it reads the low ones."""


class _Refused(ValueError):
    """An image that is whole and not read."""


class Decoded(NamedTuple):
    """An image as a person sees it, and what was done for that."""

    pixels: np.ndarray
    """uint8 [H, W, 3]."""
    has_transparency: bool
    """Whether a pixel was not opaque."""
    has_16_bits: bool
    ratio: int
    """One of `RATIOS`, by which the sides were reduced."""


def decode_upright(
    contents: bytes, background: Color, times: Callable[[tuple[int, int]], int] | None = None
) -> Decoded:
    """Decode the first frame of an image file.

    A transparent pixel shows the background. Of 16 bits, those that are declared to have a meaning are scaled to
    0..255, else as many as the largest value needs, one of `DEPTHS`.

    Args:
        contents: contents of the file.
        background: red, green, blue.
        times: (height, width) -> by how much the sides of a JPEG may be reduced. They are reduced by the largest of
            `RATIOS` that is not more.

    Raises:
        ValueError: the file is damaged, of no kind that is read, or declares more than MOST_PIXELS.
    """
    is_bitmap = contents.startswith(b"BM")
    with _opened(io.BytesIO(_with_all_colors(contents) if is_bitmap else contents)) as image:
        ratio = _reduce(image, times) if times and image.format in JPEG else 1
        raw_mode = _raw_mode(image)
        is_scaled_pgm = image.format == "PPM" and image.mode == "I"  # by Pillow, from what the file declares
        has_16_bits = image.mode.startswith("I;16") or raw_mode in _LOW_BYTES or is_scaled_pgm
        image.load()
        orientation = _orientation(image)
        if has_16_bits:
            image = _in_8_bits(image, raw_mode, contents)
        elif image.mode in ("I", "F"):
            raise _Refused("32-bit or signed pixels, whose range is not known; convert it to 8 or 16 bits")
        elif image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
            # Pillow 13 scales pixels of 2 and 4 bits, but not the value that is transparent.
            image.info["transparency"] *= 255 // (2 ** contents[24] - 1)
        image, has_transparency = _on_background(image, background, is_bitmap)
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        return Decoded(np.asarray(image), has_transparency, has_16_bits, ratio)


def read_sides(file: bytes | str | PathLike) -> tuple[int, int]:
    """Return height and width of the upright image from the header of a file, given by its contents or its path.

    Raises:
        ValueError: as `decode_upright`.
        OSError: the file cannot be opened.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as stream, _opened(stream) as image:
        lies = _orientation_in_header(image) >= 5
        return (image.width, image.height) if lies else (image.height, image.width)


def why_unreadable(path: str | PathLike) -> str:
    """Return in a few words why an image file cannot be decoded."""
    try:
        with open(path, "rb") as file:
            contents = file.read()
    except OSError as error:
        return error.strerror
    if not contents:
        return "0 bytes"
    if contents[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
        return "HEIC; convert it to JPEG"
    if contents.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; git lfs pull fetches the image"
    if contents.lstrip()[:1] in (b"<", b"{"):
        return "text, not an image"
    is_image = contents.startswith(_SIGNATURES) or contents[4:12] == b"ftypavif"
    try:
        decode_upright(contents, BLACK)
    except ValueError as error:
        if isinstance(error.__cause__, UnidentifiedImageError) and not is_image:
            return "not an image, or of a format that kpipe does not read"
        if is_image and not isinstance(error, _Refused):
            return "cut off" if "truncated" in str(error) else "cut off or damaged"
        return str(error)
    return "damaged, or so narrow that it would grow too large"


def list_unreadable(problems: Sequence[tuple[str, str]], total: int) -> str:
    """Return a message with a line for each file that cannot be read.

    Args:
        problems: (path, why) of each, at least one.
        total: number of files, these among them.
    """
    lines = [f"{path_shown(path)}: cannot be read ({why})" for path, why in problems]
    if total > 1:
        them = "it" if len(problems) == 1 else "them"
        some = len(problems) < total
        said = f"{len(problems):,} of {total:,} files cannot" if some else f"none of {total:,} files can"
        lines.append(f"{said} be read. Replace or remove {them}")
    return "\n".join(lines)


@contextmanager
def _opened(stream: BinaryIO) -> Iterator[Image.Image]:
    """Open an image and yield it, its header read. The many errors that a damaged file causes become ValueError."""
    try:
        with Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except _Refused:
        raise
    except Image.DecompressionBombError as error:
        raise _Refused(f"declares more than {MOST_PIXELS:,} pixels, which are not read") from error
    except _DAMAGE as error:
        raise ValueError(first_line(error)) from error


def _reduce(image: Image.Image, times: Callable[[tuple[int, int]], int]) -> int:
    """Let a JPEG be decoded at a fraction of its size; return the ratio."""
    most = times((image.height, image.width))
    ratio = max(ratio for ratio in RATIOS if ratio <= max(most, 1))
    before = image.size
    image.draft(None, (max(1, image.width // ratio), max(1, image.height // ratio)))
    return round(max(before) / max(image.size))  # for a strip, Pillow may take another one


def _orientation_in_header(image: Image.Image) -> int:
    """Return the EXIF orientation of an image whose pixels are not decoded. In a PNG it may stand after them."""
    if image.format == "PNG":
        place = image.fp.tell()
        rest = image.fp.read()
        image.fp.seek(place)
        if any(name in rest for name in (b"eXIf", b"Raw profile type exif")):
            image.load()
    return _orientation(image)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image as far as it is read, 1 to 8."""
    if image.format == "TIFF":
        return 1  # Pillow turns it
    if not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would look into XMP, which other programs do not
    try:
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # a PNG's own `getexif` decodes it
    except Exception:  # of many kinds, as in damaged files
        return 1
    return found if found in _TURNS else 1


def _with_all_colors(contents: bytes) -> bytes:
    """Return a bitmap that does not declare how many colors its table has, if there are only one or two.

    Pillow 13 takes black and white for pixels of one bit, even where they have four or eight.
    """
    has_few = contents[28:29] in (b"\4", b"\x08") and contents[46:50] in (b"\1\0\0\0", b"\2\0\0\0")
    is_long = int.from_bytes(contents[14:18], "little") >= 40  # a header of OS/2 has no such number
    return contents[:46] + bytes(4) + contents[50:] if has_few and is_long else contents


def _on_background(image: Image.Image, background: Color, is_bitmap: bool) -> tuple[Image.Image, bool]:
    """Return an image in RGB, and whether a part of it was transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    image = image.convert("RGBA")
    least, most = image.getextrema()[3]
    if least == 255 or is_bitmap and most == 0:  # bitmaps with an unused byte for each pixel call it alpha
        return image.convert("RGB"), False
    behind = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(behind, image).convert("RGB"), True


# --- 16 bits ----------------------------------------------------------------------------------------------------------


def _in_8_bits(image: Image.Image, raw_mode: str, contents: bytes) -> Image.Image:
    """Scale an image of 16 bits to one of 8 bits."""
    values, alpha = _values_of_16_bits(image, raw_mode, contents)
    bits = _significant_bits(image, contents, int(values.max()))
    largest = 2**bits - 1
    levels = np.round(np.arange(largest + 1) * (255 / largest)).astype(np.uint8)
    if image.format == "TIFF" and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white
        levels = levels[::-1]
    scaled = Image.fromarray(levels[values])
    if alpha is not None:
        scaled.putalpha(Image.fromarray(alpha))
    return scaled


def _values_of_16_bits(image: Image.Image, raw_mode: str, contents: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Return gray values uint16 [H, W] or colors uint16 [H, W, 3], and alpha uint8 [H, W] or None."""
    transparent, high = image.info.get("transparency"), np.asarray(image)
    if raw_mode not in _LOW_BYTES:  # Pillow has gray of 16 bits
        values, alpha = high.astype(np.uint16), None
    else:
        with _opened(io.BytesIO(contents)) as again:
            again.tile = [tile._replace(args=_renamed(tile.args)) for tile in again.tile]
            low = np.asarray(again)
        alpha = high[..., 3] if raw_mode.startswith(("RGBA", "LA")) else None
        colors = np.uint16(high[..., :3]) << 8 | low[..., :3]
        values = np.uint16(high[..., 0]) << 8 | low[..., 1] if raw_mode == "LA;16B" else colors
    if transparent is not None:
        is_transparent = values == transparent
        alpha = np.uint8(255) * ~(is_transparent if values.ndim == 2 else is_transparent.all(axis=2))
    return values, alpha


def _raw_mode(image: Image.Image) -> str | None:
    """Return Pillow's name of the way in which pixels lie in a file."""
    args = image.tile[0].args if image.tile else None
    return args[0] if isinstance(args, tuple) else args


def _renamed(args: str | tuple) -> str | tuple:
    return (_LOW_BYTES[args[0]], *args[1:]) if isinstance(args, tuple) else _LOW_BYTES[args]


def _significant_bits(image: Image.Image, contents: bytes, largest: int) -> int:
    """Return the declared number of bits that have a meaning, unless a value is larger; else one of `DEPTHS`."""
    declared = _declared_bits(image, contents)
    if declared and largest < 2**declared:
        return declared
    if declared and image.format == "PNG":
        return 16  # the bits with a meaning are the upper ones
    return next(bits for bits in DEPTHS if largest < 2**bits)


def _declared_bits(image: Image.Image, contents: bytes) -> int:
    """Return the number of bits that a file declares to have a meaning; 0: none."""
    if image.format == "PNG":
        bits = max(_png_chunk(contents, b"sBIT")[:3], default=0)  # the fourth number is alpha's
        return bits if bits <= 16 else 0
    if image.format == "PPM":
        return 16
    tags = ExifTags.Base
    bits = max(image.tag_v2.get(tags.BitsPerSample, (16,)))
    most = np.max(image.tag_v2.get(tags.SMaxSampleValue, image.tag_v2.get(tags.MaxSampleValue, 0)))
    return bits if bits < 16 else int(most).bit_length()


def _png_chunk(contents: bytes, name: bytes) -> bytes:
    """Return the data of a chunk that stands before the pixels of a PNG; empty: there is none."""
    place = 8
    while (kind := contents[place + 4 : place + 8]) not in (b"IDAT", b""):
        length = int.from_bytes(contents[place : place + 4])
        if kind == name:
            return contents[place + 8 : place + 8 + length]
        place += 12 + length
    return b""
