"""Locks that give a run or a search to one process for as long as it lives."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kpipe.caller import flag
from kpipe.errors import EnvironmentFault
from kpipe.files import read_json, write_text
from kpipe.names import path_shown

LOCK, OWNER = ".lock", ".owner"
PATIENCE = 10  # seconds to wait for the short lock of an experiment's folder
ELSEWHERE = " Give another folder with logs=FOLDER or KPIPE_LOGS."


@contextmanager
def locked_folder(folder: Path, elsewhere: str) -> Iterator[None]:
    """Make a folder of runs and hold its short lock.

    Args:
        folder: of the runs of one experiment.
        elsewhere: the end of the message where the file system refuses: how to give another folder.

    Raises:
        EnvironmentFault: the folder cannot be written, or another process does not release the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=PATIENCE):
            yield
    except Timeout:
        raise EnvironmentFault(f"{folder}: another process has held {LOCK} for {PATIENCE} seconds; try again") from None
    except OSError as error:
        raise EnvironmentFault(
            f"{path_shown(error.filename or folder)}: cannot be written ({error.strerror}).{elsewhere}"
        ) from None


def locked_again(folder: Path) -> AbstractContextManager:
    """Hold the short lock of a folder of runs at the end of one; where the folder has been deleted, do nothing."""
    return FileLock(folder / LOCK) if folder.is_dir() else nullcontext()


def take(path: Path, what: str = "run", name: str = LOCK) -> FileLock:
    """Take the lock of a run or a search, and write down who has it.

    Args:
        path: the directory.
        what: "run" or "search", for the message.
        name: the lock file's name.

    Raises:
        EnvironmentFault: another process has it.
    """
    lock = FileLock(path / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = read_json(path / OWNER)
        raise EnvironmentFault(
            f"{path}: this {what} is still running (process {owner.get('pid', '?')} on {owner.get('host', '?')}). "
            f"Wait for it, or start another beside it with {flag('new')}."
        ) from None
    write_text(path / OWNER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    return lock


def is_taken(path: Path, name: str = LOCK) -> bool:
    """Return whether a living process has the lock of a run or a search; a lock that may not be opened says nothing."""
    if not (path / name).exists():
        return False
    lock = FileLock(path / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False


def leave(path: Path, name: str = LOCK) -> None:
    """Remove the files of a lock that is about to be released."""
    with suppress(OSError):  # Windows does not delete what is open
        (path / OWNER).unlink(missing_ok=True)
        (path / name).unlink(missing_ok=True)
