import numpy as np
import pytest
import tensorflow as tf

from kpipe.data import ArraySplit, center_crop, color_jitter, cutout, flip_horizontal, flip_vertical, make_pipeline
from kpipe.data.augmentations.crops import random_crop
from kpipe.data.features import (
    compute_features,
    count_views,
    make_feature_evaluation_pipeline,
    make_feature_pipeline,
)
from kpipe.data.pipeline import make_evaluation_pipeline
from kpipe.data.pixels import allocate, make_resident

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 6, 6, 1), np.uint8)
LABELS = np.arange(23, dtype=np.int32) % 3
AUGMENTATIONS = [[], [flip_horizontal()], [center_crop(), flip_vertical(), flip_horizontal()]]


def features_of(images):
    """Different for each image and each of its flips."""
    return tf.reshape(tf.cast(images, tf.float32), (-1, 4, 4))


@pytest.fixture
def split():
    return ArraySplit(IMAGES, LABELS)


def computed(split, augment, make=lambda shape: np.zeros(shape, np.float32)):
    return compute_features(split, 4, augment, features_of, 5, make)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("kept", ["memory", "file"])
def test_a_batch_has_the_features_of_the_images_of_that_step(split, augment, kept, tmp_path):
    """Over three epochs, from the middle on, against the images that the input pipeline shows."""

    def in_file(shape):
        return np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, shape)

    features = computed(split, augment, *([in_file] if kept == "file" else []))
    steps = {"seed": 3, "augment": augment, "first_step": 2, "last_step": 15}
    weights = np.array([1.0, 2.0, 3.0])
    found = make_feature_pipeline(split, features, 4, class_weights=weights, **steps)
    expected = make_pipeline(split, 4, image_size=4, class_weights=weights, **steps)
    assert found.cardinality() == expected.cardinality() == 13
    for (ours, *rest), (images, *others) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, features_of(images))
        for column, other in zip(rest, others, strict=True):
            np.testing.assert_array_equal(column, other)
    assert features.shape == (23, 2 ** sum(entry.uniforms for entry in augment), 4, 4)


def test_features_in_memory_are_not_copied():
    features = allocate((3, 2, 5), np.float32)
    resident = make_resident(features)
    features[2, 1, 4] = 7
    assert (float(resident[2, 1, 4]), resident.dtype) == (7, tf.float32)


def test_evaluation_has_the_features_of_each_image_once_in_order(split):
    found = make_feature_evaluation_pipeline(split, computed(split, []), 5)
    expected = make_evaluation_pipeline(split, 5, image_size=4)
    assert found.cardinality() == 5
    for (features, labels), (images, theirs) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(features, features_of(images))
        np.testing.assert_array_equal(labels, theirs)


def test_workers_have_their_rows(split):
    augment = [flip_horizontal()]
    features = computed(split, augment)
    steps = {"seed": 0, "augment": augment, "first_step": 0, "last_step": 6}
    [whole, *parts] = [
        list(make_feature_pipeline(split, features, 4, worker=worker, workers=workers, **steps))
        for worker, workers in ((0, 1), (0, 2), (1, 2))
    ]
    for (rows, _), (first, _), (second, _) in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(rows, np.concatenate([first, second]))


@pytest.mark.parametrize(
    ("augment", "views"),
    [
        *zip(AUGMENTATIONS, (1, 2, 4), strict=True),
        ([random_crop()], None),
        ([flip_horizontal(), cutout(2)], None),
        ([color_jitter()], None),
    ],
)
def test_only_flips_have_few_views(augment, views):
    assert count_views(augment) == views


def test_the_digest_tells_pixels_apart_in_memory_and_in_a_file(tmp_path):
    """A file's path may be text or a `Path`, as the cache of decoded images gives it."""
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = ArraySplit(np.load(tmp_path / "images.npy", mmap_mode="r"), LABELS)
    split = ArraySplit(IMAGES.copy(), LABELS)
    digests = [each.digest() for each in (mapped, split, mapped.select(np.arange(5)), split.select(np.arange(5)))]
    assert len(set(digests)) == 4
    assert ArraySplit(IMAGES.copy(), LABELS).digest() == split.digest()
    assert ArraySplit(255 - IMAGES, LABELS).digest() != split.digest()
