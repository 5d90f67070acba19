"""The time of a training step."""

import keras
import pytest

from kpipe.training import timing
from kpipe.training.timing import Work, time_in_turns, time_steps
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
    assert (clock, found.steps, found.seconds_per_step) == (steps, steps[-1], seconds)
    assert int(trainer.model.optimizer.iterations) == sum(steps)


@pytest.fixture
def works(monkeypatch):
    """A clock, and two works by the seconds that their steps take; the first step takes one more. What is done."""
    now, done = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def make_work(name, seconds):
        def run(steps):
            now[0] += seconds * steps + (name not in {each for each, _ in done})
            done.append((name, steps))
            return name

        return Work(run, lambda seconds_per_step: done.append((f"settle {name}", seconds_per_step)))

    return lambda **seconds: ({name: make_work(name, each) for name, each in seconds.items()}, done)


def test_works_take_turns_of_about_one_length(works):
    made, done = works(fast=0.125, slow=2.0)
    turns = time_in_turns(made, rounds=2, turn_seconds=4, max_seconds=100)
    warm_up = [("fast", 1), ("fast", 3), ("fast", 12), ("fast", 32), ("slow", 1)]
    a_round = [("settle fast", 0.125), ("fast", 32), ("settle slow", 3.0), ("slow", 1)]
    assert done == warm_up + 2 * a_round
    assert {name: [(turn.steps, turn.seconds_per_step) for turn in turns[name]] for name in turns} == {
        "fast": 2 * [(32, 0.125)],
        "slow": 2 * [(1, 2.0)],
    }
    assert turns["slow"][0].result == "slow"


@pytest.mark.parametrize(("seconds", "found"), [(10.0, 3 * [10.0]), (100.0, [101.0])])
def test_no_round_begins_that_ends_too_late(works, seconds, found):
    """To settle may take a step: a round of 10 s may take 22 s. Without a round, the warm-up counts."""
    made, _ = works(slow=seconds)
    turns = time_in_turns(made, rounds=5, turn_seconds=1, max_seconds=60)["slow"]
    assert [turn.seconds for turn in turns] == found
