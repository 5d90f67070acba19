"""Decoded pixels of a split, kept in memory or on the disk.

N images, H height, W width, C channels.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import tensorflow as tf
from filelock import FileLock

from kpipe.caller import setting
from kpipe.console import describe_size
from kpipe.data.arrays import ArraySplit
from kpipe.data.pixels import allocate, check_memory
from kpipe.data.reading import read_what_can_be_read
from kpipe.data.splits import ProgressReporter, Split, no_progress
from kpipe.errors import DataError, EnvironmentFault
from kpipe.files import REFUSALS, replacing

CHUNK = 256  # images that are copied at a time
_ELSEWHERE = "set KPIPE_CACHE to another folder, or set data.cache=none"
VERSION = 2  # of `kpipe.data.images`; raise it when the same file gives other pixels


def count_bytes(split: Split) -> int | None:
    """Return the number of bytes of the decoded images; None: it is known only when they are read."""
    return None if None in split.shape else len(split) * int(np.prod(split.shape))


def cache_in_memory(split: Split, progress: ProgressReporter = no_progress, *, most: float | None = None) -> ArraySplit:
    """Decode the whole split.

    Args:
        split: its images have a known size, or all the same size.
        progress: shows how many images are decoded.
        most: largest number of bytes that it may fill.

    Raises:
        DataError: an image cannot be read and may not be left out; images differ in size where no size is given; more
            than `most` would be needed.
        OutOfMemory: they are more than the memory that is free.
    """

    def make(shape):
        if most is not None and np.prod(shape) > most:
            raise DataError(
                f"{split.unreadable.where}: {shape[0]:,} images of {shape[1]}x{shape[2]} do not fit into "
                f"{setting('cache_gigabytes')}, and to be decoded each time they need a {setting('image_size')}. Set "
                "one of them"
            )
        remedy = (
            f"Set {setting('cache', 'none')} or {setting('cache', 'disk')}, or take a smaller {setting('image_size')}"
        )
        check_memory(shape, split.unreadable.where, remedy)
        return allocate(shape)

    return _decode(split, make, progress)


def cache_on_disk(split: Split, folder: Path, progress: ProgressReporter = no_progress) -> ArraySplit:
    """Decode the whole split into a file and map it. A split that was decoded before is mapped at once.

    Args:
        split: its images have a known size.
        folder: folder of all sets. Each set has a folder in it, named by all that its pixels depend on, which is
            complete or not there.
        progress: shows how many images are decoded.

    Raises:
        DataError: as `cache_in_memory`.
        EnvironmentFault: the disk is too small, or the folder cannot be made.
    """
    _make_folder(folder)
    place = folder / _fingerprint(split)
    with FileLock(folder / f".{place.name}.lock"):  # of two that start together, one decodes and the other waits
        for debris in folder.glob(f".{place.name}-*"):
            shutil.rmtree(debris)
        kept = _map(split, place)
        if kept is None:
            shutil.rmtree(place, ignore_errors=True)
            _write(split, place, progress)
            kept = _map(split, place)
    images, labels, notes = kept
    split.unreadable.add(notes["unreadable"])
    if split.conversions:
        split.conversions.add({kind: split.rows[notes[kind]].tolist() for kind in ("transparent", "deep")})
    return ArraySplit(images, split.labels_when_kept(labels), split.unreadable)


def keep_on_disk(
    folder: Path, name: str, fill: Callable[[Callable[[tuple[int, ...]], np.ndarray]], np.ndarray]
) -> np.ndarray:
    """Return an array that a file keeps, mapped from it.

    Args:
        folder: folder of all sets.
        name: name of the file without its suffix, which says all that the numbers depend on.
        fill: called where there is no such file yet, with a function that makes the array float32 of a shape. It
            returns that array, filled.

    Raises:
        EnvironmentFault: the disk refuses the file, or the folder cannot be made.
    """
    _make_folder(folder)
    path = folder / f"{name}.npy"
    with FileLock(folder / f".{name}.lock"):
        if not path.exists():
            try:
                with replacing(path) as beside:
                    fill(lambda shape: _map_new(beside, shape, np.float32)).flush()
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
                raise EnvironmentFault(
                    f"{folder}: the features of the images cannot be written ({error.strerror}): {_ELSEWHERE}"
                ) from None
    return np.load(path, mmap_mode="r")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: the folder of decoded images and features cannot be made ({error.strerror}): {_ELSEWHERE}"
        ) from None


def _map_new(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return an array of zeros, mapped from a new file."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    # A page that the disk has no room for would end the process when it is written to.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
    return array


def _map(split: Split, place: Path) -> tuple[np.ndarray, np.ndarray, dict[str, list[int]]] | None:
    """Return images, labels, and numbers of images that are worth a note; None if they are not there or damaged."""
    try:
        images, labels = np.load(place / "images.npy", mmap_mode="r"), np.load(place / "labels.npy")
        notes = json.loads((place / "notes.json").read_text())
    except (OSError, ValueError):
        return None
    return (images, labels, notes) if images.shape == (len(split), *split.shape) else None


def _decode(split: Split, make: Callable[[tuple[int, ...]], np.ndarray], progress: ProgressReporter) -> ArraySplit:
    images, labels = None, np.zeros(len(split), np.int32)
    # Images of unknown size come one by one: in a batch, different sizes would raise TensorFlow's error, not this one.
    chunk = 1 if None in split.shape else CHUNK
    for numbers, batch, batch_labels in read_what_can_be_read(split, chunk, "decoding", progress):
        if images is None:
            images = make((len(split), *batch.shape[1:]))
        if batch.shape[1:] != images.shape[1:]:
            sizes = " and ".join(f"{array.shape[1]}x{array.shape[2]}" for array in (images, batch))
            raise DataError(
                f"{split.unreadable.where}: expected images of one size, got {sizes}. Set {setting('image_size')}"
            )
        images[numbers], labels[numbers] = batch, batch_labels
    if images is None:
        raise DataError(f"{split.unreadable.where}: expected images, got none that can be read")
    return ArraySplit(images, split.labels_when_kept(labels), split.unreadable)


def _write(split: Split, place: Path, progress: ProgressReporter) -> None:
    need, free = count_bytes(split), shutil.disk_usage(place.parent).free
    too_small = EnvironmentFault(
        f"{place.parent}: the decoded images of {split.unreadable.where} need {describe_size(need)} of disk, "
        f"{describe_size(free)} are free. Make room, {_ELSEWHERE}"
    )
    if need > free:
        raise too_small
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
    try:
        kept = _decode(split, lambda shape: _map_new(temporary / "images.npy", shape, np.uint8), progress)
        kept.kept_pixels.images.flush()
        np.save(temporary / "labels.npy", kept.labels)
        notes = {"unreadable": sorted(split.unreadable.numbers), **_changed(split)}
        (temporary / "notes.json").write_text(json.dumps(notes))
        os.rename(temporary, place)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise too_small from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _changed(split: Split) -> dict[str, list[int]]:
    """Return the numbers of the images of a split that were changed when they were read, by the kind of the change."""
    if not split.conversions:
        return {}
    changed = split.conversions.among(split.rows)
    return {kind: np.flatnonzero(np.isin(split.rows, rows)).tolist() for kind, rows in changed.items()}


def _fingerprint(split: Split) -> str:
    """Return a digest of all that the pixels depend on: code, form, and the files, their sizes and times."""
    digest = hashlib.sha256(repr((VERSION, tf.__version__, PIL.__version__, split.form)).encode())
    for path, taken in split.fingerprint_items():
        stat = os.stat(path) if path and os.path.exists(path) else None
        digest.update(path + repr((taken, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return digest.hexdigest()[:32]
