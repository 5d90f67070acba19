"""Warns when a training may not fit into memory, and words the error when it did not."""

import math
from pathlib import Path

import keras
import tensorflow as tf

from kpipe.console import describe_size
from kpipe.errors import OutOfMemory
from kpipe.files import cannot_write, refusal_in
from kpipe.models.geometry import TrainingMemory, estimate_training_memory, fitting_batch_size
from kpipe.training.device import free_memory
from kpipe.training.variables import count_kept


class MemoryGuard:
    """Turns too little memory into OutOfMemory, and a disk that refuses TensorFlow's logs into EnvironmentFault.

    A context manager around a run.

    Args:
        run: the directory that is being written.
        batch_size: B.
        pieces: number of pieces in which a step computes its batch.
    """

    def __init__(self, run: Path, batch_size: int, pieces: int = 1):
        self._run, self._batch_size, self._pieces = run, batch_size, pieces
        self._available = free_memory()
        self._need: TrainingMemory | None = None

    def watch(self, model: keras.Model) -> list[str]:
        """Estimate what the training of a model needs; return a line for the user where that is more than is free.

        Args:
            model: compiled, its optimizer built.
        """
        self._available = free_memory()
        piece = self._batch_size // self._pieces
        self._need = estimate_training_memory(model, piece, count_kept(model, model.optimizer.variables))
        if self._available is None or self._need.total <= self._available:
            return []
        return [
            f"the training needs about {describe_size(self._need.total)} of memory, {describe_size(self._available)} "
            f"are free; {self._suggest_batch_size()}"
        ]

    def __enter__(self) -> "MemoryGuard":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if not isinstance(error, MemoryError | tf.errors.OpError):
            return
        # TensorFlow's writer of events reports a full disk as it reports too little memory.
        if code := refusal_in(error):
            raise cannot_write(self._run, code) from None
        if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
            raise OutOfMemory(self._describe()) from None

    def _describe(self) -> str:
        free = "how much was free is not known"
        if self._available:
            free = f"{describe_size(self._available)} were free before"
        if self._need is None:
            return (
                f"out of memory while data and network were built ({free}); take a smaller data.image_size or network, "
                "or keep fewer images in memory: data.cache=none or data.cache=disk"
            )
        return f"out of memory with data.batch_size={self._batch_size} ({free}); {self._suggest_batch_size()}"

    def _suggest_batch_size(self) -> str:
        piece = self._batch_size // self._pieces
        fits = piece // 2  # at most: the estimate was too low, or something else takes memory
        if self._available is not None:
            fits = min(fits, fitting_batch_size(self._need, piece, self._available))
        if fits < 1:
            return "not even one image fits: take a smaller data.image_size or a smaller network"
        fits = 2 ** int(math.log2(fits))
        pieces = f", or training.accumulate={self._batch_size // fits}" if self._batch_size % fits == 0 else ""
        return f"data.batch_size={self._pieces * fits}{pieces} should fit"
