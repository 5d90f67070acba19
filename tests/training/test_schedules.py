"""Each schedule against an independent reference, its options, its rules, and the reductions of `plateau`."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.catalog.rows import TrainingLength
from kpipe.catalog.training import SCHEDULES, CosineRestartsOptions, ScheduleOptions
from kpipe.errors import ConfigError
from kpipe.training.control import Hooks, TrainState
from kpipe.training.schedules import (
    Constant,
    Cosine,
    Multistep,
    Plateau,
    ReduceOnPlateau,
    Schedule,
    make_schedule,
    rate_of_last_step,
    rate_of_step,
)
from kpipe.training.trainer import Trainer

LENGTH = {"total_steps": 100, "steps_per_epoch": 10, "batch_size": 16}
STEPS = np.arange(100)
RISING = [name for name, row in SCHEDULES.items() if "warmup" in row.options.model_fields]


def rates(schedule, steps=range(100)):
    return np.array([float(schedule(step)) for step in steps])


def of(name, **options):
    return make_schedule(name, options, **LENGTH)


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_schedule_takes_the_options_of_its_row(name):
    assert SCHEDULES[name].load().options_type is SCHEDULES[name].options


# --- shapes ---------------------------------------------------------------------------------------------------------

KERAS = keras.optimizers.schedules
LIKE_KERAS = {
    "exponential": ({"every": {"steps": 40}, "factor": 0.5}, KERAS.ExponentialDecay(0.3, 40, 0.5)),
    "step": ({"every": {"epochs": 3}, "factor": 0.5}, KERAS.ExponentialDecay(0.3, 30, 0.5, staircase=True)),
    "multistep": (
        {"milestones": {"images": [16 * 20, 16 * 65]}, "factor": 0.5},
        KERAS.PiecewiseConstantDecay([19, 64], [0.3, 0.15, 0.075]),  # Keras holds the old rate at a boundary
    ),
    "inverse_time": ({"every": {"percent": 20}, "decay_rate": 2.0}, KERAS.InverseTimeDecay(0.3, 20, 2.0)),
    "polynomial": ({"final": 0.1, "power": 0.5}, KERAS.PolynomialDecay(0.3, 100, 0.03, power=0.5)),
    "cosine": ({"final": 0.1}, KERAS.CosineDecay(0.3, 100, alpha=0.1)),
    "cosine_restarts": (
        {"first": {"epochs": 1}, "growth": 2.0, "factor": 0.8, "final": 0.1},
        KERAS.CosineDecayRestarts(0.3, 10, t_mul=2.0, m_mul=0.8, alpha=0.1),
    ),
}


@pytest.mark.parametrize("name", LIKE_KERAS)
def test_a_schedule_of_keras_has_the_same_rates(name):
    options, expected = LIKE_KERAS[name]
    np.testing.assert_allclose(rates(of(name, peak=0.3, **options)), rates(expected), rtol=1e-4, atol=1e-7)


def test_cycles_of_equal_length_are_those_of_keras():
    expected = rates(KERAS.CosineDecayRestarts(0.3, 25, t_mul=1.0))
    got = rates(of("cosine_restarts", peak=0.3, first={"steps": 25}, growth=1.0))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_inverse_time_with_a_power_is_caffe_s_inv():
    """The solver of Caffe's LeNet."""
    schedule = make_schedule(
        "inverse_time",
        {"peak": 0.01, "every": {"steps": 1}, "decay_rate": 1e-4, "power": 0.75},
        total_steps=10_000,
        steps_per_epoch=1000,
    )
    by_hand = [0.01 * (1 + 1e-4 * step) ** -0.75 for step in (0, 1, 500, 9999)]
    np.testing.assert_allclose(rates(schedule, (0, 1, 500, 9999)), by_hand, rtol=1e-6)


def test_step_is_googlenet_s_four_percent_every_eight_epochs():
    schedule = make_schedule(
        "step", {"peak": 0.01, "every": {"epochs": 8}, "factor": 0.96}, total_steps=2000, steps_per_epoch=10
    )
    by_hand = [0.01 * 0.96 ** (step // 80) for step in (0, 79, 80, 1999)]
    np.testing.assert_allclose(rates(schedule, (0, 79, 80, 1999)), by_hand, rtol=1e-6)


def test_one_cycle_by_hand():
    got = rates(of("one_cycle", peak=0.5, start=0.1, rise={"percent": 40}, final=0.02))
    rising = 0.5 * (0.1 + 0.9 * (1 - np.cos(np.pi * STEPS[:40] / 40)) / 2)
    falling = 0.5 * (0.02 + 0.98 * (1 + np.cos(np.pi * (STEPS[40:] - 40) / 60)) / 2)
    np.testing.assert_allclose(got, [*rising, *falling], rtol=1e-5)


def test_one_cycle_has_the_shape_of_torch():
    """Rates that torch 2.14 printed. It reaches peak and end one step before the end of its phases:

    OneCycleLR(optimizer, 0.5, total_steps=101, pct_start=31 / 101, div_factor=25, final_div_factor=40).
    """
    printed = {0: 0.02, 1: 0.0213147451, 15: 0.26, 29: 0.4986852549, 30: 0.5, 31: 0.4997485184, 99: 0.0007514816}
    got = rates(of("one_cycle", peak=0.5, start=1 / 25, final=1 / 25 / 40), printed)
    np.testing.assert_allclose(got, list(printed.values()), rtol=2e-5)


def test_multistep_falls_at_half_and_three_quarters_by_default():
    np.testing.assert_allclose(rates(Multistep(peak=1.0, **LENGTH), [49, 50, 74, 75]), [1, 0.1, 0.1, 0.01], rtol=1e-6)


def test_no_schedule_of_restarts_ends_in_a_new_cycle_by_default():
    for steps in (20, 99, 100, 1000):
        schedule = make_schedule("cosine_restarts", {"peak": 1.0}, total_steps=steps, steps_per_epoch=1)
        assert float(schedule(steps - 1)) < 0.1


# --- warm-up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RISING)
def test_the_warm_up_is_a_straight_line_to_the_rate_after_it(name):
    got = rates(of(name, peak=0.3, warmup={"steps": 5}), range(6))
    np.testing.assert_allclose(got[:5], got[4] * np.arange(1, 6) / 5, rtol=1e-6)
    assert got[5] == pytest.approx(got[4], rel=1e-2)


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "exponential", "inverse_time", "plateau"])
def test_a_warm_up_shifts_nothing_that_follows(name):
    without, rising = (rates(of(name, peak=0.3, warmup=warmup)) for warmup in (None, {"epochs": 1.2}))
    np.testing.assert_array_equal(rising[12:], without[12:])
    assert rising[11] == pytest.approx(without[12])


def test_cosine_runs_from_the_warm_up_to_the_end():
    got = rates(Cosine(peak=2.0, warmup={"percent": 20}, final=0.1, **LENGTH), range(101))
    by_hand = [2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))) for step in range(20, 101)]
    np.testing.assert_allclose(got[:20], 2 * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(got[20:], by_hand, rtol=1e-5)
    assert got[100] == pytest.approx(0.2)
    assert float(Cosine(**LENGTH)(1000)) == 0.0


def test_the_first_of_several_cycles_includes_the_warm_up():
    got = rates(of("cosine_restarts", peak=1.0, warmup={"steps": 8}, first={"steps": 20}, growth=4.0))
    by_hand = [(1 + math.cos(math.pi * (step - 8) / 12)) / 2 for step in range(8, 20)]
    np.testing.assert_allclose(got[7:20], [1.0, *by_hand], rtol=1e-5)
    assert got[20] == 1.0


@pytest.mark.parametrize("name", ["constant", "polynomial", "cosine", "plateau"])
def test_a_warm_up_of_the_whole_training_ends_at_the_peak(name):
    assert float(of(name, peak=1.0, warmup={"epochs": 10})(99)) == 1.0


# --- the peak for a batch size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_peak_for_another_batch_size_scales_the_whole_curve(name):
    scaled, plain = of(name, peak=0.8, per_images=256), of(name, peak=0.8 * 16 / 256)
    np.testing.assert_allclose(rates(scaled, range(0, 100, 7)), rates(plain, range(0, 100, 7)), rtol=1e-6)


def test_a_peak_per_images_needs_the_batch_size():
    message = "^training.learning_rate.per_images: expected a batch_size beside it, got none$"
    with pytest.raises(ConfigError, match=message):
        Constant(per_images=256, total_steps=100, steps_per_epoch=10)


# --- in Keras -------------------------------------------------------------------------------------------------------

EVERY_OPTION = {
    "constant": {},
    "step": {"every": {"epochs": 2.5}, "factor": 0.5},
    "multistep": {"milestones": {"epochs": [2.0, 6.5]}, "factor": 0.5},
    "exponential": {"every": {"steps": 30}, "factor": 0.5},
    "inverse_time": {"every": {"images": 160}, "decay_rate": 0.5, "power": 2.0},
    "polynomial": {"final": 0.1, "power": 0.5},
    "cosine": {"final": 0.1},
    "cosine_restarts": {"first": {"steps": 20}, "growth": 1.5, "factor": 0.5, "final": 0.1},
    "one_cycle": {"start": 0.1, "rise": {"percent": 20.0}, "final": 0.1},
    "plateau": {"factor": 0.5, "patience": 3, "min_delta": 0.0, "cooldown": 1, "min_rate": 0.01},
}


def every_option(name):
    warmup = {"warmup": {"steps": 5}} if name in RISING else {}
    return {"peak": 0.3, "per_images": 32, **warmup, **EVERY_OPTION[name]}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_work_in_graphs_and_survive_serialization(name):
    schedule = make_schedule(name, every_option(name), **LENGTH)
    in_graph = tf.function(schedule)
    config = keras.optimizers.schedules.serialize(schedule)
    again = keras.optimizers.schedules.deserialize(json.loads(json.dumps(config)))
    assert type(again) is type(schedule)
    for step in (0, 4, 5, 60, 99):
        value = in_graph(tf.constant(step, tf.int64))
        assert (value.dtype, value.shape) == (tf.float32, ())
        assert float(value) == pytest.approx(float(schedule(step)), rel=1e-6)
        assert float(again(step)) == float(schedule(step))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_config_is_what_the_constructor_was_given(name):
    options = every_option(name)
    assert set(options) == set(SCHEDULES[name].options.model_fields)
    schedule = SCHEDULES[name].load()(**options, **LENGTH)
    assert schedule.get_config() == options | LENGTH
    assert type(schedule).from_config(schedule.get_config()).get_config() == schedule.get_config()


def test_a_schedule_of_ones_own_says_what_follows_the_warm_up():
    class Inverse(Schedule):
        def after_warmup(self, step):
            return self.peak / (1 + step)

    schedule = Inverse(peak=2.0, warmup={"steps": 2}, **LENGTH)
    np.testing.assert_allclose(rates(schedule, range(4)), [1 / 3, 2 / 3, 2 / 3, 0.5], rtol=1e-6)


def test_the_rate_of_a_step_of_an_optimizer():
    schedule = Multistep(peak=1.0, milestones={"steps": [3]}, **LENGTH)
    for optimizer in (
        keras.optimizers.SGD(schedule),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule)),
    ):
        assert [float(rate_of_step(optimizer, step)) for step in (1, 3, 4)] == pytest.approx([1, 1, 0.1])
        assert rate_of_last_step(optimizer) == 1  # of the first step, while float16 has skipped all
        optimizer.iterations.assign(4)  # steps done
        assert float(rate_of_last_step(optimizer)) == pytest.approx(0.1)
    assert rate_of_step(keras.optimizers.SGD(0.5), 7) == 0.5


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        ({"epochs": 11.0}, "11 epochs of warm-up do not fit into 10 epochs of training"),
        ({"steps": 101}, "101 steps of warm-up do not fit into 100 steps of training"),
        ({"images": 1601}, "1,601 images of warm-up do not fit into 1,600 images of training"),
    ],
)
@pytest.mark.parametrize("name", RISING)
def test_a_warm_up_longer_than_the_training_is_refused(name, warmup, message):
    with pytest.raises(ConfigError, match=f"^training.learning_rate.warmup: {message}$"):
        make_schedule(name, {"warmup": warmup}, **LENGTH)


def test_a_milestone_after_the_end_is_never_reached():
    """So a recipe can be tried for an epoch."""
    options = {"peak": 1.0, "milestones": {"steps": [50, 150]}}
    schedule = make_schedule("multistep", options, total_steps=100, steps_per_epoch=10)
    assert float(schedule(99)) == pytest.approx(0.1)
    schedule = make_schedule("step", {"peak": 1.0, "every": {"epochs": 12}}, total_steps=100, steps_per_epoch=10)
    assert float(schedule(99)) == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "cosine_restarts",
            {"first": {"epochs": 12}},
            "first: 12 epochs of a first cycle do not fit into 10 epochs of training$",
        ),
        (
            "cosine_restarts",
            {"first": {"epochs": 1}, "warmup": {"steps": 11}},
            "warmup: 11 steps of warm-up do not fit into the first cycle of 1 epoch$",
        ),
        (
            "one_cycle",
            {"rise": {"images": 2000}},
            "rise: 2,000 images of rise do not fit into 1,600 images of training$",
        ),
        (
            "one_cycle",
            {"warmup": {"epochs": 1}},
            "warmup: expected no warm-up, since one_cycle rises by itself. Say with `rise` how long$",
        ),
        ("plateau", {"peak": 0.1, "min_rate": 0.2}, "min_rate: expected at most the peak, 0.1, got 0.2$"),
        ("constant", {"peak": 0}, "peak: expected more than 0, got 0$"),
        ("constant", {"per_images": 0}, "per_images: expected at least 1, got 0$"),
        (
            "constant",
            {"warmup": {"epochs": 1, "steps": 9}},
            "warmup: expected exactly one of epochs, steps, images, percent, got",
        ),
        ("step", {"factor": 1.0}, "factor: expected less than 1, got 1.0$"),
        ("multistep", {"milestones": {"steps": [0]}}, "milestones.steps.0: expected at least 1, got 0$"),
        ("cosine", {"final": 1.5}, "final: expected at most 1, got 1.5$"),
        ("cosine_restarts", {"growth": 0.5}, "growth: expected at least 1, got 0.5$"),
    ],
)
def test_what_cannot_work_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=f"^training.learning_rate.{message}"):
        make_schedule(name, options, **LENGTH)


def test_lengths_in_steps_are_compared_where_they_are_known():
    options = ScheduleOptions(warmup={"steps": 101})
    assert list(options.conflicts_with(TrainingLength(10))) == []
    assert [option for option, _ in options.conflicts_with(TrainingLength(10, 10))] == ["warmup"]
    restarts = CosineRestartsOptions(first={"steps": 10}, warmup={"epochs": 2})
    assert list(restarts.conflicts_with(TrainingLength(10))) == []
    assert [option for option, _ in restarts.conflicts_with(TrainingLength(10, 10))] == ["warmup"]


def test_an_unknown_name_is_refused_with_the_nearest():
    message = "training.learning_rate: expected a known schedule, got 'cosin', did you mean 'cosine'"
    with pytest.raises(ConfigError, match=message):
        make_schedule("cosin", {}, **LENGTH)


# --- plateau --------------------------------------------------------------------------------------------------------


def reduced(make_callback, learning_rate, monitor, values):
    """Return the rate after each epoch of a training whose monitored metric has these values."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(learning_rate))
    callback, found = make_callback(), []
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        callback.on_train_batch_begin(0)
        callback.on_epoch_end(epoch, {monitor: value})
        callback.on_train_batch_begin(0)
        found.append(float(rate_of_step(model.optimizer, 1)))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 0.5, "patience": 2, "min_delta": 0.01, "cooldown": 0, "min_rate": 0.0},
        {"factor": 0.5, "patience": 1, "min_delta": 0.0, "cooldown": 3, "min_rate": 0.0},
        {"factor": 0.1, "patience": 1, "min_delta": 0.05, "cooldown": 1, "min_rate": 0.02},
    ],
)
@pytest.mark.parametrize(("monitor", "sign"), [("val_loss", 1), ("val_accuracy", -1)])
def test_plateau_decides_as_keras_does(monitor, sign, options):
    values = 1 + sign * (np.geomspace(0.5, 0.05, 40) + np.random.default_rng(0).normal(0, 0.03, 40))
    schedule = Plateau(peak=0.4, **options, **LENGTH)
    got = reduced(lambda: ReduceOnPlateau(monitor), schedule, monitor, values)
    keras_s = {("min_lr" if name == "min_rate" else name): value for name, value in options.items()}
    mode = {1: "min", -1: "max"}[sign]
    expected = reduced(lambda: keras.callbacks.ReduceLROnPlateau(monitor, mode=mode, **keras_s), 0.4, monitor, values)
    assert len(set(expected)) > 2
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_reduction_multiplies_the_warm_up_too():
    schedule = Plateau(peak=0.4, warmup={"steps": 4}, **LENGTH)
    schedule.multiplier.assign(0.5)
    np.testing.assert_allclose(rates(schedule, (0, 3, 4, 99)), [0.05, 0.2, 0.2, 0.2])


def test_plateau_is_resumed_in_a_validation_after_a_reduction():
    def train(state, should_stop, records):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        schedule = Plateau(peak=0.4, factor=0.5, patience=1, min_delta=9.0, total_steps=8, steps_per_epoch=2)
        model.compile(keras.optimizers.SGD(schedule), "mse", jit_compile=False)
        model.optimizer.iterations.assign(state.step)
        batch = tf.data.Dataset.from_tensors((tf.ones((1, 1)), tf.ones((1,))))
        return Trainer(model).fit(
            lambda first: batch.repeat(),
            steps_per_epoch=2,
            epochs=4,
            state=state,
            validation=batch.repeat(2),
            callbacks=[ReduceOnPlateau("val_loss")],
            hooks=Hooks(on_log=records.append, should_stop=lambda: should_stop(state)),
        )

    records = []
    # After the steps of the third epoch, only its validation asks whether to stop.
    state = train(TrainState(), lambda state: state.step == 6, records)
    assert (state.step, state.ending, state.interrupted) == (6, True, True)
    train(TrainState(**json.loads(json.dumps(state.to_dict()))), lambda state: False, records)
    rates = [record["learning_rate"] for record in records if record["split"] == "train"]
    assert rates == pytest.approx([0.4, 0.4, 0.2, 0.1])  # the third is of the resumed training
