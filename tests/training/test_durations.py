import pytest

from kpipe.catalog.rows import Duration
from kpipe.config.schema import LogEvery, SaveEvery
from kpipe.errors import ConfigError
from kpipe.training.durations import steps_of

LENGTH = {"total_steps": 100, "steps_per_epoch": 10}


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ({"epochs": 2}, 20),
        ({"epochs": 0.25}, 2),
        ({"epochs": 0.01}, 1),
        ({"steps": 7}, 7),
        ({"percent": 3}, 3),
        ({"percent": 0.1}, 1),
        ({"minutes": 5}, None),
        ({"epochs": 2, "steps": None, "minutes": None}, 20),
        (Duration(percent=50), 50),
        (LogEvery(epochs=0.5), 5),
        (SaveEvery(steps=12), 12),
        (SaveEvery(minutes=10), None),
    ],
)
def test_durations_in_steps(duration, steps):
    assert steps_of(duration, **LENGTH) == steps


def test_only_percent_needs_the_whole_training():
    assert steps_of({"epochs": 3}, steps_per_epoch=10) == 30
    with pytest.raises(ConfigError, match="duration: expected total_steps beside 50 percent, got none"):
        steps_of({"percent": 50}, steps_per_epoch=10)


@pytest.mark.parametrize("duration", [{}, {"epochs": None}, {"epochs": 1, "steps": 2}, {"hours": 3}])
def test_a_duration_has_one_unit(duration):
    with pytest.raises(ConfigError, match="duration: expected exactly one of epochs, steps, percent, minutes, got"):
        steps_of(duration, **LENGTH)
