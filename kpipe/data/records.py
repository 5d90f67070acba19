"""A split of TFRecord files, which can only be read in their order.

N images, H height, W width, C channels, I pixels a side of what the network sees, n uniforms an image.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from kpipe.data.augmentations.crops import Crop
from kpipe.data.images import Form, decode_crop, decode_to_form, sides_of
from kpipe.data.order import Drawing, shuffled
from kpipe.data.reading import batch_in_order, read_in_order, read_what_can_be_read
from kpipe.data.splits import Shape, Split, no_progress
from kpipe.data.stratify import count_of
from kpipe.data.unreadable import Unreadable

SHUFFLE_BLOCK = 2048
"""Number of records that are shuffled together, while they are still encoded."""
STREAMS = 16
"""Number of files that are read by turns."""


@dataclass(frozen=True)
class Shard:
    """A piece of a TFRecord file: `count` records after the first `skip`."""

    path: str
    skip: int
    count: int


@dataclass(frozen=True, eq=False, repr=False)
class RecordSplit(Split):
    """A stream of records.

    Attributes:
        shards: pieces of files, in their order.
        parse: a record, string [] -> the encoded image, string [], and its label, int32 [].
        form: form of an image, unless a crop reads the encoded image.
        shape: (H, W, C) in this form.
        unreadable: records that could not be read so far.
        is_in_form: whether all images have this form already.
        lost: number of records that were declared and are not there.
    """

    shards: tuple[Shard, ...]
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    form: Form
    shape: Shape
    unreadable: Unreadable
    is_in_form: bool = False
    lost: int = 0

    is_stream = True

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    @property
    def where_kept(self) -> str:
        return "streamed"

    @property
    def _form_to_reach(self) -> Form:
        # To ask each small image for its size takes a fifth of the time of its decoding.
        return replace(self.form, size=None) if self.is_in_form else self.form

    @property
    def images_per_epoch(self) -> int:
        return len(self.readable_numbers())

    def count_labels(self, classes: int) -> np.ndarray:
        labels = np.concatenate([found for _, found in self.read_encoded().batch(1024).as_numpy_iterator()])
        return np.bincount(labels, minlength=classes)

    def spread(self, images: int) -> np.ndarray:
        return np.arange(images)

    def select(self, numbers: np.ndarray) -> "RecordSplit":
        """Return the records with these numbers, which must be consecutive."""
        return self.slice(int(numbers[0]), int(numbers[-1]) + 1)

    def slice(self, start: int, stop: int) -> "RecordSplit":
        """Return the records from `start` up to, but not including, `stop`."""
        shards, first = [], 0
        for shard in self.shards:
            low, high = max(start - first, 0), min(stop - first, shard.count)
            if low < high:
                shards.append(Shard(shard.path, shard.skip + low, high - low))
            first += shard.count
        return replace(self, shards=tuple(shards), unreadable=self.unreadable.select(np.arange(start, stop)))

    def numbered(self) -> "RecordSplit":
        known = tf.stack([contents for contents, _ in self.read_encoded()])

        def parse(record):
            contents, _ = self.parse(record)
            return contents, tf.argmax(contents == known, output_type=tf.int32)

        return replace(self, parse=parse)

    def as_stored(self) -> "RecordSplit":
        """Return the same images in the size that they have in their records."""
        return replace(self, form=replace(self.form, size=None), shape=(None, None, self.shape[2]))

    def divide(self, fractions: Mapping[str, float]):
        splits, stop = {}, len(self)
        for name, fraction in fractions.items():
            start = stop - count_of(fraction, stop)
            if start < stop:
                splits[name], stop = self.slice(start, stop), start
        said = f"the {' and '.join(fractions)} split is cut off the end of the stream, without regard to its classes"
        return {"train": self.slice(0, stop), **splits}, [], said

    def fingerprint_items(self) -> Iterator[tuple[bytes, object]]:
        """Yield the path of each shard, and which of its records are read."""
        for shard in self.shards:
            yield os.fsencode(shard.path), (shard.skip, shard.count)

    def labels_when_kept(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels of images that were decoded before."""
        return labels

    def read_encoded(self) -> tf.data.Dataset:
        """Return (encoded image string [], label int32 []) of each record that is not known to be unreadable."""
        records = tf.data.Dataset.from_tensor_slices(self._shards()).flat_map(self._opener())
        return records.map(lambda number, record: self.parse(record), num_parallel_calls=tf.data.AUTOTUNE)

    def attempt(self, numbers: np.ndarray) -> tf.data.Dataset:
        """Return (number, image, label) of each image of `numbers` that can be read."""

        def decode(number, record):
            contents, label = self.parse(record)
            return number, tf.ensure_shape(decode_to_form(contents, self._form_to_reach), self.shape), label

        records = tf.data.Dataset.from_tensor_slices(self._shards()).flat_map(_records)
        if len(numbers) < len(self):
            left_out = np.setdiff1d(np.arange(len(self)), numbers)
            records = records.filter(lambda number, record: tf.reduce_all(number != left_out))
        return records.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()

    def training_batches(self, drawing, crop, size, first_step, last_step, make_batch) -> tf.data.Dataset:
        resampling = crop if crop and crop.resamples else None
        images = self._read(drawing, resampling, size, first_step).batch(drawing.count, drop_remainder=True)
        return images.take(last_step - first_step).map(make_batch(), num_parallel_calls=tf.data.AUTOTUNE)

    def evaluation_batches(self, numbers, batch_size, see) -> tf.data.Dataset:
        return batch_in_order(self, numbers, batch_size, see)

    def iterate(self, batch_size, progress=no_progress) -> Iterator[np.ndarray]:
        for _, images, _ in read_what_can_be_read(self, batch_size, "measuring", progress):
            yield images

    def read(self) -> Iterator[tuple[np.ndarray, int]]:
        return read_in_order(self)

    def _read(self, drawing: Drawing, crop: Crop | None, size: int | None, first_step: int) -> tf.data.Dataset:
        """Return (image uint8 [H, W, C] or [I, I, C], label int32 [], uniforms float32 [n]) from a step on.

        The files are read by turns, in another order each epoch, and shuffled in blocks. A stream has no random access:
        what comes before the step at which a training resumes is read and dropped. A record that cannot be read or is
        missing ends the stream with TensorFlow's error.
        """
        per_epoch, first = drawing.images_per_epoch, first_step * drawing.batch_size
        uniforms = drawing.draw_uniforms(first_step)

        def epoch(number):
            skipped = tf.maximum(first - number * per_epoch, 0)
            records = self._shuffled(drawing.seed, number).take(per_epoch).skip(skipped)
            records = records.apply(tf.data.experimental.assert_cardinality(per_epoch - skipped))
            return records.enumerate(number * per_epoch + skipped)

        def decode(record, chosen):
            contents, label = self.parse(record)
            if crop is None:
                return tf.ensure_shape(decode_to_form(contents, self._form_to_reach), self.shape), label, chosen
            box = crop.boxes(sides_of(contents)[None], chosen[None, : crop.uniforms], size)[0]
            return decode_crop(contents, box, size, self.form), label, chosen

        stream = tf.data.Dataset.range(first // per_epoch, np.iinfo(np.int64).max).flat_map(epoch)
        ours = stream.filter(lambda place, _: drawing.is_ours(place)).map(lambda place, record: record)
        return tf.data.Dataset.zip(ours, uniforms.unbatch()).map(decode, num_parallel_calls=tf.data.AUTOTUNE)

    def _shards(self) -> tuple[tf.Tensor, ...]:
        """Return the path of each file, how many records to skip and to take, and the number of the first one."""
        counts = np.array([shard.count for shard in self.shards], np.int64)
        skips = np.array([shard.skip for shard in self.shards], np.int64)
        return tf.constant([shard.path for shard in self.shards]), skips, counts, np.cumsum(counts) - counts

    def _opener(self) -> Callable[..., tf.data.Dataset]:
        """Return a function like `_records` that leaves out what is known to be unreadable.

        Where all records after a damage are unreadable, the file ends there.
        """
        if not self.unreadable:
            return _records
        left_out = np.array(sorted(self.unreadable.numbers), np.int64)

        def open_shard(path, skip, count, first):
            records = _records(path, skip, count, first).ignore_errors()
            return records.filter(lambda number, record: tf.reduce_all(number != left_out))

        return open_shard

    def _shuffled(self, seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
        """Return the records in the order of an epoch, without those that are known to be unreadable."""
        files = len(self.shards)
        order = shuffled(seed, epoch, np.int64(0), np.int64(files))
        shards = tf.data.Dataset.from_tensor_slices(tuple(tf.gather(column, order) for column in self._shards()))
        records = shards.interleave(
            self._opener(),
            cycle_length=min(STREAMS, files),
            block_length=1,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

        def shuffle_block(block, rows):
            return tf.gather(rows, shuffled(seed, epoch, block + 1, tf.size(rows, tf.int64)))

        blocks = records.map(lambda number, record: record).batch(SHUFFLE_BLOCK).enumerate()
        return blocks.map(shuffle_block).unbatch()


def _records(path, skip, count, first) -> tf.data.Dataset:
    """Return (number int64 [], record string [])."""
    return tf.data.TFRecordDataset(path).skip(skip).take(count).enumerate(first)
