"""Whole runs through the command line: what stands on the screen, what is left on disk, what bad input gets."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from sklearn.metrics import top_k_accuracy_score
from tiny_runs import only_run, records_of, refuse_to_write

from kpipe.assembly import prepare
from kpipe.config.loading import load_experiment
from kpipe.data.arrays import ArraySplit
from kpipe.data.splits import Splits
from kpipe.errors import ConfigError, Interrupted
from kpipe.runs.machine import resolve_auto
from kpipe.training.distribution import make_strategy


def test_a_run_from_file_to_model(kpipe, experiment, logs, figures_are_drawn):
    code, out, err = kpipe("run", experiment)
    assert (code, err) == (0, "")
    assert "synthetic: 144 train, 16 validation, 40 test; 2 classes; 16x16x" in out
    metrics, time = r"loss \d\.\d{4}  acc \d\.\d{4}", r"[\d.:]+( s)?"
    left = rf"epoch {time} left  run {time} left"
    assert re.search(rf"^step 4  epoch 1/2  {metrics}  lr 0.000\d+  [\d,]+ images/s  {left}$", out, re.M)
    assert re.search(rf"^epoch 2/2  {metrics}  val_loss .*  val_acc .*  lr \S+  time {time}  left 0.0 s", out, re.M)
    run = only_run(logs)
    assert "\ncompiling the training step ...\n" in out
    assert "\nevaluating the test split ...\ndrawing figures ...\n" in out
    assert out.endswith(
        f"  model      {run}/model.keras\n"
        f"  figures    {run}/figures\n"
        f"  report     {run}/report.html\n"
        f"  curves     tensorboard --logdir {logs}\n"
        f"  longer     kpipe run {run}/config.yaml training.epochs=4\n"
        f"  search     kpipe search {run}/config.yaml\n"
    )
    expected = {
        "config.yaml",
        "console.log",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "model.keras",
        "normalization.npz",
    }
    expected |= {"classes.txt", "data.json"}
    expected |= {"train", "validation", "checkpoints", "figures", "report.html"}
    assert expected == {path.name for path in run.iterdir() if not path.name.startswith("events.out.")}
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step-00000018"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["epochs"], summary["steps"], summary["test"]["images"]) == (2, 18, 40)
    assert summary["test"]["accuracy"] > 0.7
    assert json.loads((run / "environment.json").read_text())["precision"] == "float32"


def test_the_screen_is_kept_in_the_run(kpipe, experiment, logs):
    """Line by line with the time, but for the frame of the table; and the error that ends the run."""
    code, out, err = kpipe("run", experiment, "training.epochs=1", "training.learning_rate.peak=1e30")
    assert code == 4
    kept = (only_run(logs) / "console.log").read_text().splitlines()
    clock = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert all(re.match(clock, line) for line in kept)
    assert [re.sub(f"^{clock}", "", line) for line in kept] == [*out.splitlines(), *err.splitlines()]


VALIDATION = (("validation", "epoch", "epoch_loss"),)


@pytest.mark.slow
def test_metrics_and_tensorboard_tell_the_same(kpipe, experiment, logs):
    kpipe("run", experiment, "data.synthetic.classes=6")
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
        assert {"epoch_loss", "epoch_accuracy", "epoch_top5"} <= tags
        if split == "train":
            assert {"loss", "accuracy", "top5", "learning_rate", "images_per_second", "config"} <= tags
            assert any(e.graph_def for e in events)


def test_the_model_eats_raw_images_and_agrees_with_the_summary(kpipe, experiment, logs):
    from kpipe.data.loading import load_dataset

    code, out, _ = kpipe("run", experiment, "data.synthetic.classes=8")
    run = only_run(logs)
    test = load_dataset("synthetic", image_size=16, classes=8, images=200).test
    logits = keras.models.load_model(run / "model.keras").predict(test.images.astype("float32"), verbose=0)
    assert logits.dtype == np.float32
    summary = json.loads((run / "summary.json").read_text())
    assert float((logits.argmax(-1) == test.labels).mean()) == pytest.approx(summary["test"]["accuracy"])
    top5 = top_k_accuracy_score(test.labels, logits, k=5)
    assert top5 == pytest.approx(summary["test"]["top5"])
    assert top5 == pytest.approx(records_of(run)[-1]["top5"])
    assert f"{100 * top5:.2f} %" in out
    shown = r"^epoch 2/2 .* acc \d\.\d{4}  top5 \d\.\d{4}  .* val_acc \d\.\d{4}  val_top5 \d\.\d{4}  lr"
    assert re.search(shown, out, re.M)
    assert set(summary["train"]) == {"loss", "accuracy", "top5", "images"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_every_precision_and_normalization(kpipe, experiment, logs):
    for normalize, precision in (("none", "float32"), ("unit", "mixed_bfloat16")):
        options = (f"data.normalize={normalize}", f"training.precision={precision}", "training.epochs=1")
        code, _, err = kpipe("run", experiment, *options)
        assert (code, err) == (0, "")
    constants = ("data.normalize.mean=[120.0]", "data.normalize.std=[60.0]", "training.epochs=1")
    code, _, _ = kpipe("run", experiment, *constants)
    assert code == 0


NORMALIZATIONS = ["none", "unit", "mean", "mean_image", "standardize", "pca_whiten", "zca", "imagenet", "caffe", "pca"]


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_network_is_built_and_planned_with_every_normalization(kpipe, experiment, normalize):
    overrides = [f"data.normalize={normalize}"]
    if normalize == "pca":
        overrides = ["data.normalize.pca.components=20", "model.name=mlp"]
    assert kpipe("plan", experiment, *overrides)[0] == 0
    loaded = load_experiment(experiment, overrides).experiment
    strategy = make_strategy()
    loaded = resolve_auto(loaded)
    measured, neutral = prepare(loaded, strategy), prepare(loaded, strategy, only_shapes=True).model
    assert [w.shape for w in measured.model.weights] == [w.shape for w in neutral.weights]

    images = measured.splits.train.images
    first = next(layer for layer in measured.model.layers[1:] if layer.name in ("standardize", "mean_image", "whiten"))
    seen = np.asarray(keras.Model(measured.model.input, first.output)(images)).reshape(len(images), -1)
    if normalize in ("mean", "standardize"):
        assert seen.mean() == pytest.approx(0, abs=1e-3)
        assert (seen.std() == pytest.approx(1, rel=1e-2)) == (normalize == "standardize")
    if normalize in ("mean_image", "pca_whiten", "zca", "pca"):
        np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-2)


def test_a_disk_that_becomes_read_only_ends_a_run_with_a_message(kpipe, experiment, logs, monkeypatch):
    """The folder's lock cannot be taken either, when the run is left."""

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", "model.keras")

    def become_read_only(*arguments, **options):
        monkeypatch.setattr("kpipe.runs.directory.FileLock", refuse)
        refuse()

    monkeypatch.setattr("kpipe.experiment.save_portable", become_read_only)
    code, _, err = kpipe("run", experiment)
    assert (code, err.count("\n")) == (5, 1)
    assert err.startswith("model.keras: cannot be written (Read-only file system). What")
    assert err.endswith(" and give the same command again.\n")


@pytest.mark.slow
def test_the_constants_of_a_run_are_kept_in_it(kpipe, experiment, logs, monkeypatch):
    arguments = ("run", experiment, "data.normalize=pca_whiten", "training.epochs=3", "logs=" + str(logs))
    with monkeypatch.context() as patched:
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        assert kpipe(*arguments)[0] == 5
    run = only_run(logs)
    file = run / "normalization.npz"
    before = file.read_bytes()

    def never(*arguments):
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        patched.setattr("kpipe.data.whitening", never)
        assert kpipe(*arguments)[0] == 5
    file.write_bytes(before[:100])
    code, out, _ = kpipe(*arguments)
    assert (code, "resumed" in out) == (0, True)
    assert file.read_bytes() == before
    assert not list(run.glob("*.part*"))
    with np.load(file, allow_pickle=False) as kept:
        assert kept["matrix"].shape == (768, 768)


@pytest.mark.parametrize("normalize", ["imagenet", "zca"])
def test_a_normalization_that_the_images_do_not_allow(experiment, normalize):
    loaded = load_experiment(experiment, [f"data.normalize={normalize}"]).experiment
    train = ArraySplit(np.zeros((32, 65, 65, 1), np.uint8), np.zeros(32, np.int32))
    splits = Splits(train, None, None, ("a", "b"))
    expected = {
        "imagenet": "data.normalize: expected images of 3 channels for imagenet, got 1",
        "zca": "data.normalize: expected images of at most 4,096 values to whiten, got 65x65x1 = 4,225",
    }
    for only_shapes in (True, False):
        with pytest.raises(ConfigError, match=f"^{re.escape(expected[normalize])}"):
            prepare(loaded, make_strategy(), splits=splits, only_shapes=only_shapes)


@pytest.mark.slow
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


def test_without_held_out_splits_the_last_weights_are_kept(kpipe, experiment, logs):
    code, out, _ = kpipe("run", experiment, "data.split.validation=0", "data.split.test=0")
    assert code == 0
    assert "best" not in out
    summary = json.loads((only_run(logs) / "summary.json").read_text())
    assert summary["best_epoch"] == 2
    assert "test" not in summary


def test_nothing_is_left_of_a_run_that_did_not_start(kpipe, experiment, logs):
    code, _, err = kpipe("run", experiment, "data.batch_size=5000")
    assert code == 2
    assert "data.batch_size: expected at most the 144 images of the training split, got 5,000" in err
    assert [path.name for path in (logs / "tiny").iterdir() if path.is_dir()] == []


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


@pytest.mark.slow
def test_a_repeated_run_keeps_what_was_resolved_unless_it_is_told(kpipe, experiment, logs):
    kpipe("run", experiment, "training.precision=auto")
    config = yaml.safe_load((only_run(logs) / "config.yaml").read_text())
    config["chosen"]["precision"] = "mixed_bfloat16"
    config["name"] = "1e3"
    repeated = logs / "again.yaml"
    repeated.write_text(yaml.safe_dump(config))
    assert "mixed_bfloat16" in kpipe("run", str(repeated), "name=again")[1]
    assert "float32" in kpipe("run", str(repeated), "name=told", "training.precision=float32")[1]


@pytest.mark.slow
def test_a_name_that_looks_like_a_number_survives(kpipe, experiment, logs):
    assert kpipe("run", experiment, "name='1e3'", "training.epochs=1")[0] == 0
    assert kpipe("run", str(only_run(logs, "1e3") / "config.yaml"), "--print-config")[0] == 0


def test_early_stopping_and_plateau_need_a_validation_split(kpipe, tmp_path):
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
    assert "training.early_stopping: needs a validation split, this data has none" in err
    plateau = ("training.early_stopping=null", "training.learning_rate.schedule=plateau")
    code, _, err = kpipe("run", str(tmp_path / "few.yaml"), *plateau)
    assert code == 2
    assert "training.learning_rate.schedule: plateau needs a validation split, this data has none" in err


@pytest.mark.slow
def test_a_doctor_who_finds_something(kpipe, monkeypatch):
    monkeypatch.setattr("kpipe.commands.doctor._LEAST_ACCURACY", 1.1)
    code, _, err = kpipe("doctor")
    assert code == 5
    assert "This installation computes wrongly: install kpipe with constraints.txt into a new environment." in err


def test_the_check_can_be_interrupted(kpipe, monkeypatch):
    def interrupted(*arguments, **options):
        raise Interrupted("the training is saved", 130)

    monkeypatch.setattr("kpipe.commands.doctor.train", interrupted)
    assert kpipe("doctor")[0::2] == (130, "interrupted; nothing is left of the check\n")


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


@pytest.mark.slow
def test_a_dropped_option_is_said(kpipe, experiment):
    code, out, _ = kpipe("run", experiment, "data.source=digits", "--print-config")
    assert out.startswith("# note: the overrides leave these values of the file unused: data.synthetic\n")
    code, out, _ = kpipe("run", experiment, "data.source=digits", "training.epochs=1")
    assert "note: the overrides leave these values of the file unused: data.synthetic" in out


def test_doctor(kpipe, logs):
    code, out, err = kpipe("doctor")
    assert (code, err) == (0, "")
    assert re.search(
        r"trained on the CPU, saved and evaluated in \d+ s: accuracy 1.00, [\d,]+ images/s. All is well.", out
    )
    assert re.search(
        r"precision +auto is (float32|mixed_bfloat16): this CPU (multiplies|does not multiply) bfloat16", out
    )
    assert tf.__version__ in out
    assert not logs.exists()


def test_an_unforeseen_error_replays_what_libraries_said(tmp_path):
    code = (
        "import os\nfrom kpipe.streams import hold_back_libraries\n"
        "with hold_back_libraries():\n    os.write(2, b'from a library')\n    {}\n"
    )

    def stderr(last):
        done = subprocess.run([sys.executable, "-c", code.format(last)], capture_output=True, text=True)
        return done.stderr

    assert stderr("pass") == ""
    assert "from a library" in stderr("raise RuntimeError('boom')")
    assert "RuntimeError: boom" in stderr("raise RuntimeError('boom')")
    assert "from a library" not in stderr("from kpipe.errors import DataError; raise DataError('no images')")


@pytest.mark.slow
def test_a_figure_that_cannot_be_drawn_costs_no_run(kpipe, experiment, logs, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("no such font")

    monkeypatch.setattr("kpipe.evaluation.report.draw_confusion", refuse)
    code, out, err = kpipe("run", experiment, "training.epochs=1")
    assert (code, err) == (0, "")
    assert "\nnote: figures/confusion_matrix.png could not be drawn: no such font\n" in out
    run = only_run(logs)
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    others = {"curves", "class_accuracy", "predictions", "mistakes", "filters"}
    assert {path.stem for path in (run / "figures").iterdir()} == others


@pytest.mark.slow
def test_a_run_is_named_after_what_was_overridden(kpipe, experiment, logs):
    more = ("data.augment=[flip_horizontal, flip_vertical]", "training.early_stopping.patience=10", "seed=1234567")
    code, *_ = kpipe("run", experiment, "training.epochs=1", *more, f"logs={logs}")
    assert code == 0
    name = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_training.epochs=1,data.augment=flip_horizontal,flip_vertical"
    assert re.fullmatch(name + ",training.early_stopping.patience=10,etc", only_run(logs).name)


def test_the_run_that_the_readme_extends_can_be_extended():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [name] = set(re.findall(r"kpipe run --resume tensorboard_logs/(\w+)/<run> training\.epochs=", readme))
    training = load_experiment(Path(__file__).parents[2] / "experiments" / f"{name}.yaml").experiment.training
    assert not training.learning_rate.depends_on_total_steps


def test_the_readme_shows_the_shipped_files():
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text()
    for name in re.findall(r"experiments/[\w/]+\.yaml", readme):
        assert (root / name).exists(), name
