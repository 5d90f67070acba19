"""The share of right answers, over labels in both of their forms (see `kpipe.training.losses`)."""

import keras
from keras import ops

from kpipe.training.losses import are_shares, flat_classes


@keras.saving.register_keras_serializable("kpipe")
class Accuracy(keras.metrics.MeanMetricWrapper):
    """How often the largest logit is that of the true class; of shares, the true class is the one with the largest.

    Keras's "accuracy" settles on the form of the first labels that it sees, and reads those of the other as 0.0.

    Input: labels int32 [B] or float32 [B, K]; logits float32 [B, K].
    """

    def __init__(self, name: str = "accuracy", dtype=None):
        super().__init__(_matches, name=name, dtype=dtype)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


def _matches(labels, logits):
    true = ops.argmax(labels, axis=-1) if are_shares(labels, logits) else flat_classes(labels)
    return ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), ops.cast(true, "int32")), "float32")
