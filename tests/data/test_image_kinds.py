"""Image files of all kinds are decoded as Pillow shows them: upright, on the background, with all their bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from image_sets import write_image
from PIL import Image, ImageOps

from kpipe.data.augmentations.crops import random_resized_crop
from kpipe.data.loading import load_dataset
from kpipe.data.pipeline import make_pipeline
from kpipe.errors import DataError

Y, X = np.mgrid[0:24, 0:40]
PICTURE = np.stack([X * 6, Y * 10, np.where((X > 25) & (Y < 8), 250, 20)], -1).astype(np.uint8)
COLOR = Image.fromarray(PICTURE)
DISC = (X - 20) ** 2 + (Y - 12) ** 2 < 64
WHOLE = {"validation": 0, "test": 0}


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def shown(contents):
    """Return the pixels of an encoded image as Pillow converts them to colors."""
    return np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))


def with_orientation(kind, orientation, **options):
    """Encode a picture so that it must be turned to look like PICTURE."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for turn in [None, *Image.Transpose]:
        lying = COLOR if turn is None else COLOR.transpose(turn)
        contents = saved(lying, kind, exif=exif, **options)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(contents))), int)
        if upright.shape == PICTURE.shape and np.abs(upright - PICTURE).max() < 40:
            return contents
    raise AssertionError(orientation)


def with_alpha(mode):
    """Return a picture that is opaque in a disk alone."""
    image = COLOR.convert(mode)
    image.putalpha(Image.fromarray(np.where(DISC, 255, 0).astype(np.uint8)))
    return image


def on(color, image):
    behind = Image.new("RGBA", image.size, (*color, 255))
    return np.asarray(Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB"))


def packed(samples, bits):
    """Return the rows of samples [H, W] or [H, W, C] as bytes, the highest bit first: uint8 [H, bytes]."""
    places = np.arange(bits)[::-1]
    return np.packbits((samples.reshape(len(samples), -1, 1) >> places & 1).reshape(len(samples), -1) != 0, axis=1)


def bitmap(bits, header=40, top_down=False):
    """Return a bitmap as old programs write them, of PICTURE in few bits, or of DISC in black and white."""
    rows, table, compression, num_colors = PICTURE if top_down else PICTURE[::-1], b"", 0, 0
    if bits == 16:  # 5-6-5 with masks
        values = (rows[..., 0] >> 3).astype("<u2") << 11 | (rows[..., 1] >> 2).astype("<u2") << 5 | rows[..., 2] >> 3
        pixels, table, compression = values.astype("<u2").tobytes(), struct.pack("<III", 0xF800, 0x7E0, 0x1F), 3
    elif bits < 16:
        pixels, num_colors = packed(DISC[::-1].astype(int), bits).tobytes(), 2
        table = bytes(4) + b"\xff\xff\xff\0"
    else:
        pixels = np.ascontiguousarray(rows[..., ::-1]).tobytes()
    height = -24 if top_down else 24
    if header == 12:
        info = struct.pack("<IHHHH", 12, 40, 24, 1, bits)
    else:
        sizes = (len(pixels), 2835, 2835, num_colors, 0)
        info = struct.pack("<IiiHHIIiiII", 40, 40, height, 1, bits, compression, *sizes)
    start = 14 + len(info) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + table + pixels


def palette(bits=8):
    return COLOR.quantize(2**bits)


def film(kind, **options):
    frames = [COLOR.quantize(64), Image.fromarray(255 - PICTURE).quantize(64)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)


def sixteen(bits):
    gray = np.asarray(COLOR.convert("L")).astype(np.uint32)
    values = np.round(gray / 255 * (2**bits - 1)).astype(np.uint16)
    return saved(Image.fromarray(values), "PNG")


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(png, name, data):
    """Return a PNG with one chunk more, before all but its header."""
    return png[:33] + chunk(name, data) + png[33:]


def with_bits(bits, png):
    """Return a PNG of gray that declares how many bits have a meaning."""
    return with_chunk(png, b"sBIT", bytes([bits]))


def make_png(samples, bits, color):
    """Return a PNG of samples [H, W] or [H, W, C], of a color type: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", samples.shape[1], len(samples), bits, color, 0, 0, 0)
    rows = np.pad(packed(samples, bits), [(0, 0), (1, 0)])  # each begins with its filter, none
    pixels = zlib.compress(rows.tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def with_hole(samples, bits, color, text=None):
    """Return a PNG whose color of the disk is transparent, and what it shows. Another pixel has nearly that color."""
    samples = samples.copy()
    samples[DISC] = key = samples[12, 20]
    samples[0, 0] = key ^ 1
    png = with_chunk(make_png(samples, bits, color), b"tRNS", np.asarray(key, ">u2").tobytes())
    png = with_chunk(png, b"tEXt", text) if text else png
    is_key = (samples.reshape(24, 40, -1) == key).all(axis=2, keepdims=True)
    return png, np.where(is_key, 255, as_8_bits(samples, bits)), LOSSLESS


def deep(bits):
    """Return rows of PNG with 16 bits per sample, of which colors use the lower `bits`. Of alpha, 8 bits are read."""
    colors, alpha = DEEP >> 16 - bits, (X * 1600 + Y * 7).astype(np.uint16)[..., None]
    rgba, la = np.dstack([colors, alpha]), np.dstack([colors[..., 0], alpha])
    on_white = colors / (2**bits - 1) * (alpha / 65535) + 1 - alpha / 65535
    return {
        f"rgb_{bits}.png": (make_png(colors, 16, 2), as_8_bits(colors, bits), LOSSLESS),
        f"rgba_{bits}.png": (make_png(rgba, 16, 6), as_8_bits(on_white, 1), 2),
        f"la_{bits}.png": (make_png(la, 16, 4), as_8_bits(on_white[..., 0], 1), 2),
    }


def as_8_bits(values, bits):
    levels = np.round(values / (2**bits - 1) * 255).astype(np.uint8)
    return np.broadcast_to(levels.reshape(24, 40, -1), PICTURE.shape)


def with_white_as_0(tiff):
    """Return a TIFF of gray with the values it has, of which 0 is now white."""
    entry = struct.pack("<HHI", 262, 3, 1)  # PhotometricInterpretation
    assert tiff.count(entry + b"\1") == 1
    return tiff.replace(entry + b"\1", entry + b"\0")


def with_long_orientation(contents):
    """Return a JPEG whose orientation is a number of 32 bits."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01"
    assert contents.count(entry) == 1
    place = contents.index(entry) + len(entry)
    value = contents[place : place + 2]
    return contents[: place - 6] + b"\x00\x04" + contents[place - 4 : place] + b"\0\0" + value + contents[place + 4 :]


def without_adobe(contents):
    """Return a JPEG without the segment that says what its inks mean."""
    place = contents.index(b"\xff\xee")
    return contents[:place] + contents[place + 2 + int.from_bytes(contents[place + 2 : place + 4]) :]


def after_a_profile(contents):
    """Return a JPEG whose EXIF stands behind more than 64 kB of other segments."""
    return contents[:2] + 3 * (b"\xff\xe2" + (60_000).to_bytes(2) + bytes(59_998)) + contents[2:]


DIM = np.asarray(COLOR.convert("L")).astype(np.uint16) << 4
DEEP = PICTURE * np.uint16(257) + (X * 37 + Y * 11)[..., None].astype(np.uint16) % 251
DEEP_GRAY = DEEP[..., 0]
ADOBE = saved(COLOR.convert("CMYK"), "JPEG", quality=97, subsampling=0)
INKS = without_adobe(ADOBE)
GRAY = np.asarray(COLOR.convert("L").convert("RGB"))
RGBA, LA = with_alpha("RGBA"), with_alpha("LA")
WHITE = (255, 255, 255)
LOSSLESS = 0
WEBP, AVIF = saved(COLOR, "WEBP", quality=95), saved(COLOR, "AVIF", quality=90)
KINDS = {
    "plain.png": (saved(COLOR, "PNG"), PICTURE, LOSSLESS),
    "gray.png": (saved(COLOR.convert("L"), "PNG"), GRAY, LOSSLESS),
    "one_bit.png": (saved(COLOR.convert("1"), "PNG"), np.asarray(COLOR.convert("1").convert("RGB")), LOSSLESS),
    "palette.png": (saved(palette(), "PNG"), np.asarray(palette().convert("RGB")), LOSSLESS),
    "rgba.png": (saved(RGBA, "PNG"), on(WHITE, RGBA), LOSSLESS),
    "la.png": (saved(LA, "PNG"), on(WHITE, LA), LOSSLESS),
    "sixteen.png": (sixteen(16), GRAY, LOSSLESS),
    "twelve.png": (sixteen(12), GRAY, LOSSLESS),
    "left_aligned.png": (with_bits(12, saved(Image.fromarray(DIM << 4), "PNG")), as_8_bits(DIM << 4, 16), LOSSLESS),
    "dim.png": (with_bits(12, saved(Image.fromarray(DIM >> 2), "PNG")), as_8_bits(DIM >> 2, 12), LOSSLESS),
    "text.png": (
        with_chunk(saved(Image.fromarray(DIM >> 2), "PNG"), b"tEXt", b"Comment\0sBIT\x0csBIT~"),
        as_8_bits(DIM >> 2, 10),
        LOSSLESS,
    ),
    **deep(12),
    **deep(16),
    "hole_deep_gray.png": with_hole(DEEP_GRAY, 16, 0),
    "hole_deep_rgb.png": with_hole(DEEP, 16, 2),
    "hole_after_text.png": with_hole(PICTURE[..., 0], 8, 0, text=b"Comment\0IDAT"),
    "hole_2_bits.png": with_hole(PICTURE[..., 0] >> 6, 2, 0),
    "hole_4_bits.png": with_hole(PICTURE[..., 0] >> 4, 4, 0),
    "black.png": (saved(Image.fromarray(np.zeros((24, 40), np.uint16)), "PNG"), 0 * PICTURE, LOSSLESS),
    "sixteen.pgm": (saved(Image.fromarray(np.asarray(COLOR.convert("L")).astype(np.uint16) * 257), "PPM"), GRAY, 0),
    "sixteen.tif": (saved(Image.fromarray(np.asarray(COLOR.convert("L")).astype(np.uint16) * 257), "TIFF"), GRAY, 0),
    "white_is_0.tif": (with_white_as_0(saved(Image.fromarray(DEEP_GRAY), "TIFF")), as_8_bits(~DEEP_GRAY, 16), LOSSLESS),
    "most.tif": (saved(Image.fromarray(DIM >> 2), "TIFF", tiffinfo={281: 4095}), as_8_bits(DIM >> 2, 12), LOSSLESS),
    "color.tiff": (saved(COLOR, "TIFF"), PICTURE, LOSSLESS),
    "rgb.bmp": (saved(COLOR, "BMP"), PICTURE, LOSSLESS),
    "palette.bmp": (saved(palette(), "BMP"), np.asarray(palette().convert("RGB")), LOSSLESS),
    "one_bit.bmp": (saved(COLOR.convert("1"), "BMP"), np.asarray(COLOR.convert("1").convert("RGB")), LOSSLESS),
    **{f"two_colors{n}.bmp": (bitmap(n), as_8_bits(DISC, 1), LOSSLESS) for n in (4, 8)},
    "gray.bmp": (saved(COLOR.convert("L"), "BMP"), GRAY, LOSSLESS),
    "rgba.bmp": (saved(COLOR.convert("RGBA"), "BMP"), PICTURE, LOSSLESS),
    "os2.bmp": (bitmap(24, header=12), PICTURE, LOSSLESS),
    "top_down.bmp": (bitmap(24, top_down=True), PICTURE, LOSSLESS),
    "masks.bmp": (bitmap(16), PICTURE, 8),
    "palette.gif": (saved(palette(), "GIF"), np.asarray(palette().convert("RGB")), LOSSLESS),
    "film.gif": (film("GIF"), PICTURE, 60),
    "film.webp": (film("WEBP", lossless=True), PICTURE, 60),
    "photo.webp": (WEBP, shown(WEBP), LOSSLESS),
    "photo.avif": (AVIF, shown(AVIF), LOSSLESS),
    "photo.ppm": (saved(COLOR, "PPM"), PICTURE, LOSSLESS),
    "photo.jfif": (saved(COLOR, "JPEG", quality=97, subsampling=0), PICTURE, 12),
    "progressive.jpe": (saved(COLOR, "JPEG", quality=97, subsampling=0, progressive=True), PICTURE, 12),
    "cmyk.jpg": (ADOBE, PICTURE, 16),
    "adobe.jpg": (ADOBE, shown(ADOBE), LOSSLESS),
    "inks.jpg": (INKS, shown(INKS), 16),
    "long.jpg": (with_long_orientation(with_orientation("JPEG", 6, quality=97, subsampling=0)), PICTURE, 12),
    "late.jpg": (after_a_profile(with_orientation("JPEG", 6, quality=97, subsampling=0)), PICTURE, 12),
    "junk.jpg": (saved(COLOR, "JPEG", quality=97, subsampling=0) + b"\0" * 300, PICTURE, 12),
    "webp_named.jpg": (saved(COLOR, "WEBP", lossless=True), PICTURE, LOSSLESS),
    **{f"exif{n}.jpg": (with_orientation("JPEG", n, quality=97, subsampling=0), PICTURE, 12) for n in range(1, 9)},
    **{f"exif{n}.png": (with_orientation("PNG", n), PICTURE, LOSSLESS) for n in range(1, 9)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A class for each kind, of the kind's one file."""
    root = tmp_path_factory.mktemp("kinds")
    for name, (contents, _, _) in KINDS.items():
        (root / name).mkdir()
        (root / name / name).write_bytes(contents)
    return root


def test_every_kind_is_decoded_as_pillow_shows_it(folder):
    splits = load_dataset(f"folder:{folder}", cache="memory", **WHOLE)
    assert splits.class_names == tuple(sorted(KINDS))
    for name, label, image in zip(splits.class_names, splits.train.labels, splits.train.images, strict=True):
        _, expected, tolerance = KINDS[splits.class_names[label]]
        assert np.abs(image.astype(int) - expected).max() <= tolerance, name
    assert splits.describe_conversions() == [
        "11 images have transparent pixels; they are drawn on white (data.background)",
        "18 images have 16 bits; they are scaled to 8",
    ]


def test_every_kind_is_cropped_from_the_upright_image(folder):
    """The crop is the whole image, so that it must look like the picture, scaled."""
    split = load_dataset(f"folder:{folder}", cache="none", image_size=16, **WHOLE).train
    crop = random_resized_crop(area=(1.0, 1.0), aspect=(40 / 24, 40 / 24))
    batches = make_pipeline(split, len(KINDS), augment=[crop], image_size=16, last_step=1)
    [(images, labels)] = batches.as_numpy_iterator()
    for image, label in zip(images, labels, strict=True):
        name = sorted(KINDS)[label]
        _, expected, tolerance = KINDS[name]
        scaled = Image.fromarray(expected).resize((16, 16), Image.Resampling.BILINEAR)
        # The smoothing may differ: TensorFlow does not antialias where an image shrinks by less than a half.
        assert np.abs(image.astype(int) - np.asarray(scaled)).mean() <= 6 + tolerance / 4, name


@pytest.mark.parametrize("background, color", [("white", WHITE), ("black", (0, 0, 0)), ([10, 200, 30], (10, 200, 30))])
def test_transparency_shows_the_background(tmp_path, background, color):
    for name, image in (("a", RGBA), ("b", COLOR)):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")
    splits = load_dataset(f"folder:{tmp_path}", background=background, **WHOLE)
    np.testing.assert_array_equal(splits.train.images[splits.train.labels == 0][0], on(color, RGBA))
    shown = {"white": "white", "black": "black"}.get(str(background), "[10, 200, 30]")
    assert splits.describe_conversions() == [
        f"1 image has transparent pixels; it is drawn on {shown} (data.background)"
    ]


def test_the_cache_on_the_disk_remembers_what_was_changed(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_CACHE", str(tmp_path))
    counts = [
        load_dataset(f"folder:{folder}", cache="disk", image_size=8, **WHOLE).describe_conversions() for _ in "12"
    ]
    assert counts[0] == counts[1] != []


def test_a_gif_is_drawn_on_its_canvas(tmp_path):
    """A first frame may be smaller than the canvas, and transparent around it."""
    frames = [Image.new("P", (8, 6), 1), Image.new("P", (8, 6), 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 0, 0, 0, 0, 250])
    contents = bytearray(
        saved(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=0, optimize=False)
    )
    contents[6:10] = struct.pack("<HH", 20, 16)  # the canvas
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.gif").write_bytes(bytes(contents))
    [image, _] = load_dataset(f"folder:{tmp_path}", **WHOLE).train.images
    assert image.shape == (16, 20, 3)
    assert image[2, 2].tolist() == [250, 0, 0]
    assert image[12, 12].tolist() == [255, 255, 255]


def test_a_strip_that_lies_is_padded(tmp_path):
    """Its shorter side would have less than a pixel, both when the decoder reduces it and when it is scaled."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.tile(np.linspace(0, 255, 4000).astype(np.uint8), (7, 1))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(ramp).convert("RGB").save(tmp_path / name / "0.jpg", exif=exif)
    [image, _] = load_dataset(f"folder:{tmp_path}", image_size=32, resize="pad", **WHOLE).train.images
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[:, 15] = ramp[0, 62::125, None]
    np.testing.assert_allclose(image, expected, atol=4)


def halved(contents):
    return contents[: len(contents) // 2]


CUT_OFF, DAMAGED = "cut off", "cut off or damaged"
HALVES = {**dict.fromkeys(("JPEG", "PNG", "GIF", "TIFF"), CUT_OFF), "WEBP": DAMAGED, "AVIF": DAMAGED}
LARGE = COLOR.resize((400, 240))
UNREADABLE = {
    "empty.jpg": (b"", "0 bytes"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "text, not an image"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC; convert it to JPEG"),
    "noise.png": (b"\x01\x02\x03" * 50, "not an image, or of a format that kpipe does not read"),
    "float.tif": (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "32-bit or signed pixels, whose .*"),
    "header.jpg": (saved(LARGE, "JPEG")[:100], DAMAGED),
    **{f"half.{kind.lower()}": (halved(saved(LARGE, kind)), reason) for kind, reason in HALVES.items()},
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_decoded_is_named_with_the_reason(tmp_path, name):
    contents, reason = UNREADABLE[name]
    for each in ("a", "b"):
        write_image(tmp_path / each / "0.png")
    (tmp_path / "b" / name).write_bytes(contents)
    with pytest.raises(DataError, match=rf"got 1 file that cannot be decoded: .*{name}\S? \({reason}\)\. Replace"):
        load_dataset(f"folder:{tmp_path}", image_size=8)
