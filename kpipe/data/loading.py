"""Data sets by the name of their source: found, split, and decoded where they are kept decoded."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from kpipe.caller import setting
from kpipe.catalog.data import ImageFacts, parse_background, parse_source
from kpipe.catalog.rows import check_options
from kpipe.console import counted
from kpipe.data.cache import cache_in_memory, cache_on_disk, count_bytes
from kpipe.data.images import Form
from kpipe.data.reading import note_unreadable
from kpipe.data.sources.request import SourceRequest
from kpipe.data.splits import ProgressReporter, Source, Split, Splits, no_progress
from kpipe.data.splitting import split_source
from kpipe.errors import ConfigError, DataError, some
from kpipe.files import cache_folder


def load_dataset(
    source: str = "digits",
    *,
    image_size: int | None = None,
    stored_size: int | None = None,
    resize: str = "crop",
    channels: int | None = None,
    background: str | Sequence[int] = "white",
    cache: str = "auto",
    cache_gigabytes: float = 2.0,
    whole_images: bool = False,
    on_error: str = "fail",
    skip_limit: float = 0.01,
    validation: float = 0.1,
    test: float | None = None,
    download: bool = True,
    ahead: bool = True,
    check: Callable[[Source], None] = lambda source: None,
    progress: ProgressReporter = no_progress,
    **options,
) -> Splits:
    """Find a source, split it, and decode the splits that are kept decoded.

    Splits that the source has are kept. A source without splits is shuffled and divided, stratified by class, the same
    way each time. If only the validation split is missing, it is cut out of train. If only the test split is missing,
    it is cut out of train where `test` is given. A class with fewer images than splits goes whole to train. A stream of
    records is divided in its order.

    Args:
        source: `digits`, `synthetic`, `folder:<path>` or `tfds:<name>`.
        image_size: I, pixels a side of what the network sees; None: images are used as they are.
        stored_size: S, pixels a side of the images that are kept, at least I; None: I. Evaluation sees the center.
        resize: how an image becomes S x S: `crop`, `pad` or `squash`, see `kpipe.data.images.Form`.
        channels: 1 or 3; None: those of the source.
        background: what transparent pixels show: `white`, `black` or [red, green, blue], 0..255.
        cache: where the decoded images are kept: `memory`, `disk` ($KPIPE_CACHE, by default ~/.cache/kpipe), `none`
            (an image is decoded each time) or `auto` (in memory, split by split, while they fit).
        cache_gigabytes: memory that `auto` may fill, in 10^9 bytes.
        whole_images: whether crops of training read images as they are in their files; `auto` does not keep these.
        on_error: `fail` or `skip` at an image that cannot be read.
        skip_limit: largest fraction of unreadable images under `skip`, in each split that the source has.
        validation: fraction of what the test split leaves, rounded up; 0 leaves the split out.
        test: fraction of all images, rounded up; 0 leaves the split out. None: 0.2 where the source has no splits.
        download: whether a set of TensorFlow Datasets that is not prepared may be downloaded.
        ahead: False decodes and checks nothing beforehand, unless the size of the images is not known otherwise.
        check: called with what was found, before any image of a folder or of TensorFlow Datasets is decoded.
        progress: shows how many images are decoded.
        options: options of the source's row in `kpipe.catalog.data.SOURCES`.

    Raises:
        ConfigError: an unknown source, or an argument out of range.
        DataError: the data are not there or cannot be used, or none of a class's images for training can be read.
        EnvironmentFault: the disk is too small for `cache="disk"`.
    """
    _check_fractions({"split.validation": validation, "split.test": test, "skip_limit": skip_limit})
    for key, message in ImageFacts(image_size, stored_size).conflicts():
        raise ConfigError(f"{setting(key)}: {message}")
    form = Form(stored_size or image_size, resize, channels, parse_background(background))
    limit = skip_limit if on_error == "skip" else None
    found = find_source(source, form, skip_limit=limit, download=download, progress=progress, **options)
    check(found)
    cacher = _Cacher(cache, cache_gigabytes, whole_images, progress)
    ahead = ahead or any(None in split.shape for split in found.splits.values())  # to know their size
    # Decoded before it is divided, a stream shows its labels, and all broken files are named at once.
    kept = cacher.cache_those_that_fit(found.splits) if ahead else found.splits
    splits = split_source(replace(found, splits=kept), validation, test)
    by_name = splits.by_name
    if ahead:
        by_name = cacher.cache_those_that_fit(by_name)
        cacher.note_unreadable(by_name)
    height, width, _ = splits.train.shape
    notes = (*splits.notes, *_lost_notes(found.splits))
    conversions = tuple(split.conversions for split in found.splits.values() if split.conversions)
    size = image_size if height == width else None
    splits = replace(splits, **by_name, notes=notes, conversions=conversions, image_size=size)
    _refuse_lost_classes(splits)
    return splits


def find_source(
    source: str,
    form: Form,
    *,
    skip_limit: float | None = None,
    download: bool = True,
    progress: ProgressReporter = no_progress,
    **options,
) -> Source:
    """Find the images of a source. Embedded ones are decoded and in their form, others are still on the disk.

    Args:
        source, download, progress, options: as in `load_dataset`.
        form: form of the images.
        skip_limit: largest fraction of a split's images that may be unreadable; None: none of them.

    Raises:
        ConfigError, DataError: as `load_dataset`.
    """
    row, argument = parse_source(source)
    if form.channels is not None and form.channels < 1:
        raise ConfigError(f"{setting('channels')}: expected at least 1, got {form.channels}")
    checked = check_options(setting(source.partition(":")[0]), row.options, **options)
    return row.load()(SourceRequest(argument, form, skip_limit, download, progress), **checked.model_dump())


def _refuse_lost_classes(splits: Splits) -> None:
    """Raise DataError where none of a class's training images can be read, as far as they have been tried."""
    train, class_names = splits.train, splits.class_names
    if train.is_stream or not train.unreadable:
        return
    counts = np.bincount(train.labels, minlength=len(class_names))
    lost = np.flatnonzero((counts > 0) & (train.count_labels(len(class_names)) == 0))
    if len(lost):
        raise DataError(
            f"{train.unreadable.where}: expected images of every class, got none that can be read of "
            f"{some([class_names[label] for label in lost])}. Replace the files, or remove the class"
        )


def _check_fractions(fractions: dict[str, float | None]) -> None:
    for name, fraction in fractions.items():
        if fraction is not None and not 0 <= fraction < 1:
            raise ConfigError(f"{setting(name)}: expected a fraction of at least 0 and below 1, got {fraction}")


class _Cacher:
    """Decide where the images of each split are kept, and decode them."""

    def __init__(self, cache: str, gigabytes: float, whole_images: bool, progress: ProgressReporter):
        self.cache, self.free, self.whole_images, self.progress = cache, gigabytes * 1e9, whole_images, progress

    def cache_those_that_fit(self, splits: dict[str, Split]) -> dict[str, Split]:
        """Decode splits by name. Train comes first: it is read most often, and later ones may not fit any more.

        Raises:
            DataError, EnvironmentFault: as `load_dataset`.
        """
        names = [name for name in ("train", "validation", "test") if name in splits]
        return {name: splits[name] if splits[name].kept_pixels else self._cache(splits[name], name) for name in names}

    def note_unreadable(self, splits: dict[str, Split]) -> None:
        """Find the images to be left out of splits that are not decoded.

        Training replaces an unreadable file when it meets one. Evaluation and streams must know of them before.

        Raises:
            DataError: there are more than allowed.
        """
        for name, split in splits.items():
            if not split.kept_pixels and split.unreadable.limit is not None and (split.is_stream or name != "train"):
                note_unreadable(split, self.progress)

    def _cache(self, split: Split, name: str) -> Split:
        size = count_bytes(split)
        if size is None and self.cache in ("none", "disk"):
            raise DataError(
                f"{split.unreadable.where}: its images may differ in size. Set {setting('image_size')}, or "
                f"{setting('cache', 'memory')} if all have one size"
            )
        if self.cache == "disk":
            return cache_on_disk(split, cache_folder(), self.progress)
        whole = self.whole_images and name == "train" and not split.is_in_form
        if self.cache == "none" or self.cache == "auto" and (whole or (size or 0) > self.free):
            return split
        cached = cache_in_memory(split, self.progress, most=self.free if self.cache == "auto" else None)
        self.free -= cached.kept_pixels.images.nbytes
        return cached


def _lost_notes(splits: dict[str, Split]) -> list[str]:
    return [
        f"{counted(split.lost, 'record')} of {name} {'is' if split.lost == 1 else 'are'} "
        "lost: its files end too early or are damaged"
        for name, split in splits.items()
        if split.lost
    ]
