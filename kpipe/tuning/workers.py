"""Several workers on one machine: processes that ask this one, keras-tuner's chief, what to try next.

keras-tuner's chief waits forever when a worker is gone. Here a worker that was killed is started again, a few times,
under the same name, and is given its trial again. Any other end of a worker ends the search.
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
_PATIENCE = 60  # seconds that a worker has to save its trial
_LAST_LINES = 100
_PAUSE = 0.2  # seconds between two polls


def read_role() -> str | None:
    """Return what this process is by keras-tuner's environment variables: chief, worker, or None if it is alone.

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
    """Return the address at which a worker expects the chief."""
    return f"{os.environ[IP]}:{os.environ[PORT]}"


@contextmanager
def translate_protocol_errors() -> Iterator[None]:
    """Turn gRPC's error when the chief is gone into an EnvironmentFault."""
    try:
        yield
    except grpc.RpcError as error:
        said = f"{error.code().name}: {error.details()}"
        raise EnvironmentFault(
            f"the chief at {chief_address()} is gone or does not answer ({said}). Start it again, and then this "
            "worker: the search resumes"
        ) from None


@contextmanager
def as_chief() -> Iterator[None]:
    """Make this process the chief, at a free port that workers find which are started inside the `with`."""
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
    """End this worker, its trial saved, when the process that has started it is gone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while str(os.getppid()) == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Server(threading.Thread):
    """The chief's loop, in a thread of its own.

    Args:
        search: does not return before every worker that it knows has been told to stop.

    Attributes:
        error: what ended the loop, if it failed.
    """

    def __init__(self, search: Callable[[], None]):
        super().__init__(daemon=True)
        self._search = search
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._search()
        except Exception as error:  # raised again in the main thread
            self.error = error

    def wait(self, poll: Callable[[], None]) -> None:
        """Wait until the loop has ended, and call `poll` several times a second."""
        while self.is_alive():
            self.join(_PAUSE)
            poll()
        if self.error is not None:
            raise self.error


@dataclass
class _Worker:
    name: str
    log: Path
    process: subprocess.Popen | None = None
    starts: int = 0
    log_begin: int = 0
    """Offset in the log at which its last start begins."""
    has_ended: bool = False


@dataclass
class Workers:
    """The workers of a search on this machine.

    Args:
        loaded: what is searched.
        count: number of workers.
        folder: of the search, where each worker writes its log.
        screen: shows which workers are started again.
    """

    loaded: Loaded
    count: int
    folder: Path
    screen: Screen
    _workers: list[_Worker] = field(default_factory=list)

    def supervise(self, server: Server, stop: Stop, poll: Callable[[], None]) -> None:
        """Run the workers until all have ended by themselves, or the chief has no more trials for them.

        Args:
            server: the chief's loop.
            stop: the signals.
            poll: is called several times a second.

        Raises:
            KeyboardInterrupt: a signal came; the workers have saved their trials.
            EnvironmentFault: a worker was killed too often.
            KpipeError: what a worker has reported.
        """
        self._workers = [_Worker(f"worker-{i}", self.folder / f"worker-{i}.log") for i in range(1, self.count + 1)]
        stop.defer()
        try:
            for worker in self._workers:
                self._start(worker)
            # A worker that starts when the chief has ended would wait for it.
            while server.is_alive() and not all(worker.has_ended for worker in self._workers):
                time.sleep(_PAUSE)
                if stop.number is not None:
                    self._end_all()
                    stop.obey()
                for worker in self._workers:
                    self._check(worker)
                poll()
            if server.error is not None:
                raise server.error
        finally:
            self._end_all()
        poll()

    def _start(self, worker: _Worker) -> None:
        command = [sys.executable, "-m", "kpipe", "search", self.loaded.document.name, *self.loaded.overrides]
        environment = {**os.environ, ID: worker.name, LAUNCHER: str(os.getpid()), FOLDER: str(self.folder)}
        worker.starts += 1
        with open(worker.log, "ab") as log:
            worker.log_begin = log.tell()
            # A session of its own: Ctrl-C reaches this process, which then tells the workers.
            worker.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _check(self, worker: _Worker) -> None:
        code = None if worker.has_ended else worker.process.poll()
        if code is None:
            return
        if code == 0:
            worker.has_ended = True
        elif 0 < code < 128:
            raise _error_of(worker, code)
        elif worker.starts <= _RESTARTS:
            self.screen.line(
                f"{worker.name} was killed (exit code {code}) and is started again, {worker.starts} of {_RESTARTS}"
            )
            self._start(worker)
        else:
            raise EnvironmentFault(
                f"{worker.name} was killed {worker.starts} times (exit code {code}), so the search ends here; "
                f"is the memory too small for {self.count} workers? Its log: {worker.log}. The same command resumes."
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


def _error_of(worker: _Worker, code: int) -> Exception:
    """Return the error of a worker, from its exit code and the end of its log."""
    with open(worker.log, encoding="utf-8", errors="replace") as log:
        log.seek(worker.log_begin)
        said = "\n".join(log.read().splitlines()[-_LAST_LINES:])
    kinds: Mapping[int, type[KpipeError]] = {
        kind.exit_code: kind for kind in (ConfigError, DataError, EnvironmentFault)
    }
    if code in kinds:
        return kinds[code](f"{worker.name}: {said}")
    return RuntimeError(f"{worker.name} ended with exit code {code}; the end of {worker.log}:\n{said}")
