"""Accuracy over labels in both of their forms (see `kpipe.training.losses`)."""

import keras
from keras import ops

from kpipe.training.losses import are_soft, class_indices


@keras.saving.register_keras_serializable("kpipe")
class Accuracy(keras.metrics.MeanMetricWrapper):
    """Top-1 accuracy for integer or soft labels; the true class of a soft label is its largest entry.

    Keras's "accuracy" settles on the form of the first labels that it sees, and scores those of the other as 0.0.

    Input: labels int32 [B] or float32 [B, K]; logits float32 [B, K].
    """

    def __init__(self, name: str = "accuracy", dtype=None):
        super().__init__(_matches, name=name, dtype=dtype)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


def _matches(labels, logits):
    true = ops.argmax(labels, axis=-1) if are_soft(labels, logits) else class_indices(labels)
    return ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), ops.cast(true, "int32")), "float32")
