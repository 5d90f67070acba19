"""A source of the user's own: a function that returns images and labels.

N images, H height, W width, C channels, K classes.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kpipe.caller import setting
from kpipe.catalog.own_code import load_function, make_options, running
from kpipe.catalog.rows import Section, check_options
from kpipe.console import counted
from kpipe.data.arrays import ArraySplit, fit_images
from kpipe.data.images import Form
from kpipe.data.pixels import check_memory
from kpipe.data.sources.request import SPLIT_NAMES, SourceRequest, check_channels
from kpipe.data.splits import Source
from kpipe.errors import DataError, did_you_mean, first_line
from kpipe.names import quoted

_EXPECTED = (
    "expected a function that returns {'train': (images, labels), ...} and class names, images uint8 [N, H, W, C] of "
    "0..255 and labels [N] of 0 to K - 1"
)


def read_python(request: SourceRequest, /, **options) -> Source:
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
    section = make_options(function, name, setting("source"), Section)
    checked = check_options(setting("python"), section, **options)
    with running(name, f"{name}: expected images and labels, but it raised", DataError):
        returned = function(**dict(checked))
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Mapping)):
        raise DataError(f"{name}: {_EXPECTED}, got {_describe_value(returned)}")
    class_names = _check_class_names(name, returned[1])
    given = _name_splits(name, returned[0])
    arrays = {split: _check(f"{name}, {split}", value, len(class_names)) for split, value in given.items()}
    contents = {split: _describe_contents(*pair, class_names) for split, pair in arrays.items()}
    splits = {
        split: ArraySplit(_in_form(f"{name}, {split}", images, request.form), labels)
        for split, (images, labels) in arrays.items()
    }
    expected = splits["train"].shape
    for split, kept in splits.items():
        if kept.shape != expected:
            raise DataError(
                f"{name}, {split}: expected images of {_by(expected)} as in train, got {_by(kept.shape)}. Return one "
                "size and number of channels in all splits"
            )
    return Source(splits, class_names, contents=contents)


def _check_class_names(where: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise DataError(f"{where}: expected a list of class names, got {_describe_value(names)}")
    names = list(map(str, names))
    if again := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{where}: expected class names that differ, got {quoted(again)} twice")
    return tuple(names)


def _name_splits(where: str, given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what was given for each split by kpipe's names of them; train is among them."""
    if unknown := [split for split in given if split not in SPLIT_NAMES]:
        raise DataError(
            f"{where}: expected the splits train, validation and test, got {unknown[0]!r}"
            f"{did_you_mean(str(unknown[0]), SPLIT_NAMES)}"
        )
    named = {SPLIT_NAMES[split]: value for split, value in given.items()}
    if len(named) < len(given):
        raise DataError(f"{where}: expected each split once, got {', '.join(given)}, two of which are validation")
    if "train" not in named:
        raise DataError(f"{where}: expected a split called train, got {', '.join(named) or 'none'}")
    return named


def _check(where: str, value: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, H, W, C] and labels int32 [N] of a split."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise DataError(f"{where}: expected (images, labels), got {_describe_value(value)}")
    images, labels = _to_array(where, value[0]), _to_array(where, value[1])
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
    contents = {}
    for label, name in enumerate(class_names):
        numbers, digest = np.flatnonzero(labels == label), hashlib.sha256()
        for number in numbers:  # one by one: a copy of them all may not fit into the memory
            digest.update(np.ascontiguousarray(images[number]))
        contents[name] = len(numbers), digest.hexdigest()[:16]
    return contents


def _to_array(where: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        shapes = list(dict.fromkeys(np.shape(each) for each in values)) if isinstance(values, list | tuple) else []
        if len(shapes) < 2 or min(map(len, shapes)) < 2:
            raise DataError(f"{where}: expected arrays of images and labels, got {first_line(error)}") from None
        raise DataError(
            f"{where}: expected images of one size, got {' and '.join(map(_by, shapes[:2]))}. Resize them in your "
            "function, or use folder:<path>, which does it"
        ) from None


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _describe_value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} [{', '.join(map(str, value.shape))}]"
    return type(value).__name__
