"""mixup and cutmix against NumPy, eagerly and compiled inside tf.data."""

import math

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError
from scipy import stats

from kpipe.catalog.data import AUGMENTATIONS
from kpipe.data.augmentations.mix import cutmix, mixup
from kpipe.errors import ConfigError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (5, 10, 14, 3), np.uint8)
LABELS = np.eye(5, dtype=np.float32)
ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))
UNIFORMS = np.array(
    [[0.3, 0, 0], [0.6, ALMOST_ONE, ALMOST_ONE], [0, 0.5, 0.5], [ALMOST_ONE, 0.2, 0.9], [0.5, 0.5, 0.5]], np.float32
)
PARTNERS = [1, 0, 3, 2, 4]


def eager(mix, images, labels, uniforms):
    return mix.apply(tf.constant(images), tf.constant(labels), tf.constant(uniforms))


def in_tf_data(mix, images, labels, uniforms):
    compiled = tf.function(mix.apply, jit_compile=True)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, uniforms)).batch(len(images), drop_remainder=True)
    return next(iter(dataset.map(compiled)))


@pytest.mark.parametrize("run", [eager, in_tf_data])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_agrees_with_numpy(dtype, run):
    images, labels = run(mixup(0.7), IMAGES.astype(dtype), LABELS, UNIFORMS[:, :1])
    assert images.dtype == labels.dtype == tf.float32
    for row, partner in enumerate(PARTNERS):
        fraction = stats.beta(0.7, 0.7).ppf(UNIFORMS[row, 0])
        # The quantiles are interpolated: 0.001 of a fraction is a quarter of 255.
        np.testing.assert_allclose(images[row], fraction * IMAGES[row] + (1 - fraction) * IMAGES[partner], atol=0.25)
        np.testing.assert_allclose(labels[row], fraction * LABELS[row] + (1 - fraction) * LABELS[partner], atol=0.001)
    np.testing.assert_array_equal(images[4], IMAGES[4])
    np.testing.assert_array_equal(labels[4], LABELS[4])


@pytest.mark.parametrize("run", [eager, in_tf_data])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_cutmix_agrees_with_numpy(dtype, run):
    images, labels = run(cutmix(), IMAGES.astype(dtype), LABELS, UNIFORMS)
    assert images.dtype == dtype
    for row, partner in enumerate(PARTNERS):
        fraction, down, right = UNIFORMS[row].astype(float)  # Beta(1, 1) is uniform
        height, width = (int(side * math.sqrt(1 - fraction)) for side in (10, 14))
        top, left = int(10 * down) - height // 2, int(14 * right) - width // 2
        expected, covered = IMAGES[row].copy(), 0
        for y in range(max(0, top), min(10, top + height)):
            for x in range(max(0, left), min(14, left + width)):
                expected[y, x] = IMAGES[partner, y, x]
                covered += 1
        np.testing.assert_array_equal(images[row], expected)
        rest = covered / 140
        np.testing.assert_allclose(labels[row], (1 - rest) * LABELS[row] + rest * LABELS[partner], atol=1e-6)


@pytest.mark.parametrize("make", [mixup, cutmix])
def test_labels_still_add_up_to_one(make):
    uniforms = RANDOM.random((64, 3), np.float32)
    labels = RANDOM.dirichlet(np.ones(7), 64).astype(np.float32)
    _, mixed = eager(make(), np.zeros((64, 8, 8, 1), np.uint8), labels, uniforms)
    np.testing.assert_allclose(tf.reduce_sum(mixed, axis=1), 1, atol=1e-6)
    assert tf.reduce_min(mixed) >= 0


def drawn_fractions(alpha, uniforms):
    """Return the fractions that mixup draws: each image of 1 has a partner of 0."""
    images = np.tile([[[[1.0]]], [[[0.0]]]], (len(uniforms), 1, 1, 1)).astype(np.float32)
    labels = np.ones((len(images), 1), np.float32)
    mixed, _ = eager(mixup(alpha), images, labels, np.repeat(uniforms, 2)[:, None].astype(np.float32))
    return mixed.numpy()[::2, 0, 0, 0]


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_fractions_follow_the_beta_distribution(alpha):
    fractions = drawn_fractions(alpha, (np.arange(10_000) + 0.5) / 10_000)
    for limit in (0.01, 0.1, 0.3, 0.5, 0.9, 0.99):
        assert (fractions < limit).mean() == pytest.approx(stats.beta(alpha, alpha).cdf(limit), abs=0.001)


def test_fractions_lie_between_the_quantiles_of_the_table():
    uniforms = np.linspace(0, ALMOST_ONE, 10_001)
    np.testing.assert_allclose(drawn_fractions(1.0, uniforms), uniforms, atol=1e-6)  # Beta(1, 1) is uniform


@pytest.mark.parametrize("make", [mixup, cutmix])
@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0, "more than 0"), (-1.0, "more than 0"), (math.inf, "a finite number"), (math.nan, "a finite number")],
)
def test_alpha_is_checked_here_and_in_the_table(make, alpha, expected):
    with pytest.raises(ConfigError, match=rf"^{make.__name__}\.alpha: expected {expected}, got {alpha!r}$"):
        make(alpha)
    with pytest.raises(ValidationError, match="alpha"):
        AUGMENTATIONS[make.__name__].options(alpha=alpha)
