"""Resolves precision and determinism for this machine, where the experiment says `auto`."""

import tensorflow as tf
from pydantic import ValidationError

from kpipe.caller import flag
from kpipe.config.schema import Experiment, Resolved
from kpipe.errors import ConfigError
from kpipe.runs.directory import Run
from kpipe.training.precision import resolve_precision


def resolve_auto(experiment: Experiment, run: Run | None = None) -> Experiment:
    """Return the experiment with every `auto` of `training` resolved for this machine.

    A run that is resumed, or repeated from its config.yaml, keeps what it resolved before.

    Args:
        experiment: as the file says it.
        run: the run directory, which may hold what an earlier process resolved.

    Raises:
        ConfigError: this machine cannot do what was asked for, or the run's config.yaml has been changed.
    """
    earlier = _read_resolved(run) or experiment.chosen
    precision, deterministic = experiment.training.precision, experiment.training.deterministic
    if earlier:
        precision = earlier.precision if precision == "auto" else precision
        deterministic = earlier.deterministic if deterministic == "auto" else deterministic
    on_cpu = not tf.config.list_physical_devices("GPU")
    resolved = Resolved(
        precision=resolve_precision(precision),
        deterministic=on_cpu if deterministic == "auto" else deterministic,
    )
    return experiment.model_copy(update={"chosen": resolved})


def _read_resolved(run: Run | None) -> Resolved | None:
    if run is None or not run.resolved:
        return None
    try:
        return Resolved.model_validate(run.resolved)
    except ValidationError:
        raise ConfigError(
            f"{run.path / 'config.yaml'}: chosen: expected precision and deterministic as kpipe has written them, got "
            f"{run.resolved}; start another run with {flag('new')}"
        ) from None
