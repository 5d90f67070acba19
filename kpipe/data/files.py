"""A split of image files, read when they are needed.

TensorFlow leaves out a broken image without a word. Here each image carries its place in the stream, so that a missing
one leaves a gap in the places, which the next image fills.

N images, H height, W width, C channels, I pixels a side of what the network sees, b images of a batch.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from kpipe.data.arrays import spread_over_classes
from kpipe.data.conversions import Conversions
from kpipe.data.file_names import FileNames
from kpipe.data.images import Form, Noting, decode_crop, decode_to_form
from kpipe.data.reading import (
    batch_in_order,
    locate,
    note,
    read_in_order,
    read_what_can_be_read,
    with_uniforms,
)
from kpipe.data.splits import Shape, Split, no_progress
from kpipe.data.unreadable import Unreadable

FURTHEST = 10_000
"""Number of images in a row that cannot be read, after which the reading ends."""


@dataclass(frozen=True, eq=False, repr=False)
class FileSplit(Split):
    """Image files and their labels.

    Attributes:
        names: paths of the files, which several splits share.
        rows: numbers of this split's files in `names`, int64 [N].
        labels: int32 [N].
        form: form of an image, unless a crop reads it as it is in its file.
        shape: (H, W, C) in this form.
        unreadable: files that could not be read so far.
        conversions: files that were changed when they were read, by their numbers in `names`.
    """

    names: FileNames
    rows: np.ndarray
    labels: np.ndarray
    form: Form
    shape: Shape
    unreadable: Unreadable
    conversions: Conversions

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def where_kept(self) -> str:
        return "decoded each time"

    def count_labels(self, classes: int) -> np.ndarray:
        return np.bincount(self.labels[self.readable_numbers()], minlength=classes)

    def spread(self, images: int) -> np.ndarray:
        return spread_over_classes(self.labels, images)

    def select(self, numbers: np.ndarray) -> "FileSplit":
        return replace(
            self, rows=self.rows[numbers], labels=self.labels[numbers], unreadable=self.unreadable.select(numbers)
        )

    def numbered(self) -> "FileSplit":
        return replace(self, labels=np.arange(len(self), dtype=np.int32))

    def as_stored(self) -> "FileSplit":
        """Return the same images in the size that they have in their files."""
        return replace(self, form=replace(self.form, size=None), shape=(None, None, self.shape[2]))

    def fingerprint_items(self) -> Iterator[tuple[bytes, object]]:
        """Yield the path of each file, and an empty tuple: all of it is read."""
        for row in self.rows:
            yield self.names[row], ()

    def labels_when_kept(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels of images that were decoded before.

        They are those of now: a class that was added since moves the numbers of those after it.
        """
        return self.labels

    def attempt(self, numbers: np.ndarray) -> tf.data.Dataset:
        """Return (number, image, label) of each image of `numbers` that can be read."""
        read, labels = self._reader(), tf.constant(self.labels)
        wanted = tf.data.Dataset.from_tensor_slices(numbers.astype(np.int64))
        attempts = wanted.map(
            lambda number: (number, read(number, None), labels[number]), num_parallel_calls=tf.data.AUTOTUNE
        )
        return attempts.ignore_errors()

    def training_batches(self, drawing, crop, size, first_step, last_step, make_batch) -> tf.data.Dataset:
        resampling = crop if crop and crop.resamples else None
        batches = self._read(drawing, resampling, size, first_step).take(last_step - first_step)
        return batches.map(make_batch(), num_parallel_calls=tf.data.AUTOTUNE)

    def evaluation_batches(self, numbers, batch_size, see) -> tf.data.Dataset:
        return batch_in_order(self, numbers, batch_size, see)

    def iterate(self, batch_size, progress=no_progress) -> Iterator[np.ndarray]:
        for _, images, _ in read_what_can_be_read(self, batch_size, "measuring", progress):
            yield images

    def read(self) -> Iterator[tuple[np.ndarray, int]]:
        return read_in_order(self)

    def _read(self, drawing, crop, size, first_step) -> tf.data.Dataset:
        """Return endless batches (images, labels, uniforms) from a step on.

        An image that cannot be read is replaced by the next. More unreadable images than allowed end the stream with
        an error; `unreadable.error` says which.
        """
        drawn = drawing.draw(first_step)
        read, count, lead = self._reader(crop, size), drawing.count, _Lead(self.unreadable)

        def decode(place, row):
            number, label, box = row
            return place, read(number, box), label

        located = locate(drawn, self.labels, self._look_up_sides, crop, size).enumerate()
        located = located.take_while(lambda index, row: tf.numpy_function(lead.may_read, [index * count], tf.bool))
        rows = located.map(lambda index, row: row).unbatch().enumerate()
        found = rows.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
        found = found.batch(count, drop_remainder=True)
        images = _fill_gaps(found, self.unreadable, drawing.numbers_from(first_step), lead)
        return with_uniforms(images.rebatch(count, drop_remainder=True), drawn)

    def _reader(self, crop=None, size: int | None = None) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """Return a function (number int64 [], box int32 [4]) -> image."""
        path, rows = self.names.in_graph(), tf.constant(self.rows)

        def read(number, box):
            contents, noting = tf.io.read_file(path(rows[number])), Noting(self.conversions, rows[number])
            if crop is None:
                return decode_to_form(contents, self.form, noting)
            return decode_crop(contents, box, size, self.form, noting)

        return read

    def _look_up_sides(self, numbers: tf.Tensor) -> tf.Tensor:
        """Return height and width of images, int64 [b] -> int32 [b, 2], inside a graph."""
        sides = tf.numpy_function(lambda numbers: self.names.read_sides(self.rows[numbers]), [numbers], tf.int32)
        return tf.ensure_shape(sides, [None, 2])


def unlabeled_files(paths: Sequence[str], form: Form) -> FileSplit:
    """Return image files that belong to no set, in this order; all have the label 0.

    Args:
        paths: of the files, any of which may be unreadable.
        form: form of an image; it has a size and channels.
    """
    folders = itertools.groupby(map(os.path.split, paths), key=lambda parts: parts[0])
    names = FileNames((os.fsencode(folder), [os.fsencode(name) for _, name in group]) for folder, group in folders)
    return FileSplit(
        names,
        rows=np.arange(len(names)),
        labels=np.zeros(len(names), np.int32),
        form=form,
        shape=(form.size, form.size, form.channels),
        unreadable=Unreadable("the files", len(paths), paths.__getitem__, 1.0, are_files=True),
        conversions=Conversions(form.background),
    )


def _fill_gaps(
    found: tf.data.Dataset, unreadable: Unreadable, number_of: Callable[[tf.Tensor], tf.Tensor], lead: "_Lead"
) -> tf.data.Dataset:
    """Turn (places, images, labels) of what could be read into (images, labels) of all places, in batches of any size.

    Whole batches are handled at once: image by image it would take a twentieth of the time of decoding.

    Args:
        found: the batches.
        unreadable: notes the numbers of the images that are missing.
        number_of: maps places of this stream to numbers of images, int64 [m] -> int64 [m].
        lead: notes the last place that arrived.
    """

    def fill(place, batch):
        arrived, images, labels = batch
        copies = arrived - tf.concat([[place - 1], arrived[:-1]], axis=0)
        complete = tf.reduce_all(copies == 1)

        def missing():
            places = tf.range(place, arrived[-1])
            return number_of(tf.boolean_mask(places, tf.reduce_all(places[:, None] != arrived, axis=1)))

        def repeat(column):
            return tf.cond(complete, lambda: column, lambda: tf.repeat(column, copies, axis=0))

        noted = note(unreadable.add, ~complete, missing)
        with tf.control_dependencies([noted, tf.numpy_function(lead.arrive, [arrived[-1]], tf.int64)]):
            return arrived[-1] + 1, (repeat(images), repeat(labels))

    return found.scan(np.int64(0), fill)


class _Lead:
    """Distance of the reading from the last image that could be read.

    Where nothing can be read any more, such as when a disk is gone, tf.data would try the next image forever.
    """

    def __init__(self, unreadable: Unreadable):
        self.unreadable, self.arrived = unreadable, 0

    def may_read(self, place: np.int64) -> bool:
        """Return whether the image at this place is still to be read."""
        if not place:  # another pass
            self.arrived = 0
        if place - self.arrived > FURTHEST:
            self.unreadable.give_up(FURTHEST)
            return False
        return True

    def arrive(self, place: np.int64) -> np.int64:
        self.arrived = place
        return place
