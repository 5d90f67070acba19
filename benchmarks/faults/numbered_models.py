"""Models whose variables tell their step: every value depends on the step, so a mixture of two steps is recognized."""

import keras
import numpy as np

from kpipe.models import build_model
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.trainer import Trainer


def make_lenet() -> keras.Model:
    """Build LeNet-5 with Adam and all variables of optimizer and metrics."""
    model = build_model("lenet5", {}, input_shape=(28, 28, 1), classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(optimizer="adam", loss=loss, metrics=[accuracy], jit_compile=False)
    Trainer(model)  # builds the variables of optimizer and metrics
    return model


def list_variables(model: keras.Model, *, metrics: bool = True) -> list[keras.Variable]:
    """List the variables of the network and the optimizer, and of the metrics unless they are left out."""
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    return variables + model.metrics_variables * metrics


def value_at(step: int, index: int, variable: keras.Variable) -> np.ndarray:
    """Return the value of variable number `index` at a step: another one for every step and every variable."""
    numbers = (31 * step + 7 * index + np.arange(np.prod(variable.shape, dtype=int))) % 8191
    return numbers.reshape(variable.shape).astype(variable.dtype)


def set_values(model: keras.Model, step: int) -> None:
    """Give every variable its value of this step."""
    for index, variable in enumerate(list_variables(model)):
        variable.assign(value_at(step, index, variable))


def find_difference(model: keras.Model, step: int, *, metrics: bool = True) -> str:
    """Return the path of a variable that does not have its value of this step; empty if all have."""
    for index, variable in enumerate(list_variables(model, metrics=metrics)):
        if not np.array_equal(variable.numpy(), value_at(step, index, variable)):
            return variable.path
    return ""


def find_mixture(model: keras.Model) -> str:
    """Say what is wrong with a model that should be as it was saved at step 1 or at step 2; empty if nothing is."""
    differences = [find_difference(model, step, metrics=False) for step in (1, 2)]
    return "" if "" in differences else f"{differences[1]} was restored wrongly"


def state_at(step: int) -> dict:
    """Return what a checkpoint of this step holds besides the variables."""
    return {"step": step, "words": [str(step)] * 100, "array": np.arange(step, step + 9)}


def is_state_at(state: dict, step: int) -> bool:
    expected = state_at(step)
    arrays_are_equal = np.array_equal(state.pop("array"), expected.pop("array"))
    return arrays_are_equal and state == expected


def commit(model: keras.Model, checkpoints: Checkpoints, step: int) -> None:
    """Commit a checkpoint in which everything is of this step."""
    set_values(model, step)
    checkpoints.commit(model, state_at(step), step=step)


def restore(model: keras.Model, checkpoints: Checkpoints) -> tuple[int, tuple[str, ...], str]:
    """Restore the newest checkpoint.

    Returns:
        The step, a line about each damaged checkpoint that was skipped, and what is not of that step; empty if all is.
    """
    set_values(model, -1)
    restored = checkpoints.restore(model)
    wrong = find_difference(model, restored.step)
    if not is_state_at(restored.state, restored.step):
        wrong += " and the state"
    return restored.step, restored.skipped, wrong
