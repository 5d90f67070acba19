"""A run directory has one owner, whatever happens between two starts."""

import json

import pytest
from filelock import FileLock

from kpipe.errors import EnvironmentFault
from kpipe.rundir import open_run

IDENTITY = {"name": "x", "seed": 0}


def commit(run):
    """As far as a run directory is concerned."""
    (run.checkpoints / "step-00000001").mkdir(parents=True)


def test_a_second_start_sees_the_first_before_it_has_trained(tmp_path):
    with open_run(tmp_path, "x", IDENTITY) as run:
        with pytest.raises(EnvironmentFault, match=r"this run is still going on \(process \d+ on "):
            with open_run(tmp_path, "x", IDENTITY):
                pass
        with open_run(tmp_path, "x", IDENTITY, new=True) as beside:
            assert beside.path != run.path
        with open_run(tmp_path, "x", IDENTITY | {"seed": 1}) as other:
            assert other.note == f"{run.path} is unfinished and has another config (seed: 0 there, 1 here)"


def test_a_run_without_a_checkpoint_leaves_nothing(tmp_path):
    with open_run(tmp_path, "x", IDENTITY):
        pass
    assert not [path for path in (tmp_path / "x").iterdir() if path.is_dir()]


def test_the_leftover_of_a_kill_before_the_first_checkpoint_is_removed(tmp_path):
    with open_run(tmp_path, "x", IDENTITY) as run:
        commit(run)
    (run.checkpoints / "step-00000001").rmdir()
    with open_run(tmp_path, "x", IDENTITY) as again:
        assert not again.resumed
        assert again.path == run.path or not run.path.exists()


@pytest.mark.parametrize(("status", "resumed"), [("interrupted", True), ("finished", False), ("diverged", False)])
def test_what_is_resumed(tmp_path, status, resumed):
    with open_run(tmp_path, "x", IDENTITY) as run:
        run.write_config(IDENTITY, {"precision": "float32"})
        commit(run)
        run.write_json("summary.json", {"status": status})
    with open_run(tmp_path, "x", IDENTITY) as again:
        assert (again.path == run.path) == again.resumed == resumed
        assert again.chosen == ({"precision": "float32"} if resumed else None)


def test_a_run_that_finishes_while_it_is_looked_at_is_left_alone(tmp_path, monkeypatch):
    with open_run(tmp_path, "x", IDENTITY) as run:
        commit(run)
    from kpipe import rundir

    take = rundir._take

    def finish_then_take(path):
        if path == run.path:
            (path / "summary.json").write_text(json.dumps({"status": "finished"}))
        return take(path)

    monkeypatch.setattr(rundir, "_take", finish_then_take)
    with open_run(tmp_path, "x", IDENTITY) as again:
        assert again.path != run.path


def test_a_folder_that_is_held(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.setattr("kpipe.rundir._PATIENCE", 0.1)
    with FileLock(tmp_path / "x" / ".lock"):
        with pytest.raises(EnvironmentFault, match=r"another process has held \.lock for 0\.1 seconds; try again"):
            with open_run(tmp_path, "x", IDENTITY):
                pass
