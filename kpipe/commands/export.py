"""`kpipe export`: write a trained network for other runtimes, check each file in its own, and describe it."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.assembly import load_splits
from kpipe.caller import about_an_experiment
from kpipe.console import Screen, counted, describe_size
from kpipe.data.pipeline import evaluation_batches, make_evaluation_pipeline
from kpipe.data.reading import translate_reading_errors
from kpipe.data.splits import Splits
from kpipe.errors import ConfigError, DataError, EnvironmentFault, KpipeError, first_line
from kpipe.exporting.card import describe_int8, make_card, write_markdown
from kpipe.exporting.formats import CARD, FORMATS, IMAGES, INT8_FILE, LOGITS, check_arguments
from kpipe.exporting.verification import BOUND, INT8_BOUND, compute_logits, verify
from kpipe.exporting.writing import write_format
from kpipe.files import cannot_write, write_json, write_names, write_text
from kpipe.models.keras_files import load_keras_file
from kpipe.models.portable import make_exportable
from kpipe.names import from_here, path_shown
from kpipe.runs.dataset import NAMES
from kpipe.streams import hold_back_libraries
from kpipe.trained import Trained, load_trained

_OWN = "import kpipe.models"  # without it, Keras does not find the layers that are kpipe's own
_CHECKED = 16  # images on which a written file is compared with the network
_CALIBRATING = 100  # images of the training split that give the ranges of int8


@dataclass(frozen=True, eq=False)
class _Sample:
    """What a written file is checked with."""

    images: np.ndarray
    """uint8 [B, H, W, C], 0..255"""
    described: str
    """Which images they are."""
    logits: np.ndarray
    """What the network computes for them, float32 [B, K]."""


@dataclass(frozen=True)
class Exported:
    """A network that was written in a format."""

    format: str
    path: Path
    """The file, or SavedModel's folder."""
    card: dict[str, Any]
    """What model_card.json says."""

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files)


@about_an_experiment()
def export(
    run: str | Path,
    to: str | Sequence[str],
    *,
    output: str | Path | None = None,
    weights: str = "best",
    int8: bool = False,
    screen: Screen | None = None,
) -> list[Exported]:
    """Write a trained network in one or several formats, in float32 and with its preprocessing inside.

    Each format gets a folder: the file, classes.txt, and a card as JSON and Markdown. Its own runtime computes the
    logits of real images in a process of its own, and they must be those of the network. Otherwise nothing is written.

    Args:
        run: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        to: `keras`, `saved_model`, `onnx`, `litert`, or several of them.
        output: the folder to which each format adds its own; default: `export` beside the model.
        weights: of a run that has averaged its weights: `raw`, `averaged`, or `best`, the better of the two.
        int8: write LiteRT's file quantized as well. Its ranges are those of 100 images of the training split, and its
            accuracy on the test split is measured.
        screen: where the result is printed; default: standard output.

    Raises:
        ConfigError: an argument, the network, or a format that cannot hold this network.
        DataError: `int8`, and the images of the run cannot be read.
        EnvironmentFault: a runtime computes something else than the network, or the folder cannot be written.
    """
    names, folder = check_arguments(run, to, output, int8)
    screen = screen or Screen()
    loaded = load_trained(run, weights=weights)
    with hold_back_libraries():
        model = load_keras_file(loaded.file)
        _check_float32(loaded.file, model)
        splits, why_not = _find_images(loaded, needed=int8)
        images, described = _choose_images(loaded, splits, why_not)
        sample = _Sample(images, described, compute_logits(model, images))
        with _staged(folder) as stage:
            done = []
            for name in names:
                with screen.status(f"writing and checking {name}"):
                    card = _write(stage / name, name, loaded, model, sample, splits if int8 else None)
                done.append(Exported(name, folder / name / FORMATS[name].file, card))
            for name in names:
                _replace(folder / name, stage / name)
    _show(screen, loaded, done)
    return done


def _write(
    folder: Path, name: str, trained: Trained, model: keras.Model, sample: _Sample, splits: Splits | None
) -> dict[str, Any]:
    """Write the folder of a format, with int8 beside LiteRT's float32 where there are splits, and return its card."""
    how = FORMATS[name]
    shape = model.input_shape[1:] if how.takes_any_size else trained.image_shape
    written = make_exportable(model, shape)
    folder.mkdir()
    file = folder / how.file
    write_format(name, written, file)
    needs = _OWN if name == "keras" and _has_own_layers(written) else ""
    checks = {
        "difference": verify(name, file, sample.images, sample.logits, needs=needs),
        "bound": BOUND,
        "images": sample.described,
        "runtime": f"{how.runtime} {version(how.runtime)}",
    }
    if splits and name == "litert":
        checks["int8"] = _quantize(folder / INT8_FILE, written, splits, sample)
    card = make_card(trained, written, name, checks)
    card["code"][:0] = [needs] if needs else []
    write_json(folder / CARD, card)
    write_text(folder / "MODEL_CARD.md", write_markdown(card))
    write_names(folder / NAMES, trained.class_names)
    return card


def _quantize(file: Path, model: keras.Model, splits: Splits, sample: _Sample) -> dict[str, Any]:
    """Write a network in int8, measure what that costs, and return both."""
    calibration = _read_images(splits, "train", _CALIBRATING).astype("float32")
    write_format("litert", model, file, calibration=calibration[:, np.newaxis])
    difference = verify("litert", file, sample.images, sample.logits, bound=INT8_BOUND)
    split = _held_out(splits)
    with translate_reading_errors(splits.by_name.values()):
        accuracy, float32_accuracy, count = _compare_accuracies(file, model, evaluation_batches(splits, split, 32))
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "calibration": f"{counted(len(calibration), 'image')} of the train split",
        "difference": difference,
        "bound": INT8_BOUND,
        "split": f"{counted(count, 'image')} of the {split} split",
        "accuracy": accuracy,
        "float32_accuracy": float32_accuracy,
    }


def _compare_accuracies(file: Path, model: keras.Model, batches) -> tuple[float, float, int]:
    """Return the accuracy of a LiteRT file and of the network that it was made of, and the number of images."""
    from ai_edge_litert.interpreter import Interpreter  # of the extra `export`

    run = Interpreter(str(file), num_threads=os.cpu_count()).get_signature_runner()
    correct, count = np.zeros(2), 0
    for images, labels in batches.as_numpy_iterator():
        images = images.astype("float32")
        logits = run(**{IMAGES: images})[LOGITS], model.predict_on_batch(images)
        correct += [np.count_nonzero(np.argmax(each, axis=-1) == labels) for each in logits]
        count += len(labels)
    return *(float(each) for each in correct / count), count


def _find_images(trained: Trained, needed: bool) -> tuple[Splits | None, str]:
    """Return the data of the run; None and the reason where they cannot be had."""
    if trained.run is None and not needed:
        return None, "the model file has no data of its own"
    try:
        return load_splits(trained.data, ahead=False), ""
    except (ConfigError, DataError, EnvironmentFault) as error:
        if needed:
            raise DataError(f"int8: expected the images of the run, to calibrate with, got: {error}") from None
        return None, first_line(error)


def _choose_images(trained: Trained, splits: Splits | None, why_not: str) -> tuple[np.ndarray, str]:
    """Return images uint8 [B, H, W, C] to check with, and which they are."""
    if splits is not None:
        split = _held_out(splits)
        try:
            images = _read_images(splits, split, _CHECKED)
            return images, f"{counted(len(images), 'image')} of the {split} split"
        except KpipeError as error:
            why_not = first_line(error)
    random = np.random.default_rng(0).integers(0, 256, (_CHECKED, *trained.image_shape), "uint8")
    return random, f"{_CHECKED} random images ({why_not})"


def _read_images(splits: Splits, name: str, most: int) -> np.ndarray:
    """Return a few images of a split as the network sees them, of all classes where that is possible: uint8."""
    split = splits.by_name[name]
    if not split.is_stream:
        split = split.select(split.spread(min(most, len(split))))
    batches = make_evaluation_pipeline(split, 1, image_size=splits.image_size).take(most)
    with translate_reading_errors([split]):
        return np.concatenate([images for images, _ in batches.as_numpy_iterator()])


def _held_out(splits: Splits) -> str:
    """Return the name of the split that says most about a network."""
    return next(name for name in ("test", "validation", "train") if splits.by_name.get(name))


def _check_float32(file: Path, model: keras.Model) -> None:
    half = [layer.name for layer in model.layers if layer.compute_dtype not in ("float32", None)]
    if half:
        raise ConfigError(
            f"{path_shown(file)}: expected layers that compute in float32, got {half[0]} in "
            f"{model.get_layer(half[0]).compute_dtype}. Build the network in float32, load these weights and save it"
        )


def _has_own_layers(model: keras.Model) -> bool:
    """Return whether Keras can load a model only where kpipe is installed."""
    return any(type(layer).__module__.startswith("kpipe.") for layer in model.layers)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give a folder beside those that are to be written. Nothing is left of it, nor of `folder` where it is empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error.errno) from None
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as stage:
            yield Path(stage)
    finally:
        with suppress(OSError):
            folder.rmdir()


def _replace(target: Path, written: Path) -> None:
    """Put a folder in the place of an earlier one."""
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as old:
        if target.exists():
            target.rename(Path(old) / target.name)
        written.rename(target)


def _show(screen: Screen, trained: Trained, done: Sequence[Exported]) -> None:
    shape, classes = "x".join(map(str, trained.image_shape)), counted(len(trained.class_names), "class")
    screen.line(f"{from_here(trained.file)}: images {shape}, {classes}", style="bold")
    for each in done:
        checks = each.card["checks"]
        size, difference = describe_size(each.size), f"{checks['difference']:.1e}"
        needs = ", loads where kpipe is installed" if _OWN in each.card["code"] else ""
        screen.prose(f"  {each.format:<12} {size}, differs by {difference} ({checks['runtime']}){needs}", indent=15)
        for line in FORMATS[each.format].code(from_here(each.path)):
            screen.line(f"{'':<15}{line}")
        if int8 := checks.get("int8"):
            screen.prose(f"  {'int8':<12} {int8['file']}, {describe_int8(int8)}", indent=15)
    screen.prose(
        f"Checked on {checks['images']}, each file in its own runtime. The difference is the largest between the "
        f"logits and the network's, relative to the largest logit; at most {BOUND:g} is accepted."
    )
