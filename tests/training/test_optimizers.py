import inspect

import keras
import numpy as np
import pytest

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
def test_biases_and_batch_normalisation_never_decay(name, weight_decay):
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
    row = OPTIMIZERS[name]
    parameters = inspect.signature(row.load().__init__).parameters
    defaults = {key: field.default for key, field in row.options.model_fields.items() if key != "weight_decay"}
    assert defaults == {key: parameters[key].default for key in defaults}


def test_adamw_decays_by_default_as_keras_does():
    decay = OPTIMIZERS["adamw"].options().weight_decay
    default = inspect.signature(keras.optimizers.AdamW.__init__).parameters["weight_decay"].default
    assert (decay.value, decay.kind) == (default, "decoupled")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_step_with_every_schedule(name, schedule):
    options = OPTIMIZERS[name].options().model_dump(exclude_none=True, exclude={"weight_decay"})
    schedule_options = SCHEDULES[schedule].options().model_dump(exclude_none=True)
    rate = make_schedule(schedule, schedule_options, total_steps=10, steps_per_epoch=5)
    after = updated(make_optimizer(name, options, rate, weight_decay=L2))
    assert np.isfinite(after).all()
    assert (after != START).all()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="training.optimizer: expected a known name, got 'adm', did you mean 'adam'"):
        make_optimizer("adm", {}, 0.1)


def test_an_unknown_kind_of_decay_is_refused():
    with pytest.raises(ConfigError, match="weight_decay.kind: expected l2 or decoupled, got 'l1'"):
        make_optimizer("sgd", {}, 0.1, weight_decay={"value": 0.1, "kind": "l1"})
