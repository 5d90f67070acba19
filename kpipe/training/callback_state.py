"""What Keras callbacks remember between epochs, as values that a checkpoint can hold."""

import copy
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


def _callback_keys(callbacks: Sequence[keras.callbacks.Callback]) -> list[str]:
    return [f"{index} {type(callback).__name__}" for index, callback in enumerate(callbacks)]


# Keras sets the epochs and steps of this `fit`, and turns the sign of an option when the first epoch ends.
_GIVEN_ANEW = ("params", "min_delta")


def remember_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, dict[str, Any]]:
    """Of each callback the attributes that JSON can hold, NumPy arrays (EarlyStopping's weights) included."""
    return {
        key: {
            name: copy.deepcopy(value)
            for name, value in vars(callback).items()
            if name not in _GIVEN_ANEW and _can_be_kept(value)
        }
        for key, callback in zip(_callback_keys(callbacks), callbacks, strict=True)
    }


def _can_be_kept(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _can_be_kept(child) for key, child in value.items())
    if isinstance(value, list | tuple):
        return all(map(_can_be_kept, value))
    return isinstance(value, int | float | str | np.generic | np.ndarray | None)


def restore_callbacks(callbacks: Sequence[keras.callbacks.Callback], memory: dict[str, dict]) -> None:
    for key, callback in zip(_callback_keys(callbacks), callbacks, strict=True):
        vars(callback).update(memory.get(key, {}))
