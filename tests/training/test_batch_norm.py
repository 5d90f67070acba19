"""Batch normalization in training is Keras's own, but for rounding."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.training.batch_norm import batch_norm_as_one_operation
from kpipe.training.precision import precision_scope


def make_network(**options):
    keras.utils.set_random_seed(0)
    images = keras.Input((6, 5, 3))
    x = keras.layers.BatchNormalization(momentum=0.8, epsilon=1e-2, name="first", **options)(images)
    inner = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(name="inner"), keras.layers.ReLU()]
    x = keras.layers.Flatten()(keras.Sequential([keras.Input((6, 5, 3)), *inner])(keras.layers.ReLU()(x)))
    x = keras.layers.BatchNormalization(name="of_vectors")(keras.layers.Dense(4)(x))
    return keras.Model(images, keras.layers.Dense(2, dtype="float32")(x))


def step(model, images, context):
    """Return what the model returns, its gradients and variables after a compiled step, and how often it is fused."""

    @tf.function
    def compute():
        with tf.GradientTape() as tape, context(model):
            outputs = model(images, training=True)
            loss = tf.reduce_mean(outputs**2)
        return outputs, tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    kinds = [node.op for node in compute.get_concrete_function().graph.as_graph_def().node]
    outputs, gradients = compute()
    return [outputs, *gradients, *model.variables], kinds.count("FusedBatchNormV3")


def batch():
    return tf.random.stateless_normal((4, 6, 5, 3), (1, 2), mean=3.0, stddev=2.0)


@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.05)])
def test_one_operation_does_what_that_of_keras_does(policy, tolerance):
    """The normalization of vectors stays as it is."""
    exact, plain = step(make_network(), batch(), nullcontext)
    with precision_scope(policy):
        ours, count = step(make_network(), batch(), batch_norm_as_one_operation)
    assert (count, plain) == (2, 0)
    for found, expected in zip(ours, exact, strict=True):
        assert np.linalg.norm(found - expected) < tolerance * max(1, np.linalg.norm(expected))


@pytest.mark.parametrize("options", [{"axis": 1}, {"scale": False}, {"center": False}, {"synchronized": True}])
def test_other_kinds_stay_as_they_are(options):
    _, count = step(make_network(**options), batch(), batch_norm_as_one_operation)
    assert count == 1


def test_frozen_layers_and_inference_stay_as_they_are():
    model = make_network()
    model.get_layer("first").trainable = False
    with batch_norm_as_one_operation(model):
        found = model(batch(), training=False)
        assert "call" not in vars(model.get_layer("first"))
    np.testing.assert_array_equal(found, model(batch(), training=False))


def test_the_layers_are_as_they_were():
    model = make_network()
    with pytest.raises(ZeroDivisionError), batch_norm_as_one_operation(model):
        assert "call" in vars(model.get_layer("first"))
        raise ZeroDivisionError
    assert "call" not in vars(model.get_layer("first"))
