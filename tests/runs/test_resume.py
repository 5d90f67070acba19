"""A run that is killed, interrupted, damaged or extended is resumed as if nothing had happened."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import yaml
from tiny_runs import assert_same_run, only_run, records_of, timeless

from kpipe.caller import on_command_line
from kpipe.config.loading import load_experiment
from kpipe.errors import ConfigError
from kpipe.runs.interruption import how_again
from kpipe.runs.resume import check_resume, command_to_train_longer
from kpipe.training.trainer import Trainer

# A rate that falls after each epoch but the first.
PLATEAU = tuple(
    f"training.learning_rate.{option}" for option in ("schedule=plateau", "factor=0.5", "patience=1", "min_delta=9")
)
# Dropout, augmentation, momentum, plateau and the validation all have a state that an inexact resume would lose.
EXACT = (
    "model.name=alexnet", "data.image_size=32", "model.width=32", "data.synthetic.images=400", "training.epochs=3",
    "data.augment=[{pad_crop: {padding: 2}}, flip_horizontal]", "training.checkpoint.every.steps=5", *PLATEAU,
    "logging.layer_statistics.steps=4",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    kpipe, start, experiment, logs, tmp_path, monkeypatch, precision
):
    arguments = ("run", experiment, *EXACT, f"training.precision={precision}")
    for text, times in (("images/s", 2), ("resumed    after step", 1), ("epoch 2/3", 1)):
        process = start(*arguments)
        process.wait_for(text, times)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    code, out, _ = kpipe(*arguments)
    assert code == 0
    assert "resumed    after step" in out
    run = only_run(logs)
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    assert kpipe(*arguments)[0] == 0
    assert_same_run(run, only_run(tmp_path / "whole"))


TRAINER, CHECKPOINTS = "kpipe.training.trainer", "kpipe.training.checkpoints"
PHASES = [
    # where the signal strikes, which, the exit code, and how the message begins
    (("kpipe.experiment", None, "load_splits", 1), signal.SIGTERM, 143, "terminated before the first step"),
    ((TRAINER, "Trainer", "_steps", 1), signal.SIGINT, 130, "interrupted before the first step was saved: "),
    ((TRAINER, "Trainer", "run_steps", 2), signal.SIGTERM, 143, "terminated; the training is saved up to step 1."),
    ((TRAINER, "Trainer", "run_steps", 5), signal.SIGINT, 130, "interrupted; the training is saved up to step "),
    ((TRAINER, "Trainer", "evaluate", 1), signal.SIGHUP, 129, "hung up; the training is saved up to step 18."),
    ((CHECKPOINTS, "Checkpoints", "commit", 1), signal.SIGINT, 130, "interrupted; the training is saved up to step "),
    ((TRAINER, "Trainer", "_steps", 1), signal.SIGTERM, 143, "terminated; the training is saved up to step "),
    (("kpipe.experiment", None, "write_figures", 1), signal.SIGINT, 130, "interrupted; the training is saved"),
]  # fmt: skip


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_second_interrupt_leaves_at_once_and_loses_nothing_committed(kpipe, start, experiment, logs):
    """The second one comes while the first one's checkpoint is written, by the signal's own hand."""
    process = start("run", experiment, *LONG, blow=("kpipe.training.checkpoints", None, "_write", 9, signal.SIGINT))
    process.wait_for("epoch   1/400")
    assert process.wait() == 130  # the 9th file belongs to the second checkpoint: it is finished
    first = re.match(r"interrupted; the training is saved up to step ([\d,]+)\. The same", process.err)[1]
    process = start("run", experiment, *LONG)
    process.wait_for("resumed    after step")
    process.wait_for("val_loss ")
    with suppress(ProcessLookupError):  # it may be gone after the second one
        for _ in range(3):
            process.send(signal.SIGINT)
            time.sleep(0.01)
    assert process.wait() == 130
    # The later ones may come before the message about the first is printed.
    said = r"^interrupted; (the training is saved up to step [\d,]+\. The|what was saved before)"
    assert re.search(said, process.err, re.MULTILINE), process.err
    assert "Traceback" not in process.err
    process = start("run", experiment, *LONG)
    process.wait_for("resumed    after step ")
    step = re.search(r"resumed +after step ([\d,]+),", process.out)[1]
    assert int(step.replace(",", "")) >= int(first.replace(",", ""))


@pytest.mark.slow
def test_a_living_run_is_left_alone(kpipe, start, experiment, logs):
    process = start("run", experiment, *LONG)
    process.wait_for("epoch   2/400")
    run = only_run(logs)
    process.send(signal.SIGSTOP)
    before = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    code, out, err = kpipe("run", experiment, *LONG)
    assert (code, out) == (5, "")
    assert f"{run}: this run is still running (process {process.pid} on " in err
    assert "start another beside it with --new" in err
    after = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    assert after == before
    code, _, err = kpipe("run", experiment, *LONG, "--new", "--resume", str(run))
    assert (code, "--new and --resume: expected one of them, got both." in err) == (2, True)
    process.send(signal.SIGKILL)


@pytest.mark.slow
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
    assert f"); kpipe run --resume {old} resumes it\n" in out


# --- resuming by hand -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_is_extended(kpipe, experiment, logs, tmp_path, monkeypatch):
    options = (*PLATEAU, "training.learning_rate.peak=0.003")
    kpipe("run", experiment, *options)
    run = only_run(logs)
    code, out, err = kpipe("run", "--resume", str(run), "training.epochs=5", "training.checkpoint.keep_last=false")
    assert (code, err) == (0, "")
    assert "resumed    after step 18" in out
    assert only_run(logs) == run
    assert not list((run / "checkpoints").iterdir())
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    kpipe("run", experiment, *options, "training.epochs=5")
    other = only_run(tmp_path / "whole")
    assert timeless(run) == timeless(other)
    for array, expected in zip(
        *(keras.models.load_model(r / "model.keras").get_weights() for r in (run, other)), strict=True
    ):
        np.testing.assert_array_equal(array, expected)
    rates = [
        record["learning_rate"]
        for record in records_of(run)
        if record["span"] == "epoch" and record["split"] == "train"
    ]
    assert rates == pytest.approx([0.003, 0.003, 0.0015, 0.00075, 0.000375])
    summaries = [json.loads((r / "summary.json").read_text()) for r in (run, other)]
    assert summaries[0]["test"] == summaries[1]["test"]
    assert summaries[0]["epochs"] == 5
    code, _, err = kpipe("run", "--resume", str(run), "training.epochs=6")
    said = (
        f"{run}: expected a run with a checkpoint to resume from, found none: training.checkpoint.keep_last is false\n"
    )
    assert (code, err) == (2, said)


@pytest.mark.parametrize(
    ("schedule", "options", "is_fixed"),
    [
        ("constant", {}, True),
        ("constant", {"warmup": {"images": 100}}, True),
        ("constant", {"warmup": {"percent": 10}}, False),
        ("step", {"every": {"epochs": 1}}, True),
        ("step", {"every": {"percent": 30}}, False),
        ("multistep", {"milestones": {"images": [200]}}, True),
        ("exponential", {"every": {"steps": 9}}, True),
        ("inverse_time", {"every": {"percent": 10}}, False),
        ("polynomial", {}, False),
        ("cosine", {}, False),
        ("cosine_restarts", {"first": {"epochs": 1}}, True),
        ("cosine_restarts", {"first": {"percent": 15}}, False),
        ("one_cycle", {"rise": {"epochs": 1}}, False),
        ("plateau", {}, True),
    ],
)
def test_which_schedules_can_be_extended(unfinished, schedule, options, is_fixed):
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    config["training"]["learning_rate"] = {"schedule": schedule, **options}
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config))
    before, longer = (
        load_experiment(unfinished / "config.yaml", overrides).experiment for overrides in ((), ["training.epochs=4"])
    )
    again = f"kpipe run --resume {unfinished}" if is_fixed else f"kpipe run {unfinished}/config.yaml"
    assert command_to_train_longer(unfinished, before, "epochs") == f"{again} training.epochs=4"
    if is_fixed:
        check_resume(unfinished, longer)
    else:
        said = f"; its schedule '{schedule}' depends on the number of epochs"
        with pytest.raises(ConfigError, match=said):
            check_resume(unfinished, longer)


def test_a_run_that_freezes_layers_for_a_percentage_cannot_be_extended(unfinished):
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    config["training"]["learning_rate"] = {"schedule": "constant"}
    config["training"]["layers"] = [{"match": "c1", "frozen": {"percent": 10}}]
    (unfinished / "config.yaml").write_text(yaml.safe_dump(config))
    longer = load_experiment(unfinished / "config.yaml", ["training.epochs=4"]).experiment
    said = "; a length in percent, for which layers are frozen, depends on the number of epochs"
    with pytest.raises(ConfigError, match=said):
        check_resume(unfinished, longer)


@pytest.mark.slow
def test_an_extension_that_finds_nothing_better_keeps_the_best(kpipe, experiment, logs, first_epoch_is_best):
    kpipe("run", experiment, "training.learning_rate.schedule=constant")
    run = only_run(logs)

    def result():
        weights = keras.models.load_model(run / "model.keras").get_weights()
        return weights, json.loads((run / "summary.json").read_text())

    before, summary = result()
    assert not (run / "checkpoints" / "step-00000009").exists()
    code, _, err = kpipe("run", "--resume", str(run))
    assert (code, err) == (2, f"{run}: is finished after 2 epochs; a larger training.epochs extends it\n")
    assert kpipe("run", "--resume", str(run), "training.epochs=4")[0] == 0
    after, extended = result()
    assert (summary["best_epoch"], extended["best_epoch"], extended["epochs"]) == (1, 1, 4)
    assert summary["test"] == extended["test"]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_extension_after_early_stopping_says_that_it_changes_nothing(kpipe, experiment, logs, monkeypatch):
    rates = ("training.learning_rate.schedule=constant", "training.learning_rate.peak=1e-7", "training.epochs=9")
    kpipe("run", experiment, *rates, "training.early_stopping.patience=1", "training.early_stopping.min_delta=0.5")
    run = only_run(logs)
    monkeypatch.chdir(run)
    code, out, _ = kpipe("run", "--resume", ".", "training.epochs=12")
    assert code == 0
    assert "  run        .\n  resumed    after step 18, in epoch 3 of 12; best so far: epoch " in out
    assert "note: early stopping has ended this training in epoch 2; more epochs do not change that" in out


@pytest.fixture
def budget(monkeypatch):
    """Let each step of a training take so many seconds."""
    real = Trainer.run_steps

    def budget(seconds):
        now = [1000.0]

        def run_steps(trainer, iterator, num_steps, head=None):
            now[0] += seconds * num_steps
            return real(trainer, iterator, num_steps, head)

        monkeypatch.setattr("kpipe.runs.recorder.time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(Trainer, "run_steps", run_steps)

    return budget


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.mark.slow
def test_a_run_whose_time_is_over_is_finished_and_resumed_with_more_of_it(
    kpipe, experiment, logs, tmp_path, monkeypatch, budget
):
    constant = ("training.learning_rate.schedule=constant", "training.learning_rate.peak=0.001")
    budget(20)
    code, out, err = kpipe("run", experiment, *constant, "training.max_minutes=1.25")
    assert (code, err) == (0, "")
    run = only_run(logs)
    assert "Kept are the weights of step 4.\n" in out  # of 9 in an epoch: there are no best weights yet
    assert f"  longer     kpipe run --resume {run} training.max_minutes=2.5\n" in out
    summary = summary_of(run)
    assert [summary[key] for key in ("status", "ended_by", "steps", "epochs")] == ["finished", "max_minutes", 4, 0]
    assert summary["test"]["images"] == 40
    first = keras.models.load_model(run / "model.keras").get_weights()
    code, out, _ = kpipe("run", "--resume", str(run), "training.max_minutes=3.75")
    assert (code, "Kept are the weights of epoch 1.\n" in out) == (0, True)
    assert (summary_of(run)["steps"], summary_of(run)["best_epoch"]) == (12, 1)
    said = f"{run}: ended after its 3.75 minutes; a larger training.max_minutes resumes it\n"
    for overrides in ((), ("training.max_minutes=3",), ("training.epochs=9",)):
        assert kpipe("run", "--resume", str(run), *overrides) == (2, "", said)
    assert kpipe("run", "--resume", str(run), "training.max_minutes=30")[0] == 0
    assert summary_of(run)["ended_by"] == "epochs"
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    kpipe("run", experiment, *constant)
    assert timeless(run) == timeless(only_run(tmp_path / "whole"))
    assert any(
        (a != b).any() for a, b in zip(first, keras.models.load_model(run / "model.keras").get_weights(), strict=True)
    )


@pytest.mark.slow
def test_an_interrupted_run_is_finished_as_it_stands_and_resumed_later(kpipe, experiment, logs, made_once, monkeypatch):
    def interrupt(screen, step, metrics):
        if step == 12:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr("kpipe.training_screen.TrainingScreen.step", interrupt)
        assert kpipe("run", experiment)[0] == 130
    run = only_run(logs)
    code, out, err = kpipe("finish", str(run))
    assert (code, err) == (0, "")
    assert "  resumed    after step 12, in epoch 2 of 2; best so far: epoch 1, val_accuracy " in out
    assert f"  longer     kpipe run --resume {run}\n" in out
    summary = summary_of(run)
    assert [summary[key] for key in ("status", "ended_by", "steps", "best_epoch")] == ["finished", "finish", 12, 1]
    assert summary["test"]["images"] == 40
    assert (run / "model.keras").exists()
    said = f"{run}: expected a run that is not finished, got one that is\n"
    assert kpipe("finish", str(run)) == (2, "", said)
    assert kpipe("run", "--resume", str(run))[0] == 0
    assert timeless(run)[:-1] == timeless(only_run(made_once))
    assert (summary_of(run)["ended_by"], summary_of(run)["epochs"]) == ("epochs", 2)


def test_what_may_not_differ_under_resume(kpipe, experiment, logs):
    kpipe("run", experiment)
    run = only_run(logs)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for override, said in (
        (
            "training.epochs=9",
            "training.epochs: 2 in the run, 9 now; its schedule 'cosine' depends on the number of epochs",
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
        assert "\nUnder --resume only training.log_every, training.checkpoint, training.max_minutes, training.w" in err
        assert f"\n  kpipe run {run}/config.yaml {override}" in err
        start = (
            f"\nor one that starts from its weights:\n  kpipe run {run}/config.yaml model.init_from={run} {override}\n"
        )
        assert err.endswith(start) == override.startswith("training.epochs")
    code, _, err = kpipe("run", experiment, "--resume", str(run), "seed=1")
    assert "seed: 0 in the run, 1 now" in err
    code, _, err = kpipe("run", "--resume", str(run), "logs=elsewhere")
    assert (code, err) == (2, "logs: expected none under --resume, a run stays where it is\n")
    code, _, err = kpipe("run", "--resume", str(run), "training.checkpoint.keep=3")
    reason = "its schedule 'cosine' depends on the number of epochs, so it cannot be extended"
    longer = f"kpipe run {run}/config.yaml training.epochs=4"
    said = f"{run}: is finished after 2 epochs; {reason}. Train another run for longer:\n  {longer}\n"
    start = f"or one that starts from its weights:\n  kpipe run {run}/config.yaml model.init_from={run}\n"
    assert (code, err) == (2, said + start)
    for wrong in (run / "config.yaml", run / "checkpoints" / "step-00000018", run.parent):
        code, _, err = kpipe("run", "--resume", str(wrong))
        said = f"{wrong}: expected a run directory with a config.yaml, found none there, did you mean {run}?\n"
        assert (code, err) == (2, said)
    code, _, err = kpipe("run", str(run))
    said = f". kpipe run --resume {run} resumes this run; kpipe run {run}/config.yaml repeats it\n"
    assert (code, err) == (2, f"{run}: expected an experiment file, got a folder{said}")
    code, _, err = kpipe("run", "--resume", "nowhere")
    assert (code, "nowhere: expected a run directory with a config.yaml, found none there" in err) == (2, True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_may_differ_under_resume(kpipe, experiment, unfinished):
    allowed = ("training.log_every.steps=3", "training.checkpoint.keep=1", "training.checkpoint.every.steps=2")
    allowed += ("logging.layer_statistics.steps=5", "training.when_stuck=stop")
    code, out, _ = kpipe("run", experiment, "--resume", str(unfinished), *allowed)
    assert (code, "resumed    after step 18" in out) == (0, True)
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    assert config["training"]["checkpoint"] == {"every": {"steps": 2}, "keep": 1, "keep_last": True}


# --- what has changed in the meantime -------------------------------------------------------------------------------


@pytest.mark.slow
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
    assert "resumed    after step 9" in out
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    kpipe("run", experiment)
    assert_same_run(run, only_run(tmp_path / "whole"))


def test_a_lost_best_checkpoint_is_said_and_searched_anew(kpipe, experiment, unfinished, first_epoch_is_best):
    run = unfinished
    os.truncate(run / "checkpoints" / "step-00000009" / "weights.npz", 1000)
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    assert "note: the best weights so far, of step 9, are damaged or gone; the best is searched anew from here" in out
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


def test_a_run_is_not_resumed_on_data_that_have_changed(kpipe, experiment, unfinished, monkeypatch):
    from kpipe.data.loading import load_dataset

    fewer = load_dataset("synthetic", image_size=16, classes=2, images=180)
    monkeypatch.setattr("kpipe.experiment.load_splits", lambda config, **_: fewer)
    code, _, err = kpipe("run", experiment)
    assert code == 3
    said = "the data are not those that the run began with: 144 train, 16 validation, 40 test then, 12"
    assert f"{unfinished}: {said}" in err
    assert err.endswith(" now. Bring them back, or start another run with --new.\n")


def test_what_was_resolved_for_the_machine_may_be_damaged(kpipe, experiment, unfinished):
    config = unfinished / "config.yaml"
    resolved = "precision: float32\n  deterministic: true\n  xla: false"
    config.write_text(config.read_text().replace(resolved, "precision: fast"))
    code, _, err = kpipe("run", experiment)
    assert code == 2
    expected = "expected precision, deterministic and xla as kpipe has written them"
    assert f"{config}: chosen: {expected}, got {{'precision': " in err


def test_a_log_that_is_a_link_is_not_cut(kpipe, experiment, unfinished, tmp_path):
    run = unfinished
    (tmp_path / "precious").write_text("x" * 100_000)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "precious")
    code, _, err = kpipe("run", experiment)
    assert code == 5
    assert f"{run}/metrics.jsonl: expected a log of this run, found a symbolic link; remove it" in err
    assert (tmp_path / "precious").stat().st_size == 100_000


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "hung up")],
)
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
    assert done.stderr.strip() == f"{word}; what was saved before is still there"
    assert not logs.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_process_was_started_to_ignore_is_ignored(kpipe, experiment, logs, monkeypatch, number):
    """As in a shell's `kpipe run tiny.yaml &`, and under nohup."""
    from kpipe.training.trainer import Trainer

    real = Trainer.run_steps

    def struck(*arguments):
        signal.raise_signal(number)
        return real(*arguments)

    monkeypatch.setattr(Trainer, "run_steps", struck)
    signal.signal(number, signal.SIG_IGN)
    code, out, err = kpipe("run", experiment, "training.epochs=1")
    assert (code, err) == (0, "")
    assert signal.getsignal(number) == signal.SIG_IGN
    assert json.loads((only_run(logs) / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "kpipe.training.trainer.Trainer.run_steps",
            "terminated before the first step was saved: there is nothing to keep",
        ),
        ("kpipe.experiment.train", "terminated; what was saved before is still there"),
    ],
)
def test_native_code_may_turn_an_interruption_into_another_error(kpipe, experiment, logs, monkeypatch, place, said):
    """As TensorFlow was seen to do when the signal came while it traced."""

    def traced(*arguments, **options):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise SystemError("Objects/listobject.c:338: bad argument to internal function") from None

    monkeypatch.setattr(place, traced)
    code, _, err = kpipe("run", experiment)
    assert (code, err.startswith(said)) == (143, True), err
    assert not list(logs.glob("tiny/*/"))


def test_the_command_that_resumes_can_be_pasted(monkeypatch):
    def said(resumes):
        with on_command_line():
            said, command = how_again("resumes it", resumes=resumes).split(":\n  ")
        assert said == "The same command resumes it"
        return command

    assert how_again("resumes it", resumes=True) == "The same call resumes it."
    augment = "data.augment=[{pad_crop: {padding: 2}}]"
    monkeypatch.setattr(sys, "executable", "/x/bin/python3.11")
    monkeypatch.setattr(shutil, "which", lambda name: f"/x/bin/{name}")
    monkeypatch.setattr(sys, "argv", ["/x/kpipe/run.py", "a b.yaml", "--new", augment])
    assert said(resumes=True) == f"python -m kpipe.run 'a b.yaml' '{augment}'"
    # Without --new, an older run would be resumed where this one has left nothing.
    assert said(resumes=False) == f"python -m kpipe.run 'a b.yaml' --new '{augment}'"
    monkeypatch.setattr(sys, "argv", ["/x/bin/kpipe", "run", "a.yaml"])
    assert said(resumes=True) == "kpipe run a.yaml"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert said(resumes=True) == "/x/bin/kpipe run a.yaml"
    monkeypatch.setattr(sys, "argv", ["/x/kpipe/__main__.py", "run", "a.yaml"])
    assert said(resumes=True) == "/x/bin/python3.11 -m kpipe run a.yaml"
