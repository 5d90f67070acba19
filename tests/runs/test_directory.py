"""A run directory has one owner, whatever happens between two starts."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from kpipe.errors import EnvironmentFault
from kpipe.runs import lock
from kpipe.runs.directory import open_run, saved_step
from kpipe.tuning.directory import find_search, open_search, searches_folder, unfinished_searches

IDENTITY = {"name": "x", "seed": 0}


def commit(run):
    """Leave what a run directory takes for a checkpoint."""
    (run.checkpoints / "step-00000001").mkdir(parents=True)


def test_a_second_start_sees_the_first_before_it_has_trained(tmp_path):
    with open_run(tmp_path, "x", IDENTITY) as run:
        with pytest.raises(EnvironmentFault, match=r"this run is still running \(process \d+ on "):
            with open_run(tmp_path, "x", IDENTITY):
                pass
        with open_run(tmp_path, "x", IDENTITY, new=True) as beside:
            assert beside.path != run.path
        with open_run(tmp_path, "x", IDENTITY | {"seed": 1}) as other:
            said = f"{run.path} is unfinished and has another config (seed: 0 there, 1 here); kpipe run --resume "
            assert other.note == f"{said}{run.path} resumes it"


def test_a_start_beside_many_finished_runs_parses_none_of_their_configs(tmp_path, monkeypatch):
    """Each takes milliseconds. The newest of the same experiment is named, and no run is taken."""
    for number in range(20):
        with open_run(
            tmp_path, "x", IDENTITY | {"seed": number % 4}, at=tmp_path / "x" / f"2026-01-01_{number:02}"
        ) as run:
            run.begin(IDENTITY | {"seed": number % 4}, {"precision": "float32"})
            run.write_json("summary.json", {"status": "finished"})
    monkeypatch.setattr("kpipe.runs.directory.read_yaml", None)
    with open_run(tmp_path, "x", IDENTITY, label="seed=0") as run:
        newest = tmp_path / "x" / "2026-01-01_16"
        assert run.note == f"{newest} is a finished run of the same experiment; this is another"
        assert run.path.name.endswith("_seed=0")


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
        assert again.resolved == ({"precision": "float32"} if resumed else None)


def test_a_run_that_finishes_while_it_is_looked_at_is_left_alone(tmp_path, monkeypatch):
    with open_run(tmp_path, "x", IDENTITY) as run:
        commit(run)
    take = lock.take

    def finish_then_take(path):
        if path == run.path:
            (path / "summary.json").write_text(json.dumps({"status": "finished"}))
        return take(path)

    monkeypatch.setattr("kpipe.runs.directory.take", finish_then_take)
    with open_run(tmp_path, "x", IDENTITY) as again:
        assert again.path != run.path


def test_a_folder_that_is_held(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    monkeypatch.setattr("kpipe.runs.lock.PATIENCE", 0.1)
    with FileLock(tmp_path / "x" / ".lock"):
        with pytest.raises(EnvironmentFault, match=r"another process has held \.lock for 0\.1 seconds; try again"):
            with open_run(tmp_path, "x", IDENTITY):
                pass


START = """
import sys
sys.stdin.readline()
from kpipe.errors import EnvironmentFault
from kpipe.runs.directory import open_run
from pathlib import Path
try:
    with open_run(Path(sys.argv[1]), "x", {"name": "x", "seed": 0}, new="--new" in sys.argv) as run:
        print("won", run.path, flush=True)
        sys.stdin.readline()
except EnvironmentFault as error:
    print("lost", error, flush=True)
"""


@pytest.fixture
def contenders(tmp_path):
    """Processes that wait at the line until they are told to start."""
    processes = []

    def contenders(number, *arguments):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", START, str(tmp_path), *arguments]
        processes.extend(subprocess.Popen(command, **pipes) for _ in range(number))
        time.sleep(0.5)
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return processes, [process.stdout.readline().rstrip("\n").split(maxsplit=1) for process in processes]

    yield contenders
    for process in processes:
        process.kill()
        process.communicate()


def files_of(folder):
    """Contents and times, but of the lock files."""
    paths = sorted(path for path in folder.rglob("*") if path.name not in (".lock", ".owner"))
    return [(path, path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths]


def test_of_twenty_starts_one_wins_and_the_others_change_nothing(tmp_path, contenders):
    processes, lines = contenders(20)
    [winner] = [process for process, line in zip(processes, lines, strict=True) if line[0] == "won"]
    [run] = [line[1] for line in lines if line[0] == "won"]
    losers = [line for line in lines if line[0] == "lost"]
    assert len(losers) == 19
    for _, message in losers:
        assert message.startswith(f"{run}: this run is still running (process {winner.pid} on ")
    before = files_of(tmp_path)
    with pytest.raises(EnvironmentFault, match=f"process {winner.pid} on"), open_run(tmp_path, "x", IDENTITY):
        pass
    assert files_of(tmp_path) == before


def test_starts_in_the_same_second_get_different_directories(tmp_path, contenders, monkeypatch):
    _, lines = contenders(5, "--new")
    assert len({line[1] for line in lines if line[0] == "won"}) == 5
    monkeypatch.setattr("kpipe.runs.directory.time.strftime", lambda form: "2026-01-01_00-00-00")
    paths = []
    for _ in range(12):
        with open_run(tmp_path, "y", {"name": "y"}, new=True) as run:
            commit(run)
            paths.append(run.path)
    assert sorted(paths) == paths  # the newest is found, also of more than ten
    with open_run(tmp_path, "y", {"name": "y"}) as run:
        assert run.path == paths[-1]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, contenders):
    [process], [(_, path)] = contenders(1)
    (tmp_path / "x" / path.rsplit("/", 1)[1] / "checkpoints" / "step-00000001").mkdir(parents=True)
    process.kill()
    process.wait()
    with open_run(tmp_path, "x", IDENTITY) as run:
        assert (str(run.path), run.resumed) == (path, True)


def test_a_run_is_named_by_hand(tmp_path):
    with open_run(tmp_path, "x", IDENTITY) as run:
        commit(run)
        run.write_json("summary.json", {"status": "finished"})
        with pytest.raises(EnvironmentFault, match="this run is still running"):
            with open_run(tmp_path, "x", IDENTITY, resume=run.path):
                pass
    with open_run(tmp_path, "x", IDENTITY, resume=run.path) as again:
        assert (again.path, again.resumed, again.status) == (run.path, True, "finished")


def test_the_step_to_resume_from_is_the_one_that_was_acknowledged(tmp_path):
    assert saved_step(tmp_path) is None
    for step in (7, 12):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    for text, step in ((None, 12), ("step-00000007\n", 7), ("step-00000099\n", 12), ("\x00", 12), ("step-x", 12)):
        if text is not None:
            (tmp_path / "checkpoints" / "latest").write_text(text)
        assert saved_step(tmp_path) == step


def test_of_several_runs_with_another_config_the_nearest_is_named(tmp_path):
    paths = []
    for change in ({"seed": 1}, {"seed": 2, "model": "b"}):
        with open_run(tmp_path, "x", IDENTITY | change, new=True) as run:
            commit(run)
            paths.append(run.path)
    with open_run(tmp_path, "x", IDENTITY) as run:
        assert run.note.startswith(f"{paths[0]} is unfinished and has another config (seed: 1 there, 0 here)")


@pytest.mark.parametrize("kept", ["summary.json", "model.keras", "metrics.jsonl"])
def test_a_run_that_has_lost_its_checkpoints_alone_is_not_removed(tmp_path, kept):
    with open_run(tmp_path, "x", IDENTITY) as run:
        (run.path / kept).write_text("{}")
    with open_run(tmp_path, "x", IDENTITY) as again:
        assert again.path != run.path
        said = f"{run.path} is unfinished, but has no checkpoint to resume from; it is left alone"
        assert again.note == said
    assert (run.path / kept).exists()


def test_a_directory_whose_making_was_killed_is_removed(tmp_path):
    half, other = tmp_path / "x" / "2026-01-01_00-00-00", tmp_path / "x" / "notes"
    for folder, name in ((half, ".lock"), (half, "config.yaml.tmp"), (half, ".config.part.yaml"), (other, "notes.txt")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    with open_run(tmp_path, "x", IDENTITY):
        assert not half.exists()
        assert (other / "notes.txt").exists()


BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    "config", [BOMB, "[" * 5000, "- 1", "x" * 1_000_001, "a: !!python/object/apply:os.abort []", "\x00", None]
)
@pytest.mark.parametrize("summary", ["[]", "[" * 5000, '{"status": ["finished"]}', "{", None])
def test_what_kpipe_has_not_written_is_passed_over(tmp_path, config, summary):
    stray = tmp_path / "x" / "2026-01-01_00-00-00"
    stray.mkdir(parents=True)
    for name, text in (("config.yaml", config), ("summary.json", summary)):
        if text is not None:
            (stray / name).write_text(text)
    before = files_of(stray)
    with open_run(tmp_path, "x", IDENTITY) as run:
        assert run.path != stray
    assert files_of(stray) == before


@pytest.mark.parametrize("status", ["interrupted", "finished"])
def test_a_run_at_a_place_is_resumed_if_it_is_the_same(tmp_path, status):
    place = tmp_path / "search" / "0001"
    with open_run(tmp_path, "x", IDENTITY, at=place) as run:
        assert (run.path, run.resumed) == (place, False)
        run.write_config(IDENTITY, {"precision": "float32"})
        commit(run)
        run.write_json("summary.json", {"status": status})
    with open_run(tmp_path, "x", IDENTITY, at=place) as again:
        assert (again.resumed, again.status, again.resolved) == (True, status, {"precision": "float32"})
    with open_run(tmp_path, "x", IDENTITY | {"seed": 1}, at=place) as other:
        assert not other.resumed
        assert {path.name for path in place.iterdir()} == {".lock", ".owner", "config.yaml"}  # nothing of the old one
    assert not place.exists()  # it has left nothing to keep


SEARCH = IDENTITY | {"search": {"method": "random", "trials": 3, "keep": 3, "space": {"seed": {"choice": [0, 1]}}}}


def test_a_search_is_found_by_what_it_searches(tmp_path):
    logs = tmp_path / "logs"
    with open_search(logs, "x", SEARCH, {"name": "x"}) as path:
        assert {each.name for each in path.iterdir()} == {".owner", ".search.lock", "search.yaml", "trials"}
    assert path.parent == tmp_path / "logs_searches" / "x"
    assert re.fullmatch(r"[\d-]{10}_[\d-]{8}_[0-9a-f]{8}", path.name)
    assert find_search(logs, "x", SEARCH) == path
    assert find_search(logs, "x", SEARCH | {"search": SEARCH["search"] | {"trials": 9, "keep": 1}}) == path
    assert find_search(logs, "x", SEARCH | {"search": SEARCH["search"] | {"space": {}}}) is None
    assert find_search(logs, "x", SEARCH | {"seed": 1}) is None
    (path / "search.yaml").write_text("{")  # it is found all the same
    for _ in range(3):  # within a second: the newest of them is found
        with open_search(logs, "x", SEARCH, {}, new=True) as new:
            pass
        assert find_search(logs, "x", SEARCH) == new != path
    assert unfinished_searches(path.parent)[-1] == new
    (new / "search.json").write_text('{"status": "finished"}')
    assert new not in unfinished_searches(path.parent)


@pytest.mark.parametrize(
    ("logs", "folder"), [("runs/", "home/work/runs_searches"), (".", "home/work_searches"), ("..", "home_searches")]
)
def test_searches_lie_beside_the_folder_of_runs(tmp_path, monkeypatch, logs, folder):
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "work")
    assert searches_folder(Path(logs), "x").absolute() == tmp_path / folder / "x"


def test_a_folder_of_searches_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "logs_searches").write_text("")
    said = (
        f"{tmp_path}/logs_searches/x: cannot be written (Not a directory). Searches are kept beside the folder of "
        f"runs, {tmp_path}/logs: give another one with logs=FOLDER or KPIPE_LOGS."
    )
    with pytest.raises(EnvironmentFault, match=re.escape(said)):
        with open_search(tmp_path / "logs", "x", SEARCH, {}):
            pass


def test_a_search_has_one_owner(tmp_path):
    logs = tmp_path / "logs"
    with open_search(logs, "x", SEARCH, {}):
        with pytest.raises(EnvironmentFault, match=r"this search is still running \(process \d+ on "):
            with open_search(logs, "x", SEARCH, {}):
                pass
        with open_search(logs, "x", SEARCH, {}, new=True):
            pass
