"""Figures of the validation split while a network is trained."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from kpipe.evaluation.predictions import Predictions
from kpipe.evaluation.report import list_figures, plan_figures, save_figures
from kpipe.figures.labels import run_label
from kpipe.training.averaging import average_of
from kpipe.training.trainer import Trainer

_MOST = 10  # TensorBoard shows as many images of a tag
_MOST_TIME = 0.02  # of that of the training steps
_FIRST_SECONDS = 3.0  # that the first figures take, matplotlib's import included


class EpochFigures(keras.callbacks.Callback):
    """Draw figures at the end of epochs: at most ten times, evenly spread, and only while they take little time.

    They are left out where they would bring the time that all of them have taken above 2 % of that of the training
    steps. So a short run has those of its end alone. The last epoch has none: they are those of the end of the run.

    Args:
        draw: gets the model, and the number of the epoch and of its last step; returns whether it has drawn.
    """

    not_kept = ("_began",)

    def __init__(self, draw: Callable[[keras.Model, int, int], bool]):
        super().__init__()
        self._draw = draw
        self._began = 0.0
        # Seconds, which a resumed training remembers.
        self.trained = self.drawn = 0.0
        self.expected = math.inf

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.trained += time.perf_counter() - self._began

    def on_test_begin(self, logs=None):
        self._began = time.perf_counter()

    def on_test_end(self, logs=None):
        if not self.drawn:
            self.expected = time.perf_counter() - self._began + _FIRST_SECONDS

    def on_epoch_end(self, epoch, logs=None):
        number, epochs = epoch + 1, self.params["epochs"]
        is_turn = number % math.ceil(epochs / _MOST) == 0 and number < epochs
        if is_turn and self.drawn + self.expected <= _MOST_TIME * self.trained:
            start = time.perf_counter()
            if self._draw(self.model, number, number * self.params["steps"]):
                self.expected = time.perf_counter() - start
                self.drawn += self.expected


def make_epoch_figures(
    trainer: Trainer,
    run: Path,
    batches: tf.data.Dataset,
    *,
    name: str,
    class_names: Sequence[str],
    seed: int,
    write: Callable[[int, Mapping[str, Path]], None],
    should_stop: Callable[[], bool],
) -> EpochFigures:
    """Return the callback that draws predictions on the validation split, and what becomes of them.

    Args:
        trainer: of the network.
        run: the run directory; the latest figures are in its `figures/`.
        batches: of the split, as for `Trainer.evaluate_batches`.
        name: of the experiment, for the lines below the figures.
        class_names: K names.
        seed: of the images that are drawn at random.
        write: gets the step, and the PNG files by names in `kpipe.evaluation.report.FIGURES`.
        should_stop: asked after each batch; if it says so, nothing is drawn.
    """

    def draw(model: keras.Model, epoch: int, step: int) -> bool:
        predictions = Predictions("validation", seed=seed)
        if trainer.evaluate_batches(batches, predictions.add, should_stop=should_stop) is None:
            return False
        kind = "raw weights" if average_of(model.optimizer) else "weights"
        source = run_label(run.name, name)
        drawings = plan_figures(model, predictions, class_names, source=source, weights=f"{kind} of epoch {epoch}")
        save_figures(run, drawings)  # what cannot be drawn is said at the end of the run
        write(step, {name: file for name, file in list_figures(run).items() if name in drawings})
        return True

    return EpochFigures(draw)
