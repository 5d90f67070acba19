"""The device that this machine trains on, and its free memory."""

import os
import re
import shutil
from pathlib import Path

import keras
import tensorflow as tf

MEMINFO, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def describe_device() -> str:
    """Return `GPU NVIDIA A100-SXM4-40GB` or `CPU, 2 cores`."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
        return f"GPU {name}" + (f" (the first of {len(gpus)})" if len(gpus) > 1 else "")
    return f"CPU, {os.cpu_count()} cores"


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
    limits = [_available(), _container_limit(), _address_limit()]
    return min((limit for limit in limits if limit is not None), default=None)


def _available() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return 1024 * int(found[1]) if found else None


def _container_limit() -> int | None:
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        used = re.search(r"^anon (\d+)$", (CONTAINER / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or "max"
        return None
    return max(0, limit - int(used[1])) if used else limit


def _address_limit() -> int | None:
    """Return what `ulimit -v` leaves to this process."""
    try:
        import resource  # not on Windows

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else max(0, limit - pages * resource.getpagesize())


def gpu_hint() -> str | None:
    """Return a line on how to make the GPU visible; None if TensorFlow sees one or there is no NVIDIA driver."""
    has_driver = shutil.which("nvidia-smi") is not None or os.path.exists("/proc/driver/nvidia/version")
    if has_driver and not tf.config.list_physical_devices("GPU"):
        return (
            "This machine has an NVIDIA driver, but TensorFlow sees no GPU. "
            'Install its CUDA libraries: pip install -e ".[gpu]"'
        )
    return None
