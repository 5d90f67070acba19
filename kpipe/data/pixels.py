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
        with tf.init_scope(), tf.device("CPU:0"):  # also when first asked for inside a graph
            if _can_be_shared(self.images):
                return tf.experimental.dlpack.from_dlpack(self.images.__dlpack__())
            tensor = tf.identity(self.images)  # `tf.constant` of TensorFlow 2.21 holds two copies
        self.images = np.asarray(tensor)  # a view: one copy is enough
        return tensor


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


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Return uint8 zeros that TensorFlow can share. Otherwise copies would hold a large set three times in memory."""
    size = int(np.prod(shape))
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].reshape(shape)


def _can_be_shared(images: np.ndarray) -> bool:
    flags = images.flags
    return images.size > 0 and flags.c_contiguous and flags.writeable and images.ctypes.data % ALIGNMENT == 0
