import inspect
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import BaseModel

from kpipe.catalog.training import SCHEDULES
from kpipe.errors import ConfigError
from kpipe.training.schedules import constant, cosine, count_steps, make_schedule, multistep

LENGTH = {"total_steps": 100, "steps_per_epoch": 10}


def rates(schedule, steps=range(100)):
    return np.array([float(schedule(step)) for step in steps])


def plain(value):
    return value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else value


@pytest.mark.parametrize("name", SCHEDULES)
def test_signatures_equal_the_table(name):
    row = SCHEDULES[name]
    parameters = inspect.signature(row.load()).parameters
    options = {key: value.default for key, value in parameters.items() if key not in LENGTH}
    assert options == {key: plain(field.default) for key, field in row.options.model_fields.items()}


@pytest.mark.parametrize(
    ("unit", "length", "steps"),
    [("epochs", 2, 20), ("epochs", 0.25, 2), ("epochs", 0.01, 1), ("steps", 7, 7), ("percent", 3, 3)],
)
def test_lengths_in_steps(unit, length, steps):
    assert count_steps(unit, length, **LENGTH) == steps


def test_constant_is_the_peak_after_the_warm_up():
    got = rates(constant(0.5, {"steps": 4}, **LENGTH))
    np.testing.assert_allclose(got[:5], [0.125, 0.25, 0.375, 0.5, 0.5])
    np.testing.assert_allclose(rates(constant(0.5, **LENGTH)), 0.5)
    np.testing.assert_allclose(got[4:], 0.5)


def test_multistep_falls_at_its_milestones_counted_from_the_start():
    got = rates(multistep(1.0, {"epochs": 1}, {"epochs": [2, 6.5]}, factor=0.5, **LENGTH))
    np.testing.assert_allclose(got[10:20], 1.0)
    np.testing.assert_allclose(got[20:65], 0.5)
    np.testing.assert_allclose(got[65:], 0.25)


def test_multistep_falls_at_half_and_three_quarters_by_default():
    np.testing.assert_allclose(rates(multistep(1.0, **LENGTH), [49, 50, 74, 75]), [1, 0.1, 0.1, 0.01], rtol=1e-6)


def test_cosine_runs_from_the_warm_up_to_the_end():
    got = rates(cosine(2.0, {"percent": 20}, 0.1, **LENGTH), range(101))
    by_hand = [2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))) for step in range(20, 101)]
    np.testing.assert_allclose(got[:20], 2 * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(got[20:], by_hand, rtol=1e-5)
    assert got[100] == pytest.approx(0.2)
    assert float(cosine(**LENGTH)(1000)) == 0.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_work_in_graphs_and_survive_serialisation(name):
    options = {"peak": 0.3, "warmup": {"steps": 5}}
    schedule = make_schedule(name, options, **LENGTH)
    in_graph = tf.function(schedule)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    for step in (0, 4, 5, 60, 99):
        value = in_graph(tf.constant(step, tf.int64))
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(float(schedule(step)), rel=1e-6)
        assert float(again(step)) == float(schedule(step))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_of_the_whole_training_ends_at_the_peak(name):
    schedule = make_schedule(name, {"peak": 1.0, "warmup": {"epochs": 10}}, **LENGTH)
    assert float(schedule(99)) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_longer_than_the_training_is_refused(name):
    message = r"learning_rate.warmup: expected at most the 100 steps of the training, got 110 \(11 epochs\)"
    with pytest.raises(ConfigError, match=message):
        make_schedule(name, {"warmup": {"epochs": 11.0}}, **LENGTH)


def test_an_unknown_name_is_refused_with_the_nearest():
    message = "training.learning_rate: expected a known schedule, got 'cosin', did you mean 'cosine'"
    with pytest.raises(ConfigError, match=message):
        make_schedule("cosin", {}, **LENGTH)
