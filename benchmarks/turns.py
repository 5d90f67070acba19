"""Variants of a work that take turns, each in a process of its own, which is suspended between its turns.

The parent makes a `VariantProcess` of each variant, and `take_turns` measures them. In its process, a variant gets
ready and then works between `Turns.begin` and `Turns.end`, until it is killed.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import psutil
from report import median_row

# By default waiting OpenMP threads spin, and their CPU time would be counted against torch and numba.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
FORK = multiprocessing.get_context("forkserver")  # children are forked from a process that has imported TensorFlow
FORK.set_forkserver_preload(["kpipe.experiment"])
SPAWN = multiprocessing.get_context("spawn")  # children have imported nothing


class NotReady(Exception):
    """A variant has failed, or not been in time, before its first turn."""


class Turns:
    """Measures the turns of the variant in this process.

    Args:
        pipe: to the `VariantProcess`.
    """

    def __init__(self, pipe):
        self._pipe = pipe

    def begin(self, facts: Any = None) -> None:
        """Say that the variant is ready, and wait for its first turn; `facts` is what the parent learns of it."""
        self._pipe.send(facts)
        self._wait()

    def end(self) -> None:
        """Send what the turn took, and wait for the next one."""
        wall, cpu = time.perf_counter(), time.process_time() + _worker_seconds()
        self._pipe.send((cpu - self._cpu, wall - self._wall))
        self._wait()

    def _wait(self) -> None:
        self._pipe.recv()
        # The search for workers takes time itself, which is left out at both ends.
        self._cpu = _worker_seconds() + time.process_time()
        self._wall = time.perf_counter()


def _worker_seconds() -> float:
    """Return the CPU seconds of the processes that this one has started."""
    workers = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in workers)


class VariantProcess:
    """The process of one variant, suspended between its turns; it is killed at the end of a `with`.

    A running process would read ahead: it would disturb the measurements of the others, and the next one of its own
    would find a part of the work done.

    Args:
        serve: called in the process with `Turns` and the arguments.
        arguments: of `serve`.
        context: how the process is started.
        seconds: how long it may take to get ready; None: as long as it takes.

    Attributes:
        facts: what the variant has said of itself when it was ready.

    Raises:
        NotReady: it has ended, or the seconds are over.
    """

    def __init__(self, serve: Callable, *arguments: Any, context=FORK, seconds: float | None = None):
        self.pipe, child_pipe = context.Pipe()
        process = context.Process(target=_serve, args=(child_pipe, serve, *arguments))
        process.start()
        child_pipe.close()
        self.process = psutil.Process(process.pid)
        try:
            if not self.pipe.poll(seconds):
                raise NotReady(f"it takes more than {seconds:g} s to get ready")
            self.facts = self.pipe.recv()
        except EOFError:
            raise NotReady("it has failed") from None
        except BaseException:
            self.kill()
            raise
        self._suspend()

    def __enter__(self) -> "VariantProcess":
        return self

    def __exit__(self, *_) -> None:
        self.kill()

    def measure(self) -> tuple[float, float]:
        """Return the CPU seconds and the wall seconds of one turn."""
        for process in self._with_workers():
            process.resume()
        self.pipe.send(True)
        seconds = self.pipe.recv()
        self._suspend()
        return seconds

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for process in self._with_workers():
                process.kill()

    def _with_workers(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def _suspend(self) -> None:
        for process in self._with_workers():
            process.suspend()


def _serve(pipe, serve: Callable, *arguments: Any) -> None:
    serve(Turns(pipe), *arguments)


def take_turns(work: str, items: int, repetitions: int, processes: Mapping[str, VariantProcess]) -> list[dict]:
    """Measure the variants of one work by turns; return a row of each, with all repetitions beside their medians.

    Args:
        work: its name.
        items: images or steps of one turn.
        repetitions: turns of each variant.
        processes: by variant.
    """
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in processes}
    for _ in range(repetitions):
        for variant, process in processes.items():
            times[variant].append(process.measure())
    return [_make_row(work, variant, items, times[variant]) for variant in processes]


def _make_row(work: str, variant: str, items: int, times: list[tuple[float, float]]) -> dict:
    cpu, wall = ([round(seconds, 4) for seconds in column] for column in zip(*times, strict=True))
    return median_row(work, variant, items, times) | {"repetitions": {"cpu_seconds": cpu, "wall_seconds": wall}}
