"""`kpipe evaluate`: numbers of a whole split, the files that it writes, and what it refuses."""

import csv
import datetime
import json
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_sets import define_set, prepare_set, tfds_in, write_classes, write_image
from rich.console import Console
from scipy.special import softmax
from tiny_runs import WITHOUT_FIGURES, only_run, train_once

from kpipe.assembly import load_splits
from kpipe.commands.evaluate import FILES, evaluate
from kpipe.commands.evaluate_screen import show_evaluation
from kpipe.commands.export import export
from kpipe.config.loading import load_experiment
from kpipe.console import Screen
from kpipe.data.pipeline import make_evaluation_pipeline
from kpipe.errors import ConfigError, DataError
from kpipe.evaluation.metrics import Outcomes
from kpipe.evaluation.views import multi_crop
from kpipe.experiment import train
from kpipe.models.fully_convolutional import build_fully_convolutional
from kpipe.runs.options import RunOptions
from kpipe.trained import load_trained

CLASSES = ("ant", "bee", "cow", "dog", "eel", "fox")
EXPERIMENT = """\
data:
  {{source: "folder:{}", image_size: 14, stored_size: 16, batch_size: 4, on_error: skip, skip_limit: 0.2}}
model: {{name: lenet5}}
training: {{epochs: 1, precision: float32, average: {{decay: 0.5}}, loss: {{label_smoothing: 0.1}}}}
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images of 20 x 30 pixels, in folders train and test; one of the test files is text."""
    folder = tmp_path_factory.mktemp("photographs")
    write_classes(folder / "train", dict.fromkeys(CLASSES, 3), size=(20, 30))
    write_classes(folder / "test", dict.fromkeys(CLASSES, 2), size=(20, 30))
    (folder / "test" / "cow" / "1.png").write_text("a cow")
    return folder


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "tiny.yaml").write_text(EXPERIMENT.format(photographs))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KPIPE_LOGS", str(folder / "logs"))
        train(load_experiment(str(folder / "tiny.yaml")).experiment, RunOptions(draw=False))
    return only_run(folder / "logs")


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr("kpipe.commands.evaluate.save_figure", lambda figure, path: path.touch())


@pytest.fixture
def quiet():
    return Screen(Console(quiet=True))


@pytest.fixture
def model_file(finished, tmp_path):
    """The model of the run and its classes, without the run."""
    for name in ("model.keras", "classes.txt"):
        shutil.copy(finished / name, tmp_path / name)
    return tmp_path / "model.keras"


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_center_gives_the_numbers_of_the_run(kpipe, finished, photographs):
    code, out, err = kpipe("evaluate", str(finished))
    assert (code, err) == (0, "")
    folder = finished / "evaluation" / "test_center"
    assert {file.name for file in folder.iterdir()} == set(FILES)
    assert [file.name for file in folder.parent.iterdir()] == ["test_center"]
    result = json.loads((folder / "evaluation.json").read_text())
    of_the_run = json.loads((finished / "summary.json").read_text())["test"]
    assert {name: result[name] for name in of_the_run} == of_the_run  # to the last digit
    assert result["weights"] == json.loads((finished / "summary.json").read_text())["weights"]
    assert result["versions"].keys() == {"kpipe", "keras", "tensorflow"}
    assert datetime.datetime.fromisoformat(result["date"]).tzinfo
    assert result["left_out"] == [str(photographs / "test" / "cow" / "1.png")]

    predictions = rows_of(folder / "predictions.csv")
    assert [row["file"] for row in predictions[:2]] == [str(photographs / "test" / "ant" / f"{i}.png") for i in (0, 1)]
    right = np.mean([row["label"] == row["prediction"] for row in predictions])
    assert (len(predictions), right) == (11, pytest.approx(result["accuracy"]))
    per_class = rows_of(folder / "per_class.csv")
    assert [row["class"] for row in per_class] == list(CLASSES)
    assert [row["images"] for row in per_class] == ["2", "2", "1", "2", "2", "2"]
    matrix = rows_of(folder / "confusion_matrix.csv")
    assert sum(int(row[row["label"]]) for row in matrix) / 11 == pytest.approx(result["accuracy"])
    most_confident = max(
        (row for row in predictions if row["label"] != row["prediction"]), key=lambda row: row["probability"]
    )
    assert {name: str(value) for name, value in result["mistakes"][0].items()} == most_confident

    assert f"  data       folder:{photographs}, test: 11 images, all but 1 that cannot be read: '{photographs}/t" in out
    assert "  protocol   center: the center of the stored image, as at the end of a run\n" in out
    assert f"The most confident of {result['num_mistakes']} mistakes:\n" in out
    assert " test/" in out  # the files of the mistakes, without the folder of all
    assert out.endswith(f"Results are in {folder}\n")


@pytest.mark.slow
def test_ten_crops_of_other_weights(kpipe, finished, tmp_path, without_figures):
    [other] = {"raw", "averaged"} - {json.loads((finished / "summary.json").read_text())["weights"]}
    options = ("--weights", other, "--protocol", "ten_crop", "--json", "--output", str(tmp_path / "new" / "folder"))
    code, out, err = kpipe("evaluate", str(finished), *options)
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert json.loads((tmp_path / "new" / "folder" / "evaluation.json").read_text()) == result
    assert (result["protocol"], result["model"]) == ("ten_crop", str(finished / f"model_{other}.keras"))
    trained = load_trained(finished, weights=other)
    split = load_splits(trained.data).test
    [(views, labels)] = make_evaluation_pipeline(split, 99, image_size=14, ten_crops=True)
    logits = trained.model.predict_on_batch(keras.ops.reshape(views, (-1, 14, 14, 3)))
    probabilities = softmax(np.float64(logits), axis=-1).reshape(-1, 10, 6).mean(axis=1)
    loss = 0.9 * -np.log(probabilities[range(11), labels]) + 0.1 * -np.log(probabilities).mean(axis=1)
    assert result["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert result["accuracy"] == np.mean(probabilities.argmax(1) == labels)


@pytest.mark.slow
def test_dense_sees_the_whole_of_each_file(finished, quiet, without_figures):
    result = evaluate(finished, protocol="dense", scales=(20,), screen=quiet)
    trained = load_trained(finished)
    split = load_splits(trained.data, ahead=False).test.as_stored()
    split.unreadable.add([5])
    images, labels = zip(*split.read(), strict=True)
    assert images[0].shape == (20, 30, 3)
    dense = build_fully_convolutional(trained.model)
    sides = [
        softmax(np.float64(dense.predict_on_batch(np.float32(side))), axis=-1) for side in (images, flipped(images))
    ]
    probabilities = np.mean(sides, axis=0)
    loss = 0.9 * -np.log(probabilities[range(11), labels]) + 0.1 * -np.log(probabilities).mean(axis=1)
    assert (result["scales"], result["loss"]) == ([20], pytest.approx(loss.mean(), rel=1e-5))


def flipped(images):
    return np.flip(images, axis=2)


@pytest.mark.slow
def test_many_crops_of_the_training_split(kpipe, finished, tmp_path, without_figures):
    options = ("--split", "train", "--protocol", "multi_crop", "--output", str(tmp_path / "new" / "folder"))
    code, out, err = kpipe("evaluate", str(finished), *options)
    assert (code, err) == (0, "")
    assert ", train: all 16 images\n" in out
    result = json.loads((tmp_path / "new" / "folder" / "evaluation.json").read_text())
    trained = load_trained(finished)
    split = load_splits(trained.data, ahead=False).train.as_stored()
    images, labels = zip(*split.read(), strict=True)
    views = multi_crop(tf.constant(np.stack(images)), 14).numpy()
    logits = trained.model.predict_on_batch(views.reshape(-1, 14, 14, 3))
    probabilities = softmax(np.float64(logits), axis=-1).reshape(16, 144, 6).mean(axis=1)
    assert result["accuracy"] == np.mean(probabilities.argmax(1) == labels)
    loss = 0.9 * -np.log(probabilities[range(16), labels]) + 0.1 * -np.log(probabilities).mean(axis=1)
    assert result["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert out.endswith(f"Results are in {tmp_path}/new/folder\n")


def test_another_set_is_scored_whole_and_its_classes_are_found_by_name(kpipe, model_file, tmp_path, without_figures):
    """The set has no splits and lacks the first class, so that its class number 0 is number 1 of the network."""
    for place, name in enumerate(CLASSES[1:]):
        write_image(tmp_path / "set" / name / "0.png", value=40 * place, size=(14, 14))
        write_image(tmp_path / "set" / name / "1.png", size=(14, 14))
    code, out, err = kpipe("evaluate", str(model_file), "--data", f"folder:{tmp_path / 'set'}", "--image-size", "14")
    assert (code, err) == (0, "")
    assert f"  data       folder:{tmp_path}/set, all 10 images\n" in out
    assert "  note: the data has no class 'ant'\n" in out
    [folder] = (tmp_path / "evaluation").iterdir()
    assert folder.name == "center_14px_folder-" + str(tmp_path / "set").strip("/").replace("/", "-")
    labels = [row["label"] for row in rows_of(folder / "predictions.csv")]
    assert labels == [name for name in CLASSES[1:] for _ in range(2)]
    [absent, *others] = rows_of(folder / "per_class.csv")
    assert (absent["images"], absent["recall"]) == ("0", "")
    assert [row["images"] for row in others] == ["2"] * 5


@pytest.mark.slow
def test_an_exported_file_gives_the_numbers_of_its_run(finished, photographs, quiet, tmp_path, without_figures):
    """Its card says that the images are stored larger than the network sees them."""
    [exported] = export(finished, "keras", output=tmp_path / "to", screen=quiet)
    of_the_run = evaluate(finished, output=tmp_path / "run", screen=quiet)
    alone = evaluate(exported.path, data=f"folder:{photographs}", on_error="skip", screen=quiet)
    assert alone["notes"] == []
    for name in ("images", "accuracy", "calibration_error"):
        assert alone[name] == pytest.approx(of_the_run[name], rel=1e-5)
    probabilities = [
        [float(row["probability"]) for row in rows_of(folder / "predictions.csv")]
        for folder in (tmp_path / "run", exported.path.parent / "evaluation" / alone["folder"].rpartition("/")[2])
    ]
    np.testing.assert_allclose(*probabilities, rtol=1e-4)


def test_other_classes_are_named(kpipe, finished, tmp_path):
    write_classes(tmp_path / "set", {"ant": 1, "gnu": 1, "yak": 1})
    code, out, err = kpipe("evaluate", str(finished), "--data", f"folder:{tmp_path / 'set'}")
    known = "'ant', 'bee', 'cow', 'dog', 'eel' and 1 more"
    assert code == 3
    assert err == (
        f"folder:{tmp_path}/set: expected classes that the network knows ({known}), got others: 'gnu', 'yak'\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"protocol": "random"},
            r"^protocol: expected a known name, got 'random' \(known: center, ten_crop, multi_crop, dense",
        ),
        ({"protocol": "ten"}, r"^protocol: expected a known name, got 'ten', did you mean 'ten_crop'\?$"),
        (
            {"scales": [20]},
            "^scales: expected the protocol dense, which alone has scales, got center. Give protocol=",
        ),
        (
            {"protocol": "dense", "scales": [20, 13]},
            "^scales: expected at least the 14 pixels that the network sees, got 13$",
        ),
        (
            {"split": "validation", "data": "folder"},
            "^split: expected one of train, test, which folder:/.*/photographs0 has, got validation$",
        ),
        ({"data": "photos:x"}, "^data: unknown source 'photos' "),
        ({"on_error": "ignore"}, "^on_error: expected one of fail, skip, got 'ignore'$"),
        (
            {"output": __file__},
            r"^output: expected a folder, got .*test_evaluate.py, and .*test_evaluate.py is a file$",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_said(finished, photographs, quiet, options, message):
    if options.get("data") == "folder":
        options = options | {"data": f"folder:{photographs}"}
    with pytest.raises(ConfigError, match=message):
        evaluate(finished, screen=quiet, **options)


def test_a_model_file_needs_data(model_file, quiet):
    said = rf"^data: expected a source of images for {model_file}, which names none, got none$"
    with pytest.raises(ConfigError, match=said):
        evaluate(model_file, image_size=14, screen=quiet)


def test_ten_crops_need_larger_images(model_file, photographs, quiet):
    said = (
        r"^protocol: ten_crop needs stored images that are larger than what the network sees, got 14 pixels for both "
        r"\(data.stored_size and data.image_size\). Give multi_crop or dense, which see the whole image$"
    )
    with pytest.raises(ConfigError, match=said):
        evaluate(model_file, protocol="ten_crop", data=f"folder:{photographs}", image_size=14, screen=quiet)


@pytest.mark.parametrize("folder", ["/proc/new", "/sys/kernel/new"])
def test_a_folder_that_cannot_be_written(finished, quiet, folder):
    """Their permissions say that root may write there."""
    with pytest.raises(ConfigError, match=f"^output: expected a folder in which you may write, got {folder}$"):
        evaluate(finished, output=folder, screen=quiet)


def test_scales_are_numbers(kpipe, finished):
    said = "--scales: expected pixels such as 256,384, got '256;384'\n"
    assert kpipe("evaluate", str(finished), "--protocol", "dense", "--scales", "256;384") == (2, "", said)


WITHOUT_TENSORFLOW = """\
import sys
from kpipe import cli
code = cli.main(sys.argv[1:])
sys.exit(code if not {"tensorflow", "keras", "numpy"} & set(sys.modules) else f"{code}, and TensorFlow is imported")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("evaluate", "nowhere"), 2, "nowhere: expected a run directory or a .keras file, got no such file or dir"),
        (("evaluate", "RUN", "--data", "folder:nowhere"), 3, "/nowhere"),
        (("evaluate", "RUN", "--data", "photos:x"), 2, "--data: unknown source 'photos' "),
        (("evaluate", "MOVED"), 3, "\nIf you have moved the folder, say where it is: --data folder:PATH\n"),
        (("evaluate", "RUN", "--image-size", "8"), 2, "--image-size, --resize: expected neither with a run, whose con"),
        (("evaluate", "FILE"), 2, "--data: expected a source of images for "),
        (("predict", "nowhere", "IMAGE"), 2, "nowhere: expected a run directory or a .keras file, got no such file"),
        (("export", "nowhere", "--to", "keras"), 2, "nowhere: expected a run directory or a .keras file, got no s"),
    ],
)
def test_a_mistake_is_said_before_the_import(finished, photographs, model_file, tmp_path, arguments, code, said):
    config = (finished / "config.yaml").read_text()
    moved = shutil.copytree(finished, tmp_path / "moved")
    (moved / "config.yaml").write_text(config.replace(str(photographs), "/moved"))
    places = {"RUN": finished, "MOVED": moved, "FILE": model_file, "IMAGE": photographs / "test" / "ant" / "0.png"}
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *(str(places.get(each, each)) for each in arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr


@pytest.mark.slow
def test_files_that_cannot_be_read_are_left_out_if_you_say_so(kpipe, model_file, photographs, quiet, without_figures):
    arguments = ("evaluate", str(model_file), "--data", f"folder:{photographs}", "--image-size", "14")
    code, _, err = kpipe(*arguments)
    assert (code, err.endswith("Replace or remove it, or leave such files out with --on-error skip\n")) == (3, True)
    with pytest.raises(DataError, match="leave such files out with on_error='skip'$"):
        evaluate(model_file, data=f"folder:{photographs}", image_size=14, screen=quiet)
    code, out, err = kpipe(*arguments, "--on-error", "skip")
    assert (code, err) == (0, "")
    assert f"test: 11 images, all but 1 that cannot be read: '{photographs}/test/cow/1.png'" in " ".join(out.split())


SYNTHETIC = """\
data: {source: synthetic, image_size: 14, stored_size: 16, batch_size: 16, synthetic: {classes: 2, images: 60}}
model: {name: lenet5}
training: {epochs: 1, precision: float32, loss: {name: euclidean}}
"""


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A finished run whose loss is no cross entropy, and whose images are no files."""
    return train_once(tmp_path_factory.mktemp("synthetic"), SYNTHETIC, replaced=[WITHOUT_FIGURES])


def test_another_loss_than_cross_entropy_has_its_own_name(synthetic, quiet, without_figures, capsys):
    center = evaluate(synthetic, screen=quiet)
    assert center["loss"] == json.loads((synthetic / "summary.json").read_text())["test"]["loss"]
    assert "cross_entropy" not in center
    crops = evaluate(synthetic, protocol="multi_crop", screen=quiet)
    assert "loss" not in crops and 0 < crops["cross_entropy"] < 2
    assert crops["notes"] == [
        "half of the views of multi_crop are mirror images; the run was trained without flip_horizontal",
        "the whole images are the stored ones, 16x16: the source has no files of them",
    ]
    show_evaluation(crops, Screen(Console(width=80)))
    assert "cross entropy" in capsys.readouterr().out


def test_each_choice_has_a_folder_of_its_own(synthetic, quiet, without_figures):
    folders = {evaluate(synthetic, protocol="dense", screen=quiet, scales=each)["folder"] for each in ((), (16, 20))}
    assert folders == {str(synthetic / "evaluation" / name) for name in ("test_dense", "test_dense_16_20")}


def test_a_run_without_a_held_out_split_needs_a_choice(synthetic, quiet, tmp_path):
    run = shutil.copytree(synthetic, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"(validation|test): (0\.1|null)\n", r"\1: 0\n", config))
    said = "^split: expected a test or validation split, the run has none. Give split='train'$"
    with pytest.raises(ConfigError, match=said):
        evaluate(run, screen=quiet)
    summary = json.loads((run / "summary.json").read_text())  # of a run that scored no other split
    summary = {key: value for key, value in summary.items() if key not in ("validation", "test")}
    (run / "summary.json").write_text(json.dumps(summary))
    done = subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW, "evaluate", run], capture_output=True, text=True)
    said_there = "--split: expected a test or validation split, the run has none. Give --split train"
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (2, said_there)


def test_images_of_another_size_are_refused(synthetic, quiet, tmp_path):
    run = shutil.copytree(synthetic, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("image_size: 14", "image_size: 15"))
    with pytest.raises(DataError, match="^synthetic: expected images of 14x14x3, which the network sees, got 15x15x3$"):
        evaluate(run, screen=quiet)


def test_images_that_are_not_square_have_one_view(tmp_path, photographs, quiet):
    layers = [keras.Input((14, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(6)]
    keras.Sequential(layers).save(tmp_path / "a.keras")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    with pytest.raises(ConfigError, match="^protocol: expected center for images of 14x16, which are not square, got"):
        evaluate(tmp_path / "a.keras", protocol="ten_crop", data=f"folder:{photographs}", screen=quiet)


def test_an_image_that_is_missed_is_noticed(synthetic, quiet, monkeypatch):
    empty = np.zeros(0)
    monkeypatch.setattr("kpipe.commands.evaluate.score", lambda *given, **options: Outcomes(*[empty] * 5))
    with pytest.raises(DataError, match=r": expected 12 images, got 0$"):
        evaluate(synthetic, screen=quiet)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["dense", "multi_crop"])
def test_records_of_a_stream_are_seen_whole(tmp_path, quiet, without_figures, protocol):
    """Images of a set of TensorFlow Datasets may differ in size."""
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()])
    model.add(keras.layers.Dense(2))
    model.save(tmp_path / "a.keras")
    (tmp_path / "classes.txt").write_text("zebra\nape\n")
    with tfds_in(tmp_path / "tfds") as tfds:
        name = f"whole_{protocol}"
        define_set(tfds, name, {"train": [0, 1], "test": [0, 1, 1]}, size=(None, 12, 3))
        prepare_set(tfds, name)
        result = evaluate(tmp_path / "a.keras", protocol=protocol, data=f"tfds:{name}", screen=quiet)
    assert (result["split"], result["images"], len(result["notes"])) == ("test", 3, 1)  # how the images are read
    # Each image is of one gray: all views of it are the same.
    grays = 10 * np.arange(3)
    logits = model.predict_on_batch(np.ones((3, 8, 8, 3)) * grays[:, None, None, None])
    losses = -np.log(softmax(np.float64(logits), axis=-1)[range(3), [0, 1, 1]])
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def occupy(folder):
    (folder / "mistakes.png").mkdir(parents=True)
    return folder


def link_to_nothing(folder):
    folder.symlink_to("nowhere")
    return folder / "new"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (occupy, r"^output: expected a folder for evaluation.json, .* such a name: .*/new/mistakes.png. Move it, or"),
        (link_to_nothing, r"^output: expected a folder, got .*/new/new, and .*/new is a link to what is not there$"),
        (
            lambda folder: folder / ("x" * 300),
            r"^output: expected shorter names, got .*/xxx",
        ),
    ],
)
def test_a_folder_that_cannot_be_filled_is_refused_before_the_work(finished, tmp_path, make, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(finished, output=make(tmp_path / "new"))


@pytest.mark.slow
def test_a_long_name_of_another_set_fits_the_file_system(synthetic, quiet, tmp_path, without_figures):
    folder = tmp_path / ("写" * 85)
    write_classes(folder, {"class_0": 2, "class_1": 2}, size=(16, 16))
    result = evaluate(synthetic, data=f"folder:{folder}", screen=quiet)
    name = result["folder"].rpartition("/")[2]
    assert re.fullmatch(r"center_folder-.*-[0-9a-f]{8}", name) and len(name.encode()) < 255


@pytest.mark.slow
def test_an_interruption_leaves_nothing(kpipe, finished, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("kpipe.commands.evaluate.draw_mistakes", interrupt)
    code, _, err = kpipe("evaluate", str(finished), "--output", str(tmp_path / "new"))
    assert (code, err.strip()) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_changed_set_is_noted(finished, photographs, quiet, tmp_path, without_figures):
    moved = shutil.copytree(photographs, tmp_path / "moved")
    write_image(moved / "train" / "ant" / "new.png", size=(20, 30))
    run = shutil.copytree(finished, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(photographs), str(moved)))
    [note] = evaluate(run, screen=quiet)["notes"]
    assert note == "the data has changed since the run: train: 3 images of class 'ant' then, 4 now"


def test_many_classes_fit_the_screen(capsys):
    names = [f"a class with a long name, number {number}" for number in range(30)]
    numbers = {"images": 3, "precision": None, "recall": 0.5, "f1": 0.5}
    mistake = {"file": "x" * 99, "label": names[0], "prediction": names[1], "probability": 0.9}
    result = {
        "model": "/runs/one/model_raw.keras",
        "weights": "raw",
        "network": "vgg16",
        "protocol": "dense",
        "scales": [256, 384],
        "data": "folder:photos",
        "split": "test",
        "left_out": [],
        "images": 90,
        "accuracy": 0.5,
        "accuracy_interval": [0.4, 0.6],
        "loss": 1.0,
        "top5": 0.9,
        "calibration_error": 0.1,
        "per_class": [{"class": name, **numbers} for name in names[:-1]] + [{"class": "[red]", **numbers, "f1": 0.1}],
        "mistakes": [mistake] * 12,
        "num_mistakes": 45,
        "notes": [],
        "folder": "/runs/one/evaluation",
    }
    show_evaluation(result, Screen(Console(width=80)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("evaluation of one, raw weights")
    assert max(len(line) for line in lines if "│" in line) <= 80
    assert next(line for line in lines if "3" in line and "│" in line and "50.00 %" in line).startswith("│ [red] ")
    assert "The 20 classes with the lowest F1; the other 10 are in per_class.csv:" in lines
    assert "The most confident of 45 mistakes:" in lines
    assert any("(VGG); shorter side 256, 384" in line for line in lines)
