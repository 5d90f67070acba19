"""Time of a training step on this machine, measured with a few real steps on made-up images."""

import time
from dataclasses import dataclass

import tensorflow as tf

from kpipe.training.control import steps_within
from kpipe.training.trainer import Trainer

_MOST_STEPS = 20


@dataclass(frozen=True)
class StepTime:
    """A measured time."""

    measured_steps: int
    seconds_per_step: float


def time_steps(trainer: Trainer, batch_size: int, classes: int, *, max_seconds: float = 10.0) -> StepTime:
    """Train a model for a few steps, and return how long one takes.

    The first step is left out, as it also allocates memory and chooses algorithms, unless it alone takes `max_seconds`.

    Args:
        trainer: of the model, whose weights change.
        batch_size: B.
        classes: K.
        max_seconds: about how long the measured steps take together, if not a single one takes longer.
    """
    height, width, channels = trainer.model.input_shape[1:]
    # The images are what the input pipeline gives, uint8 [B, H, W, C] and int32 [B]. What they show does not matter.
    images = tf.cast(tf.random.uniform((batch_size, height, width, channels), 0, 256, "int32"), "uint8")
    labels = tf.random.uniform((batch_size,), 0, classes, "int32")
    batches = tf.data.Dataset.from_tensors((images, labels)).repeat()
    iterator = iter(trainer.strategy.experimental_distribute_dataset(batches))
    trainer.run_steps(iterator, 0)  # traces
    first = _time(trainer, iterator, 1)
    if first >= max_seconds:
        return StepTime(1, first)
    steps = min(_MOST_STEPS, steps_within(max_seconds, first))
    return StepTime(steps, _time(trainer, iterator, steps) / steps)


def _time(trainer: Trainer, iterator, steps: int) -> float:
    start = time.perf_counter()
    trainer.run_steps(iterator, steps)
    return time.perf_counter() - start
