"""Shared by all tests: no TensorFlow chatter, runs under a temporary folder, Keras's globals as they were."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import importlib
import itertools
import multiprocessing
import multiprocessing.forkserver
import shutil
import sys
import time
from pathlib import Path

import keras
import pytest
from tiny_runs import TINY, only_run, refuse_to_write

from kpipe import cli


def pytest_collection_modifyitems(items):
    """The longest files first, so that both workers end at the same time."""
    longest = (
        "runs/test_resume",
        "models/test_models",
        "search/test_search",
        "runs/test_input",
        "runs/test_run",
        "data/test_pipeline",
        "data/test_augmentations",
        "training/test_trainer",
    )

    def place(item):
        name = "/".join(item.path.with_suffix("").parts[-2:])
        return longest.index(name) if name in longest else len(longest)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "logs"))


@pytest.fixture(autouse=True)
def keras_as_it_was():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(autouse=True)
def pictures_are_drawn_where_they_are_looked_at(request, monkeypatch):
    """Half a second of each run goes into its pictures."""
    if request.path.parent.name not in ("figures", "commands") and request.path.stem != "test_run":
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", touch)


def touch(figure, path, **options):
    """Stands for Matplotlib's `Figure.savefig`."""
    Path(path).touch()


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def experiment(tmp_path, request):
    """The file of a tiny experiment: the module's own TINY, or that of `runs`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(getattr(request.module, "TINY", TINY))
    return str(path)


@pytest.fixture
def kpipe(capfd):
    """Runs a verb in this process; returns (exit code, standard output, standard error)."""

    def kpipe(*arguments):
        code = cli.main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return kpipe


@pytest.fixture
def first_epoch_is_best(monkeypatch):
    scores = itertools.count(0, -1)
    monkeypatch.setattr("kpipe.runs.recorder.score_epoch", lambda monitor, logs: [next(scores)])


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A run that is trained to its end and has not written its model, since the disk was full."""
    folder = tmp_path_factory.mktemp("made_once")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KPIPE_LOGS", str(folder / "logs"))
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        scores = itertools.count(0, -1)  # the first epoch is the best
        patched.setattr("kpipe.runs.recorder.score_epoch", lambda monitor, logs: [next(scores)])
        assert cli.main(["run", str(folder / "tiny.yaml")]) == 5
    return folder / "logs"


@pytest.fixture
def unfinished(made_once, logs):
    """A copy of it, which the same command goes on with."""
    shutil.copytree(made_once, logs)
    return only_run(logs)


# Forks of one process that has imported TensorFlow, and has not used it, save most of the time of a start.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["kpipe.experiment"])


@functools.cache
def begin_serving():
    """Starts that process, with what TensorFlow says at its import thrown away."""
    held, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    multiprocessing.forkserver.ensure_running()
    os.dup2(held, 2)
    for descriptor in (held, nowhere):
        os.close(descriptor)


def run_verb(arguments, folder, environment, blow):
    """The life of a started process. `blow`: (module, class or None, function, n-th call, signal to itself)."""
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv = ["kpipe", *arguments]
    if blow:
        _strike(*blow)
    from matplotlib.figure import Figure

    from kpipe import cli

    Figure.savefig = touch
    sys.exit(cli.main(arguments))


def _strike(module, owner, method, number, signal_number):
    owner = importlib.import_module(module) if owner is None else getattr(importlib.import_module(module), owner)
    real, calls = getattr(owner, method), []

    def struck(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal_number)
        return real(*arguments, **options)

    setattr(owner, method, struck)


class Started:
    """A `kpipe` in a process of its own."""

    def __init__(self, arguments, folder, environment, blow):
        folder.mkdir()
        begin_serving()
        self.folder = folder
        self.process = FORKS.Process(target=run_verb, args=(arguments, folder, environment, blow))
        self.process.start()

    @property
    def pid(self):
        return self.process.pid

    @property
    def out(self):
        return self._read("out")

    @property
    def err(self):
        return self._read("err")

    def _read(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def wait_for(self, text, times=1):
        """Until the text stands on its standard output."""
        deadline = time.monotonic() + 60
        while self.out.count(text) < times:
            if not self.process.is_alive() and self.out.count(text) < times:
                pytest.fail(f"the process ended before it said {text!r}: {self.out}{self.err}")
            if time.monotonic() > deadline:
                pytest.fail(f"the process did not say {text!r}: {self.out}")
            time.sleep(0.005)

    def send(self, signal_number):
        os.kill(self.pid, signal_number)

    def wait(self):
        """Its exit code; a negative number for the signal that killed it."""
        self.process.join(timeout=90)
        return self.process.exitcode


@pytest.fixture
def start(tmp_path):
    """Starts `kpipe ARGUMENTS`; whatever is left of it is ended after the test."""
    started = []

    def start(*arguments, blow=None, **environment):
        folder = tmp_path / f"process{len(started)}"
        started.append(Started(arguments, folder, dict(os.environ) | environment, blow))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.join()
