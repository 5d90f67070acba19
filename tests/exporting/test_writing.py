"""Each format holds each network, and a network that it cannot hold is refused in words."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from exported import needs

from kpipe.catalog.formats import FORMATS
from kpipe.errors import ConfigError, EnvironmentFault, OutOfMemory
from kpipe.exporting.writing import WRITERS, write_format
from kpipe.models import preprocessing
from kpipe.models.building import build_model
from kpipe.models.portable import make_exportable, save_portable
from kpipe.models.preprocessing import Normalization

NETWORKS = {
    "lenet5": ({}, (28, 28, 1)),
    "lenet5 original": ({"variant": "original"}, (32, 32, 1)),
    "lenet5 concept": ({"variant": "concept"}, (28, 28, 1)),
    "alexnet": ({"width": 64}, (64, 64, 3)),
    "zfnet": ({"width": 64}, (64, 64, 3)),
    "googlenet": ({}, (32, 32, 3)),
    "googlenet batch_norm": ({"variant": "batch_norm"}, (32, 32, 3)),
    "vgg11": ({"width": 64, "lrn": True}, (32, 32, 3)),
    "vgg13": ({"width": 64, "batch_norm": True}, (32, 32, 3)),
    "vgg16": ({"head": "gap"}, (32, 32, 3)),
    "vgg16_c": ({"width": 64}, (32, 32, 3)),
    "vgg19": ({"width": 64}, (32, 32, 3)),
    "mlp": ({"width": 32, "activation": "maxout"}, (8, 8, 1)),
    "go_policy": ({"depth": 3, "width": 8}, (9, 9, 4)),
    "speech_cnn": ({"width": 8}, (40, 32, 1)),
    "text_cnn": ({"width": 8, "hidden": 8}, (123, 1, 5)),
}


def assert_same_logits(folder, name, model, shape):
    """Write a network; the lines of Python for its format compute what it computes, also of other images at once."""
    write_format(name, make_exportable(model, shape), folder / FORMATS[name].file)
    for count in (3, 2):
        images = np.random.default_rng(count).integers(0, 256, (count, *shape)).astype("float32")
        names, expected = {"images": images}, np.asarray(model(images, training=False))
        exec("\n".join(FORMATS[name].code(str(folder / FORMATS[name].file))), names)  # noqa: S102
        np.testing.assert_allclose(np.asarray(names["logits"]), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [needs("onnx"), needs("litert")])
def test_every_network_is_written(tmp_path, name, network):
    options, shape = NETWORKS[network]
    classes = 81 if network == "go_policy" else 10
    model = build_model(network.split()[0], options, input_shape=shape, classes=classes)
    assert_same_logits(tmp_path, name, model, shape)


GENERATOR = np.random.default_rng(0)
NORMALIZATIONS = {
    "affine": Normalization("affine", [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]),
    "caffe": preprocessing.NAMED["caffe"],
    "mean_image": Normalization("mean_image", GENERATOR.uniform(0, 255, (4, 4, 3)).astype("float32")),
    "whiten": Normalization(
        "whiten", GENERATOR.uniform(0, 255, 48).astype("float32"), matrix=GENERATOR.normal(size=(48, 5)).astype("f")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("name", [needs("onnx"), needs("litert")])
def test_every_normalization_is_written(tmp_path, name, kind):
    network = {"name": "mlp", "options": {}, "input_shape": (4, 4, 3), "classes": 2}
    network["normalization"] = NORMALIZATIONS[kind]
    save_portable(build_model(**network), tmp_path / "net.keras", **network)
    assert_same_logits(tmp_path, name, keras.models.load_model(tmp_path / "net.keras"), (4, 4, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", [needs("onnx"), needs("litert")])
def test_an_adapted_normalization_is_written(tmp_path, name):
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(0).uniform(0, 255, (20, 4, 4, 3)).astype("float32"))
    layers = [keras.Input((4, 4, 3)), normalization, keras.layers.Flatten(), keras.layers.Dense(2)]
    assert_same_logits(tmp_path, name, keras.Sequential(layers), (4, 4, 3))


def test_keras_and_saved_model_are_written(tmp_path):
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    assert_same_logits(tmp_path, "keras", network, (4, 4, 1))
    assert_same_logits(tmp_path, "saved_model", network, (4, 4, 1))


def test_saved_model_has_each_weight_once(tmp_path):
    network = make_exportable(build_model("mlp", {"width": 256}, input_shape=(8, 8, 1), classes=2), (8, 8, 1))
    write_format("saved_model", network, tmp_path / "model")
    [data] = (tmp_path / "model" / "variables").glob("variables.data-*")
    assert network.count_params() * 4 <= data.stat().st_size < network.count_params() * 4 + 10_000


class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def test_code_of_the_user_is_not_in_a_file_of_keras(tmp_path):
    network = keras.Sequential([keras.Input((4, 4, 1)), Twice(), keras.layers.Flatten(), keras.layers.Dense(2)])
    assert_same_logits(tmp_path, "saved_model", network, (4, 4, 1))
    said = (
        "^to: expected layers of Keras and kpipe, got Twice. Nothing was written; other formats are saved_model, onnx, "
        "litert$"
    )
    with pytest.raises(ConfigError, match=said):
        write_format("keras", network, tmp_path / "model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("name", [needs("onnx"), needs("litert")])
def test_an_operation_that_a_runtime_does_not_have(tmp_path, name):
    images = keras.Input((4, 4, 1))
    network = keras.Model(images, keras.layers.Flatten()(keras.ops.erfinv(images)))
    said = f"^to: expected operations that {name} has, got Erfinv. Nothing was written; other formats are keras, "
    with pytest.raises(ConfigError, match=said):
        write_format(name, network, tmp_path / FORMATS[name].file)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            ValueError("no such layer"),
            ConfigError,
            "^to: expected a network that saved_model can hold, got 'no such layer' from its converter. Nothing was "
            "written; other formats are keras, onnx, litert$",
        ),
        (
            tf.errors.ResourceExhaustedError(None, None, "{0}/variables; No space left on device"),
            EnvironmentFault,
            r"^{0}: cannot be written \(No space left on device\); .* bytes are free there",
        ),
        (
            OSError(28, "No space left on device"),
            EnvironmentFault,
            r"^{0}: cannot be written \(No space left on device\); .* bytes are free there",
        ),
        (
            tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]"),
            OutOfMemory,
            r"^saved_model: expected enough memory to write the network in this format, got 'OOM when allocating "
            r"tensor with shape\[9\]'. Nothing was kept; try again where more is free$",
        ),
        (MemoryError(), OutOfMemory, "^saved_model: expected enough memory .* got 'MemoryError'. Nothing was kept"),
    ],
)
def test_what_a_converter_says_is_translated(tmp_path, monkeypatch, error, kind, said):
    def fail(model, path):
        raise error

    monkeypatch.setitem(WRITERS, "saved_model", fail)
    with pytest.raises(kind, match=said.replace("{0}", str(tmp_path / "model"))):
        write_format("saved_model", None, tmp_path / "model")
