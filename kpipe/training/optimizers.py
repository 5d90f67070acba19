"""Keras's optimizers by name, with both meanings of weight decay.

The papers' weight decay is an L2 term, added to the gradient before momentum and adaptive scaling. Keras's
own `weight_decay` argument is the decoupled kind: the weight shrinks by learning rate x value, apart from the
update. With momentum 0.9 the same number is about ten times weaker there.

A `GradientTransform` changes a gradient before the optimizer sees it; `with_transforms` applies a chain of them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from kpipe.catalog.rows import check_options
from kpipe.catalog.training import OPTIMIZERS
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean

GradientTransform = Callable[[Any, keras.Variable], Any]
"""(gradient, variable) -> gradient, of the variable's shape and dtype."""

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
    """Return an optimizer of the table `kpipe.catalog.training.OPTIMIZERS`.

    Args:
        name: a name of the table.
        options: its options, as in an experiment file, without weight decay.
        learning_rate: a number or a schedule.
        weight_decay: `{"value": float, "kind": "l2" | "decoupled"}`; biases, gammas and betas never decay.

    Raises:
        ConfigError: the name is not known, or an option is out of range.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"training.optimizer: expected a known name, got {show(name)}{did_you_mean(name, OPTIMIZERS)}"
        )
    row = OPTIMIZERS[name]
    checked = check_options("training.optimizer", row.options, **options, weight_decay=weight_decay)
    decay = checked.weight_decay
    kind = decay.kind if decay and decay.value else None
    arguments = checked.model_dump(exclude={"weight_decay"})
    optimizer_class = row.load()
    if kind == "decoupled":
        arguments["weight_decay"] = decay.value
    elif issubclass(optimizer_class, keras.optimizers.AdamW):
        arguments["weight_decay"] = 0.0  # AdamW has a decay of its own and does not take None
    transforms = [l2_decay(decay.value)] if kind == "l2" else []
    optimizer = with_transforms(optimizer_class, transforms)(learning_rate=learning_rate, **arguments)
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED.pattern])
    return optimizer


def l2_decay(value: float) -> GradientTransform:
    """Return the transform that adds the gradient of value / 2 x the squared weights.

    Biases, gammas and betas are left as they are.
    """

    def add_decay(gradient, variable):
        if NOT_DECAYED.search(variable.name):
            return gradient
        return ops.add(gradient, ops.multiply(ops.cast(value, variable.dtype), variable))

    return add_decay


def with_transforms(
    optimizer_class: type[keras.optimizers.Optimizer], transforms: Sequence[GradientTransform]
) -> type[keras.optimizers.Optimizer]:
    """Return the optimizer's class with transforms of each gradient before the update, in their order.

    The class keeps its name, after which Keras names the variables of a checkpoint.
    """
    if not transforms:
        return optimizer_class

    class WithTransforms(optimizer_class):
        def update_step(self, gradient, variable, learning_rate):
            for transform in transforms:
                gradient = transform(gradient, variable)
            super().update_step(gradient, variable, learning_rate)

    WithTransforms.__name__ = optimizer_class.__name__
    return WithTransforms
