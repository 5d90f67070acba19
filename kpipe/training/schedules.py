"""Learning rate schedules: a float32 function of the step, usable inside a compiled training step.

The arguments of `Constant`, `Multistep` and `Cosine` before the `*` are the options of
`kpipe.catalog.training.SCHEDULES`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from kpipe.catalog.rows import OneOf, check_options
from kpipe.catalog.training import SCHEDULES, CosineOptions, MultistepOptions, ScheduleOptions
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean
from kpipe.training.durations import steps_of

_WHERE = "training.learning_rate"


def make_schedule(name: str, options: Mapping[str, Any], *, total_steps: int, steps_per_epoch: int) -> "Schedule":
    """Return a schedule of the table `kpipe.catalog.training.SCHEDULES`.

    Args:
        name: a name of the table.
        options: its options, as in an experiment file.
        total_steps: steps of the whole training.
        steps_per_epoch: steps in one epoch.

    Raises:
        ConfigError: the name is not known, an option is out of range, or the warm-up is longer than the training.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"{_WHERE}: expected a known schedule, got {show(name)}{did_you_mean(name, SCHEDULES)}")
    return SCHEDULES[name].load()(**options, total_steps=total_steps, steps_per_epoch=steps_per_epoch)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that rises in a straight line to its peak; what follows is the child's `after_warmup`.

    Step s of n warm-up steps, counted from 0, has the rate peak x (s + 1) / n.

    Args:
        options: checked options.
        total_steps: steps of the whole training.
        steps_per_epoch: steps in one epoch.

    Raises:
        ConfigError: the warm-up is longer than the training.
    """

    def __init__(self, options: ScheduleOptions, *, total_steps: int, steps_per_epoch: int):
        for option, message in options.conflicts_with(total_steps / steps_per_epoch, steps_per_epoch):
            raise ConfigError(f"{_WHERE}.{option}: {message}")
        self.options = options
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.peak = options.peak
        self.warmup_steps = self.steps_of(options.warmup) if options.warmup else 0

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rising = self.peak * (step + 1) / max(1, self.warmup_steps)
        return ops.where(step < self.warmup_steps, rising, self.after_warmup(step))

    def after_warmup(self, step):
        """Return the rate at a step after the warm-up.

        Args:
            step: float32 [], counted from the start of the training.

        Returns:
            float32 []. It is computed during the warm-up, too, and not used then.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        lengths = {"total_steps": self.total_steps, "steps_per_epoch": self.steps_per_epoch}
        return self.options.model_dump() | lengths

    def steps_of(self, duration: Mapping[str, float] | OneOf) -> int:
        """Return a duration of this training in steps."""
        return steps_of(duration, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps)


@keras.saving.register_keras_serializable("kpipe")
class Constant(Schedule):
    """Learning rate that stays at its peak.

    Args:
        peak: the rate after the warm-up.
        warmup: its length, such as `{"epochs": 5}`; None for no warm-up.
        total_steps: steps of the whole training.
        steps_per_epoch: steps in one epoch.

    Raises:
        ConfigError: an option is out of range, or the warm-up is longer than the training.
    """

    def __init__(
        self,
        peak: float = 1e-3,
        warmup: Mapping[str, float] | None = None,
        *,
        total_steps: int,
        steps_per_epoch: int,
    ):
        options = check_options(_WHERE, ScheduleOptions, peak=peak, warmup=warmup)
        super().__init__(options, total_steps=total_steps, steps_per_epoch=steps_per_epoch)

    def after_warmup(self, step):
        return ops.full_like(step, self.peak)


@keras.saving.register_keras_serializable("kpipe")
class Multistep(Schedule):
    """Learning rate that is multiplied by `factor` at each milestone.

    Args:
        peak, warmup, total_steps, steps_per_epoch: as for `Constant`.
        milestones: moments counted from the start of the training, such as `{"epochs": [30, 60]}`.
        factor: above 0 and below 1.

    Raises:
        ConfigError: as for `Constant`.
    """

    def __init__(
        self,
        peak: float = 1e-3,
        warmup: Mapping[str, float] | None = None,
        milestones: Mapping[str, Sequence[float]] = {"percent": [50, 75]},
        factor: float = 0.1,
        *,
        total_steps: int,
        steps_per_epoch: int,
    ):
        options = check_options(
            _WHERE, MultistepOptions, peak=peak, warmup=warmup, milestones=milestones, factor=factor
        )
        super().__init__(options, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        unit, moments = options.milestones.chosen
        self.boundaries = [self.steps_of({unit: moment}) for moment in moments]
        self.factor = options.factor

    def after_warmup(self, step):
        passed = ops.cast(step >= ops.convert_to_tensor(self.boundaries, "float32"), "float32")
        return self.peak * ops.power(ops.convert_to_tensor(self.factor, "float32"), ops.sum(passed))


@keras.saving.register_keras_serializable("kpipe")
class Cosine(Schedule):
    """Learning rate that falls along half a cosine to the end of the training.

    Loshchilov and Hutter 2017 (SGDR), equation 5, without restarts.

    Args:
        peak, warmup, total_steps, steps_per_epoch: as for `Constant`.
        final: the rate at the end, as a fraction of the peak in [0, 1].

    Raises:
        ConfigError: as for `Constant`.
    """

    def __init__(
        self,
        peak: float = 1e-3,
        warmup: Mapping[str, float] | None = None,
        final: float = 0.0,
        *,
        total_steps: int,
        steps_per_epoch: int,
    ):
        options = check_options(_WHERE, CosineOptions, peak=peak, warmup=warmup, final=final)
        super().__init__(options, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        self.final = options.final

    def after_warmup(self, step):
        length = max(1, self.total_steps - self.warmup_steps)
        progress = ops.clip((step - self.warmup_steps) / length, 0.0, 1.0)
        fraction = 0.5 * (1 + ops.cos(math.pi * progress))
        return self.peak * (self.final + (1 - self.final) * fraction)
