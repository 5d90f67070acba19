"""The rules that end a trial before its last epoch: it is stuck at guessing, or worse than the median of the others."""

import math
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

import keras

from kpipe.catalog.search import MedianStopping
from kpipe.config.schema import Experiment
from kpipe.errors import Diverged

_NEAR_GUESSING = 0.02
_MIN_STEPS = 100  # before a trial counts as stuck, where search.stuck_after is not given


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


def make_guessing_watch(
    experiment: Experiment, *, classes: int, steps_per_epoch: int, stuck_after: int | None = None
) -> Callable[[dict[str, Any]], None]:
    """Make a function that ends a training which is stuck at the loss of guessing.

    Args:
        experiment: what is trained.
        classes: K.
        steps_per_epoch: of the training.
        stuck_after: steps from which a training counts as stuck. Default: one epoch, and at least 100 steps.

    Returns:
        A function of a record of metrics.jsonl that raises Diverged.
    """
    guessing = loss_of_guessing(experiment, classes)
    first_step = stuck_after or max(_MIN_STEPS, steps_per_epoch)

    def watch(record: dict[str, Any]) -> None:
        # The mean over an epoch passes this number on its way down, so only the means over a few steps count.
        is_mean_of_steps = (record["split"], record["span"]) == ("train", "steps")
        if guessing is None or not is_mean_of_steps or record["step"] < first_step:
            return
        if abs(record["loss"] - guessing) <= _NEAR_GUESSING * guessing:
            raise Diverged(
                f"stuck: the training loss is {record['loss']:.3f} after {record['step']:,} steps, within "
                f"{_NEAR_GUESSING:.0%} of {guessing:.3f}, that of guessing among {classes} classes"
            )

    return watch
