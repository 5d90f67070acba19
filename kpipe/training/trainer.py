"""The training loop: the step of Keras's `train_step`, many times inside one compiled function.

Python runs only between chunks of steps. A chunk ends at the next event that is due (a log line, a save, the
end of an epoch) and lasts at most about `max_chunk_seconds`, so that a progress bar moves and a stop is obeyed.
How the training is cut into chunks never changes a number: weights, metrics, optimizer and random seeds live in
variables.
"""

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import ConfigError, DataError, Diverged
from kpipe.training.averaging import average_of
from kpipe.training.callback_state import remember_callbacks, restore_callbacks
from kpipe.training.control import Cadence, FrozenFeatures, Hooks, Metrics, TrainState, steps_within
from kpipe.training.distribution import Workers, distribute, separate_dropout
from kpipe.training.divergence import LIKELY_CAUSES, are_finite, check_loss, where
from kpipe.training.loss_scaling import loss_scaling_of
from kpipe.training.schedules import rate_of_last_step
from kpipe.training.steps import test_step, train_step
from kpipe.training.xla import translate_xla_errors

_PRIME = 7919  # larger than any distance between timed steps: the place in it looks random
_TIMED = 16  # steps of a chunk, spread over it, whose waiting is measured: reading a clock takes up to 50 µs


class Chunk(NamedTuple):
    """What came out of a few steps."""

    metrics: Metrics
    """Means since the metrics were last reset."""
    gradient_norm: float
    """Norm of the gradient of the last step, see `kpipe.training.steps.train_step`."""
    waited: float
    """Seconds in which the steps waited for their batches."""


class Trainer:
    """Trains and evaluates one compiled model, under the strategy in whose scope it was built.

    The constructor builds optimizer and metrics, so that a checkpoint can be restored before `fit` is called. It takes
    from the optimizer the sum of gradients over devices, which a later `model.fit` under a strategy would miss. The
    arguments `jit_compile` and `steps_per_execution` of `model.compile` have no effect.

    Args:
        model: takes images [B, H, W, C] and returns logits [B, K]. Its loss and metrics take labels int32 [B], and
            soft labels float32 [B, K] if the training batches have them.
        thaws: the step from which a layer is trained, by its name; infinity: never. Layers that are not named are
            trained from the first step.
        pieces: number of pieces in which a step computes its batch, see `kpipe.training.steps`.
        xla: whether XLA compiles the training step. Dropout then draws other numbers.

    Raises:
        ConfigError: `xla` with several replicas.
    """

    def __init__(
        self, model: keras.Model, *, thaws: Mapping[str, float] | None = None, pieces: int = 1, xla: bool = False
    ):
        self.model = model
        self.thaws = thaws or {}
        self.pieces = pieces
        self.xla = xla
        self.strategy = model.distribute_strategy
        if xla and self.strategy.num_replicas_in_sync > 1:
            raise ConfigError(
                f"training.xla: expected one device, got {self.strategy.num_replicas_in_sync}: XLA cannot compile a "
                "step that sums gradients over devices. Use training.xla=off"
            )
        self._train_layers([name for name, step in self.thaws.items() if step < math.inf])
        with self.strategy.scope():
            _build_variables(model)
        self.workers = Workers(self.strategy)
        _leave_sums_to_the_step(model.optimizer)
        self.freeze(0)
        self._run_evaluation = tf.function(self._evaluation)
        self._batch_functions: dict[Any, Callable] = {}
        # Compiled, because a few steps of a small network take no longer than many small operations from Python.
        self._metrics_result = tf.function(model.get_metrics_result)
        self._learning_rate = tf.function(lambda: rate_of_last_step(model.optimizer))
        self._checked = [v for v in (*model.variables, *model.optimizer.variables) if "float" in v.dtype]
        self._are_finite = tf.function(lambda: are_finite([variable.value for variable in self._checked]))

    def fit(
        self,
        batches_from: Callable[[int], tf.data.Dataset],
        *,
        steps_per_epoch: int,
        epochs: int,
        state: TrainState | None = None,
        validation: tf.data.Dataset | None = None,
        features: FrozenFeatures | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        cadence: Cadence | None = None,
        hooks: Hooks | None = None,
    ) -> TrainState:
        """Train from `state` to the end of the last epoch, or until something stops it.

        Args:
            batches_from: called with the first step to do, at the start and when layers thaw. It returns
                (images, labels) or (images, labels, sample_weights float32 [B]) from there to the end of the training,
                in full batches of one size, with a known cardinality. The weights count in the loss; metrics stay
                unweighted.
            steps_per_epoch: full batches in an epoch.
            epochs: counted from the start of the training, not from `state`.
            state: where to resume, with the variables of the same moment in the model; None for the start.
            validation: evaluated at the end of each epoch.
            features: what to train on instead of images, as long as the layers that compute it are frozen.
            callbacks: Keras callbacks. Epoch methods are called as by `keras.Model.fit`, batch methods once a chunk
                with the true index of the batch and the means of the epoch so far, test methods at begin and end of
                the validation. `params` also has the steps that were done before, as `first_step`.
            cadence: when to log, to save and to return to Python; None: as `Cadence()`.
            hooks: what to call then; None: nothing.

        Returns:
            The state at the end: the given object, updated. When `interrupted` is set, the callbacks'
            `on_train_end` was not called (EarlyStopping would exchange the weights).

        Raises:
            ConfigError: the batches end before the training, or differ in size; or XLA cannot compile the step.
            DataError: there is no image to validate.
            Diverged: a loss, a weight or a variable of the optimizer is not finite; noticed at the next log line. Or
                float16 loss scaling has skipped 50 steps in a row.
        """
        state = TrainState() if state is None else state
        state.interrupted = False
        if state.is_done(steps_per_epoch * epochs):
            return state
        loop = _Loop(
            trainer=self,
            batches_from=batches_from,
            state=state,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            validation=validation,
            features=features,
            callbacks=list(callbacks),
            cadence=cadence or Cadence(),
            hooks=hooks or Hooks(),
        )
        loop.run()
        return state

    def evaluate(
        self,
        dataset: tf.data.Dataset,
        *,
        head: keras.Model | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        max_chunk_seconds: float = 0.5,
    ) -> dict[str, float] | None:
        """Return loss, metrics and the number of images over every image of `dataset`; reset the model's metrics.

        Args:
            dataset: batches of (images, labels).
            head: the last layers of the model, where the batches have their input instead of images.
            should_stop: asked after each chunk of batches; not at all where several workers train.
            max_chunk_seconds: about how long a chunk may last.

        Returns:
            Values by name, the images under `images`; None if `should_stop` ended the evaluation.

        Raises:
            DataError: the dataset is empty.
        """
        self.model.reset_metrics()
        iterator = iter(distribute(self.strategy, dataset))
        total, chunk, more = 0, 1, True
        if self.workers.count > 1:  # whose number of batches may differ: they stop before or after it
            chunk, should_stop = np.iinfo(np.int32).max, lambda: False
        while more:
            start = time.perf_counter()
            images, more = self._run_evaluation(iterator, tf.constant(chunk), head)
            total, more = total + int(images), bool(more)
            if more and should_stop():
                self.model.reset_metrics()
                return None
            chunk = steps_within(max_chunk_seconds, (time.perf_counter() - start) / chunk)
        return self._take_scores(total)

    def evaluate_batches(
        self,
        dataset: tf.data.Dataset,
        see: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Return what `evaluate` returns, and show each batch on the way.

        Args:
            dataset: batches of (images, labels).
            see: called with images [B, H, W, C], labels [B] and logits float32 [B, K] of each batch.
            should_stop: asked after each batch.

        Raises:
            DataError: the dataset is empty.
        """
        self.model.reset_metrics()
        batches, total = distribute(self.strategy, dataset), 0

        spec = batches.element_spec  # the last batch may be smaller
        if spec not in self._batch_functions:
            self._batch_functions[spec] = tf.function(self._batch, input_signature=[spec])

        def gather(part) -> np.ndarray:
            """Return what the replicas have of a batch."""
            return np.concatenate([local.numpy() for local in self.strategy.experimental_local_results(part)])

        for batch in batches:
            images, labels, logits = map(gather, (*batch, self._batch_functions[spec](batch)))
            see(images, labels, logits)
            total += len(labels)
            if should_stop():
                self.model.reset_metrics()
                return None
        return self._take_scores(total)

    def _take_scores(self, images: int) -> dict[str, float]:
        """Return the means of an evaluation and its number of images, and reset the metrics."""
        images = self.workers.total(images)
        if not images:
            raise DataError("evaluation: expected at least one image, got none")
        metrics = self.read_metrics()
        self.model.reset_metrics()
        return {**metrics, "images": images}

    def trace_evaluation(self, dataset: tf.data.Dataset, head: keras.Model | None = None) -> None:
        """Compile the evaluation of such batches, which the first one would otherwise have to do."""
        self._run_evaluation(iter(distribute(self.strategy, dataset)), tf.constant(0), head)

    def check_finite(self, first: int, last: int) -> None:
        """Raise Diverged if a weight or a variable of the optimizer is not finite after these steps."""
        finite = self._are_finite().numpy()
        if not finite.all():
            variable = self._checked[int(finite.argmin())]
            raise Diverged(f"{variable.path} is no longer finite {where(first, last)}; {LIKELY_CAUSES}")

    def freeze(self, step: int) -> None:
        """Freeze the layers that are not trained at a step, and train the others. The next step is traced anew."""
        self._train_layers([name for name, thaw in self.thaws.items() if thaw <= step])
        self._run_steps = tf.function(self._steps)
        # The loop around it asks for batches, which XLA cannot.
        self._step = tf.function(self._train_step, jit_compile=True) if self.xla else self._train_step

    def is_thawed(self, step: int) -> bool:
        """Return whether all layers are trained that are to be trained at a step."""
        return all(self.model.get_layer(name).trainable for name, thaw in self.thaws.items() if thaw <= step)

    def _train_layers(self, names: Collection[str]) -> None:
        """Train these of the layers that are frozen for a time, and freeze the others."""
        for name in self.thaws:
            self.model.get_layer(name).trainable = name in names

    def run_steps(self, iterator, num_steps: int, head: keras.Model | None = None) -> Chunk:
        """Train for `num_steps` steps; return what came out of them, once the device is done.

        Args:
            iterator: of the batches.
            num_steps: how many of them.
            head: the last layers of the model, where the batches have their input instead of images.

        Raises:
            ConfigError: XLA cannot compile the step.
        """
        with translate_xla_errors():
            norm, waited = self._run_steps(iterator, tf.constant(num_steps), head)
        return Chunk(self.read_metrics(), float(norm), float(waited))

    def read_metrics(self) -> Metrics:
        """Return the means since the metrics were last reset."""
        return {name: float(value) for name, value in self._metrics_result().items()}

    def read_learning_rate(self) -> float:
        """Return the learning rate of the last step."""
        return float(self._learning_rate())

    def _steps(self, iterator, num_steps, head):
        norm, waited = tf.constant(0.0), tf.constant(0.0, tf.float64)
        every = (num_steps - 1) // _TIMED + 1
        for step in tf.range(num_steps):
            # At another place of each `every` steps, since batches may be slow at regular distances.
            is_timed = tf.equal(step % every, step // every * _PRIME % every)
            batch, seconds = tf.cond(
                is_timed, lambda: _timed_next(iterator), lambda: (next(iterator), tf.constant(0.0, tf.float64))
            )
            waited += seconds
            norms = self.strategy.run(self._step, args=(batch, head, tf.equal(step + 1, num_steps)))
            norm = self.strategy.experimental_local_results(norms)[0]
        return norm, waited * tf.cast(every, tf.float64)

    def _train_step(self, batch, head, measures):
        return train_step(self.model, batch, head=head, pieces=self.pieces, measures=measures)

    def _evaluation(self, iterator, num_batches, head):
        """Evaluate at most `num_batches` batches; return their images, and whether there may be more batches."""
        images, more, done = tf.constant(0), tf.constant(True), tf.constant(0)
        while more and done < num_batches:
            batch = iterator.get_next_as_optional()
            more = batch.has_value()
            if more:
                counts = self.strategy.run(self._test_step, args=(batch.get_value(), head))
                images += tf.add_n(self.strategy.experimental_local_results(counts))
                done += 1
        return images, more

    def _batch(self, batch):
        return self.strategy.run(lambda batch: test_step(self.model, batch), args=(batch,))

    def _test_step(self, batch, head):
        test_step(self.model, batch, head=head)
        return tf.shape(batch[0])[0]


def _timed_next(iterator):
    """Return the next batch, and the seconds until it was there: float64 []."""
    asked_at = _clock()
    with tf.control_dependencies([asked_at]):
        batch = next(iterator)
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
        return batch, _clock() - asked_at


def _clock() -> tf.Tensor:
    """Return the seconds of Python's clock: `tf.timestamp` refuses to be deterministic."""
    return tf.ensure_shape(tf.numpy_function(time.perf_counter, [], tf.float64), [])


@dataclass
class _Speed:
    """Speed of training alone, without validation and callbacks."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    first_chunk: Metrics = field(default_factory=dict)
    """Speed of the first chunk of a process, in which buffers are filled. It counts only where there is no other."""

    def add(self, images: int, seconds: float, waited: float, *, is_first: bool) -> None:
        if is_first:
            self.first_chunk = _speed(images, seconds, waited)
        else:
            self.images += images
            self.seconds += seconds
            self.waited += waited

    def take(self) -> Metrics:
        """Return the speed since it was last taken; nothing if this process has trained no step."""
        speed = _speed(self.images, self.seconds, self.waited) if self.images else self.first_chunk
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        return speed


def _speed(images: int, seconds: float, waited: float) -> Metrics:
    """Return the images per second, and the fraction of the time in which steps waited for their batches."""
    return {"images_per_second": images / max(seconds, 1e-9), "waiting": min(1.0, waited / max(seconds, 1e-9))}


@dataclass
class _Loop:
    """One call of `fit`."""

    trainer: Trainer
    batches_from: Callable[[int], tf.data.Dataset]
    state: TrainState
    steps_per_epoch: int
    epochs: int
    validation: tf.data.Dataset | None
    features: FrozenFeatures | None
    callbacks: list[keras.callbacks.Callback]
    cadence: Cadence
    hooks: Hooks
    seconds_per_step: float = math.inf
    gradient_norm: float | None = None
    saved_at: float = field(default_factory=time.monotonic)
    line_speed: _Speed = field(default_factory=_Speed)
    epoch_speed: _Speed = field(default_factory=_Speed)

    def __post_init__(self):
        self.model, self.workers = self.trainer.model, self.trainer.workers
        self.average = average_of(self.model.optimizer)
        self.loss_scaling = loss_scaling_of(self.model.optimizer)
        self.thaw_steps = {step for step in self.trainer.thaws.values() if step < math.inf}
        self.callback_list = keras.callbacks.CallbackList(
            self.callbacks,
            add_history=False,
            model=self.model,
            epochs=self.epochs,
            steps=self.steps_per_epoch,
            first_step=self.state.step,
            verbose=0,
        )

    @property
    def epoch(self) -> int:
        return self.state.epoch(self.steps_per_epoch)

    @property
    def finished(self) -> bool:
        return self.state.is_done(self.steps_per_epoch * self.epochs)

    def run(self) -> None:
        """Train to the end of the last epoch, or to a stop."""
        state, logs = self.state, {}
        self.model.stop_training = False
        separate_dropout(self.model, self.trainer.strategy)
        self.callback_list.on_train_begin()
        restore_callbacks(self.callbacks, state.callbacks)
        self.begin_stage()
        self.hooks.on_begin()
        while not self.finished:
            epoch = self.epoch
            if not state.ending:
                self.run_epoch(epoch)
            if state.ending:
                logs = self.end_epoch(epoch)
            if state.interrupted or (not self.finished and self.should_stop()):
                state.interrupted = True
                return
        self.callback_list.on_train_end(logs)

    def begin_stage(self) -> None:
        """Freeze the layers that are not trained at this step, open the batches, and trace.

        The time of a chunk is time of training only because all is traced here. A step takes another time than in the
        stage before.
        """
        self.hooks.on_activity("compiling")
        self.seconds_per_step = math.inf
        step, trainer = self.state.step, self.trainer
        trainer.freeze(step)
        if self.features and step >= self.features.until:
            self.features = None
        batches_from, validation, self.head = self.batches_from, self.validation, None
        if self.features:
            batches_from, self.head = self.features.batches_from, self.features.head
            validation = self.features.validation
        batches = batches_from(step)
        self.batch_size = self.workers.count * _batch_size(batches, self.steps_per_epoch * self.epochs - step)
        self.iterator = iter(distribute(trainer.strategy, batches))
        trainer.run_steps(self.iterator, 0, self.head)
        if validation is not None:
            trainer.trace_evaluation(validation, self.head)

    def run_epoch(self, epoch: int) -> None:
        """Train to the end of the epoch, which is then `ending`, or to a stop."""
        state, end = self.state, (epoch + 1) * self.steps_per_epoch
        if state.step == epoch * self.steps_per_epoch:
            self.callback_list.on_epoch_begin(epoch)  # callbacks remember that of a resumed epoch
        while state.step < end and not self.model.stop_training:
            if state.step in self.thaw_steps and not self.trainer.is_thawed(state.step):
                self.begin_stage()
                thawed = [name for name, step in self.trainer.thaws.items() if step == state.step]
                self.hooks.on_thaw(state.step, thawed)
            self.run_chunk(epoch)
            if state.step % self.cadence.log_every == 0:
                self.log_line(epoch)
            if state.step < end and not self.model.stop_training:
                self.save_if_due()
                if self.should_stop():
                    state.callbacks = remember_callbacks(self.callbacks)
                    state.interrupted = True
                    return
        self.collect_metrics()
        state.ending, state.stopped = True, bool(self.model.stop_training)
        state.callbacks = remember_callbacks(self.callbacks)

    def should_stop(self) -> bool:
        """Return whether the training stops here, on all workers."""
        return self.workers.agree(self.hooks.should_stop())

    def save_if_due(self) -> None:
        """Offer the state to be saved, if a save is due and the state is finite."""
        state = self.state
        is_timed = self.cadence.save_seconds < math.inf
        seconds = self.workers.largest(time.monotonic() - self.saved_at) if is_timed else 0.0
        if self.cadence.is_save_due(state.step, seconds):
            state.callbacks = remember_callbacks(self.callbacks)
            self.trainer.check_finite(state.reset_step + 1, state.step)
            self.hooks.on_save(state)
            self.saved_at = time.monotonic()

    def run_chunk(self, epoch: int) -> None:
        """Train one chunk of steps."""
        asked_for = (getattr(callback, "callback_steps", ()) for callback in self.callbacks)
        ends = [(epoch + 1) * self.steps_per_epoch, *itertools.chain(*asked_for), *self.thaw_steps]
        num_steps = self.cadence.chunk_steps(self.state.step, ends, self.workers.largest(self.seconds_per_step))
        if self.loss_scaling:
            num_steps = min(num_steps, self.loss_scaling.steps_before_end())
        first = self.state.step - epoch * self.steps_per_epoch
        self.callback_list.on_train_batch_begin(first)
        start = time.perf_counter()
        chunk = self.trainer.run_steps(self.iterator, num_steps, self.head)
        seconds = time.perf_counter() - start
        metrics, self.gradient_norm = chunk.metrics, chunk.gradient_norm
        last = self.state.step + num_steps
        check_loss(metrics["loss"], self.state.step + 1, last, in_float16=self.loss_scaling is not None)
        if self.loss_scaling:
            self.loss_scaling.check_skipped(last)
        self.state.step = last
        self.state.seconds += seconds
        for speed in (self.line_speed, self.epoch_speed):
            speed.add(num_steps * self.batch_size, seconds, chunk.waited, is_first=math.isinf(self.seconds_per_step))
        self.seconds_per_step = seconds / num_steps
        means = self.epoch_means(metrics)
        self.callback_list.on_train_batch_end(first + num_steps - 1, means)
        self.state.speed = _speed(num_steps * self.batch_size, seconds, chunk.waited)
        latest = {"learning_rate": self.trainer.read_learning_rate(), **self.state.speed}
        self.hooks.on_progress(self.state.step, means | latest)

    def epoch_means(self, metrics: Metrics) -> Metrics:
        """Return the means of this epoch so far, of which `metrics` are those since the last reset."""
        state = self.state
        num_steps = state.step - state.reset_step
        return {
            name: (state.epoch_sums.get(name, 0.0) + mean * num_steps) / (state.epoch_steps + num_steps)
            for name, mean in metrics.items()
        }

    def collect_metrics(self) -> None:
        """Add the metrics since their last reset to the sums of the line and the epoch, and reset them."""
        state = self.state
        num_steps = state.step - state.reset_step
        if not num_steps:
            return
        self.trainer.check_finite(state.reset_step + 1, state.step)
        for name, mean in self.trainer.read_metrics().items():
            for sums in (state.line_sums, state.epoch_sums):
                sums[name] = sums.get(name, 0.0) + mean * num_steps
        state.epoch_steps += num_steps
        state.reset_step = state.step
        self.model.reset_metrics()

    def log_line(self, epoch: int) -> None:
        """Log the means since the line before."""
        state = self.state
        self.collect_metrics()
        means = {name: total / (state.step - state.line_step) for name, total in state.line_sums.items()}
        latest = {"gradient_norm": self.gradient_norm, **self.rate_and_speed(self.line_speed)}
        latest |= self.loss_scaling.read() if self.loss_scaling else {}
        self.log(epoch, "train", "steps", means | latest)
        state.line_step, state.line_sums = state.step, {}

    def end_epoch(self, epoch: int) -> Metrics:
        """Validate, log, call the callbacks, and reset the sums; return the logs as the callbacks saw them.

        A stop during the validation leaves everything as it was before it: the resumed training validates again.
        """
        state, scores = self.state, None
        if self.validation is not None:
            self.hooks.on_activity("validating")
            self.callback_list.on_test_begin()
            scores = self.validate()
            if scores is None:
                state.interrupted = True
                return {}
            check_loss(scores["loss"], state.step, state.step, "validation loss")
            self.callback_list.on_test_end(scores)
        means = {name: total / state.epoch_steps for name, total in state.epoch_sums.items()}
        self.log(epoch, "train", "epoch", means | self.rate_and_speed(self.epoch_speed))
        logs = means | {"learning_rate": self.trainer.read_learning_rate()}
        if scores is not None:
            self.log(epoch, "validation", "epoch", scores)
            logs |= {f"val_{name}": value for name, value in scores.items()}
        self.callback_list.on_epoch_end(epoch, logs)
        state.epoch_steps, state.epoch_sums, state.ending = 0, {}, False
        state.stopped = state.stopped or bool(self.model.stop_training)
        state.callbacks = remember_callbacks(self.callbacks)
        self.hooks.on_epoch(state, logs)
        self.save_if_due()
        return logs

    def validate(self) -> Metrics | None:
        """Return the metrics of the validation split, with those of the averaged weights after `averaged_`.

        None: it was stopped.
        """
        options = {"should_stop": self.hooks.should_stop, "max_chunk_seconds": self.cadence.max_chunk_seconds}
        batches = self.features.validation if self.head else self.validation
        scores = self.trainer.evaluate(batches, head=self.head, **options)
        if scores is not None and self.average:
            with self.average.in_place():
                averaged = self.trainer.evaluate(batches, head=self.head, **options)
            scores = None if averaged is None else scores | {f"averaged_{name}": averaged[name] for name in averaged}
        return scores and {name: value for name, value in scores.items() if not name.endswith("images")}

    def rate_and_speed(self, speed: _Speed) -> Metrics:
        # A resumed training may begin with the end of an epoch.
        return {"learning_rate": self.trainer.read_learning_rate(), **(speed.take() or self.state.speed)}

    def log(self, epoch: int, split: str, span: str, values: Metrics) -> None:
        self.hooks.on_log({"step": self.state.step, "epoch": epoch + 1, "split": split, "span": span, **values})


def _build_variables(model: keras.Model) -> None:
    """Build optimizer, loss and metrics, whose variables cannot be made inside the compiled loop."""
    model.optimizer.build(model.trainable_variables)
    if average := average_of(model.optimizer):
        average.build(model)
    images = tf.zeros((1, *model.input_shape[1:]), model.inputs[0].dtype)
    labels = tf.zeros((1,), "int32")
    outputs = [tf.zeros((1, *output.shape[1:]), output.dtype) for output in model.outputs]
    outputs = outputs if len(outputs) > 1 else outputs[0]  # as the model returns them
    model.compute_loss(images, labels, outputs)
    model.compute_metrics(images, labels, outputs)
    model.reset_metrics()


def _leave_sums_to_the_step(optimizer: keras.optimizers.Optimizer) -> None:
    """Leave out Keras's sum of the gradients over replicas, which `train_step` takes.

    With one replica there is nothing to add up, and TensorFlow would keep the graph around each such sum for the life
    of the process: 7 MB for each LeNet-5 of a search.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    optimizer._all_reduce_sum_gradients = list


def _batch_size(batches: tf.data.Dataset, num_steps: int) -> int:
    """Return the images in a batch; raise ConfigError unless there are `num_steps` full batches."""
    available = int(batches.cardinality())
    if available != tf.data.INFINITE_CARDINALITY and available < num_steps:
        got = "an unknown number (use assert_cardinality)" if available < 0 else str(available)
        raise ConfigError(f"training batches: expected {num_steps} to the end of the training, got {got}")
    size = tf.nest.flatten(batches.element_spec)[0].shape[0]
    if size is None:
        raise ConfigError("training batches: expected batches of one size, got any (use drop_remainder=True)")
    return size
