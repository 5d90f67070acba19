"""Every epoch is shuffled: its order cannot be told from a true shuffle, and no two epochs or seeds have the same."""

import numpy as np
import pytest
import tensorflow as tf
from image_sets import define_set, prepare_set, tfds_in

from kpipe.data.arrays import ArraySplit
from kpipe.data.loading import load_dataset
from kpipe.data.order import Drawing, permutation
from kpipe.data.pipeline import make_pipeline

CLASSES, EPOCHS, SEEDS = 5, 200, 5
SIZES = {244: 12, 512: 32, 1000: 50, 1797: 64}
"""Number of images, sorted by class -> size of the batches in which the classes are counted."""


def class_mix(labels, batch_size):
    """Return the chi-square of the classes over the batches of each epoch: labels [epochs, images] -> [epochs]."""
    batches = labels.reshape(len(labels), -1, batch_size)
    counts = np.stack([(batches == label).sum(2) for label in range(CLASSES)], axis=2)
    expected = batch_size / CLASSES
    return ((counts - expected) ** 2 / expected).sum((1, 2))


def sorted_labels(images):
    return np.arange(images, dtype=np.int32) * CLASSES // images


@pytest.mark.parametrize("images", [244, 512, *(pytest.param(size, marks=pytest.mark.slow) for size in (1000, 1797))])
def test_no_epoch_is_less_shuffled_than_true_shuffles(images):
    batch_size, labels = SIZES[images], sorted_labels(images)
    shown = images // batch_size * batch_size
    random = np.random.default_rng(0)
    true = class_mix(np.stack([random.permutation(labels)[:shown] for _ in range(2000)]), batch_size)
    split = ArraySplit(np.zeros((images, 1, 1, 1), np.uint8), labels)
    for seed in range(SEEDS):
        epochs = make_pipeline(split, shown, seed=seed, last_step=EPOCHS)  # an epoch in one batch, which is faster
        found = np.stack([labels for _, labels in epochs.as_numpy_iterator()])
        deviations = (class_mix(found, batch_size) - true.mean()) / true.std()
        assert np.abs(deviations).max() < 6
        assert abs(deviations.mean()) < 6 / np.sqrt(EPOCHS)


def test_no_order_comes_again():
    orders = {(seed, epoch): permutation(60, seed, epoch).tobytes() for seed in (0, 1, 256) for epoch in range(600)}
    assert len(set(orders.values())) == len(orders)
    assert sorted(permutation(60, 3, 5)) == list(range(60))


def test_an_order_does_not_change_with_versions():
    assert permutation(10, 7, 3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """60 records in four files. Each has a class of its own."""
    with tfds_in(tmp_path_factory.mktemp("stream")) as tfds:
        define_set(tfds, "tiny_order", {"train": range(60)}, size=(1, 1, 1), classes=map(str, range(60)))
        prepare_set(tfds, "tiny_order", shards=4)
        yield load_dataset("tfds:tiny_order", cache="none", validation=0, test=0).train


def test_each_epoch_of_a_stream_has_another_order(stream):
    def orders(seed, first, last):
        epochs = make_pipeline(stream, 60, seed=seed, first_step=first, last_step=last)
        return [tuple(labels.tolist()) for _, labels in epochs.as_numpy_iterator()]

    found = [*orders(0, 0, 9), *orders(0, 254, 263), *orders(1, 0, 1), *orders(256, 0, 1)]
    assert len(set(found)) == 20
    assert all(sorted(order) == list(range(60)) for order in found)


@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize(("images", "unreadable"), [(7, ()), (50, ()), (50, range(3, 20))])
def test_a_step_is_drawn_alike_from_every_first_step_on(first, images, unreadable):
    """Blocks of steps show nothing: against NumPy's order, TensorFlow's uniforms of each step, and for two workers."""
    batch_size, seed = 6, 3
    per_epoch = images // batch_size
    halves = [
        Drawing(images, batch_size, per_epoch, seed=seed, uniforms=2, worker=worker, workers=2, unreadable=unreadable)
        for worker in range(2)
    ]
    found = list(zip(*(each.draw(first, first + 20).as_numpy_iterator() for each in halves), strict=True))
    assert len(found) == 20
    for step, parts in enumerate(found, first):
        numbers, uniforms = (np.concatenate(part) for part in zip(*parts, strict=True))
        assert numbers.tolist() == expected_numbers(images, batch_size, seed, unreadable, step)
        np.testing.assert_array_equal(uniforms, tf.random.stateless_uniform([batch_size, 2], (seed, step)))


def expected_numbers(images, batch_size, seed, unreadable, step):
    """Return the numbers of a step, where each unreadable image is replaced by the next one in the order."""
    shown = images // batch_size * batch_size
    numbers = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        while (number := permutation(images, seed, place // shown)[place % shown]) in unreadable:
            place += 1
        numbers.append(number)
    return numbers
