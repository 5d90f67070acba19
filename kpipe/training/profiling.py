"""A profile of some training steps: which operations they consist of, and how long each takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf


@contextmanager
def profiling(folder: Path, steps: tuple[int, int]) -> Iterator[keras.callbacks.Callback]:
    """Give a callback that profiles these steps of a training, and end the profile with the training.

    A training that is resumed after the first of them is profiled from there.

    Args:
        folder: TensorBoard's folder of the training; the profile is written to `plugins/profile/` in it.
        steps: the first and the last step, counted from 1 from the start of the training.
    """
    callback = _Profile(folder, *steps)
    try:
        yield callback
    finally:
        callback.stop()


class _Profile(keras.callbacks.Callback):
    not_kept = ("first", "last", "epoch_begin", "is_running")

    def __init__(self, folder: Path, first: int, last: int):
        super().__init__()
        self.folder, self.first, self.last = folder, first, last
        self.epoch_begin = 0
        self.is_running = False

    @property
    def callback_steps(self) -> tuple[int, int]:
        """The steps after which it must be called."""
        return self.first - 1, self.last

    def set_params(self, params):
        super().set_params(params)
        self.epoch_begin = params["first_step"] - params["first_step"] % params["steps"]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_begin = epoch * self.params["steps"]

    def on_train_batch_begin(self, batch, logs=None):
        next_step = self.epoch_begin + batch + 1
        if not self.is_running and self.first <= next_step <= self.last:
            tf.profiler.experimental.start(str(self.folder))
            self.is_running = True

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch_begin + batch + 1 >= self.last:
            self.stop()

    def stop(self) -> None:
        """End the profile, if it is going on, and write it."""
        if self.is_running:
            self.is_running = False
            tf.profiler.experimental.stop()
