"""Who owns a run or a search: one process, for as long as it lives."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kpipe.errors import EnvironmentFault
from kpipe.files import read_json, write_text

LOCK, OWNER = ".lock", ".owner"


_PATIENCE = 10  # seconds that the short lock of an experiment's folder is waited for


ELSEWHERE = " Give another folder with logs=FOLDER or KPIPE_LOGS."


@contextmanager
def locked_folder(folder: Path, elsewhere: str) -> Iterator[None]:
    """Makes a folder of runs and holds its short lock; refusals of the file system become EnvironmentFault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=_PATIENCE):
            yield
    except Timeout:
        raise EnvironmentFault(
            f"{folder}: another process has held {LOCK} for {_PATIENCE} seconds; try again"
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or folder}: cannot be written ({error.strerror}).{elsewhere}"
        ) from None


def leave(path: Path, lock: str = LOCK) -> None:
    with suppress(OSError):  # Windows does not delete what is open
        (path / OWNER).unlink(missing_ok=True)
        (path / lock).unlink(missing_ok=True)


def take(path: Path, what: str = "run", name: str = LOCK) -> FileLock:
    lock = FileLock(path / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = read_json(path / OWNER)
        raise EnvironmentFault(
            f"{path}: this {what} is still going on (process {owner.get('pid', '?')} on {owner.get('host', '?')}). "
            "Wait for it, or start another beside it with --new."
        ) from None
    write_text(path / OWNER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    return lock
