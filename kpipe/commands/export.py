"""`kpipe export`: write a trained network for other runtimes, check each file in its own, and describe it.

`export_screen` prints what was written.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.assembly import load_splits
from kpipe.caller import about_an_experiment
from kpipe.catalog.formats import CARD, FORMATS, IMAGES, INT8_FILE, LOGITS, NEEDS_KPIPE, PAGE
from kpipe.console import Screen, counted
from kpipe.data.pipeline import evaluation_batches, make_evaluation_pipeline
from kpipe.data.reading import note_unreadable, translate_reading_errors
from kpipe.data.splits import ProgressReporter, Split, Splits, no_progress
from kpipe.errors import ConfigError, DataError, EnvironmentFault, KpipeError, first_line
from kpipe.exporting.arguments import check_arguments
from kpipe.exporting.card import Exported, make_card, write_markdown
from kpipe.exporting.verification import BOUND, INT8_BOUND, compute_logits, verify
from kpipe.exporting.writing import write_format
from kpipe.files import filling, read_json, translate_write_errors, write_json, write_names, write_text
from kpipe.models.keras_files import list_leaves
from kpipe.models.portable import make_exportable
from kpipe.names import path_shown
from kpipe.runs.dataset import NAMES
from kpipe.runs.model_files import find_trained
from kpipe.streams import hold_back_libraries
from kpipe.trained import Trained, load_as_saved

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


@about_an_experiment()
def export(
    run: str | Path,
    to: str | Sequence[str],
    *,
    output: str | Path | None = None,
    weights: str = "best",
    int8: bool = False,
    image_size: int | None = None,
    resize: str | None = None,
    screen: Screen | None = None,
) -> list[Exported]:
    """Write a trained network in one or several formats, in float32 and with its preprocessing inside.

    Each format gets a folder: the file, classes.txt, and a card as JSON and Markdown. Its own runtime computes the
    logits of real images in a process of its own, and they must be those of the network. Otherwise nothing is written.
    An earlier export of the same weights is replaced, file by file; other files in its folder stay.

    Args:
        run: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        to: `keras`, `saved_model`, `onnx`, `litert`, or several of them.
        output: the folder to which each format adds its own; default: `export` beside the model.
        weights: of a run that has averaged its weights: `raw`, `averaged`, or `best`, the better of the two.
        int8: write LiteRT's file quantized as well. Its ranges are those of 100 images of the training split, and its
            accuracy on the test split is measured.
        image_size, resize: as for `load_trained`, for a model file outside a run.
        screen: shows the progress; default: standard output.

    Returns:
        What was written, a format each, with its `path` and its `card`.

    Raises:
        ConfigError: an argument, the network, or a format that cannot hold this network.
        DataError: `int8`, and the images of the run cannot be read.
        EnvironmentFault: a runtime computes something else than the network, or the folder cannot be written.
    """
    how_loaded = {"weights": weights, "image_size": image_size, "resize": resize}
    folder, folders = check_arguments(find_trained(run, **how_loaded).file, to, output, int8)
    screen = screen or Screen()
    with hold_back_libraries(), translate_write_errors(folder):
        trained = load_as_saved(run, **how_loaded)
        _check_float32(trained)
        splits, why_not = _find_images(trained, needed=int8)
        if int8:
            _leave_out_unreadable(splits.by_name[splits.held_out or "train"], screen.progress)
        images, described = _choose_images(trained, splits, why_not)
        sample = _Sample(images, described, compute_logits(trained.model, images))
        exports = []
        with filling(folder, [f"{folders[name]}/{file}" for name in folders for file in _list_files(name)]) as part:
            for name, own in folders.items():
                with screen.status(f"writing and checking {name}"):
                    card = _write(part / own, name, trained, sample, splits if int8 else None)
                replaced = _describe_replaced(read_json(folder / own / CARD), card)
                exports.append(Exported(name, folder / own / FORMATS[name].file, trained.file, card, replaced))
    return exports


def _list_files(name: str) -> list[str]:
    """Return the names of all that an export writes into the folder of a format."""
    return [FORMATS[name].file, *([INT8_FILE] if name == "litert" else []), CARD, PAGE, NAMES]


def _describe_replaced(before: dict[str, Any], card: dict[str, Any]) -> str | None:
    """Return which weights an earlier export has that is replaced; None where there is none, or of the same weights."""
    weights = before.get("weights")
    if not isinstance(weights, dict) or weights == card["weights"]:
        return None
    run = f" of the run {weights['run']}" if weights.get("run") else ""
    return f"{weights.get('file')}{run}"


def _write(folder: Path, name: str, trained: Trained, sample: _Sample, splits: Splits | None) -> dict[str, Any]:
    """Write the folder of a format, with int8 beside LiteRT's float32 where there are splits, and return its card."""
    how = FORMATS[name]
    shape = trained.model.input_shape[1:] if how.takes_any_size else trained.image_shape
    written = make_exportable(trained.model, shape)
    folder.mkdir()
    file = folder / how.file
    versions = write_format(name, written, file)
    needs = NEEDS_KPIPE if name == "keras" and _has_own_layers(written) else ""
    checks = {
        "difference": verify(name, file, sample.images, sample.logits, needs=needs),
        "bound": BOUND,
        "images": sample.described,
        "runtime": f"{how.runtime} {version(how.runtime)}",
    }
    if splits and name == "litert":
        checks["int8"] = _quantize(folder / INT8_FILE, written, splits, sample)
    card = make_card(trained, written, name, checks, needs=needs, written=versions)
    write_json(folder / CARD, card)
    write_text(folder / PAGE, write_markdown(card))
    write_names(folder / NAMES, trained.class_names)
    return card


def _quantize(file: Path, model: keras.Model, splits: Splits, sample: _Sample) -> dict[str, Any]:
    """Write a network in int8, measure what that costs, and return both."""
    calibration = _read_images(splits, "train", _CALIBRATING).astype("float32")
    write_format("litert", model, file, calibration=calibration[:, np.newaxis])
    difference = verify("litert", file, sample.images, sample.logits, bound=INT8_BOUND)
    split = splits.held_out or "train"
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
        split = splits.held_out or "train"
        try:
            images = _read_images(splits, split, _CHECKED)
            return images, f"{counted(len(images), 'image')} of the {split} split"
        except KpipeError as error:
            why_not = first_line(error)
    random = np.random.default_rng(0).integers(0, 256, (_CHECKED, *trained.image_shape), "uint8")
    return random, f"{_CHECKED} random images ({why_not})"


def _read_images(splits: Splits, name: str, most: int) -> np.ndarray:
    """Return a few images of a split as the network sees them, of all classes where that is possible: uint8.

    Raises:
        DataError: more images than allowed cannot be read, or all of them.
    """
    split = splits.by_name[name]
    split = split.select(split.spread(min(most, len(split))))
    _leave_out_unreadable(split)
    batches = make_evaluation_pipeline(split, 1, image_size=splits.image_size)
    with translate_reading_errors([split]):
        images = [images for images, _ in batches.as_numpy_iterator()]
    if not images:
        raise DataError(
            f"{split.unreadable.where}: expected images that can be read, got none in {counted(len(split), 'image')}"
        )
    return np.concatenate(images)


def _leave_out_unreadable(split: Split, progress: ProgressReporter = no_progress) -> None:
    """Note the images that cannot be read, where the experiment allows that there are some."""
    if split.unreadable.limit is not None and not split.kept_pixels:
        note_unreadable(split, progress)


def _check_float32(trained: Trained) -> None:
    for layer in list_leaves(trained.model):
        computes = not isinstance(layer, keras.layers.InputLayer)  # which takes over the policy of the process
        if computes and layer.compute_dtype not in ("float32", None):
            raise ConfigError(
                f"{path_shown(trained.file)}: expected layers that compute in float32, got {layer.name} in "
                f"{layer.compute_dtype}. Build the network in float32, load these weights and save it"
            )


def _has_own_layers(model: keras.Model) -> bool:
    """Return whether Keras can load a model only where kpipe is installed."""
    return '"registered_name": "kpipe>' in model.to_json()
