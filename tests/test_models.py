import gc
import inspect
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import kpipe.models
from kpipe.errors import ConfigError
from kpipe.models import build_model, lenet5, save_portable, vgg11, vgg16
from kpipe.models.layers import Standardize
from kpipe.tables import MODELS, resolve

# Keras 3.15 reads TensorFlow's variables with NumPy 2 in a way that NumPy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MEAN, STD = [120.5, 110.25, 100.0], [60.0, 55.5, 70.0]


@pytest.fixture(autouse=True)
def restore_policy():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def trainable_parameters(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


# --- the tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_options_are_the_builder_s_own_parameters_and_defaults(name):
    parameters = inspect.signature(resolve(MODELS[name])).parameters
    others = {"input_shape", "classes", "preprocessing", "name"}
    fields = MODELS[name].options.model_fields
    assert {key: field.default for key, field in fields.items()} == {
        key: parameter.default for key, parameter in parameters.items() if key not in others
    }
    assert others <= set(parameters)
    assert parameters["name"].default == name


@pytest.mark.parametrize("name", MODELS)
def test_builders_are_functions_of_the_package(name):
    assert inspect.isfunction(getattr(kpipe.models, name))


@pytest.mark.parametrize("name", MODELS)
def test_smallest_size_is_the_smallest_that_builds(name):
    size = MODELS[name].smallest_size
    options = {} if name == "lenet5" else {"width": 8}
    model = build_model(name, options, input_shape=(size, size, 1), classes=2)
    assert model.output_shape == (None, 2)
    with pytest.raises(ConfigError, match=f"^{name}: expected an input of at least {size}x{size} pixels, got "):
        build_model(name, options, input_shape=(size - 1, size, 1), classes=2)


# --- parameters and layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "input_shape, parameters", [((28, 28, 1), 61_706), ((32, 32, 1), 61_706), ((32, 32, 3), 62_006)]
)
def test_lenet5_parameters(input_shape, parameters):
    assert lenet5(input_shape).count_params() == parameters


def test_lenet5_layers():
    model = lenet5()
    counts = {layer.name: layer.count_params() for layer in model.layers if layer.weights}
    assert counts == {"c1": 156, "c3": 2_416, "c5": 48_120, "f6": 10_164, "logits": 850}
    assert model.get_layer("c1").output.shape == (None, 28, 28, 6)
    assert model.get_layer("s4").output.shape == (None, 5, 5, 16)


def test_lenet5_pads_small_inputs_only():
    assert lenet5((40, 36, 1)).get_layer("c1").output.shape == (None, 36, 32, 6)
    assert lenet5((40, 31, 1)).get_layer("c1").output.shape == (None, 40, 31, 6)


def test_lenet5_options():
    model = lenet5(activation="tanh", pooling="average", name="mine")
    assert model.name == "mine"
    assert isinstance(model.get_layer("s2"), keras.layers.AveragePooling2D)
    activated = ("c1", "c3", "c5", "f6")
    assert all(model.get_layer(name).activation is keras.activations.tanh for name in activated)
    assert isinstance(lenet5().get_layer("s2"), keras.layers.MaxPooling2D)


@pytest.mark.parametrize(
    "name, plain, normalised, channels, ten_classes",
    [
        ("vgg11", 132_863_336, 132_868_840, 2_752, 128_807_306),
        ("vgg13", 133_047_848, 133_053_736, 2_944, 128_991_818),
        ("vgg16", 138_357_544, 138_365_992, 4_224, 134_301_514),
        ("vgg19", 143_667_240, 143_678_248, 5_504, 139_611_210),
    ],
)
def test_vgg_parameters_of_the_paper(name, plain, normalised, channels, ten_classes):
    build = resolve(MODELS[name])
    model = build(batch_norm=True)
    assert trainable_parameters(model) == normalised
    assert model.count_params() == normalised + 2 * channels
    assert normalised == plain + 2 * channels
    without_norm = [layer for layer in model.layers if not layer.name.startswith("bn")]
    assert sum(layer.count_params() for layer in without_norm) == plain
    logits = model.get_layer("logits").count_params()
    del model, without_norm
    gc.collect()  # half a gigabyte each
    assert plain - logits + 4096 * 10 + 10 == ten_classes


def test_vgg16_parameters_without_batch_norm():
    assert vgg16().count_params() == 138_357_544


@pytest.mark.parametrize(
    "name, options, parameters",
    [
        ("vgg16", {"batch_norm": True, "head": "gap"}, 14_728_266),
        ("vgg16", {"head": "gap"}, 14_719_818),
        ("vgg16", {"batch_norm": True, "width": 512}, 15_253_578),
        ("vgg11", {"batch_norm": True, "width": 512}, 9_756_426),
        ("vgg13", {"batch_norm": True, "width": 512}, 9_941_322),
        ("vgg19", {"batch_norm": True, "width": 512}, 20_565_834),
    ],
)
def test_vgg_parameters_on_cifar(name, options, parameters):
    model = resolve(MODELS[name])((32, 32, 3), 10, **options)
    assert trainable_parameters(model) == parameters


def test_vgg16_layers():
    model = vgg16((32, 32, 3), 10, width=16, dropout=0.25)
    convolutions = [f"conv{s}_{n}" for s, depth in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, depth + 1)]
    assert [layer.name for layer in model.layers if layer.weights] == [*convolutions, "fc6", "fc7", "logits"]
    assert [model.get_layer(f"pool{stage}").output.shape[1:] for stage in (1, 5)] == [
        (16, 16, 64),
        (1, 1, 512),
    ]
    assert model.get_layer("drop6").rate == model.get_layer("drop7").rate == 0.25
    counts = [model.get_layer(name).count_params() for name in convolutions[:6]]
    assert counts == [1_792, 36_928, 73_856, 147_584, 295_168, 590_080]


def test_batch_norm_stands_between_convolution_and_relu():
    model = vgg11((32, 32, 3), 10, batch_norm=True, head="gap")
    names = [layer.name for layer in model.layers]
    start = names.index("conv1_1")
    assert names[start : start + 4] == ["conv1_1", "bn1_1", "relu1_1", "pool1"]
    convolution, norm = model.get_layer("conv1_1"), model.get_layer("bn1_1")
    assert convolution.use_bias and convolution.activation is keras.activations.linear
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)


def test_vgg_with_global_pooling_takes_any_size():
    model = vgg11((None, None, 3), 5, head="gap")
    assert model(random_images(2, 32, 32, 3)).shape == (2, 5)
    assert model(random_images(1, 48, 40, 3)).shape == (1, 5)


def test_vgg16_equals_the_one_of_keras():
    shape = (32, 32, 3)
    theirs = keras.applications.VGG16(weights=None, input_shape=shape, classes=10, classifier_activation=None)
    ours = vgg16(shape, 10, preprocessing=Standardize(0.0, 1.0))
    ours.set_weights(theirs.get_weights())
    images = random_images(4, *shape)
    expected = keras.ops.convert_to_numpy(theirs(images))
    np.testing.assert_allclose(ours(images), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (((16, 16, 3), 10), {}, r"^vgg16: expected an input of at least 32x32 pixels, got 16x16\.$"),
        (
            ((31, None, 3), 10),
            {"head": "gap"},
            r"^vgg16: expected an input of at least 32x32 pixels, got 31xNone\.$",
        ),
        (((32, 32, 3), 10), {"head": "conv"}, r"^vgg16: expected head 'fc' or 'gap', got 'conv'\.$"),
        (((32, 32, 3), 0), {}, r"^vgg16: expected at least 1 class, got 0\.$"),
        (
            ((32, 32), 10),
            {},
            r"^vgg16: expected an input_shape \(height, width, channels\), got \(32, 32\)\.$",
        ),
        (
            ((32, 32, None), 10),
            {},
            r"^vgg16: expected an input_shape \(height, width, channels\), got \(32, 32, None\)\.$",
        ),
        (
            ((None, None, 3), 10),
            {},
            r"^vgg16: expected a known height and width before dense layers, got \(None, None, 3\)\.$",
        ),
    ],
)
def test_vgg16_mistakes(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        vgg16(*arguments, **options)


def test_the_message_names_the_network_not_the_model():
    with pytest.raises(ConfigError, match="^vgg16: expected an input"):
        vgg16((16, 16, 3), name="mine")


def test_lenet5_mistakes():
    with pytest.raises(ConfigError, match=r"^lenet5: expected pooling 'max' or 'average', got 'min'\.$"):
        lenet5(pooling="min")
    with pytest.raises(ConfigError, match=r"^lenet5: expected a known height and width before dense layers, got "):
        lenet5((None, None, 1))


def test_unknown_network():
    with pytest.raises(
        ValueError, match=r"^model: expected the name of a network, got 'vgg_16', did you mean 'vgg16'\?$"
    ):
        build_model("vgg_16", {}, input_shape=(32, 32, 3), classes=10)


# --- preprocessing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("size", [(6, 5), (None, None)])
def test_standardize(policy, size):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((*size, 3), dtype="float32")
    model = keras.Model(inputs, Standardize(MEAN, STD)(inputs))
    images = random_images(4, 6, 5, 3) * 0.9973
    outputs = model(images)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    np.testing.assert_allclose(outputs, (images - np.array(MEAN)) / np.array(STD), rtol=1e-5, atol=1e-6)
    assert not model.weights


@pytest.mark.parametrize("size, constant", [((6, 5), (1, 6, 5, 3)), ((None, None), (1, 1, 1, 3))])
def test_standardize_tiles_its_constants_where_the_size_is_known(size, constant):
    layer = Standardize(MEAN, 2.0)
    layer.build((None, *size, 3))
    assert layer._mean_constant.shape == layer._std_constant.shape == constant


def test_standardize_takes_raw_bytes():
    images = random_images(2, 4, 4, 3).astype("uint8")
    outputs = Standardize(MEAN, STD)(images)
    np.testing.assert_allclose(outputs, (images - np.array(MEAN)) / np.array(STD), rtol=1e-5, atol=1e-6)


def test_standardize_survives_saving(tmp_path):
    model = build_model("lenet5", {}, input_shape=(12, 12, 3), classes=2, mean=MEAN, std=STD)
    model.save(tmp_path / "model.keras")
    images = random_images(2, 12, 12, 3)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


def test_standardize_mistakes():
    with pytest.raises(ConfigError, match=r"^norm: expected a std above 0, got \[1\.0, 0\.0\]\.$"):
        Standardize(0.0, [1.0, 0.0], name="norm")
    message = r"^norm: expected 1 or 3 values of mean, got 2: one for each channel of the images\.$"
    with pytest.raises(ConfigError, match=message):
        Standardize([1.0, 2.0], 1.0, name="norm").build((None, 8, 8, 3))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_raw_values_are_scaled_before_they_are_rounded(policy):
    keras.config.set_dtype_policy(policy)
    model = lenet5()
    images = random_images(2, 28, 28, 1) * 0.9973
    first = keras.Model(model.input, model.get_layer("scale").output)
    np.testing.assert_allclose(first(images), images / 255, rtol=1e-6)


def test_a_model_takes_bytes_and_floats_alike():
    model = build_model("lenet5", {}, input_shape=(28, 28, 1), classes=10, mean=33.3, std=78.6)
    images = random_images(2, 28, 28, 1)
    np.testing.assert_array_equal(model(images.astype("uint8")), model(images))


@pytest.mark.parametrize("name, options", [("lenet5", {}), ("vgg11", {"batch_norm": True, "head": "gap"})])
def test_logits_are_float32_under_mixed_precision(name, options):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(name, options, input_shape=(32, 32, 3), classes=10)
    logits = model(random_images(2, 32, 32, 3))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert model.get_layer("c1" if name == "lenet5" else "conv1_1").compute_dtype == "bfloat16"


# --- the portable file --------------------------------------------------------------------------------------

ARGUMENTS = {
    "name": "vgg11",
    "options": {"batch_norm": True, "head": "gap"},
    "input_shape": (32, 32, 3),
    "classes": 4,
}
CONSTANTS = {"mean": MEAN, "std": STD}

PLAIN_KERAS = """
import sys
sys.modules["kpipe"] = None  # importing it raises ImportError
import keras, numpy
model = keras.models.load_model(sys.argv[1])
numpy.save(sys.argv[3], keras.ops.convert_to_numpy(model(numpy.load(sys.argv[2]))))
"""


def test_the_portable_file_needs_no_kpipe(tmp_path):
    model = build_model(**ARGUMENTS, **CONSTANTS)
    images = random_images(3, 32, 32, 3)
    model(images, training=True)
    save_portable(model, tmp_path / "model.keras", **ARGUMENTS, **CONSTANTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / name for name in ("model.keras", "images.npy", "logits.npy")]
    command = [sys.executable, "-I", "-c", PLAIN_KERAS, *files]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    expected = keras.ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(np.load(files[2]), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_the_portable_file_is_float32_after_mixed_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    arguments = {"name": "lenet5", "options": {}, "input_shape": (28, 28, 1), "classes": 10}
    model = build_model(**arguments, mean=33.3, std=78.6)
    save_portable(model, tmp_path / "model.keras", **arguments, mean=33.3, std=78.6)
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    loaded = keras.models.load_model(tmp_path / "model.keras")
    # The input layer computes nothing; Keras gives it the global policy of the moment.
    assert {layer.compute_dtype for layer in loaded.layers[1:]} == {"float32"}
    for mine, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    arguments = {"name": "lenet5", "options": {}, "input_shape": (12, 12, 1), "classes": 2}
    model = build_model(**arguments)
    path = tmp_path / "model.keras"
    path.write_bytes(b"the old one")

    def no_space(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space left on device"):
        save_portable(model, path, **arguments, mean=0.0, std=255.0)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
