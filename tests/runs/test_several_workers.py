"""Two workers on this machine train as one process does, end together, and are resumed together."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from image_sets import define_set, prepare_set, tfds_in, write_image
from tiny_runs import arrays_of, assert_same_run, only_run, records_of, timeless

pytestmark = pytest.mark.slow

NETS = """\
import keras


def normed(input_shape, classes, preprocessing, norm=True):
    images = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, name="conv")(preprocessing(images))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x) if norm else x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(classes, dtype="float32", name="logits")(x))


def plain(input_shape, classes, preprocessing):
    return normed(input_shape, classes, preprocessing, norm=False)


def dropping(input_shape, classes, preprocessing):
    images = keras.Input(input_shape)
    block = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(16), keras.layers.Dropout(0.5)], name="block")
    x = block(preprocessing(images))
    return keras.Model(images, keras.layers.Dense(classes, dtype="float32", name="logits")(x))
"""
TINY = """\
data: {{source: "{source}", image_size: 8, batch_size: 8, cache: {cache}, augment: [flip_horizontal]{more}}}
model: {{name: "nets.py:{network}"}}
training:
  epochs: 3
  precision: float32
  optimizer: {{name: sgd, momentum: 0.9}}  # Adam would enlarge the rounding of gradients that are nearly 0
  log_every: {{steps: 4}}
  learning_rate: {{schedule: constant, peak: 0.01}}
"""
TOGETHER = "training.distribution=multi_worker"


@pytest.fixture
def write_experiment(tmp_path):
    def write_experiment(network="normed", source="synthetic", cache="auto", more=", synthetic: {images: 300}"):
        (tmp_path / "nets.py").write_text(NETS)
        (tmp_path / "tiny.yaml").write_text(TINY.format(network=network, source=source, cache=cache, more=more))
        return str(tmp_path / "tiny.yaml")

    return write_experiment


def wait_for_both(workers, *codes):
    found = tuple(worker.wait() for worker in workers)
    assert found == codes, "\n".join(worker.err for worker in workers)


def images_in_memory(tmp_path):
    return {}


def image_files(tmp_path):
    random = np.random.default_rng(0)
    for place in range(90):
        shade = place % 3
        path = tmp_path / "images" / "abc"[shade] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, random.integers(60 * shade, 60 * shade + 100, (8, 8, 3)).astype(np.uint8))
    return {"source": f"folder:{tmp_path / 'images'}", "cache": "none", "more": ""}


def a_stream(tmp_path):
    with tfds_in(tmp_path / "tfds") as tfds:
        define_set(tfds, "shades", {"train": [place % 2 for place in range(90)], "test": [0, 1, 1] * 9})
        prepare_set(tfds, "shades", shards=3)
    return {"source": "tfds:shades", "cache": "none", "more": ""}


@pytest.mark.parametrize(
    ("make", "network", "tolerance"),
    [
        (images_in_memory, "plain", 1e-6),
        (image_files, "plain", 1e-6),
        (a_stream, "plain", 1e-6),
        (images_in_memory, "normed", 1e-4),
    ],
)
def test_two_workers_train_as_one_process_does(tmp_path, write_experiment, start, start_two, make, network, tolerance):
    """With each image of an uneven test split scored once. Batch normalization enlarges rounding."""
    experiment = write_experiment(network, **make(tmp_path))
    environment = {"TFDS_DATA_DIR": str(tmp_path / "tfds")}
    alone = start("run", experiment, **environment, KPIPE_LOGS=str(tmp_path / "alone"))
    assert alone.wait() == 0, alone.err
    chief, other = workers = start_two("run", experiment, TOGETHER, **environment)
    wait_for_both(workers, 0, 0)
    assert "batch size 8 (4 on each of 2 devices)" in chief.out
    [longer, search] = re.findall(r"^  (?:longer|search) +(kpipe .*)$", chief.out, re.MULTILINE)
    assert longer.endswith("training.epochs=6  # on every worker")
    assert search.endswith("/config.yaml training.distribution=none")
    assert other.out == "worker 1 of 2, waiting for the others ...\n" and other.err == ""
    assert_close(only_run(tmp_path / "logs"), only_run(tmp_path / "alone"), tolerance)


def assert_close(two, one, tolerance):
    """Compare the logs and all variables of two runs."""
    for record, expected in zip(records_of(two), records_of(one), strict=True):
        for key in ("step", "split", "span"):
            assert record[key] == expected[key]
        for key in expected.keys() & {"loss", "accuracy", "gradient_norm"}:
            assert record[key] == pytest.approx(expected[key], rel=tolerance, abs=1e-6), (key, record)
    ours, theirs = arrays_of(two), arrays_of(one)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=tolerance, atol=max(1e-6, tolerance / 10), err_msg=name)


def test_a_killed_worker_ends_the_others_and_all_are_resumed_exactly(tmp_path, write_experiment, start_two):
    """First the other one is killed, then the chief."""
    experiment = write_experiment()
    whole = tmp_path / "whole"
    wait_for_both(start_two("run", experiment, TOGETHER, logs=[whole, whole]), 0, 0)
    for victim, call in ((1, 12), (0, 8)):
        blows = [None, None]
        blows[victim] = ("kpipe.training.trainer", "Trainer", "run_steps", call, signal.SIGKILL)
        workers = start_two("run", experiment, TOGETHER, blows=blows)
        wait_for_both(workers, *(-signal.SIGKILL if place == victim else 5 for place in (0, 1)))
        said = workers[1 - victim].err
        assert "another worker has ended, or cannot be reached" in said
        assert "; the training is saved up to step " in said
        assert "Start all of them again. The same command resumes it:\n  kpipe run " in said
    wait_for_both(start_two("run", experiment, TOGETHER), 0, 0)
    run, expected = only_run(tmp_path / "logs"), only_run(whole)
    assert timeless(run) == timeless(expected)
    ours, theirs = arrays_of(run), arrays_of(expected)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_one_stops_all_and_saves(tmp_path, write_experiment, start_two, number):
    blow = ("kpipe.training.trainer", "Trainer", "run_steps", 20, number)
    options = (TOGETHER, "training.max_minutes=60")  # both ask each other for the time as well
    workers = start_two("run", write_experiment(), *options, blows=(None, blow))
    wait_for_both(workers, 130, 128 + number)
    step = int((only_run(tmp_path / "logs") / "checkpoints" / "latest").read_text().strip()[5:])
    for worker in workers:
        assert f"; the training is saved up to step {step}. The same command resumes it:" in worker.err


def test_workers_with_different_batches_are_refused(tmp_path, write_experiment, start_two):
    each = (("data.batch_size=8",), ("data.batch_size=16",))
    workers = start_two("run", write_experiment(), TOGETHER, each=each)
    wait_for_both(workers, 2, 2)
    for worker in workers:
        assert "the workers train different experiments; start the same command on all of them" in worker.err
    assert not (tmp_path / "logs").exists()


def test_a_worker_that_waits_for_the_others_ends_on_a_signal(write_experiment, start_two):
    waiting, other = start_two("run", write_experiment(), TOGETHER)
    other.process.kill()  # before it has read its experiment
    while "worker 0 of 2, waiting for the others" not in waiting.out:
        time.sleep(0.1)
    time.sleep(1)
    os.kill(waiting.pid, signal.SIGINT)
    assert waiting.wait() == -signal.SIGINT


def test_only_the_chief_writes_and_says_when_the_time_is_over(tmp_path, write_experiment, start_two):
    """The others take the folder of the chief, whatever their own is."""
    options = (TOGETHER, "training.max_minutes=0.0001")
    workers = start_two("run", write_experiment(), *options, logs=[tmp_path / "logs", tmp_path / "other"])
    wait_for_both(workers, 0, 0)
    run = only_run(tmp_path / "logs")
    assert json.loads((run / "summary.json").read_text())["ended_by"] == "max_minutes"
    assert len([*run.glob("train/events*")]) == 1 and not (run / ".workers").exists()
    assert not (tmp_path / "other").exists()


TWO_DEVICES = """\
import sys
import tensorflow as tf
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
RUN = """\
from kpipe.cli import main
sys.exit(main(sys.argv[1:]))
"""
MIRRORED = TWO_DEVICES + RUN
STOPPED = f"""\
{TWO_DEVICES}
import itertools, os, signal
import numpy as np
from kpipe.training.trainer import Trainer
run_steps, calls = Trainer.run_steps, itertools.count()
def stopping(trainer, *arguments):
    done = run_steps(trainer, *arguments)
    for variable in trainer.model.weights:
        np.testing.assert_array_equal(*variable.value.values, err_msg=variable.path)
    seeds = [variable.value.values for variable in trainer.model.variables if "seed_generator" in variable.path]
    assert seeds and all((one.numpy() != other.numpy()).any() for one, other in seeds), "dropout draws the same"
    if next(calls) == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return done
if sys.argv.pop(1) == "stop":
    Trainer.run_steps = stopping
{RUN}"""
PREFETCHED = f"""\
{TWO_DEVICES}
of_kind = tf.config.list_logical_devices
tf.config.list_logical_devices = lambda kind=None: of_kind("CPU")[1:] if kind == "GPU" else of_kind(kind)
from kpipe.training import distribution
prefetch_to = distribution.prefetch_to
def say(device, batches):
    batches = prefetch_to(device, batches)
    print("a batch is on", {{part.device[-5:] for part in next(iter(batches))}})
    return batches
distribution.prefetch_to = say
{RUN}"""


def test_two_devices_of_a_machine_train_as_one_does(tmp_path, write_experiment, start):
    """With a test split of 27 images, of which the last batch has 3."""
    experiment = write_experiment(**image_files(tmp_path))
    alone = start("run", experiment, KPIPE_LOGS=str(tmp_path / "alone"))
    assert alone.wait() == 0, alone.err
    command = [sys.executable, "-c", MIRRORED, "run", experiment, "training.distribution=mirrored"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "batch size 8 (4 on each of 2 devices)" in done.stdout
    assert_close(only_run(tmp_path / "logs"), only_run(tmp_path / "alone"), 1e-4)


def test_two_devices_are_resumed_exactly(tmp_path, write_experiment, monkeypatch):
    """With Adam, averaged weights, batches in two pieces, and dropout inside a block."""
    options = ("training.distribution=mirrored", "training.accumulate=2", "training.average.decay=0.9")
    arguments = ["run", write_experiment("dropping"), *options, "training.optimizer.name=adam"]
    for logs, mode, code in (("whole", "go", 0), ("logs", "stop", 130), ("logs", "go", 0)):
        monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / logs))
        done = subprocess.run([sys.executable, "-c", STOPPED, mode, *arguments], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert_same_run(only_run(tmp_path / "logs"), only_run(tmp_path / "whole"))


def test_batches_that_are_copied_to_their_device_train_the_same_network(tmp_path, write_experiment, start):
    """A second CPU device stands for the GPU."""
    experiment = write_experiment(**image_files(tmp_path))
    alone = start("run", experiment, KPIPE_LOGS=str(tmp_path / "alone"))
    assert alone.wait() == 0, alone.err
    done = subprocess.run([sys.executable, "-c", PREFETCHED, "run", experiment], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a batch is on {'CPU:1'}" in done.stdout
    assert_same_run(only_run(tmp_path / "logs"), only_run(tmp_path / "alone"))


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path, write_experiment):
    command = [sys.executable, "-c", MIRRORED, "run", write_experiment(), "training.distribution=mirrored"]
    for override, message in (
        ("data.batch_size=7", "data.batch_size: expected a multiple of the 2 devices, got 7"),
        (
            "training.accumulate=8",
            "training.accumulate: expected a divisor of the 4 images of a batch on each of 2 devices",
        ),
        ("training.xla=on", "training.xla: XLA cannot compile a step that sums gradients over devices"),
    ):
        done = subprocess.run([*command, override], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr, done.stderr
