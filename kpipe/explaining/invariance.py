"""How a network sees an image that is shifted, scaled or rotated.

M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.1 and figure 5:
distances of the features of the first layer, and of the last hidden one, the second dense layer of their network.

Differences from the paper: one image, not five. The shift is horizontal, and up to a quarter of the width. The class is
the one that is explained, which need not be the true one. The features of the first layer are those before its pooling.
A network without a hidden dense layer has its last feature maps in the place of one.

H height, W width, C channels, n amounts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy import ndimage
from scipy.special import softmax

from kpipe.errors import ConfigError, did_you_mean
from kpipe.explaining.feature_maps import find_layer, list_stages, to_numpy
from kpipe.models.structure import find_last_hidden


@dataclass(frozen=True)
class Invariance:
    """What becomes of an image, changed by n amounts, in a network."""

    amounts: np.ndarray
    """Pixels to the right, factors, or degrees against the clock: float64 [n]."""
    images: np.ndarray
    """The changed images, float32 [n, H, W, C]."""
    low: np.ndarray
    """Euclidean distance between the feature maps of the first layer and those of the whole image, float32 [n]."""
    high: np.ndarray
    """The same of the last hidden layer before the logits, or of the last feature maps where the head has none."""
    probabilities: np.ndarray
    """Of the class, float32 [n]."""


AMOUNTS = {
    "shift": np.linspace(-0.25, 0.25, 21),  # fractions of the width
    "scale": np.linspace(1.0, 1.8, 17),
    "rotation": np.arange(0.0, 360.0, 15.0),
}
"""What each change is drawn over, by its name."""


def measure_invariance(
    model: keras.Model,
    image: np.ndarray,
    label: int,
    change: str,
    amounts: Sequence[float] | None = None,
    *,
    batch_size: int = 32,
) -> Invariance:
    """Measure how far the features of a network move when an image is changed.

    Args:
        model: the network.
        image: [H, W, C], 0..255.
        label: the class, 0..K - 1.
        change: `shift` (pixels to the right), `scale` (a factor, about the center) or `rotation` (degrees against the
            clock). What comes in from outside is the pixel at the edge.
        amounts: default: those of AMOUNTS, shifts as fractions of the width.
        batch_size: images that the network sees at a time.

    Raises:
        ConfigError: an unknown change.
    """
    if change not in AMOUNTS:
        raise ConfigError(f"change: expected a known name, got {change!r}{did_you_mean(change, AMOUNTS)}")
    if amounts is None:
        amounts = AMOUNTS[change] * (image.shape[1] if change == "shift" else 1)
        amounts = np.unique(np.round(amounts)) if change == "shift" else amounts
    stages = list_stages(model)
    last = find_last_hidden(model)
    last = find_layer(model, stages[-1]).output if last is None else last
    outputs = [find_layer(model, stages[0]).output, last, model.outputs[0]]
    network = tf.function(keras.Model(model.inputs[0], outputs), reduce_retracing=True)
    images = np.stack([transform(image, change, amount) for amount in amounts])
    low, high, probabilities = [], [], []
    [whole] = _outputs(network, transform(image, change, 1.0 if change == "scale" else 0.0)[None], 1)
    for maps, top, logits in _outputs(network, images, batch_size):
        low.append(_distances(maps, whole[0]))
        high.append(_distances(top, whole[1]))
        probabilities.append(softmax(logits, axis=1)[:, label])
    return Invariance(np.asarray(amounts), images, *(np.concatenate(each) for each in (low, high, probabilities)))


def _outputs(network: Callable, images: np.ndarray, batch_size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(images), batch_size):
        outputs = network(images[start : start + batch_size], training=False)
        yield [to_numpy(output) for output in outputs]


def transform(image: np.ndarray, change: str, amount: float) -> np.ndarray:
    """Return an image shifted, scaled or rotated, interpolated linearly: float32 [H, W, C]."""
    center = (np.array(image.shape[:2]) - 1) / 2
    matrix, offset = np.eye(2), np.zeros(2)
    if change == "shift":
        offset = np.array([0.0, -amount])
    elif change == "scale":
        matrix = matrix / amount
        offset = center - matrix @ center
    else:
        cosine, sine = np.cos(np.radians(amount)), np.sin(np.radians(amount))
        matrix = np.array([[cosine, sine], [-sine, cosine]])
        offset = center - matrix @ center
    channels = [
        ndimage.affine_transform(plane, matrix, offset, order=1, mode="nearest")
        for plane in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack(channels, axis=-1)


def _distances(maps: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each of [n, ...] to [1, ...], float32 [n]."""
    return np.sqrt(((maps - whole) ** 2).reshape(len(maps), -1).sum(axis=1))
