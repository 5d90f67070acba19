"""Finds a trained network on disk, and what is wrong with it at first sight: no import of TensorFlow or NumPy.

It is a run, one of its model files, or a .keras file with its classes.txt.
"""

from dataclasses import dataclass
from pathlib import Path

from kpipe.caller import for_caller
from kpipe.catalog.data import absolute_source, check_source, parse_source
from kpipe.catalog.evaluation import RESIZES, WEIGHTS
from kpipe.catalog.weights import check_weights_file
from kpipe.catalog.wording import show
from kpipe.config.loading import load_experiment
from kpipe.config.schema import Experiment
from kpipe.errors import ConfigError, DataError
from kpipe.files import expand_path, nearest_file, read_names
from kpipe.names import from_here, path_shown, shell_quoted
from kpipe.runs.dataset import NAMES
from kpipe.runs.directory import Run, nearest_run, saved_step


@dataclass(frozen=True)
class TrainedFile:
    """The file of a trained network, and what lies beside it."""

    file: Path
    """The .keras file."""
    run: Run | None
    """Run directory that the file lies in; None: it lies elsewhere."""
    experiment: Experiment | None
    """What the run trained, as config.yaml says it; None without a run."""
    class_names: tuple[str, ...]
    """Names in the order of the logits."""


def find_trained(
    path: str | Path, *, weights: str = "best", image_size: int | None = None, resize: str | None = None
) -> TrainedFile:
    """Find the file of a trained network.

    Args:
        path, weights, image_size, resize: as for `kpipe.trained.load_trained`.

    Raises:
        ConfigError: there is no finished run or model, the run has no such weights, or an argument does not belong to
            what was given.
        DataError: classes.txt is missing or damaged.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights: expected one of {', '.join(WEIGHTS)}, got {show(weights)}")
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size: expected at least 1 pixel, got {image_size}")
    if resize is not None and resize not in RESIZES:
        raise ConfigError(f"resize: expected one of {', '.join(RESIZES)}, got {show(resize)}")
    given = expand_path(str(path))
    folder = given if given.is_dir() else given.parent
    run = Run.reading(folder) if (folder / "config.yaml").is_file() else None
    if not given.is_dir() or run is None:
        _check_model_file(given, run, weights)
    if run is None:
        return TrainedFile(given, None, None, _read_class_names(folder))
    if image_size is not None or resize is not None:
        raise ConfigError(f"image_size, resize: expected neither with a run, whose config.yaml says both: {given}")
    file = _find_file(run, weights) if given.is_dir() else given
    experiment = load_experiment(folder / "config.yaml").experiment
    return TrainedFile(file, run, experiment, _read_class_names(folder))


def find_source(trained: TrainedFile, data: str | None) -> str:
    """Return the source of the images that a trained network is scored on, with an absolute path.

    Args:
        trained: what `find_trained` returns.
        data: another source than that of the run.

    Raises:
        ConfigError: a source of an unknown kind, or there is none.
        DataError: what is wrong with the source at first sight.
    """
    where = for_caller("--data", "data")
    if data is not None:
        try:
            data = absolute_source(data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        check_source(data)
        return data
    if trained.experiment is None:
        raise ConfigError(
            f"{where}: expected a source of images for {path_shown(trained.file)}, which names none, got none"
        )
    source = trained.experiment.data.source
    try:
        check_source(source)
    except DataError as error:
        if not parse_source(source)[0].is_path:
            raise
        example = for_caller("--data folder:PATH", 'data="folder:PATH"')
        raise DataError(f"{error}\nIf you have moved the folder, say where it is: {example}") from None
    return source


def _check_model_file(file: Path, run: Run | None, weights: str) -> None:
    """Raise ConfigError for what is no .keras file, with the run that may have been meant."""
    if file.is_dir() or file.suffix != ".keras" or not file.exists():
        what = "a folder without config.yaml" if file.is_dir() else "a file of another kind"
        what = what if file.exists() else "no such file or directory"
        meant = nearest_run(file) if file.exists() else nearest_file(file) or nearest_run(file)
        raise ConfigError(f"{path_shown(file)}: expected a run directory or a .keras file, got {what}{meant}")
    if weights != "best":
        remedy = f"Give {path_shown(run.path)}" if run else "Leave the choice of weights out"
        raise ConfigError(
            f"weights: expected a choice with a run directory alone, got {weights} and the file {path_shown(file)}. "
            f"{remedy}"
        )
    if run is None:
        check_weights_file(str(file), "")


def _find_file(run: Run, weights: str) -> Path:
    """Return the model file of a finished run that has these weights."""
    if run.status != "finished" or not run.model.exists():
        command = f"kpipe finish {shell_quoted(from_here(run.path))}"
        has_checkpoint = saved_step(run.path) is not None
        no_checkpoint = ", and it has no checkpoint to finish from. Train it again"
        remedy = f". `{command}` finishes it as it stands." if has_checkpoint else no_checkpoint
        is_lost = run.status == "finished"
        what = "one without its model.keras" if is_lost else f"one that is {run.status or 'not finished'}"
        raise ConfigError(f"{path_shown(run.path)}: expected a finished run, got {what}{remedy}")
    if weights == "best":
        return run.model
    if file := run.find_model(weights):
        return file
    raise ConfigError(
        f"{path_shown(run.path)}: expected a run with {weights} weights of its own, got one that did not average its "
        "weights (training.average). Leave the choice of weights out"
    )


def _read_class_names(folder: Path) -> tuple[str, ...]:
    file = folder / NAMES
    if names := tuple(read_names(file)):
        return names
    got = "a file without names, or a damaged one" if file.exists() else "no such file"
    raise DataError(
        f"{path_shown(file)}: expected the classes of the network, one name a line in the order of the logits, got "
        f"{got}"
    )
