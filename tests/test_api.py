"""`import kpipe`: the Python API, without the cost of TensorFlow until a name needs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kpipe


@pytest.mark.parametrize("name", kpipe.__all__)
def test_every_name_resolves(name):
    assert getattr(kpipe, name).__name__.removeprefix("kpipe.") == name
    assert name in dir(kpipe)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kpipe' has no attribute 'trian'"):
        kpipe.trian  # noqa: B018


def test_importing_is_light():
    code = (
        "import sys, kpipe\n"
        "assert kpipe.__version__ and 'train' in dir(kpipe)\n"
        "from kpipe import load_experiment\n"
        "print({'tensorflow', 'keras', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_an_experiment_from_python(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("data: {source: digits}\nmodel: {name: mlp, depth: 1, width: 8}\n")
    loaded = kpipe.load_experiment(path, ["model.width=4"])
    splits = kpipe.load_dataset(loaded.experiment.data.source)
    model = kpipe.build_model("mlp", {"depth": 1, "width": 4}, input_shape=splits.image_shape, classes=10)
    images, _ = next(iter(kpipe.make_evaluation_pipeline(splits.test, 32)))
    assert model(images).shape == (32, 10)


def test_the_example_of_the_readme_ends_in_a_fit(capsys, monkeypatch):
    text = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    [example] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if ".fit(" in code]
    names = {}
    exec(example.replace("epochs=5", "epochs=2"), names)  # noqa: S102
    assert len(names["model"].history.history["val_accuracy"]) == 2
    assert names["model"].history.history["val_accuracy"][-1] > 0.8
