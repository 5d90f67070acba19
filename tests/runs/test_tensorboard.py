"""What a finished run adds to TensorBoard, read as TensorBoard reads it."""

import json

import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util
from tiny_runs import only_run, train_once

from kpipe import cli

TINY = """\
data: {source: synthetic, image_size: 16, batch_size: 16, augment: [flip_horizontal], synthetic: {images: 200}}
model: {name: lenet5}
training: {epochs: 1, learning_rate: {schedule: constant}}
"""


def read(run):
    multiplexer = EventMultiplexer(size_guidance={"tensors": 0}).AddRunsFromDirectory(str(run), "run")
    return multiplexer.Reload()


def end_of(events):
    [name] = [name for name in events.Runs() if not name.endswith(("train", "validation"))]
    return events.GetAccumulator(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_once(tmp_path_factory.mktemp("tensorboard"), TINY)


def test_a_finished_run_shows_its_figures_curves_and_numbers(run):
    end, summary = end_of(read(run)), json.loads((run / "summary.json").read_text())
    tags = end.Tags()["tensors"]
    figures = {path.stem for path in (run / "figures").iterdir()}
    assert figures == {"curves", "confusion_matrix", "class_accuracy", "predictions", "mistakes", "filters"}
    assert figures < {*tags}
    assert {f"precision_recall/{name}/pr_curves" for name in (run / "classes.txt").read_text().split()} < {*tags}
    numbers = {
        tag: float(tensor_util.make_ndarray(end.Tensors(tag)[0].tensor_proto))
        for tag in ("accuracy/test", "loss/validation", "result/parameters")
    }
    assert numbers["accuracy/test"] == pytest.approx(summary["test"]["accuracy"])
    assert numbers["loss/validation"] == pytest.approx(summary["validation"]["loss"])
    assert numbers["result/parameters"] == summary["parameters"]


def test_its_settings_stand_among_the_hparams(run):
    end = end_of(read(run))
    content = end.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["network"].string_value == "lenet5" and settings["augment"].string_value == "flip_horizontal"
    assert settings["epochs"].number_value == 1 and settings["optimizer"].string_value == "adam"


@pytest.mark.slow
def test_it_can_be_switched_off(kpipe, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert kpipe("run", str(tmp_path / "tiny.yaml"), "logging.tensorboard=false")[0] == 0
    run = only_run(tmp_path / "logs")
    assert not list(run.rglob("events.out.*")) and not (run / "train").exists()
    assert (run / "metrics.jsonl").exists() and (run / "report.html").exists()


def test_training_and_validation_share_a_chart(run):
    layout = read(run).GetAccumulator("run/train").Tensors("custom_scalars__config__")
    assert b"^epoch_loss$" in tensor_util.make_ndarray(layout[0].tensor_proto).item()


@pytest.mark.slow
def test_an_extended_run_replaces_its_end(run):
    [before] = run.glob("events.out.*")
    assert cli.main(["run", "--resume", str(run), "training.epochs=2"]) == 0
    [after] = run.glob("events.out.*")
    assert after != before
    assert len(end_of(read(run)).Tensors("confusion_matrix")) == 1
