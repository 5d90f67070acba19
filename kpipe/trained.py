"""A trained network on disk, ready for use: a finished run, or a model file with its classes.txt.

`evaluate`, `predict` and `export` begin here. A run's network computes exactly what it computed at the end of the run:
in the same precision, from the same layers.
"""

from dataclasses import dataclass
from pathlib import Path

import keras

from kpipe.catalog.evaluation import WEIGHTS
from kpipe.catalog.weights import check_weights_file
from kpipe.catalog.wording import show
from kpipe.config.loading import load_experiment
from kpipe.config.schema import DataConfig, Experiment
from kpipe.console import counted
from kpipe.errors import ConfigError, DataError, some
from kpipe.files import expand_path, nearest_file, read_json, read_names
from kpipe.models.building import build_model
from kpipe.models.keras_files import load_keras_file
from kpipe.models.portable import copy_weights
from kpipe.models.preprocessing import load_normalization
from kpipe.names import from_here, path_shown, shell_quoted
from kpipe.runs.directory import Run, read_status, saved_step
from kpipe.runs.machine import resolve_auto
from kpipe.training.losses import CrossEntropy, make_loss
from kpipe.training.metrics import make_metrics
from kpipe.training.precision import precision_scope


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, and what its use needs to know."""

    file: Path
    """The model file."""
    run: Run | None
    """Run directory that the file lies in; None: it lies elsewhere."""
    experiment: Experiment | None
    """What the run trained, resolved; None without a run."""
    model: keras.Model
    """Raw images [B, H, W, C], 0..255, to logits float32 [B, K]. Compiled with the loss and the metrics of the run."""
    class_names: tuple[str, ...]
    """K names, in the order of the logits."""
    image_shape: tuple[int, int, int]
    """(H, W, C) of what the network sees."""
    data: DataConfig
    """How its images are read: as in the run. For a model file alone the defaults, and its folder as their source."""


def load_trained(
    path: str | Path, *, weights: str = "best", image_size: int | None = None, resize: str | None = None
) -> Trained:
    """Load a trained network for use.

    Args:
        path: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        weights: of a run that has averaged its weights: `raw`, `averaged`, or `best`, the better of the two.
        image_size: side of the images in pixels, for a model file outside a run that takes images of any size.
        resize: how an image becomes square, for a model file outside a run; default: `crop`.

    Raises:
        ConfigError: there is no finished run or model, the file is damaged or has code of its own, the run has no such
            weights, or an argument does not belong to what was given.
        DataError: classes.txt is missing, damaged, or has other classes than the network.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights: expected one of {', '.join(WEIGHTS)}, got {show(weights)}")
    given = expand_path(str(path))
    folder = given if given.is_dir() else given.parent
    if not (folder / "config.yaml").is_file():
        return _load_file(given, image_size, resize)
    if image_size or resize:
        raise ConfigError(f"image_size, resize: expected neither with a run, whose config.yaml says both: {given}")
    run = Run(folder, True, None, read_status(folder))
    file = given if given.is_file() else _find_file(run, weights)
    return _load_run(run, file)


def _find_file(run: Run, weights: str) -> Path:
    """Return the model file of a finished run that has these weights."""
    if run.status != "finished" or not run.model.exists():
        command = f"kpipe finish {shell_quoted(from_here(run.path))}"
        has_checkpoint = saved_step(run.path) is not None
        remedy = f". `{command}` finishes it as it stands" if has_checkpoint else ", and has no checkpoint either"
        is_lost = run.status == "finished"
        what = "one without its model.keras" if is_lost else f"one that is {run.status or 'not finished'}"
        raise ConfigError(f"{path_shown(run.path)}: expected a finished run, got {what}{remedy}.")
    if weights == "best":
        return run.model
    if file := run.find_model(weights):
        return file
    raise ConfigError(
        f"{path_shown(run.path)}: expected a run with {weights} weights of its own, got one that did not average its "
        "weights (training.average). Leave the choice of weights out"
    )


def _load_run(run: Run, file: Path) -> Trained:
    experiment = resolve_auto(load_experiment(run.path / "config.yaml").experiment)
    try:
        saved = load_keras_file(file)
    except ConfigError as error:
        others = [path for path in (*run.path.glob("model*.keras"), *run.checkpoints.glob("step-*")) if path != file]
        kept = f" The run also has {some([str(path.relative_to(run.path)) for path in others], str)}." if others else ""
        raise ConfigError(f"{error}{kept}") from None
    class_names = _read_class_names(run.path, saved)
    shape = tuple(read_json(run.path / "summary.json").get("image") or saved.input_shape[1:])
    normalization = load_normalization(run.constants, shape)
    if normalization is None:
        raise ConfigError(
            f"{path_shown(run.constants)}: expected the constants of the first layer, got a file that is damaged or "
            f"gone. Restore it, or give the model file outside the run, with {path_shown(run.path / 'classes.txt')} "
            "beside it"
        )
    with precision_scope(experiment.chosen.precision):
        model = build_model(
            experiment.model.name,
            experiment.network_options,
            input_shape=shape,
            classes=len(class_names),
            normalization=normalization,
        )
    copy_weights(saved, model)
    _compile(model, make_loss(*experiment.loss), len(class_names))
    return Trained(file, run, experiment, model, class_names, shape, experiment.data)


def _load_file(file: Path, image_size: int | None, resize: str | None) -> Trained:
    if file.is_dir() or file.suffix != ".keras":
        what = "a folder without config.yaml" if file.is_dir() else "a file of another kind"
        what = what if file.exists() else f"no such file or directory{nearest_file(file)}"
        raise ConfigError(f"{path_shown(file)}: expected a run directory or a .keras file, got {what}")
    check_weights_file(str(file), "")
    model = load_keras_file(file)
    class_names = _read_class_names(file.parent, model)
    height, width, channels = model.input_shape[1:]
    if height and image_size not in (None, height):
        raise ConfigError(f"image_size: expected the {height} pixels of {path_shown(file)}, got {image_size}")
    if not (height or image_size):
        raise ConfigError(
            f"image_size: expected the side of the images in pixels, since {path_shown(file)} takes any, got none"
        )
    shape = (height or image_size, width or image_size, channels)
    _compile(model, CrossEntropy(), len(class_names))
    data = DataConfig(source=f"folder:{file.parent}", image_size=shape[0], resize=resize or "crop", channels=channels)
    return Trained(file, None, None, model, class_names, shape, data)


def _read_class_names(folder: Path, model: keras.Model) -> tuple[str, ...]:
    file, expected = folder / "classes.txt", counted(model.outputs[0].shape[-1], "class")
    names = tuple(read_names(file))
    if not names:
        raise DataError(
            f"{path_shown(file)}: expected the {expected} of the network, one name a line in the order of the logits, "
            "got no such file, or a damaged one"
        )
    if len(names) != model.outputs[0].shape[-1]:
        raise DataError(f"{path_shown(file)}: expected the {expected} of the network, got {len(names):,}")
    return names


def _compile(model: keras.Model, loss: keras.losses.Loss, classes: int) -> None:
    model.compile(loss=loss, metrics=make_metrics(classes), jit_compile=False)
