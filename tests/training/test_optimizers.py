import inspect
import json
import re
import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.catalog.training import OPTIMIZERS, SCHEDULES
from kpipe.errors import ConfigError
from kpipe.training.optimizers import make_optimizer
from kpipe.training.schedules import make_schedule

L2 = {"value": 0.1, "kind": "l2"}
DECOUPLED = {"value": 0.1, "kind": "decoupled"}
START = np.array([1.0, -2.0, 3.0], "float32")
GRADIENTS = [np.array([0.5, 0.25, -1.0], "float32"), np.array([-0.5, 1.0, 0.125], "float32")]


def updated(optimizer, *, name="kernel", gradients=GRADIENTS):
    variable = keras.Variable(START, name=name)
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return variable.numpy()


def sgd_by_hand(gradient_of, decay=0.0, rate=0.1, momentum=0.9):
    weights, velocity = START.astype("float64"), 0.0
    for gradient in GRADIENTS:
        gradient = gradient_of(gradient, weights)
        weights = weights - rate * decay * weights
        velocity = momentum * velocity - rate * gradient
        weights = weights + momentum * velocity - rate * gradient
    return weights


def adam_by_hand(rate=0.01, value=0.1):
    weights, first, second = START.astype("float64"), 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, 1):
        gradient = gradient + value * weights
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        weights = weights - corrected * first / (np.sqrt(second) + 1e-7)
    return weights


def test_l2_is_added_to_the_gradient_before_the_momentum():
    optimizer = make_optimizer("sgd", {"momentum": 0.9, "nesterov": True}, 0.1, weight_decay=L2)
    expected = sgd_by_hand(lambda gradient, weights: gradient + 0.1 * weights)
    np.testing.assert_allclose(updated(optimizer), expected, rtol=1e-6)


def test_l2_is_added_before_adams_scaling():
    optimizer = make_optimizer("adam", {}, 0.01, weight_decay=L2)
    np.testing.assert_allclose(updated(optimizer), adam_by_hand(), rtol=1e-5)


def test_decoupled_decay_shrinks_the_weight_apart_from_the_momentum():
    optimizer = make_optimizer("sgd", {"momentum": 0.9, "nesterov": True}, 0.1, weight_decay=DECOUPLED)
    expected = sgd_by_hand(lambda gradient, weights: gradient, decay=0.1)
    np.testing.assert_allclose(updated(optimizer), expected, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [L2, DECOUPLED])
@pytest.mark.parametrize("name", ["bias", "gamma", "beta"])
def test_biases_and_batch_normalization_never_decay(name, weight_decay):
    plain = updated(make_optimizer("sgd", {}, 0.1), name=name)
    np.testing.assert_array_equal(updated(make_optimizer("sgd", {}, 0.1, weight_decay=weight_decay), name=name), plain)


@pytest.mark.parametrize("weight_decay", [L2, DECOUPLED])
def test_a_kernel_decays_in_a_network_called_beta(weight_decay):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="bias_free")], name="beta")
    optimizer = make_optimizer("sgd", {}, 0.5, weight_decay=weight_decay)
    kernel, bias = model.trainable_variables
    before = kernel.numpy()
    bias.assign([1.0, 1.0])
    optimizer.apply([keras.ops.zeros((2, 2)), keras.ops.zeros(2)], [kernel, bias])
    np.testing.assert_allclose(kernel.numpy(), before * (1 - 0.5 * 0.1), rtol=1e-6)
    np.testing.assert_array_equal(bias.numpy(), [1.0, 1.0])


def test_l2_acts_under_loss_scaling():
    scaled = keras.optimizers.LossScaleOptimizer(make_optimizer("sgd", {}, 0.1, weight_decay=L2), initial_scale=8)
    gradients = [gradient * 8 for gradient in GRADIENTS]
    expected = updated(make_optimizer("sgd", {}, 0.1, weight_decay=L2))
    np.testing.assert_allclose(updated(scaled, gradients=gradients), expected, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [None, L2, {"value": 0.0, "kind": "decoupled"}])
def test_adamw_without_its_own_decay_is_adam(weight_decay):
    adam = updated(make_optimizer("adam", {}, 0.01, weight_decay=weight_decay))
    np.testing.assert_allclose(updated(make_optimizer("adamw", {}, 0.01, weight_decay=weight_decay)), adam, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_are_arguments_of_the_keras_class_with_its_defaults(name):
    """Some of its arguments: kpipe sets the others, or an experiment has no use for them."""
    row = OPTIMIZERS[name]
    parameters = inspect.signature(row.load().__init__).parameters
    defaults = {key: field.default for key, field in row.options.model_fields.items() if key != "weight_decay"}
    assert defaults == {key: parameters[key].default for key in defaults}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_decay_by_default_as_keras_lets_them(name):
    """As numbers, and over two updates: Keras's own decay is left out for the seat of the decay."""
    row = OPTIMIZERS[name]
    decay = row.options().weight_decay
    default = inspect.signature(row.load().__init__).parameters["weight_decay"].default
    assert (decay and decay.value) == default
    assert decay is None or decay.kind == "decoupled"
    ours = make_optimizer(name, {}, 0.1, weight_decay=decay and decay.model_dump())
    np.testing.assert_allclose(updated(ours), updated(row.load()(0.1)), rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_step_with_every_schedule(name, schedule):
    options = OPTIMIZERS[name].options().model_dump(exclude_none=True, exclude={"weight_decay"})
    schedule_options = SCHEDULES[schedule].options(peak=0.1).model_dump(exclude_none=True)
    rate = make_schedule(schedule, schedule_options, total_steps=10, steps_per_epoch=5)
    after = updated(make_optimizer(name, options, rate, weight_decay=L2), gradients=GRADIENTS[:1])
    assert np.isfinite(after).all()
    assert (after != START).all()


FUSED = {
    "sgd": ({}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    "adam": ({}, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}, {"amsgrad": True}),
    "adamw": ({}, {"amsgrad": True}),
}


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in FUSED for options in FUSED[name]])
def test_a_fused_update_is_that_of_keras(name, options):
    """Over 50 updates of 1,000 weights; those of SGD to the last bit."""
    draws = np.random.default_rng(0)
    start = draws.normal(size=1000).astype("float32")
    gradients = [keras.ops.convert_to_tensor(draws.normal(size=1000), "float32") for _ in range(50)]
    after = []
    for make in (OPTIMIZERS[name].load(), getattr(keras.optimizers, OPTIMIZERS[name].load().__name__)):
        optimizer, variable = make(1e-2, **options), keras.Variable(start)
        for gradient in gradients:
            optimizer.apply([gradient], [variable])
        after.append(variable.numpy())
    assert optimizer.__class__.__module__.startswith("keras.")
    np.testing.assert_allclose(*after, rtol=0, atol=0 if name == "sgd" else 5e-6)


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_update_of_an_embedding_is_that_of_keras(name):
    """Its gradient has the rows of the words in a batch alone."""
    after = []
    for make in (OPTIMIZERS[name].load(), getattr(keras.optimizers, OPTIMIZERS[name].load().__name__)):
        optimizer, variable = make(1e-2), keras.Variable(np.ones((5, 3), "float32"))
        for row in (1, 4):
            rows = tf.IndexedSlices(tf.ones((1, 3)), tf.constant([row]), tf.constant([5, 3]))
            optimizer.apply([rows], [variable])
        after.append(variable.numpy())
    np.testing.assert_allclose(*after, rtol=1e-6)
    assert (after[0][4] < 1).all()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="training.optimizer: expected a known name, got 'adm', did you mean 'adam'"):
        make_optimizer("adm", {}, 0.1)


@pytest.mark.parametrize(
    ("options", "weight_decay", "message"),
    [
        ({}, {"value": 0.1, "kind": "l1"}, "weight_decay.kind: expected one of l2, decoupled, got 'l1'"),
        ({}, {"value": -0.1, "kind": "l2"}, "weight_decay.value: expected at least 0, got -0.1"),
        ({"momentum": 1.0}, None, "momentum: expected less than 1, got 1.0"),
        ({"nesterov": True}, None, "nesterov: needs a momentum above 0"),
    ],
)
def test_an_option_out_of_range_is_refused(options, weight_decay, message):
    with pytest.raises(ConfigError, match=f"^training.optimizer.{message}"):
        make_optimizer("sgd", options, 0.1, weight_decay=weight_decay)


@pytest.mark.parametrize("clip", [{"norm": 0.5}, {"global_norm": 0.5}, {"value": 0.25}])
def test_gradients_are_clipped_before_the_decay_is_added(clip):
    variables = [keras.Variable(START, name="kernel"), keras.Variable(START, name="kernel")]
    make_optimizer("sgd", {}, 0.1, weight_decay=L2, clip=clip).apply(
        [keras.ops.convert_to_tensor(gradient) for gradient in GRADIENTS], variables
    )
    [(kind, most)] = clip.items()
    norms = [np.linalg.norm(gradient) for gradient in GRADIENTS]
    whole = np.hypot(*norms)
    for variable, gradient, norm in zip(variables, GRADIENTS, norms, strict=True):
        clipped = {
            "norm": gradient * min(1, most / norm),
            "global_norm": gradient * min(1, most / whole),
            "value": np.clip(gradient, -most, most),
        }[kind]
        np.testing.assert_allclose(variable.numpy(), START - 0.1 * (clipped + 0.1 * START), rtol=1e-6)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({"norm": 0}, "training.clip.norm: expected more than 0, got 0"),
        ({"norm": 1.0, "value": 1.0}, "training.clip.: expected exactly one of norm, global_norm, value"),
    ],
)
def test_a_clip_out_of_range_is_refused(clip, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        make_optimizer("sgd", {}, 0.1, clip=clip)


# --- the papers' rules ---------------------------------------------------------------------------------------


def test_alexnets_rule():
    """v <- 0.9 v - 0.0005 rate w - rate gradient; w <- w + v: Krizhevsky et al. 2012, section 5."""
    optimizer = make_optimizer("sgd", {"momentum": 0.9}, 0.01, weight_decay={"value": 0.0005, "kind": "l2"})
    weights, velocity = START.astype("float64"), 0.0
    for gradient in GRADIENTS * 3:
        velocity = 0.9 * velocity - 0.0005 * 0.01 * weights - 0.01 * gradient
        weights = weights + velocity
    np.testing.assert_allclose(updated(optimizer, gradients=GRADIENTS * 3), weights, rtol=1e-6)


TORCH = """
import json, sys, torch
weights = torch.nn.Parameter(torch.tensor(json.loads(sys.argv[1])))
optimizer = torch.optim.SGD([weights], lr=0.1, weight_decay=0.1, **json.loads(sys.argv[3]))
for gradient in json.loads(sys.argv[2]):
    weights.grad = torch.tensor(gradient)
    optimizer.step()
print(weights.tolist())
"""
"""In a process of its own: TensorFlow and the optimizers of PyTorch do not stand each other."""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("torch"), reason="to compare with PyTorch, install the extra `bench`")
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True)])
def test_sgd_with_l2_is_torchs_at_a_constant_rate(momentum, nesterov):
    options, gradients = {"momentum": momentum, "nesterov": nesterov}, GRADIENTS * 3
    given = [START.tolist(), [gradient.tolist() for gradient in gradients], options]
    command = [sys.executable, "-c", TORCH, *map(json.dumps, given)]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours = updated(make_optimizer("sgd", options, 0.1, weight_decay=L2), gradients=gradients)
    np.testing.assert_allclose(ours, json.loads(theirs), rtol=1e-6)


# --- rates and decays of layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l2", "decoupled"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_of_a_layer_is_a_true_factor(name, kind):
    """The layer moves as it would alone at the multiplied rate, its decay included."""

    def trained(rate, **options):
        kernels = [keras.Variable(np.outer(START, START), name="kernel") for _ in range(2)]
        for kernel, layer in zip(kernels, ("first", "second"), strict=True):
            kernel._path = f"{layer}/kernel"
        optimizer = make_optimizer(name, {}, rate, weight_decay={"value": 0.1, "kind": kind}, **options)
        for gradient in GRADIENTS * 2:
            optimizer.apply([keras.ops.convert_to_tensor(np.outer(gradient, START))] * 2, kernels)
        return [kernel.numpy() for kernel in kernels]

    first, second = trained(0.1, rates={"second/kernel": 0.5})
    np.testing.assert_allclose(first, trained(0.1)[0], rtol=1e-6)
    np.testing.assert_allclose(second, trained(0.05)[1], rtol=1e-5)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("kind", ["l2", "decoupled"])
def test_a_layer_may_decay_otherwise(kind):
    decay = {"value": 0.1, "kind": kind}
    [gradient, _] = GRADIENTS

    def moved(**options):
        kernel = keras.Variable(START, name="kernel")
        kernel._path = "logits/kernel"
        make_optimizer("sgd", {}, 0.5, **options).apply([keras.ops.convert_to_tensor(gradient)], [kernel])
        return kernel.numpy()

    np.testing.assert_allclose(moved(weight_decay=decay, decays={"logits/kernel": 0.0}), START - 0.5 * gradient)
    expected = START - 0.5 * (gradient + 0.2 * START)
    np.testing.assert_allclose(moved(weight_decay=decay, decays={"logits/kernel": 0.2}), expected, rtol=1e-6)
    np.testing.assert_allclose(moved(decays={"logits/kernel": 0.2}), expected, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_names_of_the_variables_are_keras_own(name):
    plain, composed = OPTIMIZERS[name].load()(0.1), make_optimizer(name, {}, 0.1, weight_decay=L2)
    variable = keras.Variable(START, name="kernel")
    for optimizer in (plain, composed):
        optimizer.build([variable])
    assert type(composed).__name__ == type(plain).__name__

    def stems(optimizer):
        return [re.sub(r"_\d+(/|$)", r"\1", variable.path) for variable in optimizer.variables]

    known = stems(plain)
    assert stems(composed)[: len(known)] == known
    assert len(stems(composed)) == len(known) + (name == "nadam")
