"""Detects a loss, a weight or a variable of the optimizer that is no longer finite."""

import math

import tensorflow as tf

from kpipe.errors import Diverged

LIKELY_CAUSES = (
    "likely causes: the learning rate is too high (try a tenth of it, or a warm-up), the images are not normalized, "
    "or a network without batch normalization is too deep for its initial weights"
)


_IN_FLOAT16 = ", or numbers are beyond 65,504, the largest of float16 (train in float32 or mixed_bfloat16)"


def check_loss(loss: float, first: int, last: int, name: str = "loss", *, in_float16: bool = False) -> None:
    """Raise Diverged if the mean loss over the steps `first` to `last` is not finite."""
    if not math.isfinite(loss):
        causes = LIKELY_CAUSES + (_IN_FLOAT16 if in_float16 else "")
        raise Diverged(f"the {name} became {loss} {where(first, last)}; {causes}")


def where(first: int, last: int) -> str:
    """Return `at step 7` or `between steps 1 and 7`."""
    return f"at step {last}" if first >= last else f"between steps {first} and {last}"


def are_finite(values: list[tf.Tensor]) -> tf.Tensor:
    """Return bool [n]: whether all numbers of each of the n tensors are finite."""
    return tf.stack([tf.reduce_all(tf.math.is_finite(value)) for value in values])
