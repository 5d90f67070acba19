"""Decoding: crops of encoded images, large JPEGs at a fraction of their size, and the ways to become square."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kpipe.data.images import Form, decode_crop, decode_to_form, sides_of


def picture(height, width, channels=3):
    """Draw a smooth image: waves of a few periods, others in each channel; uint8 [H, W, C]."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [
        np.sin(2 * np.pi * ((1 + c) * y / height + 0.3 * c)) * np.cos(2 * np.pi * (2 - 0.5 * c) * x / width)
        for c in range(channels)
    ]
    return np.round(127.5 + 110 * np.stack(waves, axis=2)).astype(np.uint8)


def as_pillow(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def encode(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    as_pillow(pixels).save(stream, kind, **options)
    return stream.getvalue()


def pillow(pixels, height, width, box=None):
    """Resize the pixels, or a box (top, left, height, width) of them, by Pillow."""
    if box is not None:
        top, left, rows, columns = box
        pixels = pixels[top : top + rows, left : left + columns]
    image = as_pillow(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, pixels.shape[-1])


def decoded(contents):
    """Decode by TensorFlow, since no two JPEG decoders agree to the last bit."""
    return tf.io.decode_image(contents, channels=3, expand_animations=False).numpy()


def differences(ours, expected):
    return np.abs(np.subtract(ours, expected, dtype=float))


# --- crops ------------------------------------------------------------------------------------------------

BOXES = [(0, 0, 40, 40), (7, 13, 24, 24), (57, 31, 40, 40), (1, 2, 95, 20), (50, 60, 8, 60), (96, 119, 1, 1)]


@pytest.mark.parametrize("box", BOXES)
def test_a_crop_of_a_png_is_that_of_the_whole_image(box):
    pixels = np.random.default_rng(0).integers(0, 256, (97, 120, 3), np.uint8)
    found = decode_crop(tf.constant(encode(pixels)), tf.constant(box), 16).numpy()
    top, left, height, width = box
    region = pixels[top : top + height, left : left + width].astype(np.float32)
    expected = np.round(tf.image.resize(region, [16, 16], antialias=True).numpy())
    np.testing.assert_array_equal(found, expected)


def test_a_crop_that_needs_no_scaling_is_cut_out():
    pixels = np.random.default_rng(0).integers(0, 256, (97, 120, 3), np.uint8)
    found = decode_crop(tf.constant(encode(pixels)), tf.constant((7, 13, 24, 24)), 24).numpy()
    np.testing.assert_array_equal(found, pixels[7:31, 13:37])


@pytest.mark.parametrize("subsampling", [0, 2])  # colors in full, and halved as cameras do
@pytest.mark.parametrize("box", [(0, 0, 24, 24), (7, 13, 24, 24), (73, 96, 24, 24), (33, 50, 24, 24)])
def test_a_crop_of_a_jpeg_is_that_of_the_whole_image_but_for_colors_at_the_edge(box, subsampling):
    pixels = np.random.default_rng(0).integers(0, 256, (97, 120, 3), np.uint8)  # noise is the hardest
    contents = encode(pixels, "JPEG", quality=90, subsampling=subsampling)
    found = decode_crop(tf.constant(contents), tf.constant(box), 24).numpy()
    expected = decoded(contents)[box[0] : box[0] + 24, box[1] : box[1] + 24]
    np.testing.assert_array_equal(found[2:-2, 2:-2], expected[2:-2, 2:-2])
    if subsampling == 0:
        np.testing.assert_array_equal(found, expected)
    else:
        smooth = encode(picture(97, 120), "JPEG", quality=90, subsampling=2)
        found = decode_crop(tf.constant(smooth), tf.constant(box), 24).numpy()
        # At the edges of a picture without noise: at most 6 of 255 here.
        assert differences(found, decoded(smooth)[box[0] : box[0] + 24, box[1] : box[1] + 24]).max() <= 8


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (15, 35, 1, 1.4), (11, 23, 1.4, 1)])
def test_a_large_crop_of_a_jpeg_is_decoded_at_a_fraction(box, ratio):
    size = 32
    pixels = picture(450, 420)
    contents = encode(pixels, "JPEG", quality=95)
    # Between `ratio` and twice as many pixels a side as the crop has.
    box = (*box[:2], *(int(side * ratio * size * 1.05) for side in box[2:]))
    found = decode_crop(tf.constant(contents), tf.constant(box), size).numpy()
    # Its pixels lie on the grid of the fraction: the box moves by less than `ratio`, thus less than a pixel of the end.
    on_grid = [side // ratio * ratio for side in box]
    off = differences(found, pillow(pixels, size, size, on_grid))
    assert off.mean() < 1.5 and off.max() <= 8


def test_a_crop_is_decoded_at_the_fraction_that_its_shorter_side_allows(monkeypatch):
    ratios = []
    real = tf.io.decode_and_crop_jpeg

    def decode(contents, box, *, channels, ratio):
        ratios.append(ratio)
        return real(contents, box, channels=channels, ratio=ratio)

    monkeypatch.setattr(tf.io, "decode_and_crop_jpeg", decode)
    contents = tf.constant(encode(picture(400, 400), "JPEG"))
    for sides in ((63, 400), (64, 64), (400, 127), (128, 300), (256, 256), (400, 400), (20, 20)):
        decode_crop(contents, tf.constant((0, 0, *sides)), 32)
    assert ratios == [1, 2, 2, 4, 8, 8, 1]


def test_a_crop_in_gray():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[..., 1] = 255
    found = decode_crop(tf.constant(encode(pixels)), tf.constant((0, 0, 20, 20)), 8, Form(channels=1)).numpy()
    assert (found == 149).all() and found.shape == (8, 8, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_the_sides_of_an_encoded_image(kind):
    assert sides_of(tf.constant(encode(picture(13, 29), kind))).numpy().tolist() == [13, 29]


# --- the whole image in its form --------------------------------------------------------------------------

SHAPES = [(64, 64), (64, 97), (97, 64), (33, 65), (20, 31), (31, 20), (1, 1), (5, 90), (90, 5)]


def square(pixels, size, resize):
    """Bring to size x size by Pillow, with `crop`, `pad` or `squash`. Return also where the picture is in it."""
    height, width, channels = pixels.shape
    if resize == "squash":
        return pillow(pixels, size, size), (slice(0, size), slice(0, size))
    side = (max if resize == "pad" else min)(height, width)
    rows, columns = (max(1, round(each * size / side)) for each in (height, width))
    scaled = pillow(pixels, rows, columns)
    if resize == "crop":
        top, left = (rows - size) // 2, (columns - size) // 2
        return scaled[top : top + size, left : left + size], (slice(0, size), slice(0, size))
    top, left = (size - rows) // 2, (size - columns) // 2
    where = slice(top, top + rows), slice(left, left + columns)
    image = np.zeros((size, size, channels), np.uint8)
    image[where] = scaled
    return image, where


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [17, 32, 64])
def test_an_image_becomes_square_as_by_pillow(resize, size):
    for shape in SHAPES:
        pixels = picture(*shape)
        found = decode_to_form(tf.constant(encode(pixels)), Form(size, resize)).numpy()
        expected, where = square(pixels, size, resize)
        assert found.shape == (size, size, 3) and found.dtype == np.uint8
        # Pillow rounds to bytes after the columns and again after the rows.
        assert differences(found, expected).max() <= 1, (shape, size)
        outside = np.ones((size, size), bool)
        outside[where] = False
        assert (found[outside] == 0).all()


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_an_image_that_has_its_form_is_not_touched(resize):
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    np.testing.assert_array_equal(decode_to_form(tf.constant(encode(pixels)), Form(24, resize)).numpy(), pixels)
    odd = pixels[:, :19]
    np.testing.assert_array_equal(decode_to_form(tf.constant(encode(odd)), Form(None, resize)).numpy(), odd)


# TensorFlow decodes a JPEG by the faster of two ways, and cuts the luminance to whole numbers.
@pytest.mark.parametrize(("kind", "within"), [("PNG", 1), ("JPEG", 6)])
def test_gray_and_color(kind, within):
    for pixels in (picture(60, 90, 1), picture(60, 90)):
        contents = encode(pixels, kind)
        color = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
        gray = np.round(color @ [0.299, 0.587, 0.114])[..., None]
        for channels, expected in ((None, color), (3, color), (1, gray)):
            found = decode_to_form(tf.constant(contents), Form(None, "crop", channels)).numpy()
            assert found.shape == expected.shape
            assert differences(found, expected).max() <= within


def test_gray_stays_the_same_gray():
    """In a PNG, TensorFlow decodes it as one channel; in the other formats its luminance is taken."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for kind in ("PNG", "BMP"):
        found = decode_to_form(tf.constant(encode(pixels, kind)), Form(16, "crop", 1)).numpy()
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_a_large_jpeg_is_decoded_at_a_fraction(resize, ratio, monkeypatch):
    size, ratios = 24, []
    real = tf.io.decode_jpeg

    def decode(contents, channels, ratio):
        ratios.append(ratio)
        return real(contents, channels=channels, ratio=ratio)

    monkeypatch.setattr(tf.io, "decode_jpeg", decode)
    # Odd sides, and the one that counts is just large enough for the ratio.
    least = 2 * ratio * size
    pixels = picture(*((least, int(least * 0.7)) if resize == "pad" else (int(least * 1.3), least + 1)))
    contents = encode(pixels, "JPEG", quality=95)
    found = decode_to_form(tf.constant(contents), Form(size, resize)).numpy()
    assert ratios == [ratio]
    # The decoder rounds up: what it shows has whole blocks, whose rest repeats the edge.
    rest = [(0, -side % ratio) for side in pixels.shape[:2]]
    expected, _ = square(np.pad(decoded(contents), [*rest, (0, 0)], mode="edge"), size, resize)
    off = differences(found, expected)
    assert off.mean() < 1.3 and off.max() <= 4


def test_a_jpeg_just_below_the_size_of_a_ratio_is_decoded_whole(monkeypatch):
    pixels = picture(95, 95)
    monkeypatch.setattr(
        tf.io, "decode_jpeg", lambda contents, channels, ratio: tf.fill([95, 95, 3], tf.cast(ratio, "uint8"))
    )
    found = decode_to_form(tf.constant(encode(pixels, "JPEG")), Form(24)).numpy()
    assert (found == 1).all()
