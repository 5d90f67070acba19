"""The rule that ends a trial before its last epoch: it is worse than the median of the others.

A trial that is stuck at guessing ends too, as any run does with `training.when_stuck: stop`.
"""

from collections.abc import Sequence
from statistics import mean, median

import keras

from kpipe.catalog.search import MedianStopping


class StopBelowMedian(keras.callbacks.Callback):
    """Stop a training whose best epoch so far is worse than the median of the others' running means.

    This is the median stopping rule of Golovin et al. 2017, section 3.2.1.

    Args:
        rule: from which epoch, and after how many other trials, it applies.
        objective: val_accuracy or val_loss.
        curves: for each earlier trial, its objective after each epoch.
        epochs: of the training. After the last one there is nothing left to stop.
    """

    def __init__(self, rule: MedianStopping, objective: str, curves: Sequence[list[float]], epochs: int):
        super().__init__()
        self.rule = rule
        self.objective = objective
        self.sign = 1 if objective == "val_accuracy" else -1
        self.curves = list(curves)
        self.epochs = epochs
        self.scores: list[float] = []

    def on_epoch_end(self, epoch, logs=None):
        self.scores = [*self.scores, float(logs[self.objective])]
        if self._is_below_median(self.scores):
            self.model.stop_training = True

    def has_stopped(self, scores: Sequence[float]) -> bool:
        """Return whether the rule has stopped a training with this objective after each of its epochs."""
        return bool(scores) and self._is_below_median(scores)

    def _is_below_median(self, scores: Sequence[float]) -> bool:
        epoch = len(scores)
        best = max(self.sign * score for score in scores)
        means = [mean(self.sign * value for value in curve[:epoch]) for curve in self.curves if len(curve) >= epoch]
        applies = self.rule.epochs <= epoch < self.epochs and len(means) >= self.rule.trials
        return applies and best < median(means)
