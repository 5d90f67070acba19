"""What a finished run adds to TensorBoard, read as TensorBoard reads it."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util
from tiny_runs import only_run, train_once

from kpipe import cli, data
from kpipe.assembly import load_splits, make_augmentations
from kpipe.config.loading import load_experiment
from kpipe.figures.image_grids import tile_images
from kpipe.runs.recorder import Recorder
from kpipe.runs.tensorboard import make_layout

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
    code, out, _ = kpipe("run", str(tmp_path / "tiny.yaml"), "logging.tensorboard=false")
    assert code == 0 and "tensorboard --logdir" not in out
    run = only_run(tmp_path / "logs")
    assert not list(run.rglob("events.out.*")) and not (run / "train").exists()
    assert (run / "metrics.jsonl").exists() and (run / "report.html").exists()


def test_training_and_validation_share_a_chart(run):
    layout = read(run).GetAccumulator("run/train").Tensors("custom_scalars__config__")
    charts = tensor_util.make_ndarray(layout[0].tensor_proto).item()
    assert b"^epoch_loss$" in charts and b"^epoch_top5$" in charts
    assert b"^epoch_loss$" in make_layout(has_top5=False) and b"top5" not in make_layout(has_top5=False)


def images_of(events, name, tag):
    """Return an image of each step."""
    tensors = events.GetAccumulator(name).Tensors(tag)
    images = [tensor_util.make_ndarray(event.tensor_proto)[2] for event in tensors]
    return {event.step: tf.io.decode_png(image).numpy() for event, image in zip(tensors, images, strict=True)}


def test_the_first_batch_is_shown_as_the_network_sees_it(run):
    experiment = load_experiment(run / "config.yaml").experiment
    splits = load_splits(experiment.data)
    augment = make_augmentations(experiment.data, splits.image_shape)
    options = {"seed": experiment.seed, "augment": augment, "image_size": splits.image_size}
    images, _ = next(iter(data.make_pipeline(splits.train, 16, **options)))
    shown = images_of(read(run), "run/train", "training_batch")
    assert list(shown) == [0]
    np.testing.assert_array_equal(shown[0], tile_images(images.numpy()))


@pytest.mark.slow
def test_figures_of_epochs_are_there_once_each_when_a_run_is_resumed(kpipe, tmp_path, monkeypatch):
    monkeypatch.setattr("kpipe.evaluation.epoch_figures._MOST_TIME", math.inf)
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = ("run", str(tmp_path / "tiny.yaml"), "training.epochs=5", "logging.histograms.epochs=1")
    real = Recorder.end_epoch

    def die_in_the_third(recorder, logs):
        if recorder.epoch == 3:
            raise RuntimeError("killed")
        return real(recorder, logs)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(Recorder, "end_epoch", die_in_the_third)
        kpipe(*command)
    run = only_run(tmp_path / "logs")
    assert {*images_of(read(run), "run/validation", "confusion_matrix")} == {9, 18, 27}  # the last one is not saved
    assert kpipe(*command)[0] == 0
    events = read(run)
    for tag in ("confusion_matrix", "class_accuracy", "predictions", "mistakes", "filters"):
        assert [event.step for event in events.GetAccumulator("run/validation").Tensors(tag)] == [9, 18, 27, 36]
    train = events.GetAccumulator("run/train")
    for tag in ("weights/c1/kernel", "activations/c1"):
        assert [event.step for event in train.Tensors(tag)] == [9, 18, 27, 36, 45]
    assert len(train.Tensors("training_batch")) == 1


@pytest.mark.slow
def test_a_profile_has_the_operations_of_its_steps(kpipe, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    code, *_ = kpipe("run", str(tmp_path / "tiny.yaml"), "training.profile.steps=[3,5]", "logging.images=false")
    assert code == 0
    run = only_run(tmp_path / "logs")
    [profile] = run.glob("train/plugins/profile/*/*.xplane.pb")
    assert b"Conv2DBackpropFilter" in profile.read_bytes()
    assert "training_batch" not in read(run).GetAccumulator("run/train").Tags()["tensors"]


def test_a_profile_after_the_end_of_the_training_is_refused(kpipe, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    code, _, err = kpipe("run", str(tmp_path / "tiny.yaml"), "training.profile.steps=[10,20]")
    assert code == 2
    assert "training.profile.steps: expected steps of the training, which has 9, got [10, 20]" in err


@pytest.mark.slow
def test_an_extended_run_replaces_its_end(run):
    [before] = run.glob("events.out.*")
    assert cli.main(["run", "--resume", str(run), "training.epochs=2"]) == 0
    [after] = run.glob("events.out.*")
    assert after != before
    assert len(end_of(read(run)).Tensors("confusion_matrix")) == 1
