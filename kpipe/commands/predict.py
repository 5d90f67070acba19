"""`kpipe predict`: what a trained network says of image files.

N files, b images of a batch, H height, W width, C channels, K classes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kpipe import data, figures
from kpipe.assembly import make_form
from kpipe.caller import about_an_experiment
from kpipe.console import counted
from kpipe.data.image_files import list_unreadable, why_unreadable
from kpipe.errors import ConfigError, DataError
from kpipe.evaluation.metrics import compute_probabilities, concatenate
from kpipe.evaluation.predictions import Examples, Prediction
from kpipe.evaluation.views import compile_forward
from kpipe.layout import find_images, normalize_name
from kpipe.names import from_here, path_shown
from kpipe.streams import hold_back_libraries
from kpipe.trained import Trained, check_takes_files, load_trained

MOST_DRAWN = 36


Write = Callable[[Prediction], None]
"""Takes the predictions one after the other."""


@about_an_experiment()
def predict(
    run: str | Path,
    images: str | Path | Iterable[str | Path] | np.ndarray,
    *,
    top: int = 5,
    weights: str = "best",
    image_size: int | None = None,
    resize: str | None = None,
) -> list[Prediction]:
    """Predict the classes of images, which are read and resized as in the training of the network.

    Args:
        run: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        images: image files and folders of images, by their paths; or an array of images [B, H, W, C] or [H, W, C],
            0..255, of one or three channels. Images as large as the network sees them are taken as they are; others are
            resized like those in files.
        top: how many classes are returned for each image, at most all of them.
        weights, image_size, resize: as in `load_trained`.

    Returns:
        One prediction for each image, in their order. A file that cannot be read has a `problem` and no classes. The
        `file` of an image in an array is its number.

    Raises:
        ConfigError: as `load_network`; `top` is below 1; there are no images; or the array holds none.
        DataError: as `load_network`; a folder has no images; or not one of the files can be read.
    """
    if top < 1:
        raise ConfigError(f"top: expected at least 1, got {top}")
    array = _check_array(images) if hasattr(images, "__array__") else None
    files = [] if array is not None else _find_files(images)
    trained = load_network(run, weights=weights, image_size=image_size, resize=resize)
    if array is not None:
        return list(_predict_array(trained, array, top=top))
    with hold_back_libraries():
        found = list(_predict_files(trained, files, top=top))
    if all(prediction.problem for prediction in found):
        _refuse_unreadable(found, len(files))
    return found


def _find_files(paths: str | Path | Iterable[str | Path]) -> list[str]:
    """Return the image files that paths mean; raise ConfigError where there are none, or for what is no path."""
    try:
        files = find_images([os.fspath(path) for path in ([paths] if isinstance(paths, str | Path) else paths)])
    except TypeError:
        raise ConfigError(
            f"images: expected paths, or one array of images [B, H, W, C], got {type(paths).__name__}"
        ) from None
    if not files:
        raise ConfigError("images: expected image files or folders of images, got none")
    return files


def _check_array(images: Any) -> np.ndarray:
    """Return images [B, H, W, C] or [H, W, C] as uint8 [B, H, W, C]; raise ConfigError for what are none."""
    images = np.asarray(images)
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or not batch.size or batch.shape[3] not in (1, 3):
        raise ConfigError(
            "images: expected an array [B, H, W, C] or [H, W, C] with one or three channels, got the shape "
            f"{list(images.shape)}"
        )
    if batch.dtype.kind not in "uif":
        raise ConfigError(f"images: expected numbers 0..255, got {batch.dtype}")
    least, most = batch.min(), batch.max()
    if not 0 <= least <= most <= 255:  # NaN is refused as well
        raise ConfigError(
            f"images: expected values 0..255, got {least:g}..{most:g}. Give images that are not normalized"
        )
    if batch.dtype.kind == "f" and 0 < most <= 1:
        raise ConfigError(f"images: expected values 0..255, got {least:g}..{most:g}. Multiply the array by 255")
    return batch if batch.dtype == np.uint8 else np.round(batch).astype(np.uint8)


def load_network(run: str | Path, **options: str | int | None) -> Trained:
    """Call `load_trained`, for a network for photographs.

    Raises:
        ConfigError: as `load_trained`; or the network takes boards, sounds or texts, which no image file can hold.
        DataError: as `load_trained`.
    """
    trained = load_trained(run, **options)
    check_takes_files(trained, "kpipe predict takes image files only")
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
    tell: Callable[[str], None] = lambda line: None,
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
        tell: takes the line that says where the grid is.

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
        tell(f"The grid is in {path_shown(from_here(grid))}")
    if unreadable:
        _refuse_unreadable(unreadable, len(files))


def _refuse_unreadable(unreadable: Sequence[Prediction], total: int) -> None:
    """Raise DataError with a line for each file that cannot be read."""
    raise DataError(list_unreadable([(each.file, each.problem) for each in unreadable], total))


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
            yield _rank(files[number], row, trained.class_names, top)
            done = number + 1
    yield from _unreadable(files[done:])


def _predict_array(trained: Trained, images: np.ndarray, *, top: int) -> Iterator[Prediction]:
    """Yield a prediction for each image of an array uint8 [B, H, W, C]."""
    size, _, channels = trained.image_shape
    form = make_form(trained.data)
    form = replace(form, size=form.size or size, channels=channels)
    forward = compile_forward(trained.model)
    for start in range(0, len(images), trained.data.batch_size):
        batch = images[start : start + trained.data.batch_size]
        seen = data.resize_for_evaluation(batch, form, size)
        for number, row in enumerate(compute_probabilities(forward(seen)), start):
            yield _rank(str(number), row, trained.class_names, top)


def _rank(file: str, probabilities: np.ndarray, class_names: Sequence[str], top: int) -> Prediction:
    """Return the most probable classes of an image, of probabilities float64 [K]."""
    classes = np.argsort(-probabilities, kind="stable")[:top]
    return Prediction(file, tuple(class_names[label] for label in classes), tuple(probabilities[classes].tolist()))


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
        self._names: list[str] = []
        self._label_of = {name: label for label, name in enumerate(class_names)}

    def add(self, numbers: np.ndarray, images: np.ndarray, probabilities: np.ndarray) -> None:
        """Keep those of a batch that are wanted."""
        rows = np.isin(numbers, self.wanted)
        labels = np.array([self._label(self.files[number]) for number in numbers[rows]], np.int32)
        found = Examples(images[rows], labels, probabilities[rows].argmax(-1), probabilities[rows].max(-1))
        self._names += [os.path.basename(self.files[number]) for number in numbers[rows]]
        self.examples = concatenate([self.examples, found]) if self.examples else found

    def _label(self, file: str) -> int:
        folder = os.path.basename(os.path.dirname(os.path.abspath(file)))
        return self._label_of.get(normalize_name(folder), figures.UNKNOWN)

    def draw(self) -> Figure:
        """Draw them."""
        title = f"Predictions: {len(self.examples.labels)} of {counted(len(self.files), 'image')}"
        return figures.draw_predictions(
            **vars(self.examples), class_names=self.class_names, files=self._names, title=title, most=MOST_DRAWN
        )
