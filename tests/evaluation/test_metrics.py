"""The metrics of a split, against values computed by hand and against other implementations."""

import keras
import numpy as np
import pytest

from kpipe.evaluation.metrics import (
    calibration_error,
    compute_class_metrics,
    compute_metrics,
    concatenate,
    make_confusion_matrix,
    score_batch,
    wilson_interval,
)
from kpipe.training.losses import CrossEntropy
from kpipe.training.metrics import make_metrics

HALVES = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])


def test_four_images_by_hand():
    outcomes = score_batch(HALVES, [0, 1, 1, 2])
    assert outcomes.predictions.tolist() == [0, 1, 0, 2]
    assert outcomes.confidences.tolist() == [0.5, 0.75, 0.5, 0.5]
    assert outcomes.ranks.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(outcomes.losses, np.log([2, 4 / 3, 4, 2]))
    assert outcomes.mistakes.tolist() == [2]
    measured = compute_metrics(outcomes, 3)
    assert (measured["images"], measured["accuracy"]) == (4, 0.75)
    assert "top5" not in measured
    assert measured["loss"] == pytest.approx(np.log([2, 4 / 3, 4, 2]).mean())
    assert make_confusion_matrix(outcomes, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert compute_class_metrics(outcomes, 3) == [
        {"images": 1, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)},
        {"images": 2, "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)},
        {"images": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0},
    ]


def test_a_class_without_images_has_no_recall():
    [_, absent, never_predicted] = compute_class_metrics(score_batch(HALVES[:3], [0, 2, 2]), 3)
    assert absent == {"images": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert never_predicted == {"images": 2, "precision": None, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_they_are_those_of_training(label_smoothing):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(40, 8)).astype("float32")
    logits[:9] = 0  # all classes are equal: the first ones count
    labels = generator.integers(0, 8, 40)
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    measured = compute_metrics(
        concatenate(
            [
                score_batch(probabilities[s], labels[s], label_smoothing=label_smoothing)
                for s in (slice(25), slice(25, 40))
            ]
        ),
        8,
    )
    for metric in make_metrics(8):
        metric.update_state(labels, logits)
        assert measured[metric.name] == pytest.approx(float(metric.result()))
    assert measured["loss"] == pytest.approx(float(CrossEntropy(label_smoothing)(labels, logits)), rel=1e-5)


def test_an_impossible_class_has_a_finite_loss():
    assert score_batch([[1.0, 0.0]], [1]).losses[0] == pytest.approx(708.4, abs=0.1)


def test_wilson_interval():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29.
    for right, images, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(right, images) == pytest.approx([low, high], abs=5e-5)


def test_calibration_error():
    # Two bins: 0.8 is in (11/15, 12/15], and 1.0 in the last one.
    confidences, right = np.array([0.8, 0.8, 1.0, 1.0]), np.array([True, False, True, True])
    assert calibration_error(confidences, right) == pytest.approx((2 * 0.3 + 0) / 4)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
