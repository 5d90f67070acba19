"""A trained network from disk: it computes what it computed in its run, and what cannot be used is said."""

import json
import shutil

import keras
import numpy as np
import pytest
from tiny_runs import WITHOUT_FIGURES, train_once

from kpipe import cli
from kpipe.assembly import load_splits
from kpipe.data.pipeline import evaluation_batches
from kpipe.errors import ConfigError, DataError
from kpipe.trained import load_trained

AVERAGED = """\
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 6, images: 120}}
model: {name: lenet5}
training: {epochs: 1, precision: mixed_bfloat16, average: {decay: 0.5}, loss: {label_smoothing: 0.1}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run in half precision."""
    return train_once(tmp_path_factory.mktemp("trained"), AVERAGED, replaced=[WITHOUT_FIGURES])


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_it_computes_what_its_run_computed(finished):
    trained = load_trained(finished)
    assert (trained.image_shape, len(trained.class_names)) == ((16, 16, 3), 6)
    assert trained.model.dtype_policy.name == "mixed_bfloat16"
    splits = load_splits(trained.data)
    scores = trained.model.evaluate(evaluation_batches(splits, "test", 16), return_dict=True, verbose=0)
    summary = json.loads((finished / "summary.json").read_text())["test"]
    assert scores == {name: pytest.approx(summary[name], rel=1e-6) for name in ("loss", "accuracy", "top5")}


def test_a_run_in_float16_is_computed_in_float32_without_a_gpu(copied, monkeypatch):
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("precision: mixed_bfloat16", "precision: mixed_float16"))
    monkeypatch.setattr("kpipe.trained.gpu_capability", lambda: None)
    trained = load_trained(copied)
    assert trained.model.dtype_policy.name == "float32"
    assert trained.notes == (
        "the network is computed in float32, since TensorFlow sees no GPU; the run computed in mixed_float16, so that "
        "its own numbers may differ a little",
    )


def test_both_kinds_of_weights_can_be_had(finished):
    preferred = json.loads((finished / "summary.json").read_text())["weights"]
    kinds = {kind: load_trained(finished, weights=kind) for kind in ("best", "raw", "averaged")}
    logits = {kind: each.model.get_layer("logits").get_weights()[0] for kind, each in kinds.items()}
    np.testing.assert_array_equal(logits["best"], logits[preferred])
    assert not np.array_equal(logits["raw"], logits["averaged"])
    [other] = {"raw", "averaged"} - {preferred}
    by_file = load_trained(finished / f"model_{other}.keras")
    np.testing.assert_array_equal(by_file.model.get_layer("logits").get_weights()[0], logits[other])


def test_a_model_file_alone_needs_its_classes_and_a_size(tmp_path):
    images = keras.Input((None, None, 3))
    logits = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(images))
    keras.Model(images, logits).save(tmp_path / "net.keras")
    said = rf"^{tmp_path}/classes.txt: expected the classes of the network, one name a line in the order of "
    with pytest.raises(DataError, match=said):
        load_trained(tmp_path / "net.keras")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    said = rf"^image_size: expected the side of the images in pixels, since {tmp_path}/net.keras takes any, got none$"
    with pytest.raises(ConfigError, match=said):
        load_trained(tmp_path / "net.keras")
    alone = load_trained(tmp_path / "net.keras", image_size=40, resize="pad")
    assert (alone.run, alone.image_shape, alone.data.resize) == (None, (40, 40, 3), "pad")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"classes.txt: expected the 2 classes of the network, got 1$"):
        load_trained(tmp_path / "net.keras", image_size=40)


def network(*layers, shape=(8, 8, 3), classes=2):
    """Return a network of Keras that ends in logits, with these layers after its input."""
    images = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(images, keras.layers.Dense(classes, name="logits")(keras.layers.Flatten()(x)))


def branching(inputs=1, outputs=1):
    """Return a network with several inputs or outputs."""
    images = [keras.Input((8, 8, 3)) for _ in range(inputs)]
    x = keras.layers.Flatten()(keras.layers.Add()(images) if inputs > 1 else images[0])
    return keras.Model(images, [keras.layers.Dense(2)(x) for _ in range(outputs)])


def ending_in(activation, inside=False):
    """Return a network whose last layer computes an activation, if asked for in a model within the model."""
    if not inside:
        return keras.Sequential(
            [network(), keras.layers.Softmax(name="end")]
            if activation is None
            else [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation, name="end")]
        )
    images = keras.Input((8, 8, 3))
    return keras.Model(images, ending_in(activation)(images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: keras.Sequential([keras.Input((784,)), keras.layers.Dense(2)]),
            r"expected a network of images \[B, H, W, C\], got input \(None, 784\)$",
        ),
        (lambda: branching(inputs=2), r"got input \(None, 8, 8, 3\) and \(None, 8, 8, 3\)$"),
        (
            lambda: branching(outputs=2),
            r"expected one output, a logit for each of two classes or more, \[B, K\], got \(None, 2\) and \(None, 2\)$",
        ),
        (lambda: network(classes=1), r"expected one output, .* got \(None, 1\)$"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)]),
            r"expected one output, .* got \(None, 8, 8, 2\)$",
        ),
        (
            lambda: ending_in("softmax"),
            r"expected logits, got a network that ends in softmax \(layer end\). Save it again after "
            r"model.get_layer\('end'\).activation = keras.activations.linear$",
        ),
        (lambda: ending_in("sigmoid"), r"got a network that ends in sigmoid \(layer end\). "),
        (lambda: ending_in("softmax", inside=True), r"got a network that ends in softmax \(layer end\). "),
        (
            lambda: ending_in(None),
            r"Save it again after model = keras.Model\(model.inputs, model.get_layer\('end'\)",
        ),
        (network, None),
        (lambda: network(keras.layers.RandomFlip()), None),
        (lambda: network(adapted()), None),
    ],
)
def test_files_of_others_are_used_or_refused_with_a_reason(tmp_path, make, message):
    model = make()
    model.save(tmp_path / "net.keras")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    if message:
        with pytest.raises(ConfigError, match=rf"^{tmp_path}/net.keras: .*{message}"):
            load_trained(tmp_path / "net.keras")
        return
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    trained = load_trained(tmp_path / "net.keras")
    np.testing.assert_array_equal(trained.model.predict_on_batch(images), model.predict_on_batch(images))


def adapted():
    layer = keras.layers.Normalization()
    layer.adapt(np.arange(8 * 8 * 3, dtype="float32").reshape(1, 8, 8, 3))
    return layer


def test_a_file_of_one_size_says_it(tmp_path):
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]).save(tmp_path / "a.keras")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load_trained(tmp_path / "a.keras").image_shape == (8, 8, 1)
    with pytest.raises(ConfigError, match=rf"^image_size: expected the 8 pixels of {tmp_path}/a.keras, got 9$"):
        load_trained(tmp_path / "a.keras", image_size=9)


def drop_other(run):
    for file in run.glob("model_*.keras"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: (run / "model.keras").unlink(),
            r"got one without its model.keras. weights='\w+' takes model_\w+.keras; `kpipe finish .*` writes it again, "
            "from the last checkpoint of the run$",
        ),
        (
            lambda run: (run / "model.keras").write_bytes(b"PK"),
            r"got one that is damaged or cut short. weights='\w+' takes .*; `rm .*/model.keras && kpipe finish .*` ",
        ),
        (
            lambda run: ((run / "model.keras").write_bytes(b"PK"), shutil.rmtree(run / "checkpoints"), drop_other(run)),
            "cut short. The run has no checkpoint either: train it again, or restore the file.$",
        ),
        (
            lambda run: (run / "classes.txt").write_text("class_0\nclass_2\nclass_1\nclass_3\nclass_4\nclass_5\n"),
            r"classes.txt: expected the classes with which the run was trained \(data.json\), got 'class_2' in line 2 "
            "instead of 'class_1'. Restore classes.txt$",
        ),
        (lambda run: (run / "normalization.npz").unlink(), "normalization.npz: expected the constants of the first la"),
        (
            lambda run: (run / "classes.txt").unlink(),
            "classes.txt: expected the classes of the network, one name a lin",
        ),
        (
            lambda run: (run / "classes.txt").write_bytes(b"\xff"),
            "logits, got an empty file, or one that is not UTF-8$",
        ),
        (
            lambda run: (run / "classes.txt").write_text("cat\n"),
            r"\(data.json\), 6 in all, got 1. Restore classes.txt$",
        ),
        (
            lambda run: (run / "summary.json").unlink(),
            "expected a finished run, got one that is not finished. `kpipe f",
        ),
        (
            lambda run: (run / "summary.json").write_text('{"status": "diverged"}'),
            "expected a finished run, got one that is diverged. `kpipe finish .*` finishes it as it stands.$",
        ),
        (
            lambda run: ((run / "summary.json").unlink(), shutil.rmtree(run / "checkpoints")),
            "got one that is not finished, and it has no checkpoint to finish from. Train it again$",
        ),
    ],
)
def test_a_run_that_cannot_be_used_says_why(copied, damage, message):
    damage(copied)
    with pytest.raises((ConfigError, DataError), match=message):
        load_trained(copied)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (
            "nowhere",
            {},
            "nowhere: expected .* got no such file or directory, did you mean /.*/run.$",
        ),
        (
            "rnu",
            {},
            "rnu: expected .* got no such file or directory, did you mean 'run'.$",
        ),
        (
            "run/model_avreaged.keras",
            {},
            "model_avreaged.keras: expected a run directory or a .keras file, got no such file or directory, did you "
            "mean 'model_averaged.keras'.$",
        ),
        ("run/config.yaml", {}, "config.yaml: expected a run .* got a file of another kind, did you mean /.*/run.$"),
        ("run/checkpoints", {}, "checkpoints: expected .* got a folder without config.yaml, did you mean /.*/run.$"),
        (
            "text.kera",
            {},
            "text.kera: expected .* got no such file or directory, did you mean 'text.keras'.$",
        ),
        (
            ".",
            {},
            "expected a run directory or a .keras file, got a folder without config.yaml, did you mean /.*/run.$",
        ),
        ("empty", {}, "empty: expected a run directory or a .keras file, got a folder without config.yaml$"),
        (
            "text.keras",
            {},
            r"text.keras: expected a Keras model \(.keras\), got a file of another kind. Check its name",
        ),
        ("run", {"weights": "all"}, "^weights: expected one of best, raw, averaged, got 'all'$"),
        ("run", {"image_size": 32}, "^image_size, resize: expected neither with a run, whose config.yaml says both: "),
        ("run", {"image_size": -5}, "^image_size: expected at least 1 pixel, got -5$"),
        ("run", {"resize": "squeeze"}, "^resize: expected one of crop, pad, squash, got 'squeeze'$"),
        (
            "run/model_averaged.keras",
            {"weights": "raw"},
            "^weights: expected a run directory to choose weights of, got raw and the file /.*_averaged.keras. Give /",
        ),
    ],
)
def test_what_is_not_trained_is_refused(copied, tmp_path, path, options, message):
    (tmp_path / "text.keras").write_text("a model")
    (tmp_path / "empty" / "one").mkdir(parents=True)
    shutil.copy(copied / "model.keras", copied / "model_averaged.keras")
    with pytest.raises(ConfigError, match=message):
        load_trained(tmp_path / path, **options)


def test_a_run_without_averages_has_one_kind_of_weights(copied):
    (copied / "model_raw.keras").unlink(missing_ok=True)
    (copied / "model_averaged.keras").unlink(missing_ok=True)
    preferred = json.loads((copied / "summary.json").read_text())["weights"]
    [other] = {"raw", "averaged"} - {preferred}
    with pytest.raises(
        ConfigError, match=f"^weights: expected a run with {other} weights of its own, got /.*/run, which has no "
    ):
        load_trained(copied, weights=other)


def test_other_weights_are_used_without_the_best(copied):
    [other] = {"raw", "averaged"} - {json.loads((copied / "summary.json").read_text())["weights"]}
    (copied / "model.keras").unlink()
    assert load_trained(copied, weights=other).weights == other


@pytest.mark.slow
@pytest.mark.parametrize("verb", [("finish",), ("run", "--resume")])
def test_a_lost_model_file_is_written_again(copied, verb):
    before, summary = load_trained(copied).model.get_weights(), (copied / "summary.json").read_text()
    (copied / "model.keras").unlink()
    assert cli.main([*verb, str(copied)]) == 0
    for array, again in zip(before, load_trained(copied).model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, again)
    old, new = (json.loads(text) for text in (summary, (copied / "summary.json").read_text()))
    assert {key: new[key] for key in old if "seconds" not in key and "per_second" not in key} == {
        key: value for key, value in old.items() if "seconds" not in key and "per_second" not in key
    }


def test_a_lost_record_of_the_classes_is_no_error(copied):
    (copied / "data.json").unlink()
    assert len(load_trained(copied).class_names) == 6


def test_a_card_says_how_the_images_of_a_file_are_read(tmp_path):
    images = keras.Input((None, None, 3))
    logits = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(images))
    keras.Model(images, logits).save(tmp_path / "net.keras")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    how = {"image_size": [16, 16], "stored_size": 20, "resize": "pad", "background": [1, 2, 3]}
    card = {"file": "net.keras", "classes": ["cat", "dog"], "images": how}
    (tmp_path / "model_card.json").write_text(json.dumps(card))

    def read(**options):
        trained = load_trained(tmp_path / "net.keras", **options)
        data = trained.data
        return trained.image_shape[:2], data.image_size, data.stored_size, data.resize, data.background, trained.notes

    assert read() == ((16, 16), 16, 20, "pad", [1, 2, 3], ())
    assert read(image_size=16, resize="crop") == ((16, 16), 16, 20, "crop", [1, 2, 3], ())
    assert read(image_size=24) == ((24, 24), 24, None, "pad", [1, 2, 3], ())
    note = (
        "no model_card.json says how the images of its training were read; here they become 24x24 pixels by "
        "resize='crop', and transparent pixels white"
    )
    for other in ({"file": "model.onnx"}, {"classes": ["dog", "cat"]}, {"images": []}):
        (tmp_path / "model_card.json").write_text(json.dumps(card | other))
        assert read(image_size=24) == ((24, 24), 24, None, "crop", "white", (note,))
    (tmp_path / "model_card.json").write_text(json.dumps(card | {"images": how | {"resize": "melt"}}))
    with pytest.raises(DataError, match="model_card.json: expected how images are read, .*. Restore the file, or remo"):
        read()


@pytest.mark.parametrize("name", ["a Lambda layer", "'Unknown'"])
def test_layers_that_need_code_are_refused_with_a_way_out(tmp_path, name):
    class Unknown(keras.layers.Layer):
        def call(self, x):
            return x

    network(keras.layers.Lambda(lambda x: 2 * x) if name == "a Lambda layer" else Unknown()).save(tmp_path / "a.keras")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    said = (
        rf"a.keras: expected layers of Keras and kpipe, got {name}, .*\. Build the network of Keras's own layers alone"
    )
    with pytest.raises(ConfigError, match=said):
        load_trained(tmp_path / "a.keras")


def test_the_file_of_another_network_is_named(copied):
    network(shape=(16, 16, 3), classes=6).save(copied / "model.keras")
    said = (
        rf"^{copied}/model.keras: expected the weights of the network in config.yaml beside it, got none of the layer "
    )
    with pytest.raises(ConfigError, match=said):
        load_trained(copied)


def test_weights_of_other_shapes_are_named(copied):
    model = keras.models.load_model(copied / "model.keras")
    layers = [layer for layer in model.layers if layer.weights]
    config = model.get_config()
    for layer in config["layers"]:
        if layer["config"]["name"] == layers[0].name:
            layer["config"]["use_bias"] = False
    keras.Model.from_config(config).save(copied / "model.keras")
    with pytest.raises(ConfigError, match=r"config.yaml beside it, got others: .* Is it the file of another run\?$"):
        load_trained(copied)
