from typing import Literal, get_args, get_origin

import keras
import numpy as np
import pytest

from kpipe.catalog.networks import MODELS
from kpipe.errors import ConfigError
from kpipe.models.building import build_model
from kpipe.models.portable import save_portable
from kpipe.models.preprocessing import NAMED
from kpipe.models.structure import features_and_head, last_fixed_output

# Keras 3.15 reads TensorFlow's variables with NumPy 2 in a way that NumPy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

FC = ("flatten", "fc6", "drop6", "fc7", "drop7", "logits")
DROPOUT_FIRST = ("flatten", "drop6", "fc6", "drop7", "fc7", "logits")
GAP = ("gap", "logits")
INCEPTION = ("gap", "dropout", "logits")
AUXILIARY = tuple(
    f"auxiliary_{place}_{layer}"
    for place in ("4a", "4d")
    for layer in ("pool", "1x1", "1x1_bn", "1x1_relu", "flatten", "fc", "dropout", "logits")
)
WIDTH = {"width": 16}
# Network, options, input shape, classes; the last feature layer, its output, the head in any order.
NETWORKS = [
    ("lenet5", {}, (28, 28, 1), 10, "s4", (5, 5, 16), ("flatten", "c5", "f6", "logits")),
    ("lenet5", {"variant": "original"}, (28, 28, 1), 10, "s4_tanh", (5, 5, 16),
     ("c5", "c5_tanh", "flatten", "f6", "f6_tanh", "logits")),
    ("lenet5", {"variant": "concept"}, (28, 28, 1), 10, "s4_sigmoid", (5, 5, 3), ("flatten", "logits")),
    ("alexnet", {"variant": "paper"} | WIDTH, (64, 64, 3), 10, "pool5", (1, 1, 256), FC),
    ("alexnet", {"variant": "single_tower"} | WIDTH, (64, 64, 3), 10, "pool5", (1, 1, 256), FC),
    ("alexnet", {"variant": "one_weird_trick"} | WIDTH, (64, 64, 3), 10, "pool5", (1, 1, 256), DROPOUT_FIRST),
    ("alexnet", {"variant": "notes"} | WIDTH, (64, 64, 3), 10, "pool4", (1, 1, 256), DROPOUT_FIRST),
    ("zfnet", {"variant": "paper"} | WIDTH, (64, 64, 3), 10, "pool5", (1, 1, 256), FC),
    ("zfnet", {"variant": "wide"} | WIDTH, (64, 64, 3), 10, "pool5", (1, 1, 512), FC),
    ("googlenet", {"variant": "paper"}, (32, 32, 3), 10, "inception_5b", (1, 1, 1024), INCEPTION),
    ("googlenet", {"variant": "batch_norm", "auxiliary_heads": True}, (32, 32, 3), 10, "inception_5b", (1, 1, 1024),
     INCEPTION + AUXILIARY),
    *((name, dict(WIDTH), (32, 32, 3), 10, "pool5", (1, 1, 512), FC) for name in MODELS if name.startswith("vgg")),
    ("vgg11", {"head": "gap", "batch_norm": True}, (32, 32, 3), 10, "pool5", (1, 1, 512), GAP),
    ("mlp", {"depth": 1} | WIDTH, (28, 28, 1), 10, "drop1", (16,), ("logits",)),
    ("go_policy", {"depth": 4, "width": 8}, (9, 9, 3), 81, "conv4", (9, 9, 8), ("conv5", "position_bias", "logits")),
    ("speech_cnn", {}, (40, 32, 1), 4, "conv2", (8, 4, 64), ("flatten", "linear", "fc", "dropout", "logits")),
    ("text_cnn", {"width": 8, "hidden": 8}, (128, 1, 27), 4, "pool6", (1, 1, 8),
     ("flatten", "fc7", "drop7", "fc8", "drop8", "logits")),
]  # fmt: skip
all_networks = pytest.mark.parametrize(
    "name, options, input_shape, classes, last, shape, head", NETWORKS, ids=[f"{row[0]}-{row[1]}" for row in NETWORKS]
)


def names(layers):
    return [layer.name for layer in layers]


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def test_every_form_of_every_network_is_listed():
    for name, row in MODELS.items():
        listed = [options for network, options, *_ in NETWORKS if network == name]
        assert listed, name
        field = row.options.model_fields.get("variant")
        for variant in get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ():
            assert any(options.get("variant", field.default) == variant for options in listed), (name, variant)


@pytest.mark.usefixtures("without_weights")
@all_networks
def test_features_end_where_the_head_begins(name, options, input_shape, classes, last, shape, head):
    model = build_model(name, options, input_shape=input_shape, classes=classes)
    parts = features_and_head(model, name, options)
    assert parts.features[0].name == "images"
    assert parts.features[-1].name == last
    assert parts.output is parts.features[-1].output
    assert parts.output.shape == (None, *shape)
    assert sorted(names(parts.head)) == sorted(head)
    assert sorted(names(parts.features + parts.head)) == sorted(names(model.layers))
    order = names(model.layers)
    assert names(parts.features) == [layer for layer in order if layer not in head]
    assert names(parts.head) == [layer for layer in order if layer in head]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    loaded = features_and_head(again, name, options)
    assert (names(loaded.features), names(loaded.head)) == (names(parts.features), names(parts.head))


@pytest.mark.parametrize("normalization", ["unit", pytest.param("caffe", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name, options, input_shape",
    [
        ("lenet5", {"variant": "original"}, (28, 28, 3)),
        ("vgg11", {"head": "gap"}, (32, 32, 3)),
        pytest.param("googlenet", {"auxiliary_heads": True}, (32, 32, 3), marks=pytest.mark.slow),
    ],
)
def test_a_model_from_a_file_is_divided_in_the_same_way(tmp_path, name, options, input_shape, normalization):
    arguments = {"options": options, "input_shape": input_shape, "classes": 4, "normalization": NAMED[normalization]}
    model = build_model(name, **arguments)
    save_portable(model, tmp_path / "model.keras", name=name, **arguments)
    model.save(tmp_path / "whole.keras")
    ours = features_and_head(model, name, options)
    whole = features_and_head(keras.models.load_model(tmp_path / "whole.keras"), name, options)
    portable = features_and_head(keras.models.load_model(tmp_path / "model.keras"), name, options)
    assert names(whole.features) == names(portable.features) == names(ours.features)
    assert names(whole.head) == names(ours.head)
    assert names(portable.head) == [name for name in names(ours.head) if not name.startswith("auxiliary")]


def test_the_head_of_the_features_gives_the_logits():
    model = build_model("vgg11", {"width": 8}, input_shape=(32, 32, 3), classes=4)
    for _ in range(2):  # also after its layers have been called on other tensors
        parts = features_and_head(model, "vgg11", {"width": 8})
        extractor = keras.Model(model.input, parts.output)
        features = x = keras.Input(extractor.output_shape[1:])
        for layer in parts.head:
            x = layer(x)
        images = random_images(2, 32, 32, 3)
        np.testing.assert_array_equal(keras.Model(features, x)(extractor(images)), model(images))


@pytest.mark.parametrize(
    "network, options, message",
    [
        ("vgg_11", {}, r"^model: expected the name of a network, got 'vgg_11', did you mean 'vgg11'\?$"),
        ("vgg11", {"head": "gab"}, r"^vgg11\.head: expected one of fc, gap, got 'gab'"),
        (
            "vgg11",
            {"head": "gap"},
            r"^features_and_head: expected a model with the layer 'gap', where the head of vgg11 begins with these "
            r"options, got 'mine' without it\. Give the network and the options that it was built with\.$",
        ),
    ],
)
def test_mistakes(network, options, message):
    images = keras.Input((8, 8, 1))
    model = keras.Model(images, keras.layers.Flatten(name="flatten")(images), name="mine")
    with pytest.raises(ConfigError, match=message):
        features_and_head(model, network, options)


@pytest.mark.usefixtures("without_weights")
@pytest.mark.parametrize(
    ("network", "options", "shape", "more", "last"),
    [
        ("vgg11", {"head": "gap"}, (17, 17, 3), (), "gap"),
        ("vgg11", WIDTH | {"batch_norm": True}, (17, 17, 3), (), "flatten"),
        ("vgg11", WIDTH, (17, 17, 3), ("fc6",), "fc6"),
        ("vgg11", WIDTH, (17, 17, 3), ("fc7",), "flatten"),
        ("alexnet", {"variant": "one_weird_trick"} | WIDTH, (64, 64, 3), ("fc6",), "flatten"),
        ("googlenet", {"variant": "batch_norm"}, (32, 32, 3), (), "gap"),
        ("lenet5", {}, (28, 28, 1), ("c5", "f6"), "f6"),
    ],
)
def test_the_last_fixed_output_comes_before_dropout_and_before_what_is_trained(network, options, shape, more, last):
    model = build_model(network, options, input_shape=shape, classes=3)
    division = features_and_head(model, network, options)
    fixed = [layer.name for layer in division.features if layer.weights]
    assert last_fixed_output(model, [*fixed, *more]) is model.get_layer(last).output
    assert last_fixed_output(model, fixed[1:]) is not model.get_layer(last).output


@pytest.mark.usefixtures("without_weights")
def test_nothing_is_fixed_for_heads_that_branch_off_the_features():
    options = {"auxiliary_heads": True}
    model = build_model("googlenet", options, input_shape=(32, 32, 3), classes=3)
    assert last_fixed_output(model, [layer.name for layer in model.layers]) is None
