"""What an experiment file may say, in plain data: sections, rows of names, and how a row is looked up.

A row says where the thing is built (`"module:function"`, imported only when it is needed), which options it takes
(a pydantic model, so that a mistake is found without importing Keras) and what else must be known beforehand.
"""

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

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
        return dict(sorted(data.items(), key=lambda item: item[0] not in ("name", "schedule", "method")))


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


@dataclass(frozen=True)
class Row:
    """One name: where it is built, what options it takes, and a line for `kpipe list`."""

    target: str
    options: type[Section]
    summary: str


class NoOptions(Section):
    pass


ClosedShare = Annotated[float, Field(ge=0, le=1)]


def resolve(row: Row) -> Any:
    """Imports and returns what the row's target names."""
    module, name = row.target.split(":")
    return getattr(importlib.import_module(module), name)
