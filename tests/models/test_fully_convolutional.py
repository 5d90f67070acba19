"""Networks over the whole of a larger image."""

import keras
import numpy as np
import pytest

from kpipe.errors import ConfigError
from kpipe.models import build_model
from kpipe.models.fully_convolutional import build_fully_convolutional
from kpipe.models.preprocessing import NAMED, make_neutral

RANDOM = np.random.default_rng(0)


def images_of(height, width):
    return RANDOM.integers(0, 256, (2, height, width, 3)).astype("float32")


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("alexnet", {"width": 8, "initializer": "he"}, 26),
        ("zfnet", {"width": 8, "initializer": "he", "activation": "maxout"}, 40),
        ("vgg11", {"width": 8, "batch_norm": True}, 33),
        ("googlenet", {"auxiliary_heads": True}, 17),
        pytest.param("alexnet", {"width": 64, "initializer": "he"}, 224, marks=pytest.mark.slow),
        pytest.param("alexnet", {"variant": "notes", "width": 8, "initializer": "he"}, 64, marks=pytest.mark.slow),
        pytest.param("zfnet", {"variant": "wide", "width": 8, "initializer": "he"}, 64, marks=pytest.mark.slow),
        pytest.param("vgg16", {"head": "gap"}, 32, marks=pytest.mark.slow),
        pytest.param("vgg19", {"width": 8, "activation": "scaled_tanh"}, 64, marks=pytest.mark.slow),
        pytest.param("googlenet", {"variant": "batch_norm", "initializer": "he"}, 64, marks=pytest.mark.slow),
    ],
)
def test_of_an_image_of_the_trained_size_the_logits_are_the_networks(name, options, size):
    model = build_model(name, options, input_shape=(size, size, 3), classes=7, normalization=NAMED["imagenet"])
    dense, images = build_fully_convolutional(model), images_of(size, size)
    outputs = model(images, training=False)
    logits = outputs[0] if isinstance(outputs, list) else outputs
    assert np.ptp(logits) > 0.01
    np.testing.assert_allclose(dense(images), logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
    assert dense(images_of(size + 33, size + 8)).shape == (2, 7)


def test_of_a_larger_image_they_are_the_mean_over_its_positions():
    inputs = keras.Input((8, 10, 3))
    x = keras.layers.Conv2D(4, 3, activation="tanh")(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Flatten()(keras.layers.MaxPooling2D(2)(x))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(6, activation="relu", use_bias=False)(x))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    images = images_of(12, 12)
    corners = [(top, left) for top in (0, 2, 4) for left in (0, 2)]
    logits = [model(images[:, top : top + 8, left : left + 10]) for top, left in corners]
    np.testing.assert_allclose(build_fully_convolutional(model)(images), np.mean(logits, axis=0), rtol=1e-4, atol=1e-5)


def test_a_network_that_needs_one_size_says_why():
    mean_image = make_neutral("mean_image", (25, 25, 3))
    model = build_model("alexnet", {"width": 8}, input_shape=(25, 25, 3), classes=2, normalization=mean_image)
    said = r"^protocol: expected for dense a network that normalizes .* pixel \(mean_image\)\. Use another protocol$"
    with pytest.raises(ConfigError, match=said):
        build_fully_convolutional(model)
    model = build_model("lenet5", {"variant": "original"}, input_shape=(32, 32, 1), classes=10)
    said = (
        r"^protocol: expected for dense a network of convolutions, poolings and dense .* with the layer \w+ \(.*"
        r"\. Use another protocol$"
    )
    with pytest.raises(ConfigError, match=said):
        build_fully_convolutional(model)
    inputs = keras.Input((4, 4, 3))
    flat = [keras.layers.Flatten()(x) for x in (inputs, keras.layers.MaxPooling2D(2)(inputs))]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(flat)))
    with pytest.raises(
        ConfigError,
        match=r"^protocol: expected for dense a network with one Flatten layer at most, got several\. Use another",
    ):
        build_fully_convolutional(model)
