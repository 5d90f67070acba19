"""Which worker of a cluster this process is, and the strategy that a model is trained under."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from kpipe.training.distribution import make_strategy, workers_of

FOUR = {"chief": ["host:1"], "worker": ["host:2", "host:3", "host:4"]}


def strategy_in(cluster, task_type, task_id):
    """A stand-in: a real strategy of several workers waits for all of them."""
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type=task_type, task_id=task_id
    )
    return SimpleNamespace(cluster_resolver=resolver)


def test_there_is_one_strategy_a_process():
    assert make_strategy() is make_strategy()


@pytest.mark.parametrize("strategy", [make_strategy(), tf.distribute.OneDeviceStrategy("/cpu:0")])
def test_a_strategy_without_a_cluster_has_one_worker(strategy):
    assert workers_of(strategy) == (0, 1)


@pytest.mark.parametrize(
    ("cluster", "task_type", "task_id", "expected"),
    [
        (FOUR, "chief", 0, (0, 4)),
        (FOUR, "worker", 0, (1, 4)),
        (FOUR, "worker", 2, (3, 4)),
        ({"worker": ["host:1", "host:2"]}, "worker", 1, (1, 2)),
        (FOUR | {"ps": ["host:5"], "evaluator": ["host:6"]}, "worker", 1, (2, 4)),
        ({}, None, None, (0, 1)),
    ],
)
def test_the_chief_comes_before_the_workers(cluster, task_type, task_id, expected):
    assert workers_of(strategy_in(cluster, task_type, task_id)) == expected


@pytest.mark.parametrize("task_type", ["ps", "evaluator"])
def test_a_task_that_does_not_train_is_no_worker(task_type):
    message = f"workers_of: expected a chief or a worker, got the task '{task_type}'"
    with pytest.raises(ValueError, match=message):
        workers_of(strategy_in(FOUR | {task_type: ["host:5"]}, task_type, 0))
