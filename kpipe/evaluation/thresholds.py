"""Precision and recall of each class at many thresholds of its probability.

B batch, K classes, T thresholds.
"""

import numpy as np

NUM_THRESHOLDS = 101
"""T: 0, 0.01, ... 1."""


class Thresholds:
    """Counts how many images of a class, and of the others, reach each threshold, batch by batch.

    Args:
        classes: K.
    """

    def __init__(self, classes: int):
        self._positives = np.zeros((classes, NUM_THRESHOLDS), np.int64)
        self._all = np.zeros((classes, NUM_THRESHOLDS), np.int64)

    def add(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Take in a batch: probabilities float [B, K], labels int [B]."""
        # The last threshold that a probability reaches.
        highest = np.floor(probabilities * (NUM_THRESHOLDS - 1) + 1e-9).astype(int)
        for number in range(len(self._all)):
            self._all[number] += np.bincount(highest[:, number], minlength=NUM_THRESHOLDS)
            self._positives[number] += np.bincount(highest[labels == number, number], minlength=NUM_THRESHOLDS)

    def counts(self, number: int) -> dict[str, np.ndarray]:
        """Return the counts of a class at each threshold, float64 [T], its precision and its recall.

        Precision without any image above the threshold is 1, recall of a class without images 0.
        """
        found = np.cumsum(self._positives[number][::-1])[::-1].astype(float)
        reached = np.cumsum(self._all[number][::-1])[::-1].astype(float)
        positives, images = self._positives[number].sum(), self._all[number].sum()
        wrong = reached - found
        return {
            "true_positive_counts": found,
            "false_positive_counts": wrong,
            "true_negative_counts": images - positives - wrong,
            "false_negative_counts": positives - found,
            "precision": np.divide(found, reached, out=np.ones_like(found), where=reached > 0),
            "recall": found / max(1, positives),
            "num_thresholds": NUM_THRESHOLDS,
        }
