"""Precision and recall at thresholds, beside scikit-learn's."""

import numpy as np
from sklearn.metrics import precision_score, recall_score

from kpipe.evaluation.thresholds import NUM_THRESHOLDS, Thresholds


def test_counts_are_those_of_scikit_learn():
    random = np.random.default_rng(1)
    probabilities = random.dirichlet([0.5] * 3, 400)
    labels = random.integers(0, 3, 400)
    thresholds = Thresholds(3)
    thresholds.add(probabilities[:150], labels[:150])
    thresholds.add(probabilities[150:], labels[150:])
    for number in range(3):
        counts = thresholds.counts(number)
        assert len(counts["precision"]) == counts["num_thresholds"] == NUM_THRESHOLDS
        for place in (0, 13, 50, 87):
            reached = probabilities[:, number] >= place / 100
            truth = labels == number
            assert counts["precision"][place] == precision_score(truth, reached, zero_division=1)
            assert counts["recall"][place] == recall_score(truth, reached)
            assert counts["true_negative_counts"][place] == np.sum(~truth & ~reached)
            assert counts["false_negative_counts"][place] == np.sum(truth & ~reached)


def test_ends_of_the_range_and_a_class_without_images():
    thresholds = Thresholds(2)
    thresholds.add(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    assert thresholds.counts(0)["recall"].tolist() == [1.0] + [0.5] * 100
    assert thresholds.counts(1)["recall"].max() == 0 and thresholds.counts(1)["precision"][100] == 0
