"""When the output of frozen layers is computed once; what comes of it, `tests/runs/test_layer_rules.py` asks."""

import keras
import pytest

from kpipe import frozen_features
from kpipe.assembly import make_trainer, prepare
from kpipe.config.loading import load_experiment
from kpipe.errors import OutOfMemory
from kpipe.frozen_features import make_frozen_features, plan_features
from kpipe.runs.machine import resolve_auto
from kpipe.training.distribution import make_strategy

FROZEN = """\
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {classes: 2, images: 60}}
model: {name: lenet5}
training: {epochs: 9, precision: float32, layers: [{match: "c[13]", frozen: {steps: 12}}]}
"""


@pytest.fixture
def found(tmp_path):
    """Return what is found for the experiment with these overrides at a step."""
    (tmp_path / "frozen.yaml").write_text(FROZEN)

    def found(*overrides, step=0):
        loaded = resolve_auto(load_experiment(tmp_path / "frozen.yaml", overrides).experiment)
        prepared = prepare(loaded, make_strategy())
        make_trainer(loaded.training, prepared.model, prepared.layer_rules)
        plan, note = plan_features(loaded, prepared, step)
        return plan and make_frozen_features(loaded, prepared, plan), note

    return found


def test_features_are_those_before_the_first_layer_that_is_trained(found):
    features, note = found()
    assert (features.head.input_shape, features.until) == ((None, 2 * 2 * 16), 12)
    assert note == (
        "the layers up to the head are frozen until step 12: their output is computed once, for 48 images, and kept in "
        "memory (12.3 kB)"
    )
    shape = [part.shape for part in next(iter(features.batches_from(3)))]
    assert shape == [(16, 64), (16,)]
    head_too = "[{match: 'c[135]', frozen: {steps: 17}}, {match: f6, frozen: {steps: %d}}]"
    for f6_thaws, width in ((17, 84), (15, 120)):  # an earlier thaw of f6 leaves the features before it
        features, _ = found(f"training.layers={head_too % f6_thaws}")
        assert (features.head.input_shape, features.until) == ((None, width), 17)


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        ([], 12),
        (["training.layers=[{match: c1, frozen: all}]"], 0),
        (["training.layers=[]"], 0),
        (["data.cache=none"], 0),
    ],
)
def test_images_are_needed_where_features_change_or_are_not_to_be_kept(found, overrides, step):
    assert found(*overrides, step=step) == (None, None)


def test_views_are_said(found):
    _, note = found("data.augment=[flip_horizontal]", "training.layers.0.frozen=all")
    assert note == (
        "the layers up to the head are frozen: their output is computed once, for 48 images, 2 views of each in "
        "training, and kept in memory (23.3 kB)"
    )


def test_features_on_the_disk_are_taken_for_the_same_layers_images_and_flips(found, tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_CACHE", str(tmp_path / "cache"))
    seen = set()

    def count_new(*overrides, seed=0):
        keras.utils.set_random_seed(seed)  # of the weights
        found("data.cache=disk", *overrides)
        new = set((tmp_path / "cache").glob("*.npy")) - seen
        seen.update(new)
        return len(new)

    horizontal, vertical, both, turned = (
        f"data.augment=[{flips}]"
        for flips in (
            "flip_horizontal",
            "flip_vertical",
            "flip_horizontal,flip_vertical",
            "flip_vertical,flip_horizontal",
        )
    )
    assert count_new(horizontal) == 2  # training and validation
    assert count_new(horizontal) == 0
    assert [count_new(flips) for flips in (vertical, both, turned)] == [1, 1, 1]
    assert count_new(horizontal, seed=1) == 2


def test_images_that_change_in_each_epoch_are_said(found):
    features, note = found("data.augment=[flip_horizontal, translate]")
    assert features is None
    assert note == (
        "the layers up to the head are frozen, but data.augment makes new images in each epoch; without it, or with "
        "flips alone, their output would be computed only once"
    )


def test_features_that_do_not_fit_are_said(found, monkeypatch):
    assert found("data.cache_gigabytes=1e-5") == (
        None,
        "the output of the frozen layers would take 12.3 kB, more than data.cache_gigabytes; it is computed in each "
        "epoch",
    )
    monkeypatch.setattr(frozen_features, "free_memory", lambda: 5_000)
    message = (
        "^the output of the frozen layers takes 12.3 kB of memory, 5 kB are free. Set data.cache=disk, or "
        "data.cache=none, with which it is computed in each epoch$"
    )
    with pytest.raises(OutOfMemory, match=message):
        found("data.cache=memory")
