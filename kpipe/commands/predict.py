"""`kpipe predict`: what a trained network says of image files.

N files, b images of a batch, H height, W width, C channels, K classes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from kpipe import data, figures
from kpipe.assembly import make_form
from kpipe.caller import about_an_experiment
from kpipe.console import counted
from kpipe.data.image_files import why_unreadable
from kpipe.errors import ConfigError, DataError
from kpipe.evaluation.metrics import compute_probabilities, concatenate
from kpipe.evaluation.predictions import Examples, Prediction
from kpipe.evaluation.views import compile_forward
from kpipe.layout import find_images, normalize_name
from kpipe.names import path_shown
from kpipe.trained import Trained, load_trained

MOST_DRAWN = 36


Write = Callable[[Prediction], None]
"""Takes the predictions one after the other."""


@about_an_experiment()
def predict(
    run: str | Path,
    paths: str | Path | Iterable[str | Path],
    *,
    top: int = 5,
    weights: str = "best",
    image_size: int | None = None,
    resize: str | None = None,
) -> list[Prediction]:
    """Predict the classes of images, which are read and resized as in the training of the network.

    Args:
        run: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        paths: image files and folders of images.
        top: how many classes are returned for each image, at most all of them.
        weights, image_size, resize: as in `load_trained`.

    Returns:
        One prediction for each file, in the order of `paths`. One that cannot be read has a `problem` and no classes.

    Raises:
        ConfigError: as `load_network`; `top` is below 1; or there are no paths.
        DataError: as `load_network`; a folder has no images; or not one of the files can be read.
    """
    if top < 1:
        raise ConfigError(f"top: expected at least 1, got {top}")
    files = find_images([os.fspath(path) for path in ([paths] if isinstance(paths, str | Path) else paths)])
    if not files:
        raise ConfigError("paths: expected image files or folders of images, got none")
    trained = load_network(run, weights=weights, image_size=image_size, resize=resize)
    found = list(_predict_files(trained, files, top=top))
    if all(prediction.problem for prediction in found):
        _refuse_unreadable(found, len(files))
    return found


def load_network(run: str | Path, **options: str | int | None) -> Trained:
    """Call `load_trained`, for a network for photographs.

    Raises:
        ConfigError: as `load_trained`; or the network takes boards, sounds or texts, which no image file can hold.
        DataError: as `load_trained`.
    """
    trained = load_trained(run, **options)
    height, width, channels = trained.image_shape
    source = getattr(trained.data, trained.data.source.partition(":")[0], None)
    kind = f" ({source.kind})" if source and source.native.has_fixed_channels else ""
    if height != width or channels not in (1, 3) or kind:
        raise ConfigError(
            f"{path_shown(trained.file)}: expected a network of square images in gray or color, got one of "
            f"{height}x{width}x{channels}{kind}. kpipe predict takes image files only"
        )
    return trained


def print_predictions(
    trained: Trained,
    files: Sequence[str],
    write: Write,
    *,
    top: int,
    grid: Path | None = None,
    progress: data.ProgressReporter = data.no_progress,
    is_read: Callable[[], bool] = lambda: True,
) -> None:
    """Predict the classes of image files, and write the predictions while they come.

    Args:
        trained: what `load_network` returns.
        files: at least one.
        write: what a function of `kpipe.commands.predict_screen` returns.
        top: number of classes for each image.
        grid: PNG file in which some of the images are drawn with their predictions; None: none is.
        progress: shows how many images are done.
        is_read: whether anybody reads what is written, asked once a batch. If not, and there is no grid to draw, the
            rest is not predicted.

    Raises:
        DataError: files cannot be read. The predictions of all others are written.
        OSError: `grid` cannot be written.
    """
    sample = _Sample(trained.class_names, files) if grid else None
    unreadable = []
    found = _predict_files(trained, files, top=top, sample=sample, progress=progress)
    for place, prediction in enumerate(found):
        if not (grid or place % trained.data.batch_size or is_read()):
            return
        if prediction.problem:
            unreadable.append(prediction)
        else:
            write(prediction)
    if sample and sample.examples:
        figures.save_figure(sample.draw(), grid)
    if unreadable:
        _refuse_unreadable(unreadable, len(files))


def _refuse_unreadable(unreadable: Sequence[Prediction], total: int) -> None:
    """Raise DataError with a line for each file that cannot be read."""
    lines = [f"{path_shown(each.file)}: cannot be read ({each.problem})" for each in unreadable]
    if total > 1:
        got = "not one" if len(unreadable) == total else f"{total - len(unreadable):,}"
        lines.append(f"expected {counted(total, 'image')}, got {got} that can be read. Replace or remove the others")
    raise DataError("\n".join(lines))


# --- predictions ----------------------------------------------------------------------------------------------------


def _predict_files(
    trained: Trained,
    files: Sequence[str],
    *,
    top: int,
    sample: "_Sample | None" = None,
    progress: data.ProgressReporter = data.no_progress,
) -> Iterator[Prediction]:
    """Yield a prediction for each file, in their order. One batch is in memory at a time."""
    size, _, channels = trained.image_shape
    form = make_form(trained.data)
    split = data.unlabeled_files(files, replace(form, size=form.size or size, channels=channels))
    batches = data.iterate_readable(split, trained.data.batch_size, size, "predicting", progress)
    forward, done = compile_forward(trained.model), 0
    for numbers, images in batches:
        probabilities = compute_probabilities(forward(images))
        if sample:
            sample.add(numbers, images, probabilities)
        for number, row in zip(numbers, probabilities, strict=True):
            yield from _unreadable(files[done:number])
            classes = np.argsort(-row, kind="stable")[:top]
            names = tuple(trained.class_names[label] for label in classes)
            yield Prediction(files[number], names, tuple(row[classes].tolist()))
            done = number + 1
    yield from _unreadable(files[done:])


def _unreadable(files: Iterable[str]) -> Iterator[Prediction]:
    return (Prediction(file, problem=why_unreadable(file)) for file in files)


class _Sample:
    """Images spread evenly over all files, with what the network says of them.

    Args:
        class_names: K names.
        files: the files. A file in a folder that has the name of a class is of this class.
    """

    def __init__(self, class_names: Sequence[str], files: Sequence[str]):
        self.class_names, self.files = class_names, files
        self.wanted = np.unique(np.linspace(0, len(files) - 1, MOST_DRAWN).astype(int))
        self.examples: Examples | None = None
        self._label_of = {name: label for label, name in enumerate(class_names)}

    def add(self, numbers: np.ndarray, images: np.ndarray, probabilities: np.ndarray) -> None:
        """Keep those of a batch that are wanted."""
        rows = np.isin(numbers, self.wanted)
        labels = np.array([self._label(self.files[number]) for number in numbers[rows]], np.int32)
        found = Examples(images[rows], labels, probabilities[rows].argmax(-1), probabilities[rows].max(-1))
        self.examples = concatenate([self.examples, found]) if self.examples else found

    def _label(self, file: str) -> int:
        folder = os.path.basename(os.path.dirname(os.path.abspath(file)))
        return self._label_of.get(normalize_name(folder), figures.UNKNOWN)

    def draw(self) -> Figure:
        """Draw them."""
        title = f"Predictions: {len(self.examples.labels)} of {counted(len(self.files), 'image')}"
        return figures.draw_predictions(
            **vars(self.examples), class_names=self.class_names, title=title, most=MOST_DRAWN
        )
