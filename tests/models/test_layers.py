import hashlib
import inspect
import re
from dataclasses import dataclass
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

from kpipe.catalog.networks import Activation
from kpipe.errors import ConfigError
from kpipe.models import layers, preprocessing
from kpipe.models.layers import (
    FanInUniform,
    GroupedConv2D,
    LocalResponseNormalization,
    Maxout,
    PartialConv2D,
    PositionBias,
    RBFOutput,
    ScaledTanh,
    TrainableSubsampling,
    activated,
    check_arguments,
    digit_codes,
    make_activation,
)
from kpipe.models.lenet import C3_TABLE
from kpipe.models.preprocessing import Standardize, SubtractMeanImage, Whiten
from kpipe.models.zfnet import MaxRMS

MIXED = ("mixed_bfloat16", "mixed_float16")
ROUNDING = {"mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}
"""The relative error of one number."""


@dataclass(frozen=True)
class Case:
    layer: type[keras.layers.Layer]
    options: dict
    output: tuple[int, ...]
    input: tuple[int, ...] = (2, 6, 5, 4)

    @property
    def always_float32(self) -> bool:
        """Whether the layer computes in float32 by design, whatever the global policy is."""
        return self.layer is RBFOutput or self.layer.__module__ == preprocessing.__name__

    def inputs(self) -> np.ndarray:
        raw = self.layer.__module__ == preprocessing.__name__
        return draw(*self.input, low=0, high=254.7) if raw else draw(*self.input)

    def built(self) -> keras.layers.Layer:
        """With weights that are not those of the start: zeros and identities would hide mistakes."""
        layer = self.layer(**self.options)
        layer.build(self.input)
        layer.set_weights([draw(*weight.shape, seed=1) for weight in layer.weights])
        return layer


LRN = {"size": 3, "k": 1.5, "alpha": 0.2, "beta": 0.5, "alpha_times": "mean"}
SAME = (2, 6, 5, 4)
CASES = {
    "scaled_tanh": Case(ScaledTanh, {"amplitude": 1.5, "slope": 0.5}, SAME),
    "maxout": Case(Maxout, {"pieces": 4}, (2, 6, 5, 1)),
    "lrn": Case(LocalResponseNormalization, LRN, SAME),
    "lrn_of_the_paper": Case(LocalResponseNormalization, {}, SAME),
    "grouped": Case(GroupedConv2D, {"filters": 6, "kernel_size": (3, 3), "groups": 2}, (2, 4, 3, 6)),
    "partial": Case(PartialConv2D, {"table": [[0, 1], [3], [0, 2, 3]], "kernel_size": 3}, (2, 4, 3, 3)),
    "subsampling": Case(TrainableSubsampling, {}, (2, 3, 2, 4)),
    "rbf": Case(RBFOutput, {"classes": 3}, (2, 3), (2, 5)),
    "rbf_trained": Case(RBFOutput, {"classes": 3, "trainable_codes": True}, (2, 3), (2, 5)),
    "position_bias": Case(PositionBias, {}, SAME),
    "standardize": Case(Standardize, {"mean": [99.5, 120.0, 0.0, 7.0], "std": 60.0}, SAME),
    "mean_image": Case(SubtractMeanImage, {}, SAME),
    "whiten": Case(Whiten, {}, SAME),
    "whiten_components": Case(Whiten, {"components": 3}, (2, 1, 1, 3)),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def same_weights_each_time():
    keras.utils.set_random_seed(0)


def draw(*shape, low=-2.0, high=2.0, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


def array(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def dtype_of(tensor) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)


def run_with_gradients(layer, x):
    """The output, and the gradients of the input and of each weight for one fixed gradient of the output."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x)
        total = tf.reduce_sum(outputs * tf.cast(draw(*outputs.shape, seed=2), outputs.dtype))
    gradients = tape.gradient(total, [x, *(weight.value for weight in layer.trainable_weights)])
    return array(outputs), [array(gradient) for gradient in gradients]


# --- every layer --------------------------------------------------------------------------------------------


def layer_classes() -> set[type]:
    return {
        member
        for module in (layers, preprocessing)
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, keras.layers.Layer) and member.__module__ == module.__name__
    }


def test_every_layer_has_a_case():
    assert {case.layer for case in CASES.values()} == layer_classes()


@pytest.mark.parametrize("layer_class", sorted(layer_classes(), key=lambda member: member.__name__))
def test_every_option_of_a_layer_has_a_case(layer_class):
    left_out = ("self", "dtype", "options", "mean_initializer", "matrix_initializer")  # the last are not in the config
    parameters = inspect.signature(layer_class.__init__).parameters if "__init__" in vars(layer_class) else {}
    own = {name: p.default for name, p in parameters.items() if name not in left_out}
    given = [case.options for case in CASES.values() if case.layer is layer_class]
    assert set(own) == {key for options in given for key, value in options.items() if key in own and value != own[key]}


# Keras's harness trains on a generator without shuffle=False, and trains layers that have nothing to train.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning")
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
@all_cases
def test_the_layer_test_of_keras(case):
    testing.TestCase().run_layer_test(
        case.layer,
        case.options,
        input_shape=case.input,
        expected_output_shape=case.output,
        expected_output_dtype="float32",
        run_training_check=True,
        run_mixed_precision_check=True,
    )


@all_cases
def test_the_config_gives_back_the_arguments(case):
    config = case.layer.from_config(case.layer(**case.options, name="mine").get_config()).get_config()
    assert {key: config[key] for key in case.options} == case.options
    assert config["name"] == "mine"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@all_cases
def test_a_saved_layer_gives_the_same(case, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    images = keras.Input(case.input[1:], dtype="float32")
    model = keras.Model(images, case.built()(images))
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = case.inputs()
    assert dtype_of(loaded(inputs)) == dtype_of(model(inputs))
    np.testing.assert_array_equal(array(loaded(inputs)), array(model(inputs)))


@pytest.mark.parametrize("policy", MIXED)
@all_cases
def test_mixed_precision(case, policy):
    plain, inputs = case.built(), case.inputs()
    expected = array(plain(inputs))
    keras.config.set_dtype_policy(policy)
    layer = case.built()
    outputs = layer(inputs)
    assert {dtype_of(weight) for weight in layer.weights} <= {"float32"}
    if case.always_float32:
        assert dtype_of(outputs) == "float32"
        np.testing.assert_array_equal(outputs, expected)
    else:
        assert dtype_of(outputs) == policy.removeprefix("mixed_")
        np.testing.assert_allclose(array(outputs), expected, rtol=0, atol=8 * ROUNDING[policy] * np.abs(expected).max())


# --- activations --------------------------------------------------------------------------------------------

FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "scaled_tanh": lambda x: 1.7159 * np.tanh(2 / 3 * x),
    "maxout": lambda x: np.maximum(x[..., ::2], x[..., 1::2]),
}


def test_every_activation_has_a_formula():
    assert FORMULAS.keys() == set(get_args(Activation))


@pytest.mark.parametrize("name", get_args(Activation))
def test_make_activation(name):
    layer, x = make_activation(name, "mine"), draw(3, 2, 2, 6)
    assert layer.name == "mine"
    np.testing.assert_allclose(layer(x), FORMULAS[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", get_args(Activation))
def test_activated(name):
    inputs = keras.Input((2, 2, 5))
    x = activated(keras.layers.Conv2D, 6, 1, activation=name, name="conv1", use_bias=False)(inputs)
    model = keras.Model(inputs, activated(keras.layers.Dense, 3, activation=name, name="fc2")(x))
    assert x.shape == (None, 2, 2, 6)
    assert model.output_shape == (None, 2, 2, 3)
    own = [f"conv1_{name}", f"fc2_{name}"] if name in ("leaky_relu", "scaled_tanh", "maxout") else []
    assert {layer.name for layer in model.layers[1:]} == {"conv1", "fc2", *own}
    (kernel,), (weights, bias) = model.get_layer("conv1").get_weights(), model.get_layer("fc2").get_weights()
    images = draw(3, 2, 2, 5)
    hidden = FORMULAS[name](images @ kernel[0, 0])
    np.testing.assert_allclose(model(images), FORMULAS[name](hidden @ weights + bias), rtol=1e-4, atol=1e-5)


def test_scaled_tanh_maps_one_to_one():
    outputs = ScaledTanh()(np.float32([-100, -1, 0, 1, 100]))
    np.testing.assert_allclose(outputs, [-1.7159, -1, 0, 1, 1.7159], atol=1e-4)
    x = draw(50)
    np.testing.assert_allclose(ScaledTanh(0.5, 3.0)(x), 0.5 * np.tanh(3 * x), rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 2, 6)])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_maxout(shape, pieces):
    x = draw(*shape)
    expected = x.reshape(*shape[:-1], -1, pieces).max(axis=-1)
    np.testing.assert_array_equal(Maxout(pieces)(x), expected)
    assert Maxout(pieces)(keras.Input((None, None, 6))).shape == (None, None, None, 6 // pieces)


# --- local response normalization ---------------------------------------------------------------------------


def lrn_by_loops(x, size=5, k=2.0, alpha=1e-4, beta=0.75, alpha_times="sum"):
    """Krizhevsky et al. 2012, section 3.3, one channel at a time."""
    outputs = np.empty(x.shape)
    for i in range(x.shape[-1]):
        total = 0.0
        for j in range(max(0, i - size // 2), min(x.shape[-1] - 1, i + size // 2) + 1):
            total = total + np.float64(x[..., j]) ** 2
        total = total / size if alpha_times == "mean" else total
        outputs[..., i] = x[..., i] / (k + alpha * total) ** beta
    return outputs


@pytest.mark.parametrize("alpha_times", ["sum", "mean"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 3, "k": 1.0, "alpha": 2.0, "beta": 0.5},
        {"size": 1, "alpha": 0.3, "beta": 1.0},
        {"size": 21, "alpha": 0.1},  # wider than the channels
    ],
    ids=["paper", "beta_half", "own_channel", "all_channels"],
)
def test_lrn_is_the_paper_s_formula(options, alpha_times):
    x = draw(2, 3, 2, 9, low=-60, high=60)
    expected = lrn_by_loops(x, **options, alpha_times=alpha_times)
    layer = LocalResponseNormalization(**options, alpha_times=alpha_times)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)


@pytest.mark.parametrize("alpha_times, alpha", [("sum", 1.0), ("mean", 3.0)])
def test_lrn_sums_fewer_squares_at_the_first_and_last_channel(alpha_times, alpha):
    layer = LocalResponseNormalization(3, k=0.0, alpha=alpha, beta=1.0, alpha_times=alpha_times)
    np.testing.assert_allclose(layer(np.ones((1, 1, 1, 5), "float32"))[0, 0, 0], [1 / 2, 1 / 3, 1 / 3, 1 / 3, 1 / 2])


@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_lrn_equals_the_one_of_tensorflow(beta):
    x = draw(2, 3, 2, 9, low=-20, high=20)
    values, (gradient,) = run_with_gradients(LocalResponseNormalization(alpha=0.01, beta=beta), x)

    class Theirs(keras.layers.Layer):
        def call(self, x):
            return tf.nn.local_response_normalization(x, depth_radius=2, bias=2.0, alpha=0.01, beta=beta)

    their_values, (their_gradient,) = run_with_gradients(Theirs(), x)
    np.testing.assert_allclose(values, their_values, rtol=1e-5)
    np.testing.assert_allclose(gradient, their_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_lrn_equals_the_one_of_torch(beta):
    torch = pytest.importorskip("torch")
    x = draw(2, 3, 2, 9, low=-20, high=20)
    theirs = torch.nn.LocalResponseNorm(5, alpha=0.01, beta=beta, k=2.0)(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    layer = LocalResponseNormalization(alpha=0.01, beta=beta, alpha_times="mean")
    np.testing.assert_allclose(layer(x), theirs.numpy().transpose(0, 2, 3, 1), rtol=1e-5)


@pytest.mark.parametrize("alpha_times", ["sum", "mean"])
@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("policy", MIXED)
def test_lrn_of_large_values_under_mixed_precision(policy, beta, alpha_times):
    options = {"beta": beta, "alpha_times": alpha_times}
    dtype = policy.removeprefix("mixed_")
    x = tf.cast(draw(2, 4, 4, 16, low=-300, high=300), dtype)  # the square of 300 is infinite in float16
    expected, (gradient,) = run_with_gradients(LocalResponseNormalization(**options), tf.cast(x, "float32"))
    layer = LocalResponseNormalization(**options, dtype=policy)
    assert dtype_of(layer(x)) == dtype
    outputs, (rounded,) = run_with_gradients(layer, x)
    np.testing.assert_allclose(outputs, expected, rtol=3 * ROUNDING[policy])
    np.testing.assert_allclose(rounded, gradient, rtol=0, atol=4 * ROUNDING[policy] * np.abs(gradient).max())


# --- convolutions and subsampling ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"strides": 2, "padding": "same"}, {"dilation_rate": 2, "use_bias": False}, {"activation": "tanh"}],
    ids=["plain", "strides", "dilation", "activation"],
)
def test_grouped_convolution_equals_the_one_of_keras(options):
    x = draw(2, 7, 6, 4)
    ours = GroupedConv2D(6, 3, groups=2, **options)
    theirs = keras.layers.Conv2D(6, 3, groups=2, **options)
    for layer in (ours, theirs):
        layer.build(x.shape)
    assert [weight.shape for weight in ours.weights] == [weight.shape for weight in theirs.weights]
    ours.set_weights([draw(*weight.shape, seed=1) for weight in ours.weights])
    theirs.set_weights(ours.get_weights())
    values, gradients = run_with_gradients(ours, x)
    their_values, their_gradients = run_with_gradients(theirs, x)
    np.testing.assert_allclose(values, their_values, rtol=1e-4, atol=1e-5)
    assert len(gradients) == len(their_gradients)
    for gradient, their_gradient in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(gradient, their_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("table", [C3_TABLE, ((2, 0), (1,))], ids=["c3", "unsorted"])
def test_partial_convolution_equals_a_dense_one_with_zeros(table):
    x = draw(2, 7, 6, 6)
    partial, dense = PartialConv2D(table, 5), keras.layers.Conv2D(len(table), 5)
    for layer in (partial, dense):
        layer.build(x.shape)
    partial.set_weights([draw(*weight.shape, seed=1) for weight in partial.weights])
    kernel, bias = partial.get_weights()
    pairs = [(seen, number) for number, row in enumerate(table) for seen in row]
    full = np.zeros(dense.kernel.shape, "float32")
    for place, (seen, number) in enumerate(pairs):
        full[:, :, seen, number] = kernel[:, :, place]
    dense.set_weights([full, bias])

    values, (at_x, at_kernel, at_bias) = run_with_gradients(partial, x)
    expected, (dense_at_x, dense_at_kernel, dense_at_bias) = run_with_gradients(dense, x)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(at_x, dense_at_x, rtol=1e-4, atol=1e-4)
    seen, number = np.transpose(pairs)
    np.testing.assert_allclose(at_kernel, dense_at_kernel[:, :, seen, number], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(at_bias, dense_at_bias, rtol=1e-4)


def test_the_paper_s_c3_has_60_pairs_and_1516_parameters():
    layer = PartialConv2D(C3_TABLE, 5)
    assert layer(keras.Input((14, 14, 6))).shape == (None, 10, 10, 16)
    assert sum(map(len, C3_TABLE)) == layer.kernel.shape[-1] == 60
    assert layer.count_params() == 1_516


def test_partial_convolution_starts_within_the_fan_in_of_each_filter():
    layer = PartialConv2D(C3_TABLE, 5)
    layer.build((None, 14, 14, 6))
    kernel, bias = layer.get_weights()
    ends = np.cumsum([len(seen) for seen in C3_TABLE])
    for seen, largest in zip(
        C3_TABLE, (np.abs(part).max() for part in np.split(kernel, ends[:-1], axis=-1)), strict=True
    ):
        limit = 2.4 / (25 * len(seen))
        assert 0.9 * limit < largest <= limit
    assert not bias.any()


@pytest.mark.parametrize("size, pooled", [((6, 4), (3, 2)), ((7, 5), (3, 2))])
def test_trainable_subsampling(size, pooled):
    x, (height, width) = draw(2, *size, 3), pooled
    layer = TrainableSubsampling()
    layer.build(x.shape)
    coefficient, bias = layer.get_weights()
    assert np.abs(coefficient).max() <= 2.4 / 4 and not bias.any()
    coefficient, bias = draw(3, seed=1), draw(3, seed=2)
    layer.set_weights([coefficient, bias])
    total = x[:, : 2 * height, : 2 * width].reshape(2, height, 2, width, 2, 3).sum(axis=(2, 4))
    np.testing.assert_allclose(layer(x), total * coefficient + bias, rtol=1e-4, atol=1e-5)


def test_position_bias():
    x = draw(2, 3, 4, 2)
    layer = PositionBias()
    np.testing.assert_array_equal(layer(x), x)
    bias = draw(3, 4, 2, seed=1)
    layer.set_weights([bias])
    np.testing.assert_array_equal(layer(x), x + bias)


# --- the output of radial basis functions -------------------------------------------------------------------

SEVEN = """
#######
##...##
.....##
....##.
....##.
...##..
...##..
..##...
..##...
.##....
.##....
.##....
"""


def test_digit_codes_are_readable_bitmaps():
    codes = digit_codes()
    assert codes.shape == (10, 84) and codes.dtype == "float32"
    assert set(codes.ravel()) == {-1.0, 1.0}
    rows = ["".join(".#"[int(pixel > 0)] for pixel in row) for row in codes[7].reshape(12, 7)]
    assert rows == SEVEN.split()
    different = (codes[:, None] != codes).sum(axis=-1)
    assert different[~np.eye(10, dtype=bool)].min() >= 5
    assert min((codes > 0).sum(axis=-1)) >= 20  # no digit is empty


def test_rbf_output_is_minus_the_squared_distance():
    x = draw(4, 84)
    layer = RBFOutput(10)
    outputs = layer(x)
    np.testing.assert_array_equal(layer.codes, digit_codes())
    np.testing.assert_allclose(outputs, -((x[:, None] - digit_codes()) ** 2).sum(axis=-1), rtol=1e-5)
    outputs = array(layer(digit_codes()))
    assert np.diag(outputs).tolist() == [0.0] * 10
    assert outputs.argmax(axis=-1).tolist() == list(range(10))


def test_trainable_codes_are_840_more_trained_weights():
    shape = (None, 84)
    layers = [RBFOutput(10), RBFOutput(10, trainable_codes=True)]
    for layer in layers:
        layer.build(shape)
    trained = [sum(weight.value.shape.num_elements() for weight in layer.trainable_weights) for layer in layers]
    assert trained == [0, 840]
    assert [layer.count_params() for layer in layers] == [840, 840]


def test_random_codes_are_distinct_and_the_same_in_every_process():
    keras.utils.set_random_seed(12345)
    layer = RBFOutput(47)
    layer.build((None, 84))
    [codes] = layer.get_weights()
    assert set(codes.ravel()) == {-1.0, 1.0}
    assert len(np.unique(codes, axis=0)) == 47
    # Another process wrote this down.
    assert (
        hashlib.sha256(np.packbits(codes > 0)).hexdigest()
        == "c486e044af0f73e6ec39f48144402b773c2e28bf6ec670ab9f41d01365045452"
    )


# --- initializer and constraint -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, shape, limit",
    [
        ({}, (5, 5, 6, 16), 2.4 / 150),
        ({}, (84, 10), 2.4 / 84),
        ({"fan_in": 4}, (500,), 0.6),
        ({"scale": 1.0}, (10, 50), 0.1),
    ],
)
def test_fan_in_uniform(options, shape, limit):
    values = array(FanInUniform(**options)(shape, "float32"))
    assert values.shape == shape
    assert np.abs(values).max() <= limit
    assert values.max() > 0.95 * limit and values.min() < -0.95 * limit
    np.testing.assert_allclose(values.std(), limit / np.sqrt(3), rtol=0.1)


def test_fan_in_uniform_from_its_config():
    arguments = {"scale": 1.5, "fan_in": 7, "seed": 3}
    first = FanInUniform(**arguments)
    second = keras.initializers.deserialize(keras.initializers.serialize(first))
    assert isinstance(second, FanInUniform) and second.get_config() == arguments
    np.testing.assert_array_equal(first((20,), "float32"), second((20,), "float32"))


def test_max_rms():
    kernel = np.stack([draw(3, 3, 2), 1e-3 * draw(3, 3, 2), np.zeros((3, 3, 2), "float32")], axis=-1)
    kernel = kernel.astype("float32")
    scaled = array(MaxRMS(0.25)(kernel))
    np.testing.assert_allclose(np.sqrt((scaled[..., 0] ** 2).mean()), 0.25, rtol=1e-6)
    np.testing.assert_allclose(scaled[..., 0] / kernel[..., 0], scaled[0, 0, 0, 0] / kernel[0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(scaled[..., 1:], kernel[..., 1:])


def test_max_rms_is_applied_by_a_training_step(tmp_path):
    constrained = keras.layers.Conv2D(2, 3, kernel_constraint=MaxRMS(0.05))
    model = keras.Sequential([keras.Input((3, 3, 4)), constrained, keras.layers.Flatten()])
    kernel = np.stack([draw(3, 3, 4), 1e-3 * draw(3, 3, 4, seed=1)], axis=-1)
    constrained.set_weights([kernel, np.zeros(2, "float32")])
    model.compile(keras.optimizers.SGD(0.0), "mse")  # only the constraint changes the weights
    model.train_on_batch(draw(2, 3, 3, 4), draw(2, 2))
    trained = constrained.get_weights()[0]
    np.testing.assert_allclose(np.sqrt((trained[..., 0] ** 2).mean()), 0.05, rtol=1e-5)
    np.testing.assert_array_equal(trained[..., 1], kernel[..., 1])
    model.save(tmp_path / "model.keras")
    constraint = keras.saving.load_model(tmp_path / "model.keras").layers[0].kernel_constraint
    assert isinstance(constraint, MaxRMS) and constraint.radius == 0.05


# --- preprocessing; Standardize is tested in test_models.py -------------------------------------------------


def test_subtract_mean_image():
    images = draw(3, 4, 5, 2, low=0, high=255).astype("uint8")
    layer = SubtractMeanImage()
    np.testing.assert_array_equal(layer(images), images.astype("float32"))
    mean = images.astype("float32").mean(axis=0)
    layer.set_weights([mean])
    np.testing.assert_allclose(layer(images), images - mean, rtol=1e-6)
    assert not layer.trainable_weights


@pytest.fixture(scope="module")
def sample():
    """400 images [2, 3, 2] of correlated pixels with their mean, eigenvalues and eigenvectors."""
    mixing = draw(12, 12, seed=1) + 4 * np.eye(12)
    images = (5 * np.random.default_rng(2).standard_normal((400, 12)) @ mixing + 120).astype("float32")
    eigenvalues, eigenvectors = np.linalg.eigh(np.cov(images, rowvar=False))
    return images.reshape(-1, 2, 3, 2), images.mean(axis=0), eigenvalues, eigenvectors


def covariance(outputs) -> np.ndarray:
    return np.cov(array(outputs).reshape(len(outputs), -1), rowvar=False)


def whitened(images, mean, matrix, components=None):
    layer = Whiten(components)
    layer.build(images.shape)
    layer.set_weights([mean, matrix])
    assert not layer.trainable_weights
    return layer(images)


def test_whitened_pixels_have_the_covariance_of_the_identity(sample):
    images, mean, eigenvalues, eigenvectors = sample
    pca_whitening = eigenvectors / np.sqrt(eigenvalues)
    by_pca = whitened(images, mean, pca_whitening)
    by_zca = whitened(images, mean, pca_whitening @ eigenvectors.T)
    assert by_pca.shape == by_zca.shape == images.shape
    for outputs in (by_pca, by_zca):
        np.testing.assert_allclose(covariance(outputs), np.eye(12), atol=2e-3)
        np.testing.assert_allclose(array(outputs).mean(axis=0), 0, atol=1e-3)

    # Of all whitenings ZCA stays nearest to the image: each pixel looks most like the one that it was.
    centered = (images.reshape(-1, 12) - mean) / images.reshape(-1, 12).std(axis=0)
    likeness = centered.T @ array(by_zca).reshape(-1, 12) / len(images)
    assert likeness.argmax(axis=0).tolist() == list(range(12))
    assert np.diag(likeness).min() > 0.6
    distances = [np.square(images - mean.reshape(2, 3, 2) - array(outputs)).mean() for outputs in (by_zca, by_pca)]
    assert distances[0] < distances[1]


def test_pca_keeps_the_variance_of_its_components(sample):
    images, mean, eigenvalues, eigenvectors = sample
    outputs = whitened(images, mean, eigenvectors[:, :-4:-1], components=3)
    assert outputs.shape == (400, 1, 1, 3)
    np.testing.assert_allclose(covariance(outputs), np.diag(eigenvalues[:-4:-1]), rtol=1e-3, atol=0.1)
    expected = (images.reshape(-1, 12) - mean) @ eigenvectors[:, :-4:-1]
    np.testing.assert_allclose(array(outputs)[:, 0, 0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("components, columns", [(None, 12), (5, 5)])
def test_whiten_starts_as_the_identity(components, columns):
    images = draw(3, 2, 3, 2, low=0, high=255).astype("uint8")
    outputs = array(Whiten(components)(images)).reshape(3, -1)
    np.testing.assert_array_equal(outputs, images.reshape(3, -1)[:, :columns].astype("float32"))


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda: Maxout(3, name="m")(draw(2, 4)), "m: expected a multiple of 3 channels, got 4."),
        (lambda: Maxout(3, name="m")(keras.Input((4,))), "m: expected a multiple of 3 channels, got 4."),
        (lambda: LocalResponseNormalization(4, name="m"), "m: expected an odd size, got 4."),
        (lambda: LocalResponseNormalization(-1, name="m"), "m: expected an odd size, got -1."),
        (
            lambda: LocalResponseNormalization(alpha_times="max", name="m"),
            "m: expected alpha_times 'sum' or 'mean', got 'max'.",
        ),
        (
            lambda: PartialConv2D([[0], [1, 3]], 3, name="m")(keras.Input((8, 8, 3))),
            "m: expected channels 0 to 2 in the table, got 3.",
        ),
        (lambda: Standardize(0.0, 0.0, name="m"), "m: expected a std above 0, got 0.0."),
        (lambda: Standardize(0.0, [1.0, float("nan")], name="m"), "m: expected a std above 0, got [1.0, nan]."),
        (
            lambda: Standardize(0.0, [1.0, 2.0], name="m")(keras.Input((8, 8, 3))),
            "m: expected 1 or 3 values of std, got 2: one for each channel of the images.",
        ),
        (
            lambda: Whiten(name="m")(keras.Input((64, 64, 3))),
            "m: expected images of at most 4,096 values to whiten, got 64x64x3 = 12,288. Take a smaller image_size, or "
            "normalize each channel.",
        ),
        (
            lambda: Whiten(13, name="m")(keras.Input((2, 3, 2))),
            "m: expected 1 to 12 components for images of 2x3x2, got 13.",
        ),
        (
            lambda: Whiten(0, name="m")(keras.Input((2, 3, 2))),
            "m: expected 1 to 12 components for images of 2x3x2, got 0.",
        ),
        (lambda: Maxout(0, name="m"), "m: expected at least 1 piece, got 0."),
        *(
            (
                lambda kind=kind: kind(name="m")(keras.Input((None, None, 3))),
                "m: expected a known height and width, got (None, None, 3).",
            )
            for kind in (SubtractMeanImage, Whiten, PositionBias)
        ),
        (
            lambda: check_arguments("lenet5", (28, 28), 10, fixed_size=True),
            "lenet5: expected an input_shape (height, width, channels), got (28, 28).",
        ),
        (
            lambda: check_arguments("lenet5", (28, None, 1), 10, fixed_size=True),
            "lenet5: expected a known height and width before dense layers, got (28, None, 1).",
        ),
        (
            lambda: check_arguments("lenet5", (None, 11, 1), 10, fixed_size=False),
            "lenet5: expected an input of at least 12x12 pixels, got Nonex11.",
        ),
        (
            lambda: check_arguments("lenet5", (28, 28, 1), 0, fixed_size=True),
            "lenet5: expected at least 1 class, got 0.",
        ),
    ],
)
def test_mistakes(mistake, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        mistake()


def test_whiten_takes_up_to_4096_numbers():
    assert Whiten(1)(keras.Input((64, 64, 1))).shape == (None, 1, 1, 1)
