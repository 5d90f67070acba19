"""Optimizers, learning rate schedules and losses by name, and their options."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from kpipe.catalog.rows import (
    Duration,
    Fraction,
    Milestones,
    NonNegative,
    NoOptions,
    OneOf,
    Positive,
    Row,
    Section,
)


class WeightDecay(Section):
    value: NonNegative
    kind: Literal["l2", "decoupled"] = "l2"
    """`l2`: value x weight is added to the gradient (the papers); `decoupled`: the weight shrinks by
    learning rate x value at each step (AdamW). Biases and batch normalization never decay."""


class OptimizerOptions(Section):
    weight_decay: WeightDecay | None = None


class SGDOptions(OptimizerOptions):
    momentum: Fraction = 0.0
    nesterov: bool = False

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.nesterov and not self.momentum:
            yield "nesterov", "needs a momentum above 0"


class AdagradOptions(OptimizerOptions):
    initial_accumulator_value: NonNegative = 0.1
    epsilon: Positive = 1e-7


class RMSpropOptions(OptimizerOptions):
    rho: Fraction = 0.9
    momentum: Fraction = 0.0
    epsilon: Positive = 1e-7
    centered: bool = False


class AdadeltaOptions(OptimizerOptions):
    rho: Fraction = 0.95
    epsilon: Positive = 1e-7


class AdamOptions(OptimizerOptions):
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-7
    amsgrad: bool = False


class AdamWDecay(WeightDecay):
    kind: Literal["l2", "decoupled"] = "decoupled"


class AdamWOptions(AdamOptions):
    weight_decay: AdamWDecay | None = AdamWDecay(value=0.004)


OPTIMIZERS = {
    "sgd": Row("keras.optimizers:SGD", SGDOptions, "stochastic gradient descent, with momentum if given"),
    "adagrad": Row("keras.optimizers:Adagrad", AdagradOptions, "Duchi et al. 2011"),
    "rmsprop": Row("keras.optimizers:RMSprop", RMSpropOptions, "Hinton 2012, lecture 6e"),
    "adadelta": Row("keras.optimizers:Adadelta", AdadeltaOptions, "Zeiler 2012"),
    "adam": Row("keras.optimizers:Adam", AdamOptions, "Kingma and Ba 2015"),
    "adamw": Row("keras.optimizers:AdamW", AdamWOptions, "Adam with decoupled decay, Loshchilov and Hutter 2019"),
}


class ScheduleOptions(Section):
    peak: Positive = 1e-3
    """The highest learning rate, after the warm-up."""
    warmup: Duration | None = None
    """Length of the straight rise from 0 to the peak."""

    def conflicts_with(self, epochs: float, steps_per_epoch: int | None = None) -> Iterator[tuple[str, str]]:
        """Options that cannot work in a training of this length, as (option, message).

        Args:
            epochs: epochs of the whole training.
            steps_per_epoch: steps in one epoch; None before the data is known. A warm-up in steps always fits then.
        """
        if self.warmup is None:
            return
        unit, length = self.warmup.chosen
        total_steps = round(epochs * steps_per_epoch) if steps_per_epoch else math.inf
        most = {"epochs": epochs, "steps": total_steps, "percent": 100}[unit]
        if length > most:
            training = f"{most:,.12g} {unit.removesuffix('s') if most == 1 else unit} of training"
            yield "warmup", f"{length:,.12g} {unit} of warm-up do not fit into {training}"

    @property
    def depends_on_total_steps(self) -> bool:
        """Whether more epochs would change the rates of the first ones."""
        lengths = [value for value in vars(self).values() if isinstance(value, OneOf)]
        return any(length.chosen[0] == "percent" for length in lengths)


class MultistepOptions(ScheduleOptions):
    milestones: Milestones = Milestones(percent=[50, 75])
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Multiplies the rate at each milestone."""


class CosineOptions(ScheduleOptions):
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The rate at the end, as a fraction of the peak."""

    @property
    def depends_on_total_steps(self) -> bool:
        return True


SCHEDULES = {
    "constant": Row("kpipe.training.schedules:Constant", ScheduleOptions, "stays at the peak"),
    "multistep": Row("kpipe.training.schedules:Multistep", MultistepOptions, "falls by a factor at milestones"),
    "cosine": Row("kpipe.training.schedules:Cosine", CosineOptions, "falls along half a cosine to the end"),
}


class EuclideanOptions(Section):
    output: Literal["tanh", "linear"] = "tanh"
    """Function of the logits that is compared with the coded label."""


class MapOptions(Section):
    j: Positive = 1.0
    """Penalty of an image that belongs to none of the K classes; the paper gives no value."""


LOSSES = {
    "cross_entropy": Row("kpipe.training.losses:CrossEntropy", NoOptions, "softmax and -log of the true class"),
    "euclidean": Row("kpipe.training.losses:Euclidean", EuclideanOptions, "half the squared distance to coded labels"),
    "map": Row("kpipe.training.losses:MapCriterion", MapOptions, "maximum a posteriori, LeCun et al. 1998, eq. 9"),
}
