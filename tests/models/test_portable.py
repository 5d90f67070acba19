"""A saved network as anyone can load it, and a copy of it in layers that other runtimes have."""

import keras
import numpy as np
import pytest

from kpipe.models import portable, preprocessing
from kpipe.models.building import build_model
from kpipe.models.keras_files import list_leaves
from kpipe.models.portable import make_exportable, save_portable
from kpipe.models.preprocessing import Normalization
from kpipe.training.losses import CrossEntropy
from kpipe.training.precision import precision_scope

NETWORK = {
    "name": "lenet5",
    "options": {},
    "input_shape": (16, 16, 3),
    "classes": 2,
    "normalization": Normalization("affine", [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]),
}


def _as_before(mean, std, name):
    """Return the layer that `save_portable` wrote before `Rescaling`."""
    mean, std = np.broadcast_arrays(mean, std)
    return keras.layers.Normalization(mean=mean.tolist(), variance=np.square(std).tolist(), name=name)


def test_older_files_load_and_export_as_today(tmp_path, monkeypatch):
    network = build_model(**NETWORK)
    save_portable(network, tmp_path / "now.keras", **NETWORK)
    monkeypatch.setattr(preprocessing, "make_rescaling", _as_before)
    save_portable(network, tmp_path / "before.keras", **NETWORK)
    before, now = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("before", "now"))
    assert isinstance(before.get_layer("standardize"), keras.layers.Normalization)
    rebuilt = build_model(**NETWORK)
    portable.copy_weights(before, rebuilt)
    exported = make_exportable(before, (16, 16, 3))
    assert isinstance(exported.get_layer("standardize"), keras.layers.Rescaling)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype("float32")
    expected = np.asarray(network(images))
    for each in (before, now, rebuilt, exported):
        np.testing.assert_allclose(np.asarray(each(images)), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "side"), [("alexnet", 64), ("vgg11", 32)])
def test_a_network_that_was_trained_in_mixed_precision_is_written_in_float32(tmp_path, name, side):
    network = {"name": name, "options": {"width": 8}, "input_shape": (side, side, 3), "classes": 2}
    network["normalization"] = NETWORK["normalization"]
    with precision_scope("mixed_bfloat16"):
        model = build_model(**network)
        save_portable(model, tmp_path / "net.keras", **network)
        exported = make_exportable(keras.models.load_model(tmp_path / "net.keras"), (side, side, 3))
    assert model.layers[2].compute_dtype == "bfloat16"
    layers = [layer for layer in list_leaves(exported) if not isinstance(layer, keras.layers.InputLayer)]
    assert {layer.compute_dtype for layer in layers} <= {"float32", None}
    assert {weight.dtype for weight in exported.weights} == {"float32"}


def test_the_copy_of_a_compiled_network_is_not_compiled():
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    network.compile(loss=CrossEntropy())
    copied = make_exportable(network, (4, 4, 1))
    assert not copied.compiled and "kpipe" not in copied.to_json()


def test_a_network_for_any_size_gets_one():
    images = keras.Input((None, None, 3))
    network = keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(images)))
    fixed = make_exportable(network, (8, 8, 3))
    assert (network.input_shape, fixed.input_shape) == ((None, None, None, 3), (None, 8, 8, 3))
    images = np.full((1, 8, 8, 3), 7.0)
    np.testing.assert_allclose(np.asarray(fixed(images)), np.asarray(network(images)), rtol=1e-6)


@pytest.mark.parametrize("is_inside", [False, True])
def test_what_a_normalization_was_adapted_to_becomes_constants(is_inside):
    normalization = keras.layers.Normalization()
    images = np.random.default_rng(0).uniform(0, 255, (20, 4, 4, 3)).astype("float32")
    images[..., 2] = 7  # a channel without variance
    normalization.adapt(images)
    network = keras.Sequential([keras.Input((4, 4, 3)), normalization, keras.layers.Conv2D(2, 3)])
    if is_inside:
        given = keras.Input((4, 4, 3))
        network = keras.Model(given, keras.layers.Flatten()(network(given)))
    copied = make_exportable(network, (4, 4, 3))
    assert len(copied.weights) == len(network.weights) - 3
    np.testing.assert_allclose(np.asarray(copied(images)), np.asarray(network(images)), rtol=1e-5, atol=1e-5)
