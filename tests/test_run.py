"""Whole runs through the command line: what stands on the screen, what is left on disk, what bad input gets."""

import errno
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from kpipe import cli
from kpipe.errors import Interrupted
from kpipe.faults import command_again

TINY = """\
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 2, images: 200}}
model: {name: lenet5}
training: {epochs: 2, precision: float32, log_every: {steps: 4}}
"""


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def kpipe(capfd):
    """Runs a verb in this process; returns (exit code, standard output, standard error)."""

    def kpipe(*arguments):
        code = cli.main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return kpipe


def only_run(logs, name="tiny"):
    [run] = [path for path in (logs / name).iterdir() if path.is_dir()]
    return run


def test_a_run_from_file_to_model(kpipe, experiment, logs):
    code, out, err = kpipe("run", experiment)
    assert (code, err) == (0, "")
    assert "synthetic: 144 train, 16 validation, 40 test; 2 classes; 16x16x" in out
    assert re.search(r"^step 4  epoch 1/2  loss \d\.\d{4}  acc \d\.\d{4}  [\d,]+ images/s$", out, re.M)
    assert re.search(r"^epoch 2/2  loss .* val_acc", out, re.M)
    assert out.rstrip().endswith(f"Curves: tensorboard --logdir {logs}")
    run = only_run(logs)
    expected = {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "model.keras"}
    assert expected | {"train", "validation", "checkpoints", "figures"} == {path.name for path in run.iterdir()}
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step-00000018"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["epochs"], summary["steps"], summary["test"]["images"]) == (2, 18, 40)
    assert summary["test"]["accuracy"] > 0.7
    assert json.loads((run / "environment.json").read_text())["precision"] == "float32"


VALIDATION = (("validation", "epoch", "epoch_loss"),)


def test_metrics_and_tensorboard_tell_the_same(kpipe, experiment, logs):
    kpipe("run", experiment)
    run = only_run(logs)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = [(r["step"], r["split"], r["span"]) for r in records]
    steps = [(step, "train", "steps") for step in (4, 8, 12, 16)]
    epochs = [(step, split, "epoch") for step in (9, 18) for split in ("train", "validation")]
    assert sorted(kinds) == sorted([*steps, *epochs, (18, "test", "epoch")])
    for split, span, tag in (("train", "steps", "loss"), ("train", "epoch", "epoch_loss"), *VALIDATION):
        events = [e for file in (run / split).iterdir() for e in tf.compat.v1.train.summary_iterator(str(file))]
        losses = {e.step: tf.make_ndarray(v.tensor) for e in events for v in e.summary.value if v.tag == tag}
        wanted = {r["step"]: r["loss"] for r in records if (r["split"], r["span"]) == (split, span)}
        assert losses == pytest.approx(wanted)
        tags = {v.tag for e in events for v in e.summary.value}
        assert {"epoch_loss", "epoch_accuracy"} <= tags
        if split == "train":
            assert {"loss", "accuracy", "learning_rate", "images_per_second", "config"} <= tags
            assert any(e.graph_def for e in events)


def test_the_model_eats_raw_images_and_agrees_with_the_summary(kpipe, experiment, logs):
    from kpipe.data import load_dataset

    kpipe("run", experiment)
    run = only_run(logs)
    test = load_dataset("synthetic", image_size=16, classes=2, images=200).test
    logits = keras.models.load_model(run / "model.keras").predict(test.images.astype("float32"), verbose=0)
    assert logits.dtype == np.float32
    accuracy = float((logits.argmax(-1) == test.labels).mean())
    assert accuracy == pytest.approx(json.loads((run / "summary.json").read_text())["test"]["accuracy"])


def test_config_yaml_repeats_the_run(kpipe, experiment, logs):
    kpipe("run", experiment)
    first = only_run(logs)
    weights = keras.models.load_model(first / "model.keras").get_weights()
    code, out, _ = kpipe("run", str(first / "config.yaml"))
    assert code == 0
    assert f"note: {first} is a finished run of the same experiment; this is another" in out
    [second] = [path for path in (logs / "tiny").iterdir() if path.is_dir() and path != first]
    again = keras.models.load_model(second / "model.keras").get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(weights, again, strict=True))


def test_every_precision_and_normalisation(kpipe, experiment, logs):
    for normalize, precision in (("none", "float32"), ("unit", "mixed_bfloat16")):
        code, _, err = kpipe("run", experiment, f"data.normalize={normalize}", f"training.precision={precision}")
        assert (code, err) == (0, "")
    code, _, _ = kpipe("run", experiment, "data.normalize.mean=[120.0]", "data.normalize.std=[60.0]")
    assert code == 0


def test_augmentations_and_early_stopping(kpipe, experiment, logs):
    arguments = ["data.augment=[{pad_crop: {padding: 2}}, translate, flip_horizontal]"]
    arguments += [
        "training.epochs=30",
        "training.early_stopping.patience=1",
        "training.learning_rate.peak=1e-7",
    ]
    code, out, _ = kpipe("run", experiment, *arguments)
    assert code == 0
    assert json.loads((only_run(logs) / "summary.json").read_text())["epochs"] < 30


def test_without_held_out_parts_the_last_weights_are_kept(kpipe, experiment, logs):
    code, out, _ = kpipe("run", experiment, "data.split.validation=0", "data.split.test=0")
    assert code == 0
    assert "best" not in out
    summary = json.loads((only_run(logs) / "summary.json").read_text())
    assert summary["best_epoch"] == 2
    assert "test" not in summary


def records_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run):
    return [{k: v for k, v in r.items() if not k.endswith(("seconds", "per_second"))} for r in records_of(run)]


def arrays_of(run):
    """The weights in model.keras, and every variable of the last checkpoint."""
    [last] = (run / "checkpoints").glob("step-*")
    saved = [np.load(last / name) for name in ("weights.npz", "training.npz")]
    arrays = {name: archive[name] for archive in saved for name in archive.files}
    model = keras.models.load_model(run / "model.keras")
    return arrays | {f"model {i}": array for i, array in enumerate(model.get_weights())}


def assert_same_run(run, other):
    arrays, expected = arrays_of(run), arrays_of(other)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.tobytes() == expected[name].tobytes(), name
    assert timeless(run) == timeless(other)
    assert_steps_increase(run)


def assert_steps_increase(run):
    """In TensorBoard, over the files of all the processes that have worked on the run."""
    for split in ("train", "validation"):
        steps = {}
        for file in sorted((run / split).iterdir()):
            for event in tf.compat.v1.train.summary_iterator(str(file)):
                for value in event.summary.value:
                    steps.setdefault(value.tag, []).append(event.step)
        assert {"epoch_loss", "epoch_accuracy"} <= set(steps)
        for tag, found in steps.items():
            assert found == sorted(set(found)), (split, tag)


# Dropout, augmentation, momentum and the validation all have a state that an inexact resume would lose.
EXACT = (
    "model.name=alexnet", "data.image_size=32", "model.width=32", "data.synthetic.images=400", "training.epochs=3",
    "data.augment=[{pad_crop: {padding: 2}}, flip_horizontal]", "training.checkpoint.every.steps=5",
)  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    kpipe, start, experiment, logs, tmp_path, monkeypatch, precision
):
    arguments = ("run", experiment, *EXACT, f"training.precision={precision}")
    for text, times in (("step ", 2), ("resumed after step", 1), ("step ", 3), ("epoch 2/3", 1)):
        process = start(*arguments)
        process.wait_for(text, times)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    code, out, _ = kpipe(*arguments)
    assert code == 0
    assert "resumed after step" in out
    run = only_run(logs)
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    assert kpipe(*arguments)[0] == 0
    assert_same_run(run, only_run(tmp_path / "whole"))


TRAINER, CHECKPOINTS = "kpipe.training.trainer", "kpipe.training.checkpoints"
PHASES = [
    # where the signal strikes, which, the exit code, and how the message begins
    (("kpipe.experiment", "data", "load_dataset", 1), signal.SIGTERM, 143, "terminated before the first step"),
    ((TRAINER, "Trainer", "_steps", 1), signal.SIGINT, 130, "interrupted before the first step was saved: "),
    ((TRAINER, "_Loop", "run_chunk", 1), signal.SIGTERM, 143, "terminated; the training is saved up to step 1."),
    ((TRAINER, "_Loop", "run_chunk", 4), signal.SIGINT, 130, "interrupted; the training is saved up to step "),
    ((TRAINER, "Trainer", "evaluate", 1), signal.SIGTERM, 143, "terminated; the training is saved up to step 18."),
    ((CHECKPOINTS, "Checkpoints", "commit", 1), signal.SIGINT, 130, "interrupted; the training is saved up to step "),
    ((TRAINER, "Trainer", "_steps", 1), signal.SIGTERM, 143, "terminated; the training is saved up to step "),
    (("kpipe.experiment", "figures", "write_curves", 1), signal.SIGINT, 130, "interrupted; the training is saved"),
]  # fmt: skip


def test_a_signal_in_any_phase_is_obeyed_and_loses_nothing(kpipe, start, experiment, logs, tmp_path, monkeypatch):
    arguments = ("run", experiment, *EXACT)
    for blow, number, code, said in PHASES:
        process = start(*arguments, blow=(*blow, number))
        assert process.wait() == code, process.err
        assert process.err.startswith(said), process.err
        assert process.err.endswith(f":\n  kpipe run {experiment} {shlex.join(EXACT)}\n")
        if "nothing" in process.err:
            assert not [path for path in (logs / "tiny").iterdir() if path.is_dir()]
        else:
            step = int(re.search(r"up to step ([\d,]+)", process.err)[1].replace(",", ""))
            latest = (only_run(logs) / "checkpoints" / "latest").read_text()
            assert latest == f"step-{step:08d}\n"
    assert json.loads((only_run(logs) / "summary.json").read_text())["status"] == "interrupted"
    assert kpipe(*arguments)[0] == 0
    run = only_run(logs)
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    kpipe(*arguments)
    assert_same_run(run, only_run(tmp_path / "whole"))


LONG = ("training.epochs=400", "data.synthetic.images=1000")


def test_a_second_interrupt_leaves_at_once_and_loses_nothing_committed(kpipe, start, experiment, logs):
    """The second one comes while the first one's checkpoint is written, by the signal's own hand."""
    process = start("run", experiment, *LONG, blow=("kpipe.training.checkpoints", None, "_write", 9, signal.SIGINT))
    process.wait_for("epoch   1/400")
    assert process.wait() == 130  # the 9th file belongs to the second checkpoint: it is finished
    first = re.match(r"interrupted; the training is saved up to step ([\d,]+)\. The same", process.err)[1]
    begin = time.monotonic()
    process = start("run", experiment, *LONG)
    process.wait_for("resumed after step")
    process.wait_for("epoch ")
    for _ in range(3):
        process.send(signal.SIGINT)
        time.sleep(0.01)
    assert process.wait() == 130
    assert time.monotonic() - begin < 30
    assert "Traceback" not in process.err
    step = re.match(r"interrupted; the training is saved up to step ([\d,]+)\. The same", process.err)[1]
    assert int(step.replace(",", "")) >= int(first.replace(",", ""))
    process = start("run", experiment, *LONG)
    process.wait_for(f"resumed after step {step}\n")


def test_a_living_run_is_left_alone(kpipe, start, experiment, logs):
    process = start("run", experiment, *LONG)
    process.wait_for("epoch   2/400")
    run = only_run(logs)
    process.send(signal.SIGSTOP)
    before = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    begin = time.monotonic()
    code, out, err = kpipe("run", experiment, *LONG)
    assert time.monotonic() - begin < 2
    assert (code, out) == (5, "")
    assert f"{run}: this run is still going on (process {process.pid} on " in err
    assert "start another beside it with --new" in err
    after = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    assert after == before
    code, _, err = kpipe("run", experiment, *LONG, "--new", "--resume", str(run))
    assert (code, "--new and --resume: expected one of them, got both." in err) == (2, True)
    process.send(signal.SIGKILL)


def test_another_config_starts_a_new_run_and_says_so(kpipe, start, experiment, logs):
    process = start("run", experiment, *LONG)
    process.wait_for("epoch   1/400")
    process.send(signal.SIGKILL)
    process.wait()
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    [old, _] = sorted(path for path in (logs / "tiny").iterdir() if path.is_dir())
    assert (
        f"note: {old} is unfinished and has another config (data.synthetic.images: 1000 there, 200 here; train" in out
    )
    assert f"); kpipe run --resume {old} goes on with it\n" in out


# --- resuming by hand -----------------------------------------------------------------------------------------------


def test_a_finished_run_is_extended(kpipe, experiment, logs, tmp_path, monkeypatch):
    constant = ("training.learning_rate.schedule=constant", "training.learning_rate.peak=0.003")
    kpipe("run", experiment, *constant)
    run = only_run(logs)
    code, out, err = kpipe("run", "--resume", str(run), "training.epochs=5", "training.checkpoint.keep_last=false")
    assert (code, err) == (0, "")
    assert "resumed after step 18" in out
    assert only_run(logs) == run
    assert not list((run / "checkpoints").iterdir())
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    kpipe("run", experiment, *constant, "training.epochs=5")
    other = only_run(tmp_path / "whole")
    assert timeless(run) == timeless(other)
    for array, expected in zip(
        *(keras.models.load_model(r / "model.keras").get_weights() for r in (run, other)), strict=True
    ):
        np.testing.assert_array_equal(array, expected)
    summaries = [json.loads((r / "summary.json").read_text()) for r in (run, other)]
    assert summaries[0]["test"] == summaries[1]["test"]
    assert summaries[0]["epochs"] == 5
    code, _, err = kpipe("run", "--resume", str(run), "training.epochs=6")
    said = (
        f"{run}: expected a run with a checkpoint to go on from, found none: training.checkpoint.keep_last is false\n"
    )
    assert (code, err) == (2, said)


@pytest.fixture
def first_epoch_is_best(monkeypatch):
    scores = itertools.count(0, -1)
    monkeypatch.setattr("kpipe.experiment._score", lambda monitor, logs: [next(scores)])


def test_an_extension_that_finds_nothing_better_keeps_the_best(kpipe, experiment, logs, first_epoch_is_best):
    kpipe("run", experiment, "training.learning_rate.schedule=constant")
    run = only_run(logs)

    def result():
        weights = keras.models.load_model(run / "model.keras").get_weights()
        return weights, json.loads((run / "summary.json").read_text())

    before, summary = result()
    assert not (run / "checkpoints" / "step-00000009").exists()
    assert kpipe("run", "--resume", str(run), "training.epochs=4")[0] == 0
    after, extended = result()
    assert (summary["best_epoch"], extended["best_epoch"], extended["epochs"]) == (1, 1, 4)
    assert summary["test"] == extended["test"]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_extension_whose_best_weights_are_damaged_says_so(kpipe, experiment, logs, first_epoch_is_best):
    own_layers = ("model.name=alexnet", "data.image_size=32", "model.width=32")
    kpipe("run", experiment, "training.learning_rate.schedule=constant", *own_layers)
    run = only_run(logs)
    whole = (run / "model.keras").read_bytes()
    (run / "model.keras").write_bytes(whole[:1000])
    code, _, err = kpipe("run", "--resume", str(run), "training.epochs=3")
    assert code == 5
    assert f"{run}/model.keras: the best weights so far cannot be read (" in err
    assert "remove the file and give the same command again" in err
    (run / "model.keras").write_bytes(whole)
    assert kpipe("run", "--resume", str(run), "training.epochs=3")[0] == 0
    assert json.loads((run / "summary.json").read_text())["best_epoch"] == 1


def test_an_extension_after_early_stopping_says_that_it_changes_nothing(kpipe, experiment, logs, monkeypatch):
    rates = ("training.learning_rate.schedule=constant", "training.learning_rate.peak=1e-7", "training.epochs=9")
    kpipe("run", experiment, *rates, "training.early_stopping.patience=1", "training.early_stopping.min_delta=0.5")
    run = only_run(logs)
    monkeypatch.chdir(run)
    code, out, _ = kpipe("run", "--resume", ".", "training.epochs=12")
    assert code == 0
    assert f"run        {run}, resumed after step 18" in out
    assert "note: early stopping has ended this training in epoch 2; more epochs do not change that" in out


def test_what_may_not_differ_under_resume(kpipe, experiment, logs):
    kpipe("run", experiment)
    run = only_run(logs)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for override, said in (
        (
            "training.epochs=9",
            "training.epochs: 2 in the run, 9 now; the schedule 'cosine' looks at the end, its rates",
        ),
        ("training.epochs=1", "training.epochs: 2 in the run, 1 now; it can only grow"),
        ("seed=1", "seed: 0 in the run, 1 now"),
        ("data.batch_size=8", "data.batch_size: 16 in the run, 8 now"),
        ("data.synthetic.classes=3", "data.synthetic.classes: 2 in the run, 3 now"),
        ("model.pooling=average", "model.pooling: 'max' in the run, 'average' now"),
        ("training.optimizer.name=sgd", "training.optimizer.name: 'adam' in the run, 'sgd' now"),
        ("training.learning_rate.warmup.epochs=1", "training.learning_rate.warmup.epochs: nothing in the run, 1.0 now"),
    ):
        code, _, err = kpipe("run", "--resume", str(run), override)
        assert code == 2
        assert f"{run}: {said}" in err
        assert "Under --resume only training.log_every, training.checkpoint and more training.epochs may differ" in err
    code, _, err = kpipe("run", experiment, "--resume", str(run), "seed=1")
    assert "seed: 0 in the run, 1 now" in err
    code, _, err = kpipe("run", "--resume", str(run), "logs=elsewhere")
    assert (code, err) == (2, "logs: expected none under --resume, a run stays where it is\n")
    code, _, err = kpipe("run", "--resume", str(run), "training.checkpoint.keep=3")
    assert (code, err) == (2, f"{run}: is finished after 2 epochs; a larger training.epochs extends it\n")
    for wrong in (run / "config.yaml", run / "checkpoints" / "step-00000018", run.parent):
        code, _, err = kpipe("run", "--resume", str(wrong))
        said = f"{wrong}: expected a run directory with a config.yaml, found none there, did you mean {run}?\n"
        assert (code, err) == (2, said)
    code, _, err = kpipe("run", "--resume", "nowhere")
    assert (code, "nowhere: expected a run directory with a config.yaml, found none there" in err) == (2, True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_may_differ_under_resume(kpipe, experiment, unfinished):
    allowed = ("training.log_every.steps=3", "training.checkpoint.keep=1", "training.checkpoint.every.steps=2")
    code, out, _ = kpipe("run", experiment, "--resume", str(unfinished), *allowed)
    assert (code, "resumed after step 18" in out) == (0, True)
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    assert config["training"]["checkpoint"] == {"every": {"steps": 2}, "keep": 1, "keep_last": True}


# --- what the machine refuses ---------------------------------------------------------------------------------------


def refuse_to_write(*arguments, **options):
    raise OSError(28, "No space left on device", "model.keras")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A run that is trained to its end and has not written its model, since the disk was full."""
    folder = tmp_path_factory.mktemp("made_once")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KPIPE_LOGS", str(folder / "logs"))
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        scores = itertools.count(0, -1)  # the first epoch is the best
        patched.setattr("kpipe.experiment._score", lambda monitor, logs: [next(scores)])
        assert cli.main(["run", str(folder / "tiny.yaml")]) == 5
    return folder / "logs"


@pytest.fixture
def unfinished(made_once, logs):
    """A copy of it, which the same command goes on with."""
    shutil.copytree(made_once, logs)
    return only_run(logs)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    kpipe, experiment, unfinished, tmp_path, monkeypatch, first_epoch_is_best
):
    run = unfinished
    os.truncate(run / "checkpoints" / "step-00000018" / "training.npz", 1000)
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    assert re.search(
        r"note: .*step-00000018 is damaged \(training.npz has 1,000 bytes of [\d,]+\); the one before it is", out
    )
    assert "resumed after step 9" in out
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    kpipe("run", experiment)
    assert_same_run(run, only_run(tmp_path / "whole"))


def test_a_lost_best_checkpoint_is_said_and_looked_for_anew(kpipe, experiment, unfinished, first_epoch_is_best):
    run = unfinished
    os.truncate(run / "checkpoints" / "step-00000009" / "weights.npz", 1000)
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    assert "note: the best weights so far, of step 9, are damaged; the best is looked for anew from here" in out
    assert json.loads((run / "summary.json").read_text())["best_epoch"] == 2


def test_other_versions_and_shorter_logs_are_said_on_resume(kpipe, experiment, unfinished):
    run = unfinished
    next((run / "validation").iterdir()).unlink()
    record = json.loads((run / "environment.json").read_text())
    record["versions"]["keras"] = "3.0.0"
    (run / "environment.json").write_text(json.dumps(record))
    manifest = json.loads((run / "checkpoints" / "step-00000018" / "manifest.json").read_text())
    os.truncate(run / "metrics.jsonl", manifest["logs"]["metrics.jsonl"] - 10)
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    said = f"keras was 3.0.0, is {keras.__version__}\n"
    assert f"note: the last bits may differ from those of an uninterrupted run: {said}" in out
    assert f"note: {run / 'metrics.jsonl'} has lost its last 10 bytes" in out
    assert re.search(r"note: validation/events.out.tfevents.\S+ is gone\n", out)
    assert len(records_of(run)) == len({(r["step"], r["split"], r["span"]) for r in records_of(run)})
    again = json.loads((run / "environment.json").read_text())
    assert (again["versions"]["keras"], len(again["resumed"])) == ("3.0.0", 1)
    assert again["resumed"][0]["versions"]["keras"] == keras.__version__


def test_data_that_have_changed_are_not_gone_on_with(kpipe, experiment, unfinished, monkeypatch):
    from kpipe.data import load_dataset

    fewer = load_dataset("synthetic", image_size=16, classes=2, images=180)
    monkeypatch.setattr("kpipe.experiment.load_splits", lambda config, download: fewer)
    code, _, err = kpipe("run", experiment)
    assert code == 3
    said = "the data are not those that the run began with: 144 train, 16 validation, 40 test then, 12"
    assert f"{unfinished}: {said}" in err
    assert err.endswith(" now. Bring them back, or start another run with --new.\n")


def test_what_was_chosen_for_the_machine_may_be_damaged(kpipe, experiment, unfinished):
    config = unfinished / "config.yaml"
    config.write_text(config.read_text().replace("precision: float32\n  deterministic: true", "precision: fast"))
    code, _, err = kpipe("run", experiment)
    assert code == 2
    assert (
        f"{config}: chosen: expected precision and deterministic as kpipe has written them, got {{'precision': " in err
    )


def test_a_log_that_is_a_link_is_not_cut(kpipe, experiment, unfinished, tmp_path):
    run = unfinished
    (tmp_path / "precious").write_text("x" * 100_000)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "precious")
    code, _, err = kpipe("run", experiment)
    assert code == 5
    assert f"{run}/metrics.jsonl: expected a log of this run, found a symbolic link; remove it" in err
    assert (tmp_path / "precious").stat().st_size == 100_000


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
    monkeypatch.setattr("kpipe.faults.free_memory", lambda: 3_000_000)
    monkeypatch.setattr("kpipe.training.trainer.Trainer.run_steps", exhaust("OOM when allocating tensor"))
    code, out, err = kpipe("run", experiment, "data.batch_size=128")
    assert code == 5
    assert re.search(
        r"note: the training needs about [\d.]+ MB of memory, 3 MB are free; data.batch_size=\d+ should", out
    )
    fits = re.search(
        r"out of memory with data.batch_size=128 \(3 MB were free before\); data.batch_size=(\d+) should fit", err
    )
    assert 1 <= int(fits[1]) <= 64
    monkeypatch.setattr("kpipe.faults.free_memory", lambda: None)
    code, _, err = kpipe("run", experiment, "data.batch_size=128")
    assert "(how much was free is not known); data.batch_size=64 should fit" in err
    monkeypatch.setattr("kpipe.faults.free_memory", lambda: 1000)
    assert "not even one image fits: take a smaller data.image_size" in kpipe("run", experiment)[2]

    def no_more(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("kpipe.experiment.load_splits", no_more)
    assert "out of memory while data and network were made ready (1 kB were free before)" in kpipe("run", experiment)[2]


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
    assert "data.batch_size=8 should fit" in err
    assert (only_run(logs) / "checkpoints" / "latest").read_text() == "step-00000009\n"
    code, out, _ = kpipe("run", experiment)
    assert (code, "resumed after step 9" in out) == (0, True)


@pytest.mark.parametrize("reason", ["No space left on device", "File too large"])
def test_a_full_disk_that_tensorflow_reports_is_named(kpipe, experiment, monkeypatch, reason):
    monkeypatch.setattr("kpipe.training.trainer.Trainer.run_steps", exhaust(f"events.out; {reason}"))
    code, _, err = kpipe("run", experiment)
    assert code == 5
    assert re.search(rf"tiny/[\d_-]+: cannot be written \({reason}\); [\d,]+ bytes are free there", err)


def test_an_error_of_tensorflow_that_nobody_foresaw_keeps_its_traceback(kpipe, experiment, monkeypatch):
    def fail(*arguments):
        raise tf.errors.InternalError(None, None, "boom")

    monkeypatch.setattr("kpipe.training.trainer.Trainer.run_steps", fail)
    with pytest.raises(tf.errors.InternalError, match="boom"):
        kpipe("run", experiment)


def test_nothing_is_left_of_a_run_that_did_not_start(kpipe, experiment, logs):
    code, _, err = kpipe("run", experiment, "data.batch_size=5000")
    assert code == 2
    assert "data.batch_size: expected at most the 144 images of the training part, got 5,000" in err
    assert [path.name for path in (logs / "tiny").iterdir() if path.is_dir()] == []


def test_divergence(kpipe, experiment, logs):
    code, out, err = kpipe("run", experiment, "training.optimizer.name=sgd", "training.learning_rate.peak=1e30")
    assert code == 4
    assert re.search(
        r"the loss became (nan|inf) (at step|between steps) [\d and]+; likely causes: the learning rate", err
    )
    assert err.endswith("initial weights. Nothing was saved before.\n")
    assert json.loads((only_run(logs) / "summary.json").read_text())["status"] == "diverged"


def test_divergence_keeps_the_last_good_checkpoint(kpipe, experiment, logs, monkeypatch):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                kernel = self.model.get_layer("c1").kernel
                kernel.assign(np.full(kernel.shape, np.inf))

    monkeypatch.setattr("kpipe.experiment._callbacks", lambda training: [Poison()])
    code, out, err = kpipe("run", experiment, "training.checkpoint.every.steps=1")
    assert code == 4
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_as_user(kpipe, experiment, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    code, _, err = kpipe("run", experiment, f"logs={tmp_path}/closed")
    assert code == 5
    assert "cannot be written" in err


def test_a_folder_that_cannot_be_made(kpipe, experiment, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = kpipe("run", experiment, f"logs={tmp_path}/file")
    assert code == 5
    assert "cannot be written (Not a directory). Give another folder with logs=FOLDER or KPIPE_LOGS." in err


def test_mixed_float16_is_refused_on_a_cpu(kpipe, experiment):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    code, _, err = kpipe("run", experiment, "training.precision=mixed_float16")
    assert code == 2
    assert "40 to 270 times slower" in err


def test_explicit_constants_must_fit_the_channels(kpipe, experiment):
    overrides = ("data.normalize.mean=[1.0, 2.0]", "data.normalize.std=[1.0, 2.0]")
    code, _, err = kpipe("run", experiment, *overrides)
    assert code == 2
    assert "data.normalize: expected 1 or " in err


def test_a_repeated_run_keeps_what_was_chosen_unless_it_is_told(kpipe, experiment, logs):
    kpipe("run", experiment, "training.precision=auto")
    config = yaml.safe_load((only_run(logs) / "config.yaml").read_text())
    config["chosen"]["precision"] = "mixed_bfloat16"
    config["name"] = "1e3"
    repeated = logs / "again.yaml"
    repeated.write_text(yaml.safe_dump(config))
    assert "mixed_bfloat16" in kpipe("run", str(repeated), "name=again")[1]
    assert "float32" in kpipe("run", str(repeated), "name=told", "training.precision=float32")[1]


def test_a_name_that_looks_like_a_number_survives(kpipe, experiment, logs):
    assert kpipe("run", experiment, "name='1e3'", "training.epochs=1")[0] == 0
    assert kpipe("run", str(only_run(logs, "1e3") / "config.yaml"), "--print-config")[0] == 0


def test_early_stopping_needs_a_validation_part(kpipe, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        pixels = np.full((12, 12, 3), 90 * len(name), np.uint8)
        (tmp_path / "images" / name / "1.png").write_bytes(tf.io.encode_png(pixels).numpy())
    (tmp_path / "few.yaml").write_text(
        f"data: {{source: 'folder:{tmp_path}/images', image_size: 12, batch_size: 2}}\nmodel: {{name: lenet5}}\n"
        "training: {early_stopping: {patience: 1}}\n"
    )
    code, _, err = kpipe("run", str(tmp_path / "few.yaml"))
    assert code == 2
    assert "training.early_stopping: needs a validation part, this data has none" in err


def test_a_full_disk_is_named_and_costs_nothing(kpipe, experiment, unfinished, monkeypatch, first_epoch_is_best):
    with monkeypatch.context() as patched:
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        code, _, err = kpipe("run", experiment)
    assert code == 5
    assert re.search(
        r"model.keras: cannot be written \(No space left on device\); [\d,]+ bytes are free there\. What", err
    )
    assert err.endswith("What was saved before is still there: make room and give the same command again.\n")
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    assert "resumed after step 18" in out


def test_an_error_of_the_file_system_that_is_no_refusal_keeps_its_traceback(kpipe, experiment, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("kpipe.experiment.save_portable", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        kpipe("run", experiment)


def test_a_file_that_cannot_be_written_asks_for_no_room(kpipe, experiment, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error", "gone/model.keras")

    monkeypatch.setattr("kpipe.experiment.save_portable", fail)
    code, _, err = kpipe("run", experiment)
    assert code == 5
    assert "gone/model.keras: cannot be written (Input/output error); " in err
    assert err.endswith("What was saved before is still there: let it be written and give the same command again.\n")


def test_a_test_loss_that_is_not_finite_is_null(kpipe, experiment, logs, monkeypatch):
    from kpipe.training.trainer import Trainer

    real = Trainer.evaluate

    def infinite(self, *arguments, **options):
        found = real(self, *arguments, **options)
        return found if "should_stop" in options else found | {"loss": math.inf}

    monkeypatch.setattr(Trainer, "evaluate", infinite)
    assert kpipe("run", experiment)[0] == 0
    run = only_run(logs)
    assert json.loads((run / "summary.json").read_text())["test"]["loss"] is None
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=lambda name: pytest.fail(name))["loss"] is None


def test_a_driver_without_a_usable_gpu_is_said(monkeypatch, tmp_path):
    from kpipe.training import device

    monkeypatch.setattr(device.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(device.tf.config, "list_physical_devices", lambda kind: [])
    assert device.gpu_hint().endswith('pip install -e ".[gpu]"')


def test_a_doctor_who_finds_something(kpipe, monkeypatch):
    monkeypatch.setattr("kpipe.doctor._LEAST_ACCURACY", 1.1)
    code, _, err = kpipe("doctor")
    assert code == 5
    assert "This installation computes wrongly: install kpipe with constraints.txt into a new environment." in err


def test_the_check_can_be_interrupted(kpipe, monkeypatch):
    def interrupted(*arguments, **options):
        raise Interrupted("the training is saved", 130)

    monkeypatch.setattr("kpipe.doctor.train", interrupted)
    assert kpipe("doctor")[0::2] == (130, "interrupted; nothing is left of the check\n")
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("number", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_while_libraries_are_imported(number, code, word, experiment, logs):
    """The moment is chosen by an import hook: TensorFlow's first import sends the signal."""
    script = f"""
import os, signal, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            os.kill(os.getpid(), signal.{number})
sys.meta_path.insert(0, Hook())
from kpipe.cli import main
sys.exit(main(["run", {experiment!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.strip() == f"{word} before another step was done; what was saved is still there"
    assert not logs.exists()


def test_the_command_that_goes_on_can_be_pasted(monkeypatch):
    augment = "data.augment=[{pad_crop: {padding: 2}}]"
    monkeypatch.setattr(sys, "executable", "/x/bin/python3.11")
    monkeypatch.setattr(shutil, "which", lambda name: f"/x/bin/{name}")
    monkeypatch.setattr(sys, "argv", ["/x/kpipe/run.py", "a b.yaml", "--new", augment])
    assert command_again(resumes=True) == f"python -m kpipe.run 'a b.yaml' '{augment}'"
    # Without --new, an older run would be gone on with where this one has left nothing.
    assert command_again(resumes=False) == f"python -m kpipe.run 'a b.yaml' --new '{augment}'"
    monkeypatch.setattr(sys, "argv", ["/x/bin/kpipe", "run", "a.yaml"])
    assert command_again(resumes=True) == "kpipe run a.yaml"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert command_again(resumes=True) == "/x/bin/kpipe run a.yaml"
    monkeypatch.setattr(sys, "argv", ["/x/kpipe/__main__.py", "run", "a.yaml"])
    assert command_again(resumes=True) == "/x/bin/python3.11 -m kpipe run a.yaml"


def test_usage(kpipe, experiment):
    code, _, err = kpipe("rum", experiment)
    assert code == 2
    assert "No such command 'rum'" in err
    code, _, err = kpipe("run")
    assert code == 2
    assert "Missing argument 'EXPERIMENT.yaml'" in err
    assert kpipe("run", experiment, "--nwe")[0] == 2


def test_print_config_trains_nothing(kpipe, experiment, logs):
    code, out, _ = kpipe("run", experiment, "--print-config")
    assert code == 0
    assert yaml.safe_load(out)["training"]["epochs"] == 2
    assert not logs.exists()


def test_a_dropped_option_is_said(kpipe, experiment):
    code, out, _ = kpipe("run", experiment, "data.source=digits", "--print-config")
    assert out.startswith("# note: an override has chosen something else; dropped from the file: data.synthetic\n")
    code, out, _ = kpipe("run", experiment, "data.source=digits", "training.epochs=1")
    assert "note: an override has chosen something else; dropped from the file: data.synthetic" in out


def test_list(kpipe):
    code, out, _ = kpipe("list", "--json")
    assert json.loads(out)["optimizers"] == ["sgd", "adagrad", "rmsprop", "adadelta", "adam", "adamw"]
    assert "vgg16" in kpipe("list")[1]


def test_doctor(kpipe, logs):
    code, out, err = kpipe("doctor")
    assert (code, err) == (0, "")
    assert "All is well." in out
    assert tf.__version__ in out
    assert not logs.exists()


def test_an_unforeseen_error_replays_what_libraries_said(tmp_path):
    code = (
        "import os\nfrom kpipe.console import hold_back_libraries\n"
        "with hold_back_libraries():\n    os.write(2, b'from a library')\n    {}\n"
    )

    def stderr(last):
        done = subprocess.run([sys.executable, "-c", code.format(last)], capture_output=True, text=True)
        return done.stderr

    assert stderr("pass") == ""
    assert "from a library" in stderr("raise RuntimeError('boom')")
    assert "RuntimeError: boom" in stderr("raise RuntimeError('boom')")
    assert "from a library" not in stderr("from kpipe.errors import DataError; raise DataError('no images')")


def test_terminal_shows_a_bar_that_is_gone_at_the_end(tmp_path):
    import io

    from rich.console import Console

    from kpipe.console import Screen

    stream = io.StringIO()
    screen = Screen(Console(file=stream, force_terminal=True, width=80, highlight=False))
    with screen.training(epochs=3, steps_per_epoch=10, batch_size=32):
        screen.step(1)
        screen.log({"step": 5, "epoch": 1, "loss": 0.5, "accuracy": 0.5, "images_per_second": 10})
        screen.step(10)
        screen._progress.refresh()
        screen.epoch(1, {"loss": 0.5, "accuracy": 0.75}, best=False)
    text = stream.getvalue()
    assert "epoch 1/3" in text
    assert "images/s" in text
    assert "loss 0.5000  acc 0.7500" in text
    assert "step 5" not in text


def test_the_readme_shows_the_shipped_files():
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text()
    for name in re.findall(r"experiments/[\w/]+\.yaml", readme):
        assert (root / name).exists(), name
