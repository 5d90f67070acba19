"""The image that a network scores highest for a class.

K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside Convolutional Networks", 2014, section 2. Without a regularization
it is noise that the network is sure of (A. Nguyen, J. Yosinski, J. Clune, "Deep Neural Networks are Easily Fooled",
CVPR 2015).

H height, W width, C channels, K classes, n of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import ConfigError
from kpipe.models.preprocessing import SubtractMeanImage, Whiten, flips_channels, is_preprocessing


@dataclass(frozen=True)
class ClassModel:
    """An image that a network scores high for a class."""

    image: np.ndarray
    """float32 [H, W, C], 0..255."""
    score: float
    """The logit of the class."""
    probability: float
    """Of the class, 0..1."""


def maximize_classes(
    model: keras.Model,
    labels: Sequence[int],
    *,
    mean: float | np.ndarray = 127.5,
    l2: float | Sequence[float] = 0.0,
    noise: float = 0.0,
    steps: int = 200,
    step_size: float = 2.0,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[ClassModel]:
    """Climb to images with a high score for classes: S(I) - l2 |I - mean|^2 from I = mean on.

    S is the logit and no probability, which could also be raised by making the other classes improbable. All climbs
    are steps of one batch, in which each image goes its own way.

    Args:
        model: the network, for images of a known size.
        labels: n classes, 0..K - 1.
        mean: where they start, such as the mean of the training images, see `find_training_mean`; from where the
            regularization counts: a value, or [C] or [H, W, C], 0..255.
        l2: weight of the regularization, of pixels in units of 255; 0: none. One for all, or one for each label.
        noise: standard deviation of the Gaussian noise that is added to the start, in units of 0..255. At an image of
            one color, all gradients of a network may be 0.
        steps: of the ascent.
        step_size: length of a step: root mean square of its change of a pixel, in units of 0..255.
        advance: called with n after each step.

    Raises:
        ConfigError: the network has no such class, takes images of any size, or computes logits that are not finite.
    """
    height, width, channels = model.input_shape[1:]
    classes, count = model.outputs[0].shape[-1], len(labels)
    if height is None or width is None:
        raise ConfigError("expected a network for images of one size, got one for any size")
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise ConfigError(f"label: expected 0 to {classes - 1}, got {wrong[0]}")
    network = keras.Model(model.inputs[0], model.outputs[0])
    mean = np.asarray(mean, np.float32)
    start = tf.constant(np.broadcast_to(mean, (count, height, width, channels)))
    noisy = start + noise * tf.random.stateless_normal((1, height, width, channels), seed=(0, 0))
    numbers = tf.constant(np.asarray(labels, np.int64))
    weights = tf.constant(np.broadcast_to(np.asarray(l2, np.float32), (count,)))

    def score(image):
        logits = tf.cast(network(image, training=False), tf.float32)
        return logits, tf.gather(logits, numbers, axis=1, batch_dims=1)

    @tf.function(jit_compile=False)
    def step(image):
        with tf.GradientTape() as tape:
            tape.watch(image)
            regularized = score(image)[1] - weights * tf.reduce_sum(((image - start) / 255.0) ** 2, axis=[1, 2, 3])
        gradient = tape.gradient(regularized, image)
        length = tf.sqrt(tf.reduce_mean(gradient**2, axis=[1, 2, 3], keepdims=True))
        return tf.clip_by_value(image + step_size * tf.math.divide_no_nan(gradient, length), 0.0, 255.0)

    images = tf.clip_by_value(noisy, 0.0, 255.0)
    for _ in range(steps):
        images = step(images)
        advance(count)
    logits, scores = score(images)
    if not np.isfinite(logits).all():
        raise ConfigError("expected finite logits, got some that are not. The weights of the network are of no use")
    probabilities = tf.gather(tf.nn.softmax(logits), numbers, axis=1, batch_dims=1)
    found = zip(images.numpy(), scores.numpy(), probabilities.numpy(), strict=True)
    return [ClassModel(image, float(score), float(probability)) for image, score, probability in found]


def balance_l2(
    model: keras.Model, labels: Sequence[int], *, mean: float | np.ndarray, noise: float, distance: float
) -> list[float]:
    """Return the weight `l2` for each class at which the regularization is as strong as the score at a distance.

    How large a logit and its gradient are differs by orders of magnitude between networks, so no weight suits all.

    Args:
        model, labels, mean, noise: as for `maximize_classes`.
        distance: root mean square of a pixel's distance from the mean, in units of 0..255, at which the gradients of
            both are equal, for the gradient that the score has at the start.
    """
    height, width, channels = model.input_shape[1:]
    network = keras.Model(model.inputs[0], model.outputs[0])  # auxiliary heads come after the logits
    start = np.broadcast_to(np.asarray(mean, np.float32), (height, width, channels))
    image = start + noise * tf.random.stateless_normal((1, height, width, channels), seed=(0, 0))
    weights = []
    for label in labels:
        with tf.GradientTape() as tape:
            tape.watch(image)
            score = tf.cast(network(image, training=False), tf.float32)[0, label]
        gradient = np.sqrt(np.mean(np.square(tape.gradient(score, image))))
        weights.append(float(gradient) * 255**2 / (2 * distance))
    return weights


def find_training_mean(model: keras.Model) -> np.ndarray | None:
    """Return the mean of the training images that a network subtracts from an image: [C] or [H, W, C], 0..255.

    None of a network that subtracts none.
    """
    for layer in model.layers:
        if not is_preprocessing(layer):
            continue
        if isinstance(layer, keras.layers.Rescaling):
            mean = -np.asarray(layer.offset) / np.asarray(layer.scale)
        else:
            mean = keras.ops.convert_to_numpy(layer.mean)
        per_pixel = isinstance(layer, SubtractMeanImage | Whiten)
        mean = np.reshape(mean, layer.input.shape[1:] if per_pixel else -1)
        if flips_channels(layer.input._keras_history.operation):
            mean = mean[..., ::-1]
        return np.clip(mean, 0, 255).astype(np.float32) if mean.any() else None
    return None
