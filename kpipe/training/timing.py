"""Time of a training step on this machine, measured with a few real steps on made-up images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import tensorflow as tf

from kpipe.training.control import steps_within
from kpipe.training.distribution import distribute
from kpipe.training.trainer import Trainer

_MOST_STEPS = 20


@dataclass(frozen=True)
class StepTime:
    """A measured time."""

    measured_steps: int
    seconds_per_step: float


def time_steps(
    trainer: Trainer, batch_size: int, classes: int, *, head: keras.Model | None = None, max_seconds: float = 10.0
) -> StepTime:
    """Train a model for a few steps, and return how long one takes.

    The first step is left out, as it also allocates memory and chooses algorithms, unless it alone takes `max_seconds`.

    Args:
        trainer: of the model, whose weights change.
        batch_size: B.
        classes: K.
        head: the last layers of the model, which alone are run, on features instead of images.
        max_seconds: about how long the measured steps take together, if not a single one takes longer.
    """
    images = tf.zeros((batch_size, *head.input_shape[1:])) if head else _make_up_images(trainer.model, batch_size)
    labels = tf.random.uniform((batch_size,), 0, classes, "int32")
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    iterator = iter(distribute(trainer.strategy, batches))
    trainer.run_steps(iterator, 0, head)  # traces
    return _time(lambda steps: trainer.run_steps(iterator, steps, head), max_seconds)


def time_features(extractor: keras.Model, batch_size: int, *, max_seconds: float = 10.0) -> StepTime:
    """Return how long a model takes for a batch where it is not trained.

    Args:
        extractor: takes images [B, H, W, C].
        batch_size, max_seconds: as in `time_steps`.
    """
    images = _make_up_images(extractor, batch_size)
    compute = tf.function(lambda: extractor(images, training=False)).get_concrete_function()

    def run(batches: int) -> None:
        for _ in range(batches):
            compute().numpy()

    return _time(run, max_seconds)


def _make_up_images(model: keras.Model, batch_size: int) -> tf.Tensor:
    """Return images of the kind that the input pipeline gives, uint8 [B, H, W, C]. What they show does not matter."""
    return tf.cast(tf.random.uniform((batch_size, *model.input_shape[1:]), 0, 256, "int32"), "uint8")


def _time(run: Callable[[int], object], max_seconds: float) -> StepTime:
    """Return the time of a step, of which `run` does as many as it is given."""
    first = _seconds(run, 1)
    if first >= max_seconds:
        return StepTime(1, first)
    steps = min(_MOST_STEPS, steps_within(max_seconds, first))
    return StepTime(steps, _seconds(run, steps) / steps)


def _seconds(run: Callable[[int], object], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start
