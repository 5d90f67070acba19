"""Decodes a part once and keeps its pixels, in memory or on the disk.

N images, H height, W width, C channels.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kpipe.console import describe_size
from kpipe.data.parts import Files, Part, Progress, Records, allocate, no_progress
from kpipe.data.reading import read_what_can_be_read
from kpipe.errors import DataError, EnvironmentFault

CHUNK = 256  # images that are copied at a time


def count_bytes(part: Files | Records) -> int | None:
    """What the decoded images fill; None: their size is known only when they are read."""
    return None if None in part.shape else len(part) * int(np.prod(part.shape))


def keep_in_memory(part: Files | Records, progress: Progress = no_progress) -> Part:
    """Decodes the whole part.

    Raises:
        DataError: an image cannot be read and may not be left out, or images differ in size where no size is given.
    """
    return _decode(part, allocate, progress)


def keep_on_disk(part: Files | Records, folder: Path, progress: Progress = no_progress) -> Part:
    """Decodes the whole part into a file and maps it; one that was kept before is mapped at once.

    Args:
        part: of images of known size.
        folder: of all sets. Each has a folder of its own in it, named by all that its pixels depend on; it is
            complete or not there.

    Raises:
        DataError: as `keep_in_memory`.
        EnvironmentFault: the disk is too small.
    """
    place = folder / _fingerprint(part)
    if not place.exists():
        _write(part, place, progress)
    part.unreadable.add(json.loads((place / "unreadable.json").read_text()))
    # Files may have other labels than when they were kept: a new class moves the numbers of those behind it.
    labels = part.labels if isinstance(part, Files) else np.load(place / "labels.npy")
    return Part(np.load(place / "images.npy", mmap_mode="r"), labels, part.unreadable)


def _decode(part: Files | Records, make: Callable[[tuple[int, ...]], np.ndarray], progress: Progress) -> Part:
    images, seen = None, np.zeros(len(part), bool)
    labels = part.labels if isinstance(part, Files) else np.zeros(len(part), np.int32)
    # Images of unknown size come one by one: in a batch, different ones would be TensorFlow's error, not ours.
    batches = read_what_can_be_read(part).batch(1 if None in part.shape else CHUNK).prefetch(2)
    with progress(f"decoding {part.unreadable.where}", len(part)) as advance:
        for numbers, batch, batch_labels in batches.as_numpy_iterator():
            if images is None:
                images = make((len(part), *batch.shape[1:]))
            if batch.shape[1:] != images.shape[1:]:
                sizes = " and ".join(f"{array.shape[1]}x{array.shape[2]}" for array in (images, batch))
                raise DataError(
                    f"{part.unreadable.where}: expected images of one size, got {sizes}. Set data.image_size"
                )
            images[numbers], labels[numbers], seen[numbers] = batch, batch_labels, True
            advance(len(numbers))
    part.unreadable.add(np.flatnonzero(~seen))
    if images is None:
        raise DataError(f"{part.unreadable.where}: expected images, got none that can be read")
    return Part(images, labels, part.unreadable)


def _write(part: Files | Records, place: Path, progress: Progress) -> None:
    need = count_bytes(part)
    place.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place.parent).free
    if need > free:
        raise EnvironmentFault(
            f"{place.parent}: the decoded images of {part.unreadable.where} need {describe_size(need)} of disk, "
            f"{describe_size(free)} are free. Make room, set KPIPE_CACHE to another folder, or set data.cache=none"
        )
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".", ignore_cleanup_errors=True) as temporary:
        path = Path(temporary) / "kept"
        path.mkdir()
        kept = _decode(
            part, lambda shape: np.lib.format.open_memmap(path / "images.npy", "w+", np.uint8, shape), progress
        )
        kept.pixels.images.flush()
        np.save(path / "labels.npy", kept.labels)
        (path / "unreadable.json").write_text(json.dumps(sorted(part.unreadable.numbers)))
        try:
            os.rename(path, place)
        except OSError:
            if not place.exists():  # else another process was faster, with the same pixels
                raise


def _fingerprint(part: Files | Records) -> str:
    """Of everything that the pixels depend on: form, files, their sizes and times."""
    digest = hashlib.sha256(repr(part.form).encode())
    paths = part.paths if isinstance(part, Files) else [os.fsencode(shard.path) for shard in part.shards]
    ranges = [()] * len(paths) if isinstance(part, Files) else [(shard.skip, shard.count) for shard in part.shards]
    for path, taken in zip(paths, ranges, strict=True):
        stat = os.stat(path) if path and os.path.exists(path) else None
        digest.update(path + repr((taken, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return digest.hexdigest()[:32]
