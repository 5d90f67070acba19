"""When a trial ends before its time: it is stuck at chance, or worse than the median of the others."""

from collections.abc import Sequence
from statistics import mean, median

import keras

from kpipe.catalog.search import MedianStopping

_NEAR_CHANCE = 0.02


_LEAST_STEPS = 100  # before a trial counts as stuck, where stuck_after is not given


class StopBelowMedian(keras.callbacks.Callback):
    """Ends a training whose best epoch so far is worse than the median of the others' running means (the median
    stopping rule of Golovin et al. 2017, section 3.2.1).

    Args:
        rule: from when on it is asked.
        objective: val_accuracy or val_loss.
        curves: the objective of each epoch of the trials before.
        epochs: of the training; at the end of the last there is nothing to stop.
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
        if self._condemns(self.scores):
            self.model.stop_training = True

    def has_stopped(self, scores: Sequence[float]) -> bool:
        """Whether it has ended the training with this objective at each of its epochs."""
        return bool(scores) and self._condemns(scores)

    def _condemns(self, scores: Sequence[float]) -> bool:
        number = len(scores)
        best = max(self.sign * score for score in scores)
        means = [mean(self.sign * value for value in curve[:number]) for curve in self.curves if len(curve) >= number]
        is_asked = self.rule.epochs <= number < self.epochs and len(means) >= self.rule.trials
        return is_asked and best < median(means)
