"""The splits of a set: train, validation and test, wherever their images are kept.

A `Split` has one interface and three forms: decoded arrays (`arrays.ArraySplit`), image files (`files.FileSplit`) and
records of a stream (`records.RecordSplit`).

N images of the split, H height, W width, C channels, I pixels a side of what the network sees, K classes.
"""

import abc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import tensorflow as tf

from kpipe.console import counted, describe_size
from kpipe.data.augmentations.crops import Crop
from kpipe.data.conversions import Conversions, describe_conversions
from kpipe.data.order import Drawing
from kpipe.data.pixels import Pixels
from kpipe.data.stratify import divide_by_class
from kpipe.data.unreadable import Unreadable

Shape = tuple[int | None, int | None, int]

ClassContents = tuple[int, str]
"""Number of images of a class in a split, and a digest of what tells them from others."""

ProgressReporter = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""(what is done, number of images, None where it is not known) -> a context. It gives a function to call with the
number of images just done."""


@contextmanager
def no_progress(what: str, images: int | None) -> Iterator[Callable[[int], None]]:
    """Show nothing: a `ProgressReporter`."""
    yield lambda more: None


class Split(abc.ABC):
    """N labeled images.

    Attributes:
        shape: (H, W, C) of an image in the form in which the split gives it; H and W are None where they differ.
        unreadable: images that could not be read so far.
        lost: number of records that were declared and are not there.
        is_in_form: whether all stored images have this form already.
        kept_pixels: decoded images, which several splits may share; None where they are decoded each time.
        is_stream: whether the images can only be read in their order.
    """

    shape: Shape
    unreadable: Unreadable
    lost: int = 0
    is_in_form: bool = False
    kept_pixels: Pixels | None = None
    is_stream: ClassVar[bool] = False
    conversions: Conversions | None = None
    """Images that were changed when they were read; None where there can be none."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images, N."""

    def __repr__(self) -> str:
        sides = "x".join("?" if side is None else str(side) for side in self.shape)
        return f"{type(self).__name__}({counted(len(self), 'image')} of {sides})"

    @property
    @abc.abstractmethod
    def where_kept(self) -> str:
        """Where the images are kept, in words for the user: "in memory"."""

    @property
    def images_per_epoch(self) -> int:
        """Number of images that an epoch of training can show; unreadable ones are replaced by others."""
        return len(self)

    def readable_numbers(self) -> np.ndarray:
        """Return the numbers of the images that are not known to be unreadable: int64 [n], n at most N."""
        return np.setdiff1d(np.arange(len(self)), list(self.unreadable.numbers))

    def name_images(self, places: np.ndarray | slice = slice(None), *, in_set: bool = False) -> list[str]:
        """Return the names of readable images: their files, or where there are none, their numbers in the split.

        Args:
            places: which of the readable images, in their order; default: all.
            in_set: files are named by their path in the folder of the set, such as `cat/1.png`.
        """
        folder, name = self.unreadable.folder, self.unreadable.name if self.unreadable.are_files else str
        names = [name(int(number)) for number in self.readable_numbers()[places]]
        return [os.path.relpath(each, folder) for each in names] if in_set and folder else names

    @abc.abstractmethod
    def count_labels(self, classes: int) -> np.ndarray:
        """Return how many readable images each of K classes has: int64 [K]."""

    @abc.abstractmethod
    def spread(self, images: int) -> np.ndarray:
        """Return the numbers of some images, spread over the classes where that is possible: int64 [images]."""

    @abc.abstractmethod
    def select(self, numbers: np.ndarray) -> "Split":
        """Return the split of the images with these numbers, int64 [n], in this order."""

    @abc.abstractmethod
    def numbered(self) -> "Split":
        """Return the same images with their numbers as labels."""

    def divide(self, fractions: Mapping[str, float]) -> "tuple[dict[str, Split], list[int], str | None]":
        """Cut named fractions off the split, one after the other; "train" is the rest.

        Returns:
            The splits that have images; the classes that were too small to be divided and went whole to train; and a
            line for the user, or None.
        """
        numbers, small = divide_by_class(self.labels, fractions)
        return {name: self.select(chosen) for name, chosen in numbers.items() if len(chosen)}, small, None

    @abc.abstractmethod
    def training_batches(
        self,
        drawing: Drawing,
        crop: Crop | None,
        size: int | None,
        first_step: int,
        last_step: int,
        make_batch: Callable,
    ) -> tf.data.Dataset:
        """Return the training batches of some steps.

        Args:
            drawing: the images that a step shows, and their uniforms.
            crop: crop of an image that the network sees; None: all of it.
            size: I; None: images as the split gives them.
            first_step, last_step: the last one is not included.
            make_batch: returns a function (images, labels, uniforms) -> batch. Called with a function that fetches
                images by their numbers inside XLA, it returns (numbers, labels, uniforms) -> batch.
        """

    @abc.abstractmethod
    def evaluation_batches(self, numbers: np.ndarray, batch_size: int, see: Callable) -> tf.data.Dataset:
        """Return batches of the images with these numbers, int64 [n], ascending.

        Args:
            numbers: of readable images.
            batch_size: B; the last batch may be smaller.
            see: (images uint8 [b, H, W, C], labels int32 [b]) -> the batch.
        """

    @abc.abstractmethod
    def iterate(self, batch_size: int, progress: ProgressReporter = no_progress) -> Iterator[np.ndarray]:
        """Yield each readable image once: batches uint8 [b, H, W, C]; the others are noted.

        Raises:
            DataError: more images than allowed cannot be read.
        """

    @abc.abstractmethod
    def read(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (image uint8 [H, W, C], label) of each image that is not known to be unreadable.

        Raises:
            DataError: one cannot be read.
        """


@dataclass(frozen=True, eq=False)
class Source:
    """Splits that a reader found: "train" and perhaps "validation" and "test"."""

    splits: dict[str, Split]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    contents: dict[str, dict[str, ClassContents]] = field(default_factory=dict)
    """What each split holds, by class; a stream tells it for all classes together, under an empty name. Embedded images
    have none: they are always the same."""


@dataclass(frozen=True, eq=False)
class Splits:
    """A whole set. A split that does not exist is None. `notes` are lines for the user."""

    train: Split
    validation: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    image_size: int | None = None
    """Pixels a side of what the network sees; None: images are as large as they are kept."""
    contents: dict[str, dict[str, ClassContents]] = field(default_factory=dict)
    """As in `Source`: what was there before it was divided."""
    conversions: tuple[Conversions, ...] = ()
    """Images that were changed when they were read."""

    @property
    def by_name(self) -> dict[str, Split]:
        """The splits that exist."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def held_out(self) -> str | None:
        """Name of the split that says most about a trained network: `test`, else `validation`; None: there is none."""
        return next((name for name in ("test", "validation") if name in self.by_name), None)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each split that exists."""
        return {name: len(split) for name, split in self.by_name.items()}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network sees."""
        height, width, channels = self.train.shape
        return (self.image_size or height, self.image_size or width, channels)

    def find_unreadable(self) -> dict[str, list[int]]:
        """Return the numbers of the images that could not be read so far, by split; only splits that have some."""
        return {name: sorted(split.unreadable.numbers) for name, split in self.by_name.items() if split.unreadable}

    def unreadable_names(self) -> dict[str, list[str]]:
        """Return the names of these images, by split."""
        return {name: split.unreadable.names() for name, split in self.by_name.items() if split.unreadable}

    def note_unreadable(self, numbers: Mapping[str, Sequence[int]]) -> None:
        """Note images that are known to be unreadable, by split."""
        for name, split in self.by_name.items():
            split.unreadable.add(numbers.get(name, ()))

    def describe_conversions(self) -> list[str]:
        """Return lines for the user about the images that were changed when they were read, so far."""
        return describe_conversions(self.conversions)

    def describe_places(self) -> str:
        """Say where the images of each split lie, the splits that lie at one place together."""
        places: dict[str, list[str]] = {}
        for name, split in self.by_name.items():
            places.setdefault(split.where_kept, []).append(name)
        kept = {id(split.kept_pixels): split.kept_pixels for split in self.by_name.values() if split.kept_pixels}
        size = f" ({describe_size(sum(pixels.images.nbytes for pixels in kept.values()))} decoded)" if kept else ""
        if len(places) == 1:
            return f"{next(iter(places))}{size}"
        return "; ".join(f"{' and '.join(names)} {place}" for place, names in places.items()) + size
