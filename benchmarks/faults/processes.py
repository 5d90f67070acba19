"""Child processes, and the sandbox in which one fault happens to one variant.

A child is either a program or a function in a forked process, which talks to the benchmark through a pipe. A forked
child ends when the benchmark dies; programs are killed when their sandbox is cleaned up.
"""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from expectations import Lost, expect

FORK = multiprocessing.get_context("forkserver")  # children are forked from a process that has imported TensorFlow
FORK.set_forkserver_preload(["kpipe.experiment"])
PATIENCE = 120  # seconds to wait for what should take a few

stopping = threading.Event()
"""Set when the benchmark itself is interrupted: no more children are started."""


@dataclass(eq=False)
class Child:
    """A running or finished child process.

    Attributes:
        pid: its process ID.
        output: the folder with the files `out` and `err`: its standard output and standard error.
        wait: waits so many seconds at most, and returns the exit code, or None while the process runs.
        pipe: the connection to a forked child.
    """

    pid: int
    output: Path
    wait: Callable[[float], int | None]
    pipe: Connection | None = None

    @property
    def stdout(self) -> str:
        return (self.output / "out").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self.output / "err").read_text(errors="replace")

    def exit_code(self, seconds: float = PATIENCE) -> int | None:
        """Wait for the end; None if it has not come. The negative number of a signal if that ended the process."""
        return self.wait(max(seconds, 0))

    def signal(self, number: int) -> None:
        if self.exit_code(0) is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.exit_code()

    def receive(self, seconds: float = PATIENCE):
        """Return the next message of a forked child; Lost if none comes."""
        expect(self.pipe.poll(seconds), f"process {self.pid} has not answered in {seconds} seconds")
        try:
            return self.pipe.recv()
        except EOFError:
            raise Lost(f"process {self.pid} has ended ({self.exit_code()}): {self.stderr[-600:]}") from None

    def receive_all(self) -> list:
        """Return the messages that have arrived already."""
        messages = []
        with suppress(EOFError, OSError):
            while self.pipe.poll(0):
                messages.append(self.pipe.recv())
        return messages


def launch(command: Sequence[str], output: Path, environment: dict[str, str]) -> Child:
    """Start a program."""
    with open(output / "out", "wb") as out, open(output / "err", "wb") as err:
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=os.environ | environment
        )

    def wait_for_program(seconds: float) -> int | None:
        try:
            return program.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    return Child(program.pid, output, wait_for_program)


def fork(work: Callable, arguments: Sequence, output: Path, environment: dict[str, str]) -> Child:
    """Start `work(pipe, *arguments)` in a forked process."""
    pipe, child_pipe = FORK.Pipe()
    process = FORK.Process(target=_run_forked, args=(child_pipe, str(output), environment, work, arguments))
    process.start()
    child_pipe.close()

    def wait_for_process(seconds: float) -> int | None:
        process.join(seconds)
        return process.exitcode

    return Child(process.pid, output, wait_for_process, pipe)


def _run_forked(pipe, output: str, environment: dict[str, str], work: Callable, arguments: Sequence) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(work(pipe, *arguments))


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def call_later(delay: float, function: Callable[[], None]) -> None:
    """Call a function from another thread after a delay in seconds."""
    timer = threading.Timer(delay, function)
    timer.daemon = True
    timer.start()


@dataclass
class Sandbox:
    """The place in which one fault happens to one variant.

    Attributes:
        folder: holds every file of this variant.
        random: a random generator of its own, so that moments and places do not depend on what else runs.
        quick: whether to do as little as possible.
        losses: why attempts were lost.
        notes: lines to show below the table.
    """

    folder: Path
    random: random.Random
    quick: bool
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _children: list[Child] = field(default_factory=list)

    def make_folder(self, name: str) -> Path:
        """Make a new, empty folder; names may repeat."""
        path = self.folder / f"{next(self._numbers):04}-{name}"
        path.mkdir(parents=True)
        return path

    def fork(self, work: Callable, *arguments, **environment: str) -> Child:
        """Start `work(pipe, *arguments)` in a forked process with these environment variables."""
        return self._start(fork, work, arguments, environment=environment)

    def launch(self, *command: str, **environment: str) -> Child:
        """Start a program with these environment variables."""
        return self._start(launch, command, environment=environment)

    def _start(self, start: Callable[..., Child], *what, environment: dict[str, str]) -> Child:
        expect(not stopping.is_set(), "the benchmark is being stopped")
        self._children = [child for child in self._children if child.exit_code(0) is None]
        child = start(*what, self.make_folder("output"), environment)
        self._children.append(child)
        return child

    def kill_children(self) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)
        for child in self._children:
            child.exit_code()

    def survives(self, attempt: Callable[..., None], *arguments) -> bool:
        """Make an attempt and return whether all its expectations held; any exception counts as a loss."""
        try:
            attempt(*arguments)
        except Exception as error:
            if stopping.is_set():
                raise
            self.losses.append(str(error) if isinstance(error, Lost) else f"{type(error).__name__}: {error}")
            return False
        return True
