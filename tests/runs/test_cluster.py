"""What the workers tell each other about their run, with stand-ins for the others."""

import json
from contextlib import nullcontext

import pytest
import tensorflow as tf

from kpipe.config.schema import Experiment
from kpipe.errors import ConfigError, DataError, EnvironmentFault
from kpipe.runs import cluster
from kpipe.runs.cluster import (
    check_same_data,
    check_same_experiment,
    open_run_together,
    translate_lost_workers,
)
from kpipe.runs.directory import Run
from kpipe.training.distribution import Workers

IDENTITY = {"name": "tiny"}


class Two(Workers):
    """One of two workers; what the other one says is given."""

    def __init__(self, index, *, told="", flag=False):
        self.index, self.count, self._told, self._flag = index, 2, told, flag
        self.said = []

    def share(self, text=""):
        self.said.append(text)
        return text if self.is_chief else self._told

    def largest(self, value):
        return max(value, float(self._flag))


def offer(path, **others):
    told = {"path": str(path), "resumed": True, "resolved": {"precision": "float32"}, "status": None, "token": "7 run"}
    return json.dumps(told | others)


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / ".workers").write_text("7 run")
    (run / "config.yaml").write_text("name: tiny\n")
    return run


def test_the_others_get_a_copy_that_they_may_write_to(run):
    with open_run_together(Two(1, told=offer(run))) as copy:
        assert copy.path != run and copy.resumed and copy.resolved == {"precision": "float32"}
        assert (copy.path / "config.yaml").read_text() == "name: tiny\n"
        assert copy.checkpoints.resolve() == run / "checkpoints"
        copy.write_json("summary.json", {})
    assert not copy.path.exists() and not (run / "summary.json").exists() and (run / "checkpoints").exists()


@pytest.mark.parametrize("token", ["8 run", None])
def test_a_run_directory_that_is_not_shared_is_refused_by_the_others(run, token):
    (run / ".workers").unlink() if token is None else (run / ".workers").write_text(token)
    message = "run: expected a run directory that all workers see, and not all do. Put the runs on a disk that all"
    with pytest.raises(EnvironmentFault, match=message), open_run_together(Two(1, told=offer(run))):
        pass


def test_the_chief_ends_as_well_where_another_does_not_see_its_run(tmp_path):
    chief = Two(0, flag=True)
    message = "expected a run directory that all workers see, and not all do"
    with pytest.raises(EnvironmentFault, match=message), open_run_together(chief, tmp_path, "tiny", IDENTITY):
        pass
    assert not [*(tmp_path / "tiny").glob("2*")]


def test_the_others_are_told_why_the_chief_has_no_run(tmp_path):
    chief = Two(0)
    (tmp_path / "tiny").touch()
    with pytest.raises(EnvironmentFault), open_run_together(chief, tmp_path, "tiny", IDENTITY):
        pass
    [told] = chief.said
    with pytest.raises(EnvironmentFault, match="^the first worker could not open a run: .*tiny"):
        with open_run_together(Two(1, told=told)):
            pass


@pytest.mark.parametrize("differs", [False, True])
def test_workers_with_other_data_are_refused(tmp_path, differs):
    (tmp_path / "data.json").write_text('{"classes": ["a"]}')
    chief = Two(0)
    check_same_data(Run(tmp_path, False, None), chief)
    (tmp_path / "data.json").write_text('{"classes": ["b"]}' if differs else '{"classes": ["a"]}')
    message = "^the workers have found different data; they need the same images under data.source$"
    with pytest.raises(DataError, match=message) if differs else nullcontext():
        check_same_data(Run(tmp_path, False, None), Two(1, told=chief.said[0]))


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"logs": "/other", "data": {"source": "folder:/other"}}, False),
        ({"data": {"source": "digits", "batch_size": 16}}, True),
    ],
)
def test_all_workers_train_the_same_experiment(other, differs):
    plain = {"name": "tiny", "model": {"name": "lenet5"}, "data": {"source": "digits"}}
    chief = Two(0)
    check_same_experiment(Experiment.model_validate(plain), chief)
    message = "^the workers train different experiments; start the same command on all of them$"
    with pytest.raises(ConfigError, match=message) if differs else nullcontext():
        check_same_experiment(Experiment.model_validate(plain | other), Two(1, told=chief.said[0]))


def test_a_lost_worker_is_said_with_how_to_resume(run):
    error = tf.errors.UnavailableError(None, None, "Graph execution error:\n\nSocket closed")
    (run / "checkpoints" / "step-00000012").mkdir()
    with pytest.raises(EnvironmentFault) as found, translate_lost_workers(Two(0), Run.reading(run)):
        raise error
    said = str(found.value)
    assert said.startswith(
        "another worker has ended, or cannot be reached (Socket closed); the training is saved up to "
    )
    assert "step 12. Start all of them again. " in said


def test_what_tensorflow_says_of_earlier_operations_is_left_out(run):
    message = "The error could be from a previous operation. Restart your program to reset. [Op:CollectiveReduceV2]"
    with (
        pytest.raises(EnvironmentFault, match=r"^another worker has ended, or cannot be reached; nothing is saved yet"),
        translate_lost_workers(Two(0), Run.reading(run)),
    ):
        raise tf.errors.InternalError(None, None, message)


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM"),
        tf.errors.InvalidArgumentError(None, None, "a label value of 12 is outside the valid range of [0, 10)"),
        ConfigError("data.source: expected"),
    ],
)
def test_other_errors_stay_what_they_are(run, error):
    with pytest.raises(type(error)), translate_lost_workers(Two(0), Run.reading(run)):
        raise error


def test_alone_an_error_of_tensorflow_stays_one(run):
    with pytest.raises(tf.errors.UnavailableError), translate_lost_workers(Workers(), Run.reading(run)):
        raise tf.errors.UnavailableError(None, None, "x")


def test_a_token_is_no_part_of_a_run(tmp_path):
    chief = Two(0)
    with open_run_together(chief, tmp_path, "tiny", IDENTITY) as opened:
        assert not (opened.path / cluster._TOKEN).exists()


def test_before_there_is_a_run_nothing_is_saved():
    with pytest.raises(EnvironmentFault, match=r"\(Socket closed\); nothing is saved yet. Start all of them again. "):
        with translate_lost_workers(Two(0)):
            raise tf.errors.UnavailableError(None, None, "Socket closed")
