"""Networks in a file of the user's own: checked, planned, trained, searched, resumed and used like ours."""

import inspect
import json
import re
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny_runs import assert_same_run, only_run

from kpipe import cli
from kpipe.assembly import load_splits, make_augmentations
from kpipe.catalog.data import LOADING
from kpipe.catalog.own_code import load_function
from kpipe.config.loading import load_experiment, load_search
from kpipe.data import Augmentation, make_pipeline
from kpipe.data.loading import find_source, load_dataset
from kpipe.errors import ConfigError
from kpipe.models import build_model
from kpipe.trained import load_trained

NETS = """\
from __future__ import annotations

import functools

import keras
import numpy as np
from keras import layers


def tiny(input_shape, classes, *, preprocessing, width=4, depth: int = 1, activation="relu"):
    \"\"\"A convolution or two.\"\"\"
    images = keras.Input(input_shape)
    x = preprocessing(images)
    for _ in range(depth):
        x = layers.MaxPooling2D()(layers.Conv2D(width, 3, padding="same", activation=activation)(x))
    return keras.Model(images, layers.Dense(classes, dtype="float32")(layers.Flatten()(x)))


def fails(input_shape, classes, *, preprocessing):
    return 1 / 0


def text(input_shape, classes, *, preprocessing):
    return "a network"


def other_shape(input_shape, classes, *, preprocessing):
    images = keras.Input(input_shape)
    return keras.Model(images, layers.Dense(classes + 1)(layers.Flatten()(preprocessing(images))))


def soft(input_shape, classes, *, preprocessing):
    images = keras.Input(input_shape)
    x = layers.Dense(classes, name="last", dtype="float32")(layers.Flatten()(preprocessing(images)))
    return keras.Model(images, layers.Softmax(name="probabilities", dtype="float32")(x))


def sigmoid(input_shape, classes, *, preprocessing):
    images = keras.Input(input_shape)
    x = layers.Flatten()(preprocessing(images))
    return keras.Model(images, layers.Dense(classes, "sigmoid", name="last", dtype="float32")(x))


def half(input_shape, classes, *, preprocessing):
    images = keras.Input(input_shape)
    return keras.Model(images, layers.Dense(classes, dtype="bfloat16")(layers.Flatten()(preprocessing(images))))


def lacks_preprocessing(input_shape, classes):
    return None


def leaves(input_shape, classes, *, preprocessing):
    raise SystemExit


class Subclass(keras.Model):
    pass


def subclass(input_shape, classes, *, preprocessing):
    return Subclass()


def two_inputs(input_shape, classes, *, preprocessing):
    images, more = keras.Input(input_shape), keras.Input((2,))
    both = layers.Concatenate()([layers.Flatten()(preprocessing(images)), more])
    return keras.Model([images, more], layers.Dense(classes, dtype="float32")(both))


class Scale(layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, x):
        return x * self.scale * self.factor


@keras.saving.register_keras_serializable("nets")
class Nameless(Scale):
    pass


@keras.saving.register_keras_serializable("nets")
class Known(Scale):
    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def _scaled(input_shape, classes, preprocessing, layer):
    images = keras.Input(input_shape)
    x = layers.Flatten()(layer(preprocessing(images)))
    return keras.Model(images, layers.Dense(classes, dtype="float32")(x))


def known(input_shape, classes, *, preprocessing, factor=2.0):
    return _scaled(input_shape, classes, preprocessing, Known(factor))


def unknown(input_shape, classes, *, preprocessing):
    return _scaled(input_shape, classes, preprocessing, keras.Sequential([Scale(2.0, name="twice")]))


def nameless(input_shape, classes, *, preprocessing):
    return _scaled(input_shape, classes, preprocessing, Nameless(2.0))


def lambdas(input_shape, classes, *, preprocessing):
    return _scaled(input_shape, classes, preprocessing, layers.Lambda(lambda x: x, name="same"))


def sizes(input_shape, classes, *, preprocessing, sizes: tuple[int, ...] = (4,), kernel: int | list[int] = 3):
    images = keras.Input(input_shape)
    x = preprocessing(images)
    for size in sizes:
        x = layers.Conv2D(size, kernel, padding="same")(x)
    return keras.Model(images, layers.Dense(classes, dtype="float32")(layers.Flatten()(x)))


wide = functools.partial(tiny, width=9)


def array(input_shape, classes, *, preprocessing, weights: np.ndarray = None):
    return None


def conflicts(input_shape, classes, *, preprocessing, conflicts=3):
    return None


def secret(input_shape, classes, *, preprocessing, _secret=3):
    return None


def named(input_shape, classes, *, preprocessing, name="tiny"):
    return None
"""
LOADABLE = "layers that Keras can load from a file"
REGISTER = (
    "Write @keras.saving.register_keras_serializable() before classes and functions of your own, let get_config() "
    "return what a class is made with, and use no lambda"
)
LEAVE_OUT = "Leave the activation out: the loss and the metrics compute it"
NAMES = "expected parameters whose names can be those of options"
EXPERIMENT = """\
data: {source: synthetic, image_size: 8, batch_size: 16, synthetic: {classes: 2, images: 100}}
model: {name: "nets.py:tiny", width: 3}
training: {epochs: 2, precision: float32, loss: {label_smoothing: 0.1}}
search: {method: grid, space: {model.width: [2, 5]}}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An experiment whose network stands in a file beside it; the working directory is another."""
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "nets.py").write_text(NETS)
    (tmp_path / "exp" / "own.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "exp" / "own.yaml"


@pytest.fixture
def forget(monkeypatch):
    """Forget the code and its layers, as another process does not know them."""

    def forget():
        monkeypatch.setattr("kpipe.catalog.own_code._loaded", {})
        for name in [name for name in keras.saving.get_custom_objects() if name.startswith("nets>")]:
            del keras.saving.get_custom_objects()[name]

    return forget


def test_it_is_planned(kpipe, own):
    code, out, err = kpipe("plan", str(own), "--json", "model.depth=2")
    plan = json.loads(out)
    assert code == 0, err
    convolutions = (9 * 3 + 1) * 3 + (9 * 3 + 1) * 3
    assert plan["parameters"] == convolutions + (2 * 2 * 3 + 1) * 2
    assert plan["model"] == f"{own.parent}/nets.py:tiny"


def test_it_is_trained_and_used_and_a_changed_file_is_said(kpipe, own, logs):
    assert kpipe("run", str(own), "training.learning_rate.schedule=constant")[0] == 0
    run = only_run(logs, "own")
    trained = load_trained(run)
    assert trained.experiment.network_options == {"width": 3}
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    alone = keras.models.load_model(run / "model.keras")  # plain layers load without the file
    np.testing.assert_allclose(alone.predict(images, verbose=0), trained.model.predict(images, verbose=0), rtol=1e-5)
    (own.parent / "nets.py").write_text(NETS + "\n# a comment\n")
    code, out, err = kpipe("run", "--resume", str(run), "training.epochs=3")
    assert code == 0, err
    said = (
        f"note: {own.parent}/nets.py has changed since the run began; the rest of the training may differ from its "
        "beginning"
    )
    assert said in " ".join(out.split())


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        (lambda file: file.write_text(NETS.replace('activation="relu"', 'activation="tanh"')), "float32"),
        (lambda file: file.unlink(), "mixed_bfloat16"),
    ],
)
def test_a_run_is_evaluated_as_it_was_trained_after_its_code_has_changed(kpipe, own, logs, change, precision):
    assert kpipe("run", str(own), f"training.precision={precision}", "training.epochs=1")[0] == 0
    run = only_run(logs, "own")
    change(own.parent / "nets.py")
    code, out, err = kpipe("evaluate", str(run), "--json")
    assert code == 0, err
    result, of_the_run = json.loads(out), json.loads((run / "summary.json").read_text())["test"]
    if precision == "float32":
        assert ({name: result[name] for name in of_the_run}, result["notes"]) == (of_the_run, [])  # to the last digit
    else:
        assert result["loss"] == pytest.approx(of_the_run["loss"], rel=0.05)
        assert result["notes"] == [
            "the network is computed in float32, as its file keeps it; the run computed in mixed_bfloat16, so that its "
            "own numbers may differ a little"
        ]


@pytest.mark.slow
def test_a_killed_run_of_it_is_resumed_exactly_by_another_process(start, own, tmp_path):
    """Its layers have no names of their own, and Keras counts them over the life of a process."""
    often = ("run", str(own), "training.checkpoint.every.steps=2")
    whole = start(*often, KPIPE_LOGS=str(tmp_path / "whole"))
    assert whole.wait() == 0, whole.err
    killed = start(*often, blow=("kpipe.training.checkpoints", "Checkpoints", "commit", 2, signal.SIGKILL))
    assert killed.wait() == -signal.SIGKILL
    resumed = start(*often)
    assert resumed.wait() == 0, resumed.err
    assert_same_run(only_run(tmp_path / "logs", "own"), only_run(tmp_path / "whole", "own"))


@pytest.mark.slow
def test_its_options_are_searched(kpipe, own, tmp_path):
    code, out, err = kpipe("search", str(own), "training.epochs=1")
    assert code == 0, err
    [table] = (tmp_path / "logs_searches").rglob("trials.csv")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    column = rows[0].index("model.width")
    assert {row[column] for row in rows[1:]} == {"2", "5"}


def build(own, *overrides):
    experiment = load_experiment(own, overrides).experiment
    return build_model(experiment.model.name, experiment.network_options, input_shape=(8, 8, 3), classes=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=3", "model.widht: unknown option, did you mean 'width'?"),
        ("model.width=wide", "model.width: expected a whole number, got 'wide'"),
        ("model.depth=1.5", "model.depth: expected a whole number, got 1.5"),
        (
            "model.name=exp/nets.py:tini",
            "model.name: {folder}/nets.py: expected a function called 'tini', got none, did you mean 'tiny'?",
        ),
        (
            "model.name=exp/net.py:tiny",
            "model.name: {folder}/net.py: expected a Python file, got no such file, did you mean 'nets.py'?",
        ),
        (
            "model.name=exp/others.py:tiny",
            "model.name: {folder}/others.py: expected a Python file, got no such file. A path in an experiment's file "
            "is relative to that file, in an override to the working directory",
        ),
        (
            "model.name=no.such:net",
            "model.name: no.such: expected code that can be imported, got ModuleNotFoundError: No module named 'no'. "
            "Install it, or add its folder to PYTHONPATH",
        ),
        (
            "model.name=exp/damaged.py:net",
            "model.name: {folder}/damaged.py: expected code that can be imported, got SyntaxError: invalid syntax in "
            "line 2",
        ),
        (
            "model.name=exp/leaves.py:net",
            "model.name: {folder}/leaves.py: expected code that can be imported, got SystemExit: 0 in line 2",
        ),
        (
            "model.name=math:log",
            "model.name: math:log: expected a function written in Python, got one whose parameters are not known",
        ),
    ],
)
def test_mistakes(own, override, message):
    (own.parent / "damaged.py").write_text("import keras\ndef net(:\n")
    (own.parent / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError) as caught:
        build(own, override)
    assert str(caught.value) == message.format(folder=own.parent)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("fails", "expected a network, got ZeroDivisionError: division by zero in line 20"),
        ("text", "expected a keras.Model, got str"),
        ("other_shape", "expected one output of 2 logits for each image, (None, 2), got (None, 3)"),
        ("soft", f"expected logits, got a network that ends in softmax (layer probabilities). {LEAVE_OUT}"),
        ("sigmoid", f"expected logits, got a network that ends in sigmoid (layer last). {LEAVE_OUT}"),
        ("half", 'expected logits in float32, got bfloat16. Give the last layer dtype="float32"'),
        (
            "lacks_preprocessing",
            "expected a function (input_shape, classes, *, preprocessing, ...) that returns a keras.Model, got one "
            "without preprocessing",
        ),
        ("leaves", "expected a network, got SystemExit in line {leaves}"),
        (
            "subclass",
            "expected a model with the inputs and outputs that it was made of, keras.Model(images, logits), got "
            "Subclass",
        ),
        ("two_inputs", "expected one input of images, (None, 8, 8, 3), got (None, 8, 8, 3), (None, 2)"),
        ("unknown", f"expected {LOADABLE}, got Scale 'twice'. {REGISTER}"),
        (
            "nameless",
            f"expected {LOADABLE}, got Nameless 'nameless', whose name would be lost. Give its class a get_config() "
            "that returns {**super().get_config(), ...} with what the class is made with",
        ),
        (
            "lambdas",
            f"expected {LOADABLE}, got Lambda 'same', whose code is not run. Make a class of it, a keras.Layer",
        ),
        (
            "array",
            "expected parameters of types that YAML has, such as int, str and list[float], got weights: numpy.ndarray. "
            "Leave the annotation out, or take a name or numbers and make it of them",
        ),
        ("conflicts", f"{NAMES}, got conflicts. Give it another name"),
        ("secret", f"{NAMES}, got _secret. Give it another name"),
        ("named", f"{NAMES}, got name. Give it another name"),
    ],
)
def test_functions_that_are_no_networks(own, function, problem):
    own.write_text(EXPERIMENT.replace("tiny", function).replace(", width: 3", ""))
    with pytest.raises(ConfigError) as caught:
        build(own)
    line = 1 + NETS.splitlines().index("    raise SystemExit")
    assert str(caught.value) == f"model.name: {own.parent}/nets.py:{function}: {problem.replace('{leaves}', str(line))}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.sizes=[3, wide]"], "model.sizes.1: expected a whole number, got 'wide'"),
        (["model.sizes=3"], "model.sizes: expected a list, got 3"),
        (["model.kernel=wide"], "model.kernel: expected int | list[int], got 'wide'"),
    ],
)
def test_lists_for_tuples(own, overrides, message):
    """YAML has no tuples."""
    own.write_text(EXPERIMENT.replace("tiny", "sizes").replace("width: 3", "sizes: [5, 6], kernel: [1, 1]"))
    assert [layer.filters for layer in build(own).layers if isinstance(layer, keras.layers.Conv2D)] == [5, 6]
    with pytest.raises(ConfigError) as caught:
        build(own, *overrides)
    assert str(caught.value) == message


def test_a_partial_function_has_the_options_that_are_left(own):
    own.write_text(EXPERIMENT.replace("tiny", "wide").replace("width: 3", "depth: 2"))
    assert [layer.filters for layer in build(own).layers if isinstance(layer, keras.layers.Conv2D)] == [9, 9]


def test_it_may_import_the_file_beside_it(own):
    (own.parent / "beside_nets.py").write_text("WIDTH = 7\n")
    (own.parent / "nets.py").write_text(
        NETS.replace("import functools", "import beside_nets, functools").replace("width=4", "width=beside_nets.WIDTH")
    )
    own.write_text(EXPERIMENT.replace(", width: 3", ""))
    before = list(sys.path)
    assert next(layer.filters for layer in build(own).layers if isinstance(layer, keras.layers.Conv2D)) == 7
    assert sys.path == before
    del sys.modules["beside_nets"]


@pytest.mark.slow
def test_layers_of_its_own_are_known_wherever_it_is_used(kpipe, own, logs, forget):
    own.write_text(EXPERIMENT.replace("tiny", "known").replace("width: 3", "factor: 3.0"))
    constant = "training.learning_rate.schedule=constant"
    assert kpipe("run", str(own), "training.epochs=1", constant)[0] == 0
    run = only_run(logs, "own")
    forget()
    code, out, err = kpipe("evaluate", str(run), "--json")
    result, of_the_run = json.loads(out), json.loads((run / "summary.json").read_text())["test"]
    assert {name: result[name] for name in of_the_run} == of_the_run
    for verb in (
        ("run", str(own), f"model.init_from={run}", "name=finer"),
        ("run", "--resume", str(run), "training.epochs=2", constant),
    ):
        forget()
        code, out, err = kpipe(*verb)
        assert code == 0, (verb, err)


def test_files_of_one_name_stay_apart_and_a_failed_import_leaves_nothing(own):
    other = own.parent / "other" / "nets.py"
    other.parent.mkdir()
    other.write_text(NETS)
    functions = [load_function(f"{path}:tiny", "model.name") for path in (own.parent / "nets.py", other)]
    assert len({function.__module__ for function in functions}) == 2
    assert all(sys.modules[function.__module__].tiny is function for function in functions)
    other.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="got ZeroDivisionError: division by zero in line 1"):
        load_function(f"{other}:tiny", "model.name")
    assert functions[1].__module__ not in sys.modules


def test_a_mistake_is_a_sentence_on_the_command_line(kpipe, own):
    code, _, err = kpipe("plan", str(own), "model.widht=3")
    assert (code, err) == (2, "model.widht: unknown option, did you mean 'width'?\n")


def test_verbs_that_do_not_need_the_code_do_not_run_it(kpipe, own):
    for name in ("nets", "augs", "images"):
        (own.parent / f"{name}.py").write_text("raise SystemExit('was run')\n")
    others = ("data.augment=[exp/augs.py:invert]", "data.source=python:exp/images.py:read", "data.python.number=3")
    for arguments in ([], others):
        code, out, _ = kpipe("run", str(own), *arguments, "--print-config")
        assert (code, f"name: {own.parent}/nets.py:tiny" in out) == (0, True)
    assert f"source: python:{own.parent}/images.py:read" in out
    for arguments in (["list"], ["schema"], ["data", "check", str(own)]):
        assert cli.main(arguments) == 0


AUGMENTATIONS = """\
import tensorflow as tf
from kpipe.data import Augmentation


def invert(fraction=0.5):
    def apply(images, uniforms):
        return tf.where(uniforms[:, 0, None, None, None] < fraction, 255 - images, images)
    return Augmentation("invert", 1, apply)


def nothing():
    return None


def fails(strength):
    return 1 / 0


def divides():
    return Augmentation("divides", 0, lambda images, uniforms: 1 / 0)


def floats():
    return Augmentation("floats", 0, lambda images, uniforms: tf.cast(images, "float32"))
"""


@pytest.fixture
def augmented(own):
    (own.parent / "augs.py").write_text(AUGMENTATIONS)
    entry = "augment: [flip_horizontal, {'augs.py:invert': {fraction: 0.25}}]"
    own.write_text(EXPERIMENT.replace("batch_size: 16", f"batch_size: 16, {entry}"))
    return own


def test_an_augmentation_changes_what_training_sees(augmented):
    experiment = load_experiment(augmented).experiment
    assert experiment.model_dump(mode="json")["data"]["augment"][1] == {
        f"{augmented.parent}/augs.py:invert": {"fraction": 0.25}
    }
    splits = load_splits(experiment.data)
    ours = make_augmentations(experiment.data, splits.image_shape)
    idle = Augmentation("idle", 1, lambda images, uniforms: images)  # draws as many random numbers
    batches = [make_pipeline(splits.train, 64, augment=entries, last_step=1) for entries in (ours, [ours[0], idle])]
    [(images, labels)], [(plain, same)] = (batch.as_numpy_iterator() for batch in batches)
    np.testing.assert_array_equal(labels, same)
    inverted = np.array([(one == 255 - other).all() for one, other in zip(images, plain, strict=True)])
    kept = np.array([(one == other).all() for one, other in zip(images, plain, strict=True)])
    assert (inverted != kept).all()
    assert 4 <= inverted.sum() <= 30  # a quarter of 64, within four standard deviations


def test_the_examples_of_the_readme_work(own):
    text = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    for number, name in enumerate(("tiny", "invert")):
        [example] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"def {name}(" in code]
        (own.parent / f"example{number}.py").write_text(example)
    example = own.parent / "example"
    network = build_model(f"{example}0.py:tiny", {"width": 3}, input_shape=(8, 8, 3), classes=2)
    assert network.count_params() == (9 * 3 + 1) * 3 + (3 + 1) * 2
    experiment = load_experiment(own, [f"data.augment=[{{{example}1.py:invert: {{fraction: 0.3}}}}]"]).experiment
    [invert] = make_augmentations(experiment.data, (8, 8, 3))
    images = np.full((2, 8, 8, 3), 55, np.uint8)
    assert [image.numpy()[0, 0, 0] for image in invert.apply(images, np.array([[0.2], [0.4]], "float32"))] == [200, 55]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{exp/augs.py:invert: {fracton: 1}}", "data.augment.0.fracton: unknown option, did you mean 'fraction'?"),
        ("{exp/augs.py:fails: {}}", "data.augment.0.strength: is required"),
        (
            "{exp/augs.py:fails: {strength: 1}}",
            "data.augment.0: {folder}/augs.py:fails: expected an augmentation, got ZeroDivisionError: division by zero "
            "in line 16",
        ),
        (
            "exp/augs.py:nothing",
            "data.augment.0: {folder}/augs.py:nothing: expected a function that returns a kpipe.data.Augmentation, got "
            "NoneType",
        ),
        (
            "exp/augs.py:invrt",
            "data.augment.0: {folder}/augs.py: expected a function called 'invrt', got none, did you mean 'invert'?",
        ),
        (
            "exp/augs.py:divides",
            "data.augment.0: {folder}/augs.py:divides: expected an augmentation of images, got ZeroDivisionError: "
            "division by zero in line 20",
        ),
        (
            "exp/augs.py:floats",
            "data.augment.0: {folder}/augs.py:floats: expected images of the shape and type that it is given, uint8 "
            "[None, 8, 8, 3], got float32 [None, 8, 8, 3]",
        ),
    ],
)
def test_functions_that_are_no_augmentations(augmented, entry, problem):
    experiment = load_experiment(augmented, [f"data.augment=[{entry}]"]).experiment
    with pytest.raises(ConfigError) as caught:
        make_augmentations(experiment.data, (8, 8, 3))
    assert str(caught.value) == problem.replace("{folder}", str(augmented.parent))


def test_options_of_an_augmentation_are_not_searched_one_by_one(augmented):
    key = "data.augment.1.augs.py:invert.fraction"
    augmented.write_text(augmented.read_text().replace("model.width: [2, 5]", f'"{key}": [0.1, 0.2]'))
    with pytest.raises(ConfigError) as caught:
        load_search(augmented)
    assert str(caught.value) == (
        f"{augmented}:4: search.space.{key}: options of an augmentation of your own are not searched one by one; give "
        "whole lists to data.augment"
    )


SOURCE = """\
import numpy as np


def read(number=40, size=8):
    random = np.random.default_rng(0)
    labels = np.arange(number) % 2
    images = random.integers(0, 100, (number, size, size, 3)) + 100 * labels[:, None, None, None]
    images = images.astype("uint8")
    return {"train": (images, labels), "val": (images[:6], labels[:6])}, ["dark", "bright"]


def floats(number=4):
    return {"train": (np.zeros((4, 8, 8, 3)), np.zeros(4, int))}, ["a"]


def labels(number=4):
    return {"train": (np.zeros((4, 8, 8), "uint8"), [0, 1, 2, 3])}, ["a", "b"]


def few(number=4):
    return {"train": (np.zeros((4, 8, 8), "uint8"), [0, 1])}, ["a", "b"]


def splits(number=4):
    return {"trian": (np.zeros((4, 8, 8), "uint8"), [0, 1, 0, 1])}, ["a", "b"]


def untrained(number=4):
    return {"test": (np.zeros((4, 8, 8), "uint8"), [0, 1, 0, 1])}, ["a", "b"]


def unpaired(number=4):
    return {"train": np.zeros((4, 8, 8), "uint8")}, ["a", "b"]


def nothing(number=4):
    return None


def fails(number=4):
    return 1 / 0


def leaves(number=4):
    raise SystemExit


def sizes(number=4):
    return {"train": ([np.zeros((8, 8, 3), "uint8"), np.zeros((9, 8, 3), "uint8")], [0, 1])}, ["a", "b"]


def ragged(number=4):
    return {"train": (np.zeros((2, 8, 8), "uint8"), [0, [1, 2]])}, ["a", "b"]


def _gray(names, **more):
    pair = np.zeros((4, 8, 8), "uint8"), [0, 1, 0, 1]
    return {"train": pair} | {split: pair for split in more.get("also", ())}, names


def unnamed(number=4):
    return _gray(None)


def text(number=4):
    return _gray("ab")


def alike(number=4):
    return _gray(["a", "a"])


def twice(number=4):
    return _gray(["a", "b"], also=["val", "valid"])


def colors(number=4):
    splits, names = _gray(["a", "b"])
    return splits | {"test": (np.zeros((4, 8, 8, 3), "uint8"), [0, 1, 0, 1])}, names
"""


@pytest.fixture
def sourced(own):
    (own.parent / "images.py").write_text(SOURCE)
    source = "source: 'python:images.py:read', image_size: 12, python: {number: 30}"
    own.write_text(
        EXPERIMENT.replace("source: synthetic, image_size: 8", source).replace(
            ", synthetic: {classes: 2, images: 100}", ""
        )
    )
    return own


def test_a_source_is_trained_on_and_its_images_are_remembered(kpipe, sourced, logs):
    code, out, err = kpipe("run", str(sourced), "training.learning_rate.schedule=constant")
    assert code == 0, err
    assert f"data       python:{sourced.parent}/images.py:read: 30 train, 6 validation; 2 classes; 12x12x3\n" in out
    run = only_run(logs, "own")
    assert (run / "classes.txt").read_text() == "dark\nbright\n"
    (sourced.parent / "images.py").write_text(SOURCE.replace("default_rng(0)", "default_rng(1)"))
    code, _, err = kpipe("run", "--resume", str(run), "training.epochs=3")
    assert code == 3
    assert "the data are not those that the run began with: " in err
    assert "images of class 'dark' have changed" in err


FORM = (
    "expected a function that returns {'train': (images, labels), ...} and class names, images uint8 [N, H, W, C] of "
    "0..255 and labels [N] of 0 to K - 1, got "
)


RAISED = "expected images and labels, but it raised "


@pytest.mark.parametrize(
    ("function", "code", "problem"),
    [
        ("reed", 2, "data.source: {place}: expected a function called 'reed', got none, did you mean 'read'?"),
        ("nothing", 3, "{place}:nothing: " + FORM + "NoneType"),
        ("fails", 3, "{place}:fails: " + RAISED + "ZeroDivisionError: division by zero in line 41"),
        (
            "splits",
            3,
            "{place}:splits: expected the splits train, validation and test, got 'trian', did you mean 'train'?",
        ),
        ("untrained", 3, "{place}:untrained: expected a split called train, got test"),
        ("unpaired", 3, "{place}:unpaired, train: expected (images, labels), got uint8 [4, 8, 8]"),
        ("floats", 3, "{place}:floats, train: expected images uint8 [N, H, W, C] of 0..255, got float64 [4, 8, 8, 3]"),
        ("labels", 3, "{place}:labels, train: expected labels of 0 to 1, one for each class name, got 3"),
        ("few", 3, "{place}:few, train: expected a whole number for each of the 4 images, got int64 [2]"),
        ("leaves", 3, "{place}:leaves: " + RAISED + "SystemExit in line 45"),
        (
            "sizes",
            3,
            "{place}:sizes, train: expected images of one size, got 8x8x3 and 9x8x3. Resize them in your function, or "
            "use folder:<path>, which does it",
        ),
        (
            "ragged",
            3,
            "{place}:ragged, train: expected arrays of images and labels, got setting an array element with a "
            "sequence. The requested array has an inhomogeneous shape after 1 dimensions",
        ),
        ("unnamed", 3, "{place}:unnamed: expected a list of class names, got NoneType"),
        ("text", 3, "{place}:text: expected a list of class names, got str"),
        ("alike", 3, "{place}:alike: expected class names that differ, got 'a' twice"),
        (
            "twice",
            3,
            "{place}:twice: expected each split once, got train, val, valid, two of which are validation",
        ),
        (
            "colors",
            3,
            "{place}:colors, test: expected images of 12x12x1 as in train, got 12x12x3. Return one size and number of "
            "channels in all splits",
        ),
    ],
)
def test_functions_that_are_no_sources(kpipe, sourced, function, code, problem):
    for verb in ("run", "plan"):
        got, _, err = kpipe(verb, str(sourced), f"data.source=python:exp/images.py:{function}")
        assert (got, err) == (code, problem.replace("{place}", f"{sourced.parent}/images.py") + "\n")


def test_mistakes_in_the_options_of_a_source(kpipe, sourced):
    code, _, err = kpipe("run", str(sourced), "data.python.numbr=3")
    assert (code, err) == (2, "data.python.numbr: unknown option, did you mean 'number'?\n")
    code, _, err = kpipe("run", str(sourced), "data.source=python:exp/images")
    said = "command line: data.source: expected python:<FILE.py:function> or python:<module:function>, got "
    assert (code, err) == (2, f"{said}'python:exp/images'\n")


def test_options_of_a_source_are_searched(sourced):
    sourced.write_text(sourced.read_text().replace("model.width: [2, 5]", "data.python.number: [20, 30]"))
    assert load_search(sourced).experiment.search.space["data.python.number"].choice == [20, 30]


def test_an_option_of_a_source_cannot_have_the_name_of_an_argument(kpipe, sourced):
    parameters = [
        p for function in (load_dataset, find_source) for p in inspect.signature(function).parameters.values()
    ]
    assert set(LOADING) == {each.name for each in parameters if each.kind != each.VAR_KEYWORD}
    code, _, err = kpipe("run", str(sourced), "data.python.channels=1")
    said = "expected another name, as load_dataset has this argument. Rename the parameter"
    assert (code, err) == (2, f"command line: data.python.channels: {said}\n")


def test_a_module_may_hold_it(kpipe, own, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    assert kpipe("plan", str(own), "model.name=nets:tiny")[0] == 0


@pytest.mark.parametrize("added", [(), ("",)])
def test_the_module_may_be_in_the_working_directory(kpipe, own, monkeypatch, added):
    """The command `kpipe` does not have it in Python's path, `python -m kpipe.run` does."""
    before = [*added, *(folder for folder in sys.path if folder not in ("", str(own.parent.parent)))]
    monkeypatch.setattr(sys, "path", list(before))
    (own.parent / "__init__.py").touch()
    assert kpipe("plan", str(own), "model.name=exp.nets:tiny")[0] == 0
    assert sys.path == before
    del sys.modules["exp.nets"], sys.modules["exp"]


def test_it_is_planned_by_its_name(kpipe, own):
    code, out, err = kpipe(
        "plan", "exp/nets.py:tiny", "--image-size", "8", "--classes", "2", "model.width=3", "model.depth=2", "--json"
    )
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["name"], plan["model"]) == ("tiny", f"{own.parent}/nets.py:tiny")
    assert plan["parameters"] == 2 * (9 * 3 + 1) * 3 + (2 * 2 * 3 + 1) * 2
    said = "expected the name of a function in the file too, got the file alone. Write exp/nets.py:FUNCTION"
    assert kpipe("plan", "exp/nets.py") == (2, "", f"exp/nets.py: {said}\n")
    own.write_text("data: {source: digits}\nmodel: {name: nets.py}\n")
    said = "expected the name of a function in the file too, got 'nets.py'. Write nets.py:FUNCTION"
    assert kpipe("plan", str(own)) == (2, "", f"{own}:2: model.name: {said}\n")
