"""A written file computes what the network computes, in its own runtime, or it is refused."""

import keras
import numpy as np
import pytest

from kpipe.exporting.verification import compute_logits, verify
from kpipe.exporting.writing import write_format
from kpipe.models.portable import make_exportable

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), "uint8")


def make_network(*layers):
    ends = keras.layers.Flatten(), keras.layers.Dense(2)
    return make_exportable(keras.Sequential([keras.Input((4, 4, 1)), *layers, *ends]), (4, 4, 1))


@pytest.mark.slow
def test_the_process_that_checks_imports_nothing_from_the_working_directory(tmp_path, monkeypatch):
    """Nor do the lines of Python train: a network with random layers computes the same twice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keras.py").write_text("raise SystemExit(3)")
    folder = tmp_path / "\N{GRINNING FACE}'\""
    folder.mkdir()
    network = make_network(keras.layers.RandomTranslation(0.5, 0.5), keras.layers.Dropout(0.5))
    write_format("keras", network, folder / "model.keras")
    expected = compute_logits(network, IMAGES)
    assert verify("keras", folder / "model.keras", IMAGES, expected, needs="import kpipe.models") <= 1e-5


@pytest.mark.slow
def test_saved_model_is_computed_by_tensorflow(tmp_path):
    network = make_network()
    write_format("saved_model", network, tmp_path / "model")
    expected = compute_logits(network, IMAGES)
    assert verify("saved_model", tmp_path / "model", IMAGES, expected) <= 1e-5
