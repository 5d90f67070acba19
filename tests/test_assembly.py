"""What an experiment becomes before it is trained: one worker's rows of each batch, and what `auto` means."""

import re

import numpy as np
import pytest
import tensorflow as tf
from image_sets import write_image

from kpipe.assembly import load_splits, prepare
from kpipe.config.schema import Experiment
from kpipe.errors import OutOfMemory
from kpipe.runs.directory import Run
from kpipe.runs.machine import resolve_auto
from kpipe.training.distribution import make_strategy

TINY = {
    "name": "tiny",
    "data": {
        "source": "synthetic",
        "image_size": 16,
        "batch_size": 16,
        "synthetic": {"classes": 2, "images": 100},
        "augment": [{"pad_crop": {"padding": 2}}, "flip_horizontal", {"color_jitter": {"brightness": 0.4}}],
    },
    "model": {"name": "lenet5"},
    "training": {"epochs": 2},
}


class SecondOfTwo:
    """A stand-in for the strategy of worker 1 beside worker 0: a real one waits for the other."""

    cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": ["host:1", "host:2"]}), task_type="worker", task_id=1
    )
    num_replicas_in_sync = 2

    def scope(self):
        return tf.distribute.get_strategy().scope()


def test_a_worker_trains_on_its_rows_of_the_global_batch():
    experiment = resolve_auto(Experiment.model_validate(TINY))
    alone, second = prepare(experiment, make_strategy()), prepare(experiment, SecondOfTwo())
    assert second.steps_per_epoch == alone.steps_per_epoch == 4
    whole, ours = (list(each.training_batches(0).as_numpy_iterator()) for each in (alone, second))
    assert len(whole) == len(ours) == 8
    for (images, labels), (our_images, our_labels) in zip(whole, ours, strict=True):
        np.testing.assert_array_equal(our_images, images[8:])
        np.testing.assert_array_equal(our_labels, labels[8:])


def test_of_many_files_some_are_measured(tmp_path, monkeypatch):
    colors = np.random.default_rng(0).integers(0, 256, (2, 20, 3))
    for label, number in np.ndindex(2, 20):
        write_image(tmp_path / str(label) / f"{number:02}.png", tuple(map(int, colors[label, number])))
    section = {"source": f"folder:{tmp_path}", "image_size": 8, "cache": "none", "split": {"validation": 0, "test": 0}}
    experiment = {"name": "tiny", "data": section | {"batch_size": 8}, "model": {"name": "mlp"}, "training": {}}
    experiment = resolve_auto(Experiment.model_validate(experiment))
    whole = prepare(experiment, make_strategy())
    np.testing.assert_allclose(whole.network["normalization"].mean, colors.mean((0, 1)))
    assert whole.notes == ()
    monkeypatch.setattr("kpipe.normalization.MEASURED_FILES", 4)
    some = prepare(experiment, make_strategy())
    np.testing.assert_allclose(some.network["normalization"].mean, colors[[0, 0, 1, 1], [0, 13, 6, 19]].mean(0))
    assert some.notes == ("mean and standard deviation of the pixels are those of 4 images (data.normalize)",)


def test_weights_and_batches_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    experiment = resolve_auto(Experiment.model_validate(TINY))
    wide = TINY | {"model": {"name": "mlp", "width": 10**9}}
    wide = resolve_auto(Experiment.model_validate(wide))
    with pytest.raises(OutOfMemory) as caught:
        prepare(wide, make_strategy())
    assert re.fullmatch(
        r"the weights of mlp take 4,000,003,\d{3} GB of memory, [\d.,]+ GB are free\. The largest is fc2/kernel, "
        r"1000000000x1000000000\. Take a smaller network, or a smaller data\.image_size",
        str(caught.value),
    )
    assert prepare(experiment, make_strategy()).model.count_params() == 21_006  # nothing is left of the other
    splits = load_splits(experiment.data)
    monkeypatch.setattr("kpipe.data.pixels.free_memory", lambda: 12_000)
    with pytest.raises(OutOfMemory) as caught:
        prepare(experiment, make_strategy(), splits=splits)
    assert str(caught.value) == (
        "data.batch_size: its 16 images of 16x16x3 take 12.3 kB of memory, 12 kB are free. Take a smaller "
        "data.batch_size or data.image_size"
    )


def test_a_resumed_run_keeps_what_it_resolved(tmp_path):
    experiment = Experiment.model_validate(TINY)
    before = {"precision": "mixed_bfloat16", "deterministic": False, "xla": True}
    kept = resolve_auto(experiment, Run(tmp_path, resumed=True, resolved=before)).chosen
    assert kept.model_dump() == before
    told = experiment.model_copy(update={"training": experiment.training.model_copy(update={"precision": "float32"})})
    assert resolve_auto(told, Run(tmp_path, resumed=True, resolved=before)).chosen.precision == "float32"
