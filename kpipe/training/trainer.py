"""The training loop: Keras's own `train_step`, many times inside one compiled function.

Python runs only between chunks of steps. A chunk ends at the next event that is due (a log line, the end of
an epoch) and lasts at most about `max_chunk_seconds`, so that a progress bar moves and a stop is obeyed. How
the training is cut into chunks never changes a number: weights, metrics, optimizer and random seeds live in
variables.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import ConfigError, DataError, Diverged
from kpipe.training.distribution import make_strategy

Metrics = dict[str, float]


@dataclass
class TrainState:
    """Where a training stands, apart from the model's variables: JSON types, saved in the same checkpoint."""

    step: int = 0
    """Steps done. Not the optimizer's count, which leaves out steps skipped by float16 loss scaling."""
    line_step: int = 0
    """The step at which the model's metrics were last reset: the latest log line or end of an epoch."""
    epoch_steps: int = 0
    """Steps of this epoch in `epoch_sums`."""
    epoch_sums: Metrics = field(default_factory=dict)
    """Mean x steps of each metric, over the lines of this epoch so far."""
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each Keras callback remembers."""
    stopped: bool = False
    """A callback ended the training."""
    interrupted: bool = False
    """`should_stop` ended it, at a step from which it can go on."""

    def to_dict(self) -> dict[str, Any]:
        """`TrainState(**state.to_dict())` is the same state."""
        return asdict(self)


class Trainer:
    """Trains and evaluates one compiled model.

    Optimizer and metrics are built here, so a checkpoint can be loaded between the construction and `fit`.
    `model.compile(jit_compile=...)` and `steps_per_execution` are not looked at.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy | None = None):
        """`model` takes images [B, H, W, C] and gives logits [B, K]; its loss takes labels int32 [B]."""
        self.model = model
        self.strategy = strategy or make_strategy()
        with self.strategy.scope():
            _build_variables(model)
        self._run_steps = tf.function(self._steps)
        self._run_evaluation = tf.function(self._evaluation)

    def fit(
        self,
        batches_from: Callable[[int], tf.data.Dataset],
        *,
        steps_per_epoch: int,
        epochs: int,
        state: TrainState | None = None,
        validation: tf.data.Dataset | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        log_every: int = 50,
        on_log: Callable[[dict[str, Any]], None] = lambda record: None,
        on_progress: Callable[[int, Metrics], None] = lambda step, metrics: None,
        on_epoch: Callable[[TrainState, Metrics], None] = lambda state, logs: None,
        should_stop: Callable[[], bool] = lambda: False,
        max_chunk_seconds: float = 0.5,
        chunk: int | None = None,
    ) -> TrainState:
        """Trains from `state` to the end of the last epoch, or until something stops it.

        Args:
            batches_from: called once with the first step to do; gives (images, labels) from there to the end
                of the training, in full batches of one size, with a known cardinality.
            steps_per_epoch: full batches in an epoch.
            epochs: counted from the start of the training, not from `state`.
            state: where to go on, with the variables of the same moment in the model; None for the start.
            validation: evaluated at the end of each epoch.
            callbacks: Keras callbacks. Epoch methods are called as by `keras.Model.fit`, batch methods once
                a chunk with the true index of the batch, test methods at begin and end of the validation.
            log_every: steps between two log lines; metrics of a line are means since the line before, or since
                the epoch began.
            on_log: gets one record per log line, and one or two at the end of each epoch.
            on_progress: gets step and metrics since the last line, after each chunk.
            on_epoch: gets state and logs at the end of each epoch, a good moment for a checkpoint.
            should_stop: asked after each chunk.
            max_chunk_seconds: how long a chunk of steps may last, about.
            chunk: steps in a chunk instead of what fits into `max_chunk_seconds`.

        Returns:
            The state at the end: the object given, brought up to date. When `interrupted` is set, the
            callbacks' `on_train_end` was not called (EarlyStopping would exchange the weights).

        Raises:
            ConfigError: the batches do not reach to the end, or are not of one size.
            Diverged: the loss is not finite.
        """
        state = TrainState() if state is None else state
        state.interrupted = False
        remaining = steps_per_epoch * epochs - state.step
        if remaining <= 0 or state.stopped:
            return state
        batches = batches_from(state.step)
        loop = _Loop(
            trainer=self,
            state=state,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            batch_size=_batch_size(batches, remaining),
            validation=validation,
            callbacks=list(callbacks),
            log_every=log_every,
            on_log=on_log,
            on_progress=on_progress,
            on_epoch=on_epoch,
            should_stop=should_stop,
            max_chunk_seconds=max_chunk_seconds,
            chunk=chunk,
        )
        loop.run(iter(self.strategy.experimental_distribute_dataset(batches)))
        return state

    def evaluate(self, dataset: tf.data.Dataset) -> dict[str, float]:
        """Loss, metrics and number of images over every image of `dataset`; the model's metrics are reset.

        Raises:
            DataError: the data set is empty.
        """
        self.model.reset_metrics()
        images = self._run_evaluation(self.strategy.experimental_distribute_dataset(dataset))
        if not int(images):
            raise DataError("evaluation: expected at least one image, got none")
        metrics = self.read_metrics()
        self.model.reset_metrics()
        return {**metrics, "images": int(images)}

    def run_steps(self, iterator, num_steps: int) -> Metrics:
        """Trains `num_steps` steps; returns the metrics since their last reset, when the device is done."""
        self._run_steps(iterator, tf.constant(num_steps))
        return self.read_metrics()

    def read_metrics(self) -> Metrics:
        return {name: float(value) for name, value in self.model.get_metrics_result().items()}

    def _steps(self, iterator, num_steps):
        for _ in tf.range(num_steps):
            self.strategy.run(self.model.train_step, args=(next(iterator),))

    def _evaluation(self, dataset):
        images = tf.constant(0)
        for batch in dataset:
            counts = self.strategy.run(self._test_step, args=(batch,))
            images += self.strategy.reduce("sum", counts, axis=None)
        return images

    def _test_step(self, batch):
        self.model.test_step(batch)
        return tf.shape(batch[0])[0]


@dataclass
class _Speed:
    """Images per second of training alone, validation and callbacks left out."""

    images: int = 0
    seconds: float = 0.0

    def add(self, images: int, seconds: float) -> None:
        self.images += images
        self.seconds += seconds

    def take(self) -> float:
        """The speed since it was last taken."""
        speed = self.images / max(self.seconds, 1e-9)
        self.images, self.seconds = 0, 0.0
        return speed


@dataclass
class _Loop:
    """One call of `fit`."""

    trainer: Trainer
    state: TrainState
    steps_per_epoch: int
    epochs: int
    batch_size: int
    validation: tf.data.Dataset | None
    callbacks: list[keras.callbacks.Callback]
    log_every: int
    on_log: Callable[[dict[str, Any]], None]
    on_progress: Callable[[int, Metrics], None]
    on_epoch: Callable[[TrainState, Metrics], None]
    should_stop: Callable[[], bool]
    max_chunk_seconds: float
    chunk: int | None
    seconds_per_step: float = math.inf
    line_speed: _Speed = field(default_factory=_Speed)
    epoch_speed: _Speed = field(default_factory=_Speed)

    def __post_init__(self):
        self.model = self.trainer.model
        self.callback_list = keras.callbacks.CallbackList(
            self.callbacks,
            add_history=False,
            model=self.model,
            epochs=self.epochs,
            steps=self.steps_per_epoch,
            verbose=0,
        )

    @property
    def epoch(self) -> int:
        """Index of the epoch that the next step belongs to."""
        return self.state.step // self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.state.stopped or self.state.step >= self.steps_per_epoch * self.epochs

    def run(self, iterator) -> None:
        state, logs = self.state, {}
        self.model.stop_training = False
        self.callback_list.on_train_begin()
        _restore_callbacks(self.callbacks, state.callbacks)
        self.trainer.run_steps(iterator, 0)  # traces, so that the first chunk's time is time of training
        while not self.finished:
            epoch = self.epoch
            self.callback_list.on_epoch_begin(epoch)
            means = self.run_epoch(epoch, iterator)
            if state.interrupted:
                state.callbacks = _remember_callbacks(self.callbacks)
                return
            logs = self.end_epoch(epoch, means)
            if not self.finished and self.should_stop():
                state.interrupted = True
                return
        self.callback_list.on_train_end(logs)

    def run_epoch(self, epoch: int, iterator) -> Metrics:
        """Trains to the end of the epoch, or to a stop; returns the means over the epoch."""
        end = (epoch + 1) * self.steps_per_epoch
        while self.state.step < end and not self.model.stop_training:
            metrics = self.run_chunk(epoch, iterator)
            if self.state.step % self.log_every == 0:
                self.log_line(epoch, metrics)
            if self.state.step < end and self.should_stop():
                self.state.interrupted = True
                return {}
        if self.state.step > self.state.line_step:
            self.close_line(self.trainer.read_metrics())
        return {name: total / self.state.epoch_steps for name, total in self.state.epoch_sums.items()}

    def run_chunk(self, epoch: int, iterator) -> Metrics:
        num_steps = self.chunk_steps(epoch)
        first = self.state.step - epoch * self.steps_per_epoch
        self.callback_list.on_train_batch_begin(first)
        start = time.perf_counter()
        metrics = self.trainer.run_steps(iterator, num_steps)
        seconds = time.perf_counter() - start
        self.state.step += num_steps
        self.seconds_per_step = seconds / num_steps
        for speed in (self.line_speed, self.epoch_speed):
            speed.add(num_steps * self.batch_size, seconds)
        self.callback_list.on_train_batch_end(first + num_steps - 1, metrics)
        self.on_progress(self.state.step, metrics)
        return metrics

    def chunk_steps(self, epoch: int) -> int:
        to_epoch_end = (epoch + 1) * self.steps_per_epoch - self.state.step
        to_line = self.log_every - self.state.step % self.log_every
        in_time = self.chunk or max(1, int(self.max_chunk_seconds / self.seconds_per_step))
        return min(to_epoch_end, to_line, in_time)

    def log_line(self, epoch: int, metrics: Metrics) -> None:
        self.close_line(metrics)
        self.log(epoch, "train", "steps", metrics | self.rate_and_speed(self.line_speed))

    def close_line(self, metrics: Metrics) -> None:
        """Adds the means since the last line to the epoch's sums and begins new ones."""
        state = self.state
        num_steps = state.step - state.line_step
        _check_finite(metrics["loss"], state.line_step + 1, state.step)
        for name, mean in metrics.items():
            state.epoch_sums[name] = state.epoch_sums.get(name, 0.0) + mean * num_steps
        state.epoch_steps += num_steps
        state.line_step = state.step
        self.model.reset_metrics()

    def end_epoch(self, epoch: int, means: Metrics) -> Metrics:
        """Validates, tells the callbacks, and begins new sums; returns the logs as the callbacks saw them."""
        state = self.state
        self.line_speed.take()
        self.log(epoch, "train", "epoch", means | self.rate_and_speed(self.epoch_speed))
        logs = means | {"learning_rate": self.learning_rate()}
        if self.validation is not None:
            self.callback_list.on_test_begin()
            scores = self.trainer.evaluate(self.validation)
            del scores["images"]
            self.callback_list.on_test_end(scores)
            self.log(epoch, "validation", "epoch", scores)
            logs |= {f"val_{name}": value for name, value in scores.items()}
        self.callback_list.on_epoch_end(epoch, logs)
        state.epoch_steps, state.epoch_sums = 0, {}
        state.stopped = bool(self.model.stop_training)
        state.callbacks = _remember_callbacks(self.callbacks)
        self.on_epoch(state, logs)
        return logs

    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.model.optimizer.learning_rate)

    def rate_and_speed(self, speed: _Speed) -> Metrics:
        return {"learning_rate": self.learning_rate(), "images_per_second": speed.take()}

    def log(self, epoch: int, split: str, span: str, values: Metrics) -> None:
        self.on_log({"step": self.state.step, "epoch": epoch + 1, "split": split, "span": span, **values})


def _build_variables(model: keras.Model) -> None:
    """Builds optimizer, loss and metrics, whose variables cannot be made inside the compiled loop."""
    model.optimizer.build(model.trainable_variables)
    images = tf.zeros((1, *model.input_shape[1:]), model.inputs[0].dtype)
    labels = tf.zeros((1,), "int32")
    logits = [tf.zeros((1, *output.shape[1:]), output.dtype) for output in model.outputs]
    logits = logits if len(logits) > 1 else logits[0]  # a list where the network has auxiliary heads
    model.compute_loss(images, labels, logits)
    model.compute_metrics(images, labels, logits)
    model.reset_metrics()


def _batch_size(batches: tf.data.Dataset, num_steps: int) -> int:
    """Images in a batch, once it is sure that there are `num_steps` full ones."""
    available = int(batches.cardinality())
    if available != tf.data.INFINITE_CARDINALITY and available < num_steps:
        got = "an unknown number (use assert_cardinality)" if available < 0 else str(available)
        raise ConfigError(f"training batches: expected {num_steps} to the end of the training, got {got}")
    size = tf.nest.flatten(batches.element_spec)[0].shape[0]
    if size is None:
        raise ConfigError("training batches: expected batches of one size, got any (use drop_remainder=True)")
    return size


def _check_finite(loss: float, first: int, last: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss became {loss} between steps {first} and {last}; likely causes: the learning rate is "
            "too high (try a tenth of it, or a warm-up), the images are not normalized, or a network without "
            "batch normalisation is too deep for its initial weights"
        )


def _callback_keys(callbacks: Sequence[keras.callbacks.Callback]) -> list[str]:
    return [f"{index} {type(callback).__name__}" for index, callback in enumerate(callbacks)]


def _remember_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, dict[str, Any]]:
    """The attributes of each callback that JSON can hold."""
    return {
        key: {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in vars(callback).items()
            if isinstance(value, int | float | str | np.generic | None)
        }
        for key, callback in zip(_callback_keys(callbacks), callbacks, strict=True)
    }


def _restore_callbacks(callbacks: Sequence[keras.callbacks.Callback], memory: dict[str, dict]) -> None:
    for key, callback in zip(_callback_keys(callbacks), callbacks, strict=True):
        vars(callback).update(memory.get(key, {}))
