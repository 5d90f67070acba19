"""Stock Keras: `fit` with BackupAndRestore on the same networks and data as kpipe's runs."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from expectations import expect

from kpipe.assembly import prepare
from kpipe.config import load_experiment
from kpipe.runs.machine import resolve_auto
from kpipe.training.device import seed_everything
from kpipe.training.distribution import make_strategy


def fit_stock(pipe, file: str, folder: Path, make_callback: Callable | None = None, *options) -> None:
    """Train the network and data of an experiment file by `keras.Model.fit`, seeded and deterministic.

    Sends "trains" after the first step. Leaves the backup in `folder`, and at the end the weights in end.npz.

    Args:
        pipe: the connection to the parent process.
        file: the experiment file.
        folder: the folder of this training; the same folder resumes it.
        make_callback: called as `make_callback(pipe, backup, *options)`; returns another callback for `fit`.
        options: of `make_callback`.
    """
    experiment = resolve_auto(load_experiment(file, ["training.deterministic=true"]).experiment)
    seed_everything(experiment.seed, deterministic=experiment.chosen.deterministic)
    prepared = prepare(experiment, make_strategy())
    train, validation = prepared.splits.train, prepared.splits.validation
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=experiment.training.checkpoint.every.steps)
    more = [make_callback(pipe, backup, *options)] if make_callback else []
    prepared.model.fit(
        train.images,
        train.labels,
        batch_size=experiment.data.batch_size,
        epochs=experiment.training.epochs,
        validation_data=(validation.images, validation.labels),
        verbose=0,
        callbacks=[TellFirstStep(pipe), backup, *more],
    )
    np.savez(folder / "end.npz", **{variable.path: variable.numpy() for variable in prepared.model.variables})


class TellFirstStep(keras.callbacks.Callback):
    """Sends "trains" after the first step."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe, self.told = pipe, False

    def on_train_batch_end(self, batch, logs=None):
        if not self.told:
            self.pipe.send("trains")
        self.told = True


def make_backup(model: keras.Model, folder: Path, *, double: bool = True) -> keras.callbacks.BackupAndRestore:
    """Make a BackupAndRestore that saves after every step; `on_train_batch_end` saves without training."""
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1, double_checkpoint=double)
    backup.set_model(model)
    return backup


def load_backup(model: keras.Model, folder: Path) -> None:
    """Restore the model from a backup that was made in the first epoch."""
    model._initial_epoch = None  # where BackupAndRestore leaves the epoch for `fit`; it has no other door
    make_backup(model, folder).on_train_begin()
    expect(model._initial_epoch == 0, "another epoch was restored")
