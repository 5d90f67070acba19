"""Which views of an image each protocol shows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.data.arrays import ArraySplit
from kpipe.errors import ConfigError
from kpipe.evaluation.scoring import score
from kpipe.evaluation.views import multi_crop, multi_crop_views, scale_shorter_side

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("sides", "scaled"), [((30, 40), (12, 16)), ((41, 20), (25, 12)), ((12, 12), (12, 12))])
def test_the_shorter_side_is_scaled(sides, scaled):
    image = RANDOM.integers(0, 256, (1, *sides, 3), np.uint8)
    found = scale_shorter_side(tf.constant(image), 12)
    assert found.shape == (1, *scaled, 3)
    if sides == scaled:
        np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("lies", [True, False])
def test_multi_crop_takes_144_views(lies):
    """A network that sees 56 pixels sees scales of 64, 72, 80 and 88: here, an image of 64 to 96 is the first one."""
    image = RANDOM.integers(0, 256, (64, 96, 3), np.uint8)
    image = image if lies else image.swapaxes(0, 1)
    views = multi_crop(tf.constant(image[None]), 56).numpy()
    assert views.shape == (1, 144, 56, 56, 3)
    for place, start in enumerate((0, 16, 32)):
        square = image[:, start : start + 64] if lies else image[start : start + 64]
        found = views[0, 12 * place : 12 * (place + 1)]
        corners = [square[top : top + 56, left : left + 56] for top, left in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4))]
        np.testing.assert_array_equal(found[:5], corners)
        np.testing.assert_array_equal(found[5:10], np.flip(corners, axis=2))
        np.testing.assert_array_equal(found[10], scale_shorter_side(tf.constant(square[None]), 56)[0])
        np.testing.assert_array_equal(found[11], found[10][:, ::-1])


@tf.function(input_signature=[tf.TensorSpec([None, None, None, 1], tf.uint8)])
def crop_images_of_any_size(images):
    return multi_crop(images, 16)


def test_the_squares_of_a_square_image_are_taken_once():
    image = tf.constant(RANDOM.integers(0, 256, (2, 20, 20, 1), np.uint8))
    once = multi_crop(image, 16)
    thrice = crop_images_of_any_size(image)
    assert (once.shape[1], thrice.shape[1]) == (48, 144)
    once, thrice = (tf.reduce_mean(tf.cast(views, tf.float32), axis=1) for views in (once, thrice))
    np.testing.assert_allclose(once, thrice, rtol=1e-5)


def test_a_network_that_computes_no_numbers_is_refused():
    images = keras.Input((4, 4, 1))
    logits = keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(np.nan))
    model = keras.Model(images, logits(keras.layers.Flatten()(images)))
    split = ArraySplit(np.zeros((3, 5, 5, 1), np.uint8), np.zeros(3, np.int32))
    with pytest.raises(
        ConfigError, match=r"^the network: expected finite logits, got some that are not. Its weights a"
    ):
        score(multi_crop_views(model, split, 4, 8))
