"""What a user reads when a training does not fit into memory, before it starts and after it failed."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from kpipe.console import describe_size
from kpipe.errors import OutOfMemory
from kpipe.files import REFUSALS, cannot_write
from kpipe.models.geometry import estimate_training_memory, fitting_batch_size
from kpipe.training.device import free_memory
from kpipe.training.variables import count_values


@contextmanager
def translate_tensorflow_errors(run: Path, batch_size: int, model: keras.Model | None = None) -> Iterator[None]:
    """Turn too little memory into OutOfMemory, and a disk that refuses TensorFlow's logs into EnvironmentFault.

    Args:
        run: the directory that is being written.
        batch_size: B.
        model: what is trained, compiled and its optimizer built; None while it is made.
    """
    available = free_memory()
    try:
        yield
    except (MemoryError, tf.errors.OpError) as error:
        # TensorFlow's writer of events reports a full disk as it reports too little memory.
        if code := next((code for code in REFUSALS if os.strerror(code) in str(error)), None):
            raise cannot_write(run, code) from None
        if not isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
            raise
        free = f"{describe_size(available)} were free before" if available else "how much was free is not known"
        if model is None:
            raise OutOfMemory(
                f"out of memory while data and network were built ({free}); take a smaller "
                "data.image_size or network, or keep fewer images in memory: data.cache=none or data.cache=disk"
            ) from None
        advice = _suggest_batch_size(model, batch_size, available)
        raise OutOfMemory(f"out of memory with data.batch_size={batch_size} ({free}); {advice}") from None


def memory_notes(model: keras.Model, batch_size: int) -> list[str]:
    """Return a line for the user where the training needs more memory than is free.

    Args:
        model: compiled, its optimizer built.
        batch_size: B.
    """
    available = free_memory()
    need = estimate_training_memory(model, batch_size, count_values(model.optimizer.variables)).total
    if available is None or need <= available:
        return []
    advice = _suggest_batch_size(model, batch_size, available)
    return [f"the training needs about {describe_size(need)} of memory, {describe_size(available)} are free; {advice}"]


def _suggest_batch_size(model: keras.Model, batch_size: int, available: int | None) -> str:
    fits = batch_size // 2  # at most: the estimate was too low, or something else takes memory
    if available is not None:
        memory = estimate_training_memory(model, batch_size, count_values(model.optimizer.variables))
        fits = min(fits, fitting_batch_size(memory, batch_size, available))
    if fits < 1:
        return "not even one image fits: take a smaller data.image_size or a smaller network"
    return f"data.batch_size={2 ** int(math.log2(fits))} should fit"
