"""What a user reads when memory, disk or numbers give out, and what is left then."""

import errno
import json
import math
import pkgutil
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_runs import only_run, refuse_to_write


def test_too_little_disk_is_said_before_the_first_step(kpipe, experiment, logs, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    code, out, err = kpipe("run", experiment)
    assert code == 5
    assert re.search(
        r"the run needs about 1\.\d+ MB of disk \(4 checkpoints of 2\d\d kB and the network\), 500 kB are free\. Make",
        err,
    )
    assert "epoch" not in out
    assert [path for path in (logs / "tiny").iterdir() if path.is_dir()] == []


def exhaust(message):
    def exhausted(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, message)

    return exhausted


def test_too_little_memory_is_said_with_a_batch_size_that_fits(kpipe, experiment, logs, monkeypatch):
    monkeypatch.setattr("kpipe.memory.free_memory", lambda: 3_000_000)
    monkeypatch.setattr("kpipe.training.trainer.Trainer.run_steps", exhaust("OOM when allocating tensor"))
    code, out, err = kpipe("run", experiment, "data.batch_size=128")
    assert code == 5
    assert re.search(
        r"note: the training needs about [\d.]+ MB of memory, 3 MB are free; data.batch_size=\d+, or training.accumul",
        out,
    )
    fits = re.search(
        r"out of memory with data.batch_size=128 \(3 MB were free before\); data.batch_size=(\d+), or "
        r"training.accumulate=(\d+) should fit",
        err,
    )
    assert 1 <= int(fits[1]) <= 64
    assert int(fits[1]) * int(fits[2]) == 128
    monkeypatch.setattr("kpipe.memory.free_memory", lambda: None)
    code, _, err = kpipe("run", experiment, "data.batch_size=128")
    assert "(how much was free is not known); data.batch_size=64, or training.accumulate=2 should fit" in err
    monkeypatch.setattr("kpipe.memory.free_memory", lambda: 1000)
    assert "not even one image fits: take a smaller data.image_size" in kpipe("run", experiment)[2]

    def no_more(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("kpipe.experiment.load_splits", no_more)
    assert "out of memory while data and network were built (1 kB were free before)" in kpipe("run", experiment)[2]


@pytest.mark.slow
def test_memory_that_ends_in_the_middle_costs_nothing(kpipe, experiment, logs, monkeypatch):
    from kpipe.training.trainer import Trainer

    real = Trainer.evaluate
    calls = []

    def second_fails(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "evaluate", second_fails)
    code, _, err = kpipe("run", experiment)
    assert code == 5
    assert "data.batch_size=8, or training.accumulate=2 should fit" in err
    assert (only_run(logs) / "checkpoints" / "latest").read_text() == "step-00000009\n"
    code, out, _ = kpipe("run", experiment)
    assert (code, "resumed    after step 9" in out) == (0, True)


@pytest.mark.parametrize("reason", ["No space left on device", "File too large"])
def test_a_full_disk_that_tensorflow_reports_is_named(kpipe, experiment, monkeypatch, reason):
    monkeypatch.setattr("kpipe.training.trainer.Trainer.run_steps", exhaust(f"events.out; {reason}"))
    code, _, err = kpipe("run", experiment)
    assert code == 5
    assert re.search(rf"tiny/[\d_-]+: cannot be written \({reason}\)(; [\d,]+ bytes are free there)?\. ", err)


def test_an_error_of_tensorflow_that_nobody_foresaw_keeps_its_traceback(kpipe, experiment, monkeypatch):
    def fail(*arguments):
        raise tf.errors.InternalError(None, None, "boom")

    monkeypatch.setattr("kpipe.training.trainer.Trainer.run_steps", fail)
    with pytest.raises(tf.errors.InternalError, match="boom"):
        kpipe("run", experiment)


def test_divergence(kpipe, experiment, logs):
    code, out, err = kpipe("run", experiment, "training.optimizer.name=sgd", "training.learning_rate.peak=1e30")
    assert code == 4, err
    assert re.search(
        r"the loss became (nan|inf) (at step|between steps) [\d and]+; likely causes: the learning rate", err
    )
    assert err.endswith("initial weights. Nothing was saved before.\n")
    assert json.loads((only_run(logs) / "summary.json").read_text())["status"] == "diverged"


@pytest.mark.slow
def test_divergence_keeps_the_last_good_checkpoint(kpipe, experiment, logs, monkeypatch):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kernel = self.model.get_layer("c1").kernel
                kernel.assign(np.full(kernel.shape, np.inf))

    monkeypatch.setattr("kpipe.experiment.make_callbacks", lambda training: [Poison()])
    code, out, err = kpipe("run", experiment, "training.checkpoint.every.steps=1")
    assert code == 4, err
    run = only_run(logs)
    assert re.match(r"c1/kernel is no longer finite at step 10; likely causes: ", err)
    assert err.endswith(f"The last good checkpoint is kept: {run}/checkpoints/step-00000009\n")
    for path in (run / "checkpoints").glob("step-*/*.npz"):
        with np.load(path) as archive:
            assert all(np.isfinite(archive[name]).all() for name in archive.files)
    assert json.loads((run / "summary.json").read_text())["status"] == "diverged"
    monkeypatch.undo()
    monkeypatch.setenv("KPIPE_LOGS", str(logs))
    code, out, _ = kpipe("run", experiment, "training.checkpoint.every.steps=1")
    assert (code, f"note: {run} is a diverged run of the same experiment; this is another" in out) == (0, True)


def test_a_full_disk_is_named_and_costs_nothing(kpipe, experiment, unfinished, monkeypatch, first_epoch_is_best):
    with monkeypatch.context() as patched:
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        code, _, err = kpipe("run", experiment)
    assert code == 5
    assert re.search(
        r"model.keras: cannot be written \(No space left on device\); [\d,]+ bytes are free there\. What", err
    )
    assert err.endswith("What was saved before is kept. To go on, make room and give the same command again.\n")
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    assert "resumed    after step 18" in out


def test_an_error_of_the_file_system_that_is_no_refusal_keeps_its_traceback(kpipe, experiment, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("kpipe.experiment.save_portable", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kpipe("run", experiment)


@pytest.mark.parametrize(
    ("moment", "all_logs"),
    [
        pytest.param("kpipe.experiment.record_environment", True, marks=pytest.mark.slow),
        pytest.param("kpipe.runs.logs.RunLog.write", False, marks=pytest.mark.slow),
        ("kpipe.training.checkpoints.Checkpoints._make_folder", True),
        ("kpipe.experiment.save_portable", False),
        pytest.param("kpipe.experiment.write_figures", True, marks=pytest.mark.slow),
        ("kpipe.runs.recorder.Recorder.write_summary", False),
    ],
)
def test_a_run_directory_that_is_deleted_ends_the_run_with_a_sentence(
    kpipe, experiment, logs, monkeypatch, moment, all_logs
):
    real, deleted = pkgutil.resolve_name(moment), []

    def delete_first(*arguments, **options):
        if not deleted:
            deleted.append(only_run(logs))
            shutil.rmtree(logs if all_logs else deleted[0])
        return real(*arguments, **options)

    monkeypatch.setattr(moment, delete_first)
    code, _, err = kpipe("run", experiment, "training.epochs=1")
    said = "this folder has been deleted or moved while kpipe was writing to it, so nothing can be saved any more. "
    assert (code, err) == (5, f"{deleted[0]}: {said}Give the same command again to start anew.\n")
    assert not list(logs.glob("*/*/"))  # nor is anything of it made again


def test_a_file_that_is_deleted_under_the_run_is_named(kpipe, experiment, unfinished, monkeypatch):
    def delete(*arguments, **options):
        (unfinished / "metrics.jsonl").unlink()
        (unfinished / "metrics.jsonl").read_text()

    monkeypatch.setattr("kpipe.experiment.save_portable", delete)
    code, _, err = kpipe("run", experiment)
    assert (code, err) == (
        5,
        f"{unfinished}/metrics.jsonl: has been deleted while kpipe needed it. Give the same command again.\n",
    )


def test_a_file_that_cannot_be_written_asks_for_no_room(kpipe, experiment, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error", "gone/model.keras")

    monkeypatch.setattr("kpipe.experiment.save_portable", fail)
    code, _, err = kpipe("run", experiment)
    assert code == 5
    assert "gone/model.keras: cannot be written (Input/output error). What" in err
    assert err.endswith("kept. To go on, make sure that you may write there and give the same command again.\n")


@pytest.mark.slow
def test_a_test_loss_that_is_not_finite_is_null(kpipe, experiment, logs, monkeypatch):
    from kpipe.training.trainer import Trainer

    real = Trainer.evaluate_batches

    def infinite(self, *arguments):
        return real(self, *arguments) | {"loss": math.inf}

    monkeypatch.setattr(Trainer, "evaluate_batches", infinite)
    assert kpipe("run", experiment)[0] == 0
    run = only_run(logs)
    assert json.loads((run / "summary.json").read_text())["test"]["loss"] is None
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=lambda name: pytest.fail(name))["loss"] is None


BROKEN_NET = """\
import keras
import tensorflow as tf


@tf.custom_gradient
def without_gradient(x):
    return tf.identity(x), lambda gradient: gradient * float("inf")


@keras.saving.register_keras_serializable()
class WithoutGradient(keras.layers.Layer):
    def call(self, x):
        return without_gradient(x)


def network(input_shape, classes, preprocessing):
    images = keras.Input(input_shape)
    x = WithoutGradient()(keras.layers.Dense(4)(keras.layers.Flatten()(preprocessing(images))))
    return keras.Model(images, keras.layers.Dense(classes, dtype="float32")(x))
"""


def test_a_run_in_float16_whose_gradients_are_never_finite_ends(kpipe, experiment, logs, tmp_path, monkeypatch):
    """The CPU stands for a GPU with tensor cores."""
    monkeypatch.setattr("kpipe.training.precision.gpu_capability", lambda: (7, 0))
    net = tmp_path / "broken.py"
    net.write_text(BROKEN_NET)
    options = (f"model.name={net}:network", "training.precision=mixed_float16", "training.epochs=30")
    code, out, err = kpipe("run", experiment, *options)
    assert code == 4, err
    assert "mixed_float16" in out
    assert "the gradients of 50 steps in a row, 1 to 50, were not finite in mixed_float16" in err
    assert not (only_run(logs) / "model.keras").exists()
