"""Shared by all tests: no TensorFlow chatter, runs under a temporary folder, Keras's globals as they were."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib
import multiprocessing
import sys
import time

import keras
import pytest


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "logs"))


@pytest.fixture(autouse=True)
def keras_as_it_was():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


# Forks of one process that has imported TensorFlow, and has not used it, save most of the time of a start.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["kpipe.experiment"])


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
    from kpipe import cli

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
