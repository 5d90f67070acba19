"""The names that an experiment file may use: one table per kind, one row per name.

A row says where the thing is built (`"module:function"`, imported only when it is needed), which options it takes
(a pydantic model, so that a mistake is found without importing Keras) and what else must be known beforehand.
To add a network, an augmentation, an optimizer or a schedule: write the function, add its row here.
"""

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kpipe.errors import ConfigError, did_you_mean

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the experiment: frozen, no unknown keys, no silent conversion (`"3"` is not 3)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_serializer(mode="wrap")
    def _name_first(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The key that chooses the kind stands first; of a one-of mapping only the key that is given."""
        data = handler(self)
        if isinstance(self, OneOf):
            return {key: data[key] for key in self.model_fields_set}
        return dict(sorted(data.items(), key=lambda item: item[0] not in ("name", "schedule")))


class OneOf(Section):
    """A mapping with exactly one of its keys: `{epochs: 5}` or `{steps: 1000}`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})
    # A string says that the key's value has no options to give; only augmentations are written that way.
    bare_names: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def exactly_one(cls, value: Any) -> Any:
        if isinstance(value, str) and cls.bare_names:
            return {value: {}}
        if isinstance(value, dict) and len(value) == 1 and (cls.bare_names or None not in value.values()):
            return {key: {} if options is None and cls.bare_names else options for key, options in value.items()}
        raise PydanticCustomError("one_of", "expected exactly one of {names}", {"names": ", ".join(cls.model_fields)})

    @property
    def chosen(self) -> tuple[str, Any]:
        """The key that is given, and its value."""
        [name] = self.model_fields_set
        return name, getattr(self, name)


class Duration(OneOf):
    """A length of training that says its unit."""

    epochs: Positive | None = None
    steps: Count | None = None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    """Of the whole training."""


class Milestones(OneOf):
    """Moments of training, in one unit."""

    epochs: list[Positive] | None = None
    steps: list[Count] | None = None
    percent: list[Annotated[float, Field(gt=0, le=100)]] | None = None


# --- networks ---------------------------------------------------------------------------------------------------


class LeNet5Options(Section):
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    pooling: Literal["max", "average"] = "max"


class VGGOptions(Section):
    batch_norm: bool = False
    """Batch normalisation between each convolution and its ReLU."""
    head: Literal["fc", "gap"] = "fc"
    """`fc`: two hidden fully connected layers as in the paper; `gap`: global average pooling."""
    width: Count = 4096
    """Units of each hidden layer of the `fc` head."""
    dropout: Share = 0.5
    """After each hidden layer of the `fc` head."""


@dataclass(frozen=True)
class Row:
    """One name: where it is built, what options it takes, and a line for `kpipe list`."""

    target: str
    options: type[Section]
    summary: str


@dataclass(frozen=True)
class ModelRow(Row):
    smallest_size: int
    """Below this many pixels a side, a pooling layer would have nothing left to pool."""


MODELS = {
    "lenet5": ModelRow("kpipe.models:lenet5", LeNet5Options, "LeNet-5, the modern 61,706-parameter form", 12),
    "vgg11": ModelRow("kpipe.models:vgg11", VGGOptions, "VGG net A: 8 convolutions, 3 dense layers", 32),
    "vgg13": ModelRow("kpipe.models:vgg13", VGGOptions, "VGG net B: 10 convolutions, 3 dense layers", 32),
    "vgg16": ModelRow("kpipe.models:vgg16", VGGOptions, "VGG net D: 13 convolutions, 3 dense layers", 32),
    "vgg19": ModelRow("kpipe.models:vgg19", VGGOptions, "VGG net E: 16 convolutions, 3 dense layers", 32),
}

# --- data -------------------------------------------------------------------------------------------------------


class NoOptions(Section):
    pass


class SyntheticOptions(Section):
    classes: Annotated[int, Field(ge=2)] = 10
    images: Count = 2000
    """In all parts together."""


@dataclass(frozen=True)
class SourceRow(Row):
    argument: str | None
    """What stands behind the colon (`folder:<path>`), or None."""
    native_size: int | None
    """Pixels a side where `image_size` is not given; None: known only once the data is read."""
    needs_size: bool = False


SOURCES = {
    "digits": SourceRow(
        "kpipe.data.sources:read_digits", NoOptions, "1,797 handwritten 8x8 digits (embedded)", None, 8
    ),
    "synthetic": SourceRow(
        "kpipe.data.sources:read_synthetic", SyntheticOptions, "procedural, learnable (embedded)", None, 32
    ),
    "folder": SourceRow(
        "kpipe.data.sources:read_folder",
        NoOptions,
        "a folder of images, one folder a class",
        "path",
        None,
        True,
    ),
    "tfds": SourceRow(
        "kpipe.data.sources:read_tfds",
        NoOptions,
        "an image classification set of TensorFlow Datasets",
        "name",
        None,
    ),
}


class PadCropOptions(Section):
    padding: Count = 4


class TranslateOptions(Section):
    height: Share = 0.1
    width: Share = 0.1


AUGMENTATIONS = {
    "pad_crop": Row("kpipe.data.augment:pad_crop", PadCropOptions, "pad with zeros, crop at random to the old size"),
    "translate": Row("kpipe.data.augment:translate", TranslateOptions, "shift by up to a share of the image"),
    "flip_horizontal": Row("kpipe.data.augment:flip_horizontal", NoOptions, "mirror every second image"),
}

# --- training ---------------------------------------------------------------------------------------------------


class WeightDecay(Section):
    value: NonNegative
    kind: Literal["l2", "decoupled"] = "l2"
    """`l2`: value x weight is added to the gradient (the papers); `decoupled`: the weight shrinks by
    learning rate x value at each step (AdamW). Never on biases and batch normalisation."""


class OptimizerOptions(Section):
    weight_decay: WeightDecay | None = None


class SGDOptions(OptimizerOptions):
    momentum: Share = 0.0
    nesterov: bool = False


class AdagradOptions(OptimizerOptions):
    initial_accumulator_value: NonNegative = 0.1
    epsilon: Positive = 1e-7


class RMSpropOptions(OptimizerOptions):
    rho: Share = 0.9
    momentum: Share = 0.0
    epsilon: Positive = 1e-7
    centered: bool = False


class AdadeltaOptions(OptimizerOptions):
    rho: Share = 0.95
    epsilon: Positive = 1e-7


class AdamOptions(OptimizerOptions):
    beta_1: Share = 0.9
    beta_2: Share = 0.999
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
    """A straight line from 0 up to the peak."""


class MultistepOptions(ScheduleOptions):
    milestones: Milestones = Milestones(percent=[50, 75])
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """At each milestone the rate is multiplied by this."""


class CosineOptions(ScheduleOptions):
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The rate at the end, as a share of the peak."""


SCHEDULES = {
    "constant": Row("kpipe.training.schedules:constant", ScheduleOptions, "the peak, all along"),
    "multistep": Row("kpipe.training.schedules:multistep", MultistepOptions, "falls by a factor at milestones"),
    "cosine": Row("kpipe.training.schedules:cosine", CosineOptions, "falls along half a cosine to the end"),
}

TABLES: dict[str, dict[str, Row]] = {
    "models": MODELS,
    "sources": SOURCES,
    "augmentations": AUGMENTATIONS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
}


def parse_source(source: str) -> tuple[SourceRow, str]:
    """`folder:photos` to its row and `photos`.

    Raises:
        ConfigError: the source is unknown, or what stands behind its colon is missing or too much.
    """
    name, colon, argument = source.partition(":")
    if name not in SOURCES:
        raise ConfigError(f"unknown source '{name}'{did_you_mean(name, SOURCES)}")
    row = SOURCES[name]
    if row.argument and not argument:
        raise ConfigError(f"expected {name}:<{row.argument}>, got '{source}'")
    if colon and not row.argument:
        raise ConfigError(f"expected '{name}' alone, got '{source}'")
    return row, argument


def resolve(row: Row) -> Any:
    """Imports and returns what the row's target names."""
    module, name = row.target.split(":")
    return getattr(importlib.import_module(module), name)
