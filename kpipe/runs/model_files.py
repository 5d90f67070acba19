"""Finds a trained network on disk, and what is wrong with it at first sight: no import of TensorFlow or NumPy.

It is a run, one of its model files, or a .keras file with its classes.txt.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kpipe.caller import for_caller, option
from kpipe.catalog.data import absolute_source, check_source, parse_source
from kpipe.catalog.evaluation import RESIZES, WEIGHTS
from kpipe.catalog.formats import CARD
from kpipe.catalog.weights import check_weights_file
from kpipe.catalog.wording import show
from kpipe.config.loading import load_experiment
from kpipe.config.schema import Experiment
from kpipe.errors import ConfigError, DataError
from kpipe.files import expand_path, nearest_file, read_json, read_names
from kpipe.names import from_here, path_shown, shell_quoted
from kpipe.runs.dataset import NAMES, RECORD, read_recorded_classes
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
    images: dict[str, Any] = field(default_factory=dict)
    """How images are read, as the model card of an exported file says it; empty: in a run, or without a card."""


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
        raise ConfigError(f"{option('weights')}: expected one of {', '.join(WEIGHTS)}, got {show(weights)}")
    if image_size is not None and image_size < 1:
        raise ConfigError(f"{option('image_size')}: expected at least 1 pixel, got {image_size}")
    if resize is not None and resize not in RESIZES:
        raise ConfigError(f"{option('resize')}: expected one of {', '.join(RESIZES)}, got {show(resize)}")
    given = expand_path(str(path))
    folder = given if given.is_dir() else given.parent
    run = Run.reading(folder) if (folder / "config.yaml").is_file() else None
    if not given.is_dir() or run is None:
        _check_model_file(given, run, weights)
    if run is None:
        class_names = _read_class_names(folder)
        return TrainedFile(given, None, None, class_names, _read_card(given, class_names))
    if image_size is not None or resize is not None:
        raise ConfigError(
            f"{option('image_size')}, {option('resize')}: expected neither with a run, whose config.yaml says both: "
            f"{path_shown(given)}"
        )
    file = _find_file(run, weights) if given.is_dir() else given
    experiment = load_experiment(folder / "config.yaml").experiment
    class_names = _read_class_names(folder)
    _compare_class_names(run, class_names)
    return TrainedFile(file, run, experiment, class_names)


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


def check_split(trained: TrainedFile, split: str | None, data: str | None) -> None:
    """Raise ConfigError where a run is known to have no held-out split, and none was chosen; see `find_source`."""
    if split is not None or data is not None or trained.run is None:
        return
    cut = trained.experiment.data.split
    known = {*trained.run.read_json(RECORD).get("splits", {}), *trained.run.read_json("summary.json")}
    if not (known & {"validation", "test"} or cut.validation or cut.test != 0):
        raise no_held_out_split()


def no_held_out_split() -> ConfigError:
    """Return the error about a run whose images are all in the training split."""
    return ConfigError(
        f"{option('split')}: expected a test or validation split, the run has none. Give {option('split', 'train')}"
    )


def remedy_for_damage(run: Run, file: Path) -> str:
    """Return what to do about a model file of a finished run that is damaged or gone.

    Returns:
        Commands that work, or that there are none.
    """
    if file != run.model and run.model.exists():
        return f"{path_shown(from_here(run.path))} itself has the best weights"
    ways = []
    for kind in ("raw", "averaged"):
        path = run.find_model(kind)
        if path and path != file:
            ways.append(f"{option('weights', kind)} takes {path.name}")
    if saved_step(run.path) is not None:
        place = shell_quoted(from_here(run.path))
        delete = f"rm {shell_quoted(from_here(file))} && " if file.exists() else ""
        ways.append(f"`{delete}kpipe finish {place}` writes it again, from the last checkpoint of the run")
    return "; ".join(ways) if ways else "The run has no checkpoint either: train it again, or restore the file"


def _check_model_file(file: Path, run: Run | None, weights: str) -> None:
    """Raise ConfigError for what is no .keras file, with the run that may have been meant."""
    if file.is_dir() or file.suffix != ".keras" or not file.exists():
        what = "a folder without config.yaml" if file.is_dir() else "a file of another kind"
        what = what if file.exists() else "no such file or directory"
        meant = nearest_run(file) if file.exists() else nearest_file(file) or nearest_run(file)
        raise ConfigError(f"{path_shown(file)}: expected a run directory or a .keras file, got {what}{meant}")
    if weights != "best":
        remedy = f"Give {path_shown(run.path)}" if run else f"Leave {option('weights')} out"
        raise ConfigError(
            f"{option('weights')}: expected a run directory to choose weights of, got {weights} and the file "
            f"{path_shown(file)}. {remedy}"
        )
    if run is None:
        check_weights_file(str(file), "")


def _find_file(run: Run, weights: str) -> Path:
    """Return the model file of a finished run that has these weights."""
    if run.status != "finished":
        command = f"kpipe finish {shell_quoted(from_here(run.path))}"
        has_checkpoint = saved_step(run.path) is not None
        no_checkpoint = ", and it has no checkpoint to finish from. Train it again"
        remedy = f". `{command}` finishes it as it stands." if has_checkpoint else no_checkpoint
        what = f"one that is {run.status or 'not finished'}"
        raise ConfigError(f"{path_shown(run.path)}: expected a finished run, got {what}{remedy}")
    file = run.model if weights == "best" else run.find_model(weights)
    if file and file.exists():
        return file
    if weights == "best" or run.read_json("summary.json").get("weights") == weights:
        raise ConfigError(
            f"{path_shown(run.path)}: expected a finished run, got one without its model.keras. "
            f"{remedy_for_damage(run, run.model)}"
        )
    raise ConfigError(
        f"{option('weights')}: expected a run with {weights} weights of its own, got {path_shown(run.path)}, which has "
        f"no model_{weights}.keras: it did not average its weights (training.average). Leave {option('weights')} out"
    )


def _read_card(file: Path, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return what the model card beside an exported file says of its images; empty where there is none of this file."""
    card = read_json(file.parent / CARD)
    is_of_this_file = card.get("file") == file.name and card.get("classes") == list(class_names)
    images = card.get("images") if is_of_this_file else None
    return images if isinstance(images, dict) else {}


def _compare_class_names(run: Run, class_names: tuple[str, ...]) -> None:
    """Raise DataError where the classes of a run are not those, in order, that it was trained with."""
    recorded = read_recorded_classes(run)
    if recorded is None or tuple(recorded) == class_names:
        return
    where = f"{path_shown(run.path / NAMES)}: expected the classes with which the run was trained ({RECORD})"
    if len(recorded) != len(class_names):
        raise DataError(f"{where}, {len(recorded):,} in all, got {len(class_names):,}. Restore {NAMES}")
    number = next(i for i, names in enumerate(zip(recorded, class_names, strict=True)) if names[0] != names[1])
    raise DataError(
        f"{where}, got {show(class_names[number])} in line {number + 1:,} instead of {show(recorded[number])}. Restore "
        f"{NAMES}"
    )


def _read_class_names(folder: Path) -> tuple[str, ...]:
    file = folder / NAMES
    if names := tuple(read_names(file)):
        return names
    got = "an empty file, or one that is not UTF-8" if file.exists() else "no such file"
    raise DataError(
        f"{path_shown(file)}: expected the classes of the network, one name a line in the order of the logits, got "
        f"{got}"
    )
