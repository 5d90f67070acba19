"""`kpipe data show` and `kpipe data check`: the images that training sees, and those that it could not read."""

from pathlib import Path

import numpy as np

from kpipe import data, figures
from kpipe.assembly import find_source, load_splits, make_augmentations
from kpipe.catalog.data import parse_source
from kpipe.config.schema import DataConfig, Experiment
from kpipe.console import Screen, counted
from kpipe.errors import DataError
from kpipe.files import write_names
from kpipe.names import path_shown, printable


def show(experiment: Experiment, path: Path, *, images: int = 6, views: int = 4, screen: Screen | None = None) -> None:
    """Draw images of the training split: as they are stored, as they are kept, and as training sees them.

    Args:
        experiment: its `data` section and its seed are used.
        path: the PNG file to write.
        images: number of rows, spread over the classes. A stream shows its first images.
        views: number of times that each is drawn, with new random numbers.
        screen: where the user reads what was drawn; by default standard output.

    Raises:
        ConfigError, DataError: as `load_dataset` and `make_pipeline`.
        OSError: the file cannot be written.
    """
    config, screen = experiment.data, screen or Screen()
    splits = load_splits(config, ahead=False)
    with data.translate_reading_errors(splits.by_name.values()):
        split, raw = _choose(config, splits.train, min(images, len(splits.train)))
        kept = list(split.read())
        names = [splits.class_names[label] for _, label in kept]
        rows = [
            [(before, name), (image, _sides(image))] for before, name, (image, _) in zip(raw, names, kept, strict=True)
        ]
        for order, batch in zip(*_draw(experiment, splits, split, len(kept), views), strict=True):
            for place, number in enumerate(order):
                rows[number].append((batch[0][place], _caption(batch[1][place], names)))
    headings = ["raw", f"kept ({config.resize})", *(f"training {view + 1}" for view in range(views))]
    figure = figures.draw_image_grid(rows, headings, title=f"{experiment.name}: {config.source}")
    figures.save_figure(figure, path)
    screen.prose(f"{len(kept)} of {counted(len(splits.train), 'image')} of the training split are drawn in")
    screen.line(f"  {path}")


def check(experiment: Experiment, path: Path, *, screen: Screen | None = None) -> None:
    """Try to read every image of every split, and write the names of those that cannot be read.

    Args:
        experiment: its `data` section is used.
        path: the text file to write, one name a line. With no names, it is written only if it exists already.
        screen: shows the progress bar and the counts; by default standard output.

    Raises:
        DataError: there are images that cannot be read, or records that are lost.
        ConfigError, OSError: as `show`.
    """
    screen = screen or Screen()
    found = find_source(experiment.data, skip_limit=1.0)
    names, lost = [], 0
    for name, split in found.splits.items():
        if split.kept_pixels:
            screen.line(f"{name}: {counted(len(split), 'image')}, which come with kpipe")
            continue
        data.note_unreadable(split, screen.progress)
        screen.line(
            f"{name}: {counted(len(split) + split.lost, 'image')}, {len(split.unreadable):,} of them unreadable"
            + (f", {split.lost:,} lost at the end of files" if split.lost else "")
        )
        for reason, files in split.unreadable.count_reasons().items():
            screen.line(f"  {files:,}: {reason}")
        names += split.unreadable.names()
        lost += split.lost
    if names or path.exists():  # an old list must not stay
        write_names(path, names)
    if names or lost:
        them, name = ("it", "Its name is") if len(names) + lost == 1 else ("them", "Their names are")
        advice = "" if experiment.data.on_error == "skip" else f", or leave {them} out with data.on_error=skip"
        where = f". {name} in\n  {path_shown(path)}" if names else ""
        raise DataError(
            f"{printable(experiment.data.source)}: {counted(len(names) + lost, 'image')} cannot be read. "
            f"Replace or remove {them}{advice}{where}"
        )


def _draw(experiment: Experiment, splits: data.Splits, split: data.Split, images: int, views: int):
    """Return, for each view, the number of the image in each row, and the batch with these numbers as labels."""

    def pipeline(augment):
        return data.make_pipeline(
            split.numbered(),
            images,
            seed=experiment.seed,
            augment=augment,
            image_size=splits.image_size,
            classes=images,
            last_step=views,
        ).as_numpy_iterator()

    plain = pipeline([])  # augmentations do not change the order
    return (order for _, order in plain), pipeline(make_augmentations(experiment.data, splits.image_shape))


def _choose(config: DataConfig, split: data.Split, images: int) -> tuple[data.Split, list[np.ndarray]]:
    """Return some readable images of a split, and the same images as they are in their files."""
    numbers = split.spread(images)
    chosen = split.select(numbers)
    if split.kept_pixels:
        row, _ = parse_source(config.source)
        if row.is_resized:  # raw images have the size of the source
            native = config.model_copy(update={"image_size": None, "stored_size": None})
            split = load_splits(native, ahead=False).train
        return chosen, [image for image, _ in split.select(numbers).read()]
    data.note_unreadable(chosen)
    if not chosen.is_stream:
        chosen = chosen.select(chosen.readable_numbers())
    return chosen, [image for image, _ in chosen.as_stored().read()]


def _sides(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _caption(label: np.ndarray, names: list[str]) -> str:
    """Return which images are mixed, in which fractions. An image that is not mixed needs no caption."""
    if not label.ndim:
        return ""
    mixed = np.flatnonzero(label)
    return " + ".join(f"{label[number]:.2f} {names[number]}" for number in mixed) if len(mixed) > 1 else ""
