"""Data, model and training put together."""

from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from kpipe.assembly import prepare
from kpipe.config import Experiment
from kpipe.runs.machine import resolve_auto
from kpipe.training.distribution import make_strategy

TINY = {
    "name": "tiny",
    "data": {
        "source": "synthetic",
        "image_size": 16,
        "batch_size": 16,
        "augment": ["flip_horizontal", {"pad_crop": {"padding": 2}}],
        "synthetic": {"classes": 2, "images": 200},
    },
    "model": {"name": "lenet5"},
    "training": {"epochs": 2},
}


def strategy_of_worker(index, workers):
    """A strategy that says which of several workers this is, and trains like that of one process."""
    cluster = tf.train.ClusterSpec({"worker": [f"127.0.0.1:{2000 + i}" for i in range(workers)]})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, task_type="worker", task_id=index)
    return SimpleNamespace(scope=make_strategy().scope, cluster_resolver=resolver)


def training_batches(strategy):
    experiment = resolve_auto(Experiment.model_validate(TINY))
    return list(prepare(experiment, strategy).training_batches(0).as_numpy_iterator())


def test_each_worker_of_a_strategy_gets_its_rows_of_the_batches_of_one():
    whole = training_batches(make_strategy())
    first, second = (training_batches(strategy_of_worker(index, 2)) for index in (0, 1))
    assert len(whole) == len(first) == len(second) == 18
    for batch, *halves in zip(whole, first, second, strict=True):
        for column, *rows in zip(batch, *halves, strict=True):
            assert len(rows[0]) == len(rows[1]) == 8
            np.testing.assert_array_equal(column, np.concatenate(rows))
