"""Batches for training and for evaluation.

A training batch is a pure function of (seed, step): two runs agree, and a run that starts at step n sees exactly the
batches it would have seen. No iterator state has to be saved. An image that cannot be read gives its place to the next
readable one, which then appears twice: of the batch's order, or, from files with several workers, of the worker's own
rows.

B batch, b rows of one worker, H height, W width, C channels, I pixels a side of what the network sees, K classes, N
images of the part, n uniforms an image.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from kpipe.data.augmentations.base import Augmentation, Mix
from kpipe.data.augmentations.crops import Window, center_crop, take_windows, ten_crop
from kpipe.data.reading import read_files, read_in_order, read_records, read_what_can_be_read
from kpipe.data.splits import (
    AnyPart,
    Part,
    Progress,
    Records,
    no_progress,
    readable_numbers,
)
from kpipe.errors import ConfigError, DataError

CHUNK_BYTES, MOST_IN_CHUNK = 2**26, 1024  # of images that are looked at together for statistics


def make_pipeline(
    part: AnyPart,
    batch_size: int,
    *,
    seed: int = 0,
    augment: Sequence[Augmentation | Window | Mix] = (),
    image_size: int | None = None,
    classes: int | None = None,
    class_weights: np.ndarray | None = None,
    first_step: int = 0,
    last_step: int | None = None,
    worker: int = 0,
    workers: int = 1,
) -> tf.data.Dataset:
    """Training batches of the steps `first_step` up to, not including, `last_step`.

    An epoch has floor(N / B) steps and sees every image at most once; the N mod B images that do not fill a
    batch are others in each epoch. `Records` are shuffled by file and within blocks, all others wholly.

    Args:
        part: N images.
        batch_size: images a batch over all workers, at most N.
        seed: of the order and of the augmentations.
        augment: applied in this order; a window, if there is one, first. Without one the network sees the middle.
        image_size: I; None: images are as large as the part keeps them.
        classes: K; needed by augmentations that mix labels.
        class_weights: float [K]; a batch then has the weight of each image, of mixed ones the mean by their labels.
        first_step: counted from the start of training, over all epochs.
        last_step: default: one epoch after `first_step`.
        worker, workers: this worker's rows of the global batch are B / workers from `worker` x B / workers on.

    Returns:
        Dataset with known cardinality of (images uint8 [b, I, I, C], 0..255, labels int32 [b]), and weights
        float32 [b] under `class_weights`. Under an augmentation that mixes, the labels are float32 [b, K] and the
        images may be float32.

    Raises:
        ConfigError: the batch is larger than the part or not at least 1, or cannot be divided among the workers; the
            window is larger than the image, or not the first.
    """
    window, changes = _split(augment)
    size = _window_size(part, window, image_size)
    rows = _Rows(part, batch_size, seed, sum(entry.uniforms for entry in augment), worker, workers)
    _check_mixing(changes, classes, rows.count, workers)
    if last_step is None:
        last_step = first_step + rows.steps_per_epoch
    num_steps = max(0, last_step - first_step)
    make_batch = _make_batcher(window, size, changes, classes, class_weights)
    if isinstance(part, Part) and not (window and window.resamples):
        batches = _gather(part, tf.data.Dataset.range(first_step, last_step).map(rows.draw), make_batch)
    else:
        batches = _read(part, rows, window, size, first_step).take(num_steps)
        batches = batches.map(make_batch(), num_parallel_calls=tf.data.AUTOTUNE)
    return _known_length(batches, num_steps)


def make_evaluation_pipeline(
    part: AnyPart, batch_size: int, *, image_size: int | None = None, ten_crops: bool = False
) -> tf.data.Dataset:
    """Each image once, in the order of the part; the last batch may be smaller.

    Images that are known to be unreadable are left out.

    Args:
        part: N images.
        batch_size: at least 1.
        image_size: I: the network sees the middle of each image; None: images are as large as the part keeps them.
        ten_crops: ten views of each image instead of the middle, see `ten_crop`; needs `image_size`.

    Returns:
        Dataset of (images uint8 [b, I, I, C], 0..255, labels int32 [b]), 1 <= b <= B, with known cardinality; the
        images of ten crops are [b, 10, I, I, C].

    Raises:
        ConfigError: `batch_size` is not at least 1, or the window is larger than the image.
    """
    _check_batch_size(batch_size)
    numbers = readable_numbers(part)
    size = _window_size(part, center_crop() if ten_crops else None, image_size)

    def see(images, labels):
        return ten_crop(images, size) if ten_crops else _middle(images, size), labels

    if isinstance(part, Part):
        labels = tf.constant(part.labels)
        places = tf.data.Dataset.from_tensor_slices(numbers).batch(batch_size)
        batches = places.map(lambda wanted: see(part.fetch(wanted), tf.gather(labels, wanted)), tf.data.AUTOTUNE)
    else:
        batches = read_in_order(part, numbers).batch(batch_size).map(see, tf.data.AUTOTUNE)
    return _known_length(batches, -(-len(numbers) // batch_size))


def iterate_images(
    part: AnyPart, image_size: int | None = None, progress: Progress = no_progress
) -> Iterator[np.ndarray]:
    """Each readable image once, as evaluation sees it: batches uint8 [b, I, I, C]; the others are noted.

    Raises:
        DataError: more images than allowed cannot be read.
    """
    chunk = max(1, min(MOST_IN_CHUNK, CHUNK_BYTES // int(np.prod(part.shape))))
    if isinstance(part, Part):
        numbers = readable_numbers(part)
        for start in range(0, len(numbers), chunk):
            yield _middle(part.take(numbers[start : start + chunk]), image_size)
        return
    for _, images, _ in read_what_can_be_read(part, chunk, "measuring", progress):
        yield _middle(images, image_size)


def read_images(part: AnyPart) -> Iterator[tuple[np.ndarray, int]]:
    """(image uint8 [H, W, C] as the part keeps it, label) of each image that is not known to be unreadable.

    Raises:
        DataError: one cannot be read.
    """
    if isinstance(part, Part):
        for number in readable_numbers(part):
            yield part.take(number), int(part.labels[number])
        return
    try:
        for image, label in read_in_order(part, readable_numbers(part)).as_numpy_iterator():
            yield image, int(label)
    except tf.errors.OpError:
        raise part.unreadable.error or DataError(f"{part.unreadable.where}: its records cannot be read") from None


def count_steps_per_epoch(part: AnyPart, batch_size: int) -> int:
    """Full batches in an epoch of training.

    Raises:
        ConfigError: there is not one, or `batch_size` is not at least 1.
    """
    _check_batch_size(batch_size)
    images = len(readable_numbers(part)) if isinstance(part, Records) else len(part)
    if batch_size > images:
        raise ConfigError(
            f"data.batch_size: expected at most the {images:,} images of the training part, got {batch_size:,}"
        )
    return images // batch_size


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"data.batch_size: expected at least 1, got {batch_size}")


def _split(augment: Sequence) -> tuple[Window | None, list[Augmentation | Mix]]:
    """The window, if there is one, and the rest."""
    for number, entry in enumerate(augment):
        if not isinstance(entry, Augmentation | Window | Mix):
            raise ConfigError(f"augment: expected augmentations such as flip_horizontal(), got {entry!r}")
        if isinstance(entry, Window) and number:
            raise ConfigError(f"augment: expected {entry.name} as the first entry, it chooses what the others see")
    has_window = bool(augment) and isinstance(augment[0], Window)
    return (augment[0] if has_window else None), list(augment[has_window:])


def _window_size(part: AnyPart, window: Window | None, image_size: int | None) -> int | None:
    """Pixels a side of what the network sees; None: images as they are kept."""
    height, width, _ = part.shape
    if image_size is None:
        if window and (not window.resamples or height is None or height != width):
            raise ConfigError(f"{window.name}: expected image_size, the size of the window, got none")
        return height if window else None
    if height and not (window and window.resamples) and image_size > min(height, width):
        raise ConfigError(
            f"data.image_size: expected at most the {min(height, width)} pixels of the kept images, got {image_size}"
        )
    return image_size


def _check_mixing(changes: Sequence[Augmentation | Mix], classes: int | None, rows: int, workers: int) -> None:
    mixes = [entry.name for entry in changes if isinstance(entry, Mix)]
    if mixes and classes is None:
        raise ConfigError(f"{mixes[0]}: expected the number of classes, got none")
    if mixes and workers > 1 and rows % 2:
        raise ConfigError(
            f"{mixes[0]}: expected an even number of images a worker, which are mixed in pairs, got {rows}"
        )


PAD = 498247692  # what TensorFlow's wrapper of `index_shuffle` puts in front of a seed of two numbers


class _Rows:
    """Which images a worker's rows of a batch show, and the random numbers of these rows.

    Stays outside of XLA, which has no kernel for `index_shuffle` and draws other floats.
    """

    def __init__(self, part: AnyPart, batch_size: int, seed: int, uniforms: int, worker: int, workers: int):
        self.steps_per_epoch = count_steps_per_epoch(part, batch_size)
        if batch_size % workers:
            raise ConfigError(f"data.batch_size: expected a multiple of the {workers} workers, got {batch_size}")
        self.images, self.batch_size, self.seed = len(part), batch_size, seed
        self.uniforms = max(1, uniforms)  # TensorFlow 2.21 crashes where a batch of empty tensors is taken apart
        self.count = batch_size // workers
        self.offset = worker * self.count
        unreadable = part.unreadable.numbers if isinstance(part, Part) and part.unreadable else ()
        self.unreadable = tf.constant(sorted(unreadable), tf.int64)

    def draw(self, step):
        """Step int64 [] -> numbers of the images int64 [b], uniforms float32 [b, n]."""
        places = step * self.batch_size + self.offset + tf.range(self.count, dtype=tf.int64)
        return self.numbers(places), self.draw_uniforms(step)

    def draw_uniforms(self, step):
        step_seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        uniforms = tf.random.stateless_uniform([self.batch_size, self.uniforms], seed=step_seed)
        return uniforms[self.offset : self.offset + self.count]

    def numbers(self, places):
        """Places counted over all epochs, int64 [m] -> numbers of images int64 [m]."""
        numbers = self._order(places)
        if not len(self.unreadable):
            return numbers

        def is_unreadable(places, numbers):
            return tf.reduce_any(numbers[:, None] == self.unreadable, axis=1)

        def move_on(places, numbers):
            places += tf.cast(is_unreadable(places, numbers), tf.int64)
            return places, self._order(places)

        return tf.while_loop(lambda *state: tf.reduce_any(is_unreadable(*state)), move_on, (places, numbers))[1]

    def _order(self, places):
        per_epoch = self.steps_per_epoch * self.batch_size
        epochs = places // per_epoch
        # `tf.random.experimental.index_shuffle` with a seed for each index, as its wrapper should pass it on.
        seeds = tf.stack([tf.fill(tf.shape(places), np.int64(each)) for each in (PAD, self.seed)] + [epochs], axis=1)
        return tf.raw_ops.RandomIndexShuffle(
            index=places % per_epoch, seed=seeds, max_index=np.int64(self.images - 1), rounds=4
        )


def _gather(part: Part, drawn: tf.data.Dataset, make_batch: Callable) -> tf.data.Dataset:
    """Batches of images that have one size already; those in memory are taken inside the function compiled by XLA."""
    labels = tf.constant(part.labels)
    labeled = drawn.map(lambda numbers, uniforms: (numbers, tf.gather(labels, numbers), uniforms))
    if part.pixels.is_mapped:
        labeled = labeled.map(lambda numbers, *rest: (part.fetch(numbers), *rest), num_parallel_calls=tf.data.AUTOTUNE)
        return labeled.map(make_batch(), num_parallel_calls=tf.data.AUTOTUNE)
    return labeled.map(make_batch(part.fetch), num_parallel_calls=tf.data.AUTOTUNE)


def _read(part: AnyPart, rows: _Rows, window: Window | None, size: int | None, first_step: int) -> tf.data.Dataset:
    """Batches from `first_step` on without an end: (images, labels, uniforms)."""
    steps = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max)
    resampling = window if window and window.resamples else None
    if isinstance(part, Records):
        singles = read_records(
            part,
            steps.map(rows.draw_uniforms),
            seed=rows.seed,
            per_epoch=rows.steps_per_epoch * rows.batch_size,
            first=first_step * rows.batch_size,
            is_ours=lambda place: (place % rows.batch_size) // rows.count == rows.offset // rows.count,
            window=resampling,
            size=size,
        )
        return singles.batch(rows.count, drop_remainder=True)

    def number_of(places):
        steps, places = first_step + places // rows.count, places % rows.count
        return rows.numbers(steps * rows.batch_size + rows.offset + places)

    return read_files(part, steps.map(rows.draw), number_of, resampling, size, rows.count)


def _make_batcher(
    window: Window | None,
    size: int | None,
    changes: Sequence[Augmentation | Mix],
    classes: int | None,
    class_weights: np.ndarray | None,
) -> Callable:
    """Returns a function that makes of `fetch`, which takes images by their numbers inside XLA, one that gives a batch
    of numbers (without `fetch`: of images), labels and uniforms."""
    first, *others = _group(changes, window.uniforms if window else 0)
    mixes = any(isinstance(entry, Mix) for entry in changes)

    def make_batch(fetch=lambda images: images):
        def begin(numbers, uniforms):
            images = fetch(numbers)
            if window and not window.resamples:
                images = take_windows(images, window, uniforms[:, : window.uniforms], size)
            return first(_middle(images, size), None, uniforms)[0]

        # The labels stay outside: taken in the same function, they make XLA's gather of a window three times as slow.
        compiled = tf.function(begin, jit_compile=True)
        later = [tf.function(change, jit_compile=True) for change in others]

        def batch(numbers, labels, uniforms):
            images = compiled(numbers, uniforms)
            labels = tf.one_hot(labels, classes) if mixes else labels
            for change in later:
                images, labels = change(images, labels, uniforms)
            if class_weights is None:
                return images, labels
            weights = tf.constant(class_weights, tf.float32)
            return images, labels, tf.linalg.matvec(labels, weights) if mixes else tf.gather(weights, labels)

        return batch

    return make_batch


def _group(changes: Sequence[Augmentation | Mix], column: int) -> list[Callable]:
    """Functions (images, labels, uniforms) -> (images, labels), each to be compiled alone; the first one only moves.

    The uniforms of the changes begin at `column`.
    """
    groups: list[list[tuple[Augmentation | Mix, slice]]] = [[]]
    for entry in changes:
        moves = isinstance(entry, Augmentation) and entry.moves
        if not moves or not all(isinstance(one, Augmentation) and one.moves for one, _ in groups[-1]):
            groups.append([])
        groups[-1].append((entry, slice(column, column + entry.uniforms)))
        column += entry.uniforms
    return [functools.partial(_change, group) for group in groups]


def _change(group: list[tuple[Augmentation | Mix, slice]], images, labels, uniforms):
    for entry, columns in group:
        if isinstance(entry, Mix):
            images, labels = entry.apply(images, labels, uniforms[:, columns])
        else:
            images = entry.apply(images, uniforms[:, columns])
    return images, labels


def _middle(images: tf.Tensor, size: int | None) -> tf.Tensor:
    height, width = images.shape[1:3]
    if size is None or (height, width) == (size, size):
        return images
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, top : top + size, left : left + size]


def _known_length(batches: tf.data.Dataset, length: int) -> tf.data.Dataset:
    """Keras counts steps and losses wrongly, without a word, where the cardinality is unknown."""
    # To optimize its graph, tf.data copies all that a function has captured: the images would be in memory twice.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    batches = batches.apply(tf.data.experimental.assert_cardinality(length))
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)
