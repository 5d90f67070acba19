"""Read images that are not decoded yet, one by one and in parallel, and note those that cannot be read.

N images, H height, W width, C channels, I pixels a side of what the network sees, n uniforms an image.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from kpipe.caller import setting
from kpipe.data.augmentations.crops import Crop
from kpipe.data.splits import ProgressReporter, Split, no_progress
from kpipe.errors import DataError


def read_what_can_be_read(
    split: Split, batch_size: int, what: str, progress: ProgressReporter = no_progress
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield numbers int64 [b], images uint8 [b, H, W, C] and labels int32 [b] of all that can be read.

    The others are noted at the end.

    Args:
        split: its images have one size, or `batch_size` is 1.
        batch_size: B, 1 <= b <= B.
        what: what is done with them, for the progress bar.
        progress: shows how many are done.

    Raises:
        DataError: more images than allowed cannot be read.
    """
    missing = np.ones(len(split), bool)
    batches = split.attempt(np.arange(len(split))).batch(batch_size).prefetch(1)
    with progress(f"{what} {split.unreadable.where}", len(split)) as advance:
        for numbers, images, labels in batches.as_numpy_iterator():
            missing[numbers] = False
            yield numbers, images, labels
            advance(len(numbers))
    split.unreadable.add(np.flatnonzero(missing))


def note_unreadable(split: Split, progress: ProgressReporter = no_progress) -> None:
    """Try to read all images and note those that cannot be read. Raises as `read_what_can_be_read`."""
    for _ in read_what_can_be_read(split, 1 if None in split.shape else 64, "checking", progress):
        pass


def batch_in_order(split: Split, numbers: np.ndarray, batch_size: int, see: Callable) -> tf.data.Dataset:
    """Return `Split.evaluation_batches` of a split that is not decoded.

    An image that cannot be read ends the stream with an error; `split.unreadable.error` says which.
    """
    return _in_order(split, numbers).batch(batch_size).map(see, tf.data.AUTOTUNE)


def read_in_order(split: Split) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `Split.read` of a split that is not decoded."""
    try:
        for image, label in _in_order(split, split.readable_numbers()).as_numpy_iterator():
            yield image, int(label)
    except tf.errors.OpError:
        raise split.unreadable.error or DataError(f"{split.unreadable.where}: its records cannot be read") from None


def locate(
    drawn: tf.data.Dataset,
    labels: np.ndarray,
    sides_of: Callable[[tf.Tensor], tf.Tensor],
    crop: Crop | None,
    size: int | None,
) -> tf.data.Dataset:
    """Return a step's numbers int64 [b], labels int32 [b], and the box of each image that a crop shows, int32 [b, 4].

    Args:
        drawn: the numbers of a step's images, int64 [b], and uniforms, float32 [b, n], the crop's first.
        labels: int32 [N].
        sides_of: returns height and width of images, int64 [b] -> int32 [b, 2].
        crop: None or one that resamples.
        size: I, with a crop.
    """
    labels = tf.constant(labels)

    def add_boxes(numbers, uniforms):
        boxes = tf.zeros([tf.size(numbers), 4], tf.int32)
        if crop:  # for the whole batch at once: image by image it would take a tenth of the decoding
            boxes = crop.boxes(sides_of(numbers), uniforms[:, : crop.uniforms], size)
        return numbers, tf.gather(labels, numbers), boxes

    return drawn.map(add_boxes)


def with_uniforms(images: tf.data.Dataset, drawn: tf.data.Dataset) -> tf.data.Dataset:
    """Add the uniforms of `drawn` to batches (images, labels): (images, labels, uniforms).

    Each place has its own uniforms. An image that appears twice is augmented in two ways, as one kept in memory is.
    """
    uniforms = drawn.map(lambda numbers, uniforms: uniforms)
    return tf.data.Dataset.zip(images, uniforms).map(lambda images, uniforms: (*images, uniforms))


def note(method: Callable[[np.ndarray], None], condition: tf.Tensor, numbers: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Call a method of `Unreadable` with numbers if the condition holds."""

    def call(values: np.ndarray) -> np.int64:
        method(values)
        return np.int64(0)

    return tf.cond(condition, lambda: tf.numpy_function(call, [numbers()], tf.int64), lambda: np.int64(0))


@contextmanager
def translate_reading_errors(splits: Iterable[Split]) -> Iterator[None]:
    """Translate TensorFlow's error about an image that cannot be read into a DataError that names the image."""
    try:
        yield
    except tf.errors.OpError as error:
        splits = list(splits)
        if known := next((split.unreadable.error for split in splits if split.unreadable.error), None):
            raise known from None
        streams = [split for split in splits if split.is_stream]
        if streams and "IteratorGetNext" in str(error):  # it comes out of a pipeline
            raise DataError(
                f"{streams[0].unreadable.where}: expected {len(streams[0]):,} records that can be read, got an error "
                f"({_reason(error)}). kpipe data check finds them; {setting('on_error', 'skip')} leaves them out"
            ) from None
        raise


def _in_order(split: Split, numbers: np.ndarray) -> tf.data.Dataset:
    """Return the images of these numbers, int64 [n], ascending: (uint8 [H, W, C], label int32 [])."""
    blank = tf.zeros([side or 1 for side in split.shape], tf.uint8)
    wanted = tf.constant(numbers, tf.int64)
    # One more after the last: without it a missing last image would not be noticed.
    end = tf.data.Dataset.range(1).map(lambda _: (np.int64(len(split)), blank, 0))
    wanted_and_end = tf.concat([wanted, [len(split)]], axis=0)

    def check(place, element):
        number, image, label = element
        arrived = tf.searchsorted(wanted_and_end, number[None], out_type=tf.int64)[0]
        noted = note(split.unreadable.refuse, arrived > place, lambda: wanted[place:arrived])
        with tf.control_dependencies([noted]):
            return place + 1, (image, tf.identity(label))

    found = split.attempt(numbers).concatenate(end)
    return found.scan(np.int64(0), check).take(len(numbers))


def _reason(error: tf.errors.OpError) -> str:
    """Return what TensorFlow says, without the operations: the last line before the first operation is named."""
    said = re.split(r"\[\[|\[Op:", str(error))[0].strip().splitlines() or [type(error).__name__]
    return re.sub(r"\{\{.*?\}\} ?", "", said[-1]).strip()
