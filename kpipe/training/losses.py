"""Loss functions over logits: softmax cross entropy, and the two of the first convolutional networks.

Each takes logits float32 [B, K] and labels in one of two forms: classes int32 [B], or soft labels float32 [B, K]
whose rows sum to 1, as mixing images makes them. Each returns float32 [B], of which training takes the mean, weighted
where a batch has weights. The shape says which form it is when the loss is traced, so a compiled model trains on soft
labels and is evaluated on classes. The first arguments of the classes are the options of
`kpipe.catalog.training.LOSSES`.

B batch, K classes.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kpipe.catalog.rows import check_options
from kpipe.catalog.training import LOSSES, CrossEntropyOptions, EuclideanOptions, MapOptions
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean

_WHERE = "training.loss"


def make_loss(name: str, options: Mapping[str, Any] | None = None) -> keras.losses.Loss:
    """Return a loss of the table `kpipe.catalog.training.LOSSES`.

    Args:
        name: a name of the table.
        options: its options, as in an experiment file.

    Raises:
        ConfigError: the name is not known, or an option is out of range.
    """
    if name not in LOSSES:
        raise ConfigError(f"{_WHERE}: expected a known name, got {show(name)}{did_you_mean(name, LOSSES)}")
    return LOSSES[name].load()(**(options or {}))


@keras.saving.register_keras_serializable("kpipe")
class CrossEntropy(keras.losses.Loss):
    """-log of the probability that a softmax over the logits gives to the true class.

    With soft labels, the mean over the classes, weighted by the labels.

    Args:
        label_smoothing: e of the labels (1 - e) y + e / K, which are learned instead of the labels y (Szegedy et al.
            2016, section 7). It counts wherever the model is compiled with this loss, so in the validation loss too,
            as in Keras.

    Raises:
        ConfigError: `label_smoothing` is not between 0 and 1.
    """

    def __init__(self, label_smoothing: float = 0.0, *, name: str = "cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        checked = check_options(_WHERE, CrossEntropyOptions, label_smoothing=label_smoothing)
        self.label_smoothing = checked.label_smoothing

    def call(self, labels, logits):
        # Classes stay classes: one-hot labels of them would be [B, K], and a thousand classes are usual.
        if are_soft(labels, logits):
            loss = ops.categorical_crossentropy(labels, logits, from_logits=True)
        else:
            loss = ops.sparse_categorical_crossentropy(class_indices(labels), logits, from_logits=True)
        if not self.label_smoothing:
            return loss
        # The loss is linear in the labels: that of labels spread over all classes is the mean of -log softmax.
        spread = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        return (1 - self.label_smoothing) * loss + self.label_smoothing * spread

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("kpipe")
class Euclidean(keras.losses.Loss):
    """Half the squared distance between the outputs and a code of +1 for the true class and -1 for the others.

    With soft labels, the code is the mean of the classes' codes, weighted by the labels.

    Args:
        output: what the logits pass first: "tanh", the squashing of early networks' last layer, or "linear".

    Raises:
        ConfigError: `output` is neither of these.
    """

    def __init__(self, output: str = "tanh", *, name: str = "euclidean", **kwargs):
        super().__init__(name=name, **kwargs)
        self.output = check_options(_WHERE, EuclideanOptions, output=output).output

    def call(self, labels, logits):
        outputs = ops.tanh(logits) if self.output == "tanh" else logits
        codes = 2 * _soft_labels(labels, logits) - 1
        return 0.5 * ops.sum(ops.square(outputs - codes), axis=-1)

    def get_config(self):
        return {**super().get_config(), "output": self.output}


@keras.saving.register_keras_serializable("kpipe")
class MapCriterion(keras.losses.Loss):
    """Maximum a posteriori criterion: pulls the true class near and pushes the others away, the nearest most.

    LeCun et al. 1998, section II.C, equation 9. With penalties y = -logits (squared distances), the loss is
    y_true + log(exp(-j) + sum_i exp(-y_i)). With soft labels, y_true is the mean of the penalties, weighted by the
    labels.

    Args:
        j: penalty of an image that belongs to none of the classes, above 0. It limits how far the others are pushed.
            The paper gives no value.

    Raises:
        ConfigError: `j` is not above 0.
    """

    def __init__(self, j: float = 1.0, *, name: str = "map", **kwargs):
        super().__init__(name=name, **kwargs)
        self.j = check_options(_WHERE, MapOptions, j=j).j

    def call(self, labels, logits):
        true = ops.sum(_soft_labels(labels, logits) * logits, axis=-1)
        others = ops.concatenate([logits, ops.full_like(logits[:, :1], -self.j)], axis=-1)
        return ops.logsumexp(others, axis=-1) - true

    def get_config(self):
        return {**super().get_config(), "j": self.j}


def are_soft(labels, logits) -> bool:
    """Return whether labels are soft, [B, K], and not classes of [B] or, as Keras may pass them, [B, 1]."""
    return len(labels.shape) == 2 and labels.shape[-1] == logits.shape[-1] > 1


def class_indices(labels):
    """Return classes of any number type, [B] or [B, 1], as int32 [B]."""
    return ops.cast(ops.reshape(labels, (-1,)), "int32")


def _soft_labels(labels, logits):
    """Return labels of either form as soft labels [B, K], in the type of the logits."""
    if are_soft(labels, logits):
        return ops.cast(labels, logits.dtype)
    return ops.one_hot(class_indices(labels), logits.shape[-1], dtype=logits.dtype)
