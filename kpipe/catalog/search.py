"""Search methods by name, their options, and the ways to say which values are tried."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from kpipe.catalog.rows import Count, Row, Section

Pair = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]


Whole = int  # inside `Values` the name `int` is a key


class Values(Section):
    """From what a search takes the value of one key: exactly one of choice, uniform, log, int and cases."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """One of these; a list alone means the same."""
    uniform: Pair | None = None
    """[smallest, largest]: each value as likely as any other."""
    log: Pair | None = None
    """[smallest, largest]: each order of magnitude as likely as any other."""
    cases: Annotated[list["Values"], Field(min_length=1)] | None = None
    """Others for other values of the keys in `when`; in a case that none fits, the key keeps its value of the file."""
    when: dict[str, Any] | None = None
    """Keys of the space that are choices, and for each the value, or list of values, with which this is searched."""
    step: Annotated[int, Field(ge=1)] | None = None
    """Distance of the whole numbers of `int`."""
    int: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = None
    """[smallest, largest]: a whole number; the largest only where the steps reach it."""

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"choice": value}
        if isinstance(value, dict):
            given = [kind for kind in VALUE_KINDS if value.get(kind) is not None]
            unknown = [key for key in value if key not in cls.model_fields]
            if len(given) == 1 or unknown:
                return value
        expected = "a list of values, or one of {uniform: [a, b]}, {log: [a, b]}, {int: [a, b]}, {cases: [...]}"
        raise PydanticCustomError("values", "expected {expected}", {"expected": expected})

    @model_serializer(mode="wrap")
    def _given_alone(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def kind(self) -> str:
        """The one of `VALUE_KINDS` that is given."""
        return next(kind for kind in VALUE_KINDS if getattr(self, kind) is not None)


VALUE_KINDS = ("choice", "uniform", "log", "int", "cases")


SPACES: dict[str, dict[str, Any]] = {
    "learning_rate_and_optimizer": {
        "training.optimizer.name": ["sgd", "rmsprop", "adam"],
        "training.learning_rate.peak": {
            "cases": [
                {"log": [1e-2, 1.0], "when": {"training.optimizer.name": "sgd"}},
                {"log": [1e-4, 1e-2], "when": {"training.optimizer.name": ["rmsprop", "adam"]}},
            ]
        },
    }
}
"""Spaces that have a name."""


class MedianStopping(Section):
    epochs: Count = 1
    """That each trial is given."""
    trials: Count = 5
    """That must have ended before one is stopped."""


class SearchOptions(Section):
    space: Annotated[
        Annotated[Literal["learning_rate_and_optimizer"], Tag("name")] | Annotated[dict[str, Values], Tag("keys")],
        Discriminator(lambda value: "keys" if isinstance(value, dict) else "name"),
    ] = "learning_rate_and_optimizer"
    """Dotted keys of this file, and the values that are tried: {training.optimizer.name: [sgd, adam]}."""
    objective: Literal["val_accuracy", "val_loss"] | None = None
    """What a trial's score is, of its best epoch. Default: training.monitor."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of what is tried. The trials themselves all have the experiment's own seed."""
    executions_per_trial: Count = 1
    """Trainings with the seeds seed, seed + 1, ...; the score is their mean."""
    keep: Count = 3
    """How many of the best trials keep their weights."""
    stuck_after: Count | None = None
    """Steps after which a training loss within 2 % of ln(classes), that of guessing, ends a trial. Default: one epoch,
    and at least 100 steps."""


class RandomSearchOptions(SearchOptions):
    trials: Count = 20
    median_stopping: MedianStopping | None = None
    """Ends a trial whose best score so far is below the median of the others' means up to that epoch."""


class GridOptions(SearchOptions):
    trials: Count | None = None
    """At most; default: every combination."""
    median_stopping: MedianStopping | None = None
    """Ends a trial whose best score so far is below the median of the others' means up to that epoch."""


class HyperbandOptions(SearchOptions):
    factor: Annotated[int, Field(ge=2)] = 3
    """One in so many trials goes on to so many times the epochs; training.epochs are the most."""
    iterations: Count = 1
    """Of the whole algorithm."""


class BayesianOptions(RandomSearchOptions):
    initial_trials: Count | None = None
    """Drawn at random before the first guess. Default: three for each key."""


SEARCH_METHODS = {
    "random": Row("kpipe.search.oracles:RandomOracle", RandomSearchOptions, "independent draws, Bergstra 2012"),
    "grid": Row("kpipe.search.oracles:GridOracle", GridOptions, "every combination, in order"),
    "hyperband": Row(
        "kpipe.search.oracles:HyperbandOracle", HyperbandOptions, "many short trials, the best go on, Li et al. 2018"
    ),
    "bayesian": Row(
        "kpipe.search.oracles:BayesianOracle", BayesianOptions, "a Gaussian process guesses where the best is"
    ),
}
