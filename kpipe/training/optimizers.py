"""Keras's optimizers by name, composed of seats: clipping, weight decay, factors of the rate, averaging.

A gradient is clipped, an L2 term is added to it, and the update is made at the learning rate of its variable:

    gradient -> clip -> + l2 x weight -> momentum, adaptive scaling -> x rate x factor -> average

The papers' weight decay is that L2 term, added before momentum and adaptive scaling. The decoupled kind shrinks the
weight by learning rate x value instead, apart from the update. With momentum 0.9 the same number is about ten times
weaker there. Keras's own `weight_decay` is the decoupled kind, so AlexNet's rule (Krizhevsky et al. 2012, section 5),
v <- 0.9 v - 0.0005 rate w - rate gradient, is `sgd` with momentum 0.9 and an L2 term of 0.0005.
"""

import re
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kpipe.catalog.rows import check_options
from kpipe.catalog.training import OPTIMIZERS, Clip
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean
from kpipe.training.averaging import WeightAverage

_NOT_DECAYED = re.compile(r"(bias|gamma|beta)\Z")
_CLIP_ARGUMENTS = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}


def make_optimizer(
    name: str,
    options: Mapping[str, Any],
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    *,
    weight_decay: Mapping[str, Any] | None = None,
    clip: Mapping[str, float] | None = None,
    rates: Mapping[str, float] | None = None,
    decays: Mapping[str, float] | None = None,
    average: WeightAverage | None = None,
) -> keras.optimizers.Optimizer:
    """Return an optimizer of the table `kpipe.catalog.training.OPTIMIZERS`.

    Args:
        name: a name of the table.
        options: its options, as in an experiment file, without weight decay.
        learning_rate: a number or a schedule.
        weight_decay: `{"value": float, "kind": "l2" | "decoupled"}`; biases, gammas and betas never decay.
        clip: the largest gradient: one of `{"norm": float}`, `{"global_norm": float}` and `{"value": float}`.
        rates: factor of the learning rate by the path of a variable; 1 for those that are not named.
        decays: value of the weight decay by the path of a variable, instead of that of `weight_decay`.
        average: takes in the weights after each step, once it is built.

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
    arguments = checked.model_dump(exclude={"weight_decay"})
    if clip:
        kind, most = check_options("training.clip", Clip, **clip).chosen
        arguments[_CLIP_ARGUMENTS[kind]] = most
    optimizer_class = _compose(
        row.load(),
        decay.value if decay else 0.0,
        decay.kind if decay else row.options.decay_kind,
        rates or {},
        decays or {},
    )
    optimizer = optimizer_class(learning_rate=learning_rate, **arguments)
    # Decay has its own seat; AdamW and Muon would add theirs.
    optimizer.weight_decay = optimizer.adam_weight_decay = None
    optimizer.average = average
    return optimizer


def _compose(
    optimizer_class: type[keras.optimizers.Optimizer],
    decay: float,
    kind: str,
    rates: Mapping[str, float],
    decays: Mapping[str, float],
) -> type[keras.optimizers.Optimizer]:
    """Return the optimizer's class with weight decay, factors of the rate and averaging.

    The class keeps its name, after which Keras names the variables of a checkpoint.
    """

    class Composed(optimizer_class):
        def build(self, variables):
            if self.built:
                return
            super().build(variables)
            # By place, because an update is given TensorFlow's variable, which has no path.
            self._seats = [_seat(variable) for variable in variables]
            if hasattr(self, "_u_product"):
                self._track_variable(self._u_product)  # Nadam's, which Keras 3.15 leaves out of a checkpoint

        def update_step(self, gradient, variable, learning_rate):
            factor, decay = self._seats[self._get_variable_index(variable)]
            if factor != 1:
                learning_rate = learning_rate * factor
            if decay and kind == "l2":
                gradient = ops.add(gradient, ops.multiply(ops.cast(decay, variable.dtype), variable))
            elif decay:
                rate = ops.cast(learning_rate, variable.dtype)
                self.assign_sub(variable, ops.multiply(ops.cast(decay, variable.dtype) * rate, variable))
            super().update_step(gradient, variable, learning_rate)

        def apply(self, grads, trainable_variables=None):
            super().apply(grads, trainable_variables)
            if self.average:
                self.average.update()

    def _seat(variable: keras.Variable) -> tuple[float, float]:
        """Return the factor of a variable's learning rate, and its decay."""
        can_decay = not _NOT_DECAYED.search(variable.name)
        return rates.get(variable.path, 1.0), decays.get(variable.path, decay) if can_decay else 0.0

    Composed.__name__ = optimizer_class.__name__
    return Composed
