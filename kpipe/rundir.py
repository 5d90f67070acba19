"""A run on disk: `<logs>/<experiment>/<run id>/`, found, resumed or created, and owned by one process.

A search is a folder `search-<id>` beside the runs of its experiment, with one run directory a trial.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from kpipe.errors import EnvironmentFault

_LOCK, _OWNER = ".lock", ".owner"
_SEARCH_LOCK = ".search.lock"  # the short lock of the runs in a search's folder is its .lock
_PATIENCE = 10  # seconds that the short lock of an experiment's folder is waited for
_OVER = ("finished", "diverged")  # the states of a run that is not picked up again
_SEARCH, TRIALS = "search-", "trials"  # how a search's folder begins, and the folder of its records
_ELSEWHERE = " Give another folder with logs=FOLDER or KPIPE_LOGS."
LARGEST_CONFIG = 100_000  # bytes; an experiment is one page, and reading ten times this takes seconds
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit for the size of a file (ulimit -f)",
}
REFUSALS = (*_REMEDIES, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)
"""What a file system says when it does not let itself be written."""


@dataclass(frozen=True)
class Run:
    """A run directory that this process owns.

    Attributes:
        path: the directory.
        resumed: an earlier process has left a checkpoint here.
        chosen: what that process chose for the machine (precision, determinism), or None.
        status: of summary.json, when this process took the run; None: there was none.
        note: a line for the user about a run that was found and not taken, or None.
    """

    path: Path
    resumed: bool
    chosen: dict[str, Any] | None
    status: str | None = None
    note: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The best weights of a finished run."""
        return self.path / "model.keras"

    def write_config(self, experiment: dict[str, Any], chosen: dict[str, Any] | None = None) -> None:
        """Writes config.yaml: fed back to `kpipe run`, it repeats the run."""
        write_config(self.path, experiment if chosen is None else {**experiment, "chosen": chosen})

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        write_json(self.path / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` wrote; an empty dict where that is gone or damaged."""
        return read_json(self.path / name)


class _Dumper(yaml.SafeDumper):
    """Quotes text that looks like a number: PyYAML itself writes the name `1e3` so that YAML 1.2 reads 1000."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if text[:1] in "+-.0123456789" else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def finite_or_null(value: Any) -> Any:
    """JSON knows no infinity, and none but Python reads one."""
    if isinstance(value, dict):
        return {key: finite_or_null(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: neither a reader nor a power cut meets half of it."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a file in one step; what is not finite becomes null."""
    write_text(path, json.dumps(finite_or_null(value), indent=2, allow_nan=False) + "\n")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Replaces config.yaml in one step."""
    write_text(folder / "config.yaml", yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


@contextmanager
def open_run(
    logs: Path,
    name: str,
    identity: dict[str, Any],
    *,
    new: bool = False,
    resume: Path | None = None,
    at: Path | None = None,
) -> Iterator[Run]:
    """Resumes the unfinished run of this experiment, or starts a new one, and owns it for the time of the `with`.

    A run that leaves the block without a checkpoint or a summary has nothing to keep and is removed.

    Args:
        logs: the folder of all runs.
        name: of the experiment; its runs are in `logs/name`.
        identity: the resolved experiment; a run with another one is left alone.
        new: start another run beside an unfinished or a living one.
        resume: the run to go on with, whatever its state, instead of looking for one.
        at: the directory of the run, instead of looking for one. What is there is gone on with if it is a run of this
            experiment with a checkpoint, and else removed.

    Raises:
        EnvironmentFault: the folder cannot be written, or another process is at work on the same experiment.
    """
    named = resume or at
    folder = Path(logs) / name if named is None else named.parent
    with _locked(folder, "" if named else _ELSEWHERE):
        if resume is not None:
            run, lock = _take_named(resume)
        else:
            run, lock = _find_or_create(folder, identity, new) if at is None else _take_or_create(at, identity)
    try:
        yield run
    finally:
        # Under the folder's lock: nobody else may be about to take a lock file that is deleted here.
        with FileLock(folder / _LOCK):
            _leave(run.path)
            if _has_nothing_to_keep(run.path):
                shutil.rmtree(run.path, ignore_errors=True)
            lock.release()


@contextmanager
def open_search(
    logs: Path, name: str, identity: dict[str, Any], config: dict[str, Any], *, new: bool = False
) -> Iterator[Path]:
    """Goes on with the newest search of this experiment and space, or starts one; gives its folder, owned by this
    process for the time of the `with`.

    Args:
        logs: the folder of all runs.
        name: of the experiment.
        identity: as `find_search` takes it.
        config: what config.yaml is to hold: the experiment as it was given.
        new: start another search in any case.

    Raises:
        EnvironmentFault: as `open_run`.
    """
    folder = Path(logs) / name
    with _locked(folder, _ELSEWHERE):
        path = None if new else find_search(logs, name, identity)
        path = path or _fresh_path(folder, f"{_SEARCH}{_digest_of_search(identity)}_")
        (path / TRIALS).mkdir(parents=True, exist_ok=True)
        lock = _take(path, "search", _SEARCH_LOCK)
        write_config(path, config)
    try:
        yield path
    finally:
        with FileLock(folder / _LOCK):
            _leave(path, _SEARCH_LOCK)
            lock.release()


def find_search(logs: Path, name: str, identity: dict[str, Any]) -> Path | None:
    """The folder of the newest search with this identity.

    Args:
        logs: the folder of all runs.
        name: of the experiment.
        identity: experiment and search, resolved; with another number of trials, or of those that keep their weights,
            it is still the same.
    """
    found = (Path(logs) / name).glob(f"{_SEARCH}{_digest_of_search(identity)}_*")
    return max(found, default=None)


def unfinished_searches(folder: Path) -> list[Path]:
    """The searches in an experiment's folder that have not been reported, the newest last."""
    found = [path for path in folder.glob(f"{_SEARCH}*") if read_status(path) != "finished"]
    return sorted(found, key=lambda path: path.name.partition("_")[2])


def _digest_of_search(identity: dict[str, Any]) -> str:
    search = {key: value for key, value in identity["search"].items() if key not in ("trials", "keep")}
    text = json.dumps(_without_machine(identity) | {"search": search}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _without_machine(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs runs of the same experiment."""
    return {key: value for key, value in config.items() if key not in ("chosen", "logs")}


@contextmanager
def _locked(folder: Path, elsewhere: str) -> Iterator[None]:
    """Makes a folder of runs and holds its short lock; refusals of the file system become EnvironmentFault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK, timeout=_PATIENCE):
            yield
    except Timeout:
        raise EnvironmentFault(
            f"{folder}: another process has held {_LOCK} for {_PATIENCE} seconds; try again"
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or folder}: cannot be written ({error.strerror}).{elsewhere}"
        ) from None


def _leave(path: Path, lock: str = _LOCK) -> None:
    with suppress(OSError):  # Windows does not delete what is open
        (path / _OWNER).unlink(missing_ok=True)
        (path / lock).unlink(missing_ok=True)


def is_run_of(path: Path, identity: dict[str, Any]) -> bool:
    """Whether a directory holds a run of this resolved experiment."""
    return _without_machine(_read_config(path) or {}) == identity


def saved_step(path: Path) -> int | None:
    """The step from which a run would go on; what that is worth is for `training.checkpoints` to say."""
    folder = path / "checkpoints"
    names = [found.name.removeprefix("step-") for found in folder.glob("step-*")]
    steps = [int(name) for name in names if name.isdecimal()]
    with suppress(OSError, ValueError):
        pointed = int((folder / "latest").read_text(encoding="utf-8").strip().removeprefix("step-"))
        if pointed in steps:  # else a crash or a person has taken it away
            return pointed
    return max(steps, default=None)


@contextmanager
def worded_write_errors(folder: Path) -> Iterator[None]:
    """Turns what a file system refuses in the middle of a run into an EnvironmentFault with path and free bytes.

    Args:
        folder: what is being written where an error does not say it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise cannot_write(Path(error.filename or folder), error.errno) from None


def cannot_write(path: Path, code: int) -> EnvironmentFault:
    """The error that says it, with the bytes that are free there; `code`: of `errno`."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return EnvironmentFault(
        f"{path}: cannot be written ({os.strerror(code)}); {shutil.disk_usage(folder).free:,} bytes are free there. "
        f"What was saved before is still there: {remedy(code)} and give the same command again."
    )


def remedy(code: int | None) -> str:
    """What to do about a number of `errno`."""
    return _REMEDIES.get(code, "let it be written")


def _find_or_create(folder: Path, identity: dict[str, Any], new: bool) -> tuple[Run, FileLock]:
    note, others = None, []
    for path in sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(_SEARCH)), reverse=True):
        config = _read_config(path)
        if config is None and all(file.name in (_LOCK, _OWNER, "config.yaml.tmp") for file in path.iterdir()):
            shutil.rmtree(path)  # killed when it was being made
        if new or config is None:
            continue
        theirs = _without_machine(config)
        if (status := read_status(path)) in _OVER:
            if theirs == identity:
                note = note or f"{path} is a {status} run of the same experiment; this is another"
            continue
        if theirs != identity:
            others.append((path, _differences(theirs, identity)))
            continue
        lock = _take(path)
        if read_status(path) in _OVER:  # killed between its summary and the release of its lock, just now
            lock.release()
            continue
        if saved_step(path) is not None:
            return Run(path, True, config.get("chosen"), read_status(path)), lock
        lock.release()
        if _has_nothing_to_keep(path):
            shutil.rmtree(path)  # killed before its first checkpoint
        else:
            note = note or f"{path} is unfinished, but has no checkpoint to go on from; it is left alone"
    if others and note is None:
        path, found = min(others, key=lambda other: len(other[1]))
        shown = "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
        note = f"{path} is unfinished and has another config ({shown}); kpipe run --resume {path} goes on with it"
    run = Run(_fresh_path(folder), False, None, note=note)
    run.path.mkdir()
    lock = _take(run.path)
    run.write_config(identity)  # now: a second start must see which experiment this run belongs to
    return run, lock


def _has_nothing_to_keep(path: Path) -> bool:
    kept = any((path / name).exists() for name in ("summary.json", "model.keras"))
    metrics = path / "metrics.jsonl"
    return saved_step(path) is None and not kept and not (metrics.exists() and metrics.stat().st_size)


def _take_named(path: Path) -> tuple[Run, FileLock]:
    lock = _take(path)
    return Run(path, True, (_read_config(path) or {}).get("chosen"), read_status(path)), lock


def _take_or_create(path: Path, identity: dict[str, Any]) -> tuple[Run, FileLock]:
    path.mkdir(exist_ok=True)
    lock = _take(path)
    if saved_step(path) is not None and is_run_of(path, identity):
        return Run(path, True, (_read_config(path) or {}).get("chosen"), read_status(path)), lock
    for found in path.iterdir():
        if found.name not in (_LOCK, _OWNER):
            shutil.rmtree(found) if found.is_dir() and not found.is_symlink() else found.unlink()
    run = Run(path, False, None)
    run.write_config(identity)
    return run, lock


def _take(path: Path, what: str = "run", name: str = _LOCK) -> FileLock:
    lock = FileLock(path / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = read_json(path / _OWNER)
        raise EnvironmentFault(
            f"{path}: this {what} is still going on (process {owner.get('pid', '?')} on {owner.get('host', '?')}). "
            "Wait for it, or start another beside it with --new."
        ) from None
    write_text(path / _OWNER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    return lock


def read_status(path: Path) -> str | None:
    """What summary.json says of a run: finished, interrupted, diverged; None: there is none yet."""
    return read_json(path / "summary.json").get("status")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; an empty dict where that is gone or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class _Loader(yaml.SafeLoader):
    """Knows no aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        return super().compose_node(parent, index)


def _read_config(path: Path) -> dict[str, Any] | None:
    """The config.yaml of a run; None where there is none that kpipe can have written."""
    file = path / "config.yaml"
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            return None
        config = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _fresh_path(folder: Path, prefix: str = "") -> Path:
    stamp = prefix + time.strftime("%Y-%m-%d_%H-%M-%S")
    names = [stamp] + [f"{stamp}_{i:03}" for i in range(2, 1000)]  # sorted by name, as they came
    return next(folder / name for name in names if not (folder / name).exists())


def _differences(theirs: Any, ours: Any, keys: str = "") -> list[str]:
    """`training.epochs: 3 there, 5 here` for each key that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            found
            for key in dict.fromkeys([*theirs, *ours])
            if theirs.get(key) != ours.get(key)
            for found in _differences(theirs.get(key), ours.get(key), f"{keys}.{key}" if keys else key)
        ]
    return [f"{keys}: {theirs} there, {ours} here"]
