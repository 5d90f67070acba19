"""Which steps of a training are profiled."""

import keras
import pytest
import tensorflow as tf

from kpipe.errors import Diverged
from kpipe.training.control import Cadence, Hooks, TrainState
from kpipe.training.losses import CrossEntropy
from kpipe.training.profiling import profiling
from kpipe.training.trainer import Trainer


@pytest.fixture
def trainer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", CrossEntropy(), jit_compile=False)
    return Trainer(model)


@pytest.fixture
def profiled(monkeypatch, trainer):
    """What the profiler was told, with the steps done until then."""
    told = []
    for name in ("start", "stop"):
        monkeypatch.setattr(
            tf.profiler.experimental,
            name,
            lambda *folder, name=name: told.append((name, *folder, int(trainer.model.optimizer.iterations))),
        )
    return told


def fit(trainer, callback, state=None, images=0.0, **hooks):
    def batches_from(first):
        return tf.data.Dataset.from_tensors((tf.fill((4, 3), images), tf.zeros(4, tf.int32))).repeat(30 - first)

    length = {"steps_per_epoch": 10, "epochs": 3, "cadence": Cadence(chunk=7)}
    return trainer.fit(batches_from, **length, state=state, callbacks=[callback], hooks=Hooks(**hooks))


@pytest.mark.parametrize("steps", [(1, 1), (3, 5), (8, 12), (25, 30)])
def test_a_profile_begins_before_its_first_step_and_ends_after_its_last(trainer, profiled, tmp_path, steps):
    with profiling(tmp_path, steps) as callback:
        fit(trainer, callback)
    assert profiled == [("start", str(tmp_path), steps[0] - 1), ("stop", steps[1])]


def test_a_resumed_training_is_profiled_from_where_it_is(trainer, profiled, tmp_path):
    with profiling(tmp_path, (3, 25)) as callback:
        state = fit(trainer, callback, should_stop=lambda: int(trainer.model.optimizer.iterations) >= 13)
    assert state.interrupted
    assert profiled == [("start", str(tmp_path), 2), ("stop", state.step)]
    done, again = state.step, TrainState(**state.to_dict())
    with profiling(tmp_path, (3, 25)) as callback:
        fit(trainer, callback, again)
    assert profiled[2:] == [("start", str(tmp_path), done), ("stop", 25)]


def test_a_profile_ends_with_a_training_that_fails(trainer, profiled, tmp_path):
    with pytest.raises(Diverged), profiling(tmp_path, (1, 25)) as callback:
        fit(trainer, callback, images=float("nan"))
    assert [name for name, *_ in profiled] == ["start", "stop"]


def test_a_profile_may_be_asked_for_when_a_training_is_resumed(trainer, profiled, tmp_path):
    state = fit(trainer, keras.callbacks.Callback(), should_stop=lambda: int(trainer.model.optimizer.iterations) >= 13)
    assert 10 < state.step < 18
    with profiling(tmp_path, (18, 19)) as callback:
        fit(trainer, callback, TrainState(**state.to_dict()))
    assert profiled == [("start", str(tmp_path), 17), ("stop", 19)]
