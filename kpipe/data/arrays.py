"""A split whose images are decoded already, in memory or mapped from a file.

N images, H height, W width, C channels, I pixels a side of what the network sees.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kpipe.data.images import Form, cut, scale, to_form
from kpipe.data.pixels import Pixels
from kpipe.data.reading import locate, with_uniforms
from kpipe.data.splits import Shape, Split, no_progress
from kpipe.data.unreadable import Unreadable


def fit_images(images: np.ndarray, form: Form) -> np.ndarray:
    """Convert images uint8 [N, H, W, C] to a form."""
    fitted = tf.data.Dataset.from_tensor_slices(images).map(
        lambda image: to_form(image, form), num_parallel_calls=tf.data.AUTOTUNE
    )
    return np.concatenate(list(fitted.batch(256).as_numpy_iterator()))


class ArraySplit(Split):
    """Decoded images, 0..255, and their labels.

    Args:
        images: uint8 [N, H, W, C], or `Pixels` that other splits share.
        labels: int32 [N].
        unreadable: images whose pixels are all 0 because their file could not be read; training and evaluation leave
            them out.
        numbers: numbers of these images in `Pixels`, int64 [N]; None: all.
    """

    def __init__(
        self,
        images: np.ndarray | Pixels,
        labels: np.ndarray,
        unreadable: Unreadable | None = None,
        numbers: np.ndarray | None = None,
    ):
        self.kept_pixels = images if isinstance(images, Pixels) else Pixels(images)
        self.labels, self.numbers = labels, numbers
        self.unreadable = Unreadable("images in memory", len(labels), str) if unreadable is None else unreadable

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        return self.kept_pixels.images.shape[1:]

    @property
    def where_kept(self) -> str:
        return "mapped from the disk" if self.kept_pixels.is_mapped else "in memory"

    @property
    def images(self) -> np.ndarray:
        """Images uint8 [N, H, W, C]. They are a copy if the split has only some of its pixels."""
        return self.kept_pixels.images if self.numbers is None else self.kept_pixels.images[self.numbers]

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return the images with these numbers, int64 [n]: uint8 [n, H, W, C]."""
        return self.kept_pixels.images[numbers if self.numbers is None else self.numbers[numbers]]

    def fetch(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return the images with these numbers, int64 [] or [n], inside a graph."""
        if self.kept_pixels.is_mapped:
            images = tf.numpy_function(self.take, [numbers], tf.uint8)
            return tf.ensure_shape(images, [*numbers.shape, *self.shape])
        if self.numbers is not None:
            numbers = tf.gather(tf.constant(self.numbers), numbers)
        return tf.gather(self.kept_pixels.resident, numbers)

    def digest(self) -> str:
        """Return a digest of the pixels. For mapped pixels, that of the name of their file, which says it all."""
        pixels = self.kept_pixels
        digest = hashlib.sha256(str(pixels.images.filename).encode() if pixels.is_mapped else pixels.images)
        digest.update(b"" if self.numbers is None else np.ascontiguousarray(self.numbers))
        return digest.hexdigest()

    def count_labels(self, classes: int) -> np.ndarray:
        return np.bincount(self.labels[self.readable_numbers()], minlength=classes)

    def spread(self, images: int) -> np.ndarray:
        return spread_over_classes(self.labels, images)

    def select(self, numbers: np.ndarray) -> "ArraySplit":
        chosen = numbers if self.numbers is None else self.numbers[numbers]
        return ArraySplit(self.kept_pixels, self.labels[numbers], self.unreadable.select(numbers), chosen)

    def numbered(self) -> "ArraySplit":
        return self.with_labels(np.arange(len(self), dtype=np.int32))

    def with_labels(self, labels: np.ndarray) -> "ArraySplit":
        """Return the same images with other labels, int32 [N]."""
        return ArraySplit(self.kept_pixels, labels, self.unreadable, self.numbers)

    def training_batches(self, drawing, crop, size, first_step, last_step, make_batch) -> tf.data.Dataset:
        if crop and crop.resamples:
            batches = self._cropped(drawing, crop, size, first_step).take(last_step - first_step)
            return batches.map(make_batch(), num_parallel_calls=tf.data.AUTOTUNE)
        drawn, labels = drawing.draw(first_step, last_step), tf.constant(self.labels)
        if not self.kept_pixels.is_mapped:  # images are fetched inside the function that XLA compiles
            batch = make_batch(self.fetch)
            return drawn.map(
                lambda numbers, uniforms: batch(numbers, tf.gather(labels, numbers), uniforms),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        fetched = drawn.map(
            lambda numbers, uniforms: (self.fetch(numbers), tf.gather(labels, numbers), uniforms),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return fetched.map(make_batch(), num_parallel_calls=tf.data.AUTOTUNE)

    def _cropped(self, drawing, crop, size, first_step) -> tf.data.Dataset:
        """Return batches from a step on without an end, each image cropped and scaled by itself."""
        drawn = drawing.draw(first_step)
        shrinks = max(self.shape[:2]) >= 2 * size

        def sides_of(numbers):
            return tf.tile(tf.constant([self.shape[:2]], tf.int32), [tf.size(numbers), 1])

        def decode(number, label, box):
            return scale(cut(self.fetch(number), box), size, antialias=shrinks), label

        rows = locate(drawn, self.labels, sides_of, crop, size).unbatch()
        images = rows.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(drawing.count, drop_remainder=True)
        return with_uniforms(images, drawn)

    def evaluation_batches(self, numbers, batch_size, see) -> tf.data.Dataset:
        labels = tf.constant(self.labels)
        places = tf.data.Dataset.from_tensor_slices(numbers).batch(batch_size)
        return places.map(lambda wanted: see(self.fetch(wanted), tf.gather(labels, wanted)), tf.data.AUTOTUNE)

    def iterate(self, batch_size, progress=no_progress) -> Iterator[np.ndarray]:
        numbers = self.readable_numbers()
        for start in range(0, len(numbers), batch_size):
            yield self.take(numbers[start : start + batch_size])

    def read(self) -> Iterator[tuple[np.ndarray, int]]:
        for number in self.readable_numbers():
            yield self.take(number), int(self.labels[number])


def spread_over_classes(labels: np.ndarray, images: int) -> np.ndarray:
    """Return the numbers of some images, one class after the other: int64 [images]."""
    return np.argsort(labels, kind="stable")[np.linspace(0, len(labels) - 1, images).astype(int)]
