"""Loss scaling of mixed_float16, whose smallest numbers are larger than many gradients.

P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2. The loss is multiplied by a scale, and the
gradients are divided by it. A step whose gradients are not finite is skipped and halves the scale; 2,000 others in a
row double it.
"""

import keras
from keras import ops

from kpipe.errors import Diverged

MOST_SKIPPED = 50
"""Steps that may be skipped in a row. From Keras's first scale of 2^15, the scale is 1 after 15 of them."""


class LossScaling(keras.optimizers.LossScaleOptimizer):
    """Keras's loss scaling, which counts the steps that it skips and keeps the scale at 1 or above."""

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.skipped, self.skipped_in_a_row = (
            self.add_variable((), "zeros", "int64", aggregation="none", name=name)
            for name in ("skipped", "skipped_in_a_row")
        )

    def _stateful_handle_finite_grads(self, grads, trainable_variables):
        super()._stateful_handle_finite_grads(grads, trainable_variables)
        self.skipped_in_a_row.assign(0)

    def _stateful_handle_non_finite_grads(self):
        super()._stateful_handle_non_finite_grads()
        self.dynamic_scale.assign(ops.maximum(self.dynamic_scale, 1.0))
        self.skipped.assign_add(1)
        self.skipped_in_a_row.assign_add(1)

    def steps_before_end(self) -> int:
        """Return the number of steps after which the training may have to end: at least 1."""
        return max(1, MOST_SKIPPED - int(self.skipped_in_a_row))

    def check_skipped(self, step: int) -> None:
        """Raise Diverged if the last 50 steps were skipped.

        Args:
            step: the last step.
        """
        skipped = int(self.skipped_in_a_row)
        if skipped >= MOST_SKIPPED:
            raise Diverged(
                f"the gradients of {skipped} steps in a row, {step - skipped + 1} to {step}, were not finite in "
                f"mixed_float16, down to a loss scale of {float(self.dynamic_scale):g}; these steps were skipped, and "
                f"the weights are those of step {step - skipped}. Likely causes: numbers beyond 65,504, the largest of "
                "float16 (train in float32 or mixed_bfloat16), or a loss whose gradient is not finite"
            )

    def read(self) -> dict[str, float]:
        """Return the loss scale, and the number of steps that were skipped since the start of the training."""
        return {"loss_scale": float(self.dynamic_scale), "skipped_steps": int(self.skipped)}


def loss_scaling_of(optimizer: keras.optimizers.Optimizer) -> LossScaling | None:
    """Return the optimizer if it scales the loss; None: it does not."""
    return optimizer if isinstance(optimizer, LossScaling) else None
