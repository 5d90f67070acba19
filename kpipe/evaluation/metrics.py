"""What a split says of a network: accuracy and its uncertainty, calibration, and how good it is at each class.

B batch, N images of the split, K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

BINS = 15  # of the calibration error, as in Guo et al. 2017
_SMALLEST = np.finfo(np.float64).tiny


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
    """Number of classes before the true one, the most probable first: int64 [N]. Of equal classes the first counts."""
    losses: np.ndarray
    """Cross entropy, float64 [N]."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def surest_mistakes(self) -> np.ndarray:
        """Numbers of the images whose class was mistaken, the most confident mistake first: int64 [n]."""
        mistakes = np.flatnonzero(self.predictions != self.labels)
        return mistakes[np.argsort(-self.confidences[mistakes], kind="stable")]


def compare(probabilities: np.ndarray, labels: np.ndarray, *, label_smoothing: float = 0.0) -> Outcomes:
    """Compare probabilities, float [B, K], with the true classes, int [B].

    Args:
        probabilities: of each class.
        labels: 0..K-1.
        label_smoothing: as in the loss that the network was trained with.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    is_before = np.arange(probabilities.shape[1]) < labels[:, None]
    ranks = np.count_nonzero((probabilities > true) | ((probabilities == true) & is_before), axis=1)
    surprises = -np.log(np.maximum(probabilities, _SMALLEST))
    losses = np.take_along_axis(surprises, labels[:, None], axis=1)[:, 0]
    if label_smoothing:
        losses = (1 - label_smoothing) * losses + label_smoothing * surprises.mean(axis=1)
    return Outcomes(labels, probabilities.argmax(1), probabilities.max(1), ranks, losses)


def join(outcomes: Iterable[Outcomes]) -> Outcomes:
    """Return the outcomes of several batches as one."""
    columns = zip(*(vars(each).values() for each in outcomes), strict=True)
    return Outcomes(*map(np.concatenate, columns))


def measure(outcomes: Outcomes, classes: int) -> dict[str, Any]:
    """Return the numbers of a whole split, as JSON types.

    Args:
        outcomes: of N images, at least one.
        classes: K.

    Returns:
        `images`; `accuracy`, and its `accuracy_interval` [low, high]; `top5` of more than five classes; `loss`;
        `calibration_error`.
    """
    right = outcomes.ranks == 0
    measured = {
        "images": len(outcomes),
        "accuracy": float(right.mean()),
        "accuracy_interval": wilson_interval(int(right.sum()), len(outcomes)),
        "loss": float(outcomes.losses.mean()),
        "calibration_error": calibration_error(outcomes.confidences, right),
    }
    return measured | ({"top5": float((outcomes.ranks < 5).mean())} if classes > 5 else {})


def measure_classes(outcomes: Outcomes, classes: int) -> list[dict[str, Any]]:
    """Return `images`, `precision`, `recall` and `f1` of each of K classes; None where a number has no meaning.

    They are scikit-learn's. A class without images has no recall, and one that is never predicted has no precision.
    """
    columns = precision_recall_fscore_support(
        outcomes.labels, outcomes.predictions, labels=range(classes), zero_division=np.nan
    )
    return [
        {"images": int(images), "precision": _or_none(precision), "recall": _or_none(recall), "f1": _or_none(f1)}
        for precision, recall, f1, images in zip(*columns, strict=True)
    ]


def count_pairs(outcomes: Outcomes, classes: int) -> np.ndarray:
    """Return the confusion matrix, int [K, K]: row = true class, column = predicted class."""
    return confusion_matrix(outcomes.labels, outcomes.predictions, labels=range(classes))


def wilson_interval(right: int, images: int) -> list[float]:
    """Return the 95 % confidence interval of an accuracy, [low, high]: Wilson 1927."""
    interval = binomtest(right, images).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart, on average over the images.

    C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, with 15 bins of equal width,
    each open at its lower end.

    Args:
        confidences: probability of the predicted class, float [N].
        right: whether the prediction is right, bool [N].
    """
    bins = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - confidences, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def _or_none(number: float) -> float | None:
    return None if np.isnan(number) else float(number)
