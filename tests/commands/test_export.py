"""`kpipe export`: each file computes what the network computes, and the card says what its user must know."""

import json
import os
import shutil
import signal
import subprocess

import keras
import numpy as np
import pytest
from exported import needs
from image_sets import write_image
from tiny_runs import train_once

import kpipe as api
from kpipe.catalog.formats import FORMATS
from kpipe.commands.export_screen import show_exports
from kpipe.errors import ConfigError, DataError, EnvironmentFault
from kpipe.exporting.verification import compute_logits
from kpipe.exporting.writing import WRITERS

TINY = """\
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 2, images: 100}}
model: {name: lenet5}
training: {epochs: 1, precision: float32}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train_once(tmp_path_factory.mktemp("export"), TINY)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


OWN = """\
import keras

def tiny(input_shape, classes, *, preprocessing):
    images = keras.Input(input_shape)
    x = keras.layers.Flatten()(preprocessing(images))
    return keras.Model(images, keras.layers.Dense(classes, dtype="float32")(x))
"""


@pytest.fixture(scope="module")
def of_own_code(tmp_path_factory):
    """A run of a user's network, whose file is gone, on photographs of which some are broken."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(OWN)
    for split, number in {"train": 20, "test": 6}.items():
        for name in ("cat", "cow"):
            for i in range(number):
                write_image(folder / "pets" / split / name / f"{i:02}.png")
            (folder / "pets" / split / name / "00.png").write_bytes(b"no image")
    run = train_once(
        folder,
        f"data: {{source: folder:{folder}/pets, image_size: 8, batch_size: 4, on_error: skip, skip_limit: 0.5}}\n"
        "model: {name: 'nets.py:tiny'}\n"
        "training: {epochs: 1, precision: float32}\n",
    )
    (folder / "nets.py").unlink()
    return run


@pytest.fixture
def network(tmp_path):
    """A model file of another origin."""
    return save(keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]), tmp_path)


def save(network, folder):
    network.save(folder / "net.keras")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder / "net.keras"


@pytest.fixture
def runtime(monkeypatch):
    """Stand in for the process that checks, whose own tests are in `exporting`: it computes what the network computes.

    Set what becomes of that, or how the process ends.
    """

    class Runtime:
        code, error = 0, ""

        def change(self, logits):
            return logits

        def compute(self, model, images):
            self.logits = compute_logits(model, images)
            return self.logits

        def run(self, command, **options):
            np.save(command[-1], self.change(self.logits))
            return subprocess.CompletedProcess(command, self.code, "", self.error)

    stand_in = Runtime()
    monkeypatch.setattr("kpipe.exporting.verification.subprocess", stand_in)
    monkeypatch.setattr("kpipe.commands.export.compute_logits", stand_in.compute)
    return stand_in


def compute_with(folder, images):
    """Return the logits that the lines of Python in a card compute."""
    card = json.loads((folder / "model_card.json").read_text())
    names = {"images": images.astype("float32")}
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec("\n".join(card["code"]), names)  # noqa: S102
    finally:
        os.chdir(before)
    return np.asarray(names["logits"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [needs("onnx"), "keras", "saved_model"])
def test_a_format_computes_what_the_network_computes(kpipe, finished, tmp_path, name):
    code, out, err = kpipe("export", str(finished), "--to", name, "--output", str(tmp_path / "to"))
    assert (code, err) == (0, "")
    folder = tmp_path / "to" / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["MODEL_CARD.md", "classes.txt", FORMATS[name].file, "model_card.json"]
    )
    assert f"network = {FORMATS[name].load.format(path=ascii(str(folder / FORMATS[name].file)))}\n" in out
    assert f"  {name:<12} " in out and "B, differs by " in out and f" ({FORMATS[name].runtime} " in out
    assert "Checked on 16 images of the test split, each file in its own runtime. The difference is the" in out
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3))  # another number of them than was checked
    expected = np.asarray(keras.models.load_model(finished / "model.keras")(images.astype("float32")))
    np.testing.assert_allclose(compute_with(folder, images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [needs("litert")])
def test_int8_says_what_it_costs(kpipe, finished, tmp_path, name):
    code, out, err = kpipe("export", str(finished), "--to", name, "--int8", "--output", str(tmp_path))
    assert (code, err) == (0, "")
    card = json.loads((tmp_path / "litert" / "model_card.json").read_text())
    int8, summary = card["checks"]["int8"], json.loads((finished / "summary.json").read_text())
    assert int8["float32_accuracy"] == pytest.approx(summary["test"]["accuracy"])
    assert int8["calibration"] == "72 images of the train split"
    accuracy, float32 = (f"{100 * int8[key]:.2f} %" for key in ("accuracy", "float32_accuracy"))
    assert f"accuracy {accuracy}, in float32 {float32}, on {summary['test']['images']} images of the test split" in out
    small, large = ((tmp_path / "litert" / name).stat().st_size for name in ("model_int8.tflite", "model.tflite"))
    assert small == int8["bytes"] < large / 2


def test_the_card_says_what_a_user_must_know(copied, runtime, capsys):
    [exported] = api.export(copied, "keras")
    assert capsys.readouterr().out == "writing and checking keras ...\n"
    assert exported.path == copied / "export" / "keras" / "model.keras"
    assert exported.size == exported.path.stat().st_size
    card = json.loads((exported.path.parent / "model_card.json").read_text())
    assert card == exported.card
    summary = json.loads((copied / "summary.json").read_text())
    assert card["network"]["name"] == "lenet5"
    assert card["input"] == {
        "name": "images",
        "dtype": "float32",
        "shape": ["batch", 16, 16, 3],
        "range": [0, 255],
        "channels": "red, green, blue",
    }
    assert card["images"] == {"image_size": [16, 16]}  # they are made, not resized
    assert card["classes"] == (copied / "classes.txt").read_text().split()
    assert card["scores"] == {split: summary[split] for split in ("validation", "test")}
    assert card["data"]["splits"] == json.loads((copied / "data.json").read_text())["splits"]
    assert card["weights"] == {"file": "model.keras", "kind": "raw"}
    assert card["normalization"]["kind"] == "affine" and len(card["normalization"]["mean"]) == 3
    assert card["versions"]["trained with"]["keras"] == card["versions"]["exported with"]["keras"] == keras.__version__
    page = (exported.path.parent / "MODEL_CARD.md").read_text()
    assert page.startswith("# `lenet5`, 16x16x3, 2 classes\n")
    assert "| data | `synthetic` |\n" in page  # which is always the same, and has no fingerprint
    assert "network = keras.saving.load_model('model.keras')\nlogits = network(images, training=False)\n" in page
    assert f"| test | {summary['test']['loss']:.6g} |" in page


def test_the_screen_shows_each_file(network, runtime, capsys):
    exports = api.export(network, ["keras", "saved_model"])
    capsys.readouterr()
    show_exports(exports)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{network}: images 4x4x1, 2 classes"
    assert lines[1].startswith("  keras        ") and f", differs by 0.0e+00 (keras {keras.__version__})" in lines[1]
    assert lines[2:4] == [
        f"{'':<15}network = keras.saving.load_model('{network.parent}/export/keras/model.keras')",
        f"{'':<15}logits = network(images, training=False)",
    ]
    assert lines[4].startswith("  saved_model  ")
    assert lines[7].startswith(
        "Checked on 16 random images (the model file has no data of its own), each file in its own runtime. The "
    )


def test_a_network_without_preprocessing_has_a_card(network, runtime):
    [exported] = api.export(network, "keras")
    assert exported.card["normalization"] == {"name": "none", "kind": "affine", "mean": [0.0], "std": [1.0]}


def test_layers_of_our_own_need_kpipe(tmp_path, runtime):
    inner = keras.Sequential([keras.Input((4, 4, 1)), api.models.layers.ScaledTanh(), keras.layers.Flatten()])
    images = keras.Input((4, 4, 1))
    [exported] = api.export(save(keras.Model(images, keras.layers.Dense(2)(inner(images))), tmp_path), "keras")
    assert exported.card["code"][0] == "import kpipe.models"


def test_a_network_for_any_size_is_checked_with_one(tmp_path, runtime):
    images = keras.Input((None, None, 3))
    path = save(keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(images))), tmp_path)
    with pytest.raises(ConfigError, match="^image_size: expected the side of the images in pixels, since .* takes any"):
        api.export(path, "keras")
    [exported] = api.export(path, "keras", image_size=8, resize="pad")
    assert exported.card["input"]["shape"] == ["batch", None, None, 3]
    assert exported.card["images"] == {
        "image_size": [8, 8],
        "stored_size": None,
        "resize": "pad",
        "background": "white",
    }


def test_another_export_replaces_the_first(network, runtime):
    api.export(network, ["keras", "saved_model"])
    folder = network.parent / "export"
    for name in ("keras", "saved_model"):
        (folder / name / "left.txt").touch()
    (folder / ".keras.part").mkdir()
    (folder / ".keras.part" / "left.txt").touch()  # by a kill
    api.export(network, "keras")
    assert not (folder / "keras" / "left.txt").exists()
    assert (folder / "saved_model" / "left.txt").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["keras", "saved_model"]


def test_scores_belong_to_the_weights_that_have_them(copied, runtime):
    shutil.copy(copied / "model.keras", copied / "model_averaged.keras")
    [exported] = api.export(copied, "keras", weights="averaged")
    assert exported.card["weights"] == {"file": "model_averaged.keras", "kind": "averaged"}
    assert exported.card["scores"] == {}


@pytest.fixture
def data_are_gone(monkeypatch):
    def load_splits(*arguments, **options):
        raise DataError("folder:photographs: expected a folder, got none")

    monkeypatch.setattr("kpipe.commands.export.load_splits", load_splits)


def test_random_images_check_where_the_data_are_gone(copied, runtime, data_are_gone):
    [exported] = api.export(copied, "keras")
    said = "16 random images (folder:photographs: expected a folder, got none)"
    assert exported.card["checks"]["images"] == said


@pytest.mark.parametrize("name", [needs("litert")])
def test_int8_needs_the_data(copied, runtime, data_are_gone, name):
    with pytest.raises(DataError, match="^int8: expected the images of the run, to calibrate with, got: folder:photog"):
        api.export(copied, name, int8=True)


def test_files_that_cannot_be_read_are_left_out_and_code_of_the_user_is_not_run(of_own_code, runtime, tmp_path):
    [exported] = api.export(of_own_code, "keras", output=tmp_path)
    assert exported.card["checks"]["images"] == "10 images of the test split"
    assert exported.card["network"]["name"].endswith("nets.py:tiny")


@pytest.mark.slow
@pytest.mark.parametrize("name", [needs("litert")])
def test_int8_leaves_files_out_that_cannot_be_read(of_own_code, runtime, tmp_path, name):
    [exported] = api.export(of_own_code, name, int8=True, output=tmp_path)
    assert exported.card["checks"]["int8"]["split"] == "10 images of the test split"
    assert exported.card["checks"]["int8"]["calibration"].endswith(" images of the train split")


def test_a_file_that_computes_something_else_is_not_kept(network, runtime):
    runtime.change = lambda logits: logits + 0.1 * np.abs(logits).max()
    said = (
        r"^keras: expected the logits of model.keras within 0.0001 of the network's, relative to the largest, got a "
        r"difference of 0.1 in keras. Nothing was kept; install the versions in constraints.txt and try again$"
    )
    with pytest.raises(EnvironmentFault, match=said):
        api.export(network, "keras")
    assert not (network.parent / "export").exists()


@pytest.mark.parametrize("change", [lambda logits: logits * np.nan, lambda logits: logits[:, :1]])
def test_no_number_and_another_shape_are_no_logits(network, runtime, change):
    runtime.change = change
    with pytest.raises(EnvironmentFault, match="got a difference of (nan|inf) in keras"):
        api.export(network, "keras")


def test_a_file_that_its_runtime_cannot_load_is_not_kept(network, runtime):
    runtime.code, runtime.error = 1, "Traceback:\nValueError: unknown operation"
    said = "^keras: expected a file that keras can run, got one at which it fails: 'ValueError: unknown operation'. Not"
    with pytest.raises(EnvironmentFault, match=said):
        api.export(network, "keras")
    assert not (network.parent / "export").exists()


def test_all_formats_are_written_or_none(network, runtime, monkeypatch):
    def refuse(model, path):
        raise ValueError("no such layer")

    monkeypatch.setitem(WRITERS, "saved_model", refuse)
    with pytest.raises(ConfigError, match="^to: expected a network that saved_model can hold, got 'no such layer'"):
        api.export(network, ["keras", "saved_model"])
    assert not (network.parent / "export").exists()


def test_an_interruption_leaves_nothing(kpipe, network, runtime, monkeypatch):
    monkeypatch.setitem(WRITERS, "keras", lambda model, path: signal.raise_signal(signal.SIGINT))
    code, _, err = kpipe("export", str(network), "--to", "keras")
    assert (code, err.strip()) == (130, "interrupted; what was saved before is still there")
    assert not (network.parent / "export").exists()


def test_layers_in_half_precision_are_refused(tmp_path):
    inner = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, dtype="float16")])
    images = keras.Input((4, 4, 1))
    path = save(keras.Model(images, keras.layers.Dense(2)(inner(images))), tmp_path)
    said = r"net.keras: expected layers that compute in float32, got dense\w* in float16. Build the network in float32"
    with pytest.raises(ConfigError, match=said):
        api.export(path, "keras")


def test_a_mistake_is_said_before_tensorflow_is_imported(kpipe, network):
    code, out, err = kpipe("export", str(network), "--to", "onx")
    message = "to: expected one of keras, saved_model, onnx, litert, got 'onx', did you mean 'onnx'?\n"
    assert (code, out, err) == (2, "", message)


def test_a_full_disk_is_said(network, runtime, monkeypatch):
    def fail(path, card):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("kpipe.commands.export.write_json", fail)
    with pytest.raises(EnvironmentFault, match=r"model_card.json: cannot be written \(No space left on device\); "):
        api.export(network, "keras")
    assert not (network.parent / "export").exists()


def test_a_place_where_no_folder_can_be_made(network):
    with pytest.raises(EnvironmentFault, match=r"^/proc/kpipe: cannot be written \(No such file or directory\); "):
        api.export(network, "keras", output="/proc/kpipe")
