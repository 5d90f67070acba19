"""`kpipe bench`: what is measured, what it says of it, and that nothing is kept."""

import io
import json
import re
import time

import pytest
import tensorflow as tf
from image_sets import write_image
from rich.console import Console

import kpipe as kpipe_api
from kpipe.commands import bench as benching
from kpipe.commands.bench_screen import show_bench
from kpipe.config.loading import load_experiment
from kpipe.console import Screen, quiet_console
from kpipe.training.device import describe_device

TINY = """\
data: {source: synthetic, image_size: 8, batch_size: 16, synthetic: {classes: 2, images: 200}}
model: {name: mlp, depth: 1, width: 8}
training: {epochs: 1, precision: float32}
"""


@pytest.fixture(scope="module", autouse=True)
def short_turns():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benching, "_TURNS", {"rounds": 2, "turn_seconds": 0.05})
        patched.setattr(benching, "_MATRIX_SIDES", {"CPU": 128, "GPU": 128})
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What Python gets of the tiny experiment, without a change."""
    path = tmp_path_factory.mktemp("bench") / "tiny.yaml"
    path.write_text(TINY)
    return kpipe_api.bench(load_experiment(path), screen=Screen(quiet_console()))


def bench(experiment, *overrides):
    return kpipe_api.bench(load_experiment(experiment, overrides), screen=Screen(quiet_console()))


def on_screen(measured, width=80):
    file = io.StringIO()
    show_bench(measured, Screen(Console(file=file, force_terminal=True, width=width, color_system=None)))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_the_numbers_agree_with_each_other(measured):
    for name in ("input", "step", "together"):
        row = measured[name]
        assert row["images_per_second"] * row["seconds_per_step"] == pytest.approx(16)
        assert min(row["turns"]) <= row["seconds_per_step"] <= max(row["turns"])
        assert len(row["turns"]) == 2
        assert row["steps"] >= 2
    assert 0 <= measured["step"]["waiting"] <= 1
    assert 0 <= measured["together"]["waiting"] <= 1
    assert 0 <= measured["input_fraction"] < 1
    flops = measured["flops"]
    # 192 values x 8 units, forward and the gradient of the weights; 8 x 2, and that of their input
    assert flops["per_step"] == 16 * 2 * (2 * 192 * 8 + 3 * 8 * 2)
    assert flops["per_second"] == pytest.approx(flops["per_step"] / measured["step"]["seconds_per_step"])
    assert flops["fraction"] == pytest.approx(flops["per_second"] / flops["matrix_rate"])
    assert measured["memory"]["process"] > 10**8


def test_it_says_what_was_measured(measured):
    said = {key: measured[key] for key in ("name", "model", "source", "images", "image", "batch_size", "precision")}
    assert said == {
        "name": "tiny",
        "model": "mlp",
        "source": "synthetic",
        "images": "in memory",
        "image": [8, 8, 3],
        "batch_size": 16,
        "precision": "float32",
    }
    assert measured["device"] == describe_device()
    assert measured["limit"] in ("input", "step")
    assert json.loads(json.dumps(measured)) == measured
    assert {*measured} == {
        *said, "device", "input", "step", "together", "input_fraction", "memory", "flops", "limit", "advice", "notes"
    }  # fmt: skip


def test_a_terminal_of_80_columns_has_the_whole_table(measured):
    rows = {"steps": 300, "turns": [0.01, 0.02, 0.03], "images_per_second": 1600.0}
    known = {
        "input": rows | {"seconds_per_step": 0.0001234, "images_per_second": 129660.0},
        "step": rows | {"seconds_per_step": 0.0123, "waiting": 0.001},
        "together": rows | {"seconds_per_step": 0.0213, "waiting": 0.256},
        "memory": {"process": 812_000_000, "gpu": 1_234_000_000},
        "flops": {
            "per_step": 72_400_000, "per_second": 5.886e9, "matrix_rate": 106e9, "matrix_side": 2048, "fraction": 0.0555
        },
        "device": "CPU, 2 cores",
        "notes": ["something"],
        "advice": "The step is the limit: it takes 100 % of the time.",
    }  # fmt: skip
    lines = on_screen(measured | known)
    assert max(map(len, lines)) <= 80
    assert lines[1:] == [
        "bench of tiny on this machine: CPU, 2 cores, float32, batch size 16",
        "                 images/s   ms a step   waiting   steps measured",
        "─────────────────────────────────────────────────────────────────",
        " input alone      130,000       0.123                        300",
        " step alone         1,600        12.3       0 %              300",
        " both together      1,600        21.3      26 %              300",
        "",
        "  model      mlp, images of 8x8x3",
        "  data       synthetic, in memory",
        "  memory     at most 812 MB of this process and 1.23 GB of the GPU",
        "  computing  72.4 MFLOP a step, 5.89 GFLOP/s alone: 6 % of the 106 GFLOP/s of a",
        "             product of two 2048x2048 matrices",
        "  measured   medians of 3 rounds; waiting is the time from asking for a batch to",
        "             getting it, as a fraction of the whole",
        "  note: something",
        "The step is the limit: it takes 100 % of the time.",
    ]
    unknown = {"memory": {"process": None, "gpu": None}}
    assert not any("memory  " in line for line in on_screen(measured | known | unknown))


@pytest.mark.slow
def test_a_slow_source_is_the_limit(experiment, monkeypatch):
    def slowly(images, labels):
        slept = tf.numpy_function(lambda: time.sleep(0.05) or 0, [], tf.int64)
        with tf.control_dependencies([slept]):
            return tf.identity(images), labels

    make_pipeline = kpipe_api.data.make_pipeline
    monkeypatch.setattr("kpipe.assembly.data.make_pipeline", lambda *a, **k: make_pipeline(*a, **k).map(slowly))
    found = bench(experiment)
    assert found["limit"] == "input"
    assert found["input"]["seconds_per_step"] >= 0.05
    assert found["together"]["waiting"] > 0.5
    assert found["input_fraction"] > 0.5
    assert re.fullmatch(
        r"The input is the limit: putting batches together takes \d\d % of the time; try a larger data\.batch_size\.",
        found["advice"],
    )


@pytest.mark.slow
def test_a_large_network_is_the_limit(experiment):
    found = bench(experiment, "model.width=2048", "model.depth=3", "data.batch_size=64")
    assert found["limit"] == "step"
    assert found["together"]["waiting"] < 0.5
    assert found["advice"].startswith("The step is the limit: it takes ")


@pytest.mark.slow
def test_the_verb_prints_a_table_and_writes_nothing(kpipe, experiment, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = kpipe("bench", experiment, "data.batch_size=20")
    assert (code, err) == (0, "")
    assert f"bench of tiny on this machine: {describe_device()}, float32, batch size 20\n" in out
    lines = out.splitlines()
    for name in ("input alone", "step alone", "both together"):
        assert re.search(rf"^ {name} +[\d,.]+ +[\d.]+ +", out, re.MULTILINE)
    assert lines[-1].startswith(("The input is the limit: ", "The step is the limit: "))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def as_if_measured(monkeypatch):
    """Pretend that input, step and both together take so many seconds; the step reaches a tenth of the matrix rate."""

    def pretend(input, step, together, fraction=0.1, turns=(1.0, 1.2)):
        speeds = {"input": input, "step": step, "together": together}
        rows = {name: {"seconds_per_step": seconds, "turns": turns} for name, seconds in speeds.items()}
        rows |= {"input_fraction": 1 - step / together, "flops": {"fraction": fraction}}
        monkeypatch.setattr(benching, "_measure", lambda *arguments: rows)

    return pretend


def test_json_is_for_programs(kpipe, experiment, monkeypatch, as_if_measured):
    monkeypatch.setattr(benching, "resolve_precision", lambda name: "float32")
    as_if_measured(1, 2, 2.5)
    code, out, err = kpipe("bench", experiment, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["advice"] == (
        "The step is the limit: it takes 80 % of the time and reaches 10 % of the device's matrix rate; try a larger "
        "data.batch_size; the input (putting batches together) adds the other 20 %."
    )


@pytest.mark.parametrize(
    ("overrides", "doing"),
    [
        (["data.augment=[translate,flip_horizontal]"], "augmenting (translate, flip_horizontal)"),
        ([], "putting batches together"),
    ],
)
def test_what_the_input_does_in_memory(experiment, as_if_measured, overrides, doing):
    as_if_measured(9, 1, 10)
    found = bench(experiment, *overrides)
    remedy = "fewer or cheaper entries of data.augment" if overrides else "a larger data.batch_size"
    assert found["advice"] == f"The input is the limit: {doing} takes 90 % of the time; try {remedy}."


@pytest.mark.parametrize(
    ("overrides", "free", "doing", "remedy"),
    [
        (["data.cache=none"], 10**9, "decoding JPEG files", "data.cache=memory (960 bytes)"),
        (["data.cache=none"], 1, "decoding JPEG files", "data.cache=disk"),
        (
            ["data.augment=[random_resized_crop]", "data.image_size=14"],
            10**9,
            "decoding JPEG files and augmenting (random_resized_crop)",
            "data.cache=disk with data.stored_size=16",
        ),
        (["data.cache=disk"], 10**9, "reading the decoded images from the disk", "data.cache=memory (960 bytes)"),
        (["data.cache=disk"], 1, "reading the decoded images from the disk", "a faster disk for $KPIPE_CACHE"),
    ],
)
def test_what_the_input_does_with_files(
    experiment, tmp_path, monkeypatch, as_if_measured, overrides, free, doing, remedy
):
    monkeypatch.setenv("KPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(benching, "free_memory", lambda: free)
    for name in ("a/1.jpg", "a/2.jpeg", "a/3.JPG", "a/4.jpg", "b/1.jpg", "b/2.jpg", "b/3.png", "b/4.jpg"):
        write_image(tmp_path / "photographs" / name)
    as_if_measured(9, 1, 10)
    found = bench(experiment, f"data.source=folder:{tmp_path}/photographs", "data.batch_size=2", *overrides)
    assert found["advice"] == f"The input is the limit: {doing} takes 90 % of the time; try {remedy}."


@pytest.mark.parametrize(
    ("overrides", "fraction", "remedy"),
    [
        (["training.precision=float32"], 0.5, "training.precision=mixed_bfloat16"),
        (["training.precision=mixed_bfloat16", "training.accumulate=2"], 0.5, "a smaller training.accumulate"),
        (["training.precision=mixed_bfloat16"], 0.2, "a larger data.batch_size"),
        (
            ["training.precision=mixed_bfloat16"],
            0.5,
            "a smaller network or data.image_size, or a faster device",
        ),
    ],
)
def test_what_may_speed_a_step_up(experiment, monkeypatch, as_if_measured, overrides, fraction, remedy):
    monkeypatch.setattr(benching, "resolve_precision", lambda name: "mixed_bfloat16")
    as_if_measured(1, 9, 9.5, fraction)
    assert bench(experiment, *overrides)["advice"] == (
        f"The step is the limit: it takes 95 % of the time and reaches {100 * fraction:.0f} % of the device's matrix "
        f"rate; try {remedy}."
    )


def test_one_device_is_measured_where_several_train(experiment, as_if_measured):
    notes = bench(experiment, "training.distribution=mirrored")["notes"]
    assert "one device was measured, with the whole batch; training.distribution=mirrored divides it" in notes


def test_a_schedule_of_many_cycles_is_measured(experiment, as_if_measured):
    """bench trains for more epochs than any training: the schedule is as long."""
    rate = ("schedule=cosine_restarts", "first.epochs=1", "growth=1")
    assert bench(experiment, *(f"training.learning_rate.{option}" for option in rate))["limit"]


def test_rounds_that_differ_are_said(experiment, as_if_measured):
    as_if_measured(1, 2, 2.5)
    assert not [note for note in bench(experiment)["notes"] if "differ" in note]
    as_if_measured(1, 2, 2.5, turns=(1.0, 2.5))
    message = "the rounds differ by up to 2.5 times; if something else has used the machine, measure again"
    assert message in bench(experiment)["notes"]


def test_a_precision_that_fails_is_not_measured(experiment, monkeypatch, as_if_measured):
    """The errors of the network in its precision, and of the one in float32."""
    errors = iter([0.5, 0.0])
    monkeypatch.setattr("kpipe.runs.machine.measure_error", lambda model: next(errors))
    monkeypatch.setattr("kpipe.runs.machine.resolve_precision", lambda name: "mixed_bfloat16")
    found = bench(experiment, "training.precision=auto")
    assert found["precision"] == "float32"
    assert any("the first logits are some that differ by 50 %" in note for note in found["notes"])


@pytest.mark.slow
def test_features_of_frozen_layers_are_read_as_in_a_training(experiment):
    frozen = "training.layers=[{match: fc1, frozen: {steps: 5}}]"
    found = bench(experiment, frozen)
    assert any(note.startswith("the layers up to the head are frozen until step 5: ") for note in found["notes"])
    assert found["flops"]["per_step"] == 16 * 2 * 2 * 8 * 2  # the head alone


def test_mistakes_are_messages(kpipe, experiment, tmp_path):
    missing = f"folder:{tmp_path}/nowhere"
    for overrides, code, message in (
        (["training.epoch=3"], 2, "unknown key"),
        ([f"data.source={missing}"], 3, f"{missing}: expected a folder of images, got nothing there."),
        (["data.batch_size=500"], 2, "data.batch_size: expected at most the 144 images of the training split, got 500"),
    ):
        found, _, err = kpipe("bench", experiment, *overrides)
        assert (found, message in err) == (code, True), err
    with pytest.raises(ValueError, match="^experiment: expected what kpipe.load_experiment returns, got "):
        kpipe_api.bench(experiment)
