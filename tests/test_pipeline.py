"""The order and the random numbers of batches."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from kpipe.data import Part, flip_horizontal, make_evaluation_pipeline, make_pipeline, pad_crop
from kpipe.errors import ConfigError

# 23 images of 8x8 whose label is their number: 5 batches of 4 an epoch, 3 images left out.
PART = Part(np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), np.uint8), np.arange(23, dtype=np.int32))
AUGMENT = (pad_crop(2), flip_horizontal())


def batches(**options):
    return list(make_pipeline(PART, 4, **options).as_numpy_iterator())


def labels_of_epoch(epoch, seed=0):
    return np.concatenate([label for _, label in batches(seed=seed, first_step=5 * epoch)])


def digest(seed=3):
    sha = hashlib.sha256()
    for images, labels in batches(seed=seed, augment=AUGMENT, last_step=12):
        sha.update(images.tobytes() + labels.tobytes())
    return sha.hexdigest()


def test_batch_contract():
    dataset = make_pipeline(PART, 4, augment=AUGMENT)
    images, labels = dataset.element_spec
    assert (images.dtype, images.shape.as_list()) == ("uint8", [4, 8, 8, 3])
    assert (labels.dtype, labels.shape.as_list()) == ("int32", [4])
    assert int(dataset.cardinality()) == len(list(dataset)) == 5


def test_without_augmentation_images_keep_their_labels():
    for images, labels in batches(last_step=11):
        np.testing.assert_array_equal(images, PART.images[labels])


def test_each_augmentation_gets_its_own_columns():
    twice = [images for images, _ in batches(augment=(flip_horizontal(), flip_horizontal()), last_step=10)]
    never = [images for images, _ in batches(last_step=10)]
    assert (np.stack(twice) != np.stack(never)).any()  # two flips by the same numbers would cancel


def test_random_numbers_differ_between_steps_and_images():
    one = Part(np.repeat(PART.images[:1], 23, axis=0), PART.labels)
    steps = make_pipeline(one, 4, augment=[flip_horizontal()], last_step=20).as_numpy_iterator()
    flipped = [tuple((images != one.images[:4]).any(axis=(1, 2, 3))) for images, _ in steps]
    assert len(set(flipped)) > 5
    assert 20 < np.sum(flipped) < 60


def test_every_image_at_most_once_an_epoch():
    for epoch in range(3):
        assert len(set(labels_of_epoch(epoch))) == 20


def test_left_out_images_and_order_differ_between_epochs():
    epochs = [labels_of_epoch(epoch) for epoch in range(4)]
    assert len({frozenset(set(range(23)) - set(labels)) for labels in epochs}) > 1
    assert len({tuple(labels) for labels in epochs}) == 4


def test_seed_changes_order_and_augmentation():
    assert (labels_of_epoch(0, seed=0) != labels_of_epoch(0, seed=1)).any()
    assert digest(3) != digest(4)


def test_starting_at_a_step_equals_the_uninterrupted_run():
    whole = batches(seed=1, augment=AUGMENT, last_step=14)
    resumed = batches(seed=1, augment=AUGMENT, first_step=7, last_step=14)
    assert len(resumed) == 7
    for (images, labels), (images_again, labels_again) in zip(whole[7:], resumed, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)


def test_another_process_sees_the_same_batches():
    script = "import sys; sys.path[:] = eval(sys.argv[1]); from test_pipeline import digest; print(digest())"
    result = subprocess.run([sys.executable, "-c", script, repr(sys.path)], capture_output=True, text=True)
    assert result.stdout.split()[-1:] == [digest()], result.stderr


def test_no_step_is_an_empty_set():
    dataset = make_pipeline(PART, 4, first_step=3, last_step=3)
    assert int(dataset.cardinality()) == len(list(dataset)) == 0


def test_batch_may_be_the_whole_part():
    [(_, labels)] = make_pipeline(PART, 23).as_numpy_iterator()
    assert sorted(labels) == list(range(23))


def test_batch_larger_than_the_part():
    message = r"data\.batch_size: expected at most the 23 images of the training part, got 24"
    with pytest.raises(ConfigError, match=message):
        make_pipeline(PART, 24)


@pytest.mark.parametrize("make", [make_pipeline, make_evaluation_pipeline])
def test_batch_of_nothing(make):
    with pytest.raises(ConfigError, match=r"data\.batch_size: expected at least 1, got 0"):
        make(PART, 0)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4] * 5 + [3]), (23, [23]), (50, [23])])
def test_evaluation_scores_each_image_once_in_order(batch_size, sizes):
    dataset = make_evaluation_pipeline(PART, batch_size)
    seen = list(dataset.as_numpy_iterator())
    assert [len(labels) for _, labels in seen] == sizes
    assert int(dataset.cardinality()) == len(sizes)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in seen]), PART.images)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in seen]), PART.labels)


@pytest.mark.parametrize("wrong", [flip_horizontal, "flip_horizontal"])
def test_an_augmentation_that_was_not_made(wrong):
    with pytest.raises(ConfigError, match=r"augment: expected augmentations such as flip_horizontal\(\), got"):
        make_pipeline(PART, 4, augment=[wrong])


def test_a_part_is_shown_in_a_line():
    assert repr(PART) == "Part(23 images of 8x8x3)"
