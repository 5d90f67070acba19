"""Compilation of the training step by XLA: whether it works on this machine, and what is said where it does not."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from kpipe.errors import ConfigError, first_line

_REFUSALS = tf.errors.UnimplementedError, tf.errors.InvalidArgumentError, tf.errors.InternalError
_NO_REASON = re.compile(r"\s*$|Graph execution error|Detected at node|<stack traces|\s+\[\[")


def can_compile() -> bool:
    """Return whether XLA compiles for the first GPU, or the CPU without one: it needs more of CUDA than TensorFlow."""
    try:
        tf.function(tf.exp, jit_compile=True)(tf.ones(2))
    except tf.errors.OpError:
        return False
    return True


@contextmanager
def translate_xla_errors() -> Iterator[None]:
    """Turn what XLA cannot compile inside the `with` into ConfigError, with XLA's reason."""
    try:
        yield
    except _REFUSALS as error:
        if not re.search("tf2xla|XLA_|libdevice|ptxas", error.message):
            raise
        missing = re.search(r"unsupported operations .*?: (\w+) \(No registered", error.message)
        lines = [line for line in error.message.splitlines() if not _NO_REASON.match(line)]
        reason = f"it has no operation {missing[1]}" if missing else first_line("\n".join(lines)).rstrip(".")
        others = " or training.deterministic=false" if "deterministic" in reason else ""
        raise ConfigError(
            f"training.xla: XLA cannot compile the training step: {reason}. Use training.xla=off{others}"
        ) from error
