"""The variables of a training, under names that another process gives them too."""

import math
import re
from collections.abc import Iterable, Mapping

import keras
import numpy as np

NETWORK = ("trainable_variables", "non_trainable_variables")


GROUPS = (*NETWORK, "optimizer_variables", "metrics_variables")


def count_values(variables: Iterable[keras.Variable]) -> int:
    """The numbers in some variables."""
    return sum(math.prod(variable.shape) for variable in variables)


def count_bytes(variables: Mapping[str, keras.Variable]) -> int:
    return sum(math.prod(variable.shape) * np.dtype(variable.dtype).itemsize for variable in variables.values())


def named_variables(model: keras.Model, groups: tuple[str, ...] = GROUPS) -> dict[str, keras.Variable]:
    """Every variable of the training, by group and path."""
    variables = {
        "trainable_variables": model.trainable_variables,
        "non_trainable_variables": model.non_trainable_variables,
        "optimizer_variables": model.optimizer.variables,
        "metrics_variables": model.metrics_variables,
    }
    named = {}
    for group in groups:
        roots = {layer.name: layer.name for layer in model.layers}
        for variable in variables[group]:
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
