"""The number format that layers compute in. Weights are float32 in all of them."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
CPU_INFO = Path("/proc/cpuinfo")


def resolve_precision(name: str) -> str:
    """Return the Keras dtype policy for `name`; `auto` is the fastest that this machine has hardware for.

    Raises:
        ConfigError: the name is not known, or this machine only emulates the format.
    """
    if name not in PRECISIONS:
        raise ConfigError(
            f"training.precision: expected a known name, got {show(name)}{did_you_mean(name, PRECISIONS)}"
        )
    capability = gpu_capability()
    if name == "mixed_float16" and capability is None:
        raise ConfigError(
            "training.precision: mixed_float16 needs a GPU, a CPU is 40 to 270 times slower in it; "
            "use auto, mixed_bfloat16 or float32"
        )
    if name != "auto":
        return name
    return _fastest_on_cpu() if capability is None else _fastest_on_gpu(capability)


@contextlib.contextmanager
def precision_scope(policy: str) -> Iterator[None]:
    """Build layers under a dtype policy, which they keep; the process gets its own policy back afterwards."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def gpu_capability() -> tuple[int, int] | None:
    """Return the CUDA compute capability of the weakest GPU, (0, 0) if a GPU does not say; None without a GPU."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return min((detail.get("compute_capability") or (0, 0) for detail in details), default=None)


def _fastest_on_gpu(capability: tuple[int, int]) -> str:
    if capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= (7, 0) else "float32"


def _fastest_on_cpu() -> str:
    try:
        flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return "float32"
    known = set(flags[1].split()) if flags else set()
    return "mixed_bfloat16" if known & {"amx_bf16", "avx512_bf16"} else "float32"
