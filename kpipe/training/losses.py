"""Loss functions over logits: softmax cross entropy, and the two of the first convolutional networks.

All take logits float32 [B, K] and labels in either of two forms: classes int32 [B], or shares float32 [B, K] that add
up to 1, which a batch has whose images are mixed. They give float32 [B], of which training takes the mean, weighted
where the batch says how. Which form it is, the shape says when the loss is traced, so that a compiled model trains on
shares and is evaluated on classes. The signatures of the three functions are the options of `LOSSES` in the catalog.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kpipe.catalog.training import LOSSES
from kpipe.errors import ConfigError, did_you_mean


def make_loss(name: str, options: Mapping[str, Any] | None = None) -> keras.losses.Loss:
    """A loss of the table `kpipe.catalog.training.LOSSES`.

    Raises:
        ConfigError: the name is not known.
    """
    if name not in LOSSES:
        raise ConfigError(f"training.loss: expected a known name, got '{name}'{did_you_mean(name, LOSSES)}")
    return LOSSES[name].load()(**(options or {}))


def cross_entropy() -> keras.losses.Loss:
    """-log of the probability that a softmax over the logits gives to the true class, weighted by the shares."""
    return CrossEntropy()


def euclidean(output: str = "tanh") -> keras.losses.Loss:
    """Half the squared distance between the outputs and a label coded as +1 for its class and -1 for the others.

    The code of shares is the mean of the classes' codes, weighted by the shares.

    Args:
        output: what the logits pass first: "tanh", the squashing of early networks' last layer, or "linear".
    """
    return Euclidean(output)


def map_criterion(j: float = 1.0) -> keras.losses.Loss:
    """LeCun et al. 1998, section II.C, equation 9: pulls the true class near and pushes the near others away.

    With penalties y = -logits (squared distances), y_true + log(exp(-j) + sum_i exp(-y_i)). Of shares, y_true is the
    mean of the penalties, weighted by the shares.

    Args:
        j: the penalty of an image that is none of the classes, above 0; it limits how far the others are pushed.
            The paper gives no value.
    """
    return MapCriterion(j)


@keras.saving.register_keras_serializable("kpipe")
class CrossEntropy(keras.losses.Loss):
    """See `cross_entropy`."""

    def __init__(self, name: str = "cross_entropy", **options):
        super().__init__(name=name, **options)

    def call(self, labels, logits):
        if are_shares(labels, logits):
            return ops.categorical_crossentropy(labels, logits, from_logits=True)
        # Not by one-hot labels: the sparse form needs no [B, K] of them, and a thousand classes are usual.
        return ops.sparse_categorical_crossentropy(flat_classes(labels), logits, from_logits=True)


@keras.saving.register_keras_serializable("kpipe")
class Euclidean(keras.losses.Loss):
    """See `euclidean`."""

    def __init__(self, output: str = "tanh", name: str = "euclidean", **options):
        super().__init__(name=name, **options)
        if output not in ("tanh", "linear"):
            raise ConfigError(f"training.loss.output: expected tanh or linear, got {output!r}")
        self.output = output

    def call(self, labels, logits):
        outputs = ops.tanh(logits) if self.output == "tanh" else logits
        codes = 2 * _shares(labels, logits) - 1
        return 0.5 * ops.sum(ops.square(outputs - codes), axis=-1)

    def get_config(self):
        return {**super().get_config(), "output": self.output}


@keras.saving.register_keras_serializable("kpipe")
class MapCriterion(keras.losses.Loss):
    """See `map_criterion`."""

    def __init__(self, j: float = 1.0, name: str = "map", **options):
        super().__init__(name=name, **options)
        if not j > 0:
            raise ConfigError(f"training.loss.j: expected more than 0, got {j}")
        self.j = j

    def call(self, labels, logits):
        true = ops.sum(_shares(labels, logits) * logits, axis=-1)
        others = ops.concatenate([logits, ops.full_like(logits[:, :1], -self.j)], axis=-1)
        return ops.logsumexp(others, axis=-1) - true

    def get_config(self):
        return {**super().get_config(), "j": self.j}


def are_shares(labels, logits) -> bool:
    """Whether the labels are shares [B, K], and not classes of [B] or, as Keras may hand them, [B, 1]."""
    return len(labels.shape) == 2 and labels.shape[-1] == logits.shape[-1] > 1


def flat_classes(labels):
    """Classes int32 [B], of any numbers [B] or [B, 1]."""
    return ops.cast(ops.reshape(labels, (-1,)), "int32")


def _shares(labels, logits):
    """Labels of either form as shares [B, K]."""
    if are_shares(labels, logits):
        return ops.cast(labels, logits.dtype)
    return ops.one_hot(flat_classes(labels), logits.shape[-1], dtype=logits.dtype)
