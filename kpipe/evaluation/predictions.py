"""Predictions of a network over a whole split.

N images of the split, H height, W width, C channels, K classes.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Examples:
    """A few images and what the network says of them: n images."""

    images: np.ndarray
    """uint8 [n, H, W, C], 0..255"""
    labels: np.ndarray
    """int32 [n]"""
    predictions: np.ndarray
    """int64 [n]"""
    probabilities: np.ndarray
    """Probability of the predicted class, float32 [n]."""

    def select(self, rows) -> "Examples":
        """Return some of the rows: a slice, a mask or indices."""
        return Examples(*(column[rows] for column in vars(self).values()))

    def join(self, other: "Examples") -> "Examples":
        """Return these rows and after them those of another."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Examples(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of a split, and the images that are worth a look."""

    labels: np.ndarray
    """int32 [N]"""
    predictions: np.ndarray
    """int64 [N]"""
    sample: Examples
    """Images drawn at random."""
    mistakes: Examples
    """The mistakes with the largest probability, the largest first."""

    @property
    def num_mistakes(self) -> int:
        return int(np.count_nonzero(self.predictions != self.labels))


def collect_predictions(
    model: keras.Model, batches: tf.data.Dataset, *, seed: int, num_examples: int = 25
) -> Predictions:
    """Predict the class of each image once.

    No more than `num_examples` images of a kind are kept: the split may be larger than the memory.

    Args:
        model: images [B, H, W, C] to logits [B, K].
        batches: at least one, of (images uint8 [B, H, W, C], labels int32 [B]).
        seed: of the images that are drawn at random. The same seed draws the same ones, whatever the batch size.
        num_examples: how many of the images drawn at random and of the mistakes are kept.
    """
    labels, predictions = [], []
    generator = np.random.default_rng(seed)
    sample, mistakes = _Smallest(num_examples), _Smallest(num_examples)
    for batch_images, batch_labels in batches.as_numpy_iterator():
        probabilities = compute_probabilities(model, batch_images)
        batch = Examples(batch_images, batch_labels, probabilities.argmax(-1), probabilities.max(-1))
        labels.append(batch.labels)
        predictions.append(batch.predictions)
        sample.add(batch, generator.random(len(batch.labels)))
        wrong = batch.select(batch.labels != batch.predictions)
        mistakes.add(wrong, -wrong.probabilities)
    return Predictions(np.concatenate(labels), np.concatenate(predictions), sample.examples, mistakes.examples)


def compute_probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classes, float32 [B, K].

    Args:
        model: images [B, H, W, C] to logits [B, K].
        images: uint8 [B, H, W, C], 0..255.
    """
    return keras.ops.convert_to_numpy(keras.ops.softmax(model.predict_on_batch(images)))


class _Smallest:
    """Keeps the examples with the smallest keys, in the order of their keys.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int):
        self.examples: Examples | None = None
        self._most = most
        self._keys = np.empty(0)

    def add(self, examples: Examples, keys: np.ndarray) -> None:
        """Keep of these examples, float [n] keys beside them, and of those before the ones with the smallest keys."""
        examples = self.examples.join(examples) if self.examples else examples
        keys = np.concatenate([self._keys, keys])
        rows = np.argsort(keys, kind="stable")[: self._most]
        self.examples, self._keys = examples.select(rows), keys[rows]
