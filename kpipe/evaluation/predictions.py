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
    first: Examples
    """The first images of the split."""
    mistakes: Examples
    """The mistakes with the largest probability, the largest first."""

    @property
    def num_mistakes(self) -> int:
        return int(np.count_nonzero(self.predictions != self.labels))


def collect_predictions(model: keras.Model, batches: tf.data.Dataset, *, num_examples: int = 25) -> Predictions:
    """Predict the class of each image once.

    No more than `num_examples` images of a kind are kept: the split may be larger than the memory.

    Args:
        model: images [B, H, W, C] to logits [B, K].
        batches: at least one, of (images uint8 [B, H, W, C], labels int32 [B]).
        num_examples: how many of the first images and of the mistakes are kept.
    """
    labels, predictions, first, mistakes = [], [], None, None
    for batch_images, batch_labels in batches.as_numpy_iterator():
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(model.predict_on_batch(batch_images)))
        batch = Examples(batch_images, batch_labels, probabilities.argmax(-1), probabilities.max(-1))
        labels.append(batch.labels)
        predictions.append(batch.predictions)
        wrong = batch.select(batch.labels != batch.predictions)
        first = (first.join(batch) if first else batch).select(slice(num_examples))
        mistakes = mistakes.join(wrong) if mistakes else wrong
        mistakes = mistakes.select(np.argsort(-mistakes.probabilities, kind="stable")[:num_examples])
    return Predictions(np.concatenate(labels), np.concatenate(predictions), first, mistakes)
