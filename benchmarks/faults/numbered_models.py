"""Models whose variables tell their step."""

import keras
import numpy as np

from kpipe.models import build_model
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.trainer import Trainer


def make_lenet() -> keras.Model:
    """LeNet-5 with Adam, all its variables built."""
    model = build_model("lenet5", {}, input_shape=(28, 28, 1), classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(optimizer="adam", loss=loss, metrics=[accuracy], jit_compile=False)
    Trainer(model)  # builds the variables of optimizer and metrics
    return model


def variables_of(model: keras.Model, *, metrics: bool = True) -> list[keras.Variable]:
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    return variables + model.metrics_variables * metrics


def value_at(step: int, index: int, variable: keras.Variable) -> np.ndarray:
    """Numbers that are others at every place and every step, so that a mixture of two steps is recognised."""
    numbers = (31 * step + 7 * index + np.arange(np.prod(variable.shape, dtype=int))) % 8191
    return numbers.reshape(variable.shape).astype(variable.dtype)


def set_values(model: keras.Model, step: int) -> None:
    for index, variable in enumerate(variables_of(model)):
        variable.assign(value_at(step, index, variable))


def differing(model: keras.Model, step: int, *, metrics: bool = True) -> str:
    """Names a variable that does not have its value of this step; empty: there is none."""
    for index, variable in enumerate(variables_of(model, metrics=metrics)):
        if not np.array_equal(variable.numpy(), value_at(step, index, variable)):
            return variable.path
    return ""


def state_at(step: int) -> dict:
    return {"step": step, "words": [str(step)] * 100, "array": np.arange(step, step + 9)}


def is_state_at(state: dict, step: int) -> bool:
    wanted = state_at(step)
    arrays = np.array_equal(state.pop("array"), wanted.pop("array"))
    return arrays and state == wanted


def restore(model: keras.Model, checkpoints: Checkpoints) -> tuple[int, tuple[str, ...], str]:
    """Over variables that have no step's values: the step, what was passed over, and what is not of that step."""
    set_values(model, -1)
    restored = checkpoints.restore(model)
    wrong = differing(model, restored.step)
    if not is_state_at(restored.state, restored.step):
        wrong += " and the state"
    return restored.step, restored.skipped, wrong
