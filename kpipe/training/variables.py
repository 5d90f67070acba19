"""The variables of a training, under names that are the same in every process."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kpipe.errors import ConfigError
from kpipe.training.averaging import average_of, list_averaged_variables

NETWORK, AVERAGES = "network", "averages"
GROUPS = (NETWORK, AVERAGES, "optimizer", "metrics")


def count_values(variables: Iterable[keras.Variable]) -> int:
    """Return how many numbers some variables hold."""
    return sum(math.prod(variable.shape) for variable in variables)


def count_bytes(variables: Iterable[keras.Variable]) -> int:
    """Return how many bytes these numbers take."""
    return sum(math.prod(variable.shape) * np.dtype(variable.dtype).itemsize for variable in variables)


def count_kept(model: keras.Model, optimizer_variables: Sequence[keras.Variable]) -> int:
    """Return how many numbers a training keeps beside the weights: those of its optimizer, and averages of the weights.

    Args:
        model: compiled.
        optimizer_variables: those of its optimizer, or of the same shapes.
    """
    averaged = list_averaged_variables(model)
    return count_values([*optimizer_variables, *averaged])


def named_variables(model: keras.Model, groups: Iterable[str] = GROUPS) -> dict[str, keras.Variable]:
    """Return every variable of the training, by group and path.

    Args:
        model: compiled, its optimizer and metrics built.
        groups: names out of `GROUPS`.

    Returns:
        Keys such as `network/c1/kernel`, `averages/c1/kernel` and `optimizer/sgd/iteration`. They do not depend on
        which layers are frozen.
    """
    average = average_of(model.optimizer)
    named = {f"{AVERAGES}/{path}": variable for path, variable in average.named_variables().items()} if average else {}
    others = {NETWORK: model.variables, "optimizer": model.optimizer.variables, "metrics": model.metrics_variables}
    for group, variables in others.items():
        roots = {layer.name: layer.name for layer in model.layers}
        for variable in variables:
            root, _, rest = variable.path.partition("/")
            named[f"{group}/{_stable_root(root, roots)}/{rest}"] = variable
    return {name: variable for name, variable in named.items() if name.partition("/")[0] in groups}


def assign_all(source: str, arrays: Mapping[str, np.ndarray], variables: Mapping[str, keras.Variable]) -> None:
    """Assign to each variable the array of its name.

    Keras's own loading skips whatever does not match without a word.

    Args:
        source: where the arrays come from, at the beginning of an error's message.
        arrays: values by name.
        variables: as `named_variables` returns them.

    Raises:
        ConfigError: names, shapes or dtypes differ; nothing was assigned.
    """
    saved = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    expected = {name: (tuple(variable.shape), variable.dtype) for name, variable in variables.items()}
    for name in [*expected, *saved]:
        if saved.get(name) != expected.get(name):
            raise ConfigError(
                f"{source}: the checkpoint is of another model: {name}: "
                f"expected {_describe(expected.get(name))}, got {_describe(saved.get(name))}"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run needs; logs and figures are small beside them.

    Attributes:
        checkpoint: one checkpoint, without the arrays that a callback keeps.
        most: all checkpoints and the saved network, while the next checkpoint is written.
        finished: what is left at the end.
    """

    checkpoint: int
    most: int
    finished: int


def plan_optimizer_variables(model: keras.Model) -> list[keras.Variable]:
    """Return variables of the shapes and dtypes of those that the optimizer of a compiled model will keep.

    The optimizer is built on a variable of one value, since the weights may have none. For each of its variables that
    goes with that one, the weights themselves stand.
    """
    model.optimizer.build([keras.Variable(np.zeros(1, np.float32))])
    kept: list[keras.Variable] = []
    for variable in model.optimizer.variables:
        kept += model.trainable_variables if len(variable.shape) else [variable]
    return kept


def estimate_disk(
    model: keras.Model, optimizer_variables: Sequence[keras.Variable], keep: int, *, keep_last: bool = True
) -> DiskNeed:
    """Return what the checkpoints of a model and its saved network will take.

    Args:
        model: compiled, its metrics built.
        optimizer_variables: those of its optimizer, or of the same shapes and dtypes.
        keep: how many of the newest checkpoints are kept, besides the best.
        keep_last: whether the last one is kept at the end.
    """
    network = count_bytes(model.variables)
    averaged = list_averaged_variables(model)
    models = 2 if averaged else 1
    checkpoint = network + count_bytes([*averaged, *optimizer_variables, *model.metrics_variables])
    # The newest and the best of each kind of weights, while the next is written beside them.
    most = (keep + models + 1) * checkpoint + models * network
    return DiskNeed(checkpoint, most, checkpoint * keep_last + models * network)


def _stable_root(root: str, seen: dict[str, str]) -> str:
    """Return `root` with Keras's automatic number counted anew within the model.

    Keras numbers optimizers and seed generators over the whole process, so the second model of a process would not
    know its own checkpoint. The names of layers (`conv1_2`) are in `seen` from the beginning and stay.
    """
    if root not in seen:
        stem = re.sub(r"_\d+$", "", root)
        rank = sum(re.sub(r"_\d+$", "", other) == stem for other in seen)
        seen[root] = f"{stem}_{rank}" if rank else stem
    return seen[root]


def _describe(shape_and_dtype: tuple[tuple[int, ...], str] | None) -> str:
    if shape_and_dtype is None:
        return "none"
    shape, dtype = shape_and_dtype
    return f"{dtype} {list(shape)}"
