"""The figures of a finished run, and what is said of one that cannot be drawn."""

import errno
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.evaluation import report

NAMES = ("a", "b", "c")
FIGURES = ("curves", "confusion_matrix", "predictions", "mistakes")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the figures of a run into `figures/`, where those of an earlier end of the run lie."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (6, 4, 4, 1), np.uint8), np.arange(6, dtype=np.int32) % 3
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "figures").mkdir()
    for name in FIGURES:
        (tmp_path / "figures" / f"{name}.png").write_text("old")
    monkeypatch.setattr(report, "save_figure", lambda figure, path: path.write_text("drawn"))
    return lambda: report.write_figures(tmp_path, model, batches, NAMES)


def drawn(tmp_path):
    return {path.stem for path in (tmp_path / "figures").iterdir() if path.read_text() == "drawn"}


def refuse(error):
    def refuse(*arguments, **options):
        raise error

    return refuse


def test_all_figures_are_drawn(write, tmp_path):
    assert write() == []
    assert drawn(tmp_path) == set(FIGURES)


@pytest.mark.parametrize("error", [ValueError("no such\nfont"), MemoryError(), OSError("cannot write")])
@pytest.mark.parametrize("figure", ["curves", "confusion_matrix"])
def test_a_figure_that_cannot_be_drawn_is_a_line_and_the_others_are_drawn(write, tmp_path, monkeypatch, figure, error):
    monkeypatch.setattr(report, f"draw_{figure}", refuse(error))
    reason = str(error).partition("\n")[0] or type(error).__name__
    assert write() == [f"figures/{figure}.png could not be drawn: {reason}"]
    assert drawn(tmp_path) == set(FIGURES) - {figure}
    assert not (tmp_path / "figures" / f"{figure}.png").exists()


def test_a_folder_that_cannot_be_made_is_no_error(write, tmp_path, monkeypatch):
    shutil.rmtree(tmp_path / "figures")
    (tmp_path / "figures").touch()
    monkeypatch.setattr(report, "save_figure", lambda figure, path: path.write_text("drawn"))
    lines = write()
    assert [line.partition(" could not")[0] for line in lines] == [f"figures/{name}.png" for name in FIGURES]


def test_without_predictions_three_figures_are_left_out_in_one_line(write, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "collect_predictions", refuse(tf.errors.DataLossError(None, None, "gone")))
    left_out = "figures/confusion_matrix.png, figures/predictions.png, figures/mistakes.png"
    assert write() == [f"{left_out} could not be drawn: gone"]
    assert drawn(tmp_path) == {"curves"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_and_a_signal_end_the_run(write, monkeypatch, error):
    monkeypatch.setattr(report, "save_figure", refuse(error))
    with pytest.raises(type(error)):
        write()
