"""`kpipe data show` and `kpipe data check`: the images as a training sees them, and those that it could not read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from kpipe import data, figures
from kpipe.assembly import find_source, load_splits, make_augmentations
from kpipe.config.schema import DataConfig, Experiment
from kpipe.console import Screen
from kpipe.data.reading import translate_reading_errors
from kpipe.errors import DataError
from kpipe.files import write_names


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
    with translate_reading_errors(splits.parts.values()):
        part, raw = _choose(config, splits.train, min(images, len(splits.train)))
        kept = list(data.read_images(part))
        names = [splits.class_names[label] for _, label in kept]
        rows = [
            [(before, name), (image, _sides(image))] for before, name, (image, _) in zip(raw, names, kept, strict=True)
        ]
        for order, batch in zip(*_draw(experiment, splits, part, len(kept), views), strict=True):
            for place, number in enumerate(order):
                rows[number].append((batch[0][place], _caption(batch[1][place], names)))
    headings = ["raw", f"kept ({config.resize})", *(f"training {view + 1}" for view in range(views))]
    figure = figures.draw_image_grid(rows, headings, title=f"{experiment.name}: {config.source}")
    figures.save_figure(figure, path)
    screen.line(f"{len(kept)} of {len(splits.train):,} images of the training part are drawn in {path}")


def _draw(experiment: Experiment, splits: data.Splits, part: data.AnyPart, images: int, views: int):
    """For each view, which image each row of its batch shows, and the batch with these numbers as labels."""

    def pipeline(augment):
        return data.make_pipeline(
            _numbered(part),
            images,
            seed=experiment.seed,
            augment=augment,
            image_size=splits.image_size,
            classes=images,
            last_step=views,
        ).as_numpy_iterator()

    plain = pipeline([])  # the order is the same whatever is done to the images
    return (order for _, order in plain), pipeline(make_augmentations(experiment.data, splits.image_shape[-1]))


def check(experiment: Experiment, path: Path, *, screen: Screen | None = None) -> None:
    """Tries to read every image of every part, and writes the names of those that cannot be read.

    Args:
        experiment: its `data` section counts.
        path: the text file to write, one name a line; without a name only where it exists already.
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
    if names or path.exists():  # a list of before is not left there
        write_names(path, names)
    if names or lost:
        where = f"; their names are in {path}" if names else ""
        advice = "" if experiment.data.on_error == "skip" else ", or leave them out with data.on_error=skip"
        raise DataError(
            f"{experiment.data.source}: {len(names) + lost:,} images cannot be read{where}. "
            f"Replace or remove them{advice}"
        )


def _choose(config: DataConfig, part: data.AnyPart, images: int) -> tuple[data.AnyPart, list[np.ndarray]]:
    """Some images of a part that can be read, one class after the other, and the same as they are in their files."""
    if isinstance(part, data.Records):
        chosen = part.slice(0, images)
    else:
        numbers = np.argsort(part.labels, kind="stable")[np.linspace(0, len(part) - 1, images).astype(int)]
        chosen = part.subset(numbers)
    if isinstance(part, data.Part):
        if config.source == "digits":
            part = load_splits(config.model_copy(update={"image_size": None, "stored_size": None}), ahead=False).train
        return chosen, list(part.take(numbers))
    data.note_unreadable(chosen)
    if isinstance(chosen, data.Files):
        chosen = chosen.subset(data.readable_numbers(chosen))
    whole = replace(chosen, form=data.Form(channels=chosen.form.channels), shape=(None, None, chosen.shape[2]))
    return chosen, [image for image, _ in data.read_images(whole)]


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


def _caption(label: np.ndarray, names: list[str]) -> str:
    """Whose images are mixed, and in which shares; nothing for an image that is not, whose name stands at the left."""
    if not label.ndim:
        return ""
    shares = label
    mixed = np.flatnonzero(shares)
    return " + ".join(f"{shares[number]:.2f} {names[number]}" for number in mixed) if len(mixed) > 1 else ""
