"""Several devices and machines: the `tf.distribute` strategy of the process, and what its workers tell each other.

`mirrored` trains on all GPUs of this machine. `multi_worker` trains on one device each of several processes, which may
run on several machines. Each device has all weights and computes its rows of the global batch; the gradients are added
up over all of them. Batch normalization takes its means over the global batch too, so a step is that of one device with
the same batch, but for rounding and for dropout, which draws anew on each device.
"""

import functools
import json
import os
import re

import keras
import numpy as np
import tensorflow as tf

from kpipe.console import counted
from kpipe.errors import ConfigError, EnvironmentFault, first_line

_KEY = "training.distribution"
_MOST_TASKS = 1024  # on a node
_LONGEST = 2**16  # bytes that `Workers.share` passes on


@functools.cache
def make_strategy(name: str = "none") -> tf.distribute.Strategy:
    """Return the strategy of this process, always the same object.

    A second strategy object would break every later collective operation of the process. That of `multi_worker` has to
    be made before TensorFlow computes anything. It waits until all workers are there.

    Args:
        name: none, mirrored or multi_worker.

    Raises:
        ConfigError: this machine cannot do it, or the cluster is not described.
        EnvironmentFault: the workers do not find each other.
    """
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(_find_devices())
    if name == "multi_worker":
        return _make_multi_worker()
    return tf.distribute.get_strategy()


def _find_devices() -> list[str]:
    gpus, cpus = (tf.config.list_logical_devices(kind) for kind in ("GPU", "CPU"))
    if len(gpus) < 2 and len(cpus) < 2:
        found = counted(len(gpus), "GPU") if gpus else "none"
        raise ConfigError(f"{_KEY}: mirrored needs at least two GPUs, TensorFlow sees {found}. Use {_KEY}=none")
    return [device.name for device in (gpus if len(gpus) > 1 else cpus)]  # a CPU is divided for tests alone


def _make_multi_worker() -> tf.distribute.Strategy:
    resolver = _find_cluster()
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus > 1:
        raise ConfigError(
            f"{_KEY}: multi_worker trains on one GPU for each process, this one sees {gpus}. Start a process for each "
            "GPU, with its number in CUDA_VISIBLE_DEVICES"
        )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise EnvironmentFault(f"{_KEY}: the workers do not find each other: {first_line(error)}") from None


def _find_cluster() -> tf.distribute.cluster_resolver.ClusterResolver:
    """Return the resolver of TF_CONFIG, or inside SLURM that of its tasks."""
    if "TF_CONFIG" not in os.environ and "SLURM_PROCID" in os.environ:
        # Which GPU a task sees is left to SLURM. The resolver needs numbers that allow for any number of tasks.
        return tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=_MOST_TASKS, gpus_per_task=1, auto_set_gpu=False
        )
    given = os.environ.get("TF_CONFIG")
    example = '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}'
    if given is None:
        raise ConfigError(f"{_KEY}: multi_worker needs a SLURM job, or the cluster in TF_CONFIG, such as\n  {example}")
    try:
        config = json.loads(given)
        kind, index = config["task"]["type"], int(config["task"]["index"])
        addresses = [str(address) for tasks in config["cluster"].values() for address in tasks]
        tasks = len(config["cluster"][kind])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            f"TF_CONFIG: expected JSON with a cluster, and a task with its type and index in it, such as\n  {example}\n"
            f"got\n  {given}"
        ) from None
    if not 0 <= index < tasks:
        raise ConfigError(f"TF_CONFIG: expected a task index of 0 to {tasks - 1}, one for each {kind}, got {index}")
    for address in addresses:
        if not re.fullmatch(r".+:\d+", address):
            raise ConfigError(f"TF_CONFIG: expected addresses with a port, such as host1:12345, got {address!r}")
        if addresses.count(address) > 1:
            raise ConfigError(f"TF_CONFIG: expected another address for each task, got {address!r} twice")
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def find_worker() -> tuple[int, int]:
    """Return what `workers_of` will return for `multi_worker`, before the workers are there.

    Raises:
        ConfigError: the cluster is not described, or this process is a task of it that does not train.
    """
    return _place_of(_find_cluster())


def cluster_hint(name: str) -> str | None:
    """Return a line for the user where TF_CONFIG lists workers that do not train together; None: it does not."""
    if name == "multi_worker" or "TF_CONFIG" not in os.environ:
        return None
    return f"TF_CONFIG is set, and this process trains alone; {_KEY}=multi_worker trains on all workers in it"


def workers_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Return the index of this worker, and how many workers train together.

    A chief trains too: it is worker 0, and the others follow it. Parameter servers and evaluators do not count.

    Args:
        strategy: its `cluster_resolver` is read; without one, or without a cluster in it, there is one worker.

    Returns:
        (0, 1) for one process; (2, 4) for the task `worker 1` beside a chief and three workers.

    Raises:
        ConfigError: this process is a task of the cluster that does not train.
    """
    return _place_of(strategy.cluster_resolver)


def _place_of(resolver: tf.distribute.cluster_resolver.ClusterResolver | None) -> tuple[int, int]:
    if resolver is None or resolver.task_type is None:
        return 0, 1
    tasks = resolver.cluster_spec().as_dict()
    chiefs, workers = len(tasks.get("chief", ())), len(tasks.get("worker", ()))
    if resolver.task_type not in ("chief", "worker"):
        raise ConfigError(f"{_KEY}: expected a task that trains, chief or worker, got {resolver.task_type!r}")
    first = 0 if resolver.task_type == "chief" else chiefs
    return first + resolver.task_id, chiefs + workers


def count_devices(strategy: tf.distribute.Strategy) -> int:
    """Return the number of devices on which this process trains."""
    return strategy.num_replicas_in_sync // workers_of(strategy)[1]


class Workers:
    """The processes that train together, of which this is one.

    All of them have to call each method, in the same order.

    Args:
        strategy: of this process; default: it trains alone.

    Attributes:
        index: of this process; that of the chief, which alone writes, is 0.
        count: number of processes.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        strategy = strategy or make_strategy()
        self.index, self.count = workers_of(strategy)
        self._all_gather = tf.function(lambda values: strategy.run(_all_gather, args=(values,)))

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.index == 0

    def largest(self, value: float) -> float:
        """Return the largest of the values that the workers give."""
        return value if self.count == 1 else float(self._gather(np.float32([value])).max())

    def total(self, value: int) -> int:
        """Return the sum of the values that the workers give."""
        return value if self.count == 1 else int(self._gather(np.int64([value])).sum())

    def agree(self, flag: bool) -> bool:
        """Return whether one of the workers says yes."""
        return bool(self.largest(float(flag)))

    def share(self, text: str = "") -> str:
        """Return the text that the chief gives; that of the others is not used. It has at most 65,536 bytes."""
        if self.count == 1:
            return text
        content = text.encode() if self.is_chief else b""
        if len(content) > _LONGEST:
            raise ValueError(f"expected at most {_LONGEST:,} bytes, got {len(content):,}")
        padded = np.frombuffer(content.ljust(_LONGEST, b"\0"), np.uint8).astype(np.int32)
        return self._gather(padded)[0].astype(np.uint8).tobytes().rstrip(b"\0").decode()

    def wait(self) -> None:
        """Return when all workers have come here."""
        self.largest(0.0)

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Return the values [n] of all workers, [workers, n]."""
        return self._all_gather(tf.constant(values[None])).numpy()


def _all_gather(values: tf.Tensor) -> tf.Tensor:
    # The copy is on a device of the replica; without one, TensorFlow does not know where to gather.
    return tf.distribute.get_replica_context().all_gather(tf.identity(values), axis=0)


def distribute(strategy: tf.distribute.Strategy, batches: tf.data.Dataset):
    """Return batches as the devices of this process take them. Batches for a GPU are copied to it ahead of their use.

    Args:
        strategy: of this process.
        batches: the rows of this worker.
    """
    if workers_of(strategy)[1] == 1 and strategy.num_replicas_in_sync > 1:
        return strategy.experimental_distribute_dataset(batches)
    gpus = tf.config.list_logical_devices("GPU")
    return prefetch_to(gpus[0].name, batches) if gpus else batches


def prefetch_to(device: str, batches: tf.data.Dataset) -> tf.data.Dataset:
    """Return batches that are copied to a device, such as `/GPU:0`, two of them ahead of their use."""
    batches = batches.apply(tf.data.experimental.copy_to_device(device))
    with tf.device(device):  # where the buffer is: that of `prefetch_to_device` has been on the host
        return batches.prefetch(2)


def synchronize(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Let batch normalization take its means over all replicas."""
    if strategy.num_replicas_in_sync == 1:
        return
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def separate_dropout(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Give dropout another seed on each replica; all have the same one when they are built or restored."""
    if strategy.num_replicas_in_sync == 1:
        return
    generators = [
        value
        for layer in model._flatten_layers()
        for value in vars(layer).values()
        if isinstance(value, keras.random.SeedGenerator)
    ]

    def shift():
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        for generator in generators:
            state = generator.state.value
            state.assign_add(tf.cast(tf.stack([replica, 0]), state.dtype))

    strategy.run(tf.function(shift))
