"""Data: from a source's name to batches.

`load_dataset` reads a source and splits it; `make_pipeline` and `make_evaluation_pipeline` turn a part into batches.
"""

import os
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from kpipe.catalog.data import SOURCES, parse_source
from kpipe.data.cache import count_bytes, keep_in_memory, keep_on_disk
from kpipe.data.images import Form
from kpipe.data.reading import note_unreadable
from kpipe.data.splits import (
    AnyPart,
    Files,
    Part,
    Progress,
    Records,
    Source,
    Splits,
    no_progress,
)
from kpipe.data.splitting import split_source
from kpipe.errors import ConfigError, DataError


def load_dataset(
    source: str = "digits",
    *,
    image_size: int | None = None,
    stored_size: int | None = None,
    resize: str = "crop",
    channels: int | None = None,
    cache: str = "auto",
    cache_gigabytes: float = 2.0,
    whole_images: bool = False,
    on_error: str = "fail",
    skip_limit: float = 0.01,
    validation: float = 0.1,
    test: float = 0.2,
    download: bool = True,
    ahead: bool = True,
    progress: Progress = no_progress,
    **options,
) -> Splits:
    """Finds a source, splits it, and decodes what is to be kept decoded.

    Parts that the source has are kept. A source without parts is split, stratified and shuffled, the same way
    each time; where only the validation part is missing, it is carved out of train. A class with fewer images
    than parts goes whole to train. A stream of records is split in its order.

    Args:
        source: `digits`, `synthetic`, `folder:<path>` or `tfds:<name>`.
        image_size: I, pixels a side of what the network sees; None: images are used as they are.
        stored_size: S, pixels a side at which images are kept, at least I; None: I. Evaluation sees the middle I x I.
        resize: how an image becomes S x S: `crop`, `pad` or `squash`, see `kpipe.data.images.Form`.
        channels: 1 or 3; None: as the source is.
        cache: where the decoded images are kept. `memory`; `disk`: in $KPIPE_CACHE, by default ~/.cache/kpipe;
            `none`: nowhere, an image is decoded each time; `auto`: in memory, part by part, while they fit.
        cache_gigabytes: what `auto` may fill, in 10^9 bytes.
        whole_images: windows of training look at the images as they are in their files; `auto` does not keep those.
        on_error: what an image does that cannot be read: `fail` or `skip`.
        skip_limit: largest share of unreadable images under `skip`, in each part that the source has.
        validation: share of what the test part leaves, rounded up; 0 leaves the part out.
        test: share of all images, rounded up; 0 leaves the part out.
        download: whether a set of TensorFlow Datasets that is not prepared may be downloaded.
        ahead: False decodes and checks nothing beforehand, unless the size of the images is not known otherwise.
        progress: shows how far the decoding is.
        options: the options of the source's row in `kpipe.catalog.data.SOURCES`.

    Raises:
        ConfigError: an unknown source, or an argument out of range.
        DataError: the data are not there or cannot be used.
        EnvironmentFault: the disk is too small for `cache="disk"`.
    """
    _check_shares({"split.validation": validation, "split.test": test, "skip_limit": skip_limit})
    if stored_size is not None and stored_size < (image_size or stored_size + 1):
        raise ConfigError(f"data.stored_size: expected at least data.image_size, {image_size}, got {stored_size}")
    form = Form(stored_size or image_size, resize, channels)
    found = find_source(
        source, form, skip_limit=skip_limit if on_error == "skip" else None, download=download, **options
    )
    keep = _Keeper(cache, cache_gigabytes, whole_images, progress)
    ahead = ahead or any(None in part.shape for part in found.parts.values())  # nobody knows their size before
    # Kept before it is split, a stream shows its labels, and all broken files are named at once.
    kept = keep.those_that_fit(found.parts) if ahead else found.parts
    splits = split_source(replace(found, parts=kept), validation, test)
    parts = keep.or_check(keep.those_that_fit(splits.parts)) if ahead else splits.parts
    height, width, _ = splits.train.shape
    notes = (*splits.notes, *_lost_notes(found.parts))
    return replace(splits, **parts, notes=notes, image_size=image_size if height == width else None)


def find_source(
    source: str, form: Form, *, skip_limit: float | None = None, download: bool = True, **options
) -> Source:
    """Finds the images of a source: embedded ones are decoded and in their form, others are as they lie on the disk.

    Args:
        source, download, options: as in `load_dataset`.
        form: of the images.
        skip_limit: share of a part's images that may be unreadable; None: not one.

    Raises:
        ConfigError, DataError: as `load_dataset`.
    """
    row, argument = parse_source(source)
    for name, value in (("image_size", form.size), ("channels", form.channels)):
        if value is not None and value < 1:
            raise ConfigError(f"data.{name}: expected at least 1, got {value}")
    try:
        options = row.options(**options).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    read = row.load()
    if row is SOURCES["synthetic"]:
        return read(image_size=form.size, channels=form.channels, **options)
    if row is SOURCES["digits"]:
        return read(form)
    downloads = {"download": download} if row is SOURCES["tfds"] else {}
    return read(argument, form, skip_limit=skip_limit, **downloads)


def _check_shares(shares: dict[str, float]) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ConfigError(f"data.{name}: expected a share of at least 0 and below 1, got {share}")


class _Keeper:
    """Decides where the images of each part lie, and decodes those that are to be kept."""

    def __init__(self, cache: str, gigabytes: float, whole_images: bool, progress: Progress):
        self.cache, self.free, self.whole_images, self.progress = cache, gigabytes * 1e9, whole_images, progress

    def those_that_fit(self, parts: dict[str, AnyPart]) -> dict[str, AnyPart]:
        """By name, the training part first: it is read most often, and what is kept later may not fit any more.

        Raises:
            DataError, EnvironmentFault: as `load_dataset`.
        """
        names = [name for name in ("train", "validation", "test") if name in parts]
        return {name: parts[name] if isinstance(parts[name], Part) else self._keep(parts[name], name) for name in names}

    def or_check(self, parts: dict[str, AnyPart]) -> dict[str, AnyPart]:
        """Looks for what cannot be read in parts that are not kept, where it is to be left out.

        Training replaces an unreadable file when it meets it; evaluation and streams must know of it before.

        Raises:
            DataError: there is more than allowed.
        """
        for name, part in parts.items():
            if not isinstance(part, Part) and part.unreadable.share is not None:
                if isinstance(part, Records) or name != "train":
                    note_unreadable(part, self.progress)
        return parts

    def _keep(self, part: Files | Records, name: str) -> AnyPart:
        size = count_bytes(part)
        if size is None and self.cache in ("none", "disk"):
            raise DataError(
                f"{part.unreadable.where}: its images may differ in size. Set data.image_size, or data.cache=memory if "
                "all have one size"
            )
        if self.cache == "disk":
            folder = Path(os.environ.get("KPIPE_CACHE") or "~/.cache/kpipe").expanduser()
            return keep_on_disk(part, folder, self.progress)
        whole = self.whole_images and name == "train" and not (isinstance(part, Records) and part.is_in_form)
        if self.cache == "none" or self.cache == "auto" and (whole or (size or 0) > self.free):
            return part
        kept = keep_in_memory(part, self.progress, most=self.free if self.cache == "auto" else None)
        self.free -= kept.pixels.images.nbytes
        return kept


def _lost_notes(parts: dict[str, AnyPart]) -> list[str]:
    lost = {name: part.lost for name, part in parts.items() if isinstance(part, Records) and part.lost}
    return [
        f"{count:,} {'record' if count == 1 else 'records'} of {name} {'is' if count == 1 else 'are'} lost: its files "
        "end too early or are damaged"
        for name, count in lost.items()
    ]
