"""Durations of an experiment (`{epochs: 5}`, `{percent: 10}`) as numbers of training steps."""

from collections.abc import Mapping

from kpipe.catalog.rows import OneOf
from kpipe.errors import ConfigError

_UNITS = ("epochs", "steps", "percent", "minutes")


def steps_of(
    duration: Mapping[str, float | None] | OneOf, *, steps_per_epoch: int, total_steps: int | None = None
) -> int | None:
    """Return a duration as a number of steps, rounded and at least 1.

    Args:
        duration: one of `epochs`, `steps`, `percent` (of the whole training) and `minutes`, as a mapping or as a
            section of the catalog. A key whose value is None counts as not given.
        steps_per_epoch: steps in one epoch.
        total_steps: steps of the whole training; needed for `percent` only.

    Returns:
        None for a duration in time, which no number of steps stands for.

    Raises:
        ConfigError: not exactly one unit is given, or `percent` without `total_steps`.
    """
    unit, length = _unit_and_length(duration)
    if unit == "minutes":
        return None
    if unit != "percent":
        return max(1, round(length * {"epochs": steps_per_epoch, "steps": 1}[unit]))
    if total_steps is None:
        raise ConfigError(f"duration: expected total_steps beside {length:g} percent, got none")
    return max(1, round(length * (total_steps / 100)))


def _unit_and_length(duration: Mapping[str, float | None] | OneOf) -> tuple[str, float]:
    given = dict(duration)  # the fields of a section, too
    lengths = [(unit, length) for unit, length in given.items() if length is not None]
    if len(lengths) != 1 or lengths[0][0] not in _UNITS:
        raise ConfigError(f"duration: expected exactly one of {', '.join(_UNITS)}, got {given}")
    return lengths[0]
