"""A run on disk: `<logs>/<experiment>/<run id>/`, found, resumed or created, and owned by one process."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kpipe.files import read_json, read_yaml, write_json, write_yaml
from kpipe.runs.lock import (
    ELSEWHERE,
    LOCK,
    OWNER,
    leave,
    locked_folder,
    take,
)

SEARCH = "search-"  # how the folder of a search begins, which lies among the runs
_OVER = ("finished", "diverged")  # the states of a run that is not picked up again


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
        config = experiment if chosen is None else {**experiment, "chosen": chosen}
        write_yaml(self.path / "config.yaml", config)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        write_json(self.path / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` wrote; an empty dict where that is gone or damaged."""
        return read_json(self.path / name)


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
    with locked_folder(folder, "" if named else ELSEWHERE):
        if resume is not None:
            run, lock = _take_named(resume)
        else:
            run, lock = _find_or_create(folder, identity, new) if at is None else _take_or_create(at, identity)
    try:
        yield run
    finally:
        # Under the folder's lock: nobody else may be about to take a lock file that is deleted here.
        with FileLock(folder / LOCK):
            leave(run.path)
            if _has_nothing_to_keep(run.path):
                shutil.rmtree(run.path, ignore_errors=True)
            lock.release()


def without_machine(config: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs runs of the same experiment."""
    return {key: value for key, value in config.items() if key not in ("chosen", "logs")}


def is_run_of(path: Path, identity: dict[str, Any]) -> bool:
    """Whether a directory holds a run of this resolved experiment."""
    return without_machine(_read_config(path) or {}) == identity


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


def _find_or_create(folder: Path, identity: dict[str, Any], new: bool) -> tuple[Run, FileLock]:
    note, others = None, []
    for path in sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(SEARCH)), reverse=True):
        config = _read_config(path)
        if config is None and all(file.name[0] == "." or file.suffix == ".tmp" for file in path.iterdir()):
            shutil.rmtree(path)  # killed when it was being made
        if new or config is None:
            continue
        theirs = without_machine(config)
        if (status := read_status(path)) in _OVER:
            if theirs == identity:
                note = note or f"{path} is a {status} run of the same experiment; this is another"
            continue
        if theirs != identity:
            others.append((path, _differences(theirs, identity)))
            continue
        lock = take(path)
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
    run = Run(fresh_path(folder), False, None, note=note)
    run.path.mkdir()
    lock = take(run.path)
    run.write_config(identity)  # now: a second start must see which experiment this run belongs to
    return run, lock


def _has_nothing_to_keep(path: Path) -> bool:
    kept = any((path / name).exists() for name in ("summary.json", "model.keras"))
    metrics = path / "metrics.jsonl"
    return saved_step(path) is None and not kept and not (metrics.exists() and metrics.stat().st_size)


def _take_named(path: Path) -> tuple[Run, FileLock]:
    lock = take(path)
    return Run(path, True, (_read_config(path) or {}).get("chosen"), read_status(path)), lock


def _take_or_create(path: Path, identity: dict[str, Any]) -> tuple[Run, FileLock]:
    path.mkdir(exist_ok=True)
    lock = take(path)
    if saved_step(path) is not None and is_run_of(path, identity):
        return Run(path, True, (_read_config(path) or {}).get("chosen"), read_status(path)), lock
    for found in path.iterdir():
        if found.name not in (LOCK, OWNER):
            shutil.rmtree(found) if found.is_dir() and not found.is_symlink() else found.unlink()
    run = Run(path, False, None)
    run.write_config(identity)
    return run, lock


def read_status(path: Path) -> str | None:
    """What summary.json says of a run: finished, interrupted, diverged; None: there is none yet."""
    return read_json(path / "summary.json").get("status")


def _read_config(path: Path) -> dict[str, Any] | None:
    """The config.yaml of a run; None where there is none that kpipe can have written."""
    return read_yaml(path / "config.yaml")


def fresh_path(folder: Path, prefix: str = "") -> Path:
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
