"""`kpipe data show` and `kpipe data check`: the images as a training sees them, and those that it could not read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from kpipe import data, figures
from kpipe.config import DataConfig, Experiment
from kpipe.console import Screen
from kpipe.errors import DataError
from kpipe.experiment import find_source, load_splits, make_augmentations


def show(experiment: Experiment, path: Path, *, images: int = 6, views: int = 4, screen: Screen | None = None) -> None:
    """Draws images of the training part: as they are, as they are kept, and as a training sees them.

    Args:
        experiment: its `data` section and seed count.
        path: the PNG file to write.
        images: rows, spread over the classes; a stream shows its first ones.
        views: how often each is drawn, with new random numbers.
        screen: where the user sees what was drawn; default standard output.

    Raises:
        ConfigError, DataError: as `load_dataset` and `make_pipeline`.
        OSError: the file cannot be written.
    """
    config, screen = experiment.data, screen or Screen()
    splits = load_splits(config, ahead=False)
    part, raw = _choose(config, splits.train, min(images, len(splits.train)))
    kept = list(data.read_images(part))
    names = [splits.class_names[label] for _, label in kept]
    rows = [[(before, name), (image, _sides(image))] for before, name, (image, _) in zip(raw, names, kept, strict=True)]
    batches = data.make_pipeline(
        _numbered(part),
        len(kept),
        seed=experiment.seed,
        augment=make_augmentations(config),
        image_size=splits.image_size,
        classes=len(kept),
        last_step=views,
    )
    for seen, numbers in batches.as_numpy_iterator():
        shares = numbers if numbers.ndim == 2 else np.eye(len(kept))[numbers]
        for row, place in zip(rows, np.argsort(shares.argmax(axis=1), kind="stable"), strict=True):
            row.append((seen[place], _caption(shares[place], names)))
    headings = ["raw", f"kept ({config.resize})", *(f"training {view + 1}" for view in range(views))]
    figures.write_image_grid(path, rows, headings, title=f"{experiment.name}: {config.source}")
    screen.line(f"{len(kept)} of {len(splits.train):,} images of the training part are drawn in {path}")


def check(experiment: Experiment, path: Path, *, screen: Screen | None = None) -> None:
    """Tries to read every image of every part, and writes the names of those that cannot be read.

    Args:
        experiment: its `data` section counts.
        path: the text file to write, one name a line; only where there is one to write.
        screen: for the progress bar and the counts; default standard output.

    Raises:
        DataError: there are images that cannot be read, or records that are lost.
        ConfigError, OSError: as `show`.
    """
    screen = screen or Screen()
    found = find_source(experiment.data, skip_limit=1.0)
    names, lost = [], 0
    for name, part in found.parts.items():
        if isinstance(part, data.Part):
            screen.line(f"{name}: {len(part):,} images, which come with kpipe")
            continue
        data.note_unreadable(part, screen.progress)
        missing = part.lost if isinstance(part, data.Records) else 0
        screen.line(
            f"{name}: {len(part) + missing:,} images, {len(part.unreadable):,} of them unreadable"
            + (f", {missing:,} lost at the end of files" if missing else "")
        )
        names += part.unreadable.names()
        lost += missing
    if names:
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", errors="surrogateescape")
    if names or lost:
        where = f"; their names are in {path}" if names else ""
        raise DataError(
            f"{experiment.data.source}: {len(names) + lost:,} images cannot be read{where}. Replace or remove them, or "
            "leave them out with data.on_error=skip"
        )


def _choose(config: DataConfig, part: data.AnyPart, images: int) -> tuple[data.AnyPart, list[np.ndarray]]:
    """Some images of a part, one class after the other, and the same as they are in their files."""
    if isinstance(part, data.Records):
        chosen = part.slice(0, images)
    else:
        by_class = np.argsort(part.labels, kind="stable")
        numbers = by_class[np.linspace(0, len(part) - 1, images).astype(int)]
        chosen = part.subset(numbers)
    if not isinstance(part, data.Part):
        whole = replace(chosen, form=data.Form(channels=chosen.form.channels), shape=(None, None, chosen.shape[2]))
        return chosen, [image for image, _ in data.read_images(whole)]
    if config.source == "digits":
        part = load_splits(config.model_copy(update={"image_size": None, "stored_size": None}), ahead=False).train
    return chosen, list(part.take(numbers))


def _numbered(part: data.AnyPart) -> data.AnyPart:
    """The part with the number of each image instead of its label: by it, a row of a batch is known again."""
    numbers = np.arange(len(part), dtype=np.int32)
    if isinstance(part, data.Part):
        return part.with_labels(numbers)
    if isinstance(part, data.Files):
        return replace(part, labels=numbers)
    known = tf.stack([contents for contents, _ in data.read_encoded(part)])

    def parse(record):
        contents, _ = part.parse(record)
        return contents, tf.argmax(contents == known, output_type=tf.int32)

    return replace(part, parse=parse)


def _sides(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _caption(shares: np.ndarray, names: list[str]) -> str:
    """Whose image it is, where two are mixed; else nothing, it stands at the left."""
    mixed = np.flatnonzero(shares)
    return " + ".join(f"{shares[number]:.2f} {names[number]}" for number in mixed) if len(mixed) > 1 else ""
