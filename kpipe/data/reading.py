"""Reads images that lie in files, one by one and in parallel, and notices those that cannot be read.

TensorFlow's own way to leave out a broken image drops it without a word. Here each image carries its place in the
stream, so that a missing one leaves a gap in the places.

N images, H height, W width, C channels, I pixels a side of what the network sees, n uniforms an image.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from kpipe.data.augmentations.crops import Window
from kpipe.data.images import cut, decode_to_form, decode_window, scale, sides_of
from kpipe.data.splits import (
    AnyPart,
    Files,
    Part,
    Progress,
    Records,
    no_progress,
)
from kpipe.data.unreadable import Unreadable
from kpipe.errors import DataError

SHUFFLE_BLOCK = 2048
"""Records of a stream that are shuffled together, while they are still encoded."""
STREAMS = 16
"""Files of a stream that are read by turns."""
FURTHEST = 10_000
"""Images in a row of which not one can be read, before nobody looks for the next one."""


def read_encoded(part: Records) -> tf.data.Dataset:
    """(encoded image string [], label int32 []) of every record that is not known to be unreadable, in their order."""
    records = tf.data.Dataset.from_tensor_slices(_shards(part)).flat_map(_opener(part))
    return records.map(lambda number, record: part.parse(record), num_parallel_calls=tf.data.AUTOTUNE)


def read_what_can_be_read(
    part: Files | Records, batch_size: int, what: str, progress: Progress = no_progress
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers int64 [b], images uint8 [b, H, W, C] and labels int32 [b] of all that can be read; at the end, the others
    are noted.

    Args:
        part: its images have one size, or `batch_size` is 1.
        batch_size: B, 1 <= b <= B.
        what: is done with them, for the progress.
        progress: shows how far it is.

    Raises:
        DataError: more images than allowed cannot be read.
    """
    missing = np.ones(len(part), bool)
    batches = _attempt(part, np.arange(len(part))).batch(batch_size).prefetch(1)
    with progress(f"{what} {part.unreadable.where}", len(part)) as advance:
        for numbers, images, labels in batches.as_numpy_iterator():
            missing[numbers] = False
            yield numbers, images, labels
            advance(len(numbers))
    part.unreadable.add(np.flatnonzero(missing))


def note_unreadable(part: Files | Records, progress: Progress = no_progress) -> None:
    """Tries all images, so that those which cannot be read are known; raises as `read_what_can_be_read`."""
    for _ in read_what_can_be_read(part, 1 if None in part.shape else 64, "checking", progress):
        pass


def read_in_order(part: Files | Records, numbers: np.ndarray) -> tf.data.Dataset:
    """The images of these numbers, int64 [n], ascending: (uint8 [H, W, C], label int32 []) in the form of the part.

    One that cannot be read ends the stream with an error; `part.unreadable.error` says which.
    """
    blank = tf.zeros([side or 1 for side in part.shape], tf.uint8)
    wanted = tf.constant(numbers, tf.int64)
    # One more behind the last: without it nobody would miss the last image.
    end = tf.data.Dataset.range(1).map(lambda _: (np.int64(len(part)), blank, 0))
    wanted_and_end = tf.concat([wanted, [len(part)]], axis=0)

    def check(place, element):
        number, image, label = element
        arrived = tf.searchsorted(wanted_and_end, number[None], out_type=tf.int64)[0]
        note = _note(part.unreadable.refuse, arrived > place, lambda: wanted[place:arrived])
        with tf.control_dependencies([note]):
            return place + 1, (image, tf.identity(label))

    found = _attempt(part, numbers).concatenate(end)
    return found.scan(np.int64(0), check).take(len(numbers))


def read_files(
    part: Files | Part,
    drawn: tf.data.Dataset,
    number_of: Callable[[tf.Tensor], tf.Tensor],
    window: Window | None,
    size: int | None,
    count: int,
) -> tf.data.Dataset:
    """Batches of training, each image as its window shows it; one that cannot be read is replaced by the next.

    Args:
        part: a `Part` only with a window.
        drawn: a step's numbers of images, int64 [b], and uniforms, float32 [b, n], the window's first.
        number_of: the numbers of the images at places of this stream, int64 [m] -> int64 [m].
        window: None or one that resamples.
        size: I, with a window.
        count: images a batch, b.

    Returns:
        Data set of (images uint8 [b, H, W, C] or [b, I, I, C], labels int32 [b], uniforms float32 [b, n]). More
        unreadable images than allowed end it with an error; `part.unreadable.error` says which.
    """
    labels = tf.constant(part.labels)
    sides = tf.constant(part.sides if isinstance(part, Files) else np.tile(np.int32(part.shape[:2]), (len(part), 1)))
    read = _reader(part, window, size)

    def look(numbers, uniforms):
        boxes = tf.zeros([tf.size(numbers), 4], tf.int32)
        if window:  # for the whole batch at once: image by image it would take a tenth of the decoding
            boxes = window.boxes(tf.gather(sides, numbers), uniforms[:, : window.uniforms], size)
        return numbers, tf.gather(labels, numbers), boxes

    def decode(place, row):
        number, label, box = row
        return place, read(number, box), label

    looked = drawn.map(look)
    if isinstance(part, Part):
        rows = looked.unbatch().enumerate().map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        images = rows.map(lambda place, *image: image).batch(count, drop_remainder=True)
    else:
        lead = _Lead(part.unreadable)
        looked = looked.enumerate().take_while(
            lambda index, row: tf.numpy_function(lead.goes_on, [index * count], tf.bool)
        )
        rows = looked.map(lambda index, row: row).unbatch().enumerate()
        found = rows.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
        images = _fill_gaps(found.batch(count, drop_remainder=True), part, number_of, lead).rebatch(
            count, drop_remainder=True
        )
    # Each place has its own: an image that appears twice is augmented in two ways, as one kept in memory is.
    uniforms = drawn.map(lambda numbers, uniforms: uniforms)
    return tf.data.Dataset.zip(images, uniforms).map(lambda images, uniforms: (*images, uniforms))


def _fill_gaps(
    found: tf.data.Dataset, part: Files, number_of: Callable[[tf.Tensor], tf.Tensor], lead: "_Lead"
) -> tf.data.Dataset:
    """(places, images, labels) of what could be read -> (images, labels) of all places, in batches of any size.

    By batch: image by image it would take a twentieth of the decoding.
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

        note = _note(part.unreadable.add, ~complete, missing)
        with tf.control_dependencies([note, tf.numpy_function(lead.arrive, [arrived[-1]], tf.int64)]):
            return arrived[-1] + 1, (repeat(images), repeat(labels))

    return found.scan(np.int64(0), fill)


def read_records(
    part: Records,
    uniforms: tf.data.Dataset,
    *,
    seed: int,
    per_epoch: int,
    first: int,
    is_ours: Callable[[tf.Tensor], tf.Tensor],
    window: Window | None,
    size: int | None,
) -> tf.data.Dataset:
    """(image uint8 [H, W, C] or [I, I, C], label int32 [], uniforms float32 [n]) of training, from a stream.

    Its files are read by turns, in another order each epoch, and shuffled in blocks.

    A record that cannot be read, or is missing, ends the stream with TensorFlow's error.

    Args:
        part: has no random access; it is read and thrown away up to where a training goes on.
        uniforms: a step's uniforms, float32 [b, n].
        seed: of the order.
        per_epoch: images of an epoch over all workers.
        first: the place of the first image wanted, counted from the start of the training.
        is_ours: whether this worker takes the image at a place, int64 [] -> bool [].
        window, size: as in `read_files`.
    """

    def epoch(number):
        skipped = tf.maximum(first - number * per_epoch, 0)
        records = _shuffled(part, seed, number).take(per_epoch).skip(skipped)
        records = records.apply(tf.data.experimental.assert_cardinality(per_epoch - skipped))
        return records.enumerate(number * per_epoch + skipped)

    def decode(record, chosen):
        contents, label = part.parse(record)
        if window is None:
            return tf.ensure_shape(decode_to_form(contents, part.form), part.shape), label, chosen
        box = window.boxes(sides_of(contents)[None], chosen[None, : window.uniforms], size)[0]
        return decode_window(contents, box, size, part.form.channels), label, chosen

    stream = tf.data.Dataset.range(first // per_epoch, np.iinfo(np.int64).max).flat_map(epoch)
    ours = stream.filter(lambda place, _: is_ours(place)).map(lambda place, record: record)
    return tf.data.Dataset.zip(ours, uniforms.unbatch()).map(decode, num_parallel_calls=tf.data.AUTOTUNE)


def _attempt(part: Files | Records, numbers: np.ndarray) -> tf.data.Dataset:
    """(number, image, label) of those of `numbers` that can be read."""
    if isinstance(part, Files):
        read, labels = _reader(part, None, None), tf.constant(part.labels)
        wanted = tf.data.Dataset.from_tensor_slices(numbers.astype(np.int64))
        attempts = wanted.map(
            lambda number: (number, read(number, None), labels[number]), num_parallel_calls=tf.data.AUTOTUNE
        )
        return attempts.ignore_errors()

    def decode(number, record):
        contents, label = part.parse(record)
        return number, tf.ensure_shape(decode_to_form(contents, part.form), part.shape), label

    records = tf.data.Dataset.from_tensor_slices(_shards(part)).flat_map(_records)
    if len(numbers) < len(part):
        left_out = np.setdiff1d(np.arange(len(part)), numbers)
        records = records.filter(lambda number, record: tf.reduce_all(number != left_out))
    return records.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()


def _reader(part: Files | Part, window: Window | None, size: int | None) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """(number int64 [], box int32 [4]) -> image."""
    if isinstance(part, Part):
        shrinks = max(part.shape[:2]) >= 2 * size
        return lambda number, box: scale(cut(part.fetch(number), box), size, antialias=shrinks)
    paths = tf.constant(part.paths)
    if window is None:
        return lambda number, box: decode_to_form(tf.io.read_file(paths[number]), part.form)
    return lambda number, box: decode_window(tf.io.read_file(paths[number]), box, size, part.form.channels)


def _shards(part: Records) -> tuple[tf.Tensor, ...]:
    """Of each file: its path, how many records to skip and to take, and the number of the first one."""
    counts = np.array([shard.count for shard in part.shards], np.int64)
    skips = np.array([shard.skip for shard in part.shards], np.int64)
    return tf.constant([shard.path for shard in part.shards]), skips, counts, np.cumsum(counts) - counts


def _records(path, skip, count, first) -> tf.data.Dataset:
    """(number int64 [], record string [])"""
    return tf.data.TFRecordDataset(path).skip(skip).take(count).enumerate(first)


def _opener(part: Records) -> Callable[..., tf.data.Dataset]:
    """As `_records`, without those that are known to be unreadable; a damage behind which all are ends its file."""
    if not part.unreadable:
        return _records
    left_out = np.array(sorted(part.unreadable.numbers), np.int64)

    def open_shard(path, skip, count, first):
        records = _records(path, skip, count, first).ignore_errors()
        return records.filter(lambda number, record: tf.reduce_all(number != left_out))

    return open_shard


def _shuffled(part: Records, seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
    """The records in the order of an epoch, without those that are known to be unreadable."""
    files = len(part.shards)
    order = _shuffle(tf.constant([seed, 0], tf.int64) + tf.stack([np.int64(0), epoch]), files)
    shards = tf.data.Dataset.from_tensor_slices(tuple(tf.gather(column, order) for column in _shards(part)))
    records = shards.interleave(
        _opener(part),
        cycle_length=min(STREAMS, files),
        block_length=1,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )

    def shuffle_block(block, rows):
        # The blocks of all epochs have seeds of their own.
        return tf.gather(rows, _shuffle(tf.stack([seed + 1, epoch * len(part) + block]), tf.size(rows, tf.int64)))

    blocks = records.map(lambda number, record: record).batch(SHUFFLE_BLOCK).enumerate()
    return blocks.map(shuffle_block).unbatch()


def _shuffle(seed: tf.Tensor, count) -> tf.Tensor:
    """0, 1, ... count - 1 in an order that depends on `seed`, int64 [2]."""
    count = tf.cast(count, tf.int64)
    return tf.random.experimental.index_shuffle(tf.range(count), seed=seed, max_index=count - 1)


class _Lead:
    """How far the reading is ahead of the last image that could be read.

    Where nothing can be read any more, as of a disk that is gone, tf.data would look for the next image for ever.
    """

    def __init__(self, unreadable: Unreadable):
        self.unreadable, self.arrived = unreadable, 0

    def goes_on(self, place: np.int64) -> bool:
        """Whether the image at this place is still to be read."""
        if not place:  # another pass
            self.arrived = 0
        if place - self.arrived > FURTHEST:
            self.unreadable.give_up(FURTHEST)
            return False
        return True

    def arrive(self, place: np.int64) -> np.int64:
        self.arrived = place
        return place


def _note(method: Callable[[np.ndarray], None], condition: tf.Tensor, numbers: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Calls a method of `Unreadable` with numbers, where the condition holds."""

    def call(values: np.ndarray) -> np.int64:
        method(values)
        return np.int64(0)

    return tf.cond(condition, lambda: tf.numpy_function(call, [numbers()], tf.int64), lambda: np.int64(0))


@contextmanager
def translate_reading_errors(parts: Iterable[AnyPart]) -> Iterator[None]:
    """Turns what TensorFlow makes of an image that cannot be read into the DataError that says which."""
    try:
        yield
    except tf.errors.OpError as error:
        read = [part for part in parts if part.unreadable is not None]
        if known := next((part.unreadable.error for part in read if part.unreadable.error), None):
            raise known from None
        streams = [part for part in read if isinstance(part, Records)]
        if streams and "IteratorGetNext" in str(error):  # it comes out of a pipeline
            raise DataError(
                f"{streams[0].unreadable.where}: expected {len(streams[0]):,} records that can be read, got an error "
                f"({_reason(error)}). kpipe data check finds them; data.on_error=skip leaves them out"
            ) from None
        raise


def _reason(error: tf.errors.OpError) -> str:
    """What TensorFlow says, without the operations around it: its last line before the first of them is named."""
    said = re.split(r"\[\[|\[Op:", str(error))[0].strip().splitlines() or [type(error).__name__]
    return re.sub(r"\{\{.*?\}\} ?", "", said[-1]).strip()
