"""Which part of an image a network needs: a gray square covers one part after the other.

M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2 and figure 7.

H height, W width, C channels, K classes, h and w positions of the square.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from scipy.special import softmax

from kpipe.errors import ConfigError
from kpipe.explaining.feature_maps import has_feature_maps, last_map, to_numpy


@dataclass(frozen=True)
class Occlusion:
    """What a network says while parts of an image are covered: h x w positions of the square."""

    probabilities: np.ndarray
    """Probability of the class, float32 [h, w]."""
    predictions: np.ndarray
    """The most probable class, int [h, w]."""
    activations: np.ndarray | None
    """Sum of the last layer's feature map that is strongest in the whole image, float32 [h, w]; None: there is none."""
    feature_map: int | None
    """Number of that feature map."""
    whole: float
    """Probability of the class in the whole image."""
    whole_activation: float | None
    """Sum of that feature map in the whole image."""
    tops: np.ndarray
    """First rows of the squares, int [h]."""
    lefts: np.ndarray
    """First columns of the squares, int [w]."""
    side: int
    """Side of the square in pixels."""

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) of the map in pixels: each value lies in the middle of its square."""
        (left, right), (top, bottom) = (self._ends(starts) for starts in (self.lefts, self.tops))
        return left, right, bottom, top

    def _ends(self, starts: np.ndarray) -> tuple[float, float]:
        middles = starts[[0, -1]] + (self.side - 1) / 2
        half = (middles[1] - middles[0]) / max(1, len(starts) - 1) / 2 or self.side / 2
        return float(middles[0] - half), float(middles[1] + half)


def occlude(
    model: keras.Model,
    image: np.ndarray,
    label: int,
    *,
    side: int | None = None,
    stride: int | None = None,
    gray: float = 127.5,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda images: None,
) -> Occlusion:
    """Cover one part of an image after the other with a gray square.

    Args:
        model: the network.
        image: [H, W, C], 0..255.
        label: the class, 0..K - 1.
        side: of the square in pixels; default: about a fifth of the shorter side of the image.
        stride: most pixels from one position to the next; default: half of the square's side. The first and the last
            positions lie at the edges of the image.
        gray: value of the square, 0..255.
        batch_size: images that the network sees at a time.
        advance: called with the number of images just seen.

    Raises:
        ConfigError: a square that the image cannot hold, or a stride below 1.
    """
    height, width = image.shape[:2]
    side = default_side(image) if side is None else side
    stride = max(1, side // 2) if stride is None else stride
    if not 1 <= side <= min(height, width):
        raise ConfigError(f"side: expected 1 to {min(height, width)} pixels, got {side}")
    if stride < 1:
        raise ConfigError(f"stride: expected at least 1 pixel, got {stride}")
    maps = {"maps": model.get_layer(last_map(model)).output} if has_feature_maps(model) else {}
    network = tf.function(keras.Model(model.inputs[0], {"logits": model.outputs[0], **maps}), reduce_retracing=True)
    whole = network(image[None].astype(np.float32), training=False)
    strongest = int(np.argmax(_sums(whole["maps"])[0])) if maps else None
    tops, lefts = positions_of(height, side, stride), positions_of(width, side, stride)
    places = [(top, left) for top in tops for left in lefts]
    sums, probabilities = [], []
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        covered = np.repeat(image[None].astype(np.float32), len(part), axis=0)
        for view, (top, left) in zip(covered, part, strict=True):
            view[top : top + side, left : left + side] = gray
        outputs = network(covered, training=False)
        if maps:
            sums.append(_sums(outputs["maps"])[:, strongest])
        probabilities.append(_softmax(outputs["logits"]))
        advance(len(part))
    shape = (len(tops), len(lefts))
    found = np.concatenate(probabilities)
    return Occlusion(
        probabilities=found[:, label].reshape(shape),
        predictions=found.argmax(1).reshape(shape),
        activations=np.concatenate(sums).reshape(shape) if sums else None,
        feature_map=strongest,
        whole=float(_softmax(whole["logits"])[0, label]),
        whole_activation=float(_sums(whole["maps"])[0, strongest]) if maps else None,
        tops=tops,
        lefts=lefts,
        side=side,
    )


def default_side(image: np.ndarray) -> int:
    """Return the side of a square that covers about a fifth of the shorter side of an image, [H, W, C]."""
    return max(1, round(min(image.shape[:2]) / 5))


def positions_of(length: int, side: int, stride: int) -> np.ndarray:
    """Return where squares begin on a side of an image, int [n]: spread evenly, the last one ends at its edge."""
    return np.round(np.linspace(0, length - side, 1 - (side - length) // stride)).astype(int)


def _sums(maps) -> np.ndarray:
    """Return the sum of each feature map, float32 [B, F], of [B, h, w, F]."""
    return to_numpy(maps).sum(axis=(1, 2))


def _softmax(logits) -> np.ndarray:
    return softmax(to_numpy(logits), axis=1)
