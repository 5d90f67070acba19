"""`kpipe` in processes of their own, which tests watch, signal and kill.

They stand outside `conftest.py`: a child imports this module by its name, and there are two modules named conftest.
"""

import functools
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import time

import pytest
from tiny_runs import touch

# Forks of one process that has imported TensorFlow, and has not used it, save most of the time of a start.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["kpipe.experiment"])


@functools.cache
def begin_serving():
    """Start that process, with what TensorFlow says at its import thrown away."""
    held, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    multiprocessing.forkserver.ensure_running()
    os.dup2(held, 2)
    for descriptor in (held, nowhere):
        os.close(descriptor)


def run_verb(arguments, folder, environment, blow):
    """Live as a started process. `blow`: (module, class or None, function, n-th call, signal to itself)."""
    os.environ.clear()
    os.environ.update({"MPLBACKEND": "module://of.jupyter"} | environment)  # as in a cell of a notebook
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
        """Wait until the text stands on its standard output."""
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
        """Return its exit code; a negative number for the signal that killed it."""
        self.process.join(timeout=90)
        return self.process.exitcode
