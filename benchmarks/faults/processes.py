"""The processes that are started here, and what is expected of them."""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

FORK = multiprocessing.get_context("forkserver")  # children are forked off a process that has imported TensorFlow
FORK.set_forkserver_preload(["kpipe.experiment"])
PATIENCE = 120  # seconds, for whatever should take a few

SOON = 2.0  # seconds within which a signal and a refused start are obeyed

stopping = threading.Event()


class Lost(Exception):
    """What was promised did not hold."""


def expect(holds: object, otherwise: str) -> None:
    if not holds:
        raise Lost(otherwise)


# --- processes --------------------------------------------------------------------------------------------------------


class Child:
    """A process started here; `pid`, its exit code, what it has printed, and for a forked one a pipe to it."""

    def __init__(self, output: Path, work: Callable | None, arguments: Sequence, environment: dict[str, str]):
        """`work(pipe, *arguments)` in a forked process, or, without it, a program with these arguments."""
        self.output = output
        self.pipe = None
        self.acknowledged = 0  # the last step whose commit was told
        if work is None:
            with open(output / "out", "wb") as out, open(output / "err", "wb") as err:
                self._program = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=os.environ | environment
                )
            self.pid = self._program.pid
            return
        self._program = None
        self.pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=_work, args=(theirs, str(output), environment, work, arguments))
        self._process.start()
        theirs.close()
        self.pid = self._process.pid

    def exit_code(self, seconds: float = PATIENCE) -> int | None:
        """Waits for the end; None: it has not come. Negative: the number of the signal that brought it."""
        if self._program is None:
            self._process.join(max(seconds, 0))
            return self._process.exitcode
        with suppress(subprocess.TimeoutExpired):
            return self._program.wait(max(seconds, 0))
        return None

    def signal(self, number: int) -> None:
        if self.exit_code(0) is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self.exit_code()

    def receive(self, seconds: float = PATIENCE):
        """The next message."""
        expect(self.pipe.poll(seconds), f"process {self.pid} has not answered in {seconds} seconds")
        try:
            return self.pipe.recv()
        except EOFError:
            raise Lost(f"process {self.pid} has ended ({self.exit_code()}): {self.said('err')[-600:]}") from None

    def received(self) -> list:
        """The messages that are there already."""
        messages = []
        with suppress(EOFError, OSError):
            while self.pipe.poll(0):
                messages.append(self.pipe.recv())
        return messages

    def said(self, stream: str) -> str:
        return (self.output / stream).read_text(errors="replace")


def _work(pipe, output: str, environment: dict[str, str], work: Callable, arguments: Sequence) -> None:
    """What a forked process does."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(work(pipe, *arguments))


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@dataclass
class Site:
    """Where one fault happens to one variant: a folder, random numbers of its own, and what was found."""

    folder: Path
    random: random.Random
    quick: bool
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _count: Iterator[int] = field(default_factory=itertools.count)
    _children: list[Child] = field(default_factory=list)

    def new(self, name: str) -> Path:
        path = self.folder / f"{next(self._count):04}-{name}"
        path.mkdir(parents=True)
        return path

    def fork(self, work: Callable, *arguments, **environment: str) -> Child:
        return self._start(work, arguments, environment)

    def launch(self, *arguments: str, **environment: str) -> Child:
        """`python -m kpipe.run`, a whole process."""
        environment |= {"PYTHONUNBUFFERED": "1"}  # what a killed process has said shall be seen
        return self._start(None, (sys.executable, "-m", "kpipe.run", *arguments), environment)

    def _start(self, work, arguments, environment) -> Child:
        expect(not stopping.is_set(), "the benchmark is being stopped")
        self._children = [child for child in self._children if child.exit_code(0) is None]
        child = Child(self.new("output"), work, arguments, environment)
        self._children.append(child)
        return child

    def end_children(self) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)
        for child in self._children:
            child.exit_code()

    def survives(self, attempt: Callable[..., None], *arguments) -> bool:
        """Whether an attempt found all that was promised."""
        try:
            attempt(*arguments)
        except Exception as error:
            if stopping.is_set():
                raise
            what = str(error) if isinstance(error, Lost) else f"{type(error).__name__}: {error}"
            self.losses.append(what)
            return False
        return True


@contextmanager
def prefixed(where: str) -> Iterator[None]:
    try:
        yield
    except Lost as loss:
        raise Lost(f"{where}: {loss}") from None
