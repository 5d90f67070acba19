import pytest

from kpipe.catalog.rows import Duration
from kpipe.config.schema import LogEvery, SaveEvery
from kpipe.errors import ConfigError
from kpipe.training.durations import steps_of

LENGTH = {"total_steps": 100, "steps_per_epoch": 10, "batch_size": 16}


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ({"epochs": 2}, 20),
        ({"epochs": 0.25}, 2),
        ({"epochs": 0.01}, 1),
        ({"steps": 7}, 7),
        ({"images": 320}, 20),
        ({"images": 1}, 1),
        ({"percent": 3}, 3),
        ({"percent": 0.1}, 1),
        ({"minutes": 5}, None),
        ({"epochs": 2, "steps": None, "minutes": None}, 20),
        (Duration(percent=50), 50),
        (Duration(images=800), 50),
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


def test_only_images_need_the_batch_size():
    with pytest.raises(ConfigError, match="duration: expected batch_size beside 6,400 images, got none"):
        steps_of({"images": 6400}, steps_per_epoch=10, total_steps=100)


@pytest.mark.parametrize("duration", [{}, {"epochs": None}, {"epochs": 1, "steps": 2}, {"hours": 3}])
def test_a_duration_has_one_unit(duration):
    message = "duration: expected exactly one of epochs, steps, images, percent, minutes, got"
    with pytest.raises(ConfigError, match=message):
        steps_of(duration, **LENGTH)
