"""Which views of an image a network sees, and how its probabilities come out of them: the protocols of evaluation.

B batch, b images of a batch, H height, W width, C channels, I pixels a side of what the network sees, K classes,
V views of an image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.data.augmentations.crops import ten_crop
from kpipe.data.pipeline import make_evaluation_pipeline, with_cardinality
from kpipe.data.splits import Split
from kpipe.evaluation.metrics import compute_probabilities
from kpipe.models.fully_convolutional import build_fully_convolutional
from kpipe.training.steps import test_step

TEN = 10  # views of `ten_crop`
SHORTER_SIDES, NETWORK_SIDE = (256, 288, 320, 352), 224  # of GoogLeNet, section 7
_PLACES = 3  # squares of an image: left, center and right, or top, center and bottom


@dataclass(frozen=True)
class Protocol:
    """Batches of views, and what the network says of them."""

    batches: tf.data.Dataset
    """(views, labels int32 [b]), each image of the split once."""
    predict: Callable[[Any, tf.Tensor], np.ndarray]
    """(views, labels) -> probabilities float64 [b, K]."""


def make_protocol(
    name: str,
    model: keras.Model,
    split: Split,
    image_shape: tuple[int, int, int],
    batch_size: int,
    scales: Sequence[int],
) -> Protocol:
    """Return one of the protocols of `kpipe.catalog.evaluation.PROTOCOLS`.

    Args:
        name: of the protocol.
        model: images to logits; compiled, for `center`.
        split: the images, as the protocol needs them.
        image_shape: (H, W, C) of what the network sees. Only square images are cropped.
        batch_size: B.
        scales: of `dense`, see there.

    Returns:
        The batches of views, and what the network says of them.

    Raises:
        ConfigError: as `build_fully_convolutional`.
    """
    if name == "dense":
        return dense_views(model, split, scales, batch_size)
    make = {"center": center_views, "ten_crop": ten_crop_views, "multi_crop": multi_crop_views}[name]
    height, width, _ = image_shape
    return make(model, split, height if height == width else None, batch_size)


def center_views(model: keras.Model, split: Split, image_size: int | None, batch_size: int) -> Protocol:
    """Show the center of each image once, as at the end of a run; the model's metrics take the means.

    Args:
        model: images to logits, compiled.
        split: the images.
        image_size: I; None: images are as large as the split keeps them.
        batch_size: B.

    Returns:
        The views are images uint8 [b, I, I, C].
    """
    model.reset_metrics()
    batches = make_evaluation_pipeline(split, batch_size, image_size=image_size)

    @tf.function(input_signature=batches.element_spec)  # the last batch may be smaller
    def step(images, labels):
        return test_step(model, (images, labels))

    return Protocol(batches, lambda images, labels: compute_probabilities(step(images, labels)))


def ten_crop_views(model: keras.Model, split: Split, image_size: int, batch_size: int) -> Protocol:
    """Average the probabilities of the four corners, the center, and their mirror images. AlexNet, section 4.1.

    Args:
        model, batch_size: as for `center_views`; the network sees B views at a time.
        split: its images are larger than the network sees them.
        image_size: I.

    Returns:
        The views are crops uint8 [b, 10, I, I, C].
    """
    batches = make_evaluation_pipeline(split, max(1, batch_size // TEN), image_size=image_size, ten_crops=True)
    return Protocol(batches, _average_over_crops(model, batch_size))


def multi_crop_views(model: keras.Model, split: Split, image_size: int, batch_size: int) -> Protocol:
    """Average the probabilities of the crops that `multi_crop` takes. GoogLeNet, section 7.

    Args:
        model, image_size, batch_size: as for `ten_crop_views`.
        split: its images may differ in size.

    Returns:
        The views are crops uint8 [b, V, I, I, C].
    """

    def see(images, labels):
        return multi_crop(images, image_size), labels

    return Protocol(_batch_whole(split, 1, see), _average_over_crops(model, batch_size))


def dense_views(model: keras.Model, split: Split, scales: Sequence[int], batch_size: int) -> Protocol:
    """Average the logits of all positions of an image, then the probabilities over mirror images and scales.

    Simonyan and Zisserman 2015, section 3.2.

    Args:
        model: images to logits.
        split: its images may differ in size.
        scales: pixels of the shorter side, each at least what the network sees.
        batch_size: B, where all images have one size.

    Returns:
        The views are images uint8 [b, H, W, C], as many as there are scales.

    Raises:
        ConfigError: as `build_fully_convolutional`.
    """
    forward = compile_forward(build_fully_convolutional(model))

    def see(images, labels):
        return tuple(scale_shorter_side(images, scale) for scale in scales), labels

    def predict(views, labels):
        pairs = [tf.concat([images, tf.reverse(images, axis=[2])], axis=0) for images in views]
        both = [compute_probabilities(forward(pair)) for pair in pairs]
        return np.mean(both, axis=0).reshape(2, len(labels), -1).mean(axis=0)

    return Protocol(_batch_whole(split, batch_size, see), predict)


def multi_crop(images: tf.Tensor, size: int) -> tf.Tensor:
    """Crop images at four scales, at three places, six times, and mirror each crop: 144 views.

    The shorter side of an image is scaled to 256, 288, 320 and 352 pixels where the network sees 224, else in
    proportion. Of each scaled image a square is taken at both ends and at the center. Of each square, the network sees
    the four corners, the center, and the whole, scaled to its size. The three squares of an image that is known to be
    square are the same, and are taken once: 48 views with the same average.

    Args:
        images: uint8 [b, H, W, C].
        size: I.

    Returns:
        uint8 [b, V, I, I, C], V = 144 or 48.
    """
    height, width, channels = images.shape[1:]
    places = range(_PLACES) if height is None or height != width else (1,)
    views = []
    for shorter_side in SHORTER_SIDES:
        side = round(shorter_side * size / NETWORK_SIDE)
        scaled = scale_shorter_side(images, side)
        free = tf.shape(scaled)[1:3] - side
        for place in places:
            top, left = tf.unstack(free * place // (_PLACES - 1))
            square = tf.ensure_shape(scaled[:, top : top + side, left : left + side], [None, side, side, channels])
            whole = _resize(square, [size, size])[:, None]
            views += [ten_crop(square, size), whole, tf.reverse(whole, axis=[3])]
    return tf.concat(views, axis=1)


def scale_shorter_side(images: tf.Tensor, side: int) -> tf.Tensor:
    """Scale images uint8 [b, H, W, C] to [b, H', W', C], the shorter of H' and W' being `side`, as images are kept."""
    sides = tf.shape(images)[1:3]
    exact = tf.cast(sides, tf.float64) * side / tf.cast(tf.reduce_min(sides), tf.float64)
    return _resize(images, tf.cast(tf.round(exact), tf.int32))


def _resize(images: tf.Tensor, sides) -> tf.Tensor:
    resized = tf.image.resize(images, sides, method="bilinear", antialias=True)
    return tf.cast(tf.round(resized), tf.uint8)


def _batch_whole(split: Split, batch_size: int, see: Callable) -> tf.data.Dataset:
    """Return batches of images that may differ in size: then each is a batch of its own."""
    size = 1 if None in split.shape else batch_size
    numbers = split.readable_numbers()
    return with_cardinality(split.evaluation_batches(numbers, size, see), -(-len(numbers) // size))


def _average_over_crops(model: keras.Model, batch_size: int) -> Callable[[tf.Tensor, tf.Tensor], np.ndarray]:
    """Return a function (crops uint8 [b, V, I, I, C], labels) -> probabilities float64 [b, K]."""
    forward = compile_forward(model)

    def predict(crops, labels):
        rows = tf.reshape(crops, [-1, *crops.shape[2:]])
        logits = [forward(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        probabilities = compute_probabilities(tf.concat(logits, axis=0))
        return probabilities.reshape(len(crops), -1, probabilities.shape[-1]).mean(axis=1)

    return predict


def compile_forward(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function from images uint8 [b, H, W, C] to logits [b, K], which is traced once for all sizes."""

    @tf.function(input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)])
    def forward(images):
        outputs = model(images, training=False)
        return outputs[0] if isinstance(outputs, list) else outputs  # auxiliary heads come after the logits

    return forward
