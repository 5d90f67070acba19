"""Predictions of a split, against NumPy over all images at once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.evaluation.predictions import collect_predictions

IMAGES, CLASSES = 23, 3


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4, 4, 1)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES)])


@pytest.fixture(scope="module")
def split():
    random = np.random.default_rng(2)
    return random.integers(0, 256, (IMAGES, 4, 4, 1), np.uint8), random.integers(0, CLASSES, IMAGES, np.int32)


def probabilities_of(model, images):
    logits = model.predict(images, verbose=0).astype(np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("batch_size", [4, IMAGES])
def test_every_image_is_predicted_once_in_the_order_of_the_split(model, split, batch_size):
    images, labels = split
    found = collect_predictions(model, tf.data.Dataset.from_tensor_slices(split).batch(batch_size), seed=0)
    expected = probabilities_of(model, images).argmax(-1)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.predictions, expected)
    assert found.num_mistakes == (expected != labels).sum() > 0


@pytest.mark.parametrize("batch_size", [4, IMAGES])
def test_the_surest_mistakes_are_kept(model, split, batch_size):
    images, labels = split
    batches = tf.data.Dataset.from_tensor_slices(split).batch(batch_size)
    found = collect_predictions(model, batches, seed=0, num_examples=5)
    probabilities = probabilities_of(model, images)
    wrong = np.flatnonzero(probabilities.argmax(-1) != labels)
    surest = wrong[np.argsort(-probabilities.max(-1)[wrong])][:5]
    np.testing.assert_array_equal(found.mistakes.images, images[surest])
    np.testing.assert_array_equal(found.mistakes.labels, labels[surest])
    np.testing.assert_array_equal(found.mistakes.predictions, probabilities.argmax(-1)[surest])


def test_images_are_drawn_by_the_seed_from_the_whole_split(model, split):
    images, labels = split

    def draw(seed, batch_size):
        batches = tf.data.Dataset.from_tensor_slices(split).batch(batch_size)
        return collect_predictions(model, batches, seed=seed, num_examples=5).sample

    def places(sample):
        """Return where in the split the images of the sample are."""
        return [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in sample.images]

    sample = draw(0, 4)
    found = places(sample)
    assert places(draw(0, IMAGES)) == found != places(draw(1, 4))
    assert len(set(found)) == 5 and max(found) > IMAGES / 2
    probabilities = probabilities_of(model, images)[found]
    np.testing.assert_array_equal(sample.labels, labels[found])
    np.testing.assert_array_equal(sample.predictions, probabilities.argmax(-1))
    np.testing.assert_allclose(sample.probabilities, probabilities.max(-1), rtol=1e-5)


def test_a_split_without_mistakes_keeps_none(model, split):
    images, _ = split
    labels = probabilities_of(model, images).argmax(-1).astype(np.int32)
    found = collect_predictions(model, tf.data.Dataset.from_tensor_slices((images, labels)).batch(8), seed=0)
    assert found.num_mistakes == len(found.mistakes.labels) == 0
