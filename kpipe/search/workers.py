"""Several workers on one machine: processes that ask this one, keras-tuner's chief, what to try next.

keras-tuner's chief waits for ever when a worker is gone. Here a worker that was killed is started again with its name,
which is given its trial again, a few times; any other end of a worker ends the search.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from kpipe.config.loading import Loaded
from kpipe.console import Screen
from kpipe.errors import ConfigError, DataError, EnvironmentFault, KpipeError
from kpipe.signals import Stop

LAUNCHER = "KPIPE_LAUNCHER"  # the process that a worker is not to outlive
FOLDER = "KPIPE_SEARCH"  # the folder of the launcher's search
IP, PORT, ID = _ADDRESS = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID")
_RESTARTS = 3  # of each worker
_PATIENCE = 60  # seconds that a worker has to save what it does
_LAST_LINES = 100
_PAUSE = 0.2  # seconds between two looks


def role() -> str | None:
    """What keras-tuner's environment variables say that this process is: chief, worker, or None: it is alone.

    Raises:
        ConfigError: some of them are missing.
    """
    given = [name for name in _ADDRESS if os.environ.get(name)]
    if not given:
        return None
    if missing := [name for name in _ADDRESS if name not in given]:
        raise ConfigError(f"{given[0]} is set: expected {' and '.join(missing)} as well, for several workers")
    return "chief" if "chief" in os.environ[ID] else "worker"


def chief_address() -> str:
    """Where a worker looks for the chief."""
    return f"{os.environ[IP]}:{os.environ[PORT]}"


@contextmanager
def translate_protocol_errors() -> Iterator[None]:
    """Turns what gRPC says when the chief is gone into an EnvironmentFault."""
    try:
        yield
    except grpc.RpcError as error:
        said = f"{error.code().name}: {error.details()}"
        raise EnvironmentFault(
            f"the chief at {chief_address()} has gone or does not answer ({said}). Start it again, and this worker: "
            "the search goes on"
        ) from None


@contextmanager
def as_chief() -> Iterator[None]:
    """Makes this process the chief, at a free port of this machine that workers find which are started meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {IP: "127.0.0.1", PORT: str(port), ID: "chief"}
    try:
        yield
    finally:
        for name in _ADDRESS:
            del os.environ[name]


def die_with_launcher() -> None:
    """Ends this worker, what it does saved, when the process that has started it is gone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while str(os.getppid()) == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Server(threading.Thread):
    """The chief's loop, beside the main thread.

    Args:
        search: does not return before every worker that it knows has been told to stop.

    Attributes:
        error: what ended it, if it failed.
    """

    def __init__(self, search: Callable[[], None]):
        super().__init__(daemon=True)
        self._search = search
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._search()
        except Exception as error:  # raised again by who waits for it
            self.error = error

    def wait(self, look: Callable[[], None]) -> None:
        """Until it has ended; `look` is called several times a second."""
        while self.is_alive():
            self.join(_PAUSE)
            look()
        if self.error is not None:
            raise self.error


@dataclass
class _Worker:
    name: str
    log: Path
    process: subprocess.Popen | None = None
    starts: int = 0
    began: int = 0
    """Where in the log its last start stands."""
    has_ended: bool = False


@dataclass
class Workers:
    """The workers of a search on this machine.

    Args:
        loaded: what they search.
        count: how many.
        folder: of the search, where each writes its log.
        screen: is told of workers that are started again.
    """

    loaded: Loaded
    count: int
    folder: Path
    screen: Screen
    _workers: list[_Worker] = field(default_factory=list)

    def supervise(self, server: Server, stop: Stop, look: Callable[[], None]) -> None:
        """Until all have ended by themselves, or the chief has no more for them; `look` is called several times a
        second.

        Raises:
            KeyboardInterrupt: a signal came; the workers have saved what they did.
            EnvironmentFault: a worker was killed too often.
            KpipeError: what a worker says.
        """
        self._workers = [_Worker(f"worker-{i}", self.folder / f"worker-{i}.log") for i in range(1, self.count + 1)]
        stop.defer()
        try:
            for worker in self._workers:
                self._start(worker)
            # A worker that comes when the chief has ended would wait for it.
            while server.is_alive() and not all(worker.has_ended for worker in self._workers):
                time.sleep(_PAUSE)
                if stop.number is not None:
                    self._end_all()
                    stop.obey()
                for worker in self._workers:
                    self._look_after(worker)
                look()
            if server.error is not None:
                raise server.error
        finally:
            self._end_all()
        look()

    def _start(self, worker: _Worker) -> None:
        command = [sys.executable, "-m", "kpipe", "search", self.loaded.document.name, *self.loaded.overrides]
        environment = {**os.environ, ID: worker.name, LAUNCHER: str(os.getpid()), FOLDER: str(self.folder)}
        worker.starts += 1
        with open(worker.log, "ab") as log:
            worker.began = log.tell()
            # A session of its own: Ctrl-C reaches this process, which then tells the workers.
            worker.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _look_after(self, worker: _Worker) -> None:
        code = None if worker.has_ended else worker.process.poll()
        if code is None:
            return
        if code == 0:
            worker.has_ended = True
        elif 0 < code < 128:
            raise _as_said(worker, code)
        elif worker.starts <= _RESTARTS:
            self.screen.line(
                f"{worker.name} was killed (exit code {code}) and is started again, {worker.starts} of {_RESTARTS}"
            )
            self._start(worker)
        else:
            raise EnvironmentFault(
                f"{worker.name} was killed {worker.starts} times (exit code {code}), so the search ends here; "
                f"is the memory too small for {self.count} workers? Its log: {worker.log}. The same command goes on."
            )

    def _end_all(self) -> None:
        running = [worker.process for worker in self._workers if worker.process and worker.process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE
        for process in running:
            try:
                process.wait(timeout=max(_PAUSE, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _as_said(worker: _Worker, code: int) -> Exception:
    """The error of a worker, from its exit code and the end of its log."""
    with open(worker.log, encoding="utf-8", errors="replace") as log:
        log.seek(worker.began)
        said = "\n".join(log.read().splitlines()[-_LAST_LINES:])
    kinds: Mapping[int, type[KpipeError]] = {
        kind.exit_code: kind for kind in (ConfigError, DataError, EnvironmentFault)
    }
    if code in kinds:
        return kinds[code](f"{worker.name}: {said}")
    return RuntimeError(f"{worker.name} ended with exit code {code}; the end of {worker.log}:\n{said}")
