"""Notices a loss, weight or number of the optimizer that is no longer finite."""

import math

import tensorflow as tf

from kpipe.errors import Diverged

LIKELY_CAUSES = (
    "likely causes: the learning rate is too high (try a tenth of it, or a warm-up), the images are not normalized, "
    "or a network without batch normalisation is too deep for its initial weights"
)


def check_loss(loss: float, first: int, last: int, name: str = "loss") -> None:
    if not math.isfinite(loss):
        raise Diverged(f"the {name} became {loss} {where(first, last)}; {LIKELY_CAUSES}")


def where(first: int, last: int) -> str:
    return f"at step {last}" if first >= last else f"between steps {first} and {last}"


def are_finite(values):
    return tf.stack([tf.reduce_all(tf.math.is_finite(value)) for value in values])
