"""The `tf.distribute` strategy of the process, and which of its workers this process is."""

import functools

import tensorflow as tf


@functools.cache
def make_strategy() -> tf.distribute.Strategy:
    """Return the strategy of this process, always the same object: one device.

    A second strategy object would break every later collective operation of the process.
    """
    return tf.distribute.get_strategy()


def workers_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Return the index of this worker, and how many workers train together.

    A chief trains too: it is worker 0, and the others follow it. Parameter servers and evaluators do not count.

    Args:
        strategy: its `cluster_resolver` is read; without one, or without a cluster in it, there is one worker.

    Returns:
        (0, 1) for one process; (2, 4) for the task `worker 1` beside a chief and three workers.

    Raises:
        ValueError: this process is a task of the cluster that does not train.
    """
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return 0, 1
    tasks = resolver.cluster_spec().as_dict()
    chiefs, workers = len(tasks.get("chief", ())), len(tasks.get("worker", ()))
    if resolver.task_type not in ("chief", "worker"):
        raise ValueError(f"workers_of: expected a chief or a worker, got the task '{resolver.task_type}'")
    first = 0 if resolver.task_type == "chief" else chiefs
    return first + resolver.task_id, chiefs + workers
