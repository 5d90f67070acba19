"""Sections of an experiment file, and rows of the tables of names that it may use.

A row says where a thing is built (`"module:function"`, imported only when it is needed) and which options it takes. The
options are a Pydantic model, so that a mistake is found without importing Keras.
"""

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kpipe.catalog.wording import describe_error
from kpipe.errors import ConfigError, did_you_mean

OptionsType = TypeVar("OptionsType", bound="Section")

Fraction = Annotated[float, Field(ge=0, lt=1)]
ClosedFraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _whole(value: Any) -> Any:
    """Convert 1e3 and 1000.0, as YAML reads them, to 1000. What is no number stays."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def whole_number(**bounds: int) -> Any:
    """Return the type of a whole number, which may also be written 1e3 or 1000.0.

    Args:
        bounds: as `pydantic.Field` takes them: ge, gt, le, lt.
    """
    return Annotated[int, Field(**bounds), BeforeValidator(_whole)]


Count = whole_number(ge=1)


class Section(BaseModel):
    """A section of the experiment. Frozen, without unknown keys, and without silent conversion (`"3"` is not 3)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    applies_when: ClassVar[dict[str, tuple[str, tuple[str, ...]]]] = {}
    """Option -> (another option, the values of it with which the first applies)."""
    left_out: ClassVar[dict[str, str]] = {}
    """Key that may be expected here, and is not an option -> the message where it is given."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield combinations of these options that cannot work, as (option, message)."""
        return self.inapplicable_options()

    def inapplicable_options(self) -> Iterator[tuple[str, str]]:
        """Yield options that mean nothing beside the others, as (option, message): the width of a head without one.

        A default is never reported: the resolved experiment of a run holds the defaults too.
        """
        for option, (other, values) in self.applies_when.items():
            value, default = getattr(self, other), type(self).model_fields[option].default
            if value not in values and getattr(self, option) not in (None, default):
                yield option, f"applies only when {other} is {' or '.join(map(repr, values))}, it is {value!r}"

    @model_serializer(mode="wrap")
    def _name_first(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Put the key that says the kind first; of a one-of mapping keep only the key that is given."""
        data = handler(self)
        if isinstance(self, OneOf):
            return {key: data[key] for key in self.model_fields_set}
        return dict(sorted(data.items(), key=lambda item: item[0] not in ("name", "schedule", "method")))


class OneOf(Section):
    """A mapping with exactly one of its keys: `{epochs: 5}` or `{steps: 1000}`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})
    # A string stands for a key without options; only augmentations are written that way.
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
    """A length of training, in one unit."""

    epochs: Positive | None = None
    """Number of epochs; need not be whole."""
    steps: Count | None = None
    """Number of training steps."""
    images: Count | None = None
    """Number of training images, each counted as often as it is used."""
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    """Percentage of the whole training."""


class Milestones(OneOf):
    """Moments of training, in one unit."""

    epochs: list[Positive] | None = None
    """Numbers of epochs after the start; need not be whole."""
    steps: list[Count] | None = None
    """Numbers of training steps after the start."""
    images: list[Count] | None = None
    """Numbers of training images after the start, each image counted as often as it is used."""
    percent: list[Annotated[float, Field(gt=0, le=100)]] | None = None
    """Percentages of the whole training."""


@dataclass(frozen=True)
class TrainingLength:
    """How long a training is, as far as it is known before the data are."""

    epochs: float
    steps_per_epoch: int | None = None
    batch_size: int | None = None

    def in_unit(self, unit: str) -> float:
        """Return the whole training in a unit of `Duration`; infinity where that is not known yet."""
        steps = round(self.epochs * self.steps_per_epoch) if self.steps_per_epoch else math.inf
        images = steps * self.batch_size if self.batch_size else math.inf
        return {"epochs": self.epochs, "steps": steps, "images": images, "percent": 100}[unit]

    def compare(self, one: Duration, other: Duration) -> float:
        """Return a number above 0 if the first length is longer than the second; 0 where that is not known yet."""
        (unit, length), (other_unit, other_length) = one.chosen, other.chosen
        if unit == other_unit:
            return length - other_length
        whole, other_whole = self.in_unit(unit), self.in_unit(other_unit)
        is_known = math.isfinite(whole) and math.isfinite(other_whole)
        return length / whole - other_length / other_whole if is_known else 0

    def describe(self, unit: str) -> str:
        """Return the whole training in words: `10 epochs`."""
        return describe_length(unit, self.in_unit(unit))


def describe_length(unit: str, length: float) -> str:
    """Return a length in words: `1 epoch`, `2,000 steps`."""
    return f"{length:,.12g} {unit.removesuffix('s') if length == 1 else unit}"


class NoOptions(Section):
    """Options of a name that has none."""


def import_target(target: str) -> Any:
    """Import and return `module:name`."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Row:
    """One name that an experiment may use."""

    target: str
    """What builds it: `module:name`, imported only when it is needed."""
    options: type[Section]
    summary: str
    """A line for `kpipe list`."""
    paper: str | None = field(default=None, kw_only=True)
    """Where it was published."""

    def load(self) -> Any:
        """Import and return the target."""
        return import_target(self.target)


def check_options(where: str, options: type[OptionsType], /, **values: Any) -> OptionsType:
    """Check arguments given from Python by the same rules as those in an experiment file.

    Args:
        where: what the arguments are for, such as `cutout`. Each message begins with it.
        options: class of the options.
        values: the arguments, by option.

    Returns:
        The options, with defaults filled in.

    Raises:
        ConfigError: one line for each mistake, such as `cutout.size: expected at least 1, got 0`.
    """
    try:
        checked = options(**{name: _as_plain(value) for name, value in values.items()})
    except ValidationError as error:
        mistakes = [
            (".".join(map(str, details["loc"])), _describe(details, options))
            for details in error.errors(include_url=False)
        ]
    else:
        mistakes = list(checked.conflicts())
    if mistakes:
        raise ConfigError("\n".join(f"{where}.{option}: {message}" for option, message in mistakes))
    return checked


def _describe(details: dict[str, Any], options: type[Section]) -> str:
    if details["type"] != "extra_forbidden":
        return describe_error(details)
    name = details["loc"][-1]
    return options.left_out.get(name) or f"unknown option{did_you_mean(str(name), options.model_fields)}"


def _as_plain(value: Any) -> Any:
    """Convert a NumPy number to Python's own, and a tuple to a list."""
    if isinstance(value, list | tuple):
        return [_as_plain(each) for each in value]
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
