"""Durations of an experiment (`{epochs: 5}`, `{percent: 10}`) as numbers of training steps."""

from collections.abc import Mapping

from kpipe.catalog.rows import OneOf
from kpipe.errors import ConfigError

_UNITS = ("epochs", "steps", "images", "percent", "minutes")


def steps_of(
    duration: Mapping[str, float | None] | OneOf,
    *,
    steps_per_epoch: int,
    total_steps: int | None = None,
    batch_size: int | None = None,
) -> int | None:
    """Return a duration as a number of steps, rounded and at least 1.

    Args:
        duration: one of `epochs`, `steps`, `images`, `percent` (of the whole training) and `minutes`, as a mapping or
            as a section of the catalog. A key whose value is None counts as not given.
        steps_per_epoch: steps in one epoch.
        total_steps: steps of the whole training; needed for `percent` only.
        batch_size: images in a step; needed for `images` only.

    Returns:
        None for a duration in time, which no number of steps stands for.

    Raises:
        ConfigError: not exactly one unit is given, `percent` without `total_steps`, or `images` without `batch_size`.
    """
    unit, length = _unit_and_length(duration)
    if unit == "minutes":
        return None
    steps_in_one = {
        "epochs": steps_per_epoch,
        "steps": 1,
        "images": batch_size and 1 / batch_size,
        "percent": total_steps and total_steps / 100,
    }[unit]
    if steps_in_one is None:
        needed = {"images": "batch_size", "percent": "total_steps"}[unit]
        raise ConfigError(f"duration: expected {needed} beside {length:,.12g} {unit}, got none")
    return max(1, round(length * steps_in_one))


def _unit_and_length(duration: Mapping[str, float | None] | OneOf) -> tuple[str, float]:
    given = dict(duration)  # the fields of a section, too
    lengths = [(unit, length) for unit, length in given.items() if length is not None]
    if len(lengths) != 1 or lengths[0][0] not in _UNITS:
        raise ConfigError(f"duration: expected exactly one of {', '.join(_UNITS)}, got {given}")
    return lengths[0]
