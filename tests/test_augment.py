"""Each augmentation against NumPy, eagerly and compiled inside tf.data."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

from kpipe.data import flip_horizontal, pad_crop, translate
from kpipe.tables import AUGMENTATIONS, resolve

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(1, 256, (6, 10, 14, 3), np.uint8)  # never 0, which stands for vacated pixels
ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))
UNIFORMS = np.array(
    [[0, 0], [ALMOST_ONE, ALMOST_ONE], [0.5, 0.5], [0, ALMOST_ONE], [0.3, 0.8], [0.49, 0.51]], np.float32
)


def numpy_pad_crop(image, uniforms, padding):
    height, width, _ = image.shape
    top, left = (int(u * (2 * padding + 1)) for u in uniforms)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[top : top + height, left : left + width]


def numpy_translate(image, uniforms, height, width):
    result = np.zeros_like(image)
    limits = [round(share * side) for share, side in zip((height, width), image.shape, strict=False)]
    down, right = (int(u * (2 * m + 1)) - m for u, m in zip(uniforms, limits, strict=True))
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if 0 <= y - down < image.shape[0] and 0 <= x - right < image.shape[1]:
                result[y, x] = image[y - down, x - right]
    return result


def numpy_flip(image, uniforms):
    return image[:, ::-1] if uniforms[0] < 0.5 else image


CASES = [
    (pad_crop(), lambda image, u: numpy_pad_crop(image, u, 4)),
    (pad_crop(padding=1), lambda image, u: numpy_pad_crop(image, u, 1)),
    (translate(), lambda image, u: numpy_translate(image, u, 0.1, 0.1)),
    (translate(height=0.5, width=0.0), lambda image, u: numpy_translate(image, u, 0.5, 0.0)),
    (flip_horizontal(), numpy_flip),
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


@pytest.mark.parametrize("padding", [0, -1, 1.5, "4"])
def test_padding_is_checked(padding):
    with pytest.raises(ValueError, match=r"pad_crop\.padding: expected a whole number of at least 1, got"):
        pad_crop(padding)


@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_are_checked(name, share):
    with pytest.raises(ValueError, match=rf"translate\.{name}: expected a share of at least 0 and below 1, got"):
        translate(**{name: share})


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_table_has_the_same_options(name):
    row = AUGMENTATIONS[name]
    parameters = inspect.signature(resolve(row)).parameters.values()
    fields = row.options.model_fields.items()
    defaults = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
    assert defaults == {key: field.default for key, field in fields}
    assert resolve(row)().name == name
