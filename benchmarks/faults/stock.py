"""Stock Keras."""

import os
from pathlib import Path

import keras
import numpy as np
from patches import start_timer
from processes import Lost

import kpipe.experiment
from kpipe.config import load_experiment


def fit_stock(pipe, plan: str, folder: Path, shoot: tuple | None = None) -> None:
    """The plan's network and data in `keras.Model.fit`; tells when it has trained a step, and leaves end.npz."""
    experiment = load_experiment(plan).experiment
    kpipe.experiment.seed_everything(experiment.seed, deterministic=True)
    prepared = kpipe.experiment.prepare(experiment)
    train, validation = prepared.splits.train, prepared.splits.validation
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=experiment.training.checkpoint.every.steps)
    prepared.model.fit(
        train.images,
        train.labels,
        batch_size=experiment.data.batch_size,
        epochs=experiment.training.epochs,
        validation_data=(validation.images, validation.labels),
        verbose=0,
        callbacks=[TellOnce(pipe), backup, *([Shoot(pipe, backup, *shoot)] if shoot else [])],
    )
    np.savez(folder / "end.npz", **{variable.path: variable.numpy() for variable in prepared.model.variables})


class TellOnce(keras.callbacks.Callback):
    """Says "trains" after the first step."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe, self.told = pipe, False

    def on_train_batch_end(self, batch, logs=None):
        if not self.told:
            self.pipe.send("trains")
        self.told = True


class Shoot(keras.callbacks.Callback):
    """Sends this process a signal in a phase of `fit`."""

    def __init__(self, pipe, backup, phase: str, number: int, nth: int, delay: float):
        super().__init__()
        self.pipe, self.number, self.delay = pipe, number, delay
        self.left = {phase: nth}
        save = backup._save_model
        backup._save_model = lambda: self.enter("saving") or save()

    def enter(self, phase: str) -> None:
        if phase not in self.left:
            return
        self.left[phase] -= 1
        if self.left[phase] == 0:
            start_timer(self.delay, self.shoot)

    def shoot(self):
        self.pipe.send(int(self.model.optimizer.iterations))
        os.kill(os.getpid(), self.number)

    def on_train_batch_begin(self, batch, logs=None):
        self.enter("training")

    def on_test_begin(self, logs=None):
        self.enter("evaluation")


def _back_up(model: keras.Model, folder: Path) -> None:
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1, double_checkpoint=True)
    backup.set_model(model)
    backup.on_train_batch_end(1)


def _load_backup(model: keras.Model, folder: Path) -> None:
    model._initial_epoch = None
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1, double_checkpoint=True)
    backup.set_model(model)
    backup.on_train_begin()
    if model._initial_epoch != 0:
        raise Lost("another epoch was restored")
