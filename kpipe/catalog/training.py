"""Optimizers, learning rate schedules and losses by name, and their options."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from kpipe.catalog import papers
from kpipe.catalog.rows import (
    ClosedFraction,
    Count,
    Duration,
    Fraction,
    Milestones,
    NonNegative,
    OneOf,
    Positive,
    Row,
    Section,
    TrainingLength,
    describe_length,
    whole_number,
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
    """Small number that is added to the sum of squares, inside the root."""


class RMSpropOptions(OptimizerOptions):
    rho: Fraction = 0.9
    """Decay of the running mean of squared gradients."""
    momentum: Fraction = 0.0
    """Fraction of the last update that is added to the next one."""
    epsilon: Positive = 1e-7
    """Small number that is added to the mean square, inside the root."""
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
        "kpipe.training.fused:SGD",
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
        "kpipe.training.fused:Adam",
        AdamOptions,
        "running means of gradients and their squares, Kingma and Ba 2015",
        paper=papers.ADAM,
    ),
    "adamw": Row(
        "kpipe.training.fused:AdamW",
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


_FROZEN_FOR_GOOD = "means nothing for layers that keep their weights (frozen: all)"


class ReusedLayers(Section):
    """How the layers are trained whose weights come from `model.init_from`."""

    rate: Positive = 1.0
    """Factor of the learning rate."""
    frozen: Frozen = "none"
    """How long the layers keep their weights: `all` of the training, `none` of it, or a length such as `{epochs: 3}`.
    Frozen batch normalization uses its running statistics."""

    def inapplicable_options(self) -> Iterator[tuple[str, str]]:
        if self.frozen == "all" and self.rate != 1:
            yield "rate", _FROZEN_FOR_GOOD


class LayerOptions(Section):
    """How some layers are trained."""

    match: str
    """Regular expression for the whole name of a layer. The first entry that matches a layer counts."""
    rate: Positive | None = None
    """Factor of the learning rate. Default: 1, or that of `reused_layers`."""
    weight_decay: NonNegative | None = None
    """Value of the weight decay. Default: the optimizer's. Its kind is that of the optimizer's `weight_decay`, and
    where there is none, `l2`, or `decoupled` for adamw, lion and muon."""
    frozen: Frozen | None = None
    """How long the layers keep their weights, as in `reused_layers`. Default: `none`, or that of `reused_layers`."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        try:
            re.compile(self.match)
        except re.error as error:
            yield "match", f"expected a regular expression, got {show(self.match)}: {error}"
        if self.rate is self.weight_decay is self.frozen is None:
            yield "match", "expected rate, weight_decay or frozen beside it; alone it changes nothing"
        yield from self.inapplicable_options()

    def inapplicable_options(self) -> Iterator[tuple[str, str]]:
        for option in ("rate", "weight_decay"):
            if self.frozen == "all" and getattr(self, option) is not None:
                yield option, _FROZEN_FOR_GOOD


Factor = Annotated[float, Field(gt=0, lt=1)]


class PeakOptions(Section):
    """Options of every schedule."""

    peak: Positive = 1e-3
    """The highest learning rate."""
    per_images: Count | None = None
    """Batch size for which the peak is meant: it is multiplied by `data.batch_size` / per_images, the linear scaling
    rule of Goyal et al. 2017. Default: the peak is the same for every batch size."""

    def conflicts_with(self, training: TrainingLength) -> Iterator[tuple[str, str]]:
        """Yield options that cannot work in a training of this length, as (option, message).

        A length in steps or images always fits before the data are known.
        """
        yield from ()

    @property
    def depends_on_total_steps(self) -> bool:
        """Whether more epochs would change the rates of the first ones."""
        lengths = [value for value in vars(self).values() if isinstance(value, OneOf)]
        return any(length.chosen[0] == "percent" for length in lengths)


class ScheduleOptions(PeakOptions):
    warmup: Duration | None = None
    """Length of the straight rise from 0 to the rate at its end. Everything else counts from the start of training."""

    def conflicts_with(self, training: TrainingLength) -> Iterator[tuple[str, str]]:
        if self.warmup:
            yield from _too_long(self.warmup, training, "warmup", "warm-up")


class StepOptions(ScheduleOptions):
    every: Duration = Duration(percent=30)
    """Length of training after which the rate falls, again and again."""
    factor: Factor = 0.1
    """Multiplies the rate each time."""


class MultistepOptions(ScheduleOptions):
    milestones: Milestones = Milestones(percent=[50, 75])
    """Moments at which the rate falls. One after the end of the training is never reached."""
    factor: Factor = 0.1
    """Multiplies the rate at each milestone."""


class ExponentialOptions(ScheduleOptions):
    every: Duration = Duration(percent=50)
    """Length of training over which the rate falls to `factor` times what it was."""
    factor: Factor = 0.1
    """Rate after each such length, as a fraction of the rate before it."""


class InverseTimeOptions(ScheduleOptions):
    every: Duration = Duration(percent=10)
    """Length of training that counts as one unit of time t."""
    decay_rate: Positive = 1.0
    """Factor of the time in peak / (1 + decay_rate x t)^power."""
    power: Positive = 1.0
    """The power in peak / (1 + decay_rate x t)^power. Caffe's `inv` with gamma 1e-4 and power 0.75 is `every` 1 step,
    `decay_rate` 1e-4 and `power` 0.75."""


class CosineOptions(ScheduleOptions):
    final: ClosedFraction = 0.0
    """The rate at the end, as a fraction of the peak."""

    @property
    def depends_on_total_steps(self) -> bool:
        return True


class PolynomialOptions(CosineOptions):
    power: Positive = 1.0
    """Power of the fraction of the training that is left. 1 is a straight line; Caffe's `poly` of GoogLeNet has 0.5."""


class CosineRestartsOptions(ScheduleOptions):
    first: Duration = Duration(percent=15)
    """Length of the first cycle, with its warm-up."""
    growth: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """Length of each cycle, as a multiple of the one before it."""
    factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Multiplies the peak at each restart."""
    final: ClosedFraction = 0.0
    """The rate at the end of a cycle, as a fraction of the peak."""

    def conflicts_with(self, training: TrainingLength) -> Iterator[tuple[str, str]]:
        yield from super().conflicts_with(training)
        yield from _too_long(self.first, training, "first", "a first cycle")
        if self.warmup and training.compare(self.warmup, self.first) > 0:
            said = f"{describe_length(*self.warmup.chosen)} of warm-up do not fit into the first cycle"
            yield "warmup", f"{said} of {describe_length(*self.first.chosen)}"


class OneCycleOptions(PeakOptions):
    warmup: ClassVar[None] = None
    left_out = {"warmup": "expected no warm-up, since one_cycle rises by itself. Say with `rise` how long"}

    start: ClosedFraction = 0.04
    """The rate of the first step, as a fraction of the peak."""
    rise: Duration = Duration(percent=30)
    """Length of the rise to the peak. The rest of the training is the fall."""
    final: ClosedFraction = 0.0
    """The rate at the end, as a fraction of the peak."""

    def conflicts_with(self, training: TrainingLength) -> Iterator[tuple[str, str]]:
        yield from _too_long(self.rise, training, "rise", "rise")

    @property
    def depends_on_total_steps(self) -> bool:
        return True


class PlateauOptions(ScheduleOptions):
    factor: Factor = 0.1
    """Multiplies the rate at each reduction."""
    patience: Count = 10
    """Number of epochs without improvement of `training.monitor` after which the rate is reduced."""
    min_delta: NonNegative = 1e-4
    """Smallest change that counts as an improvement."""
    cooldown: whole_number(ge=0) = 0
    """Number of epochs after a reduction that do not count as epochs without improvement."""
    min_rate: NonNegative = 0.0
    """Smallest rate: no reduction leads below it."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.per_images is None and self.min_rate > self.peak:
            yield "min_rate", f"expected at most the peak, {self.peak:g}, got {self.min_rate:g}"


def _too_long(length: Duration, training: TrainingLength, option: str, noun: str) -> Iterator[tuple[str, str]]:
    """Yield an option whose length does not fit into the training."""
    unit, value = length.chosen
    if value > training.in_unit(unit):
        yield option, f"{describe_length(unit, value)} of {noun} do not fit into {training.describe(unit)} of training"


SCHEDULES = {
    "constant": Row("kpipe.training.schedules:Constant", ScheduleOptions, "stays at the peak"),
    "step": Row("kpipe.training.schedules:Step", StepOptions, "falls by a factor at equal distances"),
    "multistep": Row("kpipe.training.schedules:Multistep", MultistepOptions, "falls by a factor at milestones"),
    "exponential": Row(
        "kpipe.training.schedules:Exponential", ExponentialOptions, "falls by a factor over equal distances, smoothly"
    ),
    "inverse_time": Row(
        "kpipe.training.schedules:InverseTime", InverseTimeOptions, "falls as 1 / time, or a power of it"
    ),
    "polynomial": Row(
        "kpipe.training.schedules:Polynomial", PolynomialOptions, "falls to the end, in a straight line or as a power"
    ),
    "cosine": Row(
        "kpipe.training.schedules:Cosine",
        CosineOptions,
        "falls along half a cosine to the end",
        paper=papers.COSINE,
    ),
    "cosine_restarts": Row(
        "kpipe.training.schedules:CosineRestarts",
        CosineRestartsOptions,
        "falls along half a cosine again and again, each time from the peak",
        paper=papers.COSINE,
    ),
    "one_cycle": Row(
        "kpipe.training.schedules:OneCycle",
        OneCycleOptions,
        "rises to the peak and falls to the end, along half a cosine each",
        paper=papers.ONE_CYCLE,
    ),
    "plateau": Row(
        "kpipe.training.schedules:Plateau",
        PlateauOptions,
        "falls by a factor when the monitored metric no longer improves",
    ),
}


class CrossEntropyOptions(Section):
    label_smoothing: Fraction = 0.0
    """Fraction of each label that is spread evenly over all classes."""


class EuclideanOptions(Section):
    output: Literal["tanh", "linear"] = "tanh"
    """Function of the logits that is compared with the coded label."""


class MapOptions(Section):
    j: Positive = 1.0
    """Penalty of an image that belongs to none of the K classes; the paper gives no value."""


LOSSES = {
    "cross_entropy": Row(
        "kpipe.training.losses:CrossEntropy", CrossEntropyOptions, "softmax and -log of the true class"
    ),
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
