"""`kpipe export`: each file computes what the network computes, and the card says what its user must know."""

import json
import os
import shutil
import subprocess

import keras
import numpy as np
import pytest
from tiny_runs import train_once

import kpipe as api
from kpipe.errors import ConfigError, DataError, EnvironmentFault
from kpipe.exporting.card import describe_images
from kpipe.exporting.formats import FORMATS
from kpipe.exporting.writing import WRITERS, write_format
from kpipe.models import portable, preprocessing
from kpipe.models.building import build_model
from kpipe.models.portable import make_exportable, save_portable
from kpipe.models.preprocessing import Normalization

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


@pytest.fixture
def runtime(monkeypatch):
    """Stand in for the process that checks: set what it computes for an image, or how it ends."""

    class Runtime:
        logits, code, error = [0.0, 0.0], 0, ""

        def run(self, command, **options):
            images, logits = command[-2:]
            np.save(logits, np.tile(self.logits, (len(np.load(images)), 1)))
            return subprocess.CompletedProcess(command, self.code, "", self.error)

    stand_in = Runtime()
    monkeypatch.setattr("kpipe.exporting.verification.subprocess", stand_in)
    monkeypatch.setattr("kpipe.commands.export.compute_logits", lambda model, images: np.zeros((len(images), 2)))
    return stand_in


def needs(name):
    missing = [module for module in FORMATS[name].modules if not _is_installed(module)]
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"{name} needs {missing}"))


def _is_installed(module):
    from importlib.util import find_spec

    return find_spec(module) is not None


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


@pytest.mark.parametrize(
    "name",
    [
        needs("onnx"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("keras", "saved_model")),
    ],
)
def test_a_format_computes_what_the_network_computes(kpipe, finished, tmp_path, name):
    code, out, err = kpipe("export", str(finished), "--to", name, "--output", str(tmp_path / "to"))
    assert (code, err) == (0, "")
    folder = tmp_path / "to" / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["MODEL_CARD.md", "classes.txt", FORMATS[name].file, "model_card.json"]
    )
    assert f"network = {FORMATS[name].load.format(path=json.dumps(str(folder / FORMATS[name].file)))}\n" in out
    assert f"  {name:<12} " in out and "B, differs by " in out and f" ({FORMATS[name].runtime} " in out
    assert "Checked on 16 images of the test split, each file in its own runtime. The difference is the" in out
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3))  # another number of them than was checked
    expected = np.asarray(keras.models.load_model(finished / "model.keras")(images.astype("float32")))
    np.testing.assert_allclose(compute_with(folder, images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.skipif(not _is_installed("ai_edge_litert"), reason="needs ai-edge-litert")
def test_int8_says_what_it_costs(kpipe, finished, tmp_path):
    code, out, err = kpipe("export", str(finished), "--to", "litert", "--int8", "--output", str(tmp_path))
    assert (code, err) == (0, "")
    card = json.loads((tmp_path / "litert" / "model_card.json").read_text())
    int8, summary = card["checks"]["int8"], json.loads((finished / "summary.json").read_text())
    assert int8["float32_accuracy"] == pytest.approx(summary["test"]["accuracy"])
    assert int8["calibration"] == "72 images of the train split"
    accuracy, float32 = (f"{100 * int8[key]:.2f} %" for key in ("accuracy", "float32_accuracy"))
    assert f"accuracy {accuracy}, in float32 {float32}, on {summary['test']['images']} images of the test split" in out
    small, large = ((tmp_path / "litert" / name).stat().st_size for name in ("model_int8.tflite", "model.tflite"))
    assert small == int8["bytes"] < large / 2


def test_the_card_says_what_a_user_must_know(copied, runtime):
    [exported] = api.export(copied, "keras")
    assert exported.path == copied / "export" / "keras" / "model.keras"
    assert exported.size == exported.path.stat().st_size
    card = json.loads((exported.path.parent / "model_card.json").read_text())
    assert card == exported.card
    summary = json.loads((copied / "summary.json").read_text())
    assert card["network"]["name"] == "lenet5"
    assert card["input"] | {"channels": None} == {
        "name": "images",
        "dtype": "float32",
        "shape": ["batch", 16, 16, 3],
        "range": [0, 255],
        "channels": None,
    }
    assert card["classes"] == (copied / "classes.txt").read_text().split()
    assert card["scores"] == {split: summary[split] for split in ("validation", "test")}
    assert card["data"]["splits"] == json.loads((copied / "data.json").read_text())["splits"]
    assert card["weights"] == {"file": "model.keras", "kind": "raw"}
    assert card["normalization"]["kind"] == "affine" and len(card["normalization"]["mean"]) == 3
    assert card["versions"]["trained with"]["keras"] == card["versions"]["exported with"]["keras"] == keras.__version__
    page = (exported.path.parent / "MODEL_CARD.md").read_text()
    assert page.startswith("# lenet5, 16x16x3, 2 classes\n")
    assert "| data | synthetic |\n" in page  # which is always the same, and has no fingerprint
    assert 'network = keras.saving.load_model("model.keras")\nlogits = network(images)\n' in page
    assert f"| test | {summary['test']['loss']:.6g} |" in page


def test_another_export_replaces_the_first(copied, runtime):
    api.export(copied, ["keras"])
    (copied / "export" / "keras" / "left.txt").touch()
    api.export(copied, ["keras"])
    assert not (copied / "export" / "keras" / "left.txt").exists()
    assert [path.name for path in (copied / "export").iterdir()] == ["keras"]


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


def test_random_images_check_where_the_data_are_gone(copied, runtime, data_are_gone, capsys):
    [exported] = api.export(copied, "keras")
    said = "16 random images (folder:photographs: expected a folder, got none)"
    assert exported.card["checks"]["images"] == said
    assert f"Checked on {said}, each file in its own runtime" in capsys.readouterr().out


@pytest.mark.skipif(not _is_installed("ai_edge_litert"), reason="needs ai-edge-litert")
def test_int8_needs_the_data(copied, runtime, data_are_gone):
    with pytest.raises(DataError, match="^int8: expected the images of the run, to calibrate with, got: folder:photog"):
        api.export(copied, "litert", int8=True)


def test_a_file_that_computes_something_else_is_not_kept(copied, runtime):
    runtime.logits = [0.0, 0.1]
    said = (
        r"^keras: expected the logits of model.keras within 0.0001 of the network's, relative to the largest, got a "
        r"difference of 0.1 in keras. Nothing was kept; install the versions in constraints.txt and try again$"
    )
    with pytest.raises(EnvironmentFault, match=said):
        api.export(copied, "keras")
    assert not (copied / "export").exists()


@pytest.mark.parametrize("logits", [[np.nan, 0.0], [0.0]])
def test_no_number_and_another_shape_are_no_logits(copied, runtime, logits):
    runtime.logits = logits
    with pytest.raises(EnvironmentFault, match="got a difference of (nan|inf) in keras"):
        api.export(copied, "keras")


def test_a_file_that_its_runtime_cannot_load_is_not_kept(copied, runtime):
    runtime.code, runtime.error = 1, "Traceback:\nValueError: unknown operation"
    said = "^keras: expected a file that keras can run, got one at which it fails: 'ValueError: unknown operation'. Not"
    with pytest.raises(EnvironmentFault, match=said):
        api.export(copied, "keras")
    assert not (copied / "export").exists()


def test_a_converter_that_fails_is_quoted(copied, runtime, monkeypatch):
    def refuse(model, path):
        raise ValueError("no such layer")

    monkeypatch.setitem(WRITERS, "saved_model", refuse)
    said = (
        "^to: expected a network that saved_model can hold, got 'no such layer' from its converter. Nothing was "
        "written; other formats are keras, onnx, litert$"
    )
    with pytest.raises(ConfigError, match=said):
        api.export(copied, ["keras", "saved_model"])
    assert not (copied / "export").exists()


@pytest.mark.parametrize("name", [needs("onnx"), needs("litert")])
def test_an_operation_that_a_runtime_does_not_have(tmp_path, name):
    images = keras.Input((4, 4, 1))
    network = keras.Model(images, keras.layers.Flatten()(keras.ops.erfinv(images)))
    network.save(tmp_path / "net.keras")
    (tmp_path / "classes.txt").write_text("".join(f"{number}\n" for number in range(16)))
    said = f"^to: expected operations that {name} has, got Erfinv. Nothing was written; other formats are keras, "
    with pytest.raises(ConfigError, match=said):
        api.export(tmp_path / "net.keras", name)
    assert not (tmp_path / "export").exists()


def test_layers_in_half_precision_are_refused(tmp_path):
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2, dtype="float16")])
    network.save(tmp_path / "net.keras")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    said = r"net.keras: expected layers that compute in float32, got dense\w* in float16. Build the network in float32"
    with pytest.raises(ConfigError, match=said):
        api.export(tmp_path / "net.keras", "keras")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onx"], "to: expected one of keras, saved_model, onnx, litert, got 'onx', did you mean 'onnx'?"),
        (["--to", "keras", "--int8"], "int8: expected the format litert, which alone is quantized, got keras"),
        (["--to", "keras", "--output", "a_file"], "output: expected a folder, got "),
        (
            ["--to", "keras", "--output", "taken"],
            "output: expected an empty folder or an earlier export to replace, got",
        ),
    ],
)
def test_mistakes_in_arguments(kpipe, finished, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    (tmp_path / "taken" / "keras").mkdir(parents=True)
    (tmp_path / "taken" / "keras" / "mine.txt").touch()
    code, out, err = kpipe("export", str(finished), *arguments)
    assert (code, err.startswith(message)) == (2, True), err
    assert (tmp_path / "taken" / "keras" / "mine.txt").exists()


def test_a_folder_that_may_not_be_written(kpipe, finished, monkeypatch):
    monkeypatch.setattr("kpipe.files.os.access", lambda path, mode: False)
    code, _, err = kpipe("export", str(finished), "--to", "keras")
    assert (code, err) == (2, f"output: expected a folder in which you may write, got {finished}/export\n")


def test_a_full_disk_is_said(kpipe, copied, runtime, monkeypatch):
    def fail(model, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setitem(WRITERS, "keras", fail)
    code, _, err = kpipe("export", str(copied), "--to", "keras")
    assert code == 5 and "model.keras: cannot be written (No space left on device)" in err
    assert not (copied / "export").exists()


def test_a_place_where_no_folder_can_be_made(kpipe, finished, runtime):
    code, _, err = kpipe("export", str(finished), "--to", "keras", "--output", "/proc/kpipe")
    assert (code, err.startswith("/proc/kpipe: cannot be written (No such file or directory); ")) == (5, True), err


def test_what_must_be_installed_is_said(kpipe, finished, monkeypatch):
    monkeypatch.setattr("kpipe.exporting.formats.find_spec", lambda module: None)
    code, _, err = kpipe("export", str(finished), "--to", "onnx")
    assert (code, err) == (
        2,
        "to: onnx needs onnx, tf2onnx, onnxruntime, which cannot be imported. "
        'Install with: pip install -e ".[export]"\n',
    )


def test_a_format_at_least_is_needed(finished):
    with pytest.raises(ConfigError, match="^to: expected one or more of keras, saved_model, onnx, litert, got none$"):
        api.export(finished, [])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({}, "scale the shorter side to 32 pixels and crop the center; transparent pixels show white"),
        (
            {"stored_size": 40},
            "scale the shorter side to 40 pixels and crop the center, then crop the center of 32x32;",
        ),
        ({"resize": "pad"}, "scale the longer side to 32 pixels and fill the rest with black; tran"),
        (
            {"resize": "squash", "background": [1, 2, 3]},
            "scale both sides to 32 pixels; transparent pixels show (1, 2, 3)",
        ),
    ],
)
def test_the_card_says_how_images_are_prepared(images, words):
    defaults = {"image_size": [32, 32], "stored_size": None, "resize": "crop", "background": "white"}
    assert describe_images(defaults | images).startswith(words)


CHANNELS = Normalization("affine", [120.0, 110.0, 100.0], [60.0, 50.0, 40.0])
NETWORK = {"name": "lenet5", "options": {}, "input_shape": (16, 16, 3), "classes": 2, "normalization": CHANNELS}


def _as_before(mean, std, name):
    """Return the layer that `save_portable` wrote before `Rescaling`."""
    mean, std = np.broadcast_arrays(mean, std)
    return keras.layers.Normalization(mean=mean.tolist(), variance=np.square(std).tolist(), name=name)


def test_older_files_load_and_export_as_today(tmp_path, monkeypatch):
    network = build_model(**NETWORK)
    save_portable(network, tmp_path / "now.keras", **NETWORK)
    monkeypatch.setattr(preprocessing, "make_rescaling", _as_before)
    save_portable(network, tmp_path / "before.keras", **NETWORK)
    before, now = (keras.models.load_model(tmp_path / f"{name}.keras") for name in ("before", "now"))
    assert isinstance(before.get_layer("standardize"), keras.layers.Normalization)
    rebuilt = build_model(**NETWORK)
    portable.copy_weights(before, rebuilt)
    exported = make_exportable(before, (16, 16, 3))
    assert isinstance(exported.get_layer("standardize"), keras.layers.Rescaling)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype("float32")
    expected = np.asarray(network(images))
    for each in (before, now, rebuilt, exported):
        np.testing.assert_allclose(np.asarray(each(images)), expected, atol=1e-6)


def test_a_network_for_any_size_gets_one():
    images = keras.Input((None, None, 3))
    network = keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(images)))
    fixed = make_exportable(network, (8, 8, 3))
    assert (network.input_shape, fixed.input_shape) == ((None, None, None, 3), (None, 8, 8, 3))
    images = np.full((1, 8, 8, 3), 7.0)
    np.testing.assert_allclose(np.asarray(fixed(images)), np.asarray(network(images)), rtol=1e-6)


NETWORKS = {
    "lenet5": ({}, (28, 28, 1)),
    "lenet5 original": ({"variant": "original"}, (32, 32, 1)),
    "lenet5 concept": ({"variant": "concept"}, (28, 28, 1)),
    "alexnet": ({"width": 64}, (64, 64, 3)),
    "zfnet": ({"width": 64}, (64, 64, 3)),
    "googlenet": ({}, (32, 32, 3)),
    "googlenet batch_norm": ({"variant": "batch_norm"}, (32, 32, 3)),
    "vgg11": ({"width": 64, "lrn": True}, (32, 32, 3)),
    "vgg13": ({"width": 64, "batch_norm": True}, (32, 32, 3)),
    "vgg16": ({"head": "gap"}, (32, 32, 3)),
    "vgg16_c": ({"width": 64}, (32, 32, 3)),
    "vgg19": ({"width": 64}, (32, 32, 3)),
    "mlp": ({"width": 32, "activation": "maxout"}, (8, 8, 1)),
    "go_policy": ({"depth": 3, "width": 8}, (9, 9, 4)),
    "speech_cnn": ({"width": 8}, (40, 32, 1)),
    "text_cnn": ({"width": 8, "hidden": 8}, (123, 1, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [needs("onnx"), needs("litert")])
def test_every_network_exports(tmp_path, name, network):
    options, shape = NETWORKS[network]
    classes = 81 if network == "go_policy" else 10
    model = build_model(network.split()[0], options, input_shape=shape, classes=classes)
    assert_same_logits(tmp_path, name, make_exportable(model, shape), shape)


GENERATOR = np.random.default_rng(0)
NORMALIZATIONS = {
    "affine": CHANNELS,
    "caffe": preprocessing.NAMED["caffe"],
    "mean_image": Normalization("mean_image", GENERATOR.uniform(0, 255, (4, 4, 3)).astype("float32")),
    "whiten": Normalization(
        "whiten", GENERATOR.uniform(0, 255, 48).astype("float32"), matrix=GENERATOR.normal(size=(48, 5)).astype("f")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("name", [needs("onnx"), needs("litert")])
def test_every_normalization_exports(tmp_path, name, kind):
    network = NETWORK | {"name": "mlp", "input_shape": (4, 4, 3), "normalization": NORMALIZATIONS[kind]}
    save_portable(build_model(**network), tmp_path / "net.keras", **network)
    loaded = keras.models.load_model(tmp_path / "net.keras")
    assert_same_logits(tmp_path, name, make_exportable(loaded, (4, 4, 3)), (4, 4, 3))


def assert_same_logits(folder, name, model, shape):
    write_format(name, model, folder / FORMATS[name].file)
    images = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype("float32")
    names, expected = {"images": images}, np.asarray(model(images))
    code = [FORMATS[name].imports, *FORMATS[name].code(str(folder / FORMATS[name].file))]
    exec("\n".join(code), names)  # noqa: S102
    np.testing.assert_allclose(names["logits"], expected, atol=1e-5 * np.abs(expected).max())
