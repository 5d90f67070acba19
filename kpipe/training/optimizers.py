"""Keras's optimizers by name, with both meanings of weight decay.

The papers' weight decay is an L2 term, added to the gradient before momentum and adaptive scaling. Keras's
own `weight_decay` argument is the decoupled kind: the weight shrinks by learning rate x value, apart from the
update. With momentum 0.9 the same number is about ten times weaker there.
"""

import re
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kpipe.catalog.training import OPTIMIZERS
from kpipe.errors import ConfigError, did_you_mean

# The last part of the name only: the kernel of a network called `beta` still decays. TensorFlow appends `:0`,
# and under several replicas the replica.
NOT_DECAYED = re.compile(r"(^|/)(bias|gamma|beta)(/replica_\d+)?(:\d+)?$")


def make_optimizer(
    name: str,
    options: Mapping[str, Any],
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    weight_decay: Mapping[str, Any] | None = None,
) -> keras.optimizers.Optimizer:
    """An optimizer of the table `kpipe.catalog.training.OPTIMIZERS`.

    Args:
        name: a name of the table.
        options: arguments of the Keras class, weight decay apart.
        learning_rate: a number or a schedule.
        weight_decay: `{"value": float, "kind": "l2" | "decoupled"}`; biases, gammas and betas never decay.

    Raises:
        ConfigError: the name, or the kind of weight decay, is not known.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"training.optimizer: expected a known name, got '{name}'{did_you_mean(name, OPTIMIZERS)}")
    value, kind = _split(weight_decay)
    optimizer_class = OPTIMIZERS[name].load()
    if value and kind == "l2":
        optimizer_class = _with_l2(optimizer_class, value)
    arguments = dict(options)
    if value and kind == "decoupled":
        arguments["weight_decay"] = value
    elif issubclass(optimizer_class, keras.optimizers.AdamW):
        arguments["weight_decay"] = 0.0  # AdamW has a decay of its own and does not take None
    optimizer = optimizer_class(learning_rate=learning_rate, **arguments)
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED.pattern])
    return optimizer


def _split(weight_decay: Mapping[str, Any] | None) -> tuple[float, str]:
    if weight_decay is None:
        return 0.0, "l2"
    kind = weight_decay["kind"]
    if kind not in ("l2", "decoupled"):
        raise ConfigError(f"training.optimizer.weight_decay.kind: expected l2 or decoupled, got '{kind}'")
    return weight_decay["value"], kind


def _with_l2(optimizer_class: type[keras.optimizers.Optimizer], value: float) -> type[keras.optimizers.Optimizer]:
    """The same optimizer for the loss plus value / 2 x the squared weights."""

    class WithL2(optimizer_class):
        def update_step(self, gradient, variable, learning_rate):
            if not NOT_DECAYED.search(variable.name):
                gradient = ops.add(gradient, ops.multiply(ops.cast(value, variable.dtype), variable))
            super().update_step(gradient, variable, learning_rate)

    WithL2.__name__ = optimizer_class.__name__
    return WithL2
