"""Optimizers, learning rate schedules and losses by name, and their options."""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from kpipe.catalog import papers
from kpipe.catalog.rows import (
    Count,
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
from kpipe.catalog.wording import show


class WeightDecay(Section):
    value: NonNegative
    """How strongly weights are drawn to zero, such as 5e-4."""
    kind: Literal["l2", "decoupled"] = "l2"
    """`l2`: value x weight is added to the gradient (the papers); `decoupled`: the weight shrinks by
    learning rate x value at each step (AdamW). Biases and batch normalization never decay."""


class OptimizerOptions(Section):
    decay_kind: ClassVar[Literal["l2", "decoupled"]] = "l2"
    """Kind of the weight decay where a layer has one and the optimizer has none."""

    weight_decay: WeightDecay | None = None
    """How the weights decay. Default: not at all."""


class SGDOptions(OptimizerOptions):
    momentum: Fraction = 0.0
    """Fraction of the last update that is added to the next one."""
    nesterov: bool = False
    """Whether the gradient is taken where the momentum leads (Nesterov's momentum)."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.nesterov and not self.momentum:
            yield "nesterov", "needs a momentum above 0"


class AdagradOptions(OptimizerOptions):
    initial_accumulator_value: NonNegative = 0.1
    """Sum of squared gradients with which each weight starts."""
    epsilon: Positive = 1e-7
    """Small number that is added to the denominator."""


class RMSpropOptions(OptimizerOptions):
    rho: Fraction = 0.9
    """Decay of the running mean of squared gradients."""
    momentum: Fraction = 0.0
    """Fraction of the last update that is added to the next one."""
    epsilon: Positive = 1e-7
    """Small number that is added to the denominator."""
    centered: bool = False
    """Whether gradients are divided by their standard deviation instead of their root mean square."""


class AdadeltaOptions(OptimizerOptions):
    rho: Fraction = 0.95
    """Decay of the running means of squared gradients and squared updates."""
    epsilon: Positive = 1e-7
    """Small number that is added to both means."""


class AdamOptions(OptimizerOptions):
    beta_1: Fraction = 0.9
    """Decay of the running mean of gradients."""
    beta_2: Fraction = 0.999
    """Decay of the running mean of squared gradients."""
    epsilon: Positive = 1e-7
    """Small number that is added to the denominator."""
    amsgrad: bool = False
    """Whether the largest mean of squared gradients so far is used (Reddi et al. 2018)."""


class NadamOptions(OptimizerOptions):
    beta_1: Fraction = 0.9
    """Decay of the running mean of gradients."""
    beta_2: Fraction = 0.999
    """Decay of the running mean of squared gradients."""
    epsilon: Positive = 1e-7
    """Small number that is added to the denominator."""


class DecoupledDecay(WeightDecay):
    kind: Literal["l2", "decoupled"] = Field("decoupled", description=WeightDecay.model_fields["kind"].description)


class AdamWOptions(AdamOptions):
    decay_kind = "decoupled"

    weight_decay: DecoupledDecay | None = DecoupledDecay(value=0.004)
    """How the weights decay."""


class LionOptions(OptimizerOptions):
    decay_kind = "decoupled"

    beta_1: Fraction = 0.9
    """Fraction of the running mean, beside the gradient, in an update."""
    beta_2: Fraction = 0.99
    """Decay of the running mean of gradients."""
    weight_decay: DecoupledDecay | None = None
    """How the weights decay. Default: not at all."""


class MuonOptions(OptimizerOptions):
    decay_kind = "decoupled"

    momentum: Fraction = 0.95
    """Decay of the running mean of gradients, for the kernels of dense layers."""
    nesterov: bool = True
    """Whether the gradient is taken where the momentum leads (Nesterov's momentum)."""
    ns_steps: Count = 5
    """Newton-Schulz iterations that make an update orthogonal."""
    rms_rate: Positive = 0.2
    """Root mean square of an update, in units of the learning rate."""
    adam_lr_ratio: Positive = 1.0
    """Factor of the learning rate for all other variables, which AdamW updates."""
    adam_beta_1: Fraction = 0.9
    """Decay of AdamW's running mean of gradients."""
    adam_beta_2: Fraction = 0.999
    """Decay of AdamW's running mean of squared gradients."""
    epsilon: Positive = 1e-7
    """Small number that is added to AdamW's denominator."""
    weight_decay: DecoupledDecay | None = DecoupledDecay(value=0.004)
    """How the weights decay."""


class Clip(OneOf):
    """Largest gradient."""

    norm: Positive | None = None
    """Largest norm of the gradient of each variable."""
    global_norm: Positive | None = None
    """Largest norm of all gradients together."""
    value: Positive | None = None
    """Largest absolute value of each number of a gradient."""


OPTIMIZERS = {
    "sgd": Row(
        "keras.optimizers:SGD",
        SGDOptions,
        "stochastic gradient descent, with momentum if given",
        paper=papers.MOMENTUM,
    ),
    "adagrad": Row(
        "keras.optimizers:Adagrad",
        AdagradOptions,
        "smaller steps for weights with large gradients so far, Duchi et al. 2011",
        paper=papers.ADAGRAD,
    ),
    "rmsprop": Row(
        "keras.optimizers:RMSprop",
        RMSpropOptions,
        "as Adagrad, but old gradients are forgotten, Hinton 2012",
        paper=papers.RMSPROP,
    ),
    "adadelta": Row(
        "keras.optimizers:Adadelta",
        AdadeltaOptions,
        "as RMSprop, scaled by the size of recent updates, Zeiler 2012",
        paper=papers.ADADELTA,
    ),
    "adam": Row(
        "keras.optimizers:Adam",
        AdamOptions,
        "running means of gradients and their squares, Kingma and Ba 2015",
        paper=papers.ADAM,
    ),
    "adamw": Row(
        "keras.optimizers:AdamW",
        AdamWOptions,
        "Adam with decoupled decay, Loshchilov and Hutter 2019",
        paper=papers.ADAMW,
    ),
    "nadam": Row(
        "keras.optimizers:Nadam",
        NadamOptions,
        "Adam with Nesterov's momentum, Dozat 2016",
        paper=papers.NADAM,
    ),
    "lion": Row(
        "keras.optimizers:Lion",
        LionOptions,
        "the sign of a running mean of gradients, Chen et al. 2023",
        paper=papers.LION,
    ),
    "muon": Row(
        "keras.optimizers:Muon",
        MuonOptions,
        "orthogonal updates of dense kernels, AdamW for the rest, Jordan et al. 2024",
        paper=papers.MUON,
    ),
}


class Average(Section):
    """Exponential moving average of the weights, which is validated and saved beside them."""

    decay: Fraction = 0.999
    """Fraction of the average that stays at each step."""
    warmup: bool = True
    """Whether the decay rises as (1 + t) / (10 + t), t being the steps so far, until it reaches `decay`."""


def _form_of_frozen(value: Any) -> str:
    """Return the tag of the union. Of a mapping it is the name of its class, by which a message finds its keys."""
    return "Duration" if isinstance(value, dict | Duration) else "name"


Frozen = Annotated[
    Annotated[Literal["none", "all"], Tag("name")] | Annotated[Duration, Tag("Duration")],
    Discriminator(_form_of_frozen),
]


class ReusedLayers(Section):
    """How the layers are trained whose weights come from `model.init_from`."""

    rate: Positive = 1.0
    """Factor of the learning rate."""
    frozen: Frozen = "none"
    """How long the layers keep their weights: `all` of the training, `none` of it, or a length such as `{epochs: 3}`.
    Frozen batch normalization uses its running statistics."""


class LayerOptions(Section):
    """How some layers are trained."""

    match: str
    """Regular expression for the whole name of a layer. The first entry that matches a layer counts."""
    rate: Positive | None = None
    """Factor of the learning rate. Default: 1, or that of `reused_layers`."""
    weight_decay: NonNegative | None = None
    """Value of the weight decay. Default: the optimizer's."""
    frozen: Frozen | None = None
    """How long the layers keep their weights, as in `reused_layers`. Default: `none`, or that of `reused_layers`."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        try:
            re.compile(self.match)
        except re.error as error:
            yield "match", f"expected a regular expression, got {show(self.match)}: {error}"


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
    """Moments at which the rate falls."""
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
    "cosine": Row(
        "kpipe.training.schedules:Cosine",
        CosineOptions,
        "falls along half a cosine to the end",
        paper=papers.COSINE,
    ),
}


class EuclideanOptions(Section):
    output: Literal["tanh", "linear"] = "tanh"
    """Function of the logits that is compared with the coded label."""


class MapOptions(Section):
    j: Positive = 1.0
    """Penalty of an image that belongs to none of the K classes; the paper gives no value."""


LOSSES = {
    "cross_entropy": Row("kpipe.training.losses:CrossEntropy", NoOptions, "softmax and -log of the true class"),
    "euclidean": Row(
        "kpipe.training.losses:Euclidean",
        EuclideanOptions,
        "half the squared distance to coded labels",
    ),
    "map": Row(
        "kpipe.training.losses:MapCriterion",
        MapOptions,
        "maximum a posteriori, LeCun et al. 1998, eq. 9",
        paper=f"{papers.LENET}, section II.C",
    ),
}
