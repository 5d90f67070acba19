"""`kpipe plan`: what it prints, what it writes for programs, and what it does where the data are not there."""

import json
import os
import re
import subprocess
import sys

import pytest

from kpipe import cli
from kpipe.catalog.networks import MODELS
from kpipe.config.loading import load_experiment
from kpipe.experiment import train
from kpipe.models import lenet5

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
    assert table["c1"] == ["16x16x6", "456", "115,200", "5", "1"]
    assert table["s4"] == ["2x2x16", "16", "4"]
    assert table["logits"] == ["2", "170", "168", "all"]
    assert "model      lenet5, 21,006 parameters\n" in out
    assert "image      16x16x3, 2 classes, 171,528 multiply-adds\n" in out
    assert "data       synthetic: 144 train, 16 validation, 40 test\n" in out
    assert "training   4 epochs of 9 steps = 36 steps, batch size 16, sgd, cross_entropy\n" in out
    assert re.search(r"memory +about [\d.]+ kB in float32: weights 84 kB, gradients 84 kB, optimizer", out)
    assert re.search(r"free +[\d.]+ GB of memory, minus a fifth: batch sizes up to [\d,]+ should fit\n", out)
    assert re.search(r"disk +at most [\d.]+ kB, a checkpoint has 168 kB; [\d.]+ kB when finished\n", out)
    assert "learning rate over the steps, in units of its peak of 0.1" in out
    assert not (tmp_path / "logs").exists()
    assert max(map(len, out.splitlines())) <= 160


def test_the_header_and_the_table_fit_a_narrow_terminal(plan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = plan("googlenet").splitlines()
    assert max(len(line) for line in lines if "memory" not in line) <= 80
    assert any(line.startswith(" inception_4d_3x3_reduce") for line in lines)


def test_the_plan_for_programs(plan, experiment):
    found = json.loads(plan(experiment, "--json"))
    assert (found["parameters"], found["trainable_parameters"], found["macs"]) == (21_006, 21_006, 171_528)
    layers = {layer.pop("name"): layer for layer in found["layers"]}
    assert layers["c3"] == {
        "type": "Conv2D",
        "output": [4, 4, 16],
        "parameters": 2_416,
        "macs": 16 * 2_400,
        "receptive_field": 14,
        "stride": 2,
        "memory": 4 * 256,
    }
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
    assert set(rates) == set(range(36))
    assert rates[0] == pytest.approx(0.1 / 9)
    assert max(rates.values()) == pytest.approx(0.1)
    assert rates[35] < 0.001
    assert training["memory"]["optimizer"] == 4 * (21_006 + 1)  # the momentum and the step
    assert found["experiment"] == load_experiment(experiment).experiment.identity()
    assert (found["name"], found["model"]) == ("tiny", "lenet5")


def test_the_disk_is_what_a_run_really_takes(plan, experiment):
    disk = json.loads(plan(experiment, "--json"))["training"]["disk"]
    run = train(load_experiment(experiment, ["training.epochs=1"]).experiment).path
    files = {path.name: path.stat().st_size for path in run.rglob("*") if path.suffix in (".npz", ".keras")}
    assert set(files) == {"weights.npz", "training.npz", "model.keras", "normalization.npz"}
    assert sum(files.values()) == pytest.approx(disk["finished"], rel=0.35)  # names and headers in so small a network


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (3_000_000, "3 MB of memory, minus a fifth: batch sizes up to "),
        (500_000, "500 kB of memory, minus a fifth: too little for this batch size, "),
        (300_000, "300 kB of memory, minus a fifth: not even one image fits"),
    ],
)
def test_it_says_what_fits_into_the_memory(plan, experiment, monkeypatch, free, said):
    monkeypatch.setattr("kpipe.commands.plan.free_memory", lambda: free)
    assert said in plan(experiment)
    monkeypatch.setattr("kpipe.commands.plan.free_memory", lambda: None)
    assert "free   " not in plan(experiment)
    assert json.loads(plan(experiment, "--json"))["training"]["largest_batch_size"] is None


def test_a_run_has_the_learning_rates_of_its_plan(plan, experiment):
    rates = dict(json.loads(plan(experiment, "--json"))["training"]["learning_rate"])
    run = train(load_experiment(experiment, ["training.log_every.steps=9"]).experiment).path
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {r["step"]: r["learning_rate"] for r in records if r["span"] == "steps"}
    assert {step: rates[step] for step in (9, 18, 27)} == pytest.approx({step: logged[step] for step in (9, 18, 27)})


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


def test_a_terminal_without_blocks_has_no_curve(experiment):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "kpipe", "plan", experiment]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "plan of tiny" in done.stdout
    assert done.stdout.isascii()


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
