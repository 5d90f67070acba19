"""Notices a training that learns nothing: its loss stays at that of guessing."""

from collections.abc import Callable

import keras
import numpy as np

from kpipe.training.losses import CrossEntropy

_NEAR_GUESSING = 0.02
_MIN_STEPS = 100  # that do not count, where `stuck_after` is not given
_DECIDING_STEPS = 50
_LIKELY_CAUSES = (
    "likely causes: the learning rate is too low or too high, the initial weights do not suit a network of this depth, "
    "normalization is missing (data.normalize, batch normalization), or the labels do not fit the images"
)


def losses_of_guessing(model: keras.Model, frequencies: np.ndarray) -> list[float]:
    """Return the training losses of a network that gives all images the same probabilities.

    A network that has learned nothing but the frequencies of the classes has the first, the lowest of all such losses.
    One that has not even learned those has the second, ln K. With balanced classes, the two are equal. Losses of
    auxiliary classifiers are part of both, as they are of the training loss.

    Args:
        model: compiled; its loss is built.
        frequencies: of the classes among the training images, float [K]. They sum to 1.

    Returns:
        Nothing where the loss is not a cross entropy, or where there is a single class.
    """
    classes = len(frequencies)
    if not isinstance(model.loss, CrossEntropy) or classes < 2:
        return []
    labels = np.float32(frequencies)[None]
    smoothing = model.loss.label_smoothing
    losses = []
    for probabilities in ((1 - smoothing) * labels + smoothing / classes, np.full_like(labels, 1 / classes)):
        logits = keras.ops.convert_to_tensor(np.log(np.maximum(probabilities, 1e-30)))
        outputs = logits if len(model.outputs) == 1 else [logits] * len(model.outputs)
        losses.append(float(model.compute_loss(None, keras.ops.convert_to_tensor(labels), outputs, training=True)))
    return losses


class StuckWatcher(keras.callbacks.Callback):
    """Report a training that is stuck at the loss of guessing.

    This is decided once, after step `stuck_after` + 50, by the mean training loss of the steps `stuck_after` + 1 to
    `stuck_after` + 50. Every step counts the same, whether it begins an epoch or a log line. A run that was killed
    remembers the sums in its checkpoint, so that it is decided as if it had not been.

    Args:
        frequencies: of the classes among the training images, float [K].
        on_stuck: gets a sentence that says so, and the likely causes.
        steps_per_epoch: of the training.
        stuck_after: steps of the training that do not count. Default: one epoch, and at least 100 steps.

    Attributes:
        callback_steps: steps after which it must be called.
    """

    def __init__(
        self,
        frequencies: np.ndarray,
        on_stuck: Callable[[str], None],
        *,
        steps_per_epoch: int,
        stuck_after: int | None = None,
    ):
        super().__init__()
        self.frequencies = list(map(float, frequencies))
        self.on_stuck = on_stuck
        self.steps_per_epoch = steps_per_epoch
        first = stuck_after or max(_MIN_STEPS, steps_per_epoch)
        self.callback_steps = (first, first + _DECIDING_STEPS)
        self.epoch_begin = 0  # steps before this epoch
        self.earlier_epochs = 0.0  # sum of the losses of these steps
        self.uncounted = 0.0  # sum of the losses of the steps that do not count

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_begin = epoch * self.steps_per_epoch

    def on_train_batch_end(self, batch, logs=None):
        step = self.epoch_begin + batch + 1
        total = self.earlier_epochs + logs["loss"] * (batch + 1)
        first, last = self.callback_steps
        if step == first:
            self.uncounted = total
        if step == last:
            self._decide((total - self.uncounted) / _DECIDING_STEPS)

    def on_epoch_end(self, epoch, logs=None):
        self.earlier_epochs += logs["loss"] * self.steps_per_epoch

    def _decide(self, loss: float) -> None:
        guessing = losses_of_guessing(self.model, self.frequencies)
        nearest = min(guessing, key=lambda each: abs(each - loss), default=None)
        if nearest is None or abs(loss - nearest) > _NEAR_GUESSING * nearest:
            return
        first, last = self.callback_steps
        self.on_stuck(
            f"stuck at guessing; the mean training loss of the steps {first + 1:,} to {last:,} is {loss:.3f}, within "
            f"{_NEAR_GUESSING:.0%} of {nearest:.3f}, that of guessing among {len(self.frequencies)} classes; "
            f"{_LIKELY_CAUSES}"
        )
