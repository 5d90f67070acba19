"""What Keras callbacks remember between epochs, as values that a checkpoint can hold."""

import copy
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

# Keras sets the epochs and steps of this `fit`, and flips the sign of an option when the first epoch ends.
_NOT_KEPT = ("params", "min_delta")


def remember_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, dict[str, Any]]:
    """Return those attributes of each callback that have JSON types or are NumPy arrays (EarlyStopping's weights).

    A callback may name others in its `not_kept`, which a resumed training takes from its own.
    """
    return {
        key: {
            name: copy.deepcopy(value)
            for name, value in vars(callback).items()
            if name not in (*_NOT_KEPT, *getattr(callback, "not_kept", ())) and _can_be_kept(value)
        }
        for key, callback in zip(_keys(callbacks), callbacks, strict=True)
    }


def restore_callbacks(callbacks: Sequence[keras.callbacks.Callback], memory: dict[str, dict[str, Any]]) -> None:
    """Set the attributes that `remember_callbacks` returned; a callback that it does not know stays as it is."""
    for key, callback in zip(_keys(callbacks), callbacks, strict=True):
        vars(callback).update(memory.get(key, {}))


def _keys(callbacks: Sequence[keras.callbacks.Callback]) -> list[str]:
    """Return the name of each callback's class, numbered among those of the same name.

    Another callback beside them does not change it: one that logs may be added when a training is resumed.
    """
    names = [type(callback).__name__ for callback in callbacks]
    return [f"{name} {names[:place].count(name) + 1}" for place, name in enumerate(names)]


def _can_be_kept(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _can_be_kept(child) for key, child in value.items())
    if isinstance(value, list | tuple):
        return all(map(_can_be_kept, value))
    return isinstance(value, int | float | str | np.generic | np.ndarray | None)
