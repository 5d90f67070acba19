"""The mathematics of the explanations, on networks small enough to compute by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kpipe.errors import ConfigError
from kpipe.explaining.class_models import balance_l2, find_training_mean, maximize_classes
from kpipe.explaining.deconvnet import build_deconvnet, deconvolve
from kpipe.explaining.feature_maps import (
    choose_depths,
    compute_feature_maps,
    find_strongest,
    first_filters,
    list_stages,
)
from kpipe.explaining.gradients import grad_cam, saliency
from kpipe.explaining.heat_map import compute_heat_map, upsample
from kpipe.explaining.invariance import measure_invariance, transform
from kpipe.explaining.kernels import KERNELS, convolve
from kpipe.explaining.occlusion import occlude, positions_of
from kpipe.models import build_model
from kpipe.models.building import build_network
from kpipe.models.fully_convolutional import build_class_map
from kpipe.models.geometry import measure
from kpipe.models.layers import LocalResponseNormalization
from kpipe.models.preprocessing import NAMED, Normalization, make_preprocessing
from kpipe.models.structure import find_last_hidden, find_nodes

RANDOM = np.random.default_rng(0)


def network(*stack, shape=(8, 8, 1), classes=2):
    """A functional network of these layers, a mean over all positions, and a dense layer."""
    images = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    x = layers.Dense(classes, name="logits")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, x)


def images_of(count, shape=(8, 8, 1)):
    return RANDOM.uniform(0, 255, (count, *shape)).astype(np.float32)


# --- feature maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "first", "last", "count"),
    [
        ("lenet5", {}, "c1", "c3", 2),
        ("vgg11", {"width": 8, "batch_norm": True}, "relu1_1", "relu5_2", 8),
        ("vgg11", {"head": "gap"}, "conv1_1", "conv5_2", 8),
        ("googlenet", {}, "conv1", "inception_5b", 12),
        ("alexnet", {"width": 8}, "conv1", "conv5", 5),
    ],
)
def test_the_stages_of_a_network(name, options, first, last, count):
    stages = list_stages(build_model(name, options, input_shape=(64, 64, 3), classes=3))
    assert (stages[0], stages[-1], len(stages)) == (first, last, count)


def test_a_network_without_convolutions_has_no_feature_maps():
    model = build_model("mlp", {}, input_shape=(8, 8, 1), classes=2)
    with pytest.raises(ConfigError, match="^expected a network with convolutions, got mlp without any$"):
        list_stages(model)
    with pytest.raises(ConfigError, match="^expected a network with convolutions, got mlp without any$"):
        first_filters(model)


def test_feature_maps_are_what_the_layers_compute():
    model = build_model("lenet5", {}, input_shape=(28, 28, 1), classes=10)
    images = images_of(3, (28, 28, 1))
    depths = choose_depths(model)
    found = compute_feature_maps(model, images, list(depths.values()))
    assert list(depths) == ["low", "high"]
    direct = keras.Model(model.inputs[0], model.get_layer(depths["high"]).output)(images)
    np.testing.assert_array_equal(found[depths["high"]], direct)
    assert first_filters(model).shape == (5, 5, 1, 6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convv", r"^layer: expected a layer of the network, got 'convv', did you mean 'conv'\?$"),
        ("logits", r"^layer: expected one with feature maps \[B, H, W, F\], got logits, whose output is \(None, 2\)$"),
    ],
)
def test_a_layer_without_feature_maps(name, message):
    model = network(layers.Conv2D(2, 3, name="conv"))
    with pytest.raises(ConfigError, match=message):
        compute_feature_maps(model, images_of(1), [name])


def test_the_strongest_images_of_a_feature_map_are_those_of_a_sort():
    model = network(layers.Conv2D(3, 3, name="low"), layers.Conv2D(5, 3, name="conv"))
    images = images_of(37)
    maps = compute_feature_maps(model, images, ["conv"])["conv"]
    seen = []
    batches = [images[:20], images[20:30], images[30:]]
    of_layers = find_strongest(model, batches, {"low": [2], "conv": [4, 1]}, most=6, advance=seen.append)
    assert seen == [20, 10, 7]
    assert list(of_layers) == ["low", "conv"] and of_layers["low"].positions.shape == (1, 6, 2)
    found = of_layers["conv"]
    for row, number in enumerate([4, 1]):
        order = np.argsort(-maps[..., number].max((1, 2)))[:6]
        np.testing.assert_array_equal(found.numbers[row], order)
        np.testing.assert_array_equal(found.images[row], images[order])
        for place, image in enumerate(order):
            top, left = found.positions[row, place]
            assert maps[image, top, left, number] == pytest.approx(found.values[row, place], rel=1e-5)


def test_what_strongest_images_need():
    model = network(layers.Conv2D(5, 3, name="conv"))
    with pytest.raises(ConfigError, match="^maps: expected numbers of 0 to 4, got 5$"):
        find_strongest(model, [images_of(1)], {"conv": [5]})
    with pytest.raises(ConfigError, match="^images: expected at least one, got none$"):
        find_strongest(model, [], {"conv": [0]})


# --- deconvnet ------------------------------------------------------------------------------------------------------


def input_gradient(model, images, layer, number, position):
    images = tf.constant(images)
    part = keras.Model(model.inputs[0], model.get_layer(layer).output)
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = part(images)[:, position[0], position[1], number]
    return tape.gradient(value, images).numpy() * value.numpy()[:, None, None, None]


def test_without_relu_and_pooling_it_is_the_gradient():
    """Times the activation, which is the signal that goes back."""
    model = network(
        layers.Rescaling(1 / 255), layers.Conv2D(4, 3, padding="same"), layers.Conv2D(3, 3, strides=2, name="top")
    )
    images = images_of(2)
    found = deconvolve(build_deconvnet(model, "top"), images, [2, 2], np.array([[1, 2], [1, 2]]))
    expected = input_gradient(model, images, "top", 2, (1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_the_switches_by_hand():
    """Each maximum of a pooling goes back to where it was, and only there."""
    model = network(layers.MaxPooling2D(2, name="pool"), shape=(4, 4, 1))
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    image[0, 0, 0] = 50
    found = deconvolve(build_deconvnet(model, "pool"), image, [0], np.array([[0, 0]]))
    expected = np.zeros((1, 4, 4, 1))
    expected[0, 0, 0] = 50
    np.testing.assert_array_equal(found, expected)
    found = deconvolve(build_deconvnet(model, "pool"), image, [0], np.array([[1, 0]]))
    assert found[0, 3, 1] == 13 and np.count_nonzero(found) == 1


def test_a_rectification_goes_by_the_sign_of_the_signal():
    """One pixel, filters 1 and -1, then weights -2 and 3 (signal -2v, 3v): the gradient and the deconvnet differ."""
    model = network(
        layers.Conv2D(2, 1, use_bias=False, activation="relu", name="conv"),
        layers.Conv2D(1, 1, use_bias=False, name="top"),
        shape=(1, 1, 1),
    )
    model.get_layer("conv").set_weights([np.array([[[[1.0, -1.0]]]])])
    model.get_layer("top").set_weights([np.array([[[[-2.0], [3.0]]]])])
    image = np.full((1, 1, 1, 1), 5, np.float32)
    # Forward: 5 and 0 after the ReLU, so the value v is -10. Back: 20 and -30. The rectification keeps the 20, which
    # the first filter brings to the pixel; the gradient would do so too, but would also keep a negative signal there.
    np.testing.assert_allclose(deconvolve(build_deconvnet(model, "top"), image, [0]), np.full((1, 1, 1, 1), 20))
    model.get_layer("top").set_weights([np.array([[[[2.0], [3.0]]]])])
    # v is 10, back 20 and 30: the second ReLU was closed forward, so the gradient is 20; the deconvnet's is 20 - 30.
    np.testing.assert_allclose(deconvolve(build_deconvnet(model, "top"), image, [0]), np.full((1, 1, 1, 1), -10))
    np.testing.assert_allclose(input_gradient(model, image, "top", 0, (0, 0)), np.full((1, 1, 1, 1), 20))


@pytest.mark.parametrize(
    "activation",
    [layers.ReLU(max_value=6), layers.ReLU(negative_slope=0.5), layers.ReLU(threshold=7), layers.LeakyReLU()],
)
def test_other_rectifications_keep_their_values_and_pass_the_gradient(activation):
    """Values from -10 to 10 lie on both sides of 0, 6 and 7."""
    model = network(layers.Conv2D(2, 1, name="conv"), activation, layers.Conv2D(3, 3, name="top"))
    model.get_layer("conv").set_weights([np.array([[[[1.0, -1.0]]]]), np.array([0.0, 3.0])])
    images = images_of(2) / 25
    deconvnet = build_deconvnet(model, "top")
    np.testing.assert_allclose(deconvnet([images]), compute_feature_maps(model, images, ["top"])["top"], rtol=1e-5)
    found = deconvolve(deconvnet, images, [2, 2], np.array([[1, 2], [1, 2]]))
    np.testing.assert_allclose(found, input_gradient(model, images, "top", 2, (1, 2)), rtol=1e-4, atol=1e-6)


def test_a_normalization_scales_back_as_it_has_scaled_forward():
    """Also where the value is 0: k is 2, so the scale is 2 ** -0.75."""
    model = network(
        LocalResponseNormalization(name="lrn"), layers.Conv2D(1, 2, use_bias=False, name="top"), shape=(2, 2, 1)
    )
    model.get_layer("top").set_weights([np.ones((2, 2, 1, 1))])
    image = np.array([[0, 0], [1e-3, 0]], np.float32)[None, ..., None]
    found = deconvolve(build_deconvnet(model, "top"), image, [0])
    np.testing.assert_allclose(found, 1e-3 * 2**-1.5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["low", "high"])
@pytest.mark.parametrize("side", [46, 47])
def test_the_receptive_field_alone_is_deconvolved_like_the_whole_image(layer, side):
    """In the middle and at corners, where paddings count, of even and odd sides."""
    model = network(
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.Conv2D(16, 3, padding="same", activation="relu", name="low"),
        layers.MaxPooling2D(2),
        layers.Conv2D(4, 3, padding="same", name="high"),
        shape=(side, side, 2),
    )
    [geometry] = [row for row in measure(model) if row.name == layer]
    height, width = geometry.output[:2]
    positions = np.array([(height // 2, width // 2), (0, 0), (0, width - 1), (height - 1, width - 1), (height - 1, 1)])
    images, deconvnet = images_of(len(positions), (side, side, 2)), build_deconvnet(model, layer)
    seen = []
    maps = compute_feature_maps(model, images, [layer])[layer]
    maps = [int(each[tuple(position)].argmax()) for each, position in zip(maps, positions, strict=True)]
    found = deconvolve(deconvnet, images, maps, positions, geometry=geometry, advance=seen.append)
    whole = deconvolve(deconvnet, images, maps, positions)
    assert seen == [1] * 5 and all(image.any() for image in whole)
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


def test_a_layer_of_an_auxiliary_head_is_none_of_the_network():
    model = build_model("googlenet", {"auxiliary_heads": True}, input_shape=(64, 64, 3), classes=3)
    [name] = [layer.name for layer in model.layers if layer.name.startswith("auxiliary_4a") and "pool" in layer.name]
    for each in (name, "images"):
        with pytest.raises(ConfigError, match=f"^layer: expected a layer of the network, got '{each}'"):
            grad_cam(model, images_of(1, (64, 64, 3)), [0], each)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("alexnet", {"width": 8}),
        ("vgg11", {"width": 8, "batch_norm": True}),
        ("googlenet", {}),
        ("lenet5", {"activation": "tanh"}),
    ],
)
def test_every_family_can_be_deconvolved(name, options):
    model = build_model(name, options, input_shape=(64, 64, 3), classes=3)
    images = images_of(2, (64, 64, 3))
    layer = list_stages(model)[-1]
    # Weights of chance leave some maps at 0.
    maps = compute_feature_maps(model, images, [layer])[layer].max((1, 2)).argmax(-1)
    logits = model(images)
    found = deconvolve(build_deconvnet(model, layer), images, maps)
    assert found.shape == images.shape and np.isfinite(found).all()
    assert all(image.any() for image in found)
    np.testing.assert_array_equal(model(images), logits)


# --- gradients ------------------------------------------------------------------------------------------------------


def test_saliency_is_the_largest_change_of_the_score_by_a_channel():
    model = keras.Sequential([keras.Input((2, 2, 3)), layers.Flatten(), layers.Dense(2, name="logits")])
    model = keras.Model(model.inputs, model.outputs)
    kernel = RANDOM.normal(size=(12, 2)).astype(np.float32)
    model.get_layer("logits").set_weights([kernel, np.zeros(2)])
    found = saliency(model, images_of(2, (2, 2, 3)), [0, 1])
    for row, label in enumerate([0, 1]):
        np.testing.assert_allclose(found[row], np.abs(kernel[:, label]).reshape(2, 2, 3).max(-1), rtol=1e-6)


def test_grad_cam_by_hand():
    """With a mean over positions, the weight of a map is its weight in the dense layer, over the positions."""
    model = network(layers.Conv2D(3, 1, name="conv"), shape=(4, 4, 1))
    images = images_of(1, (4, 4, 1))
    maps = compute_feature_maps(model, images, ["conv"])["conv"]
    weights = model.get_layer("logits").kernel.numpy()[:, 1]
    heat = np.maximum((maps * weights).sum(-1), 0)
    np.testing.assert_allclose(grad_cam(model, images, [1]), heat / max(heat.max(), 1e-30), rtol=1e-4, atol=1e-6)


# --- occlusion ------------------------------------------------------------------------------------------------------


def test_positions_of_squares_end_at_the_edge():
    np.testing.assert_array_equal(positions_of(12, 3, 2), [0, 2, 4, 5, 7, 9])
    np.testing.assert_array_equal(positions_of(3, 3, 2), [0])


def test_occlusion_finds_the_only_corner_that_counts():
    images = keras.Input((12, 12, 1))
    maps = layers.Conv2D(1, 1, name="conv", use_bias=False)(images)
    model = keras.Model(images, layers.Dense(2, name="logits")(layers.Flatten()(maps)))
    model.get_layer("conv").set_weights([np.ones((1, 1, 1, 1))])
    kernel = np.zeros((12, 12, 2))
    kernel[9:, 9:, 1] = 0.01
    model.get_layer("logits").set_weights([kernel.reshape(144, 2), np.array([10.0, 0.0])])
    image = np.full((12, 12, 1), 20, np.uint8)
    image[9:, 9:] = 255
    seen = []
    found = occlude(model, image, 1, side=3, stride=3, gray=0, batch_size=5, advance=seen.append)
    assert sum(seen) == 16 and max(seen) == 5
    assert found.whole > 0.99
    np.testing.assert_array_equal(found.predictions, [[1] * 4, [1] * 4, [1] * 4, [1, 1, 1, 0]])
    assert found.probabilities[3, 3] < 0.01 and np.delete(found.probabilities.ravel(), 15).min() > 0.99
    # Squares side by side cover the image, so their map does, too.
    assert found.extent == (-0.5, 11.5, 11.5, -0.5)
    # The sum of the map falls by the pixels that are covered.
    assert found.whole_activation == pytest.approx(image.sum())
    assert found.activations[0, 0] == pytest.approx(image.sum() - 9 * 20)
    assert found.activations[3, 3] == pytest.approx(image.sum() - 9 * 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 9}, "^side: expected 1 to 8 pixels, got 9$"),
        ({"stride": 0}, "^stride: expected at least 1 pixel, got 0$"),
    ],
)
def test_squares_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        occlude(network(layers.Conv2D(1, 3)), images_of(1)[0], 0, **options)


# --- class models ---------------------------------------------------------------------------------------------------


def test_a_class_model_is_where_gradient_and_regularization_balance():
    """Of a linear score w I, the maximum of w I - l2 |(I - m) / 255|^2 is m + 255^2 w / (2 l2)."""
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2, name="logits")])
    model = keras.Model(model.inputs, model.outputs)
    kernel = np.array([[0, 0.02], [0, -0.01], [0, 0.005], [0, 0.0]], np.float32)
    model.get_layer("logits").set_weights([kernel, np.zeros(2)])
    l2 = 20.0
    seen = []
    [found] = maximize_classes(model, [1], l2=l2, steps=600, step_size=0.3, advance=seen.append)
    assert seen == [1] * 600
    expected = 127.5 + 255**2 * kernel[:, 1] / (2 * l2)
    np.testing.assert_allclose(found.image.ravel(), expected, atol=0.5)
    # Climbs of one batch go their own ways.
    other, free = maximize_classes(model, [0, 1], l2=[l2, 0], steps=600)
    np.testing.assert_array_equal(other.image, np.full((2, 2, 1), 127.5))
    np.testing.assert_allclose(free.image.ravel()[:3], [255, 0, 255])
    assert free.score > found.score and free.probability > 0.5


def test_a_class_model_leaves_a_start_at_which_all_gradients_are_0():
    """A convolution that sees edges alone is flat around an image of one color."""
    edges = network(layers.Conv2D(1, 3, activation="relu", use_bias=False, name="conv"))
    edges.get_layer("conv").set_weights([np.float32([-1, 0, 1] * 3).reshape(3, 3, 1, 1)])
    edges.get_layer("logits").set_weights([np.float32([[1, -1]]), np.zeros(2)])
    flat, climbed = (maximize_classes(edges, [0], noise=noise, steps=20)[0] for noise in (0.0, 10.0))
    assert flat.score == 0 and np.ptp(flat.image) == 0
    assert climbed.score > 50 and np.ptp(climbed.image) > 50


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_regularization_holds_a_class_model_whatever_the_size_of_the_logits(scale):
    """A linear score has its balance at this distance."""
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(2, name="logits")])
    model = keras.Model(model.inputs, model.outputs)
    kernel = RANDOM.normal(size=(16, 2)).astype(np.float32)
    model.get_layer("logits").set_weights([scale * kernel, np.zeros(2)])
    start = {"mean": 127.5, "noise": 10.0}
    l2 = balance_l2(model, [0, 1], **start, distance=20.0)
    for found in maximize_classes(model, [0, 1], **start, l2=l2, steps=400, step_size=0.5):
        assert np.sqrt(np.mean(np.square(found.image - 127.5))) == pytest.approx(20, rel=0.05)


MEANS = {
    "affine": Normalization("affine", [10.0, 20.0, 30.0], [60.0, 60.0, 60.0]),
    "one number": Normalization("affine", 33.0, 70.0),
    "caffe": Normalization("caffe", [30.0, 20.0, 10.0]),
    "mean_image": Normalization("mean_image", np.arange(192.0).reshape(8, 8, 3)),
    "whiten": Normalization("whiten", np.arange(192.0), matrix=np.eye(192)),
}


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", MEANS)
def test_a_network_knows_the_mean_of_its_training_images(name, portable):
    """An image of this mean is normalized to 0."""
    preprocessing = make_preprocessing(MEANS[name], portable=portable)
    model = build_network("mlp", {}, (8, 8, 3), 2, preprocessing)
    image = np.broadcast_to(find_training_mean(model), (1, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(preprocessing(image), 0, atol=1e-5)


def test_a_network_that_subtracts_no_mean():
    for name in ("none", "unit"):
        model = build_network("mlp", {}, (8, 8, 3), 2, make_preprocessing(NAMED[name]))
        assert find_training_mean(model) is None
    assert find_training_mean(network(layers.Conv2D(1, 3))) is None


def test_classes_that_are_not_there():
    with pytest.raises(ConfigError, match="^label: expected 0 to 1, got 2$"):
        maximize_classes(network(layers.Conv2D(1, 3)), [1, 2])
    with pytest.raises(ConfigError, match="^expected a network for images of one size, got one for any size$"):
        maximize_classes(network(layers.Conv2D(1, 3), shape=(None, None, 1)), [0])


# --- invariance -----------------------------------------------------------------------------------------------------


def test_transformations_are_those_of_numpy():
    image = images_of(1, (9, 9, 2))[0]
    np.testing.assert_allclose(transform(image, "shift", 2)[:, 2:], image[:, :-2], rtol=1e-5)
    np.testing.assert_allclose(transform(image, "rotation", 90), np.rot90(image), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(transform(image, "scale", 2)[4, 4], image[4, 4], rtol=1e-5)
    np.testing.assert_allclose(transform(image, "scale", 2)[2, 2], image[3, 3], rtol=1e-5)


def test_a_mean_over_positions_does_not_see_a_shift_of_a_dot():
    model = network(
        layers.Conv2D(2, 3, padding="same", name="low"),
        layers.Conv2D(2, 3, padding="same", name="high"),
        shape=(16, 16, 1),
    )
    image = np.zeros((16, 16, 1), np.float32)
    image[8, 8] = 255
    found = measure_invariance(model, image, 1, "shift", [-2, 0, 2])
    assert found.low[1] == found.high[1] == 0 and found.low[0] > 1 and found.high[2] > 1
    np.testing.assert_allclose(found.probabilities, found.probabilities[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("lenet5", {}, "f6"),
        ("lenet5", {"variant": "original"}, "f6"),
        ("alexnet", {"width": 8}, "fc7"),
        ("vgg11", {"width": 8}, "fc7"),
        ("vgg11", {"head": "gap"}, None),
        ("googlenet", {"auxiliary_heads": True}, None),
    ],
)
def test_the_last_features_are_those_of_the_last_hidden_layer(name, options, layer, without_weights):
    channels = 1 if "variant" in options else 3
    model = build_model(name, options, input_shape=(32, 32, channels), classes=10)
    found = find_last_hidden(model)
    assert (found is None) == (layer is None)
    if layer:
        before = {node.operation.name for node in find_nodes(model.inputs, [found])}
        weighted = [each.name for each in model.layers if each.weights and each.name in before]
        assert weighted[-1] == layer


def test_features_of_a_hidden_layer_move_as_it_does():
    images = keras.Input((16, 16, 1))
    x = layers.Flatten()(layers.Conv2D(2, 3, name="conv")(images))
    x = layers.Dropout(0.5)(layers.Dense(3, activation="relu", name="hidden")(x))
    model = keras.Model(images, layers.Dense(2, name="logits")(x))
    image = images_of(1, (16, 16, 1))[0]
    found = measure_invariance(model, image, 1, "shift", [0, 3])
    hidden = keras.Model(images, model.get_layer("hidden").output)
    at_0, at_3 = hidden(np.stack([image, transform(image, "shift", 3)])).numpy()
    np.testing.assert_allclose(found.high, [0, np.linalg.norm(at_3 - at_0)], rtol=1e-4, atol=1e-3)


def test_an_unknown_change():
    with pytest.raises(ConfigError, match=r"^change: expected a known name, got 'shfit', did you mean 'shift'\?$"):
        measure_invariance(network(layers.Conv2D(1, 3)), images_of(1)[0], 0, "shfit")


# --- kernels --------------------------------------------------------------------------------------------------------


def test_kernels_do_what_they_are_named_after():
    image = np.full((9, 9, 3), 100, np.uint8)
    for name, response in (("blur", 100), ("sharpen", 100), ("edges", 0), ("vertical edges", 0)):
        np.testing.assert_allclose(convolve(image, KERNELS[name])[2:-2, 2:-2], response, atol=1e-3)
    image = np.zeros((12, 12, 1), np.uint8)
    image[4:8, 3:7, 0] = KERNELS["tail"] > 0
    image[0, :, 0] = 1
    # A window of four: its second row and column are the center.
    assert np.unravel_index(convolve(image, KERNELS["tail"])[..., 0].argmax(), (12, 12)) == (5, 4)


# --- heat map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_upsampling_keeps_lines_straight(stride):
    """A bilinear interpolation of a ramp is a ramp, and of a constant a constant."""
    ramp = np.arange(5, dtype=np.float32)[None, :, None] * np.ones((4, 1, 1), np.float32)
    found = upsample(np.concatenate([ramp, np.full_like(ramp, 7)], axis=-1), (stride, stride), (4 * stride, 5 * stride))
    assert found.shape == (4 * stride, 5 * stride, 2)
    np.testing.assert_allclose(found[..., 1], 7, rtol=1e-5)
    middle = found[:, stride:-stride, 0]
    np.testing.assert_allclose(np.diff(middle, axis=1), 1 / stride, rtol=1e-4)
    expected = (np.arange(5 * stride) + 0.5) / stride - 0.5
    np.testing.assert_allclose(middle[0], expected[stride:-stride], rtol=1e-4)


def test_positions_lie_in_the_middle_of_the_image():
    maps = np.array([0, 9, 0], np.float32)[None, :, None] * np.ones((2, 1, 1), np.float32)
    found = upsample(maps, (3, 3), (10, 15))
    assert found.shape == (10, 15, 1)
    np.testing.assert_allclose(found[5, :, 0], [0, 0, 0, 0, 0, 3, 6, 9, 6, 3, 0, 0, 0, 0, 0], atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("lenet5", {}), ("vgg11", {"head": "gap"})])
def test_of_its_own_size_a_heat_map_says_what_the_network_says(name, options):
    """With one position, or with several whose mean it is."""
    model = build_model(name, options, input_shape=(32, 32, 3), classes=3)
    image = images_of(1, (32, 32, 3))[0]
    logits = build_class_map(model)(image[None])
    np.testing.assert_allclose(np.mean(logits, axis=(1, 2)), model(image[None]), rtol=1e-3, atol=1e-4)
    found = compute_heat_map(model, np.tile(image, (1, 2, 1)))
    assert found.shape == (32, 64, 3)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-4)


def test_a_heat_map_finds_where_the_class_is():
    """Bright pixels are class 1, which a linear network sees in 4x4 pixels."""
    images = keras.Input((4, 4, 1))
    x = layers.Flatten()(layers.Conv2D(1, 1, name="conv")(images))
    model = keras.Model(images, layers.Dense(2, name="logits")(x))
    model.get_layer("conv").set_weights([np.ones((1, 1, 1, 1)), np.zeros(1)])
    model.get_layer("logits").set_weights([np.stack([np.zeros(16), np.full(16, 0.01)], 1), np.array([20.0, 0.0])])
    image = np.zeros((16, 24, 1), np.float32)
    image[4:12, 14:22] = 255
    found = compute_heat_map(model, image)[..., 1]
    assert found[8, 18] > 0.99 and found[:, :10].max() < 0.01 and found[0].max() < 0.2


def test_a_heat_map_of_too_small_an_image():
    model = build_model("lenet5", {}, input_shape=(32, 32, 3), classes=3)
    said = "^image: expected at least 32x32 pixels, got 40x31. Scale it up, as the network has seen its images$"
    with pytest.raises(ConfigError, match=said):
        compute_heat_map(model, np.zeros((40, 31, 3)))
