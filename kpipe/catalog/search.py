"""Search methods by name, their options, and the ways to give the values to try."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from kpipe.catalog import papers
from kpipe.catalog.rows import Count, Row, Section, whole_number

Pair = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]


class Values(Section):
    """Values of one key to try: exactly one of choice, uniform, log, int and cases."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """List of values. A list alone means the same."""
    uniform: Pair | None = None
    """[smallest, largest]: each value as likely as any other."""
    log: Pair | None = None
    """[smallest, largest]: each order of magnitude as likely as any other."""
    cases: Annotated[list["Values"], Field(min_length=1)] | None = None
    """Different values, depending on other keys in `when`. Where no case fits, the key keeps its value in the file."""
    when: dict[str, Any] | None = None
    """Other keys of the space that are lists, and for each the value or values with which this key is searched."""
    step: whole_number(ge=1) | None = None
    """Distance between the whole numbers of `int`."""
    int: Annotated[list[whole_number()], Field(min_length=2, max_length=2)] | None = None
    """[smallest, largest] of whole numbers. The largest is included only where the steps reach it."""

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
    """Stop a trial whose best score so far is below the median of the others' mean scores up to that epoch."""

    epochs: Count = 1
    """Number of epochs that each trial is trained at least."""
    trials: Count = 5
    """Number of trials that must have ended before one is stopped."""


class SearchOptions(Section):
    space: Annotated[
        Annotated[Literal["learning_rate_and_optimizer"], Tag("name")] | Annotated[dict[str, Values], Tag("keys")],
        Discriminator(lambda value: "keys" if isinstance(value, dict) else "name"),
    ] = "learning_rate_and_optimizer"
    """Dotted keys of this file and the values to try, such as {training.optimizer.name: [sgd, adam]}."""
    objective: Literal["val_accuracy", "val_loss"] | None = None
    """Metric of the best epoch that is the score of a trial. Default: training.monitor."""
    seed: whole_number(ge=0, lt=2**31) = 0
    """Seed of the values that are drawn. All trials have the experiment's own seed."""
    executions_per_trial: Count = 1
    """Number of trainings for each trial, with the seeds seed, seed + 1, ... The score is their mean."""
    keep: Count = 3
    """Number of best trials that keep their weights."""


class RandomSearchOptions(SearchOptions):
    trials: Count = 20
    """Number of trials."""
    median_stopping: MedianStopping | None = None
    """Stop trials that are worse than the median. Default: none."""


class GridOptions(SearchOptions):
    trials: Count | None = None
    """Largest number of trials. Default: every combination."""
    median_stopping: MedianStopping | None = None
    """Stop trials that are worse than the median. Default: none."""


class HyperbandOptions(SearchOptions):
    factor: whole_number(ge=2) = 3
    """One in `factor` trials continues, with `factor` times the epochs, up to training.epochs."""
    iterations: Count = 1
    """Number of repetitions of the whole algorithm."""


class BayesianOptions(RandomSearchOptions):
    initial_trials: Count | None = None
    """Number of trials that cover the space before the first guess. Default: three for each key."""


SEARCH_METHODS = {
    "random": Row(
        "kpipe.tuning.oracles:RandomOracle",
        RandomSearchOptions,
        "draws that cover the space evenly",
        paper=papers.RANDOM_SEARCH,
    ),
    "grid": Row("kpipe.tuning.oracles:GridOracle", GridOptions, "every combination, in order"),
    "hyperband": Row(
        "kpipe.tuning.oracles:HyperbandOracle",
        HyperbandOptions,
        "many short trials, the best continue, Li et al. 2018",
        paper=papers.HYPERBAND,
    ),
    "bayesian": Row(
        "kpipe.tuning.oracles:BayesianOracle",
        BayesianOptions,
        "a Gaussian process guesses which values are best",
        paper=papers.BAYESIAN_SEARCH,
    ),
}
