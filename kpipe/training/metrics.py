"""Top-1 and top-5 accuracy over labels in both of their forms (see `kpipe.training.losses`)."""

import keras
from keras import ops

from kpipe.training.losses import are_soft, class_indices


def make_metrics(classes: int) -> list[keras.metrics.Metric]:
    """Return what is measured beside the loss: accuracy, and top-5 accuracy of more than five classes."""
    return [Accuracy(), Top5Accuracy()] if classes > 5 else [Accuracy()]


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


@keras.saving.register_keras_serializable("kpipe")
class Top5Accuracy(keras.metrics.MeanMetricWrapper):
    """Fraction of images whose true class is among the five largest logits, for integer or soft labels.

    Of equal logits the first ones count, as in top-1 accuracy, and never more than five in all. Keras's own metric
    counts every class that is level with the fifth, and gives a network whose logits are all 0 an accuracy of 1.

    Input: labels int32 [B] or float32 [B, K]; logits float32 [B, K], K at least 5.
    """

    def __init__(self, name: str = "top5", dtype=None):
        super().__init__(_matches_of_five, name=name, dtype=dtype)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


def _matches(labels, logits):
    return ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), _true_classes(labels, logits)), "float32")


def _matches_of_five(labels, logits):
    largest = ops.cast(ops.top_k(logits, 5)[1], "int32")
    return ops.cast(ops.any(ops.equal(largest, _true_classes(labels, logits)[:, None]), axis=-1), "float32")


def _true_classes(labels, logits):
    true = ops.argmax(labels, axis=-1) if are_soft(labels, logits) else class_indices(labels)
    return ops.cast(true, "int32")
