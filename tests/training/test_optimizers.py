import inspect
import re

import keras
import numpy as np
import pytest

from kpipe.catalog.training import OPTIMIZERS, SCHEDULES
from kpipe.errors import ConfigError
from kpipe.training.optimizers import l2_decay, make_optimizer, with_transforms
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


# --- a chain of transforms ----------------------------------------------------------------------------------


def test_transforms_are_applied_in_their_order():
    def halve(gradient, variable):
        return gradient / 2

    sgd = with_transforms(keras.optimizers.SGD, [l2_decay(0.1), halve])
    [gradient, _] = GRADIENTS
    expected = START - 0.5 * (gradient + 0.1 * START) / 2
    np.testing.assert_allclose(updated(sgd(0.5), gradients=[gradient]), expected, rtol=1e-6)
    expected = START - 0.5 * (gradient / 2 + 0.1 * START)
    sgd = with_transforms(keras.optimizers.SGD, [halve, l2_decay(0.1)])
    np.testing.assert_allclose(updated(sgd(0.5), gradients=[gradient]), expected, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_transforms_leave_the_names_of_the_variables(name):
    plain, transformed = (make_optimizer(name, {}, 0.1, weight_decay=decay) for decay in (None, L2))
    variable = keras.Variable(START, name="kernel")
    for optimizer in (plain, transformed):
        optimizer.build([variable])
    assert type(transformed).__name__ == type(plain).__name__

    def stems(optimizer):
        return [re.sub(r"_\d+/", "/", variable.path) for variable in optimizer.variables]

    assert stems(transformed) == stems(plain)
