"""The images that are explained: files of the user, or some of a split, as a network sees them.

B batch, H height, W width, C channels, n images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf

from kpipe import data
from kpipe.data.image_files import list_unreadable, why_unreadable
from kpipe.data.images import decode_to_form
from kpipe.data.reading import translate_reading_errors
from kpipe.errors import DataError


@dataclass(eq=False)
class FileImages:
    """Image files of the user. Those that cannot be read are left out."""

    files: Sequence[str]
    """Paths, at least one."""
    form: data.Form
    """How they are kept, with a size and channels."""
    size: int
    """Side of the center that the network sees."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why a file cannot be read, by its path, of those that were tried."""
    tried: set[str] = field(default_factory=set)
    """Paths of all that were tried."""

    def choose(self, most: int) -> tuple[np.ndarray, list[str], None]:
        """Return the first images that can be read, uint8 [n, H, W, C], and their paths. Their classes are not known.

        Raises:
            DataError: not one of all the files can be read.
        """
        found, paths = [], []
        for start in range(0, len(self.files), most):
            for images, read in self._read(self.files[start : start + most], most):
                found.append(images)
                paths += read
            if len(paths) >= most:
                break
        if not paths:
            raise DataError(list_unreadable(list(self.unreadable.items()), len(self.tried)))
        return np.concatenate(found)[:most], paths[:most], None

    def search(self, most: int, batch_size: int) -> tuple[int, Iterator[np.ndarray]]:
        """Return how many images are read, spread over all of them, and these in batches, uint8 [B, H, W, C]."""
        places = np.unique(np.linspace(0, len(self.files) - 1, most).astype(int))
        return len(places), (images for images, _ in self._read([self.files[place] for place in places], batch_size))

    def _read(self, files: Sequence[str], batch_size: int) -> Iterator[tuple[np.ndarray, list[str]]]:
        split, left = data.unlabeled_files(files, self.form), set(range(len(files)))
        for numbers, images in data.iterate_readable(split, batch_size, self.size, "reading"):
            left.difference_update(numbers.tolist())
            yield images, [files[number] for number in numbers]
        self.tried.update(files)
        self.unreadable.update({files[number]: why_unreadable(files[number]) for number in sorted(left)})


@dataclass(eq=False)
class SplitImages:
    """Images of a split, drawn at random by the seed."""

    split: data.Split
    seed: int
    image_shape: tuple[int, int, int]
    """(H, W, C) of the center that the network sees."""

    def choose(self, most: int) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Return some images, uint8 [n, H, W, C], their names, and their labels, int32 [n]."""
        numbers = self._draw(most)
        names = self.split.name_images(np.searchsorted(self.split.readable_numbers(), numbers), in_set=True)
        named = "{}" if self.split.unreadable.are_files else "image {}"
        images, labels = next(self._read(numbers, most))
        return images, [named.format(name) for name in names], labels

    def search(self, most: int, batch_size: int) -> tuple[int, Iterator[np.ndarray]]:
        """Return how many images are read, and these in batches, uint8 [B, H, W, C]."""
        numbers = self._draw(most)
        return len(numbers), (images for images, _ in self._read(numbers, batch_size))

    def _draw(self, most: int) -> np.ndarray:
        numbers = self.split.readable_numbers()
        if len(numbers) <= most:
            return numbers
        return np.sort(np.random.default_rng(self.seed).choice(numbers, most, replace=False))

    def _read(self, numbers: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        height, width, _ = self.image_shape
        with translate_reading_errors([self.split]):
            batches = self.split.evaluation_batches(numbers, batch_size, lambda images, labels: (images, labels))
            for images, labels in batches:
                top, left = ((side - seen) // 2 for side, seen in zip(images.shape[1:3], (height, width), strict=True))
                yield images.numpy()[:, top : top + height, left : left + width], labels.numpy()


def read_larger(file: str, form: data.Form, sides: tuple[int, int], most: int) -> np.ndarray | None:
    """Return an image that is larger than what a network sees, float32 [H, W, C], 0..255; None: it is not larger.

    It is scaled down, and its middle cut out, to `most` times the sides of the network.

    Args:
        file: its path; it can be read.
        form: how images are kept, with channels.
        sides: height and width of what the network sees.
        most: largest factor.
    """
    image = decode_to_form(tf.io.read_file(file), replace(form, size=None))
    own, seen = np.array(image.shape[:2]), np.array(sides)
    if (own < seen).any() or (own == seen).all():
        return None
    largest = most * seen
    factor = max((seen / own).max(), min(1.0, (largest / own).min()))
    if factor < 1:
        image = tf.image.resize(image, np.round(own * factor).astype(int), antialias=True)
    top, left = np.maximum(0, (np.array(image.shape[:2]) - largest) // 2)
    return image.numpy()[top : top + largest[0], left : left + largest[1]].astype(np.float32)
