"""Training with TensorFlow: by kpipe, by Keras's `fit`, and by a loop with nothing in it but the step."""

import json
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf
from step_works import CLASSES, EPOCHS, LEARNING_RATE, LOG_EVERY, MOMENTUM, Work, make_batch

from kpipe.models import build_model
from kpipe.runs.logs import RunLog
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.control import Cadence, Hooks, TrainState
from kpipe.training.losses import make_loss
from kpipe.training.metrics import make_metrics
from kpipe.training.optimizers import make_optimizer
from kpipe.training.precision import precision_scope
from kpipe.training.schedules import make_schedule
from kpipe.training.trainer import Trainer


def train(work: Work, variant: str, steps: int, folder: Path, end_epoch: Callable[[int], object]) -> None:
    """Train until the process is killed.

    Args:
        work: what is trained.
        variant: "kpipe", "keras_fit", "keras_fit_50" or "raw"; with "_bfloat16" in mixed_bfloat16.
        steps: of an epoch.
        folder: for logs and checkpoints.
        end_epoch: called with the number of trained parameters at the end of each epoch.
    """
    base = variant.removesuffix("_bfloat16")
    with precision_scope("float32" if base == variant else "mixed_bfloat16"):
        model = build_model(work.network, work.options, input_shape=work.image_shape, classes=CLASSES)
        parameters = sum(variable.value.shape.num_elements() for variable in model.trainable_variables)
        TRAININGS[base](work, model, steps, folder, lambda: end_epoch(parameters))


def _repeat_batch(work: Work) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(make_batch(work)).repeat()


# --- kpipe ------------------------------------------------------------------------------------------------------------


def _train_with_kpipe(
    work: Work, model: keras.Model, steps: int, folder: Path, end_epoch: Callable[[], object]
) -> None:
    lengths = {"total_steps": EPOCHS * steps, "steps_per_epoch": steps, "batch_size": work.batch_size}
    rate = make_schedule("cosine", {"peak": LEARNING_RATE}, **lengths) if work.ordinary else LEARNING_RATE
    model.compile(
        optimizer=make_optimizer("sgd", {"momentum": MOMENTUM}, rate),
        loss=make_loss("cross_entropy"),
        metrics=make_metrics(CLASSES) if work.ordinary else None,
        jit_compile=False,
    )
    hooks, cadence = Hooks(on_epoch=lambda *_: end_epoch()), Cadence(log_every=EPOCHS * steps)
    if work.ordinary:
        hooks, cadence = _record(model, folder, end_epoch), Cadence(log_every=LOG_EVERY, save_every=steps)
    Trainer(model).fit(
        lambda step: _repeat_batch(work), steps_per_epoch=steps, epochs=EPOCHS, hooks=hooks, cadence=cadence
    )


def _record(model: keras.Model, folder: Path, end_epoch: Callable[[], object]) -> Hooks:
    """Return hooks that log and save as a run does, with TensorBoard."""
    log, checkpoints = RunLog(folder), Checkpoints(folder / "checkpoints")

    def save(state: TrainState) -> None:
        checkpoints.commit(model, state.to_dict(), step=state.step, logs=log.lengths())

    return Hooks(on_log=log.write, on_save=save, on_epoch=lambda *_: end_epoch())


# --- Keras ------------------------------------------------------------------------------------------------------------


def _fit(
    work: Work,
    model: keras.Model,
    steps: int,
    folder: Path,
    end_epoch: Callable[[], object],
    *,
    steps_per_execution: int = 1,
) -> None:
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, EPOCHS * steps) if work.ordinary else LEARNING_RATE
    model.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"] if work.ordinary else None,
        steps_per_execution=steps_per_execution,
    )
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: end_epoch())]
    if work.ordinary:
        callbacks = [_LogLines(folder), keras.callbacks.ModelCheckpoint(folder / "checkpoint.keras"), *callbacks]
    model.fit(_repeat_batch(work), steps_per_epoch=steps, epochs=EPOCHS, callbacks=callbacks, verbose=0)


def _fit_50(work: Work, model: keras.Model, steps: int, folder: Path, end_epoch: Callable[[], object]) -> None:
    _fit(work, model, steps, folder, end_epoch, steps_per_execution=min(50, steps))


class _LogLines(keras.callbacks.Callback):
    """Writes a line of JSON every so many steps, which is the least that one may log."""

    def __init__(self, folder: Path):
        super().__init__()
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % LOG_EVERY == 0:
            rate = float(self.model.optimizer.learning_rate)
            self._file.write(json.dumps({"step": batch + 1, "learning_rate": rate, **logs}) + "\n")


# --- the limit --------------------------------------------------------------------------------------------------------


def _train_raw(work: Work, model: keras.Model, steps: int, folder: Path, end_epoch: Callable[[], object]) -> None:
    batches = iter(_repeat_batch(work))
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
    optimizer.build(model.trainable_variables)

    @tf.function
    def run(count):
        for _ in tf.range(count):
            images, labels = next(batches)
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
            optimizer.apply(gradients, model.trainable_variables)

    while True:
        run(tf.constant(steps))
        end_epoch()


TRAININGS = {
    "kpipe": _train_with_kpipe,
    "keras_fit": _fit,
    "keras_fit_50": _fit_50,
    "raw": _train_raw,
}
