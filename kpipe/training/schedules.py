"""Learning rate schedules: a float32 function of the step, usable inside a compiled training step.

Each begins with an optional warm-up, in which step s of n (from 0) has the rate peak x (s + 1) / n.
The signatures of `constant`, `multistep` and `cosine` are the options of `kpipe.catalog.training.SCHEDULES`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from kpipe.catalog.training import SCHEDULES
from kpipe.errors import ConfigError, did_you_mean

HALF_AND_THREE_QUARTERS: Mapping[str, Sequence[float]] = {"percent": [50, 75]}


def make_schedule(
    name: str, options: Mapping[str, Any], *, total_steps: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A schedule of the table `kpipe.catalog.training.SCHEDULES`.

    Raises:
        ConfigError: the name is not known, or the warm-up is longer than the training.
    """
    if name not in SCHEDULES:
        raise ConfigError(
            f"training.learning_rate: expected a known schedule, got '{name}'{did_you_mean(name, SCHEDULES)}"
        )
    return SCHEDULES[name].load()(**options, total_steps=total_steps, steps_per_epoch=steps_per_epoch)


def count_steps(unit: str, length: float, *, total_steps: int, steps_per_epoch: int) -> int:
    """A length in epochs, steps or percent of the training, as whole steps: rounded, at least 1."""
    steps_per_unit = {"epochs": steps_per_epoch, "steps": 1, "percent": total_steps / 100}
    return max(1, round(length * steps_per_unit[unit]))


def constant(
    peak: float = 1e-3, warmup: Mapping[str, float] | None = None, *, total_steps: int, steps_per_epoch: int
) -> "Constant":
    """The peak, all along."""
    return Constant(peak, _warmup_steps(warmup, total_steps, steps_per_epoch))


def multistep(
    peak: float = 1e-3,
    warmup: Mapping[str, float] | None = None,
    milestones: Mapping[str, Sequence[float]] = HALF_AND_THREE_QUARTERS,
    factor: float = 0.1,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> "Multistep":
    """Multiplied by `factor` at each milestone; milestones count from the start of the training."""
    [(unit, moments)] = milestones.items()
    boundaries = [
        count_steps(unit, moment, total_steps=total_steps, steps_per_epoch=steps_per_epoch) for moment in moments
    ]
    return Multistep(peak, _warmup_steps(warmup, total_steps, steps_per_epoch), boundaries, factor)


def cosine(
    peak: float = 1e-3,
    warmup: Mapping[str, float] | None = None,
    final: float = 0.0,
    *,
    total_steps: int,
    steps_per_epoch: int,
) -> "Cosine":
    """Half a cosine from the end of the warm-up to the end of the training, down to final x peak."""
    return Cosine(peak, _warmup_steps(warmup, total_steps, steps_per_epoch), total_steps, final)


def _warmup_steps(warmup: Mapping[str, float] | None, total_steps: int, steps_per_epoch: int) -> int:
    if warmup is None:
        return 0
    [(unit, length)] = warmup.items()
    steps = count_steps(unit, length, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if steps > total_steps:
        raise ConfigError(
            f"training.learning_rate.warmup: expected at most the {total_steps} steps of the training, "
            f"got {steps} ({length:g} {unit})"
        )
    return steps


@keras.saving.register_keras_serializable("kpipe")
class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """The peak after the warm-up; the other schedules differ in `after_warmup` alone."""

    def __init__(self, peak: float, warmup_steps: int):
        self.peak = peak
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rising = self.peak * (step + 1) / max(1, self.warmup_steps)
        return ops.where(step < self.warmup_steps, rising, self.after_warmup(step))

    def after_warmup(self, step):
        return ops.full_like(step, self.peak)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "warmup_steps": self.warmup_steps}


@keras.saving.register_keras_serializable("kpipe")
class Multistep(Constant):
    """peak x factor to the power of the number of boundaries at or before the step."""

    def __init__(self, peak: float, warmup_steps: int, boundaries: Sequence[int], factor: float):
        super().__init__(peak, warmup_steps)
        self.boundaries = list(boundaries)
        self.factor = factor

    def after_warmup(self, step):
        passed = ops.cast(step >= ops.convert_to_tensor(self.boundaries, "float32"), "float32")
        return self.peak * ops.power(ops.convert_to_tensor(self.factor, "float32"), ops.sum(passed))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"boundaries": self.boundaries, "factor": self.factor}


@keras.saving.register_keras_serializable("kpipe")
class Cosine(Constant):
    """Loshchilov and Hutter 2017 (SGDR), without restarts."""

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, final: float):
        super().__init__(peak, warmup_steps)
        self.total_steps = total_steps
        self.final = final

    def after_warmup(self, step):
        length = max(1, self.total_steps - self.warmup_steps)
        progress = ops.clip((step - self.warmup_steps) / length, 0.0, 1.0)
        share = 0.5 * (1 + ops.cos(math.pi * progress))
        return self.peak * (self.final + (1 - self.final) * share)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"total_steps": self.total_steps, "final": self.final}
