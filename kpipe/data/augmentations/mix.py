"""Augmentations that mix two images of a batch and their labels.

Each row has a partner: 2i and 2i + 1 are each other's. The last row of an odd batch is its own partner
and stays as it is.

B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kpipe.catalog.data import CutmixOptions, MixupOptions
from kpipe.catalog.rows import check_options
from kpipe.data.augmentations.base import Mix, box, per_image

INTERVALS = 1024


def mixup(alpha: float = 0.2) -> Mix:
    """Blend each image and its label with those of its partner (1 uniform: the fraction of the image).

    Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond empirical risk minimization", 2018, section 2. The authors draw
    one fraction for a batch; here each row has its own. The images become float32, in 0..255.

    Args:
        alpha: above 0. The fraction is drawn from Beta(alpha, alpha): the smaller alpha, the nearer to 0 or 1.

    Raises:
        ConfigError: `alpha` is not above 0.
    """
    check_options("mixup", MixupOptions, alpha=alpha)
    fraction_of = _make_beta(alpha)

    def apply(images, labels, uniforms):
        rest = 1 - fraction_of(uniforms[:, 0])
        return _add(tf.cast(images, tf.float32), per_image(rest)), _add(labels, rest[:, None])

    return Mix("mixup", 1, apply)


def cutmix(alpha: float = 1.0) -> Mix:
    """Paste a rectangle of the partner into each image, at the same place (3 uniforms: fraction, row, column).

    Yun et al., "CutMix: Regularization strategy to train strong classifiers with localizable features", 2019, section
    3.1. The rectangle has the aspect ratio of the image. Its center is uniform over the image, and the border cuts it.
    A label counts by the fraction of pixels that are left after the cut. Each row has a rectangle of its own.

    Args:
        alpha: above 0. The fraction of pixels left, before the cut, is drawn from Beta(alpha, alpha).

    Raises:
        ConfigError: `alpha` is not above 0.
    """
    check_options("cutmix", CutmixOptions, alpha=alpha)
    fraction_of = _make_beta(alpha)

    def apply(images, labels, uniforms):
        height, width = images.shape[1:3]
        side = tf.sqrt(1 - fraction_of(uniforms[:, 0]))
        inside = box(images, uniforms[:, 1:], tf.cast(side * height, tf.int32), tf.cast(side * width, tf.int32))
        area = tf.reduce_mean(tf.cast(inside, tf.float32), axis=[1, 2, 3])
        return tf.where(inside, _partners(images), images), _add(labels, area[:, None])

    return Mix("cutmix", 3, apply)


def _make_beta(alpha: float) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function from uniforms to quantiles of Beta(alpha, alpha), interpolated linearly."""
    from scipy.special import betaincinv  # it takes a quarter of a second, and few trainings mix

    quantiles = betaincinv(alpha, alpha, np.linspace(0, 1, INTERVALS + 1)).astype(np.float32)

    def fraction_of(uniforms):
        below = tf.floor(uniforms * INTERVALS)
        place = tf.cast(below, tf.int32)
        left, right = tf.gather(quantiles, place), tf.gather(quantiles, place + 1)
        return left + (uniforms * INTERVALS - below) * (right - left)

    return fraction_of


def _partners(rows: tf.Tensor) -> tf.Tensor:
    count = tf.shape(rows)[0]
    return tf.gather(rows, tf.minimum(tf.bitwise.bitwise_xor(tf.range(count), 1), count - 1))


def _add(rows: tf.Tensor, fraction: tf.Tensor) -> tf.Tensor:
    """Blend rows with this fraction of their partners; a row that is its own partner stays exactly as it is."""
    return rows + fraction * (_partners(rows) - rows)
