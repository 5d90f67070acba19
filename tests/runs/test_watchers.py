"""What a run says and does about its training while it lasts: stuck at guessing, statistics of the layers."""

import json
import math

import pytest
from tiny_runs import assert_same_run, layer_statistics_of, only_run

# A sigmoid's plateau: this network has learned nothing but the frequencies of the classes.
TINY = """\
seed: 3
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 2, images: 200}}
model: {name: mlp, depth: 5, width: 8, activation: sigmoid}
training:
  epochs: 6
  optimizer: {name: sgd}
  learning_rate: {schedule: constant, peak: 0.02}
  precision: float32
  stuck_after: {images: 32}
logging: {layer_statistics: {steps: 13}}
"""
STUCK = "stuck at guessing; the mean training loss of the steps 3 to 52 is 0.69"


@pytest.mark.slow
def test_a_run_that_is_stuck_warns_or_stops_and_is_resumed(kpipe, experiment, logs, tmp_path, monkeypatch):
    code, out, _ = kpipe("run", experiment)
    assert code == 0
    [warning] = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {STUCK}")
    assert warning.endswith("or the labels do not fit the images")
    whole = only_run(logs)

    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "stopped"))
    code, out, err = kpipe("run", experiment, "training.when_stuck=stop")
    run = only_run(tmp_path / "stopped")
    resume = ("run", "--resume", str(run))
    assert code == 4
    assert err.startswith(STUCK)
    assert err.endswith(f". What is trained is kept; kpipe run --resume {run} training.when_stuck=warn trains on\n")
    assert "warning: " not in out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("stuck", 52)
    assert kpipe(*resume)[::2] == (4, err)  # it is not decided anew
    code, out, _ = kpipe(*resume, "training.when_stuck=warn")
    assert (code, "warning: " in out) == (0, False)
    assert_same_run(run, whole)

    at_the_end = ("training.when_stuck=stop", "training.stuck_after.steps=4", "--new")
    assert kpipe("run", experiment, *at_the_end)[0] == 4  # the verdict falls on the last step

    statistics = layer_statistics_of(run)
    assert set(statistics) == {f"update_ratio/{layer}" for layer in ("fc1", "fc2", "fc3", "fc4", "fc5", "logits")}
    assert {step for rows in statistics.values() for step, _ in rows} == {13, 26, 39, 52}
    assert all(0 < value < 1 and math.isfinite(value) for rows in statistics.values() for _, value in rows)
