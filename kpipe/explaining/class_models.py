"""The image that a network scores highest for a class.

K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside Convolutional Networks", 2014, section 2. Without a regularization
it is noise that the network is sure of (A. Nguyen, J. Yosinski, J. Clune, "Deep Neural Networks are Easily Fooled",
CVPR 2015).

H height, W width, C channels, K classes.
"""

from collections.abc import Callable
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


def maximize_class(
    model: keras.Model,
    label: int,
    *,
    mean: float | np.ndarray = 127.5,
    l2: float = 0.0,
    steps: int = 200,
    step_size: float = 2.0,
    advance: Callable[[int], None] = lambda steps: None,
) -> ClassModel:
    """Climb to an image with a high score for a class: S(I) - l2 |I - mean|^2 from I = mean on.

    S is the logit and no probability, which could also be raised by making the other classes improbable.

    Args:
        model: the network, for images of a known size.
        label: the class, 0..K - 1.
        mean: where it starts, such as the mean of the training images, see `find_training_mean`; from where the
            regularization counts: a value, or [C] or [H, W, C], 0..255.
        l2: weight of the regularization, of pixels in units of 255; 0: none.
        steps: of the ascent.
        step_size: length of a step: root mean square of its change of a pixel, in units of 0..255.
        advance: called with 1 after each step.

    Raises:
        ConfigError: the network has no such class, or takes images of any size.
    """
    height, width, channels = model.input_shape[1:]
    classes = model.outputs[0].shape[-1]
    if height is None or width is None:
        raise ConfigError("expected a network for images of one size, got one for any size")
    if not 0 <= label < classes:
        raise ConfigError(f"label: expected 0 to {classes - 1}, got {label}")
    network = keras.Model(model.inputs[0], model.outputs[0])
    start = tf.constant(np.broadcast_to(np.asarray(mean, np.float32), (1, height, width, channels)))

    @tf.function(jit_compile=False)
    def step(image):
        with tf.GradientTape() as tape:
            tape.watch(image)
            score = tf.cast(network(image, training=False)[0, label], tf.float32)
            regularized = score - l2 * tf.reduce_sum(((image - start) / 255.0) ** 2)
        gradient = tape.gradient(regularized, image)
        length = tf.sqrt(tf.reduce_mean(gradient**2))
        return tf.clip_by_value(image + step_size * tf.math.divide_no_nan(gradient, length), 0.0, 255.0)

    image = start
    for _ in range(steps):
        image = step(image)
        advance(1)
    logits = tf.cast(network(image, training=False)[0], tf.float32)
    return ClassModel(image[0].numpy(), float(logits[label]), float(tf.nn.softmax(logits)[label]))


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
