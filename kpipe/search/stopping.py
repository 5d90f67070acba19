"""The rules that end a trial before its last epoch: it is stuck at guessing, or worse than the median of the others."""

import math
from collections.abc import Sequence
from statistics import mean, median

import keras

from kpipe.catalog.search import MedianStopping
from kpipe.config.schema import Experiment
from kpipe.errors import Diverged

_NEAR_GUESSING = 0.02
_MIN_STEPS = 100  # that do not count, where search.stuck_after is not given
_DECIDING_STEPS = 50


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


def loss_of_guessing(experiment: Experiment, classes: int) -> float | None:
    """Return the training loss of a network that gives all classes the same probability.

    Args:
        experiment: its network and its loss.
        classes: K.

    Returns:
        ln K for each classifier, times its weight in the loss. None where the loss is not a cross entropy.
    """
    loss, network = experiment.training.loss, experiment.model
    if (loss.name if loss else network.default_loss) != "cross_entropy":
        return None
    return math.log(classes) * (1 + network.auxiliary_loss_weight)


class StopIfStuck(keras.callbacks.Callback):
    """End a training that is stuck at the loss of guessing.

    This is decided once, after step `stuck_after` + 50, by the mean training loss of the steps `stuck_after` + 1 to
    `stuck_after` + 50. Every step counts the same, whether it begins an epoch or a log line. A run that was killed
    remembers the sums in its checkpoint, so that it is decided as if it had not been.

    Args:
        guessing: what `loss_of_guessing` returned, not None.
        classes: K, for the message.
        steps_per_epoch: of the training.
        stuck_after: steps of the training that do not count. Default: one epoch, and at least 100 steps.

    Attributes:
        callback_steps: steps after which it must be called.
    """

    def __init__(self, guessing: float, *, classes: int, steps_per_epoch: int, stuck_after: int | None = None):
        super().__init__()
        self.guessing = guessing
        self.classes = classes
        self.steps_per_epoch = steps_per_epoch
        first = stuck_after or max(_MIN_STEPS, steps_per_epoch)
        self.callback_steps = (first, first + _DECIDING_STEPS)
        self.epoch_begin = 0  # steps before this epoch
        self.earlier_epochs = 0.0  # sum of the losses of these steps
        self.uncounted = 0.0  # sum of the losses of the steps that do not count

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_begin = epoch * self.steps_per_epoch

    def on_train_batch_end(self, batch, logs=None):
        step = self.epoch_begin + batch + 1
        total = self.earlier_epochs + logs["loss"] * (batch + 1)
        first, last = self.callback_steps
        if step == first:
            self.uncounted = total
        if step == last:
            self._decide((total - self.uncounted) / _DECIDING_STEPS)

    def on_epoch_end(self, epoch, logs=None):
        self.earlier_epochs += logs["loss"] * self.steps_per_epoch

    def _decide(self, loss: float) -> None:
        if abs(loss - self.guessing) > _NEAR_GUESSING * self.guessing:
            return
        first, last = self.callback_steps
        raise Diverged(
            f"stuck at guessing; the mean training loss of the steps {first + 1:,} to {last:,} is {loss:.3f}, within "
            f"{_NEAR_GUESSING:.0%} of {self.guessing:.3f}, that of guessing among {self.classes} classes"
        )
