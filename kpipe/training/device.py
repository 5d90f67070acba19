"""The device that this machine trains on, and its free memory."""

import contextlib
import os

import keras
import tensorflow as tf

from kpipe import host
from kpipe.console import counted


def describe_device() -> str:
    """Return `GPU NVIDIA A100-SXM4-40GB` or `CPU, 2 cores`."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
        return f"GPU {name}" + (f" (the first of {len(gpus)})" if len(gpus) > 1 else "")
    return f"CPU, {counted(os.cpu_count() or 1, 'core')}"


def grow_gpu_memory() -> None:
    """Let TensorFlow take the memory of the GPUs as it is needed, and not all of it at its start.

    Where it has started already, or devices were divided by hand, they stay as they are.
    """
    with contextlib.suppress(RuntimeError, ValueError):
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Set Python's, NumPy's and Keras's seeds, and TensorFlow's deterministic operations, for the whole process."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def free_memory() -> int | None:
    """Return the bytes that a training can still take on the GPU, or on the machine without one; None: unknown."""
    if tf.config.list_physical_devices("GPU"):
        from tensorflow.python.client import device_lib  # nothing else in TensorFlow says it

        limit = min(device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU")
        return limit - tf.config.experimental.get_memory_info("GPU:0")["current"]
    return host.free_memory()


def gpu_hint() -> str | None:
    """Return a line on how to make the GPU visible; None if TensorFlow sees one or there is no NVIDIA driver."""
    if host.has_nvidia_driver() and not tf.config.list_physical_devices("GPU"):
        return (
            "This machine has an NVIDIA driver, but TensorFlow sees no GPU. "
            'Install its CUDA libraries: pip install -e ".[gpu]"'
        )
    return None
