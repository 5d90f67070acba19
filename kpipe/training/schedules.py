"""Learning rate schedules: a float32 function of the step, usable inside a compiled training step.

Steps are counted from 0, from the start of the training: a warm-up shifts no milestone. The options are those of
`kpipe.catalog.training.SCHEDULES`.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import ops

from kpipe.catalog.rows import OneOf, TrainingLength, check_options
from kpipe.catalog.training import (
    SCHEDULES,
    CosineOptions,
    CosineRestartsOptions,
    ExponentialOptions,
    InverseTimeOptions,
    MultistepOptions,
    OneCycleOptions,
    PeakOptions,
    PlateauOptions,
    PolynomialOptions,
    ScheduleOptions,
    StepOptions,
)
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean
from kpipe.training.durations import steps_of

_WHERE = "training.learning_rate"


def make_schedule(
    name: str, options: Mapping[str, Any], *, total_steps: int, steps_per_epoch: int, batch_size: int | None = None
) -> "Schedule":
    """Return a schedule of the table `kpipe.catalog.training.SCHEDULES`.

    Args:
        name: a name of the table.
        options: its options, as in an experiment file.
        total_steps, steps_per_epoch, batch_size: as for `Schedule`.

    Raises:
        ConfigError: the name is not known, or as `Schedule`.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"{_WHERE}: expected a known schedule, got {show(name)}{did_you_mean(name, SCHEDULES)}")
    return SCHEDULES[name].load()(
        **options, total_steps=total_steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size
    )


def rate_of_step(optimizer: keras.optimizers.Optimizer, step):
    """Return the learning rate that an optimizer applies at a step, a tensor float32 [].

    Args:
        optimizer: whose learning rate is a number or a schedule.
        step: counted from 1, an integer or a tensor.
    """
    schedule = _schedule_of(optimizer)
    return ops.convert_to_tensor(optimizer.learning_rate) if schedule is None else schedule(step - 1)


def rate_of_last_step(optimizer: keras.optimizers.Optimizer):
    """Return the learning rate of the last step that was done, a tensor float32 []."""
    done = ops.convert_to_tensor(optimizer.iterations)
    return rate_of_step(optimizer, ops.maximum(done, 1))  # 0: float16 has skipped all steps so far


def _schedule_of(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.schedules.LearningRateSchedule | None:
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # below loss scaling
    rate = optimizer._learning_rate  # the property `learning_rate` is the rate of the step to come
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate whose course after the warm-up is the child's `after_warmup`.

    Step s of n warm-up steps has the rate r x (s + 1) / n, where r is the rate of the first step after the warm-up.

    Args:
        total_steps: steps of the whole training.
        steps_per_epoch: steps in one epoch.
        batch_size: images in a step; needed for `per_images`, and for lengths in images.
        options: of the class `options_type`, as in an experiment file: `peak=0.1, warmup={"epochs": 5}`.

    Raises:
        ConfigError: an option is out of range, or a length does not fit into the training.
    """

    options_type: ClassVar[type[PeakOptions]] = ScheduleOptions

    def __init__(self, *, total_steps: int, steps_per_epoch: int, batch_size: int | None = None, **options: Any):
        self.options = checked = check_options(_WHERE, self.options_type, **options)
        self.total_steps, self.steps_per_epoch, self.batch_size = total_steps, steps_per_epoch, batch_size
        training = TrainingLength(total_steps / steps_per_epoch, steps_per_epoch, batch_size)
        for option, message in checked.conflicts_with(training):
            raise ConfigError(f"{_WHERE}.{option}: {message}")
        if checked.per_images and not batch_size:
            raise ConfigError(f"{_WHERE}.per_images: expected a batch_size beside it, got none")
        self.peak = checked.peak * (batch_size / checked.per_images if checked.per_images else 1)
        self.warmup_steps = self.steps_of(checked.warmup) if checked.warmup else 0

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = self.after_warmup(ops.maximum(step, self.warmup_steps))
        return ops.where(step < self.warmup_steps, rate * ((step + 1) / max(1, self.warmup_steps)), rate)

    def after_warmup(self, step):
        """Return the rate at a step after the warm-up.

        Args:
            step: float32 [], counted from the start of the training, at least `warmup_steps`.

        Returns:
            float32 [].
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        lengths = {name: getattr(self, name) for name in ("total_steps", "steps_per_epoch", "batch_size")}
        return self.options.model_dump() | lengths

    def steps_of(self, duration: Mapping[str, float] | OneOf) -> int:
        """Return a duration of this training in steps."""
        return steps_of(
            duration,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            batch_size=self.batch_size,
        )

    def progress(self, step, start: float, end: float):
        """Return how far a step is on the way from one step to another: float32 [], from 0 to 1."""
        return ops.clip((step - start) / ops.maximum(1.0, end - start), 0.0, 1.0)


@keras.saving.register_keras_serializable("kpipe")
class Constant(Schedule):
    """Learning rate that stays at its peak."""

    def after_warmup(self, step):
        return ops.full_like(step, self.peak)


@keras.saving.register_keras_serializable("kpipe")
class Step(Schedule):
    """Learning rate that is multiplied by `factor` each time that `every` has passed."""

    options_type = StepOptions

    def after_warmup(self, step):
        return self.peak * _power(self.options.factor, ops.floor(step / self.steps_of(self.options.every)))


@keras.saving.register_keras_serializable("kpipe")
class Multistep(Schedule):
    """Learning rate that is multiplied by `factor` at each milestone."""

    options_type = MultistepOptions

    def after_warmup(self, step):
        unit, moments = self.options.milestones.chosen
        boundaries = [self.steps_of({unit: moment}) for moment in moments]
        return self.peak * _power(self.options.factor, _count_passed(step, boundaries))


@keras.saving.register_keras_serializable("kpipe")
class Exponential(Schedule):
    """Learning rate that falls smoothly, by `factor` over each `every`.

    `keras.optimizers.schedules.ExponentialDecay` with `decay_steps` and `decay_rate`.
    """

    options_type = ExponentialOptions

    def after_warmup(self, step):
        return self.peak * _power(self.options.factor, step / self.steps_of(self.options.every))


@keras.saving.register_keras_serializable("kpipe")
class InverseTime(Schedule):
    """Learning rate peak / (1 + decay_rate x t)^power, where t counts how often `every` has passed.

    `keras.optimizers.schedules.InverseTimeDecay` where the power is 1.
    """

    options_type = InverseTimeOptions

    def after_warmup(self, step):
        time = step / self.steps_of(self.options.every)
        return self.peak * ops.power(1 + self.options.decay_rate * time, -self.options.power)


@keras.saving.register_keras_serializable("kpipe")
class Polynomial(Schedule):
    """Learning rate that falls from the warm-up to the end of the training as a power of what is left."""

    options_type = PolynomialOptions

    def after_warmup(self, step):
        left = 1 - self.progress(step, self.warmup_steps, self.total_steps)
        return self.peak * _between(self.options.final, ops.power(left, self.options.power))


@keras.saving.register_keras_serializable("kpipe")
class Cosine(Schedule):
    """Learning rate that falls along half a cosine from the warm-up to the end of the training.

    Loshchilov and Hutter 2017 (SGDR), equation 5, without restarts.
    """

    options_type = CosineOptions

    def after_warmup(self, step):
        progress = self.progress(step, self.warmup_steps, self.total_steps)
        return self.peak * _between(self.options.final, _half_cosine(progress))


@keras.saving.register_keras_serializable("kpipe")
class CosineRestarts(Schedule):
    """Learning rate that falls along half a cosine in each of several cycles.

    Loshchilov and Hutter 2017 (SGDR), equation 5; `growth` is their T_mult. The first cycle includes the warm-up.
    """

    options_type = CosineRestartsOptions

    def after_warmup(self, step):
        boundaries = ops.convert_to_tensor(self._boundaries(), "float32")
        cycle = _count_passed(step, boundaries[1:-1])
        place = ops.cast(cycle, "int32")
        start, end = ops.take(boundaries, place), ops.take(boundaries, place + 1)
        falling = _half_cosine(self.progress(step, start, end))
        return self.peak * _between(self.options.final, _power(self.options.factor, cycle) * falling)

    def _boundaries(self) -> list[float]:
        """Return the step at which each cycle begins to fall, and that at which the last one ends."""
        length = self.steps_of(self.options.first)
        boundaries = [self.warmup_steps, length]
        while boundaries[-1] < self.total_steps:
            length *= self.options.growth
            boundaries.append(boundaries[-1] + length)
        return boundaries


@keras.saving.register_keras_serializable("kpipe")
class OneCycle(Schedule):
    """Learning rate that rises along half a cosine to its peak, and falls along another one to the end.

    Smith and Topin 2017, with the shape that `torch.optim.lr_scheduler.OneCycleLR` made common. The momentum stays.
    """

    options_type = OneCycleOptions

    def after_warmup(self, step):
        top = self.steps_of(self.options.rise)
        rising = _between(self.options.start, 1 - _half_cosine(self.progress(step, 0, top)))
        falling = _between(self.options.final, _half_cosine(self.progress(step, top, self.total_steps)))
        return self.peak * ops.where(step < top, rising, falling)


@keras.saving.register_keras_serializable("kpipe")
class Plateau(Schedule):
    """Learning rate that stays at its peak, until `ReduceOnPlateau` lowers it.

    Attributes:
        multiplier: variable by which the rate is multiplied, 1 at the start.
    """

    options_type = PlateauOptions

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.multiplier = keras.Variable(1.0, dtype="float32", trainable=False, aggregation="only_first_replica")

    def after_warmup(self, step):
        return self.peak * ops.convert_to_tensor(self.multiplier)


class ReduceOnPlateau(keras.callbacks.Callback):
    """Lowers the rate of a `Plateau` schedule when a metric no longer improves.

    It decides as `keras.callbacks.ReduceLROnPlateau`, which sets the optimizer's rate and thus takes no schedule. What
    it remembers are plain attributes, which a checkpoint holds. The schedule's variable follows them before each step,
    so a resumed training needs nothing else.

    Args:
        monitor: name of the metric among the logs of an epoch; one with `loss` in its name is to fall.
    """

    def __init__(self, monitor: str):
        super().__init__()
        self.monitor = monitor
        self.best: float | None = None
        self.wait = 0
        self.cooldown_left = 0
        self.multiplier = 1.0

    @property
    def schedule(self) -> Plateau:
        return _schedule_of(self.model.optimizer)

    def on_train_batch_begin(self, batch, logs=None):
        self.schedule.multiplier.assign(self.multiplier)

    def on_test_begin(self, logs=None):
        self.schedule.multiplier.assign(self.multiplier)  # resumed before a validation: its epoch's rate is logged

    def on_epoch_end(self, epoch, logs=None):
        options = self.schedule.options
        score = -logs[self.monitor] if "loss" in self.monitor else logs[self.monitor]
        if self.cooldown_left:
            self.cooldown_left -= 1
            self.wait = 0
        if self.best is None or score - options.min_delta > self.best:
            self.best, self.wait = score, 0
        elif not self.cooldown_left:
            self.wait += 1
            least = options.min_rate / self.schedule.peak
            if self.wait >= options.patience and self.multiplier > least:
                self.multiplier = max(self.multiplier * options.factor, least)
                self.cooldown_left, self.wait = options.cooldown, 0


def _power(base: float, exponent):
    return ops.power(ops.convert_to_tensor(base, "float32"), exponent)


def _count_passed(step, moments: list[float]):
    """Return how many of the moments have come: float32 []."""
    return ops.sum(ops.cast(step >= ops.convert_to_tensor(moments, "float32"), "float32"))


def _half_cosine(progress):
    """Return 1 at progress 0, 0 at progress 1, and half a cosine between them."""
    return 0.5 * (1 + ops.cos(math.pi * progress))


def _between(least: float, fraction):
    """Return what lies between the least and 1: the least at fraction 0, 1 at fraction 1."""
    return least + (1 - least) * fraction
