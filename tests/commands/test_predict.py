"""`kpipe predict` and `kpipe.predict`: what a trained network says of files, and of files that are no images."""

import csv
import functools
import io
import json
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from image_sets import write_image
from rich.console import Console
from tiny_runs import only_run

from kpipe import cli, figures, predict
from kpipe.assembly import load_splits
from kpipe.commands.predict import load_network
from kpipe.commands.predict_screen import table_writer
from kpipe.config.schema import DataConfig
from kpipe.console import Screen
from kpipe.data import evaluation_batches
from kpipe.errors import ConfigError, DataError
from kpipe.evaluation.predictions import Prediction
from kpipe.trained import load_trained

PHOTOS = """\
data: {source: "folder:photos", image_size: 16, stored_size: 20, batch_size: 4, background: black}
model: {name: lenet5}
training: {epochs: 1, precision: float32}
"""
CLASSES = ("cat", "dog", "eel")
NO_NETWORK = ("nowhere", "photos")  # what is wrong with the other arguments is said first


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with photographs and with a finished run that has seen them."""
    folder = tmp_path_factory.mktemp("predict")
    for split, images in (("train", 4), ("test", 3)):
        for name in CLASSES:
            for number in range(images):
                path = folder / "photos" / split / name / f"{number}.{'jpg' if number else 'png'}"
                write_image(path, size=(24 + 9 * number, 50), channels=3 if number else 4)
    (folder / "photos.yaml").write_text(PHOTOS)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("KPIPE_LOGS", str(folder / "logs"))
        patched.setattr("kpipe.experiment.write_figures", lambda *arguments: [])
        assert cli.main(["run", "photos.yaml"]) == 0
    return folder


@pytest.fixture(scope="module")
def load_once():
    """Load the network once for all tests: that and the first batch take a second."""
    return functools.cache(load_trained)


@pytest.fixture
def run(made, load_once, monkeypatch):
    """The run, while its photographs lie in photos/test of the working directory."""
    monkeypatch.chdir(made)
    monkeypatch.setattr("kpipe.commands.predict.load_trained", load_once)
    return str(only_run(made / "logs", "photos"))


@pytest.fixture
def stdin(monkeypatch):
    def give(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    return give


def test_it_says_what_evaluation_says_of_the_same_files(run):
    found = predict(run, "photos/test", top=3)
    trained = load_network(run)
    test = evaluation_batches(load_splits(trained.data), "test", 4)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(trained.model.predict(test, verbose=0)))
    names = ("0.png", "1.jpg", "2.jpg")
    assert [each.file for each in found] == [f"photos/test/{name}/{file}" for name in CLASSES for file in names]
    assert all(list(each.probabilities) == sorted(each.probabilities, reverse=True) for each in found)
    said = [dict(zip(each.classes, each.probabilities, strict=True)) for each in found]
    said = [[probabilities[name] for name in CLASSES] for probabilities in said]
    np.testing.assert_allclose(said, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected, axis=0).min() > 1e-4  # the images differ by more


def test_csv_has_a_line_for_each_class_and_nothing_else(kpipe, run):
    code, out, err = kpipe("predict", run, "photos/test/dog", "--csv", "--top", "2")
    assert (code, err) == (0, "")
    heading, *rows = csv.reader(io.StringIO(out))
    assert heading == ["file", "rank", "class", "probability"]
    expected = [
        [each.file, rank, name, pytest.approx(probability, rel=1e-6)]
        for each in predict(run, "photos/test/dog", top=2)
        for rank, name, probability in zip((1, 2), each.classes, each.probabilities, strict=True)
    ]
    assert [[file, int(rank), name, float(probability)] for file, rank, name, probability in rows] == expected


def test_jsonl_has_a_line_for_each_image(kpipe, run):
    code, out, err = kpipe("predict", run, "photos/test/dog/0.png", "photos/test/cat", "--jsonl")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    files = ["dog/0.png", "cat/0.png", "cat/1.jpg", "cat/2.jpg"]
    assert [line["file"] for line in lines] == [f"photos/test/{file}" for file in files]
    for line in lines:  # 5 classes are asked for, and there are three
        assert line.keys() == {"file", "predictions"}
        assert sorted(each["class"] for each in line["predictions"]) == list(CLASSES)
        assert sum(each["probability"] for each in line["predictions"]) == pytest.approx(1)


def test_the_table_has_a_row_for_each_image(kpipe, run):
    code, out, err = kpipe("predict", run, "photos/test/dog", "--top", "1")
    assert (code, err) == (0, "")
    rows = [
        f"{each.file}  {100 * each.probabilities[0]:5.1f} % {each.classes[0]}"
        for each in predict(run, "photos/test/dog")
    ]
    assert out.splitlines() == [f"{'file':<21}  most probable classes", *rows]


def test_a_single_image_stands_in_a_column(kpipe, run):
    code, out, err = kpipe("predict", run, "photos/test/dog/1.jpg")
    [found] = predict(run, ["photos/test/dog/1.jpg"])
    pairs = zip(found.classes, found.probabilities, strict=True)
    assert (code, err) == (0, "")
    assert out.splitlines() == [found.file, *(f"  {100 * each:6.2f} %  {name}" for name, each in pairs)]


def test_the_table_fits_the_terminal():
    screen = Screen(Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None))
    files = ["a" * 60 + "/1.png", "写真" * 30 + "/2.png", "3.png"]
    names = ["golden retriever", "cat", "wire-haired fox terrier of a longer name"]  # one would fit, if it were whole
    write = table_writer(screen, files, names, 3)
    for file in files:
        write(Prediction(file, tuple(names), (0.9, 0.07, 0.03)))
    heading, *rows = screen.console.file.getvalue().splitlines()
    classes = "   90.0 % golden…triever    7.0 % cat"
    assert heading == f"{'file':<32}  2 most probable of 3 classes"
    assert rows == [
        f"{'a' * 16}…{'a' * 9}/1.png{classes}",
        f"写真写真写真写真写…真写真/2.png {classes}",
        f"{'3.png':<32}{classes}",
    ]


def test_a_table_in_a_pipe_is_not_cut():
    screen = Screen(Console(file=io.StringIO(), force_terminal=False, width=80))
    table_writer(screen, ["a" * 90, "b"], ["cat", "dog"], 5)(Prediction("a" * 90, ("cat", "dog"), (1.0, 0.0)))
    assert f"{'a' * 90}  100.0 % cat    0.0 % dog" in screen.console.file.getvalue().replace("\n", "")


@pytest.fixture
def broken(tmp_path):
    """A text called .jpg, an empty file, one that is cut off, one that is not there."""
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    write_image(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
    return [str(tmp_path / name) for name in ("text.jpg", "empty.png", "cut.png", "gone.jpg")]


REASONS = ("not an image of a kind that is read", "0 bytes", "cut off", "No such file or directory")


def test_broken_files_are_left_out_and_named_with_their_reasons(kpipe, run, broken):
    good = ["photos/test/dog/0.png", "photos/test/dog/1.jpg"]
    files = [broken[0], good[0], broken[1], broken[2], good[1], broken[3]]
    code, out, err = kpipe("predict", run, *files, "--csv", "--top", "1")
    assert code == 3
    assert [line.split(",")[0] for line in out.splitlines()] == ["file", *good]
    assert err.splitlines() == [
        *(f"{file}: cannot be read ({reason})" for file, reason in zip(broken, REASONS, strict=True)),
        "expected 6 images, got 2 that can be read. Replace or remove the others",
    ]
    found = predict(run, files)
    assert [each.file for each in found] == files
    assert [each.problem for each in found if each.problem] == list(REASONS)
    assert [len(each.classes) for each in found] == [0, 3, 0, 0, 3, 0]


def test_without_one_file_that_can_be_read_there_is_nothing_to_say(kpipe, run, broken):
    code, out, err = kpipe("predict", run, broken[0])
    assert (code, out, err) == (3, "", f"{broken[0]}: cannot be read ({REASONS[0]})\n")
    with pytest.raises(DataError, match="\nexpected 2 images, got not one that can be read. Replace or remove the ot"):
        predict(run, broken[:2])


@pytest.mark.parametrize("between", [b"\n", b"\0"])
def test_paths_come_from_standard_input(kpipe, run, stdin, between):
    stdin(between.join([b"photos/test/dog/0.png", b"", b"photos/test/cat", b""]))
    code, out, _ = kpipe("predict", run, "-", "--csv", "--top", "1")
    assert (code, len(out.splitlines())) == (0, 1 + 1 + 3)


def test_the_grid_shows_the_truth_where_folders_tell_it(kpipe, run, tmp_path, monkeypatch):
    drawn, real = {}, figures.draw_predictions
    monkeypatch.setattr("kpipe.figures.draw_predictions", lambda **columns: real(**drawn.update(columns) or columns))
    write_image(tmp_path / "new" / "1.png")
    grid = tmp_path / "grid.png"
    code, _, err = kpipe("predict", run, "photos/test/dog", str(tmp_path / "new"), "--jsonl", "--grid", str(grid))
    assert (code, err) == (0, "")
    assert drawn["labels"].tolist() == [1, 1, 1, figures.UNKNOWN]
    assert (drawn["images"].shape, drawn["title"]) == ((4, 16, 16, 3), "Predictions: 4 of 4 images")
    expected = predict(run, ["photos/test/dog", tmp_path / "new"], top=1)
    assert [CLASSES[label] for label in drawn["predictions"]] == [each.classes[0] for each in expected]
    np.testing.assert_allclose(drawn["probabilities"], [each.probabilities[0] for each in expected], atol=1e-6)
    assert grid.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("grid", [(), ("--grid", "grid.png")])
def test_nothing_is_predicted_that_nobody_reads(run, monkeypatch, tmp_path, grid):
    """As after `| head`; but a picture is drawn of all files."""
    predicted = []
    monkeypatch.setattr("kpipe.streams.Output.is_read", lambda self: len(predicted) < 5)
    monkeypatch.setattr("kpipe.commands.predict_screen.csv_writer", lambda: predicted.append)
    options = [str(tmp_path / each) if each == "grid.png" else each for each in grid]
    assert cli.main(["predict", run, "photos/test", "--csv", *options]) == 0
    assert len(predicted) == (9 if grid else 8)  # in batches of 4


def test_a_large_folder_is_drawn_in_part(kpipe, run, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("kpipe.figures.draw_predictions", lambda **columns: drawn.update(columns))
    monkeypatch.setattr("kpipe.figures.save_figure", lambda *arguments: None)
    files = [f"photos/test/{CLASSES[number // 20]}/0.png" for number in range(60)]
    assert kpipe("predict", run, *files, "--csv", "--grid", str(tmp_path / "grid.png"))[0] == 0
    assert np.bincount(drawn["labels"]).tolist() == [12, 12, 12]
    assert drawn["title"] == "Predictions: 36 of 60 images"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere",), 2, "Missing argument 'IMAGE'. Give image files, folders, or - for a list of them."),
        ((*NO_NETWORK, "--csv", "--jsonl"), 2, "--csv and --jsonl: expected one of them, got both."),
        (("nowhere", "bare"), 3, "bare: expected a folder with images (.jpg, .png and others, see the README), got no"),
        (("nowhere", "-"), 3, "-: expected paths of images on standard input, one a line, got none\n"),
        ((*NO_NETWORK, "--grid", "no/a.png"), 2, "--grid: expected a file in a folder that exists, got /"),
        ((*NO_NETWORK, "--grid", "bare"), 2, "/bare. Write /"),
        ((*NO_NETWORK, "--grid", "a.jpg"), 2, "--grid: expected a name that ends with .png, got /"),
        (NO_NETWORK, 2, "/nowhere: expected a run directory or a .keras file, got no such file or directory\n"),
    ],
)
def test_a_mistake_is_a_sentence(kpipe, tmp_path, monkeypatch, stdin, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    write_image(tmp_path / "photos" / "1.png")
    stdin(b"\n")
    found, out, err = kpipe("predict", *arguments)
    assert (found, out) == (code, "")
    assert said in err


def test_a_mistake_in_python_is_a_sentence(run):
    with pytest.raises(ConfigError, match="^top: expected at least 1, got 0$"):
        predict(run, "photos", top=0)
    with pytest.raises(ConfigError, match="^paths: expected image files or folders of images, got none$"):
        predict(run, [])


@pytest.mark.slow
def test_a_model_file_alone_reads_images_as_it_is_told(kpipe, run, tmp_path):
    images = keras.Input((None, None, 1))
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    keras.Model(images, keras.layers.Dense(2)(means)).save(tmp_path / "a.keras")
    (tmp_path / "classes.txt").write_text("dark\nbright\n")
    options = ("--image-size", "8", "--resize", "pad", "--jsonl")
    code, out, err = kpipe("predict", str(tmp_path / "a.keras"), "photos/test/dog/1.jpg", *options)
    assert (code, err) == (0, "")
    [found] = predict(tmp_path / "a.keras", "photos/test/dog/1.jpg", image_size=8, resize="pad")
    [other] = predict(tmp_path / "a.keras", "photos/test/dog/1.jpg", image_size=8)
    said = [each["probability"] for each in json.loads(out)["predictions"]]
    assert said == pytest.approx(found.probabilities, rel=1e-6) and found.probabilities != other.probabilities


def test_networks_of_other_things_than_pictures_are_refused(run, tmp_path, monkeypatch):
    keras.Sequential([keras.Input((128, 1, 27)), keras.layers.Flatten(), keras.layers.Dense(2)]).save(
        tmp_path / "a.keras"
    )
    (tmp_path / "classes.txt").write_text("good\nbad\n")
    said = r"a.keras: expected a network of square images in gray or color, got one of 128x1x27. kpipe predict takes "
    with pytest.raises(ConfigError, match=said):
        predict(tmp_path / "a.keras", "photos")
    trained = load_network(run)
    boards = replace(trained, data=DataConfig(source="synthetic", synthetic={"kind": "board"}))
    own = replace(trained, data=DataConfig(source="python:own.py:read", python={"bands": 5}), image_shape=(16, 16, 5))
    for other, got in ((boards, r"16x16x3 \(board\)"), (own, "16x16x5")):
        monkeypatch.setattr("kpipe.commands.predict.load_trained", lambda run, other=other: other)
        with pytest.raises(ConfigError, match=rf", got one of {got}. kpipe predict takes image files only$"):
            load_network(run)
