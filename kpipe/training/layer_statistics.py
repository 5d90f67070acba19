"""Statistics of each layer during a training: dead ReLUs, and the size of an update beside that of the weights."""

from collections.abc import Callable, Mapping

import keras
import tensorflow as tf


class LayerStatistics(keras.callbacks.Callback):
    """Measure the layers of a network every so many steps.

    `dead_relus/<layer>` is the fraction of a layer's units, in a convolution of its filters, that are 0 for all of
    these images, at every position. Layers with ReLU as their activation count, and layers that are a ReLU. The
    network runs as in evaluation: without dropout, and with the moving means of batch normalization.

    `update_ratio/<layer>` is |w' - w| / |w| over all trainable weights of a layer, w before the latest step and w'
    after it. About 0.001 is usual. For this, a copy of the weights is held during that step.

    Args:
        images: a batch, as the network takes it: [B, H, W, C]. It is the same one throughout.
        every: steps between two measurements.
        write: gets the step, and the values by tag.
    """

    not_kept = ("every",)  # it may differ in a resumed run

    def __init__(self, images: tf.Tensor, every: int, write: Callable[[int, Mapping[str, float]], None]):
        super().__init__()
        self.images = images
        self.every = every
        self.write = write
        self.step = self.epoch_begin = 0
        self._before: dict[str, list[tuple[keras.Variable, tf.Tensor]]] = {}
        """Weights and their values before the latest step, by layer."""

    @property
    def callback_steps(self) -> tuple[int, int]:
        """The next steps after which it must be called: the one before a measurement, and that of the measurement."""
        due = self.step - self.step % self.every + self.every
        return due - 1, due

    def set_model(self, model):
        super().set_model(model)
        outputs = {layer.name: layer.output for layer in model.layers if _is_relu(layer)}
        self._relus = keras.Model(model.inputs[0], outputs) if outputs else None

    def on_epoch_begin(self, epoch, logs=None):
        self.step = self.epoch_begin = epoch * self.params["steps"]

    def on_train_batch_begin(self, batch, logs=None):
        if (self.step + 1) % self.every == 0:
            trained = {layer.name: layer.trainable_weights for layer in self.model.layers}
            # A tensor keeps its values when the variable that it was read from is updated.
            self._before = {
                name: [(each, tf.identity(each.value)) for each in weights]
                for name, weights in trained.items()
                if weights
            }

    def on_train_batch_end(self, batch, logs=None):
        self.step = self.epoch_begin + batch + 1
        if self.step % self.every == 0:
            self.write(self.step, self._measure())
            self._before = {}

    def _measure(self) -> dict[str, float]:
        # Not compiled: that would take as long as dozens of measurements.
        outputs = self._relus(self.images, training=False) if self._relus else {}
        values = {f"dead_relus/{name}": _fraction_dead(output) for name, output in outputs.items()}
        for name, before in self._before.items():
            update = tf.linalg.global_norm([weight.value - old for weight, old in before])
            values[f"update_ratio/{name}"] = float(update / tf.linalg.global_norm([old for _, old in before]))
        return values


def _is_relu(layer: keras.Layer) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return layer.negative_slope == 0
    return getattr(layer, "activation", None) is keras.activations.relu


def _fraction_dead(outputs: tf.Tensor) -> float:
    """Return the fraction of units that are nowhere above 0: outputs [B, ..., units]."""
    largest = tf.reduce_max(outputs, axis=list(range(outputs.shape.rank - 1)))
    return float(tf.reduce_mean(tf.cast(largest <= 0, "float32")))
