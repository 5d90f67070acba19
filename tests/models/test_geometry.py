"""Sizes, parameters, multiply-adds and receptive fields against the papers and published re-implementations."""

import functools
import math

import keras
import numpy as np
import pytest

from kpipe.catalog.networks import MODELS
from kpipe.errors import ConfigError
from kpipe.models.building import deferred_initialization, discard_variables
from kpipe.models.geometry import (
    TrainingMemory,
    count_macs,
    count_training_flops,
    estimate_training_memory,
    fitting_batch_size,
    measure,
)
from kpipe.models.googlenet import googlenet
from kpipe.models.lenet import lenet5
from kpipe.models.preprocessing import Whiten


@functools.cache
def measured(name, input_shape=None, classes=None, **options):
    """(rows by name, parameters, trainable parameters); the weights, half a gigabyte, are never made."""
    given = {"input_shape": input_shape, "classes": classes}
    with deferred_initialization():
        model = MODELS[name].load()(**{key: value for key, value in given.items() if value}, **options)
    discard_variables()
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return {row.name: row for row in measure(model)}, model.count_params(), trainable


# name, arguments beside the builder's defaults, trainable parameters, multiply-adds
PUBLISHED = [
    ("lenet5", {"input_shape": (28, 28, 1)}, 61_706, 416_520),
    ("lenet5", {"input_shape": (32, 32, 1)}, 61_706, 416_520),
    ("lenet5", {"input_shape": (32, 32, 3)}, 62_006, 651_720),
    ("lenet5", {"input_shape": (32, 32, 1), "variant": "original"}, 60_000, 326_520),
    ("alexnet", {}, 60_965_224, 724_406_816),
    ("alexnet", {"variant": "single_tower"}, 62_378_344, 1_135_256_096),
    ("alexnet", {"variant": "one_weird_trick"}, 61_100_840, 714_188_480),
    ("alexnet", {"variant": "notes", "classes": 10}, 56_454_730, 610_453_184),
    ("zfnet", {}, 62_357_608, 1_168_032_896),
    ("zfnet", {"variant": "wide"}, 107_627_624, 2_476_704_896),
    ("googlenet", {}, 6_998_552, 1_582_671_872),
    ("googlenet", {"auxiliary_heads": True}, 13_378_280, None),
    ("googlenet", {"auxiliary_heads": True, "classes": 10}, 10_334_030, None),
    ("googlenet", {"variant": "batch_norm"}, 6_624_904, None),
    ("googlenet", {"variant": "batch_norm", "auxiliary_heads": True}, 13_004_888, None),
    ("vgg16", {"classes": 10}, 134_301_514, None),
    ("vgg11", {}, 132_863_336, 7_609_090_048),
    ("vgg13", {}, 133_047_848, 11_308_466_176),
    ("vgg16", {}, 138_357_544, 15_470_264_320),
    ("vgg16_c", {}, 133_638_952, 11_770_888_192),
    ("vgg19", {}, 143_667_240, 19_632_062_464),
    ("vgg16", {"input_shape": (32, 32, 3), "classes": 10, "head": "gap"}, 14_719_818, 313_201_664),
    ("vgg16", {"input_shape": (32, 32, 3), "classes": 10, "width": 512}, None, 313_725_952),
    # cnn-trad-fpool3: 9.7 million multiplications, 244.2 thousand weights and 292 biases
    ("speech_cnn", {}, 244_516, 9_705_984),
]


@pytest.mark.parametrize("name, arguments, parameters, macs", PUBLISHED, ids=lambda value: str(value))
def test_published_numbers(name, arguments, parameters, macs):
    rows, _, trainable = measured(name, **arguments)
    if parameters is not None:
        assert trainable == parameters
    if macs is not None:
        assert count_macs(list(rows.values())) == macs


def test_networks_without_published_numbers_by_hand():
    five, three = 5 * 5, 3 * 3
    assert (
        measured("lenet5", variant="concept")[2] == (five + 1) * 3 + 6 + (five * 3 + 1) * 3 + 6 + (5 * 5 * 3 + 1) * 10
    )
    assert measured("mlp")[2] == (784 + 1) * 512 + (512 + 1) * 512 + (512 + 1) * 10
    hidden = (five * 48 + 1) * 192 + 11 * (three * 192 + 1) * 192
    assert measured("go_policy")[2] == hidden + 192 + 361
    convolutions = (7 * 70 + 1) * 256 + (7 * 256 + 1) * 256 + 4 * (3 * 256 + 1) * 256
    assert measured("text_cnn")[2] == convolutions + (34 * 256 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 4


def test_the_connections_of_lenet5_are_the_paper_s():
    """Section II.B counts every connection and every bias of every unit: 340,908."""
    rows, _, _ = measured("lenet5", (32, 32, 1), variant="original")
    units = {name: math.prod(rows[name].output) for name in ("c1", "s2", "c3", "s4", "c5", "f6")}
    counts = {name: rows[name].macs + units[name] for name in ("c1", "c3", "c5", "f6")}
    counts |= {name: 5 * units[name] for name in ("s2", "s4")} | {"output": rows["logits"].macs}
    assert counts == {
        "c1": 122_304, "s2": 5_880, "c3": 151_600, "s4": 2_000, "c5": 48_120, "f6": 10_164, "output": 840,
    }  # fmt: skip
    assert sum(counts.values()) == 340_908
    assert [rows[name].parameters for name in units] == [156, 12, 1_516, 32, 48_120, 10_164]


STAGES = [
    ("lenet5", {"input_shape": (32, 32, 1)}, {"c1": 28, "s2": 14, "c3": 10, "s4": 5}),
    ("alexnet", {}, {"conv1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "conv3": 13, "conv5": 13, "pool5": 6}),
    ("zfnet", {}, {"conv1": 110, "pool1": 55, "conv2": 26, "pool2": 13, "conv5": 13, "pool5": 6}),
    (
        "googlenet",
        {},
        {"conv1": 112, "pool1": 56, "conv2": 56, "inception_3a": 28, "inception_4a": 14, "inception_5b": 7},
    ),
    ("vgg16", {}, {"pool1": 112, "pool2": 56, "pool3": 28, "pool4": 14, "pool5": 7}),
]


@pytest.mark.parametrize("name, arguments, sides", STAGES, ids=lambda value: value if isinstance(value, str) else "")
def test_output_sizes_of_every_stage(name, arguments, sides):
    rows, _, _ = measured(name, **arguments)
    assert {layer: rows[layer].output[:2] for layer in sides} == {layer: (s, s) for layer, s in sides.items()}


@pytest.mark.parametrize(
    "name, layer, field, stride",
    [
        ("lenet5", "s4", 16, 4),
        ("alexnet", "pool5", 195, 32),
        ("zfnet", "pool5", 171, 32),
        ("vgg11", "pool5", 150, 32),
        ("vgg13", "pool5", 156, 32),
        ("vgg16", "pool5", 212, 32),
        ("vgg16_c", "pool5", 156, 32),
        ("vgg19", "pool5", 268, 32),
    ],
)
def test_receptive_fields(name, layer, field, stride):
    row = measured(name)[0][layer]
    assert (row.receptive_field, row.total_stride) == ((field, field), (stride, stride))


def test_the_receptive_field_is_what_the_gradient_sees():
    """Which pixels of the image move the middle position, asked of the network itself."""
    model = lenet5((40, 40, 1), activation="tanh", pooling="average")
    part = keras.Model(model.input, model.get_layer("s4").output)
    rows = {row.name: row for row in measure(model)}
    flat, dot = np.zeros((1, 40, 40, 1), "float32"), np.zeros((1600, 40, 40, 1), "float32")
    dot[np.arange(1600), np.arange(1600) // 40, np.arange(1600) % 40] = 255
    moved = np.abs(part.predict(dot, verbose=0) - part.predict(flat, verbose=0))[:, 3, 3].max(-1) > 0
    down, right = np.nonzero(moved.reshape(40, 40))
    assert (np.ptp(down) + 1, np.ptp(right) + 1) == rows["s4"].receptive_field


def test_the_parameters_of_every_layer_of_vgg16():
    rows, parameters, _ = measured("vgg16")
    counts = [row.parameters for row in rows.values() if row.parameters]
    assert counts == [
        1_792, 36_928, 73_856, 147_584, 295_168, 590_080, 590_080, 1_180_160,
        *[2_359_808] * 5, 102_764_544, 16_781_312, 4_097_000,
    ]  # fmt: skip
    assert sum(counts) == parameters
    convolutions = [row for name, row in rows.items() if name.startswith("conv")]
    assert rows["fc6"].parameters / parameters == pytest.approx(0.743, abs=5e-4)
    assert count_macs(convolutions) / count_macs(list(rows.values())) == pytest.approx(0.992, abs=5e-4)


def test_inception_rows_are_the_exact_numbers_of_table_1():
    rows, _, _ = measured("googlenet")
    blocks = {
        "3a": (163_696, 128_049_152), "3b": (388_736, 304_267_264), "4a": (376_176, 73_608_192),
        "4b": (449_160, 87_908_352), "4c": (510_104, 99_850_240), "4d": (605_376, 118_515_712),
        "4e": (868_352, 169_996_288), "5a": (1_043_456, 51_079_168), "5b": (1_444_080, 70_697_984),
    }  # fmt: skip
    for place, wanted in blocks.items():
        block = [row for name, row in rows.items() if name.startswith(f"inception_{place}")]
        assert (sum(row.parameters for row in block), count_macs(block)) == wanted


def test_auxiliary_heads_come_last_and_count_as_the_paper_s():
    model = googlenet(auxiliary_heads=True)
    rows = measure(model)
    names = [row.name for row in rows]
    assert names.index("logits") < names.index("auxiliary_4a_pool") < names.index("auxiliary_4d_pool")
    heads = [sum(row.parameters for row in rows if row.name.startswith(f"auxiliary_{p}")) for p in ("4a", "4d")]
    assert heads == [3_188_840, 3_190_888]


# --- other models -------------------------------------------------------------------------------------------


def small(*layers_, size=(32, 24, 3)):
    return {row.name: row for row in measure(keras.Sequential([keras.Input(size), *layers_]))}


def test_kinds_of_layers():
    layers = keras.layers
    rows = small(
        layers.Conv2D(4, (3, 5), strides=(2, 1), padding="same", name="wide"),
        layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="depthwise"),
        layers.SeparableConv2D(6, 3, padding="same", name="separable"),
        layers.Conv2DTranspose(5, 2, strides=2, name="transposed"),
        layers.GlobalAveragePooling2D(name="global"),
        layers.Dense(7, name="dense"),
    )
    assert (rows["wide"].output, rows["wide"].macs) == ((16, 24, 4), 16 * 24 * 3 * 5 * 3 * 4)
    assert (rows["wide"].receptive_field, rows["wide"].total_stride) == ((3, 5), (2, 1))
    assert rows["depthwise"].macs == 16 * 24 * 9 * 4
    assert rows["depthwise"].receptive_field == (3 + 4 * 2, 5 + 4)
    assert rows["separable"].macs == 16 * 24 * (9 * 4 + 4 * 6)
    assert rows["transposed"].macs == 16 * 24 * 4 * 6 * 5
    assert rows["transposed"].receptive_field is None
    assert rows["dense"].macs == 5 * 7


def test_kernels_are_those_of_the_layers():
    layers = keras.layers
    rows = small(
        layers.ZeroPadding2D(((0, 1), (2, 3)), name="pad"),
        layers.Conv2D(4, (3, 5), strides=(2, 1), groups=2, padding="same", name="wide"),
        layers.AveragePooling2D((2, 1), name="pool"),
        layers.ReLU(name="relu"),
        size=(32, 24, 2),
    )
    found = {name: (row.kernel, row.stride, row.padding, row.groups) for name, row in rows.items()}
    assert found == {
        "pad": (None, None, ((0, 1), (2, 3)), None),
        "wide": ((3, 5), (2, 1), "same", 2),
        "pool": ((2, 1), (2, 1), "valid", None),
        "relu": (None, None, None, None),
    }
    original, _, _ = measured("lenet5", variant="original")
    assert [original[name].padding for name in ("s2", "c3")] == ["valid", "valid"]


def test_branches_are_what_data_can_pass_by():
    images = keras.Input((8, 8, 3), name="images")
    convolution = functools.partial(keras.layers.Conv2D, 3, 1)
    x = convolution(name="stem")(images)
    inner = convolution(name="left")(x)
    twice = keras.layers.Add(name="inner")([inner, convolution(name="deep")(inner)])
    joined = keras.layers.Add(name="joined")([x, twice])
    side = convolution(name="side")(joined)
    rows = measure(keras.Model(images, [keras.layers.Flatten(name="flat")(joined), side]))
    assert [row.name for row in rows if row.is_in_branch] == ["left", "deep", "inner", "side"]
    inputs = {row.name: row.inputs for row in rows}
    assert (inputs["stem"], inputs["joined"], inputs["side"]) == (("images",), ("stem", "inner"), ("joined",))


def test_a_layer_that_is_used_twice_has_its_parameters_once():
    images, shared = keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3, padding="same", name="shared")
    rows = measure(keras.Model(images, keras.layers.Add(name="sum")([images, shared(shared(images))])))
    assert [(row.name, row.parameters) for row in rows] == [("shared", 84), ("shared", 0), ("sum", 0)]
    assert rows[0].macs == rows[1].macs == 64 * 81
    assert [row.receptive_field for row in rows] == [(3, 3), (5, 5), (5, 5)]


def test_a_model_inside_a_model_counts_as_one_layer():
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="convolution")], name="inner")
    [row] = measure(keras.Sequential([keras.Input((8, 8, 3)), inner]))
    assert (row.name, row.parameters, row.macs) == ("inner", 56, 36 * 54)


def test_whitening_mixes_the_whole_image():
    rows = small(Whiten(name="whiten"), keras.layers.Conv2D(2, 3), size=(4, 4, 3))
    assert (rows["whiten"].macs, rows["whiten"].receptive_field) == (48 * 48, None)


def test_what_cannot_be_measured():
    message = r"^measure: expected images of a known size \[B, H, W, C\], got \(None, None, None, 3\)\.$"
    with pytest.raises(ConfigError, match=message):
        measure(googlenet((None, None, 3), 10))
    with pytest.raises(ConfigError, match=r"got \(None, 5\)\.$"):
        measure(keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]))


def test_training_memory_by_hand():
    images = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 3, padding="same")(images)
    model = keras.Model(images, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    memory = estimate_training_memory(model, batch_size=10, optimizer_values=7)
    parameters, outputs = 20 + 99, (32 + 3, 32)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * parameters, 4 * parameters, 28)
    assert memory.activations == 10 * 4 * (outputs[0] + 2 * outputs[1])
    assert memory.total == 8 * parameters + 28 + memory.activations


def test_the_batch_that_fits_is_the_largest_whose_estimate_does():
    memory = TrainingMemory(weights=100, gradients=100, optimizer=200, activations=8 * 50)
    for available in (0, 400, 500, 563, 1000, 5000):
        batch_size = fitting_batch_size(memory, 8, available)
        assert batch_size == max(0, (int(0.8 * available) - 400) // 50)


def test_halved_precision_halves_the_activations():
    keras.config.set_dtype_policy("mixed_bfloat16")
    rows = {row.name: row for row in measure(lenet5())}
    assert rows["c1"].memory == 2 * 28 * 28 * 6
    assert rows["logits"].memory == 4 * 10


def test_operations_of_a_training_step_by_hand(without_weights):
    """Two for each multiply-add: forward, for the gradient of the weights, and for that of the input."""
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(images)  # 64 x 27 x 4
    x = keras.ops.relu(keras.layers.Conv2D(2, 1, name="second")(x))  # 64 x 4 x 2
    outputs = keras.layers.Dense(5, name="last")(keras.layers.Flatten()(x))  # 128 x 5
    model = keras.Model(images, outputs)
    first, second, last = 64 * 27 * 4, 64 * 4 * 2, 128 * 5
    assert count_training_flops(model) == 2 * (2 * first + 3 * second + 3 * last)
    model.get_layer("first").trainable = False
    assert count_training_flops(model) == 2 * (first + 2 * second + 3 * last)
    model.get_layer("second").trainable = False
    assert count_training_flops(model) == 2 * (first + second + 2 * last)
    assert count_training_flops(model, {"last"}) == 2 * 2 * last
    model.get_layer("first").trainable = True  # whose gradient runs through the frozen layer
    assert count_training_flops(model) == 2 * (2 * first + 2 * second + 3 * last)
