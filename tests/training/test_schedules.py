import inspect
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import BaseModel

from kpipe.catalog.training import SCHEDULES, ScheduleOptions
from kpipe.errors import ConfigError
from kpipe.training.schedules import Constant, Cosine, Multistep, Schedule, make_schedule

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


def test_constant_is_the_peak_after_the_warm_up():
    got = rates(Constant(0.5, {"steps": 4}, **LENGTH))
    np.testing.assert_allclose(got[:5], [0.125, 0.25, 0.375, 0.5, 0.5])
    np.testing.assert_allclose(rates(Constant(0.5, **LENGTH)), 0.5)
    np.testing.assert_allclose(got[4:], 0.5)


def test_multistep_falls_at_its_milestones_counted_from_the_start():
    got = rates(Multistep(1.0, {"epochs": 1}, {"epochs": [2, 6.5]}, factor=0.5, **LENGTH))
    np.testing.assert_allclose(got[10:20], 1.0)
    np.testing.assert_allclose(got[20:65], 0.5)
    np.testing.assert_allclose(got[65:], 0.25)


def test_multistep_falls_at_half_and_three_quarters_by_default():
    np.testing.assert_allclose(rates(Multistep(1.0, **LENGTH), [49, 50, 74, 75]), [1, 0.1, 0.1, 0.01], rtol=1e-6)


def test_cosine_runs_from_the_warm_up_to_the_end():
    got = rates(Cosine(2.0, {"percent": 20}, 0.1, **LENGTH), range(101))
    by_hand = [2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))) for step in range(20, 101)]
    np.testing.assert_allclose(got[:20], 2 * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(got[20:], by_hand, rtol=1e-5)
    assert got[100] == pytest.approx(0.2)
    assert float(Cosine(**LENGTH)(1000)) == 0.0


EVERY_OPTION = {
    "constant": {"peak": 0.3, "warmup": {"steps": 5}},
    "multistep": {"peak": 0.3, "warmup": {"epochs": 0.5}, "milestones": {"epochs": [2.0, 6.5]}, "factor": 0.5},
    "cosine": {"peak": 0.3, "warmup": {"percent": 5.0}, "final": 0.1},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_work_in_graphs_and_survive_serialization(name):
    schedule = make_schedule(name, EVERY_OPTION[name], **LENGTH)
    in_graph = tf.function(schedule)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert type(again) is type(schedule)
    for step in (0, 4, 5, 60, 99):
        value = in_graph(tf.constant(step, tf.int64))
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(float(schedule(step)), rel=1e-6)
        assert float(again(step)) == float(schedule(step))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_config_is_what_the_constructor_was_given(name):
    assert set(EVERY_OPTION[name]) == set(SCHEDULES[name].options.model_fields)
    schedule = SCHEDULES[name].load()(**EVERY_OPTION[name], **LENGTH)
    assert schedule.get_config() == EVERY_OPTION[name] | LENGTH
    assert type(schedule).from_config(schedule.get_config()).get_config() == schedule.get_config()


def test_a_schedule_of_ones_own_says_what_follows_the_warm_up():
    class Inverse(Schedule):
        def after_warmup(self, step):
            return self.peak / (1 + step)

    schedule = Inverse(ScheduleOptions(peak=2.0, warmup={"steps": 2}), **LENGTH)
    np.testing.assert_allclose(rates(schedule, range(4)), [1.0, 2.0, 2 / 3, 0.5])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_of_the_whole_training_ends_at_the_peak(name):
    schedule = make_schedule(name, {"peak": 1.0, "warmup": {"epochs": 10}}, **LENGTH)
    assert float(schedule(99)) == 1.0


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        ({"epochs": 11.0}, "11 epochs of warm-up do not fit into 10 epochs of training"),
        ({"steps": 101}, "101 steps of warm-up do not fit into 100 steps of training"),
    ],
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_warm_up_longer_than_the_training_is_refused(name, warmup, message):
    with pytest.raises(ConfigError, match=f"^training.learning_rate.warmup: {message}$"):
        make_schedule(name, {"warmup": warmup}, **LENGTH)


def test_steps_of_a_warm_up_are_compared_where_they_are_known():
    options = ScheduleOptions(warmup={"steps": 101})
    assert list(options.conflicts_with(10)) == []
    assert [option for option, _ in options.conflicts_with(10, 10)] == ["warmup"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Constant, {"peak": 0}, "peak: expected more than 0, got 0"),
        (
            Constant,
            {"warmup": {"epochs": 1, "steps": 9}},
            "warmup: expected exactly one of epochs, steps, percent, got",
        ),
        (Multistep, {"factor": 1.0}, "factor: expected less than 1, got 1.0"),
        (Multistep, {"milestones": {"steps": [0]}}, "milestones.steps.0: expected at least 1, got 0"),
        (Cosine, {"final": 1.5}, "final: expected at most 1, got 1.5"),
    ],
)
def test_an_option_out_of_range_is_refused(make, options, message):
    with pytest.raises(ConfigError, match=f"^training.learning_rate.{message}"):
        make(**options, **LENGTH)


def test_an_unknown_name_is_refused_with_the_nearest():
    message = "training.learning_rate: expected a known schedule, got 'cosin', did you mean 'cosine'"
    with pytest.raises(ConfigError, match=message):
        make_schedule("cosin", {}, **LENGTH)
