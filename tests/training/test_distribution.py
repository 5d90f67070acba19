"""Which worker of a cluster this process is, and the strategy that a model is trained under."""

import json
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from kpipe.errors import ConfigError, EnvironmentFault
from kpipe.training import distribution
from kpipe.training.distribution import (
    Workers,
    cluster_hint,
    make_strategy,
    separate_dropout,
    synchronize,
    workers_of,
)

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
    message = f"^training.distribution: expected a task that trains, chief or worker, got '{task_type}'$"
    with pytest.raises(ConfigError, match=message):
        workers_of(strategy_in(FOUR | {task_type: ["host:5"]}, task_type, 0))


def test_several_gpus_are_needed_to_mirror():
    with pytest.raises(
        ConfigError,
        match="^training.distribution: mirrored needs at least two GPUs, TensorFlow sees none. "
        "Use training.distribution=none$",
    ):
        make_strategy("mirrored")


CONFIG = {"cluster": {"worker": ["host1:1", "host2:1"]}, "task": {"type": "worker", "index": 1}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            None,
            r"^training.distribution: multi_worker needs a SLURM job, or the cluster in TF_CONFIG, such as\n  {\"clu",
        ),
        ("{", r"^TF_CONFIG: expected JSON with a cluster, and a task with its type and index in it, .*\ngot\n  {$"),
        ("[]", r"^TF_CONFIG: expected JSON with a cluster"),
        (
            json.dumps(CONFIG | {"task": {"type": "worker", "index": 2}}),
            "^TF_CONFIG: expected a task index of 0 to 1, one for each worker, got 2$",
        ),
        (
            json.dumps(CONFIG | {"cluster": {"worker": ["host1", "host2:1"]}}),
            "^TF_CONFIG: expected addresses with a port, such as host1:12345, got 'host1'$",
        ),
        (
            json.dumps(CONFIG | {"cluster": {"worker": ["host1:1", "host1:1"]}}),
            "^TF_CONFIG: expected another address for each task, got 'host1:1' twice$",
        ),
        (json.dumps(CONFIG | {"task": {"type": "chief", "index": 0}}), r"^TF_CONFIG: expected JSON with a cluster"),
    ],
)
def test_a_cluster_that_is_not_described_is_refused(monkeypatch, given, message):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if given is not None:
        monkeypatch.setenv("TF_CONFIG", given)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        make_strategy("multi_worker")


def test_a_process_has_one_gpu(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(CONFIG))
    monkeypatch.setattr(distribution.tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    message = (
        "^training.distribution: multi_worker trains on one GPU for each process, this one sees 2. Start a process"
    )
    with pytest.raises(ConfigError, match=message):
        make_strategy("multi_worker")


def test_workers_that_do_not_find_each_other_are_said(monkeypatch):
    def refuse(resolver):
        raise RuntimeError("Collective ops must be configured at program startup")

    monkeypatch.setenv("TF_CONFIG", json.dumps(CONFIG))
    monkeypatch.setattr(distribution.tf.distribute, "MultiWorkerMirroredStrategy", refuse)
    with pytest.raises(
        EnvironmentFault, match="^training.distribution: the workers do not find each other: Collective"
    ):
        make_strategy("multi_worker")


def test_slurm_describes_its_tasks(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    slurm = {"PROCID": "1", "STEP_NUM_TASKS": "2", "STEP_NODELIST": "node[1-2]", "STEP_TASKS_PER_NODE": "1(x2)"}
    for name, value in (slurm | {"NTASKS": "2", "JOB_NUM_NODES": "2"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolver = distribution._find_cluster()
    assert resolver.cluster_spec().as_dict() == {"worker": ["node1:8888", "node2:8888"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)


def test_alone_a_worker_says_what_it_is_told():
    alone = Workers()
    assert (alone.index, alone.count, alone.is_chief) == (0, 1, True)
    assert (alone.largest(1.5), alone.total(3), alone.share("text")) == (1.5, 3, "text")
    assert alone.agree(True) is True and alone.agree(False) is False


def test_alone_nothing_is_synchronized():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((2,)), norm, keras.layers.Dropout(0.5)])
    synchronize(model, make_strategy())
    separate_dropout(model, make_strategy())
    assert not norm.synchronized


def test_batch_normalization_inside_a_block_is_synchronized():
    norm = keras.layers.BatchNormalization()
    block = keras.Sequential([keras.Input((2,)), norm])
    synchronize(keras.Sequential([keras.Input((2,)), block]), SimpleNamespace(num_replicas_in_sync=2))
    assert norm.synchronized


def test_too_long_a_text_is_not_cut(monkeypatch):
    monkeypatch.setattr(distribution, "workers_of", lambda strategy: (0, 2))
    with pytest.raises(ValueError, match="expected at most 65,536 bytes, got 70,000"):
        Workers().share("x" * 70_000)


@pytest.mark.parametrize(
    ("name", "config", "hint"),
    [
        (
            "none",
            "{}",
            "TF_CONFIG is set, and this process trains alone; training.distribution=multi_worker trains on all",
        ),
        ("multi_worker", "{}", None),
        ("none", None, None),
    ],
)
def test_a_cluster_that_is_not_used_is_said(monkeypatch, name, config, hint):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("TF_CONFIG", config)
    assert (cluster_hint(name) or "").startswith(hint or "") and (cluster_hint(name) is None) == (hint is None)
