"""Resolves precision, determinism and compilation for this machine, where the experiment says `auto`."""

import math

import keras
from pydantic import ValidationError

from kpipe.caller import flag
from kpipe.config.schema import Experiment, Resolved
from kpipe.errors import ConfigError
from kpipe.names import path_shown
from kpipe.runs.directory import Run
from kpipe.training.device import grow_gpu_memory
from kpipe.training.precision import LARGEST_ERROR, explain_auto, gpu_capability, measure_error, resolve_precision
from kpipe.training.xla import can_compile


def resolve_auto(experiment: Experiment, run: Run | None = None) -> Experiment:
    """Return the experiment with every `auto` of `training` resolved for this machine.

    A run that is resumed, or repeated from its config.yaml, keeps what it resolved before. The memory of the GPUs grows
    with what is placed on them from here on.

    Args:
        experiment: as the file says it.
        run: the run directory, which may hold what an earlier process resolved.

    Raises:
        ConfigError: this machine cannot do what was asked for, or the run's config.yaml has been changed.
    """
    grow_gpu_memory()
    training, earlier = experiment.training, _read_resolved(run) or experiment.chosen
    precision, reason = training.precision, "as training.precision says"
    if precision == "auto" and earlier:
        precision = earlier.precision
        reason = "as the run began" if run and run.resolved else "as in the run of this file"
        _check_gpu_is_there(precision, run)
    elif precision == "auto":
        reason = f"auto: {explain_auto()}"
    deterministic, xla = training.deterministic, {"on": True, "off": False}.get(training.xla, "auto")
    if earlier and deterministic == "auto":
        deterministic = earlier.deterministic
    has_gpu = gpu_capability() is not None
    if xla == "auto":  # XLA has no deterministic gradient of max pooling, and no sum over devices
        xla = deterministic is not True and training.distribution == "none"
        xla = xla and (earlier.xla if earlier else has_gpu and can_compile())
    resolved = Resolved(
        precision=resolve_precision(precision),
        precision_reason=reason,
        deterministic=not (has_gpu or xla) if deterministic == "auto" else deterministic,
        xla=xla,
    )
    return experiment.model_copy(update={"chosen": resolved})


def check_precision(experiment: Experiment, model: keras.Model) -> tuple[Experiment, str | None]:
    """Compare the logits of a network in its precision with those in float32, before it is trained.

    Args:
        experiment: resolved.
        model: built in its precision.

    Returns:
        The experiment and None. Where a mixed precision that `auto` has chosen fails: the experiment in float32, and a
        line for the user that says so.

    Raises:
        ConfigError: a mixed precision that the user has chosen fails.
    """
    precision = experiment.chosen.precision
    error = 0.0 if precision == "float32" else measure_error(model)
    if error <= LARGEST_ERROR:
        return experiment, None
    got = f"that differ by {100 * error:.0f} %" if math.isfinite(error) else "that are not finite"
    if experiment.training.precision != "auto":
        raise ConfigError(
            f"training.precision: expected logits in {precision} within {100 * LARGEST_ERROR:.0f} % of those in "
            f"float32, got some {got}. Use training.precision=float32"
        )
    reason = f"auto: its logits in {precision} are some {got}"
    resolved = experiment.chosen.model_copy(update={"precision": "float32", "precision_reason": reason})
    note = f"in {precision}, the first logits are some {got}, against float32; float32 is used instead"
    return experiment.model_copy(update={"chosen": resolved}), note


def _check_gpu_is_there(precision: str, run: Run | None) -> None:
    """Raise ConfigError for a run that began in float16 on a GPU, where there is none."""
    if precision != "mixed_float16" or gpu_capability() is not None:
        return
    is_resumed = run is not None and run.resolved
    where = path_shown(run.path) if is_resumed else "chosen.precision"
    remedy = f"start another run with {flag('new')}" if is_resumed else "give training.precision=float32"
    raise ConfigError(
        f"{where}: expected a GPU, since the run began in mixed_float16 on one, got none. Make one visible, or {remedy}"
    )


def _read_resolved(run: Run | None) -> Resolved | None:
    if run is None or not run.resolved:
        return None
    try:
        return Resolved.model_validate(run.resolved)
    except ValidationError:
        raise ConfigError(
            f"{run.path / 'config.yaml'}: chosen: expected precision, deterministic and xla as kpipe has written them, "
            f"got {run.resolved}; start another run with {flag('new')}"
        ) from None
