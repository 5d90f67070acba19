"""When figures are drawn at the end of epochs, on a clock of the test, and what is drawn."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from kpipe.evaluation import epoch_figures
from kpipe.evaluation.epoch_figures import EpochFigures, make_epoch_figures
from kpipe.training.callback_state import remember_callbacks, restore_callbacks


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(epoch_figures.time, "perf_counter", lambda: now[0])
    return now


class Training:
    """Calls the callback as a training does, whose epochs, validations and figures take so many seconds."""

    def __init__(self, clock, *, epochs, epoch_seconds, validation=1.0, drawing=2.0):
        self.clock, self.epochs, self.epoch_seconds, self.validation = clock, epochs, epoch_seconds, validation
        self.drawing, self.drawn, self.is_stopped = drawing, [], False
        self.callback = self.make_callback()

    def make_callback(self):
        callback = EpochFigures(self.draw)
        callback.set_params({"epochs": self.epochs, "steps": 7})
        return callback

    def draw(self, model, epoch, step):
        assert step == 7 * epoch
        self.clock[0] += self.drawing
        if not self.is_stopped:
            self.drawn.append(epoch)
        return not self.is_stopped

    def run(self, first, last):
        for epoch in range(first, last):
            for batch in (0, 6):
                self.callback.on_train_batch_begin(batch)
                self.clock[0] += self.epoch_seconds / 2
                self.callback.on_train_batch_end(batch)
            self.callback.on_test_begin()
            self.clock[0] += self.validation
            self.callback.on_test_end()
            self.callback.on_epoch_end(epoch)
        return self.drawn


@pytest.mark.parametrize(
    ("epochs", "drawn"),
    [(1, []), (3, [1, 2]), (10, [*range(1, 10)]), (11, [2, 4, 6, 8, 10]), (90, [*range(9, 90, 9)])],
)
def test_they_are_drawn_at_most_ten_times_and_evenly_spread(clock, epochs, drawn):
    assert Training(clock, epochs=epochs, epoch_seconds=1e6).run(0, epochs) == drawn


@pytest.mark.parametrize("epoch_seconds", [0.5, 5.0, 30.0, 100.0])
@pytest.mark.parametrize("drawing", [0.1, 2.0, 40.0])
def test_they_take_little_of_the_time(clock, epoch_seconds, drawing):
    training = Training(clock, epochs=40, epoch_seconds=epoch_seconds, drawing=drawing)
    for epoch in range(40):
        training.run(epoch, epoch + 1)
        allowed = 0.02 * epoch_seconds * (epoch + 1)
        # What the first ones take is not known before: 4 seconds are expected, a validation and 3 more.
        assert drawing * len(training.drawn) <= allowed or (len(training.drawn) == 1 and allowed >= 4)
    assert len(training.drawn) == len(set(training.drawn))


def test_a_short_training_has_none(clock):
    assert Training(clock, epochs=20, epoch_seconds=5).run(0, 20) == []


def test_a_resumed_training_goes_on_with_the_time(clock):
    whole = Training(clock, epochs=40, epoch_seconds=30).run(0, 40)
    assert 2 < len(whole) < 9
    resumed = Training(clock, epochs=40, epoch_seconds=30)
    resumed.run(0, 21)
    memory = remember_callbacks([resumed.callback])
    resumed.callback = resumed.make_callback()
    restore_callbacks([resumed.callback], memory)
    assert resumed.run(21, 40) == whole


def test_what_a_stop_has_ended_does_not_count(clock):
    training = Training(clock, epochs=40, epoch_seconds=100)
    training.is_stopped = True
    training.run(0, 8)
    assert training.drawn == [] and training.callback.drawn == 0
    training.is_stopped = False
    assert training.run(8, 12) == [12]


@pytest.fixture
def drawn(monkeypatch):
    """Figures are files that say so."""
    monkeypatch.setattr("kpipe.evaluation.report.save_figure", lambda figure, path: path.write_text("drawn"))


class Evaluated:
    """A trainer whose evaluation shows two batches, or is stopped after the first."""

    def evaluate_batches(self, dataset, see, *, should_stop):
        for labels in ([0, 1, 2], [2, 1]):
            see(np.zeros((len(labels), 4, 4, 1), np.uint8), np.array(labels), np.eye(3)[labels] * 5)
            if should_stop():
                return None
        return {"accuracy": 1.0}


@pytest.mark.parametrize("stops", [False, True])
def test_figures_of_the_validation_split_are_written(tmp_path, drawn, stops):
    written, model = [], keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd")
    callback = make_epoch_figures(
        Evaluated(),
        tmp_path,
        None,
        name="tiny",
        class_names=("a", "b", "c"),
        seed=0,
        write=lambda step, files: written.append((step, files)),
        should_stop=lambda: stops,
    )
    assert callback._draw(model, 3, 21) == (not stops)
    names = {"confusion_matrix", "class_accuracy", "predictions", "mistakes"}
    figures = {name: tmp_path / "figures" / f"{name}.png" for name in names}
    assert written == ([] if stops else [(21, figures)])


def test_a_figure_that_cannot_be_drawn_ends_no_training(tmp_path, drawn, monkeypatch):
    def refuse(*arguments, **options):
        raise MemoryError

    written = []
    monkeypatch.setattr("kpipe.evaluation.report.make_confusion_matrix", refuse)
    options = {"name": "tiny", "class_names": ("a", "b", "c"), "seed": 0, "should_stop": lambda: False}
    callback = make_epoch_figures(
        Evaluated(), tmp_path, None, write=lambda step, files: written.extend(files), **options
    )
    assert callback._draw(SimpleNamespace(layers=[], optimizer=None), 3, 21)
    assert {*written} == {"predictions", "mistakes"}
