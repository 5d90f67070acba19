"""The worked numbers of the lecture notes against the real layers, and the page that says where each thing is.

docs/notes.md maps rows of the notes to experiments, commands and tests.
"""

import ast
import functools
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kpipe.cli import cli
from kpipe.models.alexnet import alexnet
from kpipe.models.geometry import measure
from kpipe.models.lenet import lenet5
from kpipe.models.mlp import mlp
from kpipe.models.preprocessing import Standardize
from kpipe.models.vgg import vgg16
from kpipe.training.losses import make_loss

ROOT = Path(__file__).parents[1]


def convolve(image, kernel, **options):
    """One feature map of keras.layers.Conv2D without bias: [H, W] and [k, k] to [H', W']."""
    image, kernel = np.asarray(image, "float32"), np.asarray(kernel, "float32")
    layer = layers.Conv2D(1, kernel.shape, use_bias=False, **options)
    layer.build((None, *image.shape, 1))
    layer.set_weights([kernel[..., None, None]])
    return layer(image[None, ..., None]).numpy()[0, ..., 0]


def shape_after(*layers_, size):
    return keras.Sequential([keras.Input(size), *layers_]).output_shape[1:]


def gradients_of(layer, inputs, error):
    """The gradients of the layer's input and weights, where `error` [B, H', W', C] is that of its output."""
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(layer(inputs) * error)
    return [g.numpy() for g in tape.gradient(total, [inputs, *layer.trainable_weights])]


def random_numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# --- softmax and its loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "probabilities, label, loss",
    [
        ([0.1, 0.15, 0.05, 0.6, 0.1], 4, 0.5108),
        ([0.15, 0.2, 0.4, 0.1, 0.15], 4, 2.3026),
        ([0.05, 0.15, 0.4, 0.3, 0.1], 4, 1.2040),
    ],
)
def test_softmax_losses(probabilities, label, loss):
    logits = np.log([probabilities]).astype("float32")
    np.testing.assert_allclose(keras.ops.softmax(logits)[0], probabilities, rtol=1e-6)
    classes_from_zero = np.array([label - 1])
    assert float(make_loss("cross_entropy")(classes_from_zero, logits)) == pytest.approx(loss, abs=5e-5)


def test_the_second_example_predicts_class_three():
    assert np.argmax([0.15, 0.2, 0.4, 0.1, 0.15]) + 1 == 3


def test_softmax_is_between_zero_and_one_and_sums_to_one():
    for logits in (random_numbers(5, 7), np.array([[1000.0, 0.0, -1000.0]], "float32")):
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


def test_the_long_and_the_short_form_of_the_loss_agree():
    logits, label = random_numbers(1, 3), 1  # three classes, the second is true
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))[0]
    long_form = -np.sum(np.eye(3)[label] * np.log(probabilities))
    assert long_form == pytest.approx(-math.log(probabilities[label]), rel=1e-6)
    assert float(make_loss("cross_entropy")(np.array([label]), logits)) == pytest.approx(long_form, rel=1e-5)


# --- sizes and parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("m, n, s", [(5, 5, 3), (28, 20, 5), (7, 9, 1)])
def test_a_valid_convolution_leaves_m_minus_s_plus_one(m, n, s):
    assert shape_after(layers.Conv2D(1, s), size=(m, n, 1)) == (m - s + 1, n - s + 1, 1)


@pytest.mark.parametrize(
    "width, kernel, padding, stride", [(32, 5, 2, 1), (227, 11, 0, 4), (7, 3, 1, 2), (28, 5, 0, 1)]
)
def test_the_size_formula(width, kernel, padding, stride):
    found = shape_after(layers.ZeroPadding2D(padding), layers.Conv2D(1, kernel, stride), size=(width, width, 1))
    assert found[0] == (width - kernel + 2 * padding) // stride + 1


def test_ten_pixels_kernel_three_stride_three_give_three():
    assert shape_after(layers.Conv2D(1, 3, 3), size=(10, 10, 1)) == (3, 3, 1)


def test_sixty_four_kernels_on_a_color_image():
    layer = layers.Conv2D(64, 5, padding="same")
    assert shape_after(layer, size=(32, 32, 3)) == (32, 32, 64)
    assert layer.count_params() == 4_864


def test_feature_maps_are_stacked_and_kernels_are_as_deep_as_their_input():
    assert shape_after(layers.Conv2D(1, 5), size=(32, 32, 3)) == (28, 28, 1)
    six, ten = layers.Conv2D(6, 5), layers.Conv2D(10, 5)
    assert shape_after(six, ten, size=(32, 32, 3)) == (24, 24, 10)
    assert six.kernel.shape == (5, 5, 3, 6)
    assert ten.kernel.shape == (5, 5, 6, 10)
    assert shape_after(layers.Conv2D(12, 3, padding="same"), size=(32, 32, 3)) == (32, 32, 12)


def test_four_kernels_of_three_slices_are_summed_over_the_slices():
    image, layer = random_numbers(1, 6, 6, 3), layers.Conv2D(4, 3, use_bias=False)
    feature_maps = layer(image).numpy()[0]
    kernel = layer.kernel.numpy()
    for number in range(4):
        slices = [convolve(image[0, ..., c], kernel[..., c, number]) for c in range(3)]
        np.testing.assert_allclose(feature_maps[..., number], sum(slices), rtol=1e-4, atol=1e-5)


def test_valid_loses_the_last_column_and_same_does_not():
    assert shape_after(layers.MaxPooling2D(2, 2, padding="valid"), size=(5, 5, 1)) == (2, 2, 1)
    assert shape_after(layers.Conv2D(1, 2, 2, padding="valid"), size=(5, 5, 1)) == (2, 2, 1)
    assert shape_after(layers.Conv2D(1, 2, 2, padding="same"), size=(5, 5, 1)) == (3, 3, 1)
    image = np.zeros((5, 5))
    image[4, 4] = 1
    assert convolve(image, np.ones((2, 2)), strides=2, padding="valid").sum() == 0
    assert convolve(image, np.ones((2, 2)), strides=2, padding="same").sum() == 1


def test_a_kernel_of_three_has_nine_weights_and_a_bias():
    layer = layers.Conv2D(1, 3)
    layer.build((None, 8, 8, 1))
    assert [math.prod(weight.shape) for weight in layer.weights] == [9, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_of_lenet5_has_kernels_of_five(channels):
    c1 = lenet5((28, 28, channels)).get_layer("c1")
    assert c1.count_params() == 6 * (25 * channels + 1)  # 156 for gray images, not 54


@pytest.mark.parametrize("depth, single", [(2, 5), (3, 7)])
def test_small_kernels_see_as_much_with_fewer_parameters(depth, single):
    images = keras.Input((16, 16, 8))
    stacked = keras.Sequential([images, *(layers.Conv2D(8, 3, use_bias=False) for _ in range(depth))])
    alone = keras.Sequential([images, layers.Conv2D(8, single, use_bias=False)])
    fields = [measure(model)[-1].receptive_field for model in (stacked, alone)]
    assert fields == [(single, single)] * 2
    assert stacked.output_shape == alone.output_shape
    assert stacked.count_params() == depth * 9 * 64  # 18 or 27 C^2
    assert alone.count_params() == single * single * 64  # 25 or 49 C^2


def test_full_local_and_shared_connections():
    """A million hidden units on 1000x1000 pixels: 10^12, 10^8 where each sees 10x10, 10^4 for 100 shared filters."""
    dense, shared = layers.Dense(100, use_bias=False), layers.Conv2D(100, 10, use_bias=False)
    dense.build((None, 1000))
    shared.build((None, 1000, 1000, 1))
    assert dense.count_params() * 1000 * 10_000 == 10**12
    assert shared.count_params() == 10**4
    assert 10**6 * 10 * 10 == 10**8


def test_more_kernels_make_a_thicker_output_and_more_parameters():
    counts = [layers.Conv2D(filters, 3) for filters in (4, 8)]
    depths = [shape_after(layer, size=(8, 8, 3))[-1] for layer in counts]
    assert depths == [4, 8]
    assert counts[1].count_params() == 2 * counts[0].count_params()


def test_a_convolution_of_one_pixel_changes_channels_only():
    assert shape_after(layers.Conv2D(16, 1), size=(9, 7, 64)) == (9, 7, 16)


def test_sharing_saves_parameters_against_the_dense_baseline():
    assert lenet5().count_params() < mlp().count_params() / 10


# --- pooling ------------------------------------------------------------------------------------------------


def test_twenty_pixels_in_windows_of_ten_are_two():
    assert shape_after(layers.MaxPooling2D(10), size=(20, 20, 1)) == (2, 2, 1)


def test_the_maximum_of_each_window():
    image = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]], "float32")
    pooled = layers.MaxPooling2D(2)(image[None, ..., None]).numpy()[0, ..., 0]
    np.testing.assert_array_equal(pooled, [[6, 8], [3, 4]])
    mean = layers.AveragePooling2D(2)(image[None, ..., None]).numpy()[0, ..., 0]
    np.testing.assert_array_equal(mean, [[3.25, 5.25], [2, 2]])


@pytest.mark.parametrize("pool", [layers.MaxPooling2D, layers.AveragePooling2D])
def test_pooling_has_no_parameters_and_keeps_the_channels(pool):
    layer = pool(2)
    assert shape_after(layer, size=(8, 8, 5)) == (4, 4, 5)  # a quarter of the positions is left
    assert layer.count_params() == 0


def test_overlapping_windows():
    pools = {overlapping: alexnet((64, 64, 3), 2, width=8, overlapping=overlapping) for overlapping in (True, False)}
    sizes = {overlapping: model.get_layer("pool1").pool_size for overlapping, model in pools.items()}
    assert sizes == {True: (3, 3), False: (2, 2)}


def test_maximum_and_relu_may_change_places():
    features = random_numbers(1, 8, 8, 3)
    pool = layers.MaxPooling2D(2)
    np.testing.assert_array_equal(pool(keras.ops.relu(features)), keras.ops.relu(pool(features)))


def test_a_maximum_does_not_feel_a_shift_within_its_window():
    image = np.zeros((1, 8, 8, 1), "float32")
    image[0, 2, 2] = 1
    shifted = np.roll(image, 1, axis=2)
    np.testing.assert_array_equal(layers.MaxPooling2D(2)(image), layers.MaxPooling2D(2)(shifted))


# --- convolution --------------------------------------------------------------------------------------------

BITS = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]


def test_a_cross_slid_over_an_image():
    np.testing.assert_array_equal(convolve(BITS, [[1, 0, 1], [0, 1, 0], [1, 0, 1]]), [[4, 3, 4], [2, 4, 3], [2, 3, 4]])


def test_with_a_stride_of_two_every_second_product_is_left():
    kernel = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    np.testing.assert_array_equal(convolve(BITS, kernel, strides=2), [[4, 4], [2, 4]])


def test_fixed_kernels():
    step = np.repeat([[0.0] * 4 + [9.0] * 4], 8, axis=0)
    blurred = convolve(step, np.full((3, 3), 1 / 9))
    np.testing.assert_allclose(blurred[0], [0, 0, 3, 6, 9, 9], atol=1e-5)
    sharpened = convolve(step, [[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    np.testing.assert_allclose(sharpened[0], [0, 0, -9, 18, 9, 9], atol=1e-5)
    edges = convolve(step, [[-1, 0, 1]] * 3)
    np.testing.assert_allclose(edges[0], [0, 0, 27, 27, 0, 0], atol=1e-5)
    across = convolve(step.T, [[-1, 0, 1]] * 3)
    np.testing.assert_allclose(across, 0, atol=1e-5)


def test_a_detector_responds_where_its_pattern_is():
    tail = np.array([[0, 0, 30, 0], [0, 0, 30, 30], [0, 30, 30, 0], [30, 30, 0, 0]], "float32")
    image = np.zeros((16, 16), "float32")
    image[9:13, 2:6] = tail
    image[0:2, 5:14] = 30  # a back, not a tail
    response = convolve(image, tail)
    assert np.unravel_index(response.argmax(), response.shape) == (9, 2)
    assert response.max() > 2 * response[:6].max()


def test_a_convolution_is_a_sparse_dense_layer_with_shared_weights():
    image, kernel = random_numbers(6, 6), random_numbers(3, 3)
    matrix = np.zeros((36, 16), "float32")
    for row in range(4):
        for column in range(4):
            place = np.zeros((6, 6), "float32")
            place[row : row + 3, column : column + 3] = kernel
            matrix[:, 4 * row + column] = place.ravel()
    dense = layers.Dense(16, use_bias=False)
    dense.build((None, 36))
    dense.set_weights([matrix])
    np.testing.assert_allclose(dense(image.reshape(1, 36)).numpy().reshape(4, 4), convolve(image, kernel), rtol=1e-4)
    assert np.count_nonzero(matrix) == 16 * 9
    assert len(np.unique(matrix[matrix != 0])) == 9


def test_a_shifted_image_gives_a_shifted_feature_map():
    image = np.zeros((1, 20, 20, 1), "float32")
    image[0, 5:9, 5:9, 0] = random_numbers(4, 4)
    layer = layers.Conv2D(3, 5, activation="relu")
    np.testing.assert_allclose(layer(np.roll(image, (3, 2), (1, 2))), np.roll(layer(image), (3, 2), (1, 2)), atol=1e-6)


def test_relu_is_the_larger_of_zero_and_its_input():
    x = random_numbers(50)
    np.testing.assert_array_equal(keras.activations.relu(x), np.maximum(0, x))


# --- back-propagation ---------------------------------------------------------------------------------------


def test_the_kernel_s_gradient_is_the_input_convolved_with_the_error():
    image, error = random_numbers(1, 6, 6, 1), random_numbers(1, 4, 4, 1)
    layer = layers.Conv2D(1, 3)
    layer.build(image.shape)
    _, kernel_gradient, bias_gradient = gradients_of(layer, image, error)
    by_hand = convolve(image[0, ..., 0], error[0, ..., 0])
    np.testing.assert_allclose(kernel_gradient[..., 0, 0], by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias_gradient, error.sum(), rtol=1e-4)


def test_the_error_goes_back_through_the_flipped_kernel():
    image, error = random_numbers(1, 6, 6, 1), random_numbers(1, 4, 4, 1)
    layer = layers.Conv2D(1, 3, use_bias=False)
    layer.build(image.shape)
    back, _ = gradients_of(layer, image, error)
    flipped = layer.kernel.numpy()[::-1, ::-1, 0, 0]
    by_hand = convolve(np.pad(error[0, ..., 0], 2), flipped)
    np.testing.assert_allclose(back[0, ..., 0], by_hand, rtol=1e-4, atol=1e-5)


def test_a_worked_example_of_back_propagation():
    """A 3x3 image of 1..9, a 2x2 kernel, an error of 1 at one output: the kernel's gradient is what it saw."""
    image = np.arange(1, 10, dtype="float32").reshape(1, 3, 3, 1)
    error = np.zeros((1, 2, 2, 1), "float32")
    error[0, 1, 0] = 1
    layer = layers.Conv2D(1, 2, use_bias=False)
    layer.build(image.shape)
    layer.set_weights([np.array([[1, 2], [3, 4]], "float32")[..., None, None]])
    np.testing.assert_array_equal(layer(image)[0, ..., 0], [[37, 47], [67, 77]])
    back, kernel_gradient = gradients_of(layer, image, error)
    np.testing.assert_array_equal(kernel_gradient[..., 0, 0], [[4, 5], [7, 8]])
    np.testing.assert_array_equal(back[0, ..., 0], [[0, 0, 0], [1, 2, 0], [3, 4, 0]])


def test_mean_pooling_spreads_the_error_over_its_window():
    error = random_numbers(1, 2, 2, 1)
    [back] = gradients_of(layers.AveragePooling2D(2), random_numbers(1, 4, 4, 1), error)
    np.testing.assert_allclose(back, np.kron(error[0, ..., 0], np.full((2, 2), 1 / 4))[None, ..., None], rtol=1e-6)


def test_max_pooling_sends_the_error_to_the_maximum_alone():
    image, error = random_numbers(1, 4, 4, 1), random_numbers(1, 2, 2, 1)
    [back] = gradients_of(layers.MaxPooling2D(2), image, error)
    pooled = np.kron(layers.MaxPooling2D(2)(image).numpy()[0, ..., 0], np.ones((2, 2)))
    by_hand = np.where(image[0, ..., 0] == pooled, np.kron(error[0, ..., 0], np.ones((2, 2))), 0)
    np.testing.assert_allclose(back[0, ..., 0], by_hand, rtol=1e-6)
    assert np.count_nonzero(back) == 4


def test_two_features_of_different_ranges_come_to_one():
    images = np.array([[0, 0], [5, 5_000], [10, 10_000]], "float32").reshape(3, 1, 1, 2)
    scaled = Standardize(mean=[0, 0], std=[10, 10_000])(images)
    np.testing.assert_allclose(scaled.numpy().reshape(3, 2), [[0, 0], [0.5, 0.5], [1, 1]], rtol=1e-6)


# --- whole networks -----------------------------------------------------------------------------------------


def test_one_image_needs_a_batch_axis():
    image, model = random_numbers(28, 28, 1), lenet5()
    assert model(image[None]).shape == (1, 10)
    assert model.predict(image[None], verbose=0).argmax(-1).shape == (1,)


def test_a_color_image_of_224_pixels_passes_the_network_of_the_notes():
    assert alexnet(classes=10, variant="notes")(random_numbers(1, 224, 224, 3)).shape == (1, 10)


def test_activations_follow_every_layer_of_vgg_but_the_last():
    model = vgg16((32, 32, 3), 10, width=8)
    weighted = [layer for layer in model.layers if layer.weights]
    assert [layer.activation.__name__ for layer in weighted] == ["relu"] * 15 + ["linear"]
    assert len(weighted) == 16
    kernels = {(layer.kernel_size, layer.strides, layer.padding) for layer in weighted[:13]}
    assert kernels == {((3, 3), (1, 1), "same")}


# --- the page -----------------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "notes.md"
ALL_ROWS = 190
MISTAKES = 17


def rows_of(heading):
    text = PAGE.read_text(encoding="utf-8").split(f"## {heading}")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in cells if re.fullmatch(r"[0-4]\.\d\d|\d+", row[0])]


@functools.cache
def names_in(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def check_reference(reference):
    """A test, an experiment or a file must exist, and so must the verb and file of a command."""
    path, _, test = reference.partition("::")
    if test:
        assert test in names_in(ROOT / path), reference
    elif reference.startswith("kpipe "):
        verb, *words = reference.split()[1:]
        assert verb in cli.commands, reference
        for word in words:
            if word.endswith(".yaml"):
                assert (ROOT / word).exists(), reference
    else:
        assert (ROOT / path).exists(), reference


def test_the_page_names_what_exists():
    rows = [row for note in range(5) for row in rows_of(f"Note 00{note}")]
    numbers = [row[0] for row in rows]
    assert len(numbers) == len(set(numbers))
    for number, _, where in rows:
        references = re.findall(r"`([^`]+)`", where)
        assert references, f"{number} names nothing"
        for reference in references:
            check_reference(reference)
    print(f"docs/notes.md covers {len(rows)} of {ALL_ROWS} rows")
    assert f"{len(rows)} of the notes' {ALL_ROWS} rows" in PAGE.read_text(encoding="utf-8")


def test_the_page_names_every_mistake_of_the_notes():
    rows = rows_of("Where the notes are wrong")
    assert [int(row[0]) for row in rows] == list(range(1, MISTAKES + 1))
    for row in rows:
        for reference in re.findall(r"`([^`]+)`", row[-1]):
            check_reference(reference)
