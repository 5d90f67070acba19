"""A source of the user's own: a function that returns images and labels.

N images, H height, W width, C channels, K classes.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpipe.caller import setting
from kpipe.catalog.own_code import describe, find_file, load_function, make_options
from kpipe.catalog.rows import Section, check_options
from kpipe.console import counted
from kpipe.data.arrays import ArraySplit, fit_images
from kpipe.data.images import Form
from kpipe.data.pixels import check_memory
from kpipe.data.sources.request import SPLIT_NAMES, SourceRequest, check_channels
from kpipe.data.splits import Source
from kpipe.errors import DataError, did_you_mean

_EXPECTED = (
    "expected a function that returns {'train': (images, labels), ...} and class names, images uint8 [N, H, W, C] of "
    "0..255 and labels [N] of 0 to K - 1"
)


def read_python(request: SourceRequest, **options) -> Source:
    """Return the images of a function of the user's own.

    The function takes the options of the source, and returns the splits and the names of the K classes. The splits are
    a dictionary: `train`, and where it has them `validation` and `test`, each with images uint8 [N, H, W, C] or
    [N, H, W], 0..255, and labels, whole numbers [N] from 0 to K - 1.

    Raises:
        ConfigError: the function cannot be imported, or does not take these options.
        DataError: it fails, or returns something else.
    """
    name = request.argument
    function = load_function(name, setting("source"))
    checked = check_options(setting("python"), make_options(function, Section, ()), **options)
    try:
        returned = function(**dict(checked))
    except Exception as error:
        raise DataError(f"{name}: {_EXPECTED}, got {describe(error, find_file(name))}") from error
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Mapping)):
        raise DataError(f"{name}: {_EXPECTED}, got {_describe_value(returned)}")
    given, class_names = returned
    if unknown := [split for split in given if split not in SPLIT_NAMES]:
        raise DataError(
            f"{name}: expected the splits train, validation and test, got {unknown[0]!r}"
            f"{did_you_mean(str(unknown[0]), SPLIT_NAMES)}"
        )
    class_names = tuple(map(str, class_names))
    arrays = {SPLIT_NAMES[split]: _check(f"{name}, {split}", value, len(class_names)) for split, value in given.items()}
    if "train" not in arrays:
        raise DataError(f"{name}: expected a split called train, got {', '.join(arrays) or 'none'}")
    contents = {split: _describe_contents(*pair, class_names) for split, pair in arrays.items()}
    splits = {
        split: ArraySplit(_in_form(f"{name}, {split}", images, request.form), labels)
        for split, (images, labels) in arrays.items()
    }
    return Source(splits, class_names, contents=contents)


def _check(where: str, value: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, H, W, C] and labels int32 [N] of a split."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise DataError(f"{where}: expected (images, labels), got {_describe_value(value)}")
    images, labels = map(np.asarray, value)
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise DataError(f"{where}: expected images uint8 [N, H, W, C] of 0..255, got {_describe_value(images)}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected a whole number for each of the {counted(len(images), 'image')}, got "
            f"{_describe_value(labels)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{where}: expected labels of 0 to {classes - 1}, one for each class name, got {wrong}")
    return images, labels.astype(np.int32)


def _in_form(where: str, images: np.ndarray, form: Form) -> np.ndarray:
    if form.size is None and form.channels in (None, images.shape[-1]):
        return images
    if form.channels is not None:
        check_channels(images.shape[-1], form.channels, where)
    side = form.size or images.shape[1]
    shape = (len(images), side, side, form.channels or images.shape[-1])
    check_memory(shape, where, f"Take a smaller {setting('image_size')}")
    return fit_images(images, form)


def _describe_contents(
    images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> dict[str, tuple[int, str]]:
    """Return the number of images of each class and their digest, by which a resumed run knows them again."""
    chosen = {name: images[labels == label] for label, name in enumerate(class_names)}
    return {name: (len(each), hashlib.sha256(each.tobytes()).hexdigest()[:16]) for name, each in chosen.items()}


def _describe_value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} [{', '.join(map(str, value.shape))}]"
    return type(value).__name__
