"""Statistics of layers during a training: histograms, dead ReLUs, and the size of updates beside the weights."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

_MOST_VALUES = 100_000  # of a histogram, spread over a tensor with more of them


class _EverySteps(keras.callbacks.Callback):
    """Call `measure` every so many steps."""

    not_kept = ("every",)  # it may differ in a resumed run

    def __init__(self, every: int):
        super().__init__()
        self.every = every
        self.step = self.epoch_begin = 0

    @property
    def callback_steps(self) -> tuple[int, ...]:
        """The next step after which it must be called."""
        return (self.step - self.step % self.every + self.every,)

    def on_epoch_begin(self, epoch, logs=None):
        self.step = self.epoch_begin = epoch * self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        self.step = self.epoch_begin + batch + 1
        if self.step % self.every == 0:
            self.measure()

    @abstractmethod
    def measure(self) -> None:
        """Measure the network as it is after a step."""


class LayerHistograms(_EverySteps):
    """Take the values of weights and outputs of each layer every so many steps, for histograms.

    `weights/<path>` are the values of a trainable weight, and `activations/<layer>` those of the output of a layer with
    weights, or of a ReLU, for these images. Of more than 100,000 values, so many are taken, evenly spread.

    Args:
        images, every: as for `LayerStatistics`.
        write: gets the step, and the values by tag, float32 [n].
    """

    def __init__(self, images: tf.Tensor, every: int, write: Callable[[int, Mapping[str, np.ndarray]], None]):
        super().__init__(every)
        self.images = images
        self.write = write

    def set_model(self, model):
        super().set_model(model)
        layers = [layer for layer in model.layers if layer.weights or _is_relu(layer)]
        self._outputs = keras.Model(model.inputs[0], {layer.name: layer.output for layer in layers})

    def measure(self):
        weights = {f"weights/{weight.path}": weight.value for weight in self.model.trainable_weights}
        outputs = self._outputs(self.images, training=False)
        activations = {f"activations/{name}": output for name, output in outputs.items()}
        self.write(self.step, {tag: _some_values(tensor) for tag, tensor in (weights | activations).items()})


class LayerStatistics(_EverySteps):
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

    def __init__(self, images: tf.Tensor, every: int, write: Callable[[int, Mapping[str, float]], None]):
        super().__init__(every)
        self.images = images
        self.write = write
        self._before: dict[str, list[tuple[keras.Variable, tf.Tensor]]] = {}
        """Weights and their values before the latest step, by layer."""

    @property
    def callback_steps(self) -> tuple[int, int]:
        """The next steps after which it must be called: the one before a measurement, and that of the measurement."""
        (due,) = super().callback_steps
        return due - 1, due

    def set_model(self, model):
        super().set_model(model)
        outputs = {layer.name: layer.output for layer in model.layers if _is_relu(layer)}
        self._relus = keras.Model(model.inputs[0], outputs) if outputs else None

    def on_train_batch_begin(self, batch, logs=None):
        if (self.step + 1) % self.every == 0:
            trained = {layer.name: layer.trainable_weights for layer in self.model.layers}
            # A tensor keeps its values when the variable that it was read from is updated.
            self._before = {
                name: [(each, tf.identity(each.value)) for each in weights]
                for name, weights in trained.items()
                if weights
            }

    def measure(self):
        # Not compiled: that would take as long as dozens of measurements.
        outputs = self._relus(self.images, training=False) if self._relus else {}
        values = {f"dead_relus/{name}": _fraction_dead(output) for name, output in outputs.items()}
        for name, before in self._before.items():
            update = tf.linalg.global_norm([weight.value - old for weight, old in before])
            values[f"update_ratio/{name}"] = float(update / tf.linalg.global_norm([old for _, old in before]))
        self._before = {}
        self.write(self.step, values)


def _is_relu(layer: keras.Layer) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return layer.negative_slope == 0
    return getattr(layer, "activation", None) is keras.activations.relu


def _some_values(tensor: tf.Tensor) -> np.ndarray:
    flat = tf.reshape(tensor, [-1])
    return tf.cast(flat[:: -(-flat.shape[0] // _MOST_VALUES)], tf.float32).numpy()


def _fraction_dead(outputs: tf.Tensor) -> float:
    """Return the fraction of units that are nowhere above 0: outputs [B, ..., units]."""
    largest = tf.reduce_max(outputs, axis=list(range(outputs.shape.rank - 1)))
    return float(tf.reduce_mean(tf.cast(largest <= 0, "float32")))
