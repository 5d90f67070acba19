"""Exponential moving averages of a network's weights, which often classify better than the weights themselves.

B. Polyak, A. Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, in the exponential form that
Inception's training used (Szegedy et al. 2016, section 8).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import ops


class WeightAverage:
    """Averages of the variables that a training changes: weights, and the statistics of batch normalization.

    After each step, average <- decay x average + (1 - decay) x variable.

    Args:
        decay: in [0, 1).
        warmup: whether the decay rises as (1 + t) / (10 + t), t being the steps so far, until it reaches `decay`. So
            the random initial weights are soon forgotten.
    """

    def __init__(self, decay: float, *, warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.steps: keras.Variable | None = None
        self.pairs: list[tuple[keras.Variable, keras.Variable]] = []  # each variable with its average

    def build(self, model: keras.Model) -> None:
        """Make the averages of a model's variables; a second call does nothing."""
        if self.steps is not None:
            return
        self.steps = keras.Variable(0, dtype="int64", trainable=False)
        # Of a copy: given a variable of TensorFlow, Keras would use that one.
        self.pairs = [
            (v, keras.Variable(ops.copy(v), dtype=v.dtype, trainable=False)) for v in list_averaged_variables(model)
        ]

    def named_variables(self) -> dict[str, keras.Variable]:
        """Return the averages by the path of their variable, and the number of steps under `steps`."""
        return {"steps": self.steps} | {variable.path: average for variable, average in self.pairs}

    def update(self) -> None:
        """Take in the variables as they are after a step."""
        steps = ops.cast(self.steps, "float32")
        decay = ops.minimum((1 + steps) / (10 + steps), self.decay) if self.warmup else self.decay
        for variable, average in self.pairs:
            average.assign_add((1 - decay) * (variable - average))
        self.steps.assign_add(1)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averages inside the `with`, and its own weights again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for variable, average in self.pairs:
            kept = ops.copy(variable.value)
            variable.assign(average)
            average.assign(kept)


def list_averaged_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of a compiled model that are averaged: those of its layers that are, or will be, trained."""
    average = average_of(model.optimizer)
    if average is None or average.pairs:  # since these were made, layers may have been frozen for a time
        return [variable for variable, _ in average.pairs] if average else []
    trained = [layer for layer in model.layers if layer.trainable and layer.trainable_variables]
    return [variable for layer in trained for variable in layer.weights if "float" in variable.dtype]


def average_of(optimizer: keras.optimizers.Optimizer) -> WeightAverage | None:
    """Return what an optimizer of `make_optimizer` averages; None: nothing."""
    return getattr(getattr(optimizer, "inner_optimizer", optimizer), "average", None)  # below loss scaling
