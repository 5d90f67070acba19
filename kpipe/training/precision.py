"""The number format that layers compute in. Weights are float32 in all of them."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
CPU_INFO = Path("/proc/cpuinfo")
LARGEST_ERROR = 0.25
"""Largest relative error of the logits of a mixed precision. Measured over all networks with random weights, 3 seeds:
at most 0.012 in mixed_bfloat16 and 0.059 in mixed_float16, both for GoogLeNet with batch normalization."""
_TESTED = 8  # images


def resolve_precision(name: str) -> str:
    """Return the Keras dtype policy for `name`; `auto` is the fastest that this machine has hardware for.

    Raises:
        ConfigError: the name is not known, or it is mixed_float16 and there is no GPU.
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


def explain_auto() -> str:
    """Return why `auto` is what it is on this machine."""
    capability = gpu_capability()
    if capability is None:
        return f"this CPU {'multiplies' if _multiplies_bfloat16() else 'does not multiply'} bfloat16"
    if capability == (0, 0):
        return "the GPU does not say its compute capability"
    return f"compute capability {'.'.join(map(str, capability))}"


def measure_error(model: keras.Model) -> float:
    """Return the relative error of a network's logits in its precision, against float32 with the same weights.

    The images are noise, the same ones each time. Nothing of the model changes. What fails in inference is measured in
    training as well, without dropout, and the smaller error counts: before the first step, batch normalization divides
    by nothing in inference, and the numbers of a deep network may be too small for float16.

    Args:
        model: takes images [B, H, W, C] and returns logits [B, K], or several outputs, the logits first.

    Returns:
        The norm of the difference over the norm of the logits in float32. Infinity where they are finite in float32
        alone; 0 where they are not finite in float32 either.
    """
    images = np.random.default_rng(0).integers(0, 256, (_TESTED, *model.input_shape[1:]), np.uint8)
    error = _compare(model, images, training=False)
    return error if error <= LARGEST_ERROR else min(error, _compare(model, images, training=True))


def _compare(model: keras.Model, images: np.ndarray, *, training: bool) -> float:
    mixed = _compute_logits(model, images, training, "")
    exact = _compute_logits(model, images, training, "float32")
    if not np.isfinite(exact).all():
        return 0.0
    error = np.linalg.norm(mixed - exact) / max(np.linalg.norm(exact), np.finfo(np.float32).tiny)
    return float(error) if np.isfinite(error) else float("inf")


def _compute_logits(model: keras.Model, images: np.ndarray, training: bool, policy: str) -> np.ndarray:
    """Return logits float64 [B, K], computed without dropout under a dtype policy; empty: under that of each layer."""
    kept = [(layer, layer.dtype_policy, getattr(layer, "rate", None)) for layer in model._flatten_layers()]
    try:
        for layer, own_policy, rate in kept:
            layer.dtype_policy = policy or own_policy
            if rate is not None:
                layer.rate = 0.0
        with keras.StatelessScope():  # the statistics of batch normalization stay as they are
            outputs = model(images, training=training)
    finally:
        for layer, own_policy, rate in kept:
            layer.dtype_policy = own_policy
            if rate is not None:
                layer.rate = rate
    return np.asarray(outputs[0] if isinstance(outputs, list | tuple) else outputs, np.float64)


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
    return "mixed_bfloat16" if _multiplies_bfloat16() else "float32"


def _multiplies_bfloat16() -> bool:
    try:
        flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return False
    known = set(flags[1].split()) if flags else set()
    return bool(known & {"amx_bf16", "avx512_bf16"})
