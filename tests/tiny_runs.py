"""What tests of whole runs have in common: a tiny experiment, and how two runs are compared."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe import cli

TINY = """\
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 2, images: 200}}
model: {name: lenet5}
training: {epochs: 2, precision: float32, log_every: {steps: 4}}
"""
WITHOUT_FIGURES = ("kpipe.experiment.write_figures", lambda *arguments: [])
"""Options of `train_once` for a run whose figures no test reads."""


def train_once(folder, text, *overrides, code=0, replaced=()):
    """Train an experiment in a folder, for all tests of a module; return its run directory.

    Args:
        folder: holds the experiment file and `logs`.
        text: the experiment.
        overrides: of the command line.
        code: exit code that is expected.
        replaced: (target, value) of what is replaced meanwhile.
    """
    (folder / "tiny.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KPIPE_LOGS", str(folder / "logs"))
        for target, value in replaced:
            patched.setattr(target, value)
        assert cli.main(["run", str(folder / "tiny.yaml"), *overrides]) == code
    return only_run(folder / "logs")


def only_run(logs, name="tiny"):
    [run] = [path for path in (logs / name).iterdir() if path.is_dir()]
    return run


def records_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run):
    times = ("seconds", "per_second", "waiting")
    return [{k: v for k, v in r.items() if not k.endswith(times)} for r in records_of(run)]


def arrays_of(run):
    """Return the weights in model.keras, and every variable of the last checkpoint."""
    [last] = (run / "checkpoints").glob("step-*")
    saved = [np.load(last / name) for name in ("weights.npz", "training.npz")]
    arrays = {name: archive[name] for archive in saved for name in archive.files}
    model = keras.models.load_model(run / "model.keras")
    return arrays | {f"model {i}": array for i, array in enumerate(model.get_weights())}


def assert_same_run(run, other):
    assert timeless(run) == timeless(other)  # first: it says where they diverge
    arrays, expected = arrays_of(run), arrays_of(other)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.tobytes() == expected[name].tobytes(), name
    assert layer_statistics_of(run) == layer_statistics_of(other)
    assert_steps_increase(run)


def layer_statistics_of(run):
    """Return what TensorBoard knows of the layers: (step, value) by tag."""
    return {tag: rows for tag, rows in scalars_of(run / "train").items() if "/" in tag}


def scalars_of(folder):
    """Return (step, value) by tag, over the files of all the processes that have worked on a run."""
    scalars = {}
    for file in sorted(folder.iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    scalars.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    return scalars


def assert_steps_increase(run):
    """Check it in TensorBoard."""
    for split in ("train", "validation"):
        scalars = scalars_of(run / split)
        assert {"epoch_loss", "epoch_accuracy"} <= set(scalars)
        for tag, rows in scalars.items():
            steps = [step for step, _ in rows]
            assert steps == sorted(set(steps)), (split, tag)


def refuse_to_write(*arguments, **options):
    """Stand in for any function that writes."""
    raise OSError(28, "No space left on device", "model.keras")


def touch(figure, path, **options):
    """Stand in for Matplotlib's `Figure.savefig`."""
    Path(path).touch()
