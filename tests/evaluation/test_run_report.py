"""The figures of a finished run, and what is said of one that cannot be drawn."""

import errno
import json
import re
import shutil

import keras
import numpy as np
import pytest

from kpipe.config.schema import Experiment
from kpipe.evaluation import report
from kpipe.evaluation.predictions import Predictions
from kpipe.runs.state import Best, RunState
from kpipe.training.control import TrainState

NAMES = ("a", "b", "c")
FIGURES = [name for name in report.FIGURES if name != "filters"]  # the network of these tests has no convolution


def predictions_of(split, images):
    """Return predictions of a split of so many images."""
    random = np.random.default_rng(0)
    found = Predictions(split, seed=0)
    labels = np.arange(images, dtype=np.int32) % 3
    found.add(random.integers(0, 256, (images, 4, 4, 1), np.uint8), labels, random.normal(size=(images, 3)))
    return found


@pytest.fixture
def run(tmp_path):
    """A run directory, where the figures of an earlier end of the run lie."""
    run = tmp_path / "2026-11-29_10-12-13"
    (run / "figures").mkdir(parents=True)
    for name in FIGURES:
        (run / "figures" / f"{name}.png").write_text("old")
    records = [
        {"step": 10 * epoch, "epoch": epoch, "split": split, "span": "epoch", "loss": 1.0, "accuracy": 0.5}
        for epoch in (1, 2)
        for split in ("train", "validation")
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, by name; a file says only that one was drawn."""
    figures = {}

    def save(figure, path):
        figures[path.stem] = figure
        path.write_text("drawn")

    monkeypatch.setattr(report, "save_figure", save)
    return figures


@pytest.fixture
def write(run, figures):
    """Write the figures of a run."""

    def write(augment=(), dropout=0.0, split="test", images=9, best_epoch=1):
        data = {"source": "digits", "augment": list(augment)}
        experiment = Experiment.model_validate({"name": "tiny", "data": data, "model": {"name": "mlp"}})
        layers = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dropout(dropout)]
        model = keras.Sequential([*layers, keras.layers.Dense(3)])
        state = RunState(TrainState(step=20), best={"raw": Best(best_epoch, 10 * best_epoch)} if best_epoch else {})
        return report.write_figures(run, experiment, state, model, split and predictions_of(split, images), NAMES)

    return write


def drawn(run):
    return {path.stem for path in (run / "figures").iterdir() if path.read_text() == "drawn"}


def refuse(error):
    def refuse(*arguments, **options):
        raise error

    return refuse


def caption_of(figure):
    return figure.get_supxlabel()


def test_all_figures_are_drawn(write, run):
    assert write() == []
    assert drawn(run) == set(FIGURES)


def test_figures_name_run_split_and_epoch(write, figures):
    write(images=30)
    assert caption_of(figures["curves"]) == "tiny · 2026-11-29_10-12-13 · weights of epoch 1"
    named = "tiny · 2026-11-29_10-12-13 · test split, 30 images · weights of epoch 1"
    assert {caption_of(figures[name]) for name in FIGURES if name != "curves"} == {named}
    assert figures["predictions"].get_suptitle() == "Predictions: 25 of 30 images, drawn at random"
    assert re.match(r"Mistakes: (\d+) of \1, the most confident first$", figures["mistakes"].get_suptitle())
    lines = [line for axes in figures["curves"].axes for line in axes.get_lines() if "best" in line.get_label()]
    assert [(line.get_label(), line.get_xdata()[0]) for line in lines] == [("best epoch: 1", 10)] * 2


def test_without_a_mistake_the_figure_says_so():
    found = Predictions("test", seed=0)
    labels = np.zeros(30, np.int32)
    found.add(np.zeros((30, 4, 4, 1), np.uint8), labels, np.eye(3)[labels])
    figure = report.draw_mistakes(found.mistakes, found.outcomes, class_names=NAMES, caption="")
    assert [text.get_text() for text in figure.texts] == ["No mistakes among 30 images"]


def test_a_run_that_ended_in_its_first_epoch_has_the_weights_of_its_last_step(write, figures):
    write(split=None, best_epoch=0)
    assert caption_of(figures["curves"]).endswith(" · weights of step 20")


def test_without_a_held_out_split_only_curves_are_drawn(write, figures):
    write(split="validation", images=6)
    assert "validation split, 6 images" in caption_of(figures["predictions"])
    figures.clear()
    assert write(split=None) == []
    assert {*figures} == {"curves"}


@pytest.mark.parametrize(
    ("augment", "dropout", "reasons"),
    [
        (["translate"], 0.0, "on augmented images"),
        ([], 0.5, "with dropout"),
        (["translate"], 0.5, "on augmented images and with dropout"),
    ],
)
def test_curves_say_what_training_accuracy_is(write, figures, augment, dropout, reasons):
    write(augment, dropout, split=None)
    line = caption_of(figures["curves"]).splitlines()[1]
    assert line == f"Training accuracy is measured during the epoch, {reasons}."


@pytest.mark.parametrize("error", [ValueError("no such\nfont"), MemoryError(), OSError("cannot write")])
@pytest.mark.parametrize("figure", ["curves", "confusion_matrix"])
def test_a_figure_that_cannot_be_drawn_is_a_line_and_the_others_are_drawn(write, run, monkeypatch, figure, error):
    monkeypatch.setattr(report, f"draw_{figure.removesuffix('_matrix')}", refuse(error))
    reason = str(error).partition("\n")[0] or type(error).__name__
    assert write() == [f"figures/{figure}.png could not be drawn: {reason}"]
    assert drawn(run) == set(FIGURES) - {figure}
    assert not (run / "figures" / f"{figure}.png").exists()


def test_a_folder_that_cannot_be_made_is_no_error(write, run):
    shutil.rmtree(run / "figures")
    (run / "figures").touch()
    lines = write()
    assert [line.partition(" could not")[0] for line in lines] == [f"figures/{name}.png" for name in FIGURES]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_a_signal_end_the_run(write, monkeypatch, error):
    monkeypatch.setattr(report, "save_figure", refuse(error))
    with pytest.raises(type(error)):
        write()
