"""What a split says of a network: accuracy and its uncertainty, calibration, and how good it is at each class.

B batch, N images of the split, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from kpipe.errors import ConfigError

BINS = 15  # of the calibration error, as in Guo et al. 2017
_SMALLEST = np.finfo(np.float64).tiny

Columns = TypeVar("Columns")


@dataclass(frozen=True)
class Outcomes:
    """What a network says of images, beside the truth: all that the metrics need, however many classes there are."""

    labels: np.ndarray
    """int64 [N]"""
    predictions: np.ndarray
    """int64 [N]"""
    confidences: np.ndarray
    """Probability of the predicted class, float64 [N]."""
    ranks: np.ndarray
    """Number of classes before the true one, the most probable first: int64 [N]. Ties go to the first class."""
    losses: np.ndarray
    """Cross entropy, float64 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def mistakes(self) -> np.ndarray:
        """Numbers of the images whose class was mistaken, the most confident mistake first: int64 [n]."""
        mistakes = np.flatnonzero(self.predictions != self.labels)
        return mistakes[np.argsort(-self.confidences[mistakes], kind="stable")]


def compute_probabilities(logits: Any) -> np.ndarray:
    """Return probabilities float64 [B, K] of logits [B, K].

    In float32, several classes of a confident network would be level.
    """
    return softmax(np.asarray(logits, np.float64), axis=-1)


def check_finite(probabilities: np.ndarray) -> None:
    """Raise ConfigError where a network computes something that is not a number."""
    if not np.isfinite(probabilities).all():
        raise ConfigError("the network: expected finite logits, got some that are not. Its weights are of no use")


def score_batch(probabilities: np.ndarray, labels: np.ndarray, *, label_smoothing: float = 0.0) -> Outcomes:
    """Compare probabilities with the true classes.

    Args:
        probabilities: of each class, float [B, K].
        labels: int [B], 0..K-1.
        label_smoothing: as in the loss that the network was trained with.

    Returns:
        The outcomes of B images.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    is_before = np.arange(probabilities.shape[1]) < labels[:, None]
    ranks = np.count_nonzero((probabilities > true) | ((probabilities == true) & is_before), axis=1)
    negative_log_likelihoods = -np.log(np.maximum(probabilities, _SMALLEST))
    losses = np.take_along_axis(negative_log_likelihoods, labels[:, None], axis=1)[:, 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing * negative_log_likelihoods.mean(axis=1)
    return Outcomes(labels, probabilities.argmax(1), probabilities.max(1), ranks, losses)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Return several objects of one dataclass, whose fields are arrays of as many rows, as one; at least one."""
    names = [field.name for field in fields(parts[0])]
    return type(parts[0])(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def compute_metrics(outcomes: Outcomes, classes: int) -> dict[str, Any]:
    """Return the numbers of a whole split, as JSON types.

    Args:
        outcomes: of N images, at least one.
        classes: K.

    Returns:
        `images`; `accuracy`, and its `accuracy_interval` [low, high]; `top5` of more than five classes; `loss`, the
        cross entropy; `calibration_error`.
    """
    correct = outcomes.ranks == 0
    metrics = {
        "images": len(outcomes),
        "accuracy": float(correct.mean()),
        "accuracy_interval": wilson_interval(int(correct.sum()), len(outcomes)),
        "loss": float(outcomes.losses.mean()),
        "calibration_error": calibration_error(outcomes.confidences, correct),
    }
    return metrics | ({"top5": float((outcomes.ranks < 5).mean())} if classes > 5 else {})


def compute_class_metrics(outcomes: Outcomes, classes: int) -> list[dict[str, Any]]:
    """Return the numbers of each class, as JSON types. They are scikit-learn's.

    Args:
        outcomes: of N images.
        classes: K.

    Returns:
        `images`, `precision`, `recall` and `f1` of each of K classes; None where a number has no meaning: a class
        without images has no recall, and one that is never predicted has no precision.
    """
    columns = precision_recall_fscore_support(
        outcomes.labels, outcomes.predictions, labels=range(classes), zero_division=np.nan
    )
    return [
        {"images": int(images), "precision": _or_none(precision), "recall": _or_none(recall), "f1": _or_none(f1)}
        for precision, recall, f1, images in zip(*columns, strict=True)
    ]


def make_confusion_matrix(outcomes: Outcomes, classes: int) -> np.ndarray:
    """Return how often each class was predicted for which, int [K, K]: row = true class, column = predicted class."""
    return confusion_matrix(outcomes.labels, outcomes.predictions, labels=range(classes))


def wilson_interval(correct: int, images: int) -> list[float]:
    """Return the 95 % confidence interval of an accuracy, [low, high]: Wilson 1927."""
    interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart, on average over the images.

    C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, with 15 bins of equal width,
    each open at its lower end.

    Args:
        confidences: probability of the predicted class, float [N].
        correct: whether the prediction is correct, bool [N].
    """
    bins = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidences, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else float(number)
