"""Decoded images that several splits share, in memory that TensorFlow can use without a copy.

M images, H height, W width, C channels.
"""

import functools
import math

import numpy as np
import tensorflow as tf

from kpipe.console import describe_size
from kpipe.errors import OutOfMemory
from kpipe.host import free_memory

ALIGNMENT = 64  # bytes; TensorFlow ends the process when it meets a tensor at another address


class Pixels:
    """Decoded images uint8 [M, H, W, C], in memory or mapped from a file. All splits share one copy."""

    def __init__(self, images: np.ndarray):
        self.images = images
        self.is_mapped = isinstance(images, np.memmap)

    @functools.cached_property
    def resident(self) -> tf.Tensor:
        """Images in main memory, where tf.data works: from a GPU every batch would be copied back."""
        tensor = make_resident(self.images)
        self.images = np.asarray(tensor)  # a view: one copy is enough
        return tensor


def make_resident(array: np.ndarray) -> tf.Tensor:
    """Return an array as a tensor in main memory, one of `allocate` without a copy."""
    with tf.init_scope(), tf.device("CPU:0"):  # also when first asked for inside a graph
        if _can_be_shared(array):
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        return tf.identity(array)  # `tf.constant` of TensorFlow 2.21 holds two copies


def check_memory(shape: tuple[int, ...], where: str, remedy: str) -> None:
    """Raise OutOfMemory if images uint8 [N, H, W, C] are more than the memory that is free.

    Args:
        shape: of the images.
        where: where they come from, at the beginning of the message.
        remedy: what the user can do, at its end.
    """
    need, free = math.prod(shape), free_memory()
    if free is not None and need > free:
        sides = "x".join(map(str, shape[1:]))
        raise OutOfMemory(
            f"{where}: its {shape[0]:,} images of {sides} take {describe_size(need)} of memory, "
            f"{describe_size(free)} are free. {remedy}"
        )


def allocate(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    """Return zeros that TensorFlow can share. Otherwise copies would hold a large set three times in memory."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _can_be_shared(array: np.ndarray) -> bool:
    flags = array.flags
    return array.size > 0 and flags.c_contiguous and flags.writeable and array.ctypes.data % ALIGNMENT == 0
