"""State, cadence and hooks of the training loop."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import tensorflow as tf

Metrics = dict[str, float]


@dataclass
class TrainState:
    """Where a training stands, apart from the model's variables; both are saved in the same checkpoint.

    All fields have JSON types, except for what callbacks remember.
    """

    step: int = 0
    """Steps done. Not the optimizer's count, which leaves out steps skipped by float16 loss scaling."""
    reset_step: int = 0
    """The step at which the model's metrics were last reset: the latest log line or end of an epoch."""
    line_step: int = 0
    """The step of the latest log line."""
    line_sums: Metrics = field(default_factory=dict)
    """Mean x steps of each metric, from the latest log line to `reset_step`."""
    epoch_steps: int = 0
    """Steps of this epoch in `epoch_sums`."""
    epoch_sums: Metrics = field(default_factory=dict)
    """Mean x steps of each metric, from the begin of this epoch to `reset_step`."""
    ending: bool = False
    """The steps of an epoch are done, its validation and the callbacks' end of the epoch are not."""
    seconds: float = 0.0
    """Seconds of training steps, without validation, callbacks and saving."""
    speed: Metrics = field(default_factory=dict)
    """Images per second and `waiting` of the latest chunk of steps."""
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each Keras callback remembers, NumPy arrays included."""
    stopped: bool = False
    """A callback ended the training."""
    interrupted: bool = False
    """`should_stop` ended the training, at a step from which it can be resumed."""

    def epoch(self, steps_per_epoch: int) -> int:
        """Return the index of the current epoch, or of the one whose end is still to come."""
        return (self.step - self.ending) // steps_per_epoch

    def is_done(self, total_steps: int) -> bool:
        """Return whether the training has come to its end, the validation of the last epoch included."""
        return (self.stopped or self.step >= total_steps) and not self.ending

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; `TrainState(**state.to_dict())` is the same state."""
        return asdict(self)


@dataclass(frozen=True)
class Cadence:
    """When the loop returns to Python.

    Attributes:
        log_every: steps between two log lines. The metrics of a line are means over these steps, whether or not an
            epoch has ended among them.
        save_every: steps between two saves, counted from the start of the training; None: not by steps.
        save_seconds: seconds after the last save at which another is due.
        max_chunk_seconds: about how long a chunk of steps may last.
        chunk: steps in a chunk, instead of as many as fit into `max_chunk_seconds`.
    """

    log_every: int = 50
    save_every: int | None = None
    save_seconds: float = math.inf
    max_chunk_seconds: float = 0.5
    chunk: int | None = None

    def is_save_due(self, step: int, seconds: float) -> bool:
        """Return whether to save at `step`, so many seconds after the last save."""
        return bool(self.save_every and step % self.save_every == 0) or seconds >= self.save_seconds

    def chunk_steps(self, step: int, ends: Iterable[int], seconds_per_step: float) -> int:
        """Return the steps from `step` to the next log line, save or one of `ends`, or as many as fit in time."""
        intervals = [every for every in (self.log_every, self.save_every) if every]
        in_time = self.chunk or steps_within(self.max_chunk_seconds, seconds_per_step)
        to_ends = (end - step for end in ends if end > step)
        return min(in_time, *(every - step % every for every in intervals), *to_ends)


@dataclass(frozen=True)
class FrozenFeatures:
    """What the frozen layers of a network make of the images, to train the other layers on.

    Attributes:
        head: the layers that are trained: features [B, *F] to the outputs of the network.
        until: the step at which the first of the frozen layers thaws; infinity: never.
        batches_from: called with the first step to do. It returns batches as `Trainer.fit` takes them, with features
            instead of images.
        validation: the validation split, with features instead of images; None: there is none.
    """

    head: keras.Model
    until: float
    batches_from: Callable[[int], tf.data.Dataset]
    validation: tf.data.Dataset | None


@dataclass(frozen=True)
class Hooks:
    """What the loop calls.

    Attributes:
        on_begin: called once, when everything is traced and the first step is about to be done.
        on_log: gets one record per log line, and one or two at the end of each epoch.
        on_activity: gets "compiling" and "validating" before that begins.
        on_thaw: gets the step and the layers that are trained from here on.
        on_progress: gets the step after each chunk, with the means of this epoch so far and the `learning_rate` and
            `images_per_second` of the chunk.
        on_epoch: gets state and logs at the end of each epoch.
        on_save: gets the state when a save is due; model and state are of the same moment.
        should_stop: asked after each chunk of steps, and of the validation.
    """

    on_begin: Callable[[], None] = lambda: None
    on_log: Callable[[dict[str, Any]], None] = lambda record: None
    on_activity: Callable[[str], None] = lambda text: None
    on_thaw: Callable[[int, list[str]], None] = lambda step, layers: None
    on_progress: Callable[[int, Metrics], None] = lambda step, metrics: None
    on_epoch: Callable[[TrainState, Metrics], None] = lambda state, logs: None
    on_save: Callable[[TrainState], None] = lambda state: None
    should_stop: Callable[[], bool] = lambda: False


def steps_within(seconds: float, seconds_per_step: float) -> int:
    """Return how many steps fit into a time, at least 1."""
    return max(1, int(seconds / max(seconds_per_step, 1e-9)))
