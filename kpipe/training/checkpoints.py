"""Checkpoints: the whole state of a training, one directory per step, each committed by one rename.

```
checkpoints/
  step-00000120/
    weights.npz     the network's variables: weights, batch normalization, the seeds of dropout; averaged weights
    training.npz    the variables of optimizer (with its loss scale) and metrics, and arrays that callbacks keep
    state.json      step, epoch, the best so far, callbacks
    manifest.json   size and SHA-256 of each of these, and the length of every log
  latest            the name of the newest, written last
```

A commit writes to a temporary directory, flushes files and directory to the disk, renames the directory, and then
moves the pointer. A kill, a crash or a full disk leaves the previous checkpoint as it was. Checksums are compared
before anything is read. A damaged checkpoint is reported, and the previous one is used.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from pydantic import BaseModel

from kpipe.caller import flag
from kpipe.errors import Diverged, EnvironmentFault
from kpipe.files import remedy
from kpipe.training.variables import AVERAGES, NETWORK, assign_all, named_variables

FORMAT = 5  # version of the directory's contents and of the order of images; any other is refused
WEIGHTS, TRAINING, STATE, MANIFEST, LATEST = "weights.npz", "training.npz", "state.json", "manifest.json", "latest"
_MEMBERS = (WEIGHTS, TRAINING, STATE)
_WEIGHTS = (f"{NETWORK}/", f"{AVERAGES}/")  # groups of variables in weights.npz
_DIRECTORY = re.compile(r"step-(\d{8,})\Z")
_CAN_SYNC_DIRECTORIES = os.name == "posix"  # Windows has no such call
_ARRAY = "__array__"  # key in state.json that refers to an array of training.npz


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds besides the variables.

    Attributes:
        step: the step at which it was committed.
        state: what `commit` was given.
        logs: length in bytes of every log at that moment, by its path relative to the run.
        skipped: a line about each newer checkpoint that is damaged.
    """

    step: int
    state: dict[str, Any]
    logs: dict[str, int]
    skipped: tuple[str, ...] = ()


class _Damaged(Exception):
    """A checkpoint differs from what was committed."""


class _Member(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    step: int
    best_steps: list[int]
    members: dict[Literal["weights.npz", "training.npz", "state.json"], _Member]
    logs: dict[str, int]


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the older ones that hold the best weights of one of these.

    Args:
        folder: `checkpoints` of the run; created by the first commit, in a run directory that exists.
        keep: how many of the newest are kept.
        writes: whether they are written. Of several workers the others than the chief only read them.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2, *, writes: bool = True):
        self._folder = Path(folder)
        self._keep = keep
        self._writes = writes
        self._committed: int | None = None
        self._stale: set[Path] = set()

    @property
    def latest(self) -> Path | None:
        """The newest checkpoint that this object committed or restored."""
        return None if self._committed is None else self._path(self._committed)

    @property
    def committed(self) -> int | None:
        """Step of the checkpoint that was committed or restored last."""
        return self._committed

    def commit(
        self,
        model: keras.Model,
        state: Mapping[str, Any],
        *,
        step: int,
        best_steps: Collection[int] = (),
        logs: Mapping[str, int] | None = None,
    ) -> None:
        """Write one checkpoint and remove those that are no longer kept. A step is committed only once.

        Args:
            model: compiled, its optimizer and metrics built.
            state: JSON types, with NumPy arrays anywhere in them.
            step: step of the training; it names the directory.
            best_steps: steps of the checkpoints with the best weights so far, which may be this one.
            logs: length in bytes of every log.

        Raises:
            Diverged: a variable is not finite; nothing was written.
            EnvironmentFault: the checkpoint cannot be written; the existing ones are intact.
            FileNotFoundError: the folder that is to hold the checkpoints has been deleted.
        """
        if step == self._committed:
            return
        arrays = {name: variable.numpy() for name, variable in named_variables(model).items()}
        _check_finite(arrays)
        if not self._writes:  # the values of some variables had to be asked of all workers
            self._committed = step
            return
        weights = {name: array for name, array in arrays.items() if name.startswith(_WEIGHTS)}
        training = {name: array for name, array in arrays.items() if name not in weights}
        text = json.dumps(_without_arrays(dict(state), training)).encode()
        path = self._path(step)
        temporary, pointer = self._folder / f".{path.name}.part", self._folder / f".{LATEST}.part"
        try:
            self._make_folder()
            _delete(temporary)
            temporary.mkdir()
            _write(temporary / WEIGHTS, lambda file: np.savez(file, **weights))
            _write(temporary / TRAINING, lambda file: np.savez(file, **training))
            _write(temporary / STATE, lambda file: file.write(text))
            manifest = _manifest(temporary, step, best_steps, logs or {})
            _write(temporary / MANIFEST, lambda file: file.write(manifest))
            _write(pointer, lambda file: file.write(f"{path.name}\n".encode()))
            _sync_directory(temporary)
            if path.exists():
                _remove(path)  # left by a crash before its acknowledgement, or damaged
            os.rename(temporary, path)
            os.replace(pointer, self._folder / LATEST)
            # One flush for both renames: a pointer to a directory that does not exist yet is ignored.
            _sync_directory(self._folder)
        except FileNotFoundError:
            raise  # no disk that refuses: somebody has deleted the run
        except OSError as error:
            size = sum(array.nbytes for array in arrays.values())
            free = shutil.disk_usage(self._folder.parent).free
            stays = f"The one before, {self.latest.name}, is whole" if self.latest else "There was none before"
            raise EnvironmentFault(
                f"{path}: the checkpoint of {size:,} bytes cannot be written ({error.strerror or error}); {free:,} "
                f"bytes are free there. {stays}: {remedy(error.errno)} and give the same command again."
            ) from error
        finally:
            _delete(temporary)
            with contextlib.suppress(OSError):
                pointer.unlink(missing_ok=True)
        self._committed = step
        self._prune()

    def restore(self, model: keras.Model) -> Restored:
        """Assign the variables of the newest whole checkpoint to `model`, and remove the debris of crashes.

        Args:
            model: built and compiled as the saved one was, with its optimizer and metrics built (by a `Trainer`).

        Raises:
            ConfigError: names, shapes or dtypes differ from the model's; nothing was assigned.
            EnvironmentFault: no checkpoint is whole; nothing was assigned.
        """
        for debris in self._folder.glob(".step-*") if self._writes else ():
            _delete(debris)
        candidates, skipped = self._candidates(), {}
        for path in candidates:
            try:
                manifest = _verified(path, _MEMBERS)
                state = _load(path, model)
            except _Damaged as damage:
                skipped[path] = f"{path} is damaged ({damage})"
                continue
            self._committed = manifest.step
            # Damaged, or newer and never acknowledged: removed once the next one is committed.
            newer = {other for other in candidates if _step_of(other) > self._committed}
            self._stale = newer | set(skipped)
            return Restored(manifest.step, state, manifest.logs, tuple(skipped.values()))
        found = "\n  ".join(skipped.values()) or "there is none"
        raise EnvironmentFault(
            f"{self._folder}: no whole checkpoint to resume from; {flag('new')} starts another run:\n  {found}"
        )

    def has(self, step: int) -> bool:
        """Return whether there is a checkpoint of this step, whole or damaged."""
        return self._path(step).exists()

    def is_whole(self, step: int) -> bool:
        """Return whether the weights of this step exist as they were committed."""
        try:
            _verified(self._path(step), (WEIGHTS,))
        except _Damaged:
            return False
        return True

    def load_weights(self, step: int, model: keras.Model, *, averaged: bool = False) -> None:
        """Assign the network's variables of one step.

        Args:
            step: of the checkpoint.
            model: as for `restore`.
            averaged: whether the network gets the averages of its weights.

        Raises:
            ConfigError: as `restore`.
            EnvironmentFault: the checkpoint is damaged; nothing was assigned.
        """
        path = self._path(step)
        try:
            _verified(path, (WEIGHTS,))
            arrays = _read_arrays(path / WEIGHTS)
        except _Damaged as damage:
            raise EnvironmentFault(f"{path} is damaged ({damage}); give the same command again to resume") from None
        averages = {name.removeprefix(AVERAGES): name for name in arrays if name.startswith(AVERAGES)}
        arrays = {
            name: arrays[averages.get(name.removeprefix(NETWORK), name) if averaged else name]
            for name in arrays
            if name.startswith(NETWORK)
        }
        assign_all(str(path), arrays, named_variables(model, (NETWORK,)))

    def finish(self, *, keep_last: bool) -> None:
        """Delete all checkpoints, but for the newest if it is kept."""
        if not self._writes:
            return
        for path in self._candidates():
            if not keep_last or path != self.latest:
                _remove(path)
        if not keep_last:
            (self._folder / LATEST).unlink(missing_ok=True)

    def _make_folder(self) -> None:
        if not self._folder.exists():
            self._folder.mkdir()
            for parent in self._folder.parents[:3]:  # the run, the experiment's folder and the logs may be new, too
                _sync_directory(parent)

    def _path(self, step: int) -> Path:
        return self._folder / _name_of(step)

    def _candidates(self) -> list[Path]:
        """Return what may be restored: first what the pointer names, then from the newest to the oldest."""
        found = [path for path in self._folder.glob("step-*") if _DIRECTORY.match(path.name)]
        try:
            pointed = (self._folder / LATEST).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            pointed = ""
        return sorted(sorted(found, key=_step_of, reverse=True), key=lambda path: path.name != pointed)

    def _prune(self) -> None:
        """Remove what is no longer kept. The best of each kept one stays, so that falling back loses nothing."""
        paths = sorted(self._candidates(), key=_step_of, reverse=True)
        kept = set([path for path in paths if path == self.latest or path not in self._stale][: self._keep])
        for path in tuple(kept):
            with contextlib.suppress(_Damaged):
                kept.update(map(self._path, _read_manifest(path).best_steps))
        for path in paths:
            if path not in kept:
                _remove(path)
        self._stale = set()


def _name_of(step: int) -> str:
    return f"step-{step:08d}"


def _step_of(path: Path) -> int:
    return int(_DIRECTORY.match(path.name)[1])


# --- writing --------------------------------------------------------------------------------------------------------


def _write(path: Path, write) -> None:
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    if not _CAN_SYNC_DIRECTORIES:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that half of it is never seen under its name."""
    gone = path.with_name(f".{path.name}.gone")
    _delete(gone)
    with contextlib.suppress(OSError):
        os.rename(path, gone)
    _delete(gone)


def _delete(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _manifest(folder: Path, step: int, best_steps: Collection[int], logs: Mapping[str, int]) -> bytes:
    members = {name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in _MEMBERS}
    kept = {"members": members, "logs": dict(logs)}
    content = {"format": FORMAT, "step": step, "best_steps": list(best_steps), **kept}
    return json.dumps(content | {"sha256": _digest_of(content)}, indent=1).encode()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise Diverged(f"{name} is no longer finite; no checkpoint was written, the one before it stays")


def _without_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return `value` with a reference in place of each array, which is moved to `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"state/{len(arrays)}"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, Mapping):
        return {key: _without_arrays(child, arrays) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(child, arrays) for child in value]
    return value.item() if isinstance(value, np.generic) else value


# --- reading --------------------------------------------------------------------------------------------------------


def _read_manifest(path: Path) -> _Manifest:
    """Return the manifest of a checkpoint, compared with its own checksum."""
    if path.is_symlink():
        raise _Damaged("it is a symbolic link")
    try:
        content = json.loads(_regular(path / MANIFEST).read_bytes())
        if content.pop("sha256") != _digest_of(content):
            raise _Damaged(f"the checksum of {MANIFEST} differs")
        if content["format"] != FORMAT:
            raise EnvironmentFault(
                f"{path}: expected a checkpoint of format {FORMAT}, got format {content['format']}: another version "
                f"of kpipe wrote it; resume with that one, or start another run with {flag('new')}"
            )
        manifest = _Manifest.model_validate(content)
    except OSError as error:
        raise _Damaged(f"{MANIFEST}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise _Damaged(f"{MANIFEST} cannot be read") from None
    if path.name != _name_of(manifest.step):
        raise _Damaged(f"its manifest is that of step {manifest.step}")
    return manifest


def _verified(path: Path, members: tuple[str, ...]) -> _Manifest:
    """Return the manifest, once `members` are known to have the sizes and checksums in it."""
    manifest = _read_manifest(path)
    for name in members:
        expected = manifest.members.get(name)
        if expected is None:
            raise _Damaged(f"{name} is missing in {MANIFEST}")
        try:
            size = _regular(path / name).stat().st_size
            if size != expected.bytes:
                raise _Damaged(f"{name} has {size:,} bytes of {expected.bytes:,}")
            if _digest(path / name) != expected.sha256:
                raise _Damaged(f"the checksum of {name} differs")
        except OSError as error:
            raise _Damaged(f"{name}: {error.strerror}") from None
    return manifest


def _regular(path: Path) -> Path:
    """Return `path`, unless it is a link that leads elsewhere."""
    if path.is_symlink():
        raise _Damaged(f"{path.name} is a symbolic link")
    return path


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file; no pickle is loaded, which could run code that a checksum does not rule out."""
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise _Damaged(f"{path.name}: {error}") from None


def _load(path: Path, model: keras.Model) -> dict[str, Any]:
    """Assign all variables and return the state; either everything fits or nothing is assigned."""
    arrays = _read_arrays(path / WEIGHTS) | _read_arrays(path / TRAINING)
    kept = {name: arrays.pop(name) for name in list(arrays) if name.startswith("state/")}
    try:
        state = json.loads(
            (path / STATE).read_bytes(), object_hook=lambda found: kept[found[_ARRAY]] if _ARRAY in found else found
        )
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise _Damaged(f"{STATE}: {error}") from None
    assign_all(str(path), arrays, named_variables(model))
    return state
