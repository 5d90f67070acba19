"""A run on disk: `<logs>/<experiment>/<run id>/`, found, resumed or created, and owned by one process."""

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, nearest_name
from kpipe.files import (
    expand_path,
    read_json,
    read_yaml,
    to_yaml,
    translate_deletion,
    translate_write_errors,
    write_json,
    write_yaml,
)
from kpipe.names import from_here, is_utf8, path_shown, quoted, shell_quoted
from kpipe.runs.lock import (
    ELSEWHERE,
    LOCK,
    OWNER,
    leave,
    locked_again,
    locked_folder,
    take,
)

_LONGEST_LABEL = 100  # characters of what follows the time in the name of a run directory
_OVER = ("finished", "diverged", "stuck")  # the states of a run that is not picked up again


@dataclass(frozen=True)
class Run:
    """A run directory: one that this process owns, or only reads.

    Attributes:
        path: the directory.
        resumed: an earlier process has left a checkpoint here.
        resolved: what that process resolved for its machine (precision, determinism), as plain data, or None.
        status: the status in summary.json when this process found the run; None: there was none.
        note: a line for the user about a run that was found and not taken, or None.
    """

    path: Path
    resumed: bool
    resolved: dict[str, Any] | None
    status: str | None = None
    note: str | None = None

    @classmethod
    def reading(cls, path: Path) -> "Run":
        """Return a run that is only read, whoever owns it."""
        return cls(path, True, None, read_status(path))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def constants(self) -> Path:
        """Constants of the model's first layer."""
        return self.path / "normalization.npz"

    @property
    def model(self) -> Path:
        """Best weights of a finished run."""
        return self.path / "model.keras"

    def model_of(self, kind: str, preferred: str) -> Path:
        """Return the file with the best weights of a kind (`raw` or `averaged`), where one kind is preferred."""
        return self.model if kind == preferred else self.path / f"model_{kind}.keras"

    def find_model(self, kind: str) -> Path | None:
        """Return the file in which a run that was finished has its best weights of a kind; None: there is none."""
        if (own := self.path / f"model_{kind}.keras").exists():
            return own
        is_preferred = self.read_json("summary.json").get("weights") == kind
        return self.model if is_preferred and self.model.exists() else None

    def begin(self, experiment: dict[str, Any], resolved: dict[str, Any]) -> None:
        """Write the config; mark a finished run that is extended as interrupted."""
        if self.status is not None:
            self.write_json("summary.json", self.read_json("summary.json") | {"status": "interrupted"})
        self.write_config(experiment, resolved)

    def write_config(self, experiment: dict[str, Any], resolved: dict[str, Any] | None = None) -> None:
        """Write config.yaml: fed back to `kpipe run`, it repeats the run."""
        config = experiment if resolved is None else {**experiment, "chosen": resolved}
        write_yaml(self.path / "config.yaml", config)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        write_json(self.path / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return what `write_json` wrote; an empty dict where that is gone or damaged."""
        return read_json(self.path / name)


def logs_folder(logs: str | None, where: str = "logs") -> Path:
    """Return the folder of all runs: `logs` of the experiment, else $KPIPE_LOGS, else tensorboard_logs.

    Raises:
        ConfigError: as `expand_path`, or the path is not UTF-8; `where` begins the message about `logs`.
    """
    if logs is None:
        logs, where = os.environ.get("KPIPE_LOGS") or "tensorboard_logs", "KPIPE_LOGS"
    path = expand_path(logs, where)
    if not is_utf8(str(path)):
        raise ConfigError(f"{where}: expected a path in UTF-8, which TensorBoard needs, got {quoted(str(path))}")
    return path


@contextmanager
def open_run(
    logs: Path,
    name: str,
    identity: dict[str, Any],
    *,
    new: bool = False,
    resume: Path | None = None,
    at: Path | None = None,
    label: str = "",
) -> Iterator[Run]:
    """Resume the unfinished run of this experiment or start a new one, and own it inside the `with`.

    A run that leaves the block without a checkpoint or a summary has nothing to keep and is removed.

    Args:
        logs: the folder of all runs.
        name: the experiment's name; its runs are in `logs/name`.
        identity: the resolved experiment; a run with another one is left alone.
        new: start another run beside an unfinished or a living one.
        resume: the run to resume, whatever its state, instead of searching for one.
        at: the run directory, instead of searching for one. An existing run of this experiment with a checkpoint is
            resumed; anything else there is deleted.
        label: follows the time in the name of a new run.

    Raises:
        EnvironmentFault: the folder cannot be written or has been deleted, now or inside the `with`, or another process
            is at work on the same experiment.
    """
    named = resume or at
    folder = Path(logs) / name if named is None else named.parent
    with translate_write_errors(named or Path(logs)):
        with locked_folder(folder, "" if named else ELSEWHERE):
            note = None
            if resume is not None:
                taken = _take(resume)
            elif at is not None:
                taken = _take_or_clear(at, identity)
            else:
                taken, note = _find(folder, identity, new)
            run, lock = taken or _create(at or fresh_path(folder, label), identity, note)
        try:
            with translate_deletion(run.path):
                yield run
        finally:
            # Under the folder's lock: nobody else may be about to take a lock file that is deleted here.
            with locked_again(folder):
                leave(run.path)
                if _has_nothing_to_keep(run.path):
                    shutil.rmtree(run.path, ignore_errors=True)
                lock.release()


def without_machine(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without what differs between machines: what is left makes two runs the same experiment."""
    return {key: value for key, value in config.items() if key not in ("chosen", "logs")}


def is_run_of(path: Path, identity: dict[str, Any]) -> bool:
    """Whether a directory holds a run of this resolved experiment."""
    return without_machine(_read_config(path) or {}) == identity


def saved_step(path: Path) -> int | None:
    """Return the step from which a run would be resumed; whether that checkpoint is whole, `Checkpoints` says."""
    folder = path / "checkpoints"
    names = [found.name.removeprefix("step-") for found in folder.glob("step-*")]
    steps = [int(name) for name in names if name.isdecimal()]
    with suppress(OSError, ValueError):
        pointed = int((folder / "latest").read_text(encoding="utf-8").strip().removeprefix("step-"))
        if pointed in steps:  # else a crash or a person has removed it
            return pointed
    return max(steps, default=None)


def read_status(path: Path) -> str | None:
    """Return the status in summary.json: finished, interrupted, diverged, stuck; None: there is none yet."""
    return read_json(path / "summary.json").get("status")


def nearest_run(path: str | Path) -> str:
    """Return `, did you mean RUN?` for a run that a path lies in, the newest run below it, or one of a near name.

    Args:
        path: a file or folder that is no run directory, or is not there.
    """
    path = Path(path)
    around = [parent for parent in path.parents[:3] if _is_run(parent)]  # of a file of one of its checkpoints
    below = sorted(filter(_is_run, (*path.glob("*"), *path.glob("*/*"))), key=lambda run: run.name)
    beside = [] if path.exists() else sorted(filter(_is_run, path.parent.glob("*")))
    near = nearest_name(path.name, [run.name for run in beside])
    runs = [*around, *reversed(below), *(run for run in beside if run.name == near), *reversed(beside)]
    return f", did you mean {path_shown(from_here(runs[0]))}?" if runs else ""


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def label_of(overrides: Sequence[str]) -> str:
    """Return overrides as a part of a directory's name that TensorBoard, shells and Windows take as it is."""
    label = ""
    for override in overrides:
        if override.startswith("logs="):
            continue
        part = re.sub(r"[][{}\s'\"]", "", override)
        part = re.sub(r"[^\w.=,+-]+", "-", part).replace("=-", "=").strip("-.")
        longer = f"{label},{part}" if label else part[:_LONGEST_LABEL]
        if len(longer) > _LONGEST_LABEL:
            return f"{label},etc"
        label = longer
    return label


def fresh_path(folder: Path, label: str = "") -> Path:
    """Return a path that is not there yet, named by the time and by what it is about."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S") + (f"_{label}" if label else "")
    names = [stamp] + [f"{stamp}_{i:03}" for i in range(2, 1000)]  # sorted by name, as they came
    return next(folder / name for name in names if not (folder / name).exists())


def _find(folder: Path, identity: dict[str, Any], new: bool) -> tuple[tuple[Run, FileLock] | None, str | None]:
    """Take the newest unfinished run of this experiment that has a checkpoint; else return what there is to say."""
    notes: list[str] = []
    others: list[tuple[Path, dict[str, Any]]] = []
    text = to_yaml(identity)
    for path in sorted((p for p in folder.iterdir() if p.is_dir()), reverse=True):
        if (status := read_status(path)) in _OVER:
            # There may be thousands, and to parse a config takes milliseconds.
            if not (new or notes) and _read_text(path / "config.yaml").startswith(text):
                notes.append(f"{path} is a {status} run of the same experiment; this is another")
            continue
        config = _read_config(path)
        if config is None and all(_is_no_content(file) for file in path.iterdir()):
            shutil.rmtree(path)  # killed while it was being made
        if new or config is None:
            continue
        theirs = without_machine(config)
        if theirs != identity:
            others.append((path, theirs))
        elif (taken := _take_unfinished(path, notes)) is not None:
            return taken, None
    return None, notes[0] if notes else _nearest_other(others, identity)


def _create(path: Path, identity: dict[str, Any], note: str | None) -> tuple[Run, FileLock]:
    """Make a new run directory and take it, or use an empty one that is taken."""
    run = Run(path, False, None, note=note)
    path.mkdir(exist_ok=True)
    lock = take(path)
    run.write_config(identity)  # now: a second start must see which experiment this run belongs to
    return run, lock


def _is_no_content(file: Path) -> bool:
    """Whether a file is a lock or temporary."""
    return file.name.startswith(".") or file.suffix == ".tmp"


def _take(path: Path) -> tuple[Run, FileLock]:
    """Take a run that is resumed."""
    lock = take(path)
    return Run(path, True, (_read_config(path) or {}).get("chosen"), read_status(path)), lock


def _take_unfinished(path: Path, notes: list[str]) -> tuple[Run, FileLock] | None:
    """Take an unfinished run of this experiment; None where it turns out to be none that can be resumed."""
    run, lock = _take(path)
    if run.status in _OVER:  # killed between its summary and the release of its lock, just now
        lock.release()
        return None
    if saved_step(path) is not None:
        return run, lock
    lock.release()
    if _has_nothing_to_keep(path):
        shutil.rmtree(path)  # killed before its first checkpoint
    else:
        notes.append(f"{path} is unfinished, but has no checkpoint to resume from; it is left alone")
    return None


def _take_or_clear(path: Path, identity: dict[str, Any]) -> tuple[Run, FileLock] | None:
    """Take a run of this experiment that has a checkpoint; delete anything else in its place."""
    path.mkdir(exist_ok=True)
    run, lock = _take(path)
    if saved_step(path) is not None and is_run_of(path, identity):
        return run, lock
    for found in path.iterdir():
        if found.name not in (LOCK, OWNER):
            shutil.rmtree(found) if found.is_dir() and not found.is_symlink() else found.unlink()
    lock.release()
    return None


def _nearest_other(others: list[tuple[Path, dict[str, Any]]], identity: dict[str, Any]) -> str | None:
    """Say which unfinished run of another config differs least, and how."""
    if not others:
        return None
    found = [(path, _differences(theirs, identity)) for path, theirs in others]
    path, differences = min(found, key=lambda each: len(each[1]))
    shown = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
    command = f"kpipe run --resume {shell_quoted(str(path))}"
    return f"{path} is unfinished and has another config ({shown}); {command} resumes it"


def _has_nothing_to_keep(path: Path) -> bool:
    kept = any((path / name).exists() for name in ("summary.json", "model.keras"))
    metrics = path / "metrics.jsonl"
    return saved_step(path) is None and not kept and not (metrics.exists() and metrics.stat().st_size)


def _read_text(path: Path) -> str:
    """Return the text of a file; an empty one where it is gone or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _read_config(path: Path) -> dict[str, Any] | None:
    """Return config.yaml; None where there is none that kpipe can have written."""
    return read_yaml(path / "config.yaml")


def _differences(theirs: Any, ours: Any, keys: str = "") -> list[str]:
    """Return `training.epochs: 3 there, 5 here` for each key that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            found
            for key in dict.fromkeys([*theirs, *ours])
            if theirs.get(key) != ours.get(key)
            for found in _differences(theirs.get(key), ours.get(key), f"{keys}.{key}" if keys else key)
        ]
    return [f"{keys}: {show(theirs)} there, {show(ours)} here"]
