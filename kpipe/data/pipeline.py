"""Batches for training and for evaluation, from a part that lies in memory as uint8.

A training batch is a pure function of (seed, step): two runs agree, and a run that starts at step n sees
exactly the batches it would have seen. No iterator state has to be saved.

B batch, H height, W width, C channels, N images of the part.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kpipe.data.augment import Augmentation
from kpipe.data.sources import Part
from kpipe.errors import ConfigError


def make_pipeline(
    part: Part,
    batch_size: int,
    *,
    seed: int = 0,
    augment: Sequence[Augmentation] = (),
    first_step: int = 0,
    last_step: int | None = None,
) -> tf.data.Dataset:
    """Training batches of the steps `first_step` up to, not including, `last_step`.

    An epoch has floor(N / B) steps and sees every image at most once; the N mod B images that do not fill a
    batch are others in each epoch.

    Args:
        part: N images in memory.
        batch_size: images a batch, at most N.
        seed: of the order and of the augmentations.
        augment: applied in this order, all in one function compiled by XLA.
        first_step: counted from the start of training, over all epochs.
        last_step: default: one epoch after `first_step`.

    Returns:
        Dataset of (images uint8 [B, H, W, C], 0..255, labels int32 [B]), with known cardinality.

    Raises:
        ConfigError: the batch is larger than the part, or not at least 1.
    """
    steps_per_epoch = count_steps_per_epoch(part, batch_size)
    for entry in augment:
        if not isinstance(entry, Augmentation):
            raise ConfigError(f"augment: expected augmentations such as flip_horizontal(), got {entry!r}")
    if last_step is None:
        last_step = first_step + steps_per_epoch
    draw = _make_draw(len(part), batch_size, seed, sum(augmentation.uniforms for augmentation in augment))
    steps = tf.data.Dataset.range(first_step, last_step)
    batches = steps.map(draw).map(_make_gather(part, augment), num_parallel_calls=tf.data.AUTOTUNE)
    return _known_length(batches, max(0, last_step - first_step))


def make_evaluation_pipeline(part: Part, batch_size: int) -> tf.data.Dataset:
    """Each image once, in the order of the part; the last batch may be smaller.

    Returns:
        Dataset of (images uint8 [b, H, W, C], 0..255, labels int32 [b]), 1 <= b <= B, with known cardinality.

    Raises:
        ConfigError: `batch_size` is not at least 1.
    """
    _check_batch_size(batch_size)
    images, labels = _resident(part)

    def batch(start):
        return images[start : start + batch_size], labels[start : start + batch_size]

    starts = tf.data.Dataset.range(0, len(part), batch_size)
    return _known_length(starts.map(batch, num_parallel_calls=tf.data.AUTOTUNE), -(-len(part) // batch_size))


def count_steps_per_epoch(part: Part, batch_size: int) -> int:
    """Full batches in an epoch of training.

    Raises:
        ConfigError: there is not one, or `batch_size` is not at least 1.
    """
    _check_batch_size(batch_size)
    if batch_size > len(part):
        raise ConfigError(
            f"data.batch_size: expected at most the {len(part):,} images of the training part, got {batch_size:,}"
        )
    return len(part) // batch_size


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"data.batch_size: expected at least 1, got {batch_size}")


def _make_draw(images: int, batch_size: int, seed: int, uniforms: int) -> Callable:
    """A function of the step that returns all that is random in its batch.

    It stays outside of XLA, which has no kernel for `index_shuffle` and draws other floats.
    """
    steps_per_epoch = images // batch_size

    def draw(step):
        epoch, position = step // steps_per_epoch, step % steps_per_epoch * batch_size
        places = position + tf.range(batch_size, dtype=tf.int64)
        order_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        indices = tf.random.experimental.index_shuffle(places, seed=order_seed, max_index=images - 1)
        batch_seed = tf.stack([tf.constant(seed, tf.int64), step])
        return indices, tf.random.stateless_uniform([batch_size, uniforms], seed=batch_seed)

    return draw


def _make_gather(part: Part, augment: Sequence[Augmentation]) -> Callable:
    """A compiled function (indices int64 [B], uniforms float32 [B, n]) -> (images, labels)."""
    images, labels = _resident(part)

    @tf.function(jit_compile=True)
    def gather(indices, uniforms):
        batch, column = tf.gather(images, indices), 0
        for augmentation in augment:
            batch = augmentation.apply(batch, uniforms[:, column : column + augmentation.uniforms])
            column += augmentation.uniforms
        return batch, tf.gather(labels, indices)

    return gather


def _resident(part: Part) -> tuple[tf.Tensor, tf.Tensor]:
    """The part in main memory, where tf.data works: from a GPU every batch would be copied back."""
    with tf.device("CPU:0"):
        return tf.constant(part.images), tf.constant(part.labels.astype(np.int32, copy=False))


def _known_length(batches: tf.data.Dataset, length: int) -> tf.data.Dataset:
    """Keras counts steps and losses wrongly, without a word, where the cardinality is unknown."""
    return batches.apply(tf.data.experimental.assert_cardinality(length)).prefetch(tf.data.AUTOTUNE)
