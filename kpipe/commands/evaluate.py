"""`kpipe evaluate`: the numbers of a trained network on a whole split. `evaluate_screen` prints them."""

import csv
import datetime
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.assembly import load_splits
from kpipe.caller import about_an_experiment, option, with_options
from kpipe.catalog.evaluation import ON_ERROR, PROTOCOLS
from kpipe.catalog.wording import show
from kpipe.config.schema import DataConfig, SplitConfig
from kpipe.console import Screen, counted
from kpipe.data.files import FileSplit
from kpipe.data.reading import note_unreadable, translate_reading_errors
from kpipe.data.records import RecordSplit
from kpipe.data.splits import Split, Splits
from kpipe.errors import ConfigError, DataError, did_you_mean, some
from kpipe.evaluation.metrics import Outcomes, compute_class_metrics, compute_metrics, make_confusion_matrix
from kpipe.evaluation.predictions import NUM_EXAMPLES, Examples
from kpipe.evaluation.report import draw_mistakes
from kpipe.evaluation.scoring import score
from kpipe.evaluation.views import make_protocol
from kpipe.figures.confusion import draw_confusion
from kpipe.figures.labels import run_label
from kpipe.figures.style import noting_failures, save_figure
from kpipe.files import check_output_folder, expand_path, filling, translate_write_errors, write_json
from kpipe.names import path_shown
from kpipe.runs.dataset import describe_changes
from kpipe.runs.model_files import check_split, find_source, find_trained, no_held_out_split
from kpipe.trained import Trained, load_trained
from kpipe.training.losses import CrossEntropy

FILES = (
    "evaluation.json",
    "per_class.csv",
    "predictions.csv",
    "confusion_matrix.csv",
    "confusion_matrix.png",
    "mistakes.png",
)
_LONGEST_NAME = 150  # bytes of the name of a folder; file systems take 255
_MOST_SKIPPED = 0.99  # fraction of the images that `on_error` skips: of some images there must be numbers


@dataclass(frozen=True)
class ScoredSplit:
    """The split that is scored."""

    splits: Splits
    name: str
    """`all` of another set without splits."""
    kept: Split
    """Its images as the run stores them."""
    split: Split
    """Its images as the protocol needs them: whole, or as the run stores them."""
    label_order: np.ndarray | None
    """The network's class for each class of the data, int [K]; None: they are the same."""
    notes: tuple[str, ...]


@about_an_experiment()
@with_options("on_error")
def evaluate(
    run: str | Path,
    *,
    protocol: str = "center",
    split: str | None = None,
    data: str | None = None,
    weights: str = "best",
    scales: Sequence[int] = (),
    image_size: int | None = None,
    resize: str | None = None,
    on_error: str | None = None,
    output: str | Path | None = None,
    screen: Screen | None = None,
) -> dict[str, Any]:
    """Score a trained network on a whole split, and write what comes out.

    Args:
        run: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        protocol: which views of each image are scored: `center`, `ten_crop`, `multi_crop` or `dense`.
        split: train, validation or test. Default: test if there is one, else validation.
        data: another source with the same classes. Nothing is cut off it: a set without splits is scored whole.
        weights: of a run that has averaged its weights: `raw`, `averaged`, or `best`, the better of the two.
        scales: for `dense`, pixels of the shorter side, one scale after the other. Default: that of the stored images.
        image_size, resize: as for `load_trained`, for a model file outside a run.
        on_error: `fail` at an image that cannot be read, or `skip` all of them. Default: as in the run, else `fail`.
        output: folder to write. Default: evaluation/<split>_<protocol> in the run, or beside the model file; just
            <protocol> and the source for another set without splits.
        screen: shows the progress; default: standard output.

    Returns:
        What evaluation.json holds: `images` and the metrics of `kpipe.evaluation.metrics.compute_metrics`,
        `per_class`, the most confident `mistakes`, what was scored, and `folder`, which has the files. `loss` is that
        of the run. Where this is no cross entropy, protocols with several views have a `cross_entropy` instead.

    Raises:
        ConfigError: there is no such run, split or protocol, or the network or its images do not suit the protocol.
        DataError: the images cannot be read, or have other classes than the network.
        EnvironmentFault: the folder cannot be written.
    """
    screen = screen or Screen()
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"{option('protocol')}: expected a known name, got {show(protocol)}{did_you_mean(protocol, PROTOCOLS)}"
        )
    if scales and protocol != "dense":
        raise ConfigError(
            f"{option('scales')}: expected the protocol dense, which alone has scales, got {protocol}. Give "
            f"{option('protocol', 'dense')}, or leave {option('scales')} out"
        )
    if on_error not in (None, *ON_ERROR):
        raise ConfigError(f"{option('on_error')}: expected one of {', '.join(ON_ERROR)}, got {show(on_error)}")
    how = {"weights": weights, "image_size": image_size, "resize": resize}
    found = find_trained(run, **how)
    source = find_source(found, data)
    check_split(found, split, data)
    if output is not None:
        output = _check_target(expand_path(str(output), option("output")))
    trained = load_trained(run, **how)
    _check_protocol(trained, protocol, scales)
    config = trained.data if data is None else _config_of(trained, source)
    config = (
        config if on_error is None else config.model_copy(update={"on_error": on_error, "skip_limit": _MOST_SKIPPED})
    )
    scored = _find_scored_split(trained, config, split, protocol, screen, is_other=data is not None)
    name = _name_evaluation(trained, scored.name, protocol, scales, image_size, resize, data and source)
    folder = output or _check_target(trained.file.parent / "evaluation" / name)
    scales = list(scales or [_kept_side(trained)]) if protocol == "dense" else []
    with translate_reading_errors(scored.splits.by_name.values()):
        outcomes = _score(protocol, scored, trained, scales, screen)
        images = _read_images(scored.kept, outcomes.mistakes[:NUM_EXAMPLES])
    names = scored.split.name_images()
    files = scored.split.name_images(outcomes.mistakes[:NUM_EXAMPLES], in_set=True)
    result = _describe(trained, scored, protocol, scales, outcomes, names) | {"data": source, "folder": str(folder)}
    with translate_write_errors(folder), screen.status("drawing figures"):
        _write(folder, result, outcomes, names, trained.class_names, images, files)
    return result


# --- what is scored -------------------------------------------------------------------------------------------------


def _check_protocol(trained: Trained, protocol: str, scales: Sequence[int]) -> None:
    """Raise ConfigError where the network's images do not suit the protocol."""
    height, width, _ = trained.image_shape
    if protocol == "center":
        return
    if height != width:
        raise ConfigError(
            f"{option('protocol')}: expected center for images of {height}x{width}, which are not square, got "
            f"{protocol}"
        )
    if protocol == "ten_crop" and _kept_side(trained) <= height:
        raise ConfigError(
            f"{option('protocol')}: ten_crop needs stored images that are larger than what the network sees, got "
            f"{height} pixels for both (data.stored_size and data.image_size). Give multi_crop or dense, which see the "
            "whole image"
        )
    if too_small := [scale for scale in scales if scale < height]:
        raise ConfigError(
            f"{option('scales')}: expected at least the {height} pixels that the network sees, got "
            f"{', '.join(map(str, too_small))}"
        )


def _kept_side(trained: Trained) -> int:
    return trained.data.stored_size or trained.image_shape[0]


def _find_scored_split(
    trained: Trained, config: DataConfig, name: str | None, protocol: str, screen: Screen, *, is_other: bool
) -> ScoredSplit:
    """Load the images, and find the split that is scored.

    Args:
        trained: the network.
        config: how its images are read.
        name: of the split, as the user gave it.
        protocol: which views of an image are scored.
        screen: shows the progress.
        is_other: the images are others than those of the run, and a set without splits is all in `train`.
    """
    splits = load_splits(config, ahead=False, progress=screen.progress)
    is_whole = is_other and not (name or splits.held_out)
    name = name or splits.held_out or ("train" if is_other else None)
    if name is None:
        raise no_held_out_split()
    if name not in splits.by_name:
        raise ConfigError(
            f"{option('split')}: expected one of {', '.join(splits.by_name)}, which {config.source} has, got {name}"
        )
    if splits.by_name[name].is_stream and name not in splits.contents:
        splits = load_splits(config, progress=screen.progress)  # a stream that is decoded in advance is cut by class
    if splits.image_shape != trained.image_shape:
        expected, got = ("x".join(map(str, shape)) for shape in (trained.image_shape, splits.image_shape))
        raise DataError(f"{config.source}: expected images of {expected}, which the network sees, got {got}")
    kept = split = splits.by_name[name]
    notes = [*trained.notes, *_describe_mirroring(trained, protocol)]
    if split.unreadable.limit is not None and not split.kept_pixels:
        note_unreadable(split, screen.progress)
    if protocol in ("multi_crop", "dense"):
        if isinstance(split, FileSplit | RecordSplit):
            split = split.as_stored()
        else:
            height, width, _ = split.shape
            notes.append(f"the whole images are the stored ones, {height}x{width}: the source has no files of them")
    order = _match_classes(config.source, splits.class_names, trained.class_names)
    if absent := [each for each in trained.class_names if each not in splits.class_names]:
        notes.append(f"the data has no class {some(absent)}")
    if not is_other:
        notes += [f"the data has changed since the run: {change}" for change in describe_changes(trained.run, splits)]
    return ScoredSplit(splits, "all" if is_whole else name, kept, split, order, tuple(notes))


def _describe_mirroring(trained: Trained, protocol: str) -> list[str]:
    """Return a note where a protocol shows mirror images to a network that has not been trained on any."""
    if protocol == "center" or trained.run is None:
        return []
    if any(entry.chosen[0] == "flip_horizontal" for entry in trained.data.augment):
        return []
    return [f"half of the views of {protocol} are mirror images; the run was trained without flip_horizontal"]


def _config_of(trained: Trained, source: str) -> DataConfig:
    """Return how another source is read: as in training, in one piece, and in the form that the network sees."""
    height, _, channels = trained.image_shape
    changes = {"source": source, "image_size": height, "channels": channels, "split": SplitConfig(validation=0, test=0)}
    return trained.data.model_copy(update=changes)


def _match_classes(source: str, found: Sequence[str], known: Sequence[str]) -> np.ndarray | None:
    """Return the network's class for each class of the data; None where they are the same.

    Raises:
        DataError: the data has classes that the network does not know.
    """
    if tuple(found) == tuple(known):
        return None
    if unknown := [name for name in found if name not in known]:
        raise DataError(
            f"{source}: expected classes that the network knows ({some(known)}), got others: {some(unknown)}"
        )
    return np.array([known.index(name) for name in found])


def _score(protocol: str, scored: ScoredSplit, trained: Trained, scales: Sequence[int], screen: Screen) -> Outcomes:
    """Score the whole split, with a progress bar.

    Raises:
        ConfigError: the network does not suit the protocol, or computes no numbers.
        DataError: there are not as many images as the split has.
    """
    number = len(scored.split.readable_numbers())
    smoothing = getattr(trained.model.loss, "label_smoothing", 0.0)
    views = make_protocol(protocol, trained.model, scored.split, trained.image_shape, trained.data.batch_size, scales)
    with screen.progress("evaluating", number) as advance:
        outcomes = score(views, label_order=scored.label_order, label_smoothing=smoothing, advance=advance)
    if len(outcomes) != number:
        raise DataError(f"{scored.split.unreadable.where}: expected {number:,} images, got {len(outcomes):,}")
    return outcomes


# --- what comes out -------------------------------------------------------------------------------------------------


def _describe(
    trained: Trained,
    scored: ScoredSplit,
    protocol: str,
    scales: Sequence[int],
    outcomes: Outcomes,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return what evaluation.json holds, but for source and folder."""
    class_names = trained.class_names
    return {
        "model": str(trained.file),
        "weights": trained.weights,
        "network": trained.experiment.model.name if trained.experiment else trained.model.name,
        "protocol": protocol,
        **({"scales": scales} if scales else {}),
        "split": scored.name,
        "left_out": scored.split.unreadable.names(),
        **_measure(trained, protocol, outcomes),
        "num_mistakes": len(outcomes.mistakes),
        "mistakes": [
            _describe_image(number, names, outcomes, class_names) for number in outcomes.mistakes[:NUM_EXAMPLES]
        ],
        "per_class": [
            {"class": name, **numbers}
            for name, numbers in zip(class_names, compute_class_metrics(outcomes, len(class_names)), strict=True)
        ],
        "notes": list(scored.notes),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in ("kpipe", "keras", "tensorflow")},
    }


def _measure(trained: Trained, protocol: str, outcomes: Outcomes) -> dict[str, Any]:
    """Return the metrics of the split. The means of `center` are those of the run, by the same code."""
    metrics = compute_metrics(outcomes, len(trained.class_names))
    if protocol == "center":
        return metrics | {name: float(value) for name, value in trained.model.get_metrics_result().items()}
    if not isinstance(trained.model.loss, CrossEntropy):
        metrics["cross_entropy"] = metrics.pop("loss")
    return metrics


def _describe_image(place: int, names: Sequence[str], outcomes: Outcomes, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "file": names[place],
        "label": class_names[outcomes.labels[place]],
        "prediction": class_names[outcomes.predictions[place]],
        "probability": float(outcomes.confidences[place]),
    }


def _read_images(split: Split, places: np.ndarray) -> np.ndarray:
    """Return the images at these places among the readable ones, int [n], in this order: uint8 [n, H, W, C]."""
    if not len(places):
        return np.zeros((0, 1, 1, 1), np.uint8)
    ascending = np.sort(places)
    numbers = split.readable_numbers()[ascending]
    [images] = split.evaluation_batches(numbers, len(numbers), lambda images, labels: images).as_numpy_iterator()
    return images[np.searchsorted(ascending, places)]


# --- what is written ------------------------------------------------------------------------------------------------


def _name_evaluation(
    trained: Trained,
    split: str,
    protocol: str,
    scales: Sequence[int],
    image_size: int | None,
    resize: str | None,
    data: str | None,
) -> str:
    """Return <split>_<protocol>, or <protocol> of a set without splits, with all else that was chosen.

    Each choice has a folder of its own.
    """
    parts = [*([] if split == "all" else [split]), protocol, *map(str, scales)]
    if trained.file.stem != "model":
        parts.append(trained.file.stem)
    parts += [f"{image_size}px"] if image_size else []
    parts += [resize] if resize else []
    parts += [re.sub(r"[^\w.-]+", "-", data).strip("-.")] if data else []
    name = "_".join(parts)
    if len(encoded := os.fsencode(name)) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[:_LONGEST_NAME].decode(errors='ignore')}-{digest}"


def _check_target(folder: Path) -> Path:
    """Return a folder to which all files can be written; raise ConfigError before any work."""
    check_output_folder(folder)
    if occupied := [folder / name for name in FILES if (folder / name).is_dir()]:
        raise ConfigError(
            f"{option('output')}: expected a folder for {', '.join(FILES)}, got one with a folder of such a name: "
            f"{path_shown(occupied[0])}. Move it, or give another folder"
        )
    return folder


def _write(
    folder: Path,
    result: dict[str, Any],
    outcomes: Outcomes,
    names: Sequence[str],
    class_names: Sequence[str],
    images: np.ndarray,
    files: Sequence[str],
) -> None:
    """Write all files, or none of them; a figure that cannot be drawn becomes one of the notes.

    Args:
        folder: to write.
        result: what evaluation.json holds.
        outcomes: of all images.
        names: of all images.
        class_names: K names.
        images: those of the mistakes that are drawn, uint8 [n, H, W, C].
        files: their names in the folder of the data.
    """
    count = counted(len(outcomes), "image")
    split = "" if result["split"] == "all" else f"{result['split']}, "
    caption = f"{run_label(Path(result['model']).parent.name)} · {split}{count} · {result['protocol']}"
    style = {"class_names": class_names, "caption": caption}
    counts = make_confusion_matrix(outcomes, len(class_names))
    with filling(folder, FILES) as new:
        with noting_failures(result["notes"], new, "confusion_matrix.png"):
            save_figure(draw_confusion(counts, **style), new / "confusion_matrix.png")
        with noting_failures(result["notes"], new, "mistakes.png"):
            shown = outcomes.mistakes[:NUM_EXAMPLES]
            columns = (outcomes.labels[shown], outcomes.predictions[shown], outcomes.confidences[shown])
            figure = draw_mistakes(Examples(images, *columns), outcomes, files=files, **style)
            save_figure(figure, new / "mistakes.png")
        _write_rows(new / "per_class.csv", list(result["per_class"][0]), (row.values() for row in result["per_class"]))
        described = (_describe_image(number, names, outcomes, class_names) for number in range(len(outcomes)))
        header = ["file", "label", "prediction", "probability"]
        _write_rows(new / "predictions.csv", header, (row.values() for row in described))
        rows = ([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))
        _write_rows(new / "confusion_matrix.csv", ["label", *class_names], rows)
        write_json(new / "evaluation.json", result)


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    # A name that is not UTF-8 is written with its own bytes.
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
