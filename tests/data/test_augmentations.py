"""Each augmentation against NumPy, SciPy, Pillow or colorsys, eagerly and compiled inside tf.data."""

import colorsys
import inspect
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError
from scipy import ndimage, stats

from kpipe.catalog.data import AUGMENTATIONS
from kpipe.data.augmentations.color import color_jitter, grayscale, pca_color
from kpipe.data.augmentations.geometric import (
    cutout,
    flip_horizontal,
    flip_vertical,
    pad_crop,
    rotate,
    translate,
)
from kpipe.data.augmentations.rand_augment import OPERATIONS, rand_augment
from kpipe.errors import ConfigError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(1, 256, (6, 10, 14, 3), np.uint8)  # never 0, which stands for vacated pixels
ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))
UNIFORMS = np.array(
    [[0, 0], [ALMOST_ONE, ALMOST_ONE], [0.5, 0.5], [0, ALMOST_ONE], [0.3, 0.8], [0.49, 0.51]], np.float32
)
GRAY = IMAGES[..., :1]


def numpy_pad_crop(image, uniforms, padding):
    height, width, _ = image.shape
    top, left = (int(u * (2 * padding + 1)) for u in uniforms)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[top : top + height, left : left + width]


def numpy_translate(image, uniforms, height, width):
    result = np.zeros_like(image)
    limits = [round(fraction * side) for fraction, side in zip((height, width), image.shape, strict=False)]
    down, right = (int(u * (2 * m + 1)) - m for u, m in zip(uniforms, limits, strict=True))
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if 0 <= y - down < image.shape[0] and 0 <= x - right < image.shape[1]:
                result[y, x] = image[y - down, x - right]
    return result


def numpy_flip(image, uniforms):
    return image[:, ::-1] if uniforms[0] < 0.5 else image


def numpy_cutout(image, uniforms, size, fill):
    result = image.copy()
    top, left = (int(u * side) - size // 2 for u, side in zip(uniforms, image.shape, strict=False))
    result[max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = fill
    return result


CASES = [
    (pad_crop(), lambda image, u: numpy_pad_crop(image, u, 4)),
    (pad_crop(padding=1), lambda image, u: numpy_pad_crop(image, u, 1)),
    (translate(), lambda image, u: numpy_translate(image, u, 0.1, 0.1)),
    (translate(height=0.5, width=0.0), lambda image, u: numpy_translate(image, u, 0.5, 0.0)),
    (flip_horizontal(), numpy_flip),
    (flip_vertical(), lambda image, u: image[::-1] if u[0] < 0.5 else image),
    (cutout(size=4), lambda image, u: numpy_cutout(image, u, 4, 0)),
    (cutout(size=7, fill=9), lambda image, u: numpy_cutout(image, u, 7, 9)),
]


def eager(augmentation, images, uniforms):
    return augmentation.apply(tf.constant(images), tf.constant(uniforms))


def in_tf_data(augmentation, images, uniforms):
    compiled = tf.function(augmentation.apply, jit_compile=True)
    dataset = tf.data.Dataset.from_tensor_slices((images, uniforms)).batch(len(images), drop_remainder=True)
    return next(iter(dataset.map(compiled)))


@pytest.mark.parametrize("run", [eager, in_tf_data])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].name)
def test_agrees_with_numpy(case, dtype, run):
    augmentation, reference = case
    images, uniforms = IMAGES.astype(dtype), UNIFORMS[:, : augmentation.uniforms]
    got = run(augmentation, images, uniforms)
    assert got.dtype == dtype
    expected = [reference(image, u) for image, u in zip(images, uniforms, strict=True)]
    np.testing.assert_array_equal(got, expected)


def scipy_rotate(image, uniforms, degrees, fill):
    angle = math.radians((2 * float(uniforms[0]) - 1) * degrees)
    backwards = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    center = (np.array(image.shape[:2]) - 1) / 2
    planes = [
        ndimage.affine_transform(
            plane, backwards, center - backwards @ center, order=1, mode="grid-constant", cval=fill
        )
        for plane in np.moveaxis(image.astype(float), 2, 0)
    ]
    return np.stack(planes, axis=2)


def luminance(image):
    return image @ [0.299, 0.587, 0.114] if image.shape[2] == 3 else image[..., 0]


def numpy_jitter(image, uniforms, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0):
    def blend(image, other, uniform, largest):
        factor = 1 + (2 * uniform - 1) * largest
        return np.clip(factor * image + (1 - factor) * other, 0, 255)

    image = blend(image.astype(float), 0, uniforms[0], brightness)
    image = blend(image, luminance(image).mean(), uniforms[1], contrast)
    image = blend(image, luminance(image)[..., None], uniforms[2], saturation)
    if image.shape[2] == 1:
        return image
    pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
    pixels = [colorsys.hsv_to_rgb((h + (2 * uniforms[3] - 1) * hue) % 1, s, v) for h, s, v in pixels]
    return 255 * np.reshape(pixels, image.shape)


def numpy_pca(image, uniforms, std, power):
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    alphas = stats.norm.ppf(np.maximum(uniforms.astype(float), 2.0**-24), scale=std)
    shift = vectors @ (alphas * np.array([0.2175, 0.0188, 0.0045]) ** power)
    return np.clip(image + 255 * shift, 0, 255)


def numpy_grayscale(image, uniforms, probability):
    return np.broadcast_to(luminance(image)[..., None], image.shape) if uniforms[0] < probability else image


ROUNDED_CASES = [
    (rotate(), IMAGES, lambda image, u: scipy_rotate(image, u, 15, 0)),
    (rotate(degrees=180, fill=200), GRAY, lambda image, u: scipy_rotate(image, u, 180, 200)),
    (color_jitter(), IMAGES, numpy_jitter),
    (color_jitter(hue=0.5), IMAGES, lambda image, u: numpy_jitter(image, u, hue=0.5)),
    (color_jitter(1, 0, 1, 0.1), IMAGES, lambda image, u: numpy_jitter(image, u, 1, 0, 1, 0.1)),
    (color_jitter(hue=0.5), GRAY, lambda image, u: numpy_jitter(image, u, saturation=0)),
    (pca_color(), IMAGES, lambda image, u: numpy_pca(image, u, 0.1, 1)),
    (pca_color(0.5, "deviation"), IMAGES, lambda image, u: numpy_pca(image, u, 0.5, 0.5)),
    (grayscale(0.4), IMAGES, lambda image, u: numpy_grayscale(image, u, 0.4)),
    (grayscale(1), GRAY, lambda image, u: image),
]


@pytest.mark.parametrize("run", [eager, in_tf_data])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("case", ROUNDED_CASES, ids=lambda case: case[0].name)
def test_agrees_up_to_rounding(case, dtype, run):
    augmentation, images, reference = case
    uniforms = np.tile(UNIFORMS, 2)[:, : augmentation.uniforms]
    got = run(augmentation, images.astype(dtype), uniforms)
    assert got.dtype == dtype
    expected = np.stack([reference(image, u) for image, u in zip(images, uniforms, strict=True)])
    # Floats to 0.01 of 255; whole numbers may fall on the other side of a half.
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.51 if dtype == np.uint8 else 0.01)


def test_no_jitter_changes_nothing():
    got = eager(color_jitter(0, 0, 0, 0), IMAGES, np.zeros((6, 4), np.float32))
    np.testing.assert_array_equal(got, IMAGES)


@pytest.mark.parametrize(("scale", "total"), [("paper", 5.57), ("deviation", 12.51)])
def test_pca_shifts_as_far_as_its_docstring_says(scale, total):
    uniforms = RANDOM.random((20_000, 3), np.float32)
    shifts = eager(pca_color(scale=scale), np.full((20_000, 1, 1, 3), 128, np.float32), uniforms).numpy() - 128
    assert np.sqrt((shifts**2).sum(axis=3).mean()) == pytest.approx(total, rel=0.02)


# A photograph's range of colors, a narrow one, one color alone, and noise.
RAMP = np.stack(np.meshgrid(np.arange(20, 244, 7), np.arange(0, 256, 11), [90]), axis=3)[:, :, 0].astype(np.uint8)
SCENES = np.stack(
    [RAMP, RAMP // 3 + 60, np.full_like(RAMP, 77), RANDOM.integers(0, 256, RAMP.shape, np.uint8)]
)  # [4, 24, 32, 3]


def pillow_operation(image, name, sign, magnitude):
    """Apply what torchvision's RandAugment calls for an image of Pillow."""
    strength, (width, height) = sign * magnitude / 30, image.size
    moves = {
        "shear_x": (1, 0.3 * strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * strength, 1, 0),
        "translate_x": (1, 0, -int(150 / 331 * width * strength), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -int(150 / 331 * height * strength)),
    }
    enhancers = {"brightness": "Brightness", "color": "Color", "contrast": "Contrast", "sharpness": "Sharpness"}
    if name in moves:
        return image.transform(image.size, Image.Transform.AFFINE, moves[name])
    if name in enhancers:
        return getattr(ImageEnhance, enhancers[name])(image).enhance(1 + 0.9 * strength)
    others = {
        "identity": lambda: image,
        "rotate": lambda: image.rotate(30 * strength),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(magnitude / 7.5)),
        "solarize": lambda: ImageOps.solarize(image, 255 - 8.5 * magnitude),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return others[name]()


def every_operation():
    """Return uniforms [28, 2]: each operation with both signs."""
    places = (np.repeat(np.arange(len(OPERATIONS)), 2) + 0.5) / len(OPERATIONS)
    return np.stack([places, np.tile([0.25, 0.75], len(OPERATIONS))], axis=1).astype(np.float32)


def squeezed(image):
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


@pytest.mark.parametrize("run", [eager, in_tf_data])
@pytest.mark.parametrize(
    ("magnitude", "dtype", "channels"), [(9, np.uint8, 3), (30, np.float32, 3), (17, np.uint8, 1), (0, np.uint8, 3)]
)
def test_rand_augment_agrees_with_pillow(magnitude, dtype, channels, run):
    images = np.repeat(SCENES[..., :channels], 2 * len(OPERATIONS), axis=0)
    uniforms = np.tile(every_operation(), (len(SCENES), 1))
    got = run(rand_augment(1, magnitude), images.astype(dtype), uniforms)
    assert got.dtype == dtype
    for image, result, (place, sign) in zip(images, got.numpy().astype(int), uniforms, strict=True):
        name = OPERATIONS[int(place * len(OPERATIONS))]
        expected = pillow_operation(squeezed(image), name, -1 if sign < 0.5 else 1, magnitude)
        difference = np.abs(result - np.array(expected).reshape(image.shape))
        if name in ("shear_x", "shear_y", "rotate"):
            assert (difference > 0).mean() < 0.02, name  # Pillow counts places in 1/65536 of a pixel
        elif name in ("brightness", "color", "contrast", "sharpness", "autocontrast"):
            assert difference.max() <= 1, name  # Pillow drops the fraction
        else:
            assert difference.max() == 0, name


@pytest.mark.parametrize("run", [eager, in_tf_data])
def test_rand_augment_applies_one_operation_after_the_other(run):
    uniforms = np.random.default_rng(1).random((4, 6), np.float32)
    stepwise = SCENES
    for column in (0, 2, 4):
        stepwise = eager(rand_augment(1, 15), stepwise, uniforms[:, column : column + 2])
    got = run(rand_augment(3, 15), SCENES, uniforms)
    # Compiled, a pixel that lies between two others may be the other one.
    assert (got != stepwise).numpy().mean() <= (0 if run is eager else 0.001)


def test_rand_augment_takes_the_smallest_images():
    eager(rand_augment(1), np.zeros((28, 1, 1, 1), np.uint8), every_operation())


def test_offsets_are_equally_likely():
    uniforms = np.linspace(0, 1, 9000, endpoint=False, dtype=np.float32)
    images = np.zeros((9000, 9, 1, 1), np.uint8)
    images[:, 4] = 1
    moved = eager(pad_crop(4), images, np.stack([uniforms, np.full_like(uniforms, 0.5)], axis=1))
    counts = moved.numpy().astype(int).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(counts, 1000, atol=2)


def test_translate_moves_small_images_too():
    images = np.ones((1, 8, 8, 1), np.uint8)
    assert eager(translate(), images, np.zeros((1, 2), np.float32)).numpy().sum() == 49


WHOLE, AT_LEAST_1, AT_LEAST_0 = "a whole number", "at least 1", "at least 0"
FRACTION = [(-0.1, AT_LEAST_0), (1.1, "at most 1"), (math.nan, "at most 1")]
WRONG = [
    (pad_crop, "padding", [(0, AT_LEAST_1), (-1, AT_LEAST_1), (1.5, WHOLE), ("4", WHOLE)]),
    (translate, "height", [(-0.1, AT_LEAST_0), (1.0, "less than 1"), (math.nan, "less than 1")]),
    (translate, "width", [(-0.1, AT_LEAST_0), (1.0, "less than 1"), (math.nan, "less than 1")]),
    (rotate, "degrees", [(0, "more than 0"), (-1, "more than 0"), (181, "at most 180"), (math.nan, "at most 180")]),
    (rotate, "fill", [(-1, AT_LEAST_0), (256, "at most 255"), (0.5, WHOLE)]),
    (cutout, "size", [(0, AT_LEAST_1), (1.5, WHOLE)]),
    (cutout, "fill", [(-1, AT_LEAST_0), (256, "at most 255")]),
    (color_jitter, "brightness", FRACTION),
    (color_jitter, "contrast", FRACTION),
    (color_jitter, "saturation", FRACTION),
    (color_jitter, "hue", [(-0.1, AT_LEAST_0), (0.6, "at most 0.5")]),
    (pca_color, "deviation", [(0, "more than 0"), (-0.1, "more than 0"), (math.inf, "a finite number")]),
    (pca_color, "scale", [("std", "one of paper, deviation")]),
    (grayscale, "probability", FRACTION),
    (rand_augment, "operations", [(0, AT_LEAST_1), (1.5, WHOLE)]),
    (rand_augment, "magnitude", [(-1, AT_LEAST_0), (31, "at most 30"), (9.5, WHOLE)]),
]


@pytest.mark.parametrize(("make", "option", "cases"), WRONG)
def test_options_are_checked_here_and_in_the_table(make, option, cases):
    for value, expected in cases:
        with pytest.raises(ConfigError) as caught:
            make(**{option: value})
        assert str(caught.value) == f"{make.__name__}.{option}: expected {expected}, got {value!r}"
        with pytest.raises(ValidationError, match=option):
            AUGMENTATIONS[make.__name__].options(**{option: value})


@pytest.mark.parametrize(
    ("make", "whole"),
    [(pad_crop, {"padding": 2}), (cutout, {"size": 3, "fill": 7}), (rand_augment, {"operations": 1, "magnitude": 5})],
)
def test_whole_numbers_may_be_floats(make, whole):
    images, uniforms = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1), np.full((2, 4), 0.7, np.float32)
    floats = {option: float(value) for option, value in whole.items()}
    np.testing.assert_array_equal(eager(make(**floats), images, uniforms), eager(make(**whole), images, uniforms))


@pytest.mark.parametrize(
    ("augmentation", "channels", "expected"),
    [
        (color_jitter(), 4, "1 or 3"),
        (pca_color(), 1, "3"),
        (grayscale(), 2, "1 or 3"),
        (rand_augment(), 2, "1 or 3"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("run", [eager, in_tf_data])
def test_channels_are_checked(augmentation, channels, expected, run):
    images = np.zeros((1, 4, 4, channels), np.uint8)
    with pytest.raises(
        ValueError, match=f"{augmentation.name}: expected images of {expected} channels, got {channels}"
    ):
        run(augmentation, images, np.zeros((1, augmentation.uniforms), np.float32))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_table_has_the_same_options(name):
    row = AUGMENTATIONS[name]
    parameters = inspect.signature(row.load()).parameters.values()
    fields = row.options.model_fields.items()
    defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    assert defaults == {key: field.default for key, field in fields}
    assert row.load()().name == name
