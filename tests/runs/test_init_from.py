"""Runs that start from trained weights."""

import json
import shutil
import signal

import keras
import numpy as np
import pytest
from tiny_runs import TINY, assert_same_run, only_run

FINE = (
    "training: {epochs: 2, precision: float32, log_every: {steps: 4}, reused_layers: {rate: 0.1, frozen: {epochs: 1}}}"
)
GIVEN = "data.normalize: expected {mean: "


@pytest.fixture
def source(finished):
    return finished


@pytest.fixture
def fine_tuning(tmp_path, source):
    """An experiment with three classes that starts from a copy of the run."""
    shutil.copytree(source, tmp_path / "started_from")
    text = TINY.replace("classes: 2", "classes: 3").replace(
        "{name: lenet5}", f"{{name: lenet5, init_from: '{tmp_path / 'started_from'}'}}"
    )
    (tmp_path / "tiny.yaml").write_text(text.rpartition("training:")[0] + FINE)
    return str(tmp_path / "tiny.yaml")


def test_a_run_says_what_it_reuses(kpipe, fine_tuning, logs, source, tmp_path):
    code, out, err = kpipe("run", fine_tuning, "training.max_minutes=1e-9")
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    assert (
        f"weights kpipe's lenet5 ({tmp_path / 'started_from'}): 4 layers reused, new: logits; normalization: {{mean: ["
        in words
    )
    assert "layers c1 to f6: frozen for 9 steps, then 0.1 x the learning rate; logits: trained" in words
    run = only_run(logs)
    noted = json.loads((run / "init_from.json").read_text())
    assert (noted["reused"], noted["new"]) == (["c1", "c3", "c5", "f6"], ["logits"])
    assert noted["normalization"].startswith("{mean: [")
    assert noted["left_out"] == {"logits": "its shape is 84x2, the network needs 84x3"}
    assert len(noted["sha256"]) == 64
    ours, theirs = (keras.models.load_model(folder / "model.keras") for folder in (run, source))
    for name in noted["reused"]:
        for weight, expected in zip(
            ours.get_layer(name).get_weights(), theirs.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(weight, expected)
    constants, expected = (np.load(folder / "normalization.npz") for folder in (run, source))
    np.testing.assert_allclose(constants["mean"], expected["mean"], rtol=1e-6)


@pytest.mark.slow
def test_a_killed_run_is_resumed_without_the_weights_it_began_with(start, fine_tuning, logs, tmp_path):
    whole = start("run", fine_tuning, KPIPE_LOGS=str(tmp_path / "whole"))
    assert whole.wait() == 0, whole.err
    often = ("run", fine_tuning, "training.checkpoint.every.steps=2")
    killed = start(*often, blow=("kpipe.training.checkpoints", "Checkpoints", "commit", 2, signal.SIGKILL))
    assert killed.wait() == -signal.SIGKILL
    shutil.rmtree(tmp_path / "started_from")
    resumed = start(*often)
    assert resumed.wait() == 0, resumed.err
    assert "4 layers reused, new: logits" in " ".join(resumed.out.split())
    assert_same_run(only_run(logs), only_run(tmp_path / "whole"))
    again = start(*often)  # a new run needs them
    assert again.wait() == 2
    assert "model.init_from: " in again.err and "got no such file or directory" in again.err


def test_a_plan_shows_layer_by_layer_what_is_reused(kpipe, fine_tuning, tmp_path):
    code, out, _ = kpipe("plan", fine_tuning)
    assert code == 0
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert rows["c1"].startswith("c1 reused from step 10 x 0.1 16x16x6")
    assert rows["logits"].startswith("logits new 3")
    words = " ".join(out.split())
    assert "weights kpipe's lenet5: 4 layers reused; new: logits; normalization: {mean: [" in words
    assert "left out 'logits', because its shape is 84x2, the network needs 84x3" in words
    code, out, _ = kpipe("plan", fine_tuning, "--json", "training.reused_layers.frozen=all")
    plan = json.loads(out)
    assert plan["init_from"]["reused"] == ["c1", "c3", "c5", "f6"]
    assert plan["trainable_parameters"] == 3 * 85
    assert {layer["name"]: layer["training"] for layer in plan["layers"]}["c1"] == {
        "reused": True, "rate": 1.0, "weight_decay": None, "from_step": None,
    }  # fmt: skip
    assert plan["init_from"]["normalization"].startswith("{mean: [")


@pytest.mark.slow
def test_a_plan_knows_what_will_be_downloaded(kpipe, fine_tuning, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    vgg16 = ("model.name=vgg16", "model.init_from=imagenet", "data.image_size=32", "training.reused_layers.frozen=all")
    code, out, err = kpipe("plan", fine_tuning, *vgg16)
    assert code == 0, err
    words = " ".join(out.split())
    said = "weights keras.applications' VGG16 (downloaded when the training begins): 13 layers reused; new: fc6, fc7, "
    assert f"{said}logits; normalization: caffe" in words  # of the smaller file, since fc6 fits 224 pixels alone
    code, out, _ = kpipe("plan", fine_tuning, *vgg16, "data.image_size=224")
    assert "15 layers reused; new: logits; " in " ".join(out.split())
    assert "left out 'logits', because its shape is 4096x1000, the network needs 4096x3" in " ".join(out.split())
    assert "conv1_1 reused frozen 32x32x64" in words
    code, out, _ = kpipe("plan", fine_tuning, *vgg16, "model.head=gap", "--json")
    found = json.loads(out)
    assert (code, found["init_from"]["sha256"], found["init_from"]["left_out"]) == (0, None, {})
    assert found["trainable_parameters"] == 3 * 513
    assert not (tmp_path / "keras").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.normalize=unit"],
            "was trained, got 'unit'. With another one, VGG-16 told ten kinds of photographs apart",
        ),
        (["data.normalize=standardize"], "was trained, got 'standardize'. "),
        (["model.init_from=nowhere"], "nowhere: expected weights, got no such file or directory."),
        (["model.variant=original"], "expected weights of the layer s2 of shape 6, got none. Give the"),
        (
            ["training.layers=[{match: 'c[79]', frozen: all}]"],
            "training.layers.0.match: expected a pattern that matches",
        ),
        (["data.channels=1"], "got images of 16x16x1; set data.channels=3"),
        (
            ["training.layers=[{match: logits, frozen: {steps: 9}}]"],
            "expected a layer that is trained from the first step",
        ),
        (["model.name=mlp"], "training.reused_layers: needs model.init_from, which says where weights come from"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(kpipe, fine_tuning, logs, overrides, message):
    code, out, err = kpipe("run", fine_tuning, *overrides)
    assert code == 2
    assert message in err
    assert "compiling" not in out
    assert not logs.exists() or not list(logs.rglob("config.yaml"))


def test_the_same_normalization_may_be_given(kpipe, fine_tuning, source):
    constants = np.load(source / "normalization.npz")
    given = [f"data.normalize.{name}={constants[name].tolist()}" for name in ("mean", "std")]
    assert kpipe("plan", fine_tuning, *given)[0] == 0


def test_weights_that_do_not_say_their_normalization_need_one(kpipe, fine_tuning, source, tmp_path):
    keras.models.load_model(source / "model.keras").save_weights(tmp_path / "own.weights.h5")
    options = ("plan", fine_tuning, f"model.init_from={tmp_path / 'own.weights.h5'}")
    code, _, err = kpipe(*options)
    assert code == 2
    assert (
        "own.weights.h5 was trained with, which the file does not say, got none. Weights of keras.applications" in err
    )
    assert kpipe(*options, "data.normalize=unit")[0] == 0


@pytest.mark.slow
def test_a_run_whose_constants_are_damaged_is_not_given_others(kpipe, unfinished_from_weights):
    run, file = unfinished_from_weights
    (run / "normalization.npz").write_bytes(b"")
    code, _, err = kpipe("run", file)
    assert code == 2
    assert "expected the constants with which this run began, got a file that is damaged or gone. Restore" in err


@pytest.fixture
def unfinished_from_weights(kpipe, fine_tuning, logs, monkeypatch):
    with monkeypatch.context() as patched:

        def refuse(*arguments, **options):
            raise OSError(28, "No space left on device", "model.keras")

        patched.setattr("kpipe.experiment.save_portable", refuse)
        assert kpipe("run", fine_tuning)[0] == 5
    return only_run(logs), fine_tuning
