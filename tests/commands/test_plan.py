"""`kpipe plan`: what it prints, what it writes for programs, and what it does where the data are not there."""

import io
import json
import re
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from rich.console import Console

from kpipe import cli
from kpipe.catalog.networks import MODELS
from kpipe.catalog.training import SCHEDULES
from kpipe.commands.plan import make_plan
from kpipe.commands.plan_screen import show_plan
from kpipe.config.loading import load_experiment, load_network
from kpipe.console import Screen
from kpipe.experiment import train
from kpipe.models import lenet5
from kpipe.training.control import Cadence, Hooks
from kpipe.training.device import describe_device
from kpipe.training.schedules import make_schedule
from kpipe.training.trainer import Trainer

TINY = """\
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 2, images: 200}}
model: {name: lenet5}
training:
  epochs: 4
  optimizer: {name: sgd, momentum: 0.9}
  learning_rate: {schedule: cosine, peak: 0.1, warmup: {epochs: 1}}
  precision: float32
"""


@pytest.fixture
def plan(capfd):
    """Run `kpipe plan`; return standard output, or the error's text."""

    def plan(*arguments, code=0):
        assert cli.main(["plan", *arguments]) == code
        out, err = capfd.readouterr()
        assert (err == "") == (code == 0), err
        return err if code else out

    return plan


def test_an_experiment_on_the_screen(plan, experiment, tmp_path):
    out = plan(experiment)
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert table["layer"] == ["output", "stride", "padding", "params", "adds", "field", "stride"]
    assert table["c1"] == ["16x16x6", "5x5/1", "same", "456", "115,200", "5", "1"]
    assert table["s4"] == ["2x2x16", "2x2/2", "valid", "16", "4"]
    assert table["logits"] == ["2", "170", "168", "all"]
    assert "model      lenet5, 21,006 parameters\n" in out
    assert "image      16x16x3, 2 classes, 171,528 multiply-adds\n" in out
    assert "data       synthetic: 144 train, 16 validation, 40 test\n" in out
    assert "training   4 epochs of 9 steps = 36 steps, batch size 16, sgd, cross_entropy\n" in out
    assert "time       add --measure to time a few training steps\n" in out
    assert re.search(r"memory +about [\d.]+ kB in float32: weights 84 kB, gradients 84 kB, optimizer", out)
    assert re.search(r"free +[\d.]+ GB of memory, minus a fifth: batch sizes up to [\d,]+ should fit\n", out)
    assert re.search(r"disk +at most [\d.]+ kB, a checkpoint has 168 kB; [\d.]+ kB when finished\n", out)
    assert "learning rate over the steps, in units of its peak of 0.1" in out
    assert not (tmp_path / "logs").exists()
    assert max(map(len, out.splitlines())) <= 160


@pytest.fixture(scope="module")
def googlenet():
    return make_plan(load_network("googlenet", overrides=["model.auxiliary_heads=true"]).experiment, with_data=False)


def in_a_terminal(plan, width, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    show_plan(plan, Screen(Console(file=file, force_terminal=True, width=width, color_system=None)))
    file.flush()
    return [line.rstrip() for line in file.buffer.getvalue().decode(encoding).splitlines()]


def test_a_terminal_of_80_columns_has_the_whole_table(googlenet):
    lines = in_a_terminal(googlenet, 80)
    assert max(map(len, lines)) <= 80
    place = lines.index("pool2                      28x28x192   3x3/2    same                  27      8")
    assert lines[place + 1 : place + 9] == [
        "├ inception_3a_1x1          28x28x64   1x1/1    same 12.4 k 9.63 M    27      8",
        "├ inception_3a_3x3_reduce   28x28x96   1x1/1    same 18.5 k 14.5 M    27      8",
        "│ inception_3a_3x3         28x28x128   3x3/1    same  111 k 86.7 M    43      8",
        "├ inception_3a_5x5_reduce   28x28x16   1x1/1    same 3.09 k 2.41 M    27      8",
        "│ inception_3a_5x5          28x28x32   5x5/1    same 12.8 k   10 M    59      8",
        "├ inception_3a_pool        28x28x192   3x3/1    same                  43      8",
        "│ inception_3a_pool_1x1     28x28x32   1x1/1    same 6.18 k 4.82 M    43      8",
        "└ inception_3a             28x28x256                                  59      8",
    ]
    place = lines.index("after inception_4a:")
    assert [line.split()[:2] for line in lines[place + 1 : place + 3]] == [
        ["├", "auxiliary_4a_pool"],
        ["│", "auxiliary_4a_1x1"],
    ]
    said = "├ begins a branch after the last layer without a mark or with └, │ continues it, and └ joins the branches."
    assert said in " ".join(lines)


def test_a_narrower_terminal_leaves_columns_out_and_names_them(googlenet):
    lines = in_a_terminal(googlenet, 60)
    assert max(map(len, lines)) <= 60
    assert lines[2].split() == ["layer", "output", "stride", "padding", "params"]
    assert "Not shown: mult-adds, field and total stride. Take a wider terminal, or --json." in " ".join(lines)


def test_an_ascii_terminal_has_other_marks_and_no_curve(googlenet):
    curve = {"learning_rate": [[1, 0.1], [2, 0.0]]}
    lines = in_a_terminal(googlenet | {"training": googlenet["training"] | curve}, 80, "ascii")
    said = (
        "+ begins a branch after the last layer without a mark or with \\, : continues it, and \\ joins the branches."
    )
    assert said in " ".join(lines)
    assert any(line.startswith("\\ inception_5b  ") for line in lines)
    assert not any("learning rate" in line for line in lines)


def test_a_padding_layer_has_the_pixels_that_it_adds(plan):
    rows = {line.split()[0]: line.split() for line in plan("alexnet").splitlines() if line.strip()}
    assert rows["pad1"][2] == "0+3"
    assert rows["conv2"][2:5] == ["5x5/1", "same", "2"]  # the last: two groups


def test_the_plan_for_programs(plan, experiment):
    found = json.loads(plan(experiment, "--json"))
    assert (found["parameters"], found["trainable_parameters"], found["macs"]) == (21_006, 21_006, 171_528)
    layers = {layer.pop("name"): layer for layer in found["layers"]}
    assert layers["c3"] == {
        "type": "Conv2D",
        "inputs": ["s2"],
        "is_in_branch": False,
        "output": [4, 4, 16],
        "kernel": 5,
        "stride": 1,
        "padding": "valid",
        "groups": 1,
        "parameters": 2_416,
        "macs": 16 * 2_400,
        "receptive_field": 14,
        "total_stride": 2,
        "receptive_start": [-2, -2],
        "memory": 4 * 256,
        "training": {"reused": None, "rate": 1.0, "weight_decay": None, "from_step": 0},
    }
    assert layers["s2"]["training"] is None
    assert layers["f6"]["receptive_field"] is None
    assert found["data"] == {
        "source": "synthetic",
        "missing": None,
        "image": [16, 16, 3],
        "classes": 2,
        "images": {"train": 144, "validation": 16, "test": 40},
    }
    training = found["training"]
    assert [training[key] for key in ("batch_size", "steps_per_epoch", "epochs", "steps")] == [16, 9, 4, 36]
    assert (training["optimizer"], training["loss"], training["precision"]) == ("sgd", "cross_entropy", "float32")
    rates = dict(training["learning_rate"])
    assert set(rates) == set(range(1, 37))
    assert rates[1] == pytest.approx(0.1 / 9)
    assert max(rates.values()) == pytest.approx(0.1)
    assert rates[36] < 0.001
    assert training["memory"]["optimizer"] == 4 * (21_006 + 1)  # the momentum and the step
    assert found["experiment"] == load_experiment(experiment).experiment.identity()
    assert (found["name"], found["model"]) == ("tiny", "lenet5")


def test_averages_of_the_weights_take_memory(plan, experiment):
    training = json.loads(plan(experiment, "training.average.decay=0.9", "--json"))["training"]
    assert training["memory"]["optimizer"] == 4 * (2 * 21_006 + 1)


@pytest.mark.slow
def test_the_disk_is_what_a_run_really_takes(plan, experiment):
    disk = json.loads(plan(experiment, "--json"))["training"]["disk"]
    run = train(load_experiment(experiment, ["training.epochs=1"]).experiment).path
    files = {path.name: path.stat().st_size for path in run.rglob("*") if path.suffix in (".npz", ".keras")}
    assert set(files) == {"weights.npz", "training.npz", "model.keras", "normalization.npz"}
    assert sum(files.values()) == pytest.approx(disk["finished"], rel=0.35)  # names and headers in so small a network


def test_it_says_what_fits_into_the_memory(plan, experiment, monkeypatch):
    for free, said in (
        (3_000_000, "3 MB of memory, minus a fifth: batch sizes up to "),
        (500_000, "500 kB of memory, minus a fifth: too little for this batch size, "),
        (300_000, "300 kB of memory, minus a fifth: not even one image fits"),
    ):
        monkeypatch.setattr("kpipe.commands.plan.free_memory", lambda free=free: free)
        assert said in plan(experiment)
    monkeypatch.setattr("kpipe.commands.plan.free_memory", lambda: None)
    found = make_plan(load_experiment(experiment).experiment)
    assert found["training"]["largest_batch_size"] is None
    assert not any(line.startswith("  free ") for line in in_a_terminal(found, 80))


def test_a_few_steps_are_measured(plan, experiment, tmp_path):
    found = json.loads(plan(experiment, "--measure", "--json"))
    time = found["training"]["time"]
    assert time["device"] == describe_device()
    [stage] = time["stages"]
    assert 1 <= stage["measured_steps"] <= 20
    assert stage["images_per_second"] == pytest.approx(16 / stage["seconds_per_step"])
    assert stage["seconds_per_epoch"] == pytest.approx(9 * stage["seconds_per_step"])
    assert (time["seconds"], time["features"]) == (pytest.approx(36 * stage["seconds_per_step"]), None)
    assert not (tmp_path / "logs").exists()
    stage = {"from_step": 0, "measured_steps": 1, "seconds_per_step": 0.25, "images_per_second": 64.0}
    known = {"device": "CPU, 2 cores", "features": None}
    found["training"]["time"] = {**known, "stages": [stage | {"seconds_per_epoch": 90.0}], "seconds": 5400.0}
    said = " ".join(" ".join(in_a_terminal(found, 80)).split())
    assert "time 0.25 s a step (64 images/s), 1:30 an epoch, 1:30:00 for the whole training; measured on this " in said
    assert "machine (CPU, 2 cores) over 1 step, without reading images and validation memory" in said
    found["training"]["time"] = {**known, "stages": [stage | {"seconds_per_epoch": None}], "seconds": None}
    assert "time 0.25 s a step (64 images/s); measured on" in " ".join(" ".join(in_a_terminal(found, 80)).split())


def test_frozen_layers_are_measured_by_what_they_cost(plan, experiment):
    """Features once, then steps of the head alone, then steps of all layers."""
    frozen = "training.layers=[{match: 'c.*', frozen: {steps: 10}}]"
    found = json.loads(plan(experiment, frozen, "--measure", "--json"))
    assert found["training"]["features"] == {"number": 160, "size": 160 * 120 * 4}
    assert found["training"]["note"].startswith("the layers up to the head are frozen until step 10: their output is ")
    time = found["training"]["time"]
    assert [stage["from_step"] for stage in time["stages"]] == [0, 10]
    head, all_layers = (stage["seconds_per_step"] for stage in time["stages"])
    assert time["seconds"] == pytest.approx(time["features"]["seconds"] + 10 * head + 26 * all_layers)
    for stage, seconds, speed in zip(time["stages"], (0.01, 0.25), (1600.0, 64.0), strict=True):
        stage |= {"measured_steps": 2, "seconds_per_step": seconds, "images_per_second": speed}
    time |= {"features": {"images": 160, "seconds": 3.0}, "seconds": 9.6}
    said = " ".join(" ".join(in_a_terminal(found, 80)).split())
    assert "features the layers up to the head are frozen until step 10: their output is computed once" in said
    assert (
        "time 3.0 s for the features, from step 1 on 0.01 s a step (1,600 images/s), from step 11 on 0.25 s a step (64 "
        "images/s), 9.6 s for the whole training; measured on this machine" in said
    )
    assert "over 4 steps, without reading images and validation" in said


def test_what_does_not_fit_into_the_memory_is_not_measured(plan, experiment, monkeypatch):
    monkeypatch.setattr("kpipe.commands.plan.free_memory", lambda: 500_000)
    said = r"--measure: expected a training step for which 500 kB of free memory are enough, got one that needs about "
    said += r"\d+ kB\. Take a smaller data\.batch_size, or leave out --measure\n"
    assert re.fullmatch(said, plan(experiment, "--measure", code=5))


CURVES = {  # 36 steps of 16 images
    "constant": {"per_images": 256},
    "step": {"every": {"epochs": 1.5}, "factor": 0.5},
    "multistep": {"milestones": {"images": [200, 500]}},
    "exponential": {"warmup": {"steps": 4}},
    "inverse_time": {"every": {"steps": 1}, "decay_rate": 0.1, "power": 0.75},
    "polynomial": {"power": 0.5, "warmup": {"percent": 10}},
    "cosine": {"warmup": {"epochs": 1}, "final": 0.1},
    "cosine_restarts": {"first": {"epochs": 1}, "growth": 1.5, "factor": 0.5},
    "one_cycle": {},
    "plateau": {"warmup": {"images": 100}},
}


def approximately(rates):
    return pytest.approx(rates, rel=1e-6, abs=1e-8)  # an ulp of the peak


def move_a_weight(learning_rate, steps):
    """Train one weight, whose gradient is 1, by plain SGD; return how far each step moves it."""
    model = keras.Sequential([keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(learning_rate), lambda labels, outputs: outputs, jit_compile=False)
    [weight], moves = model.weights, []

    def note(step, metrics):
        moves.append(-weight.numpy().item())
        assert metrics["learning_rate"] == approximately(moves[-1])
        weight.assign([[0.0]])  # where float32 is densest

    weight.assign([[0.0]])
    ones = tf.data.Dataset.from_tensors((tf.ones((16, 1, 1, 1)), tf.ones((16, 1)))).repeat()
    options = {"cadence": Cadence(chunk=1), "hooks": Hooks(on_progress=note)}
    Trainer(model).fit(lambda first: ones, steps_per_epoch=steps, epochs=1, **options)
    return moves


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_curve_of_a_plan_is_what_moves_a_weight(name, experiment):
    rate = {"schedule": name, "peak": 0.1, **CURVES[name]}
    text = TINY.replace("{schedule: cosine, peak: 0.1, warmup: {epochs: 1}}", json.dumps(rate)).replace("lenet5", "mlp")
    Path(experiment).write_text(text)
    plan = make_plan(load_experiment(experiment).experiment)["training"]
    steps, curve = zip(*plan["learning_rate"], strict=True)
    assert steps == tuple(range(1, 37))
    del rate["schedule"]
    schedule = make_schedule(name, rate, total_steps=36, steps_per_epoch=9, batch_size=16)
    assert move_a_weight(schedule, 36) == approximately(curve)


def test_plateau_is_drawn_without_reductions(googlenet):
    training = {"schedule": "plateau", "learning_rate": [[1, 0.1], [2, 0.1]]}
    said = "plateau without reductions: the rate falls when training.monitor no longer improves."
    assert said in " ".join(in_a_terminal(googlenet | {"training": googlenet["training"] | training}, 80))


def test_one_of_a_kind_is_in_the_singular(plan, experiment):
    out = plan(experiment, "training.epochs=1", "data.batch_size=144", "training.learning_rate.warmup=null")
    assert "training   1 epoch of 1 step = 1 step, batch size 144, sgd, cross_entropy\n" in out
    assert "image      28x28x1, 1 class, " in plan("lenet5", "--classes", "1")


def test_a_network_by_its_name(plan):
    found = json.loads(plan("vgg16", "--image-size", "64", "--channels", "1", "--classes", "7", "--json"))
    assert found["data"] == {
        "source": None, "missing": None, "image": [64, 64, 1], "classes": 7, "images": None,
    }  # fmt: skip
    assert found["training"]["steps"] is found["experiment"] is None
    assert [layer["output"] for layer in found["layers"] if layer["name"] in ("pool5", "logits")] == [[2, 2, 512], [7]]


GIANTS = [
    (["vgg16", "data.batch_size=100000000"], 138_357_544, "too little for this batch size, "),
    (["lenet5", "--image-size", "1000000"], 119_997_120_030_986, "not even one image fits"),
    (["lenet5", "--image-size", "1000000000000"], 119_999_999_997_120_000_000_030_986, "not even one image fits"),
    (["mlp", "model.width=100000000"], 10_000_079_600_000_010, "not even one image fits"),
    (["go_policy", "--image-size", "100000"], 10_003_882_432, "not even one image fits"),
    (["vgg16", "--classes", "100000000"], 409_834_260_544, "not even one image fits"),
]


@pytest.mark.parametrize(("arguments", "parameters", "said"), GIANTS, ids=[row[0][-1] for row in GIANTS])
def test_what_does_not_fit_into_any_memory_has_a_plan(plan, monkeypatch, arguments, parameters, said):
    monkeypatch.setattr("kpipe.commands.plan.free_memory", lambda: 16_000_000_000)
    out = plan(*arguments)
    assert f" {parameters:,} parameters" in out
    assert re.search(rf"free +16 GB of memory, minus a fifth: {said}", out)
    assert lenet5((28, 28, 1), 10).count_params() == 61_706  # no weight of the plan is made now


def test_data_that_do_not_fit_into_the_memory_are_a_line(plan, experiment):
    options = ("data.source=digits", "data.image_size=1000000", "data.normalize=mean_image")
    out = plan(experiment, *options)
    assert re.search(r"data       digits: its 1,797 images of 1000000x1000000x1 take 1,797,000 GB of memory, ", out)
    assert "assumed    1000000x1000000x1 images, 10 classes" in out
    assert re.search(r"memory +about [\d,]+ GB in float32: weights 4[\d,]+ GB, ", out)


def test_a_warm_up_in_steps_fits_data_that_are_not_there(plan, experiment, tmp_path):
    steps = ("training.learning_rate.warmup.steps=1000", f"data.source=folder:{tmp_path}/nowhere")
    assert "training   4 epochs, batch size 16" in plan(experiment, *steps)


def test_a_network_by_its_name_is_the_paper_s(plan):
    out = plan("alexnet")
    assert "model      alexnet, 60,965,224 parameters\n" in out
    assert "image      224x224x3, 1,000 classes, 724,406,816 multiply-adds\n" in out
    assert "training   batch size 32, adam, cross_entropy\n" in out
    assert "learning rate" not in out


@pytest.mark.parametrize("name", ["mlp", "go_policy", "speech_cnn", "text_cnn", "lenet5"])
def test_every_kind_of_network_has_a_plan(plan, name):
    assert json.loads(plan(name, "--json"))["parameters"] > 60_000
    assert name in MODELS


def test_a_text_stays_one_pixel_wide(plan):
    found = json.loads(plan("text_cnn", "--image-size", "200", "--json"))
    assert found["data"]["image"] == [200, 1, 70]


def test_overrides_of_a_network(plan):
    out = plan("vgg16", "--image-size", "32", "--classes", "10", "model.head=gap", "model.batch_norm=true")
    assert "model      vgg16, 14,736,714 parameters (8,448 of them not trained)\n" in out


def test_data_that_are_not_there_are_a_line(plan, experiment, tmp_path):
    missing = f"folder:{tmp_path}/nowhere"
    out = plan(experiment, f"data.source={missing}", "--classes", "5")
    assert f"data       {missing}: expected a folder of images, got nothing there." in out
    assert "assumed    16x16x1 images, 5 classes; change it with --channels and --classes\n" in out
    assert "training   4 epochs, batch size 16, sgd, cross_entropy\n" in out


def test_a_set_that_is_not_prepared_is_not_downloaded(plan, experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    out = plan(experiment, "data.source=tfds:mnist")
    assert re.search(r"data       tfds:mnist: is not prepared in \S+; a run would download it\n", out)
    assert "note: the overrides leave these values of the file unused: data.synthetic" in out


def test_a_board_has_a_class_a_point(plan):
    assert json.loads(plan("go_policy", "--image-size", "9", "--json"))["data"]["classes"] == 81


def test_nothing_is_assumed_of_data_that_are_there(plan, experiment):
    message = "expected only with the name of a network or missing data, but synthetic is there. Override data.image"
    assert message in plan(experiment, "--classes", "5", code=2)


def test_an_experiment_is_meant_by_its_name(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").touch()
    message = "mine: expected an experiment file or the name of a network, did you mean 'experiments/mine.yaml'?\n"
    assert plan("mine", code=2) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "EXPERIMENT.yaml: expected a path, got nothing"),
        (["vgg17"], "vgg17: expected an experiment file or the name of a network, did you mean 'vgg11', 'vgg13', 'vg"),
        (["a\nb\x1b[2J"], r"a\nb\x1b[2J: expected an experiment file or the name of a network (known: lenet5"),
        (["vgg_16"], "vgg_16: expected an experiment file or the name of a network, did you mean 'vgg16'?"),
        (
            ["resnet50"],
            "resnet50: expected an experiment file or the name of a network (known: lenet5, alexnet, zf",
        ),
        (["vgg16", "--batch-size", "3"], "Error: No such option '--batch-size'. Write data.batch_size=3\n"),
        (["vgg16.yml"], "vgg16.yml: expected an experiment file, found nothing there"),
        (["vgg16", "model.heat=gap"], "command line: model.heat: unknown key, did you mean 'head'?"),
        (["vgg16", "--image-size", "8"], "command line: data.image_size: vgg16 needs at least 17 pixels, got 8"),
        (["vgg16", "--classes", "0"], "Invalid value for '--classes': 0 is not in the range x>=1."),
        (
            ["go_policy", "--classes", "10"],
            "expected one class for each of the 19x19 = 361 points of the board, got 10",
        ),
        (["vgg16", "data.image_size=64"], "vgg16: expected no data.* but data.batch_size with the name of a network"),
        (["text_cnn", "--image-size", "99"], "data.image_size: text_cnn needs at least 123 pixels, got 99"),
    ],
)
def test_mistakes(plan, arguments, message):
    assert message in plan(*arguments, code=2)
