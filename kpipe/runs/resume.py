"""What may differ when a run is resumed by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kpipe.catalog.data import parse_source
from kpipe.catalog.wording import show
from kpipe.config.document import Keys, dotted, one_line
from kpipe.config.loading import Loaded, load_experiment
from kpipe.config.schema import Experiment, TrainingConfig
from kpipe.console import counted
from kpipe.errors import ConfigError
from kpipe.files import read_json
from kpipe.names import from_here, path_shown, shell_quoted
from kpipe.runs.directory import Run, nearest_run, read_status, saved_step


def load_resumed(run: str | Path, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Loaded:
    """Load the experiment that resumes a run: its own, or the one in `path`, with overrides.

    Args:
        run: a run directory.
        path: the YAML file; None: the run's own config.yaml.
        overrides: as in `load_experiment`.

    Raises:
        ConfigError: as `load_experiment`, and as `check_resume`.
    """
    if any(text.startswith("logs=") for text in overrides):
        raise ConfigError("logs: expected none under --resume, a run stays where it is")
    if not (Path(run) / "config.yaml").is_file():
        raise ConfigError(
            f"{path_shown(run)}: expected a run directory with a config.yaml, found none there{nearest_run(run)}"
        )
    loaded = load_experiment(path or Path(run) / "config.yaml", overrides)
    check_resume(run, loaded.experiment)
    return loaded


def load_unfinished(run: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load the experiment of a run that is to be finished as it stands.

    Raises:
        ConfigError: as `load_resumed`, or the run is finished and has its model.keras.
    """
    if _is_finished(Path(run)):
        raise ConfigError(f"{path_shown(run)}: expected a run that is not finished, got one that is")
    return load_resumed(run, overrides=overrides)


def check_resume(run: str | Path, experiment: Experiment) -> None:
    """Refuse to resume a run with an experiment that would have computed something else so far.

    Raises:
        ConfigError: one line for each key that differs from the run's config.yaml. Keys may differ that concern only
            when something is logged or saved, or when the run ends; that add epochs to a schedule that does not depend
            on their number; and the folder of data.source, see `kpipe.runs.dataset`.
    """
    before = load_experiment(Path(run) / "config.yaml").experiment
    if saved_step(Path(run)) is None:
        dropped = "" if before.training.checkpoint.keep_last else ": training.checkpoint.keep_last is false"
        raise ConfigError(f"{path_shown(run)}: expected a run with a checkpoint to resume from, found none{dropped}")
    theirs, ours = (dict(_leaves(each.identity())) for each in (before, experiment))
    changed = [keys for keys in {**theirs, **ours} if theirs.get(keys) != ours.get(keys)]
    values = [f"{dotted(keys)}={one_line(ours[keys])}" for keys in changed if keys in ours]
    kinds = {keys[:-1] for keys in changed if keys[1:] and keys[-1] in ("name", "schedule")}
    # In a section of another kind, the options differ as well.
    changed = [keys for keys in changed if keys[:-1] not in kinds or keys[-1] in ("name", "schedule")]
    problems = [
        f"{path_shown(run)}: {dotted(keys)}: {show(theirs.get(keys))} in the run, {show(ours.get(keys))} now" + reason
        for keys in changed
        if (reason := _forbidden(keys, before, experiment)) is not None
    ]
    if problems:
        raise ConfigError(
            "\n".join(problems) + "\nUnder --resume only training.log_every, training.checkpoint, "
            "training.max_minutes, training.when_stuck, training.profile, logging, more training.epochs and the folder "
            "of data.source may differ. Train another run with these values:\n"
            f"  kpipe run {' '.join(map(shell_quoted, [str(Path(run) / 'config.yaml'), *values]))}"
            f"{_or_from_its_weights(Path(run), before, *values) if changed == [('training', 'epochs')] else ''}"
        )
    if _is_finished(Path(run)):
        _check_extension(Path(run), before, experiment)


def _is_finished(run: Path) -> bool:
    """Whether a run is finished and has its model.keras; where somebody has deleted that, it is written again."""
    return read_status(run) == "finished" and Run.reading(run).model.exists()


def _check_extension(run: Path, before: Experiment, now: Experiment) -> None:
    """Raise ConfigError where a finished run has nothing left to train."""
    ended_by, then = read_json(run / "summary.json").get("ended_by"), before.training
    finished = f"is finished after {counted(then.epochs, 'epoch')}"
    if ended_by == "max_minutes":
        limit = now.training.max_minutes
        if limit is None or limit > then.max_minutes:
            return
        said = f"ended after its {then.max_minutes:g} minutes; a larger training.max_minutes resumes it"
    elif ended_by == "finish" or now.training.epochs > then.epochs:
        return
    elif then.tied_to_epochs:
        said = (
            f"{finished}; {then.tied_to_epochs} depends on the number of epochs, so it cannot be extended. Train "
            f"another run for longer:\n  {command_to_train_longer(run, before, ended_by)}"
            f"{_or_from_its_weights(run, before)}"
        )
    else:
        said = f"{finished}; a larger training.epochs extends it"
    raise ConfigError(f"{path_shown(run)}: {said}")


def _or_from_its_weights(run: Path, experiment: Experiment, *overrides: str) -> str:
    """Return the end of a message: how to start another run from the weights of this one, where it has them all.

    Empty where `reused_layers` would then say something about the layers that were new in this run.
    """
    if read_status(run) != "finished" or experiment.training.reused_layers:
        return ""
    words = [from_here(run / "config.yaml"), f"model.init_from={from_here(run)}", *overrides]
    command = for_workers(f"kpipe run {' '.join(map(shell_quoted, words))}", experiment)
    return f"\nor one that starts from its weights:\n  {command}"


def for_workers(command: str, experiment: Experiment) -> str:
    """Return a command, followed by a comment if it has to be started on each of several workers."""
    return f"{command}  # on every worker" if experiment.training.distribution == "multi_worker" else command


def command_to_train_longer(run: Path, experiment: Experiment, ended_by: str) -> str:
    """Return a command that trains a finished run further, or for longer from the start where it cannot be extended.

    Args:
        run: the run directory.
        experiment: of the run.
        ended_by: as summary.json says.
    """
    return for_workers(_command_to_train_longer(run, experiment.training, ended_by), experiment)


def _command_to_train_longer(run: Path, training: TrainingConfig, ended_by: str) -> str:
    has_checkpoint = saved_step(run) is not None
    resume = f"kpipe run --resume {shell_quoted(from_here(run))}"
    anew = f"kpipe run {shell_quoted(from_here(run / 'config.yaml'))}"
    if ended_by == "finish":
        return resume if has_checkpoint else anew
    if ended_by == "max_minutes":
        return f"{resume if has_checkpoint else anew} training.max_minutes={2 * training.max_minutes:g}"
    stopping = training.early_stopping
    if ended_by == "early_stopping" and stopping is not None:
        return f"{anew} training.early_stopping.patience={max(1, 2 * stopping.patience)}"
    can_extend = has_checkpoint and ended_by == "epochs" and not training.tied_to_epochs
    return f"{resume if can_extend else anew} training.epochs={2 * training.epochs}"


def _forbidden(keys: Keys, before: Experiment, now: Experiment) -> str | None:
    """Return None for a key that may differ, else the reason why it may not."""
    if keys == ("data", "source") and all(parse_source(each.data.source)[0].is_path for each in (before, now)):
        return None  # the images are compared when they are found
    before, now = before.training, now.training
    free = ("log_every", "checkpoint", "max_minutes", "when_stuck", "profile")
    if keys[0] == "logging" or keys[0] == "training" and keys[1] in free:
        return None
    if keys != ("training", "epochs"):
        return ""
    if now.epochs < before.epochs:
        return "; it can only grow"
    if before.tied_to_epochs:
        return f"; {before.tied_to_epochs} depends on the number of epochs"
    return None


def _leaves(value: Any, keys: Keys = ()):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, (*keys, key))
    else:
        yield keys, value
