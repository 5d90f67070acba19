"""`import kpipe`: the Python API, without the cost of TensorFlow until a name needs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kpipe
import kpipe.errors


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


def test_what_was_loaded_is_trained_searched_and_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "logs"))
    path = tmp_path / "tiny.yaml"
    path.write_text("data: {source: digits}\nmodel: {name: mlp, depth: 1, width: 8}\ntraining: {epochs: 2}\n")
    experiment = kpipe.load_experiment(path, {"training.epochs": 1, "search.trials": 1})
    run = kpipe.train(experiment, kpipe.RunOptions(draw=False))
    assert (run.summary["epochs"], run.summary["status"]) == (1, "finished")
    assert kpipe.evaluate(run.path)["accuracy"] == pytest.approx(run.summary["test"]["accuracy"])
    found = kpipe.search(experiment)
    assert found.summary["trials"] == found.summary["finished"] == 1
    assert "training.learning_rate.peak" in found.summary["best"]["values"]
    kpipe.search(experiment)
    assert "This search was finished before, a larger search.trials extends it; new=True starts another" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path, splits: kpipe.load_experiment(path, "a=1"), "overrides: expected .* got 'a=1'$"),
        (lambda path, splits: kpipe.load_experiment(path, {"a": 1}), "^overrides: a: unknown key"),
        (lambda path, splits: kpipe.train(path), "^experiment: expected what kpipe.load_experiment returns, got '"),
        (lambda path, splits: kpipe.search(path), "^experiment: expected what kpipe.load_experiment returns, got '"),
        (lambda path, splits: kpipe.load_dataset("digits", channels=2), "1 or 3 for channels, got 2. Leave it out$"),
        (lambda path, splits: kpipe.load_dataset("digits", test=2), "^test: expected a fraction"),
        (
            lambda path, splits: kpipe.load_dataset("digits", image_size="28"),
            "^image_size: expected a whole number of pixels, got '28'$",
        ),
        (lambda path, splits: kpipe.load_dataset("digits", size=28), "^digits.size: unknown option$"),
        (lambda path, splits: kpipe.make_pipeline(splits.train, 0), "^batch_size: expected at least 1, got 0$"),
        (
            lambda path, splits: kpipe.make_pipeline(splits.train, 32, image_size=64),
            "^image_size: expected at most the 8 pixels of the kept images, got 64$",
        ),
        (
            lambda path, splits: kpipe.build_model("mlp", {"widht": 3}, input_shape=(8, 8, 1), classes=2),
            "^mlp.widht: unknown option, did you mean 'width'",
        ),
    ],
)
def test_messages_name_arguments(call, message, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("data: {source: digits}\nmodel: {name: mlp}\n")
    with pytest.raises(kpipe.errors.KpipeError, match=message):
        call(str(path), kpipe.load_dataset("digits"))


def test_the_example_of_the_readme_ends_in_a_fit(capsys, monkeypatch):
    text = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    [example] = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if ".fit(" in code]
    names = {}
    exec(example.replace("epochs=5", "epochs=2"), names)  # noqa: S102
    assert len(names["model"].history.history["val_accuracy"]) == 2
    assert names["model"].history.history["val_accuracy"][-1] > 0.8
