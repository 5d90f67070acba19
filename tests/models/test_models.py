import inspect
import math
import os
import re
import subprocess
import sys
from typing import get_args

import keras
import numpy as np
import pytest

import kpipe.models
from kpipe.catalog.networks import MODELS, Activation
from kpipe.errors import ConfigError
from kpipe.models.alexnet import alexnet
from kpipe.models.building import build_model, deferred_initialization, initialize_variables
from kpipe.models.go import go_policy
from kpipe.models.googlenet import googlenet
from kpipe.models.lenet import lenet5
from kpipe.models.mlp import mlp
from kpipe.models.portable import load_portable_weights, save_portable
from kpipe.models.preprocessing import (
    NAMED,
    Normalization,
    Standardize,
    load_normalization,
    make_preprocessing,
    save_normalization,
)
from kpipe.models.speech import speech_cnn
from kpipe.models.text import text_cnn
from kpipe.models.vgg import vgg11, vgg16, vgg16_c
from kpipe.models.zfnet import zfnet
from kpipe.training.losses import make_loss

# Keras 3.15 reads TensorFlow's variables with NumPy 2 in a way that NumPy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MEAN, STD = [120.5, 110.25, 100.0], [60.0, 55.5, 70.0]
CONSTANTS = {"normalization": Normalization("affine", MEAN, STD)}
GRAY = Normalization("affine", 33.3, 78.6)


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
    parameters = inspect.signature(MODELS[name].load()).parameters
    others = {"input_shape", "classes", "preprocessing", "name"}
    fields = MODELS[name].options.model_fields
    assert {key: field.default for key, field in fields.items()} == {
        key: parameter.default for key, parameter in parameters.items() if key not in others
    }
    assert others <= set(parameters)
    assert parameters["name"].default == name


@pytest.mark.parametrize("name", MODELS)
def test_builders_are_functions_of_the_package_with_a_help_page_of_their_own(name):
    builder = getattr(kpipe.models, name)
    assert inspect.isfunction(builder)
    assert builder.__name__ == builder.__qualname__ == name
    page = inspect.getdoc(builder)
    assert re.findall(r"^(\w+):$", page, re.M) == ["Args", "Returns", "Raises"]
    arguments = page.partition("Args:")[2].partition("Returns:")[0]
    assert re.findall(r"^    (\w+):", arguments, re.M) == list(inspect.signature(builder).parameters)
    for option, field in MODELS[name].options.model_fields.items():
        line = re.search(rf"^    {option}: (.*?)^    (?=\w|$)", arguments + "\n    ", re.M | re.S)[1]
        assert [choice for choice in get_args(field.annotation) if f'"{choice}"' not in line] == []


def test_each_vgg_says_which_net_of_the_paper_it_is():
    nets = {name: inspect.getdoc(MODELS[name].load()).partition(":")[0] for name in MODELS if name.startswith("vgg")}
    letters = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg16_c": "C", "vgg19": "E"}
    assert nets == {name: f"Build VGG net {letter}" for name, letter in letters.items()}


# What a network takes beside its smallest height and width, and how to keep it small.
CHANNELS = {"text_cnn": 27}
SMALL = {
    **{name: {"width": 64} for name in ("alexnet", "zfnet", "vgg11", "vgg13", "vgg16", "vgg16_c", "vgg19", "mlp")},
    "go_policy": {"depth": 2, "width": 8},
    "text_cnn": {"width": 16, "hidden": 64},
}


def small(name, options):
    """The options of a small network; a head without hidden layers has no width to be kept small."""
    return options if options.get("head") == "gap" else SMALL.get(name, {}) | options


def build(name, height, width, options=None, **arguments):
    """The network `name`, small, for images of this size and 10 classes, or a class a point."""
    classes = height * width if name == "go_policy" else 10
    options = small(name, options or {})
    shape = (height, width, CHANNELS.get(name, 3))
    return build_model(name, options, input_shape=shape, classes=classes, **arguments)


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("name", MODELS)
def test_smallest_size_is_the_smallest_that_builds(name):
    height, width = MODELS[name].smallest_size
    assert build(name, height, width).output_shape[0] is None
    message = f"^{name}: expected an input of at least {height}x{width} pixels, got "
    with pytest.raises(ConfigError, match=message):
        build(name, height - 1, width)
    if name != "text_cnn":  # there, one pixel is the only width
        with pytest.raises(ConfigError, match=message):
            build(name, height, width - 1)


IMAGE_NETWORKS = [name for name in MODELS if name not in ("go_policy", "speech_cnn", "text_cnn")]


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("size", [28, 32, 64, 96])
@pytest.mark.parametrize("name", [name for name in IMAGE_NETWORKS if name not in ("vgg13", "vgg16", "vgg16_c")])
def test_image_networks_take_the_sizes_that_students_use(name, size):
    images = random_images(1, size, size, 3)
    logits = keras.ops.convert_to_numpy(build(name, size, size)(images))
    assert logits.shape == (1, 10)
    assert np.isfinite(logits).all()
    assert len(set(logits[0].tolist())) == 10  # an empty feature map would leave all of them zero


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


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("name, channels", [("vgg11", 2_752), ("vgg13", 2_944), ("vgg16", 4_224), ("vgg19", 5_504)])
def test_batch_norm_adds_two_trained_and_two_moving_numbers_a_channel(name, channels):
    plain, normalized = (build(name, 32, 32, {"batch_norm": batch_norm}) for batch_norm in (False, True))
    assert trainable_parameters(normalized) == plain.count_params() + 2 * channels
    assert normalized.count_params() == plain.count_params() + 4 * channels


@pytest.mark.usefixtures("without_weights")
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
    model = MODELS[name].load()((32, 32, 3), 10, **options)
    assert trainable_parameters(model) == parameters


@pytest.mark.usefixtures("without_weights")
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


@pytest.mark.usefixtures("without_weights")
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


@pytest.mark.parametrize("name, theirs", [("vgg16", keras.applications.VGG16), ("vgg19", keras.applications.VGG19)])
def test_vgg_equals_the_one_of_keras(name, theirs):
    shape = (32, 32, 3)
    theirs = theirs(weights=None, input_shape=shape, classes=10, classifier_activation=None)
    ours = MODELS[name].load()(shape, 10, preprocessing=Standardize(0.0, 1.0))
    ours.set_weights(theirs.get_weights())
    images = random_images(4, *shape)
    expected = keras.ops.convert_to_numpy(theirs(images))
    np.testing.assert_allclose(ours(images), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("without_weights")
def test_vgg_poolings_round_up():
    model = vgg16((28, 28, 1), 10, width=8)
    sides = [model.get_layer(f"pool{stage}").output.shape[1] for stage in range(1, 6)]
    assert sides == [14, 7, 4, 2, 1]


@pytest.mark.usefixtures("without_weights")
def test_net_c_has_convolutions_of_one_pixel():
    model = vgg16_c((32, 32, 3), 10, width=8)
    kernels = {layer.name: layer.kernel_size for layer in model.layers if layer.name.startswith("conv")}
    assert [name for name, kernel in kernels.items() if kernel == (1, 1)] == ["conv3_3", "conv4_3", "conv5_3"]


@pytest.mark.usefixtures("without_weights")
def test_net_a_lrn_normalizes_after_the_first_convolution():
    names = [layer.name for layer in vgg11((32, 32, 3), 10, width=8, lrn=True).layers]
    assert names[names.index("conv1_1") + 1] == "lrn1"
    assert sum(name.startswith("lrn") for name in names) == 1


def std_of(model, layer):
    return float(np.std(keras.ops.convert_to_numpy(model.get_layer(layer).kernel)))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [("lenet5", {"variant": "original"}, (32, 32, 1)), ("alexnet", {"width": 8}, (32, 32, 3)), ("mlp", {}, (9, 9, 1))],
)
@pytest.mark.parametrize("kind", ["unit", "mean_image", "whiten"])
def test_weights_that_are_made_later_are_the_same(name, options, shape, kind):
    values, random = math.prod(shape), np.random.default_rng(0)
    mean, matrix = random.random(shape, np.float32), random.random((values, values), np.float32)
    constants = {"mean_image": Normalization(kind, mean), "whiten": Normalization(kind, mean.ravel(), matrix=matrix)}
    arguments = {"input_shape": shape, "classes": 5, "normalization": constants.get(kind, NAMED["unit"])}
    keras.utils.set_random_seed(3)
    at_once = build_model(name, options, **arguments).variables
    keras.utils.set_random_seed(3)
    with deferred_initialization():
        model = build_model(name, options, **arguments)
    initialize_variables()
    for variable, other in zip(model.variables, at_once, strict=True):
        assert variable.numpy().tobytes() == other.numpy().tobytes(), variable.path


def test_initial_weights():
    """Standard deviations: N(0, 0.01) and N(0, variance 0.01) of the papers, He's sqrt(2 / fan-in), Glorot's."""
    net = alexnet((64, 64, 3), 10, width=512)
    assert [std_of(net, f"conv{n}") for n in range(1, 6)] == pytest.approx([0.01] * 5, rel=0.03)
    biases = {layer.name: float(layer.bias[0]) for layer in net.layers if hasattr(layer, "bias")}
    assert {name for name, bias in biases.items() if bias == 1} == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert std_of(zfnet((64, 64, 3), 10, width=8), "conv3") == pytest.approx(0.01, rel=0.03)
    assert std_of(vgg11((32, 32, 3), 10, width=8, initializer="paper"), "conv4_1") == pytest.approx(0.1, rel=0.03)
    fan_in, fan_out = 9 * 256, 9 * 512
    for name, wanted in (("he", 2 / fan_in), ("glorot", 2 / (fan_in + fan_out))):
        net = vgg11((32, 32, 3), 10, width=8, initializer=name)
        assert std_of(net, "conv4_1") == pytest.approx(wanted**0.5, rel=0.03)
    first = lenet5(variant="original").get_layer("c1").kernel
    assert 0.9 * 2.4 / 25 < np.abs(first).max() <= 2.4 / 25
    inception = googlenet((32, 32, 3), 10).get_layer("inception_4a_1x1")
    assert float(inception.bias[0]) == pytest.approx(0.2)


# --- AlexNet, ZFNet, GoogLeNet ------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize(
    "size, stride, sides", [(28, 1, (18, 8, 3, 1)), (32, 1, (22, 10, 4, 1)), (96, 4, (23, 11, 5, 2)),
                            (224, 4, (55, 27, 13, 6)), (227, 4, (55, 27, 13, 6)), (40, 2, (16, 7, 3, 1))]
)  # fmt: skip
def test_alexnet_takes_the_largest_stride_that_leaves_something(size, stride, sides):
    model = alexnet((size, size, 3), 10, width=8)
    assert model.get_layer("conv1").strides == (stride, stride)
    assert tuple(model.get_layer(name).output.shape[1] for name in ("conv1", "pool1", "pool2", "pool5")) == sides


@pytest.mark.usefixtures("without_weights")
def test_alexnet_layers():
    model = alexnet((96, 96, 3), 10, width=8)
    names = [layer.name for layer in model.layers[2:]]
    assert names == [
        *("pad1", "conv1", "lrn1", "pool1", "conv2", "lrn2", "pool2", "conv3", "conv4", "conv5", "pool5"),
        *("flatten", "fc6", "drop6", "fc7", "drop7", "logits"),
    ]
    assert [model.get_layer(f"conv{n}").groups for n in range(1, 6)] == [1, 2, 1, 2, 2]
    lrn, pool = model.get_layer("lrn1"), model.get_layer("pool1")
    assert (lrn.size, lrn.k, lrn.alpha, lrn.beta, lrn.alpha_times) == (5, 2.0, 1e-4, 0.75, "sum")
    assert (pool.pool_size, pool.strides) == ((3, 3), (2, 2))
    torchvision = [layer.name for layer in alexnet((96, 96, 3), 10, width=8, variant="one_weird_trick").layers]
    assert torchvision[torchvision.index("flatten") :] == ["flatten", "drop6", "fc6", "drop7", "fc7", "logits"]
    assert not any(name.startswith("lrn") for name in torchvision)
    assert "conv5" not in [layer.name for layer in alexnet((96, 96, 3), 10, width=8, variant="notes").layers]


@pytest.mark.usefixtures("without_weights")
def test_alexnet_options():
    model = alexnet((64, 64, 3), 10, width=8, pooling="average", overlapping=False, lrn=False, dropout=0.25)
    pool = model.get_layer("pool1")
    assert isinstance(pool, keras.layers.AveragePooling2D)
    assert (pool.pool_size, pool.strides) == ((2, 2), (2, 2))
    assert not any(layer.name.startswith("lrn") for layer in model.layers)
    assert model.get_layer("drop6").rate == 0.25


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("size, strides", [(28, (1, 1)), (32, (1, 2)), (64, (2, 2)), (224, (2, 2))])
def test_zfnet_strides(size, strides):
    model = zfnet((size, size, 3), 10, width=8)
    assert tuple(model.get_layer(name).strides[0] for name in ("conv1", "conv2")) == strides


@pytest.mark.usefixtures("without_weights")
def test_googlenet_blocks_concatenate_four_branches():
    model = googlenet((64, 64, 3), 10)
    widths = [
        model.get_layer(f"inception_{place}").output.shape[-1] for place in ("3a 3b 4a 4b 4c 4d 4e 5a 5b".split())
    ]
    assert widths == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    assert model.get_layer("inception_3a_5x5").kernel_size == (5, 5)
    assert googlenet((32, 32, 3), 10, variant="batch_norm").get_layer("inception_3a_5x5").kernel_size == (3, 3)


def test_googlenet_heads_stand_after_4a_and_4d_and_average_five_by_five():
    model = googlenet((224, 224, 3), 10, auxiliary_heads=True)
    assert [tuple(output.shape) for output in model.outputs] == [(None, 10)] * 3
    assert model.get_layer("auxiliary_4a_pool").output.shape == (None, 4, 4, 512)
    assert model.get_layer("auxiliary_4d_pool").output.shape == (None, 4, 4, 528)
    assert model.get_layer("auxiliary_4a_dropout").rate == 0.7
    assert model.predict(random_images(1, 224, 224, 3), verbose=0).shape == (1, 10)


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize("name", ["lenet5", "alexnet", "zfnet", "vgg11", "mlp"])
def test_every_activation_fits_every_network(name):
    plain = build(name, 32, 32)
    for activation in get_args(Activation):
        model = build(name, 32, 32, {"activation": activation})
        assert model.output_shape == (None, 10), activation
        assert (model.count_params() > plain.count_params()) == (activation == "maxout")  # it has twice the filters


@pytest.mark.usefixtures("without_weights")
def test_batch_norm_stands_before_an_activation_of_any_kind():
    for activation in ("relu", "scaled_tanh", "maxout"):
        model = build("vgg11", 32, 32, {"activation": activation, "batch_norm": True})
        names = [layer.name for layer in model.layers]
        start = names.index("conv2_1")
        assert names[start : start + 3] == ["conv2_1", "bn2_1", f"{activation}2_1"]
        assert model.get_layer(f"{activation}2_1").output.shape[-1] == 128


# --- each network: one step, saved, loaded elsewhere --------------------------------------------------------

FORMS = [
    *(("lenet5", {"variant": variant}) for variant in ("modern", "original", "concept")),
    *(("alexnet", {"variant": variant}) for variant in ("paper", "single_tower", "one_weird_trick", "notes")),
    ("zfnet", {}),
    ("googlenet", {"auxiliary_heads": True}),
    ("googlenet", {"variant": "batch_norm", "auxiliary_heads": True}),
    ("vgg11", {"lrn": True}),
    ("vgg13", {"batch_norm": True}),
    *((name, {}) for name in ("vgg16", "vgg16_c", "vgg19")),
    ("vgg11", {"batch_norm": True, "head": "gap"}),
    *((name, {}) for name in ("mlp", "go_policy", "speech_cnn", "text_cnn")),
]
LOAD_ALL = """
import sys, keras, numpy, kpipe.models
for path in sys.argv[1:]:
    logits = keras.models.load_model(path)(numpy.load(path + ".npy"))
    numpy.save(path + ".logits.npy", keras.ops.convert_to_numpy(logits))
"""


def train_one_step(name, options, policy):
    """The network after one step, with the images that it was trained on."""
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    height, width = (max(2, side) if name == "mlp" else side for side in MODELS[name].smallest_size)
    model = build(name, height, width, options)
    default_loss = MODELS[name].options(**options).default_loss
    # Eagerly: tracing forty networks would take minutes.
    model.compile(optimizer=keras.optimizers.SGD(1e-3), loss=make_loss(default_loss), run_eagerly=True)
    before = [weight.numpy() for weight in model.trainable_variables]
    images = random_images(2, *model.input_shape[1:])
    loss = model.train_on_batch(images, np.array([1, 3]))
    assert np.isfinite(loss)
    moved = [not np.array_equal(b, w.numpy()) for b, w in zip(before, model.trainable_variables, strict=True)]
    assert sum(moved) > len(moved) / 2
    return model, images


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """[(logits after one step, logits of the saved file in a fresh process)], as FORMS."""
    folder, ours = tmp_path_factory.mktemp("one_step"), {}
    for index, (name, options) in enumerate(FORMS):
        path = folder / f"{index}.keras"
        model, images = train_one_step(name, options, "float32")
        shape = model.input_shape[1:]
        network = {"name": name, "options": small(name, options), "input_shape": shape}
        classes = shape[0] * shape[1] if name == "go_policy" else 10
        save_portable(model, path, **network, classes=classes, normalization=NAMED["unit"])
        np.save(f"{path}.npy", images)
        ours[path] = model.predict_on_batch(images)
    subprocess.run([sys.executable, "-c", LOAD_ALL, *ours], check=True, capture_output=True, timeout=300)
    return [(logits, np.load(f"{path}.logits.npy")) for path, logits in ours.items()]


def form_name(index):
    return "-".join(map(str, FORMS[index]))


@pytest.mark.slow
@pytest.mark.parametrize("form", range(len(FORMS)), ids=form_name)
def test_one_step_saved_and_loaded_in_a_fresh_process(one_step, form):
    ours, fresh = one_step[form]
    # The saved network subtracts and divides in another order.
    np.testing.assert_allclose(fresh, ours, rtol=1e-6, atol=5e-6 * np.abs(ours).max())


@pytest.mark.slow
@pytest.mark.parametrize("form", range(len(FORMS)), ids=form_name)
def test_one_step_in_half_precision(form):
    name, options = FORMS[form]
    model, images = train_one_step(name, options, "mixed_bfloat16")
    logits = model.predict_on_batch(images)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}


@pytest.mark.parametrize(
    "name, options", [("vgg11", {"head": "gap", "batch_norm": True}), ("googlenet", {"auxiliary_heads": True})]
)
def test_a_network_with_a_global_average_is_kept_for_images_of_any_size(tmp_path, name, options):
    arguments = {"name": name, "options": options, "input_shape": (32, 32, 3), "classes": 4}
    save_portable(build_model(**arguments), tmp_path / "model.keras", **arguments, **CONSTANTS)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.input_shape == (None, None, None, 3)
    assert loaded(random_images(1, 57, 40, 3)).shape == (1, 4)
    assert not any(layer.name.startswith("auxiliary") for layer in loaded.layers)


def test_a_model_with_auxiliary_heads_can_be_saved_whole(tmp_path):
    model = googlenet((32, 32, 3), 4, auxiliary_heads=True)
    model.save(tmp_path / "whole.keras")
    loaded, images = keras.models.load_model(tmp_path / "whole.keras"), random_images(2, 32, 32, 3)
    assert type(loaded) is type(model)
    for mine, theirs in zip(model(images), loaded(images), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        (((16, 16, 3), 10), {}, r"^vgg16: expected an input of at least 17x17 pixels, got 16x16\.$"),
        (
            ((16, None, 3), 10),
            {"head": "gap"},
            r"^vgg16: expected an input of at least 17x17 pixels, got 16xNone\.$",
        ),
        (((32, 32, 3), 10), {"head": "conv"}, r"^vgg16\.head: expected one of fc, gap, got 'conv'$"),
        (((32, 32, 3), 10), {"width": 0}, "^vgg16.width: expected at least 1, got 0$"),
        (
            ((32, 32, 3), 10),
            {"head": "gap", "width": 512},
            "^vgg16.width: applies only when head is 'fc', it is 'gap'$",
        ),
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


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: lenet5(pooling="min"), "lenet5.pooling: expected one of max, average, got 'min'"),
        (lambda: lenet5(variant="new"), "lenet5.variant: expected one of modern, original, concept, got 'new'"),
        (
            lambda: lenet5(activation="gelu"),
            "lenet5.activation: expected one of relu, leaky_relu, sigmoid, tanh, scaled_tanh, maxout, got 'gelu'",
        ),
        (
            lambda: lenet5(variant="concept", pooling="average"),
            "lenet5.pooling: applies only when variant is 'modern', it is 'concept'",
        ),
        (lambda: lenet5((None, None, 1)), "lenet5: expected a known height and width before dense layers, got "),
        (
            lambda: alexnet(variant="new", width=0),
            "alexnet.variant: expected one of paper, single_tower, one_weird_trick, notes, got 'new'\n"
            "alexnet.width: expected at least 1, got 0",
        ),
        (lambda: alexnet(initializer="x"), "alexnet.initializer: expected one of paper, he, glorot, got 'x'"),
        (lambda: zfnet(variant="x"), "zfnet.variant: expected one of paper, wide, got 'x'"),
        (lambda: googlenet(variant="x"), "googlenet.variant: expected one of paper, batch_norm, got 'x'"),
        (lambda: mlp(depth=0), "mlp.depth: expected at least 1, got 0"),
        (lambda: go_policy(width=1.5), "go_policy.width: expected a whole number, got 1.5"),
        (lambda: speech_cnn(dropout=1.0), "speech_cnn.dropout: expected less than 1, got 1.0"),
        (lambda: text_cnn(hidden=0), "text_cnn.hidden: expected at least 1, got 0"),
        (lambda: googlenet((None, None, 3), auxiliary_heads=True), "googlenet: expected a known height and width"),
        (lambda: go_policy((9, 9, 3)), "go_policy: expected one class for each of the 9x9 = 81 points of the board"),
        (lambda: text_cnn((128, 2, 27)), "text_cnn: expected texts (length, 1, alphabet), got images (128, 2, 27)."),
    ],
)
def test_mistakes_of_other_networks(call, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        call()


def test_unknown_network():
    with pytest.raises(
        ValueError, match=r"^model: expected the name of a network, got 'vgg_16', did you mean 'vgg16'\?$"
    ):
        build_model("vgg_16", {}, input_shape=(32, 32, 3), classes=10)
    with pytest.raises(
        ValueError, match=r"^model: expected the name of a network, got 'resnet50' \(known: lenet5, alex"
    ):
        build_model("resnet50", {}, input_shape=(32, 32, 3), classes=10)


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
    assert [values.shape for values in layer._constants] == [constant, constant]


def test_standardize_takes_raw_bytes():
    images = random_images(2, 4, 4, 3).astype("uint8")
    outputs = Standardize(MEAN, STD)(images)
    np.testing.assert_allclose(outputs, (images - np.array(MEAN)) / np.array(STD), rtol=1e-5, atol=1e-6)


def test_standardize_survives_saving(tmp_path):
    model = build_model("lenet5", {}, input_shape=(12, 12, 3), classes=2, **CONSTANTS)
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


RANDOM = np.random.default_rng(9)
KINDS = {
    **NAMED,
    "standardize": CONSTANTS["normalization"],
    "mean_image": Normalization("mean_image", RANDOM.uniform(0, 255, (12, 12, 3)).astype("float32")),
    "zca": Normalization("whiten", np.float32(100 * np.ones(432)), matrix=RANDOM.normal(size=(432, 432)).astype("f")),
    "pca": Normalization("whiten", np.float32(100 * np.ones(432)), matrix=RANDOM.normal(size=(432, 7)).astype("f")),
}


def by_numpy(name, images):
    """float64, from the table of `Normalization`."""
    kind, images = KINDS[name], np.float64(images)
    if kind.kind == "whiten":
        rows = (images.reshape(len(images), -1) - kind.mean) @ np.float64(kind.matrix)
        return rows.reshape(len(images), 1, 1, 7) if name == "pca" else rows.reshape(images.shape)
    return ((images[..., ::-1] if name == "caffe" else images) - np.array(kind.mean)) / np.array(kind.std)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_every_normalization_is_computed_in_float32(name, portable, policy):
    keras.config.set_dtype_policy("float32" if portable else policy)
    inputs = keras.Input((12, 12, 3), dtype="float32")
    model = keras.Model(inputs, make_preprocessing(KINDS[name], portable=portable)(inputs))
    images = random_images(2, 12, 12, 3) * 0.9973
    outputs = model(images)
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    expected = by_numpy(name, np.float32(images))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert not model.trainable_weights


@pytest.mark.parametrize(
    "name, theirs", [("caffe", keras.applications.vgg16), ("imagenet", keras.applications.densenet)]
)
def test_the_named_normalizations_are_those_of_keras(name, theirs):
    images = random_images(2, 12, 12, 3)
    outputs = make_preprocessing(NAMED[name])(images)
    np.testing.assert_allclose(outputs, theirs.preprocess_input(images.copy()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("mean_image", "zca")), "caffe"]
)
def test_a_network_keeps_its_normalization_when_it_is_saved(tmp_path, name):
    arguments = {"name": "vgg11", "options": {"head": "gap"}, "input_shape": (32, 32, 3), "classes": 4}
    kind = KINDS[name]
    if name == "mean_image":
        kind = Normalization("mean_image", RANDOM.uniform(0, 255, (32, 32, 3)).astype("float32"))
    if name == "zca":
        kind = Normalization("whiten", np.float32(90 * np.ones(3072)), matrix=0.01 * np.eye(3072, dtype="float32"))
    model = build_model(**arguments, normalization=kind)
    images = random_images(2, 32, 32, 3)
    save_portable(model, tmp_path / "model.keras", **arguments, normalization=kind)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-5, atol=1e-6)
    assert loaded.input_shape == ((None, None, None, 3) if name == "caffe" else (None, 32, 32, 3))
    again = build_model(**arguments, normalization=kind)
    load_portable_weights(again, tmp_path / "model.keras")
    np.testing.assert_array_equal(again(images), model(images))


def test_mlp_sees_the_components_alone():
    model = build_model("mlp", {"width": 8}, input_shape=(12, 12, 3), classes=2, normalization=KINDS["pca"])
    assert model.get_layer("whiten").output.shape == (None, 1, 1, 7)
    assert model.get_layer("fc1").kernel.shape == (7, 8)


@pytest.mark.parametrize("name", KINDS)
def test_constants_in_a_file_are_the_same_numbers(tmp_path, name):
    save_normalization(tmp_path / "constants.npz", KINDS[name])
    assert [path.name for path in tmp_path.iterdir()] == ["constants.npz"]
    kept = load_normalization(tmp_path / "constants.npz", (12, 12, 3))
    assert kept.kind == KINDS[name].kind
    for mine, theirs in ((kept.mean, KINDS[name].mean), (kept.std, KINDS[name].std), (kept.matrix, KINDS[name].matrix)):
        np.testing.assert_array_equal(mine, theirs)
    fit_gray = load_normalization(tmp_path / "constants.npz", (12, 12, 1)) is not None
    assert fit_gray == (name in ("none", "unit"))


def test_a_damaged_file_of_constants_is_none(tmp_path):
    path = tmp_path / "constants.npz"
    assert load_normalization(path, (12, 12, 3)) is None
    save_normalization(path, KINDS["imagenet"])
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            kept = load_normalization(path, (12, 12, 3))
            assert kept is None or np.array_equal(
                [kept.mean, kept.std], [KINDS["imagenet"].mean, KINDS["imagenet"].std]
            )


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "affin"},
        {"mean": float("nan")},
        {"mean": "0"},
        {"mean": np.array([None])},
        {"mean": np.zeros(2)},
        {"std": np.ones(2)},
        {"matrix": np.eye(2)},
        {"kind": "whiten", "mean": np.zeros(432)},
        {"kind": "whiten", "mean": np.zeros(432), "matrix": np.eye(431)},
        {"kind": "mean_image", "mean": np.zeros((12, 12, 1))},
    ],
    ids=str,
)
def test_constants_that_do_not_fit_are_none(tmp_path, wrong):
    path, right = tmp_path / "constants.npz", {"kind": "affine", "mean": 0.0, "std": 1.0}
    np.savez(path, **right)
    assert load_normalization(path, (12, 12, 3)) is not None
    np.savez(path, **right | wrong)
    assert load_normalization(path, (12, 12, 3)) is None


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_raw_values_are_scaled_before_they_are_rounded(policy):
    keras.config.set_dtype_policy(policy)
    model = lenet5()
    images = random_images(2, 28, 28, 1) * 0.9973
    first = keras.Model(model.input, model.get_layer("scale").output)
    np.testing.assert_allclose(first(images), images / 255, rtol=1e-6)


def test_a_model_takes_bytes_and_floats_alike():
    model = build_model("lenet5", {}, input_shape=(28, 28, 1), classes=10, normalization=GRAY)
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

PLAIN_KERAS = """
import sys
sys.modules["kpipe"] = None  # importing it raises ImportError
import keras, numpy
for folder in sys.argv[2:]:
    model = keras.models.load_model(folder + "/model.keras")
    numpy.save(folder + "/logits.npy", keras.ops.convert_to_numpy(model(numpy.load(sys.argv[1]))))
"""


@pytest.mark.slow
def test_the_portable_file_needs_no_kpipe(tmp_path):
    images = random_images(3, 32, 32, 3)
    np.save(tmp_path / "images.npy", images)
    models, folders = [], []
    for normalization in (CONSTANTS["normalization"], NAMED["caffe"]):
        models.append(build_model(**ARGUMENTS, normalization=normalization))
        models[-1](images, training=True)
        folders.append(tmp_path / f"{len(folders)}")
        folders[-1].mkdir()
        (folders[-1] / ".model.part.keras").write_text("what a kill has left")
        save_portable(models[-1], folders[-1] / "model.keras", **ARGUMENTS, normalization=normalization)
        assert [entry.name for entry in folders[-1].iterdir()] == ["model.keras"]
    command = [sys.executable, "-I", "-c", PLAIN_KERAS, tmp_path / "images.npy", *folders]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    for model, folder in zip(models, folders, strict=True):
        expected = keras.ops.convert_to_numpy(model(images))
        tolerance = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(np.load(folder / "logits.npy"), expected, rtol=1e-6, atol=tolerance)


def test_the_portable_file_has_no_constraint(tmp_path):
    arguments = {"name": "zfnet", "options": small("zfnet", {"lrn": False}), "input_shape": (21, 21, 3), "classes": 2}
    model = build_model(**arguments, normalization=NAMED["unit"])
    assert model.get_layer("conv1").kernel_constraint
    save_portable(model, tmp_path / "model.keras", **arguments, normalization=NAMED["unit"])
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("conv1").kernel_constraint is None
    assert all(type(layer).__module__.startswith("keras.") for layer in loaded.layers)


def test_the_portable_file_is_float32_after_mixed_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    arguments = {"name": "lenet5", "options": {}, "input_shape": (28, 28, 1), "classes": 10}
    model = build_model(**arguments, normalization=GRAY)
    save_portable(model, tmp_path / "model.keras", **arguments, normalization=GRAY)
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
        save_portable(model, path, **arguments, normalization=NAMED["unit"])
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
