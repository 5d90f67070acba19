"""The images that a training step shows, and its random numbers. Both depend on seed and step alone.

B batch, b rows of one worker, N images of the split, n uniforms an image.
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from kpipe.caller import setting
from kpipe.errors import ConfigError

_DRAWN_TOGETHER = 16  # steps; drawing them one by one took a tenth of the training time of LeNet-5


class Drawing:
    """Images of a worker's rows of each batch, and the random numbers of these rows.

    It stays outside of XLA, which cannot call NumPy and draws other floats.

    Args:
        images: N.
        batch_size: B, over all workers.
        steps_per_epoch: full batches in an epoch.
        seed: seed of the order and of the uniforms.
        uniforms: n.
        worker, workers: this worker's rows are B / workers from `worker` x B / workers on.
        unreadable: numbers of images that are replaced by the next one in the order.

    Raises:
        ConfigError: the batch cannot be divided among the workers.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps_per_epoch: int,
        *,
        seed: int,
        uniforms: int,
        worker: int = 0,
        workers: int = 1,
        unreadable: Iterable[int] = (),
    ):
        if batch_size % workers:
            raise ConfigError(
                f"{setting('batch_size')}: expected a multiple of the {workers} workers, got {batch_size}"
            )
        self.images, self.batch_size, self.steps_per_epoch, self.seed = images, batch_size, steps_per_epoch, seed
        self.uniforms = max(1, uniforms)  # TensorFlow 2.21 crashes where a batch of empty tensors is taken apart
        self.count = batch_size // workers
        self.offset = worker * self.count
        self.unreadable = tf.constant(sorted(unreadable), tf.int64)
        epochs_in_block = -(-_DRAWN_TOGETHER // steps_per_epoch) + 1
        self._order_of = functools.lru_cache(epochs_in_block)(functools.partial(permutation, images, seed))

    @property
    def images_per_epoch(self) -> int:
        """Number of images that an epoch shows, over all workers."""
        return self.steps_per_epoch * self.batch_size

    def draw(self, first_step: int, last_step: int | None = None) -> tf.data.Dataset:
        """Return a dataset of the numbers of each step's images, int64 [b], and its uniforms, float32 [b, n].

        Args:
            first_step: with which it begins.
            last_step: before which it ends; None: it is endless.
        """

        def draw_block(steps):
            places = steps[:, None] * self.batch_size + self.offset + tf.range(self.count, dtype=tf.int64)
            numbers = tf.reshape(self.numbers(tf.reshape(places, [-1])), [-1, self.count])
            return numbers, self._uniforms_of(steps)

        return _in_blocks(first_step, last_step, draw_block)

    def draw_uniforms(self, first_step: int) -> tf.data.Dataset:
        """Return an endless dataset of the uniforms of each step, float32 [b, n]."""
        return _in_blocks(first_step, None, self._uniforms_of)

    def _uniforms_of(self, steps):
        """Return the uniforms of steps, int64 [k] -> float32 [k, b, n]."""
        shape = tf.TensorSpec([self.count, self.uniforms], tf.float32)
        return tf.map_fn(self._uniforms_of_one, steps, fn_output_signature=shape)

    def _uniforms_of_one(self, step):
        step_seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        uniforms = tf.random.stateless_uniform([self.batch_size, self.uniforms], seed=step_seed)
        return uniforms[self.offset : self.offset + self.count]

    def numbers(self, places):
        """Return the numbers of the images at places counted over all epochs: int64 [m] -> int64 [m]."""
        numbers = self._order(places)
        if not len(self.unreadable):
            return numbers

        def is_unreadable(places, numbers):
            found = tf.searchsorted(self.unreadable, numbers)
            return tf.gather(self.unreadable, tf.minimum(found, len(self.unreadable) - 1)) == numbers

        def move_on(places, numbers):
            places += tf.cast(is_unreadable(places, numbers), tf.int64)
            return places, self._order(places)

        return tf.while_loop(lambda *state: tf.reduce_any(is_unreadable(*state)), move_on, (places, numbers))[1]

    def numbers_from(self, first_step: int):
        """Return `numbers` as a function of this worker's places, counted from a step on."""

        def numbers(places):
            steps, places = first_step + places // self.count, places % self.count
            return self.numbers(steps * self.batch_size + self.offset + places)

        return numbers

    def is_ours(self, place):
        """Return whether this worker shows the image at a place counted over all workers: int64 [] -> bool []."""
        return (place % self.batch_size) // self.count == self.offset // self.count

    def _order(self, places):
        """Return the numbers of the images at places of any epochs, without regard to unreadable ones."""

        def look_up(places: np.ndarray) -> np.ndarray:
            epochs, rest = np.divmod(places, self.images_per_epoch)
            numbers = np.empty_like(places)
            for epoch in np.unique(epochs):
                numbers[epochs == epoch] = self._order_of(int(epoch))[rest[epochs == epoch]]
            return numbers

        return tf.ensure_shape(tf.numpy_function(look_up, [places], tf.int64), places.shape)


def _in_blocks(first_step: int, last_step: int | None, draw_block: Callable) -> tf.data.Dataset:
    last_step = np.iinfo(np.int64).max if last_step is None else last_step
    return tf.data.Dataset.range(first_step, last_step).batch(_DRAWN_TOGETHER).map(draw_block).unbatch()


def permutation(count: int, seed: int, epoch: int, stream: int = 0) -> np.ndarray:
    """Return 0, 1, ... count - 1 in a random order, int64 [count], all orders equally likely.

    It is a function of the arguments alone: random keys from the counter-based generator Philox (Salmon et al. 2011),
    whose raw numbers NumPy keeps in all versions, are sorted.

    Args:
        count: how many.
        seed, epoch: the key of the generator.
        stream: tells apart orders of one epoch.
    """
    generator = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream])
    return np.argsort(generator.random_raw(count), kind="stable")


def shuffled(seed: int, epoch: tf.Tensor, stream: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return a `permutation` inside a graph, int64 [count]; `epoch`, `stream` and `count` are int64 []."""

    def permute(epoch, stream, count):
        return permutation(int(count), seed, int(epoch), int(stream))

    return tf.ensure_shape(tf.numpy_function(permute, [epoch, stream, count], tf.int64), [None])
