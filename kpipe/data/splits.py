"""The parts of a set, in the three ways in which their images can lie: as pixels, as files, as records of a stream.

N images, H height, W width, C channels.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from kpipe.data.images import Form
from kpipe.data.unreadable import Unreadable

Shape = tuple[int | None, int | None, int]


class Pixels:
    """Decoded images, once, however many parts share them: uint8 [M, H, W, C], in memory or mapped from a file."""

    def __init__(self, images: np.ndarray):
        self.images = images
        self.is_mapped = isinstance(images, np.memmap)

    @functools.cached_property
    def resident(self) -> tf.Tensor:
        """The images in main memory, where tf.data works: from a GPU every batch would be copied back."""
        with tf.init_scope(), tf.device("CPU:0"):  # also when first asked for inside a graph
            if _can_be_shared(self.images):
                return tf.experimental.dlpack.from_dlpack(self.images.__dlpack__())
            tensor = tf.identity(self.images)  # `tf.constant` of TensorFlow 2.21 holds two copies
        self.images = np.asarray(tensor)  # a view: one copy is enough
        return tensor


ALIGNMENT = 64  # bytes; TensorFlow ends the process when it meets a tensor at another address


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros which TensorFlow can share: a large set would else be in memory three times while it is copied."""
    size = int(np.prod(shape))
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].reshape(shape)


def _can_be_shared(images: np.ndarray) -> bool:
    flags = images.flags
    return images.size > 0 and flags.c_contiguous and flags.writeable and images.ctypes.data % ALIGNMENT == 0


class Part:
    """Decoded images, 0..255, and their labels.

    Args:
        images: uint8 [N, H, W, C], or `Pixels` that other parts have as well.
        labels: int32 [N].
        unreadable: images whose pixels are all 0 because their file could not be read; training and evaluation leave
            them out.
        numbers: which of the pixels these are, int64 [N]; None: all.
    """

    def __init__(
        self,
        images: np.ndarray | Pixels,
        labels: np.ndarray,
        unreadable: Unreadable | None = None,
        numbers: np.ndarray | None = None,
    ):
        self.pixels = images if isinstance(images, Pixels) else Pixels(images)
        self.labels, self.unreadable, self.numbers = labels, unreadable, numbers

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Part({_described(self)})"

    @property
    def shape(self) -> Shape:
        return self.pixels.images.shape[1:]

    @property
    def images(self) -> np.ndarray:
        """uint8 [N, H, W, C]; a copy, where the part has not all of its pixels."""
        return self.pixels.images if self.numbers is None else self.pixels.images[self.numbers]

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """The images of these numbers, int64 [n]: uint8 [n, H, W, C]."""
        return self.pixels.images[numbers if self.numbers is None else self.numbers[numbers]]

    def fetch(self, numbers: tf.Tensor) -> tf.Tensor:
        """The same inside a graph; numbers int64 [] or [n]."""
        if self.pixels.is_mapped:
            images = tf.numpy_function(self.take, [numbers], tf.uint8)
            return tf.ensure_shape(images, [*numbers.shape, *self.shape])
        if self.numbers is not None:
            numbers = tf.gather(tf.constant(self.numbers), numbers)
        return tf.gather(self.pixels.resident, numbers)

    def subset(self, numbers: np.ndarray) -> "Part":
        """The images of these numbers, int64 [n], in this order."""
        unreadable = None if self.unreadable is None else self.unreadable.subset(numbers)
        chosen = numbers if self.numbers is None else self.numbers[numbers]
        return Part(self.pixels, self.labels[numbers], unreadable, chosen)

    def with_labels(self, labels: np.ndarray) -> "Part":
        """The same images with other labels."""
        return Part(self.pixels, labels, self.unreadable, self.numbers)


@dataclass(frozen=True, eq=False, repr=False)
class Files:
    """Image files, read when they are needed."""

    paths: np.ndarray
    """bytes [N]: file names need not be valid text."""
    labels: np.ndarray
    """int32 [N]"""
    sides: np.ndarray
    """Height and width, int32 [N, 2]; 1 and 1 where the header could not be read."""
    form: Form
    """The form that an image is brought to, unless a window takes its part of the image as it is in the file."""
    shape: Shape
    """Of an image in this form."""
    unreadable: Unreadable

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Files({_described(self)})"

    def subset(self, numbers: np.ndarray) -> "Files":
        """The files of these numbers, int64 [n], in this order."""
        chosen = (array[numbers] for array in (self.paths, self.labels, self.sides))
        return Files(*chosen, self.form, self.shape, self.unreadable.subset(numbers))


@dataclass(frozen=True)
class Shard:
    """A piece of a TFRecord file: `count` records behind the first `skip`."""

    path: str
    skip: int
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class Records:
    """TFRecord files, which can only be read in their order."""

    shards: tuple[Shard, ...]
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    """A record, string [] -> the encoded image, string [], and its label, int32 []."""
    form: Form
    shape: Shape
    unreadable: Unreadable
    is_in_form: bool = False
    """All images have this form already."""
    lost: int = 0
    """Records that were declared and are not there."""

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def __repr__(self) -> str:
        return f"Records({_described(self)})"

    def slice(self, start: int, stop: int) -> "Records":
        """Records `start` up to, not including, `stop`."""
        shards, first = [], 0
        for shard in self.shards:
            low, high = max(start - first, 0), min(stop - first, shard.count)
            if low < high:
                shards.append(Shard(shard.path, shard.skip + low, high - low))
            first += shard.count
        return replace(self, shards=tuple(shards), unreadable=self.unreadable.subset(np.arange(start, stop)))


AnyPart = Part | Files | Records
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is done, how many images) -> a context, in which a function takes how many more are done."""


@contextmanager
def no_progress(what: str, images: int) -> Iterator[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    yield lambda more: None


def readable_numbers(part: AnyPart) -> np.ndarray:
    """Numbers of the images that are not known to be unreadable: int64 [n], n at most N."""
    return np.setdiff1d(np.arange(len(part)), list(part.unreadable.numbers if part.unreadable else ()))


def _described(part: AnyPart) -> str:
    return f"{len(part)} images of {'x'.join('?' if side is None else str(side) for side in part.shape)}"


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found: `parts` has "train" and perhaps "validation" and "test"."""

    parts: dict[str, AnyPart]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Splits:
    """A whole set. A part that does not exist is None; `notes` are lines for the user."""

    train: AnyPart
    validation: AnyPart | None
    test: AnyPart | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    image_size: int | None = None
    """Pixels a side of what the network sees; None: images are as large as they are kept."""

    @property
    def parts(self) -> dict[str, AnyPart]:
        """Those that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network sees."""
        height, width, channels = self.train.shape
        return (self.image_size or height, self.image_size or width, channels)
