"""`kpipe evaluate`: the numbers of a trained network on a whole split. `evaluate_screen` prints them."""

import csv
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kpipe.assembly import load_splits
from kpipe.caller import about_an_experiment
from kpipe.catalog.data import absolute_source, check_source
from kpipe.catalog.evaluation import PROTOCOLS
from kpipe.catalog.wording import show
from kpipe.config.schema import DataConfig, SplitConfig
from kpipe.console import Screen, counted
from kpipe.data.files import FileSplit
from kpipe.data.reading import note_unreadable, translate_reading_errors
from kpipe.data.records import RecordSplit
from kpipe.data.splits import Split, Splits
from kpipe.errors import ConfigError, DataError, did_you_mean, some
from kpipe.evaluation.metrics import Outcomes, count_pairs, measure, measure_classes
from kpipe.evaluation.scoring import score
from kpipe.evaluation.views import Protocol, see_all_places, see_center, see_many_crops, see_ten_crops
from kpipe.figures.confusion import draw_confusion_matrix
from kpipe.figures.image_grids import draw_predictions
from kpipe.figures.style import label, noting_failures, save_figure
from kpipe.files import check_output_folder, expand_path, translate_write_errors, write_json
from kpipe.names import path_shown
from kpipe.runs.dataset import describe_changes
from kpipe.signals import stop_signals
from kpipe.trained import Trained, load_trained

FILES = (
    "evaluation.json",
    "per_class.csv",
    "predictions.csv",
    "confusion_matrix.csv",
    "confusion_matrix.png",
    "mistakes.png",
)
MOST_MISTAKES = 25  # in the figure and in evaluation.json
_LONGEST_NAME = 100  # characters of a source in the name of a folder


@dataclass(frozen=True)
class _Chosen:
    """The split that is scored."""

    splits: Splits
    name: str
    kept: Split
    """Its images as the run keeps them."""
    split: Split
    """Its images as the protocol needs them: whole, or as the run keeps them."""
    label_order: np.ndarray | None
    """The network's class for each class of the data, int [K]; None: they are the same."""
    notes: tuple[str, ...]


@about_an_experiment()
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
    output: str | Path | None = None,
    screen: Screen | None = None,
) -> dict[str, Any]:
    """Score a trained network on a whole split, and write what comes out.

    Args:
        run: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        protocol: what of each image the network sees: `center`, `ten_crop`, `multi_crop` or `dense`.
        split: train, validation or test. Default: test if there is one, else validation.
        data: another source with the same classes. Nothing is cut off it: a set without splits is scored whole.
        weights: of a run that has averaged its weights: `raw`, `averaged`, or `best`, the better of the two.
        scales: for `dense`, pixels of the shorter side, one scale after the other. Default: that of the kept images.
        image_size, resize: as for `load_trained`, for a model file outside a run.
        output: folder to write. Default: evaluation/<split>_<protocol> in the run, or beside the model file.
        screen: shows the progress; default: standard output.

    Returns:
        What evaluation.json holds: `images` and the metrics of `kpipe.evaluation.metrics.measure`, `per_class`, the
        surest `mistakes`, what was scored, and `folder`, which has the files.

    Raises:
        ConfigError: there is no such run, split or protocol, or the network or its images do not suit the protocol.
        DataError: the images cannot be read, or have other classes than the network.
        EnvironmentFault: the folder cannot be written.
    """
    screen = screen or Screen()
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol: expected a known name, got {show(protocol)}{did_you_mean(protocol, PROTOCOLS)}")
    if scales and protocol != "dense":
        raise ConfigError(f"scales: expected them with the protocol dense alone, got {protocol}")
    data = data and _absolute(data)
    trained = load_trained(run, weights=weights, image_size=image_size, resize=resize)
    if trained.run is None and data is None:
        raise ConfigError(
            f"data: expected a source of images for {path_shown(trained.file)}, which names none, got none"
        )
    _check_protocol(trained, protocol, scales)
    check_source(data or trained.data.source)
    if output is not None:
        output = check_output_folder(expand_path(str(output), "output"))
    chosen = _choose(trained, data, split, protocol, screen)
    folder = output or check_output_folder(_default_folder(trained, chosen.name, protocol, data))
    scales = list(scales or [_kept_side(trained)]) if protocol == "dense" else []
    with translate_reading_errors(chosen.splits.by_name.values()):
        outcomes = _score(_make_protocol(protocol, trained, chosen.split, scales), chosen, trained, screen)
        surest = outcomes.surest_mistakes[:MOST_MISTAKES]
        mistakes = _read_images(chosen.kept, surest)
    names, class_names = _name_images(chosen.split), trained.class_names
    result = {
        "model": str(trained.file),
        "network": trained.experiment.model.name if trained.experiment else trained.model.name,
        "protocol": protocol,
        **({"scales": scales} if scales else {}),
        "data": data or trained.data.source,
        "split": chosen.name,
        "left_out": chosen.split.unreadable.names(),
        **measure(outcomes, len(class_names)),
        **(_read_means(trained) if protocol == "center" else {}),
        "num_mistakes": len(outcomes.surest_mistakes),
        "mistakes": [_describe_image(place, names, outcomes, class_names) for place in surest],
        "per_class": [
            {"class": name, **numbers}
            for name, numbers in zip(class_names, measure_classes(outcomes, len(class_names)), strict=True)
        ],
        "notes": list(chosen.notes),
        "folder": str(folder),
    }
    with translate_write_errors(folder), screen.status("drawing figures"):
        _write(folder, result, outcomes, names, class_names, mistakes)
    return result


# --- what is scored -------------------------------------------------------------------------------------------------


def _absolute(source: str) -> str:
    try:
        return absolute_source(source)
    except ConfigError as error:
        raise ConfigError(f"data: {error}") from None


def _check_protocol(trained: Trained, protocol: str, scales: Sequence[int]) -> None:
    """Raise ConfigError where the network's images do not suit the protocol."""
    height, width, _ = trained.image_shape
    if protocol == "center":
        return
    if height != width:
        raise ConfigError(
            f"protocol: expected center for images of {height}x{width}, which are not square, got {protocol}"
        )
    if protocol == "ten_crop" and _kept_side(trained) <= height:
        raise ConfigError(
            "protocol: expected for ten_crop images that are kept larger (data.stored_size) than the network sees them "
            f"(data.image_size), got {height} pixels for both. multi_crop and dense see the whole image"
        )
    if too_small := [scale for scale in scales if scale < height]:
        raise ConfigError(
            f"scales: expected at least the {height} pixels that the network sees, got {', '.join(map(str, too_small))}"
        )


def _kept_side(trained: Trained) -> int:
    return trained.data.stored_size or trained.image_shape[0]


def _choose(trained: Trained, data: str | None, name: str | None, protocol: str, screen: Screen) -> _Chosen:
    """Load the images, and choose the split that is scored."""
    config = _config_of(trained, data) if data else trained.data
    splits = load_splits(config, ahead=False, progress=screen.progress)
    name = _find_split(splits, name, is_whole=data is not None)
    if splits.by_name[name].is_stream and name not in splits.contents:
        splits = load_splits(config, progress=screen.progress)  # a stream that is decoded in advance is cut by class
    if splits.image_shape != trained.image_shape:
        expected, got = ("x".join(map(str, shape)) for shape in (trained.image_shape, splits.image_shape))
        raise DataError(f"{config.source}: expected images of {expected}, which the network sees, got {got}")
    kept = split = splits.by_name[name]
    notes = list(trained.notes)
    if split.unreadable.limit is not None and not split.kept_pixels:
        note_unreadable(split, screen.progress)
    if protocol in ("multi_crop", "dense"):
        if isinstance(split, FileSplit | RecordSplit):
            split = split.as_stored()
        else:
            height, width, _ = split.shape
            notes.append(f"the whole images are those that are kept, {height}x{width}: the source has no files of them")
    order = _match_classes(config.source, splits.class_names, trained.class_names)
    if absent := [each for each in trained.class_names if each not in splits.class_names]:
        notes.append(f"the data has no class {some(absent)}")
    if data is None and trained.run:
        notes += [f"the data has changed since the run: {change}" for change in describe_changes(trained.run, splits)]
    return _Chosen(splits, name, kept, split, order, tuple(notes))


def _config_of(trained: Trained, source: str) -> DataConfig:
    """Return how another source is read: as in training, in one piece, and in the form that the network sees."""
    height, _, channels = trained.image_shape
    changes = {"source": source, "image_size": height, "channels": channels, "split": SplitConfig(validation=0, test=0)}
    return trained.data.model_copy(update=changes)


def _find_split(splits: Splits, name: str | None, *, is_whole: bool) -> str:
    """Return the name of the split that is scored.

    Args:
        splits: the data.
        name: what the user chose.
        is_whole: whether a set without splits is all in `train`.
    """
    order = ("test", "validation", "train") if is_whole else ("test", "validation")
    wanted = (name,) if name else order
    for each in wanted:
        if each in splits.by_name:
            return each
    raise ConfigError(f"split: expected one of {', '.join(splits.by_name)}, got {name or 'no held-out split'}")


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


def _make_protocol(protocol: str, trained: Trained, split: Split, scales: Sequence[int]) -> Protocol:
    model, size, batch_size = trained.model, trained.image_shape[0], trained.data.batch_size
    if protocol == "dense":
        return see_all_places(model, split, scales, batch_size)
    if size != trained.image_shape[1]:
        size = None  # such images are not cropped
    see = {"center": see_center, "ten_crop": see_ten_crops, "multi_crop": see_many_crops}[protocol]
    return see(model, split, size, batch_size)


def _score(views: Protocol, chosen: _Chosen, trained: Trained, screen: Screen) -> Outcomes:
    """Score the whole split, with a progress bar.

    Raises:
        DataError: there are not as many images as the split has.
    """
    number = len(chosen.split.readable_numbers())
    smoothing = getattr(trained.model.loss, "label_smoothing", 0.0)
    with screen.progress(f"evaluating {counted(number, 'image')}", number) as advance:
        outcomes = score(views, label_order=chosen.label_order, label_smoothing=smoothing, advance=advance)
    if len(outcomes) != number:
        raise DataError(f"{chosen.split.unreadable.where}: expected {number:,} images, got {len(outcomes):,}")
    return outcomes


def _read_means(trained: Trained) -> dict[str, float]:
    """Return the loss and the metrics as a run reports them: the same code, over the same batches."""
    return {name: float(value) for name, value in trained.model.get_metrics_result().items()}


def _name_images(split: Split) -> list[str]:
    """Return the file of each readable image; where there are no files, its number in the split."""
    name = split.unreadable.name if split.unreadable.are_files else str
    return [name(int(number)) for number in split.readable_numbers()]


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


def _default_folder(trained: Trained, split: str, protocol: str, data: str | None) -> Path:
    """Return evaluation/<split>_<protocol> beside the model file; its name also tells other weights and other data."""
    parts = [split, protocol]
    if trained.file.stem != "model":
        parts.append(trained.file.stem)
    if data:
        parts.append(re.sub(r"[^\w.-]+", "-", data)[-_LONGEST_NAME:].strip("-."))
    return trained.file.parent / "evaluation" / "_".join(parts)


def _write(
    folder: Path,
    result: dict[str, Any],
    outcomes: Outcomes,
    names: Sequence[str],
    class_names: Sequence[str],
    mistakes: np.ndarray,
) -> None:
    """Write all files, or none of them; a figure that cannot be drawn becomes one of the notes."""
    images = counted(len(outcomes), "image")
    caption = label(f"{Path(result['model']).parent.name} · {result['split']}, {images} · {result['protocol']}", 100)
    style = {"class_names": class_names, "caption": caption}
    surest = outcomes.surest_mistakes[:MOST_MISTAKES]
    counts = count_pairs(outcomes, len(class_names))
    with _filling(folder) as new:
        with noting_failures(result["notes"], new, "confusion_matrix.png"):
            figure = draw_confusion_matrix(outcomes.labels, outcomes.predictions, **style)
            save_figure(figure, new / "confusion_matrix.png")
        with noting_failures(result["notes"], new, "mistakes.png"):
            wrong = result["num_mistakes"]
            title = f"Mistakes: {len(surest)} of {wrong:,}, the highest probability first" if wrong else "No mistakes"
            columns = (outcomes.labels[surest], outcomes.predictions[surest], outcomes.confidences[surest])
            save_figure(draw_predictions(mistakes, *columns, **style, title=title), new / "mistakes.png")
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


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files are moved to `folder` at the end; after an error nothing of it is left.

    Of `FILES`, those that were not written are removed: they would be of an earlier evaluation.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary, stop_signals() as stop:
        new = Path(temporary)
        yield new
        stop.defer()  # the rest takes milliseconds
        folder.mkdir(exist_ok=True)
        for name in FILES:
            if (new / name).exists():
                os.replace(new / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        stop.obey()
