"""`kpipe export`: each file computes what the network computes, and the card says what its user must know."""

import json
import os
import re
import shutil
import signal
import subprocess
import zipfile

import keras
import numpy as np
import pytest
from exported import needs
from image_sets import write_image
from tiny_runs import WITHOUT_FIGURES, train_once

import kpipe as api
from kpipe.catalog.formats import FORMATS, PAGE
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
    return train_once(tmp_path_factory.mktemp("export"), TINY, replaced=[WITHOUT_FIGURES])


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
        replaced=[WITHOUT_FIGURES],
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


def compute_with(folder, images, code="code"):
    """Return the logits that the lines of Python in a card compute."""
    card = json.loads((folder / "model_card.json").read_text())
    names = {"images": images.astype("float32")}
    before = os.getcwd()
    os.chdir(folder)
    try:
        exec("\n".join(card[code]), names)  # noqa: S102
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
    assert "\n".join(f"{'':<15}{line}" for line in FORMATS[name].code(str(folder / FORMATS[name].file))) in out
    assert f"  {name:<12} " in out and "B, differs by " in out and f" ({FORMATS[name].runtime} " in out
    assert "Checked on 16 images of the test split, each file in its own runtime. The difference is the" in out
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3))  # another number of them than was checked
    expected = np.asarray(keras.models.load_model(finished / "model.keras")(images.astype("float32")))
    np.testing.assert_allclose(compute_with(folder, images), expected, atol=1e-5 * np.abs(expected).max())
    if name == "onnx":
        assert re.search(r"\n\| file format \| ONNX opset \d+, IR \d+ \|\n", (folder / "MODEL_CARD.md").read_text())


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
    lines = FORMATS[name].code(str(tmp_path / "litert" / "model_int8.tflite"))
    assert "\n".join(f"{'':<15}{line}" for line in lines) in out
    assert card["int8_code"] == FORMATS[name].code("model_int8.tflite")
    images = np.zeros((2, 16, 16, 3), "float32")
    assert compute_with(tmp_path / "litert", images, "int8_code").shape == (2, 2)


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
    assert (
        card["images"].items()
        >= {
            "image_size": [16, 16],
            "stored_size": None,
            "resize": "crop",
            "background": "white",
        }.items()
    )
    assert card["classes"] == (copied / "classes.txt").read_text().split()
    assert card["scores"] == {split: summary[split] for split in ("validation", "test")}
    assert card["data"]["splits"] == json.loads((copied / "data.json").read_text())["splits"]
    assert card["weights"] == {"run": "run", "file": "model.keras", "kind": "raw"}
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
    assert lines[2:5] == [
        f"{'':<15}import keras",
        f"{'':<15}network = keras.saving.load_model('{network.parent}/export/keras/model.keras')",
        f"{'':<15}logits = network(images, training=False)",
    ]
    assert lines[5].startswith("  saved_model  ")
    assert lines[6] == f"{'':<15}import tensorflow as tf"
    assert lines[9:11] == [
        "`images` is float32 [batch, height, width, channels], 0 to 255. Lines that read them from files:",
        f"  {network.parent}/export/keras/MODEL_CARD.md",
    ]
    assert lines[11].startswith(
        "Checked on 16 random images (the model file has no data of its own), each file in its own runtime. The "
    )


def test_the_screen_shows_a_path_as_it_is_and_valid_python(tmp_path, runtime, capsys):
    folder = tmp_path / "n\N{LATIN SMALL LETTER E WITH ACUTE}'t"
    folder.mkdir()
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    exports = api.export(save(network, folder), "keras")
    capsys.readouterr()
    show_exports(exports)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[3] == f'network = keras.saving.load_model("{folder}/export/keras/model.keras")'
    names = {"images": np.zeros((1, 4, 4, 1), "float32")}
    exec("\n".join(lines[2:5]), names)  # noqa: S102
    assert names["logits"].shape == (1, 2)


def test_a_network_without_preprocessing_has_a_card(network, runtime):
    [exported] = api.export(network, "keras")
    assert exported.card["normalization"] == {"name": "none", "kind": "affine", "mean": [0.0], "std": [1.0]}


def test_a_file_of_plain_layers_loads_without_kpipe(network, runtime):
    [exported] = api.export(network, "keras")
    assert exported.card["code"] == FORMATS["keras"].code("model.keras")
    with zipfile.ZipFile(exported.path) as archive:
        assert b"kpipe" not in archive.read("config.json")


def test_layers_of_our_own_need_kpipe(tmp_path, runtime, capsys):
    inner = keras.Sequential([keras.Input((4, 4, 1)), api.models.layers.ScaledTanh(), keras.layers.Flatten()])
    images = keras.Input((4, 4, 1))
    [exported] = api.export(save(keras.Model(images, keras.layers.Dense(2)(inner(images))), tmp_path), "keras")
    assert exported.card["code"][0] == "import kpipe.models"
    show_exports([exported])
    assert f"(keras {keras.__version__}), loads where kpipe is installed\n{'':<15}import kpipe.models\n" in (
        capsys.readouterr().out
    )


def test_a_network_for_any_size_is_checked_with_one(tmp_path, runtime):
    images = keras.Input((None, None, 3))
    path = save(keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(images))), tmp_path)
    with pytest.raises(ConfigError, match="^image_size: expected the side of the images in pixels, since .* takes any"):
        api.export(path, "keras")
    [exported] = api.export(path, "keras", image_size=8, resize="pad")
    assert exported.card["input"]["shape"] == ["batch", None, None, 3]
    assert (exported.card["images"]["image_size"], exported.card["images"]["resize"]) == ([8, 8], "pad")


def test_another_export_replaces_the_files_of_the_first(network, runtime):
    api.export(network, ["keras", "saved_model"])
    folder = network.parent / "export"
    for name in ("keras", "saved_model"):
        (folder / name / "evaluation").mkdir()
        (folder / name / "evaluation" / "mine.txt").touch()
    (folder / ".keras.part").mkdir()
    (folder / ".keras.part" / "left.txt").touch()  # by a kill
    (folder / "keras" / "model.keras").write_text("older")
    (folder / "saved_model" / "model" / "older.txt").touch()
    exports = api.export(network, ["keras", "saved_model"])
    assert [each.replaced for each in exports] == [None, None]
    for name in ("keras", "saved_model"):
        assert (folder / name / "evaluation" / "mine.txt").exists()
    assert keras.saving.load_model(folder / "keras" / "model.keras").count_params() == 34
    assert not (folder / "saved_model" / "model" / "older.txt").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["keras", "saved_model"]


def test_the_screen_says_which_other_weights_were_replaced(network, copied, runtime, tmp_path, capsys):
    api.export(copied, "keras", output=tmp_path / "to")
    exports = api.export(network, "keras", output=tmp_path / "to")
    assert exports[0].replaced == "model.keras of the run run"
    show_exports(exports)
    assert f"\n{'':<15}replaces the export of model.keras of the run run\n" in capsys.readouterr().out
    assert exports[0].card == json.loads((tmp_path / "to" / "keras" / "model_card.json").read_text())
    [again] = api.export(copied, "keras", output=tmp_path / "to")
    assert again.replaced == "net.keras"


def test_weights_of_one_run_lie_beside_each_other(copied, runtime):
    shutil.copy(copied / "model.keras", copied / "model_averaged.keras")
    for weights, name in {"best": "keras", "averaged": "keras_averaged"}.items():
        [exported] = api.export(copied, "keras", weights=weights)
        assert exported.path == copied / "export" / name / "model.keras"
        assert exported.replaced is None
    assert sorted(os.listdir(copied / "export")) == ["keras", "keras_averaged"]


def test_the_card_has_a_fingerprint_of_the_data(of_own_code, runtime, tmp_path):
    [exported] = api.export(of_own_code, "keras", output=tmp_path)
    fingerprint = exported.card["data"]["fingerprint"]
    assert re.fullmatch("[0-9a-f]{16}", fingerprint)
    assert f"\n| fingerprint | `{fingerprint}`, of the images' names" in (exported.path.parent / PAGE).read_text()


def test_scores_belong_to_the_weights_that_have_them(copied, runtime):
    shutil.copy(copied / "model.keras", copied / "model_averaged.keras")
    [exported] = api.export(copied, "keras", weights="averaged")
    assert exported.card["weights"] == {"run": "run", "file": "model_averaged.keras", "kind": "averaged"}
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
    assert (code, err.strip()) == (130, "interrupted")
    assert not (network.parent / "export").exists()


def test_layers_in_half_precision_are_refused(tmp_path):
    inner = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, dtype="float16")])
    images = keras.Input((4, 4, 1))
    path = save(keras.Model(images, keras.layers.Dense(2)(inner(images))), tmp_path)
    said = r"net.keras: expected layers that compute in float32, got dense\w* in float16. Build the network in float32"
    with pytest.raises(ConfigError, match=said):
        api.export(path, "keras")


def test_a_policy_of_the_process_changes_nothing(network, runtime):
    keras.config.set_dtype_policy("mixed_bfloat16")
    [exported] = api.export(network, "keras")
    assert exported.card["checks"]["difference"] == 0


def test_a_mistake_is_said_before_tensorflow_is_imported(kpipe, network):
    code, out, err = kpipe("export", str(network), "--to", "onx")
    message = "--to: expected one of keras, saved_model, onnx, litert, got 'onx', did you mean 'onnx'?\n"
    assert (code, out, err) == (2, "", message)


def test_a_full_disk_is_said(network, runtime, monkeypatch):
    def fail(path, card):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("kpipe.commands.export.write_json", fail)
    with pytest.raises(EnvironmentFault, match=r"model_card.json: cannot be written \(No space left on device\); "):
        api.export(network, "keras")
    assert not (network.parent / "export").exists()


def test_a_place_where_no_folder_can_be_made(network):
    with pytest.raises(ConfigError, match="^output: expected a folder in which you may write, got /proc/kpipe$"):
        api.export(network, "keras", output="/proc/kpipe")
