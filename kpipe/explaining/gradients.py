"""Which pixels a class depends on: saliency and Grad-CAM.

B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from kpipe.explaining.feature_maps import find_layer, last_map


def saliency(model: keras.Model, images: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return how much the score of a class changes with each pixel.

    max over c of |dS / dI_c|, where S is the logit of the class. K. Simonyan, A. Vedaldi, A. Zisserman, "Deep Inside
    Convolutional Networks", 2014, section 3.1.

    Args:
        model: the network.
        images: [B, H, W, C], 0..255.
        labels: a class for each image, 0..K - 1: int [B].

    Returns:
        float32 [B, H, W], at least 0.
    """
    images = tf.convert_to_tensor(images, tf.float32)
    network = keras.Model(model.inputs[0], model.outputs[0])
    with tf.GradientTape() as tape:
        tape.watch(images)
        scores = _of_labels(network(images, training=False), labels)
    return tf.reduce_max(tf.abs(tape.gradient(scores, images)), axis=-1).numpy()


def grad_cam(model: keras.Model, images: np.ndarray, labels: Sequence[int], layer: str | None = None) -> np.ndarray:
    """Return where the feature maps of a layer speak for a class.

    ReLU of the sum of the feature maps, each weighted with the mean of the class's gradient over its positions.
    R. Selvaraju et al., "Grad-CAM", ICCV 2017, equations 1 and 2.

    Args:
        model: the network.
        images: [B, H, W, C], 0..255.
        labels: a class for each image, 0..K - 1: int [B].
        layer: name of a layer with feature maps; default: the last one with several positions.

    Returns:
        float32 [B, H, W], scaled up linearly from the size of the feature maps to that of the images; 0..1 for each
        image, whose largest value is 1 unless nothing speaks for the class.

    Raises:
        ConfigError: there is no such layer.
    """
    found = find_layer(model, layer or last_map(model))
    network = keras.Model(model.inputs[0], [found.output, model.outputs[0]])
    images = tf.convert_to_tensor(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)  # whether or not the network is frozen
        maps, logits = network(images, training=False)
        scores = _of_labels(logits, labels)
    gradient = tf.cast(tape.gradient(scores, maps), tf.float32)
    weights = tf.reduce_mean(gradient, axis=[1, 2], keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1, keepdims=True))
    heat = tf.image.resize(heat, images.shape[1:3])[..., 0]
    return tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=[1, 2], keepdims=True)).numpy()


def _of_labels(logits: tf.Tensor, labels: Sequence[int]) -> tf.Tensor:
    """Return the logit of each image's label, float32 [B]; logits [B, K]."""
    return tf.gather(tf.cast(logits, tf.float32), np.asarray(labels, np.int64), axis=1, batch_dims=1)
