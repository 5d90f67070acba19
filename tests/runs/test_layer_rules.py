"""Runs whose layers are frozen for a time, whose batches come in pieces, and whose weights are averaged."""

import json
import signal

import keras
import numpy as np
import pytest
from tiny_runs import assert_same_run, only_run, records_of, timeless, train_once

from kpipe.runs.state import Best, RunState

FROZEN = """\
data:
  {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 2, images: 200}, augment: [flip_horizontal]}
model: {name: lenet5}
training:
  epochs: 3
  precision: float32
  log_every: {steps: 4}
  accumulate: 2
  clip: {global_norm: 1.0}
  average: {decay: 0.8}
  layers: [{match: "c[13]", rate: 0.5, frozen: {steps: 13}}, {match: logits, weight_decay: 0}]
"""
NOTE = "until step 13: their output is computed once, for 160 images, 2 views of each in training, and kept"


@pytest.fixture
def frozen(tmp_path):
    (tmp_path / "tiny.yaml").write_text(FROZEN)
    return str(tmp_path / "tiny.yaml")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted."""
    return train_once(tmp_path_factory.mktemp("whole"), FROZEN)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_features_that_are_computed_once_change_no_number(kpipe, frozen, logs, whole, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_CACHE", str(tmp_path / "cache"))
    code, out, err = kpipe("run", frozen, f"data.cache={cache}")
    assert (code, f"{NOTE} on the disk (" in out) == (0, cache == "disk"), err
    assert "\nstep 13: c1, c3 are trained from here on\n" in out
    before, after = out.split("are trained from here on")
    assert ("run " not in before.split("compiling")[1], " left" in after) == (True, True)  # when it ends is known now
    for ours, expected in zip(timeless(only_run(logs)), timeless(whole), strict=True):
        assert {**ours, "span": 0, "split": 0} == pytest.approx({**expected, "span": 0, "split": 0}, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_another_process_finds_the_features_on_the_disk(start, frozen, tmp_path):
    kept = {}
    for logs in ("first", "second"):
        run = start(
            "run", frozen, "data.cache=disk", KPIPE_LOGS=str(tmp_path / logs), KPIPE_CACHE=str(tmp_path / "cache")
        )
        assert run.wait() == 0, run.err
        kept[logs] = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.npy")}
    assert kept["first"] == kept["second"] != {}


@pytest.mark.slow
@pytest.mark.parametrize(("saves", "before_the_thaw"), [(3, True), (10, False)])
def test_a_killed_run_is_resumed_exactly_before_and_after_the_thaw(start, frozen, logs, whole, saves, before_the_thaw):
    often = ("run", frozen, "training.checkpoint.every.steps=2")
    killed = start(*often, blow=("kpipe.training.checkpoints", "Checkpoints", "commit", saves, signal.SIGKILL))
    assert killed.wait() == -signal.SIGKILL
    resumed = start(*often)
    assert resumed.wait() == 0, resumed.err
    assert (NOTE in resumed.out) == before_the_thaw
    assert_same_run(only_run(logs), whole)


@pytest.mark.slow
def test_both_kinds_of_weights_are_kept(whole):
    """The preferred one in model.keras, which scores what summary.json says."""
    summary = json.loads((whole / "summary.json").read_text())
    best, preferred = summary["best"], summary["weights"]
    validated = [record for record in records_of(whole) if record["split"] == "validation"]
    assert set(best) == {"raw", "averaged"}
    for kind, prefix in (("raw", ""), ("averaged", "averaged_")):
        score, loss = max((r[f"{prefix}accuracy"], -r[f"{prefix}loss"]) for r in validated)
        assert (best[kind]["accuracy"], best[kind]["loss"]) == (score, -loss)
    assert preferred == max(best, key=lambda kind: (best[kind]["accuracy"], -best[kind]["loss"]))
    assert summary["validation"]["loss"] == pytest.approx(best[preferred]["loss"], rel=1e-5)
    [other] = set(best) - {preferred}
    models = [keras.models.load_model(whole / name) for name in ("model.keras", f"model_{other}.keras")]
    assert not (whole / f"model_{preferred}.keras").exists()
    assert not np.array_equal(*(model.get_layer("logits").get_weights()[0] for model in models))


@pytest.mark.slow
def test_an_extended_run_keeps_both_kinds_whichever_is_preferred(kpipe, frozen, logs, monkeypatch):
    """Scores of the raw and the averaged weights are given, epoch by epoch."""
    scores = iter([1.0, 2.0, 3.0, 0.0, 0.0, 4.0, 0.0, 0.0])
    monkeypatch.setattr("kpipe.runs.recorder.score_epoch", lambda monitor, validation: [next(scores)])
    constant = ("training.learning_rate.schedule=constant", "training.layers=[]")

    def saved():
        models = {path.stem: keras.models.load_model(path) for path in run.glob("model*.keras")}
        return {name: model.get_layer("logits").get_weights()[0].tolist() for name, model in models.items()}

    assert kpipe("run", frozen, *constant, "training.epochs=1")[0] == 0
    run = only_run(logs)
    first = saved()
    assert set(first) == {"model", "model_raw"}
    assert kpipe("run", "--resume", str(run), "training.epochs=2")[0] == 0
    second = saved()  # the raw weights are better now, and the averages are still those of the first epoch
    assert set(second) == {"model", "model_averaged"}
    assert second["model_averaged"] == first["model"] and second["model"] != first["model_raw"]
    assert kpipe("run", "--resume", str(run), "training.epochs=3")[0] == 0
    third = saved()
    assert third["model_raw"] == second["model"] and set(third) == {"model", "model_raw"}
    (run / "model_raw.keras").unlink()
    code, out, _ = kpipe("run", "--resume", str(run), "training.epochs=4")
    assert code == 0
    said = "the best weights so far, of step 18, are damaged or gone; the best is searched anew from here"
    assert said in " ".join(out.split())
    assert saved()["model"] == third["model"]


def test_weights_without_a_score_are_not_preferred_to_others():
    averaged = Best(1, 9, [0.5])
    for best, preferred in (
        ({}, "raw"),
        ({"raw": Best(1, 9)}, "raw"),
        ({"raw": Best(1, 9), "averaged": Best(1, 9)}, "averaged"),
        ({"raw": Best(1, 9), "averaged": averaged}, "averaged"),
        ({"raw": averaged, "averaged": Best(1, 9)}, "raw"),
        ({"raw": averaged, "averaged": averaged}, "raw"),
        ({"raw": averaged, "averaged": Best(1, 9, [0.6])}, "averaged"),
    ):
        assert RunState(best=best).preferred == preferred


@pytest.mark.slow
def test_the_weights_that_are_kept_are_named(kpipe, frozen, logs):
    """An average over nearly all steps is worse than the weights; without a validation it is preferred."""
    code, out, _ = kpipe("run", frozen, "training.epochs=1", "training.layers=[]", "data.split.validation=0")
    assert code == 0
    assert "adam, each batch in 2 pieces, clipping by global norm 1, averaged weights (decay 0.8)\n" in out
    assert "Kept are the weights of epoch 1, averaged." in out
    assert f"  model      {only_run(logs)}/model.keras\n  raw        {only_run(logs)}/model_raw.keras\n" in out
    assert json.loads((only_run(logs) / "summary.json").read_text())["weights"] == "averaged"
