"""What this machine trains on."""

import os
import shutil

import tensorflow as tf


def describe_device() -> str:
    """`GPU NVIDIA A100-SXM4-40GB` or `CPU, 2 cores`."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
        return f"GPU {name}" + (f" (the first of {len(gpus)})" if len(gpus) > 1 else "")
    return f"CPU, {os.cpu_count()} cores"


def gpu_hint() -> str | None:
    """A line when the machine has an NVIDIA driver and TensorFlow sees no GPU, with the command that mends it."""
    has_driver = shutil.which("nvidia-smi") is not None or os.path.exists("/proc/driver/nvidia/version")
    if has_driver and not tf.config.list_physical_devices("GPU"):
        return (
            "This machine has an NVIDIA driver, but TensorFlow sees no GPU. "
            'Install its CUDA libraries: pip install -e ".[gpu]"'
        )
    return None
