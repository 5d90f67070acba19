"""The device that this machine trains on, and its free memory."""

import contextlib
import os

import keras
import tensorflow as tf

from kpipe import host
from kpipe.console import counted


def describe_device(used: int = 1) -> str:
    """Return `GPU NVIDIA A100-SXM4-40GB`, `GPU NVIDIA T4 (2 of 4)` or `CPU, 2 cores`.

    Args:
        used: number of GPUs that train, where TensorFlow sees as many.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
        return f"GPU {name}" + (f" ({used} of {len(gpus)})" if len(gpus) > 1 else "")
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

        grow_gpu_memory()
        tf.config.list_logical_devices()  # else they are made below, with all memory taken
        limit = min(device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU")
        return limit - tf.config.experimental.get_memory_info("GPU:0")["current"]
    return host.free_memory()


def describe_gpus() -> list[str]:
    """Return name and compute capability of each GPU that TensorFlow sees: `NVIDIA T4, compute capability 7.5`."""
    gpus = tf.config.list_physical_devices("GPU")
    lines = []
    for gpu, details in zip(gpus, map(tf.config.experimental.get_device_details, gpus), strict=True):
        capability = details.get("compute_capability")
        said = f"compute capability {'.'.join(map(str, capability))}" if capability else "no compute capability known"
        lines.append(f"{details.get('device_name', gpu.name)}, {said}")
    return lines


def describe_cuda() -> str | None:
    """Return the versions of CUDA and cuDNN that TensorFlow was built for; None: it was built for none."""
    build = tf.sysconfig.get_build_info()
    if not build.get("is_cuda_build"):
        return None
    return f"{build.get('cuda_version', 'unknown')}, cuDNN {build.get('cudnn_version', 'unknown')}"


def gpu_hint(used: int = 1) -> str | None:
    """Return a line on GPUs that are not used, and how they would be; None: there is none that is known of.

    Args:
        used: number of GPUs that train, where TensorFlow sees as many.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > used:
        return (
            f"{used} of the {len(gpus)} GPUs that TensorFlow sees {'trains' if used == 1 else 'train'}. "
            "CUDA_VISIBLE_DEVICES says which are seen"
        )
    if host.has_nvidia_driver() and not gpus:
        return (
            "This machine has an NVIDIA driver, but TensorFlow sees no GPU. "
            'Install its CUDA libraries: pip install -e ".[gpu]"'
        )
    return None
