"""The time of a training step."""

import keras
import pytest

from kpipe.training import timing
from kpipe.training.timing import time_steps
from kpipe.training.trainer import Trainer


@pytest.fixture
def trainer():
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return Trainer(model)


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each step takes a second, the first one ten more; the number of steps of each measurement."""
    measured, real = [], timing.Trainer.run_steps
    now = [0.0]

    def run_steps(trainer, iterator, num_steps, head=None):
        if num_steps:
            now[0] += num_steps + (0 if measured else 10)
            measured.append(num_steps)
        return real(trainer, iterator, num_steps, head)

    monkeypatch.setattr(timing.Trainer, "run_steps", run_steps)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return measured


@pytest.mark.parametrize(
    ("max_seconds", "steps", "seconds"), [(5, [1], 11), (25, [1, 2], 1), (10_000, [1, timing._MOST_STEPS], 1)]
)
def test_as_many_steps_are_timed_as_there_is_time_for(trainer, clock, max_seconds, steps, seconds):
    found = time_steps(trainer, 4, 2, max_seconds=max_seconds)
    assert (clock, found.measured_steps, found.seconds_per_step) == (steps, steps[-1], seconds)
    assert int(trainer.model.optimizer.iterations) == sum(steps)
