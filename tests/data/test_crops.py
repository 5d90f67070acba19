"""The crop of an image that training sees, and the ten crops of evaluation."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kpipe.data.arrays import ArraySplit
from kpipe.data.augmentations.crops import center_crop, random_crop, random_resized_crop, scale_jitter, ten_crop
from kpipe.data.augmentations.geometric import flip_horizontal
from kpipe.data.pipeline import make_evaluation_pipeline, make_pipeline
from kpipe.errors import ConfigError

LAST = np.nextafter(np.float32(1), np.float32(0))  # the largest uniform
SIDES = [(1, 1), (1, 50), (50, 1), (3, 2000), (2000, 3), (8, 8), (375, 500), (333, 500), (4000, 3000)]
RANDOM = np.random.default_rng(5)


def boxes(crop, sides, uniforms, size):
    return crop.boxes(tf.constant(sides, tf.int32), tf.constant(uniforms, tf.float32), size).numpy()


def uniforms_of(crop, images):
    """Draw random uniforms, with rows of both extremes and of their mixtures."""
    random = RANDOM.random((images, crop.uniforms), np.float32)
    random[0], random[1] = 0, LAST
    random[2:12] = RANDOM.choice([0, LAST], (10, crop.uniforms))
    return random


def assert_inside(found, sides):
    assert (found[:, :2] >= 0).all() and (found[:, 2:] >= 1).all()
    assert (found[:, :2] + found[:, 2:] <= sides).all()


def whole(uniform, largest):
    """Return an integer 0..largest, computed in float32."""
    return min(int(np.float32(uniform) * np.float32(largest + 1)), largest)


# --- without scaling --------------------------------------------------------------------------------------


def test_random_crop_takes_any_place_with_its_uniforms():
    sides = np.tile([[9, 12]], (5, 1))
    uniforms = [[0, 0], [LAST, LAST], [0.5, 0.25], [0, LAST], [0.4, 0.4]]
    assert boxes(random_crop(), sides, uniforms, 8).tolist() == [
        [0, 0, 8, 8],
        [1, 4, 8, 8],
        [1, 1, 8, 8],
        [0, 4, 8, 8],
        [0, 2, 8, 8],
    ]


def test_all_places_of_a_random_crop_are_equally_likely():
    row, column = np.meshgrid(*2 * [(np.arange(300) + 0.5) / 300])
    uniforms = np.stack([row.ravel(), column.ravel()], axis=1)
    found = boxes(random_crop(), np.tile([[10, 12]], (len(uniforms), 1)), uniforms, 8)
    _, counts = np.unique(found[:, :2], axis=0, return_counts=True)
    assert counts.tolist() == [300 * 300 // 15] * 15


def test_center_crop_is_what_evaluation_sees():
    images = RANDOM.integers(0, 256, (6, 11, 9, 3), np.uint8)
    split = ArraySplit(images, np.arange(6, dtype=np.int32))
    [(seen, labels)] = make_pipeline(split, 6, augment=[center_crop()], image_size=6, last_step=1).as_numpy_iterator()
    np.testing.assert_array_equal(seen, images[labels, 2:8, 1:7])
    [(evaluated, _)] = make_evaluation_pipeline(split, 6, image_size=6).as_numpy_iterator()
    np.testing.assert_array_equal(evaluated[labels], seen)


def test_without_a_crop_training_sees_the_center():
    split = ArraySplit(RANDOM.integers(0, 256, (6, 11, 9, 3), np.uint8), np.arange(6, dtype=np.int32))
    [(seen, labels)] = make_pipeline(split, 6, image_size=6, last_step=1).as_numpy_iterator()
    np.testing.assert_array_equal(seen, split.images[labels, 2:8, 1:7])


def test_random_crop_in_a_pipeline_shows_a_piece_of_the_image_and_moves():
    split = ArraySplit(RANDOM.integers(0, 256, (8, 7, 10, 1), np.uint8), np.arange(8, dtype=np.int32))
    pieces = {
        label: {split.images[label, y : y + 6, x : x + 6].tobytes(): (y, x) for y in range(2) for x in range(5)}
        for label in range(8)
    }
    batches = make_pipeline(split, 8, augment=[random_crop()], image_size=6, last_step=20).as_numpy_iterator()
    places = [
        pieces[label][image.tobytes()]
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]
    assert set(places) == {(y, x) for y in range(2) for x in range(5)}


# --- random_resized_crop ----------------------------------------------------------------------------------


def torchvision_box(height, width, uniforms, area, aspect):
    """`RandomResizedCrop.get_params` of torchvision 0.28, in its order of calculation, with given uniforms."""
    for i in range(10):
        target = height * width * (area[0] + uniforms[i] * (area[1] - area[0]))
        low, high = np.log(aspect)
        ratio = math.exp(low + uniforms[10 + i] * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [whole(uniforms[20], height - h), whole(uniforms[21], width - w), h, w]
    if width / height < aspect[0]:
        w, h = width, round(width / aspect[0])
    elif width / height > aspect[1]:
        h, w = height, round(height * aspect[1])
    else:
        w, h = width, height
    h, w = max(h, 1), max(w, 1)  # torchvision would take a crop of no pixels
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(
    ("area", "aspect"),
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 0.5), (1, 1)), ((0.9, 1.0), (2, 3)), ((1, 1), (0.1, 0.2))],
)
def test_random_resized_crop_is_that_of_torchvision(area, aspect):
    crop = random_resized_crop(area, aspect)
    sides = np.repeat(SIDES, 200, axis=0)
    uniforms = np.tile(uniforms_of(crop, 200), (len(SIDES), 1))
    found = boxes(crop, sides, uniforms, 224)
    assert_inside(found, sides)
    expected = np.array(
        [
            torchvision_box(*side, row.astype(float), area, aspect)
            for side, row in zip(sides.tolist(), uniforms, strict=True)
        ]
    )
    differs = (found != expected).any(axis=1)
    # kpipe computes in float32: a side that lies between two whole numbers may be rounded to the other one.
    assert differs.mean() < 0.005
    np.testing.assert_allclose(found[differs], expected[differs], atol=1)


def test_area_and_aspect_of_a_random_resized_crop_are_those_asked_for():
    crop = random_resized_crop()
    uniforms = RANDOM.random((20_000, crop.uniforms), np.float32)
    found = boxes(crop, np.tile([[2000, 2000]], (20_000, 1)), uniforms, 224)
    fractions, aspects = found[:, 2] * found[:, 3] / 4e6, found[:, 3] / found[:, 2]
    assert 0.0795 < fractions.min() and fractions.max() <= 1
    assert 0.748 < aspects.min() and aspects.max() < 1.336
    # Evenly drawn, before the large ones are refused that do not fit: those of up to 3/4 always do.
    small, quarters = fractions < 0.75, np.array([0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.quantile(fractions[small], quarters), 0.08 + 0.67 * quarters, atol=0.01)
    logarithms = np.log(aspects[small]) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(logarithms, quarters), 2 * quarters - 1, atol=0.04)


def test_fixed_random_resized_crop_of_the_whole_image_is_a_resize():
    split = ArraySplit(RANDOM.integers(0, 256, (4, 8, 8, 3), np.uint8), np.arange(4, dtype=np.int32))
    crop = random_resized_crop((1, 1), (1, 1))
    [(seen, labels)] = make_pipeline(split, 4, augment=[crop], image_size=5, last_step=1).as_numpy_iterator()
    resized = np.round(tf.image.resize(split.images, [5, 5]).numpy())
    np.testing.assert_array_equal(seen, resized[labels])
    [(seen, labels)] = make_pipeline(split, 4, augment=[crop], last_step=1).as_numpy_iterator()  # as they are kept
    np.testing.assert_array_equal(seen, split.images[labels])


# --- scale_jitter -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high", "size"), [(256, 512, 224), (8, 8, 8), (7, 30, 5), (1, 3, 1)])
def test_scale_jitter_is_a_crop_of_the_scaled_image(low, high, size):
    crop = scale_jitter(low, high)
    sides = np.repeat(SIDES, 60, axis=0)
    uniforms = np.tile(uniforms_of(crop, 60), (len(SIDES), 1))
    found = boxes(crop, sides, uniforms, size)
    assert_inside(found, sides)
    for box, (height, width), row in zip(found.tolist(), sides.tolist(), uniforms, strict=True):
        shorter = low + whole(row[0], high - low)
        # The crop has `size` pixels of an image whose shorter side has `shorter`.
        side = max(1, round(min(height, width) * size / shorter))
        assert box == [whole(row[1], height - side), whole(row[2], width - side), side, side]


def test_all_sides_of_a_scale_jitter_are_equally_likely():
    uniforms = np.stack([(np.arange(900) + 0.5) / 900, np.zeros(900), np.zeros(900)], axis=1)
    # Images so large that each side has a crop of its own.
    found = boxes(scale_jitter(4, 12), np.tile([[12_000, 12_000]], (900, 1)), uniforms, 4)
    sizes, counts = np.unique(found[:, 2], return_counts=True)
    assert counts.tolist() == [100] * 9
    assert sizes.tolist() == sorted(round(12_000 * 4 / side) for side in range(4, 13))


# --- ten_crop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(9, 9, 6), (8, 11, 5), (7, 10, 4), (5, 5, 5), (6, 9, 1)])
def test_ten_crop_is_that_of_torchvision(height, width, size):
    images = RANDOM.integers(0, 256, (3, height, width, 2), np.uint8)
    # torchvision: the corners, the center from round((H - I) / 2) on, then the five of the mirrored image.
    center = (round((height - size) / 2), round((width - size) / 2))
    places = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size), center]
    expected = [side[:, y : y + size, x : x + size] for side in (images, images[:, :, ::-1]) for y, x in places]
    found = ten_crop(tf.constant(images), size).numpy()
    assert found.shape == (3, 10, size, size, 2) and found.dtype == np.uint8
    torchvision = np.stack(expected, axis=1)
    # kpipe mirrors the crops, torchvision the image: left and right change places, and an odd rest is cut on the
    # other side.
    np.testing.assert_array_equal(found[:, :4], torchvision[:, :4])
    np.testing.assert_array_equal(found[:, [6, 5, 8, 7]], torchvision[:, 5:9])
    np.testing.assert_array_equal(found[:, 9], found[:, 4, :, ::-1])
    ours = (height - size) // 2, (width - size) // 2
    np.testing.assert_array_equal(found[:, 4], images[:, ours[0] : ours[0] + size, ours[1] : ours[1] + size])
    assert np.abs(np.subtract(ours, center)).max() <= 1


def test_ten_crops_of_evaluation():
    split = ArraySplit(RANDOM.integers(0, 256, (7, 9, 9, 3), np.uint8), np.arange(7, dtype=np.int32))
    dataset = make_evaluation_pipeline(split, 3, image_size=6, ten_crops=True)
    seen = list(dataset.as_numpy_iterator())
    assert int(dataset.cardinality()) == len(seen) == 3
    images = np.concatenate([images for images, _ in seen])
    np.testing.assert_array_equal(images, ten_crop(tf.constant(split.images), 6).numpy())
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in seen]), split.labels)


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_resized_crop((0, 1)), r"^random_resized_crop\.area\.0: expected more than 0, got 0$"),
        (lambda: random_resized_crop((0.5, 1.1)), r"^random_resized_crop\.area\.1: expected at most 1, got 1\.1$"),
        (
            lambda: random_resized_crop((0.6, 0.5)),
            r"^random_resized_crop\.area: expected \[smallest, largest\], got \[0\.6, 0\.5\]$",
        ),
        (
            lambda: random_resized_crop((0.6,)),
            r"^random_resized_crop\.area: expected at least 2 entries, got \[0\.6\]$",
        ),
        (
            lambda: random_resized_crop((math.nan, 1)),
            r"^random_resized_crop\.area\.0: expected a finite number, got nan$",
        ),
        (
            lambda: random_resized_crop(aspect=(0, 2)),
            r"^random_resized_crop\.aspect\.0: expected more than 0, got 0$",
        ),
        (
            lambda: random_resized_crop(aspect=(1, math.inf)),
            r"^random_resized_crop\.aspect\.1: expected a finite number, got inf$",
        ),
        (
            lambda: random_resized_crop(aspect=(2, 1)),
            r"^random_resized_crop\.aspect: expected \[smallest, largest\], got \[2\.0, 1\.0\]$",
        ),
        (lambda: scale_jitter(0, 5), r"^scale_jitter\.low: expected at least 1, got 0$"),
        (lambda: scale_jitter(6, 5), r"^scale_jitter\.low: expected at most high, 5, got 6$"),
        (lambda: scale_jitter(2.5, 5), r"^scale_jitter\.low: expected a whole number, got 2\.5$"),
        (
            lambda: boxes(scale_jitter(256, 512), [[300, 300]], [[0, 0, 0]], 257),
            r"^scale_jitter: expected low of at least data\.image_size, 257, got 256$",
        ),
        (lambda: ten_crop(tf.zeros([1, 5, 6, 1]), 6), r"ten_crop\.size: expected 1 to 5 pixels, got 6"),
        (lambda: ten_crop(tf.zeros([1, 5, 6, 1]), 0), r"ten_crop\.size: expected 1 to 5 pixels, got 0"),
    ],
)
def test_ranges_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"augment": [flip_horizontal(), random_crop()], "image_size": 6},
            r"augment: expected random_crop as the first entry: it chooses what the others see",
        ),
        (
            {"augment": [random_crop(), center_crop()], "image_size": 6},
            r"augment: expected center_crop as the first entry",
        ),
        ({"augment": [random_crop()]}, r"random_crop: expected image_size, the size of the crop, got none"),
        ({"augment": [center_crop()]}, r"center_crop: expected image_size, the size of the crop, got none"),
        (
            {"augment": [random_resized_crop()]},  # the kept images are not square
            r"random_resized_crop: expected image_size, the size of the crop, got none",
        ),
        (
            {"augment": [random_crop()], "image_size": 9},
            r"image_size: expected at most the 8 pixels of the kept images, got 9",
        ),
        ({"image_size": 9}, r"image_size: expected at most the 8 pixels of the kept images, got 9"),
    ],
)
def test_crops_that_do_not_fit_the_pipeline(options, message):
    split = ArraySplit(np.zeros((4, 8, 10, 3), np.uint8), np.zeros(4, np.int32))
    with pytest.raises(ConfigError, match=message):
        make_pipeline(split, 2, **options)


def test_ten_crops_need_a_size_that_fits():
    split = ArraySplit(np.zeros((4, 8, 10, 3), np.uint8), np.zeros(4, np.int32))
    with pytest.raises(ConfigError, match=r"expected image_size, the size of the crop, got none"):
        make_evaluation_pipeline(split, 2, ten_crops=True)
    with pytest.raises(ConfigError, match=r"expected at most the 8 pixels of the kept images, got 9"):
        make_evaluation_pipeline(split, 2, image_size=9, ten_crops=True)
