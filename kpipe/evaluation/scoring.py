"""A network's outcomes over a whole split, in memory that does not grow with the size of the images."""

from collections.abc import Callable

import numpy as np

from kpipe.errors import DataError
from kpipe.evaluation.metrics import Outcomes, check_finite, concatenate, score_batch
from kpipe.evaluation.views import Protocol


def score(
    protocol: Protocol,
    *,
    label_order: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    advance: Callable[[int], None] = lambda images: None,
) -> Outcomes:
    """Show each image of a split to the network once.

    Args:
        protocol: what the network sees of it.
        label_order: the network's class for each class of the data, int [K]; None: they are the same.
        label_smoothing: as in the loss that the network was trained with.
        advance: called with the number of images just scored.

    Returns:
        The outcomes of all images, in their order.

    Raises:
        DataError: the split is empty.
        ConfigError: the network computes something that is not a number.
    """
    batches = []
    for views, labels in protocol.batches:
        labels = labels if label_order is None else np.take(label_order, labels).astype(np.int32)
        probabilities = protocol.predict(views, labels)
        check_finite(probabilities)
        batches.append(score_batch(probabilities, np.asarray(labels), label_smoothing=label_smoothing))
        advance(len(labels))
    if not batches:
        raise DataError("evaluation: expected at least one image, got none")
    return concatenate(batches)
