"""Checkpoints: all variables of a compiled model and a JSON state, in one `.npz` file.

A file is written beside its place and moved there when it is whole, so a crash, a kill or a full disk never
costs the checkpoint that was there before.
"""

import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.errors import ConfigError, Diverged, EnvironmentFault

STATE = "state"
GROUPS = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")


def save_checkpoint(path: str | os.PathLike, model: keras.Model, state: Mapping[str, Any]) -> None:
    """Writes weights, optimizer, metrics and random seeds of `model`, and `state` (JSON types), to `path`.

    Raises:
        Diverged: a weight is not finite; the file that was there stays.
        EnvironmentFault: the file cannot be written; the file that was there stays.
    """
    path = Path(path)
    arrays = {name: variable.numpy() for name, variable in _named_variables(model).items()}
    _check_finite(arrays)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays, **{STATE: np.array(json.dumps(dict(state)))})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: the checkpoint cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike, model: keras.Model) -> dict[str, Any]:
    """Assigns the variables in `path` to `model` and returns the state saved with them.

    The model must be built and compiled as the saved one was, its optimizer and metrics built as well (a
    `Trainer` does that).

    Raises:
        ConfigError: names, shapes or dtypes differ from the model's; nothing was assigned.
        EnvironmentFault: the file is missing or damaged; nothing was assigned.
    """
    arrays = _read(Path(path))
    state = json.loads(str(arrays.pop(STATE)))
    variables = _named_variables(model)
    _check_same(path, arrays, variables)
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return state


def count_values(model: keras.Model) -> int:
    """The numbers that a checkpoint of `model`, compiled and its optimizer built, holds."""
    return sum(math.prod(variable.shape) for variable in _named_variables(model).values())


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise EnvironmentFault(f"{path}: there is no such checkpoint; use --new to start again") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise EnvironmentFault(f"{path}: the checkpoint is damaged ({error}); use --new to start again") from error
    if STATE not in arrays:
        raise EnvironmentFault(f"{path}: the checkpoint is damaged (no state); use --new to start again")
    return arrays


def _named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Every variable of the training, by group and path."""
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    named = {}
    for group, variables in zip(GROUPS, groups, strict=True):
        roots = {layer.name: layer.name for layer in model.layers}
        for variable in variables:
            root, _, rest = variable.path.partition("/")
            named[f"{group}/{_stable_root(root, roots)}/{rest}"] = variable
    return named


def _stable_root(root: str, seen: dict[str, str]) -> str:
    """`root` with Keras's automatic number counted anew; the names of layers, `conv1_2`, are in `seen` already.

    Keras numbers optimizers and seed generators over the whole process, so the second model of a process
    would not know its own checkpoint.
    """
    if root not in seen:
        stem = re.sub(r"_\d+$", "", root)
        rank = sum(re.sub(r"_\d+$", "", other) == stem for other in seen)
        seen[root] = f"{stem}_{rank}" if rank else stem
    return seen[root]


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if name.startswith(GROUPS[:2]) and not np.isfinite(array).all():
            raise Diverged(f"{name} is no longer finite; no checkpoint was written, the one before it stays")


def _check_same(path, arrays: Mapping[str, np.ndarray], variables: Mapping[str, keras.Variable]) -> None:
    saved = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    wanted = {name: (tuple(variable.shape), variable.dtype) for name, variable in variables.items()}
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            raise ConfigError(
                f"{path}: the checkpoint is of another model: {name}: "
                f"expected {_describe(wanted.get(name))}, got {_describe(saved.get(name))}"
            )


def _describe(shape_and_dtype: tuple[tuple[int, ...], str] | None) -> str:
    if shape_and_dtype is None:
        return "none"
    shape, dtype = shape_and_dtype
    return f"{dtype} {list(shape)}"
