"""Predictions of a split, gathered batch by batch, against NumPy over all images at once."""

import numpy as np
import pytest

from kpipe.evaluation.metrics import compute_probabilities
from kpipe.evaluation.predictions import Predictions

IMAGES, CLASSES = 23, 3


@pytest.fixture(scope="module")
def split():
    """Images uint8 [N, 4, 4, 1], labels int32 [N] and logits float32 [N, K]."""
    random = np.random.default_rng(2)
    images, labels = random.integers(0, 256, (IMAGES, 4, 4, 1), np.uint8), random.integers(0, CLASSES, IMAGES, np.int32)
    return images, labels, random.normal(size=(IMAGES, CLASSES)).astype("float32")


def gather(split, batch_size, seed=0, num_examples=25):
    found = Predictions("test", seed=seed, num_examples=num_examples)
    for start in range(0, IMAGES, batch_size):
        found.add(*(column[start : start + batch_size] for column in split))
    return found


@pytest.mark.parametrize("batch_size", [4, IMAGES])
def test_every_image_is_predicted_once_in_the_order_of_the_split(split, batch_size):
    _, labels, logits = split
    outcomes, expected = gather(split, batch_size).outcomes, logits.argmax(-1)
    np.testing.assert_array_equal(outcomes.labels, labels)
    np.testing.assert_array_equal(outcomes.predictions, expected)
    assert len(outcomes.mistakes) == (expected != labels).sum() > 0


@pytest.mark.parametrize("batch_size", [4, IMAGES])
def test_the_most_confident_mistakes_are_kept(split, batch_size):
    images, labels, logits = split
    probabilities = compute_probabilities(logits)
    wrong = np.flatnonzero(probabilities.argmax(-1) != labels)
    first = wrong[np.argsort(-probabilities.max(-1)[wrong])][:5]
    found = gather(split, batch_size, num_examples=5)
    np.testing.assert_array_equal(found.mistakes.images, images[first])
    np.testing.assert_array_equal(found.mistakes.labels, labels[first])
    np.testing.assert_array_equal(found.mistakes.predictions, probabilities.argmax(-1)[first])
    np.testing.assert_array_equal(found.outcomes.mistakes[:5], first)


def test_images_are_drawn_by_the_seed_from_the_whole_split(split):
    images, labels, logits = split

    def draw(seed, batch_size):
        return gather(split, batch_size, seed, num_examples=5).sample

    def places(sample):
        """Return where in the split the images of the sample are."""
        return [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in sample.images]

    sample = draw(0, 4)
    found = places(sample)
    assert places(draw(0, IMAGES)) == found != places(draw(1, 4))
    assert len(set(found)) == 5 and max(found) > IMAGES / 2
    probabilities = compute_probabilities(logits)[found]
    np.testing.assert_array_equal(sample.labels, labels[found])
    np.testing.assert_array_equal(sample.predictions, probabilities.argmax(-1))
    np.testing.assert_allclose(sample.probabilities, probabilities.max(-1), rtol=1e-5)


def test_a_split_without_mistakes_keeps_none(split):
    images, _, logits = split
    found = gather((images, logits.argmax(-1).astype(np.int32), logits), 8)
    assert len(found.outcomes.mistakes) == len(found.mistakes.labels) == 0


def test_classes_that_are_far_behind_are_not_level():
    """In float32, both would have probability 0."""
    assert (compute_probabilities(np.float32([[0, -200, -300]]))[0, 1:] > 0).all()
