"""Whole runs on image files: what cannot be read, where images are kept, every augmentation, weighted classes."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_runs import assert_same_run, only_run, refuse_to_write

from kpipe.catalog.data import AUGMENTATIONS
from kpipe.config.loading import load_experiment
from kpipe.names import from_here

CLASSES = ("dark", "light")
TINY = """\
data: {source: folder:photos, image_size: 16, batch_size: 8, cache: none, on_error: skip, skip_limit: 0.2}
model: {name: mlp, width: 32}
training: {epochs: 3, precision: float32}
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """60 photographs of 2 classes and different sizes, in the folder in which the command is given."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(60):
        label = number % 2
        folder = tmp_path / "photos" / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(100 * label, 100 * label + 156, (20 + number % 3, 24, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def broken(photos):
    """Three of them no longer readable: one in each split, since the split is always the same."""
    files = [photos / name for name in ("dark/00.png", "dark/04.png", "light/05.png")]
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
    return files


def summary_of(logs):
    return json.loads((only_run(logs) / "summary.json").read_text())


@pytest.mark.slow
def test_files_that_cannot_be_read_are_counted_and_named(kpipe, experiment, broken, logs):
    code, out, err = kpipe("run", experiment)
    assert (code, err) == (0, "")
    assert "  images     decoded each time\n" in out
    found = summary_of(logs)["unreadable"]
    assert sum(found.values()) == 3
    names = (only_run(logs) / "unreadable.txt").read_text().splitlines()
    assert sorted(names) == sorted(map(str, broken))
    counts = ", ".join(f"{count} {split}" for split, count in found.items())
    names = from_here(only_run(logs) / "unreadable.txt")
    assert f"Unreadable and left out: {counts}; their names are in {names}\n" in out
    scored = {split: summary_of(logs)[split]["images"] for split in ("validation", "test")}
    assert scored == {"validation": 5 - found.get("validation", 0), "test": 12 - found.get("test", 0)}


@pytest.mark.slow
def test_names_of_any_kind_reach_no_screen_and_no_file_raw(kpipe, experiment, photos, logs):
    for old, new in (("dark", "caf\udce9\nx"), ("light", "[bold]\x1b[31m$x^\u202e")):
        (photos / old).rename(photos / new)
    root = photos.rename(photos.parent / "ph\udcffotos\n[b]")
    broken = next(root.iterdir()) / "br\noken.png"
    broken.write_bytes(b"")
    (broken.parent / "no\nimage.txt").write_text("")
    code, out, err = kpipe("run", experiment, f"data.source=folder:{root}", "training.epochs=1")
    assert (code, err) == (0, "")
    assert all(line.isprintable() for line in out.splitlines())
    assert rf"  data       folder:{root.parent}/ph\xffotos\n[b]: " in out
    assert r"/no\nimage.txt'" in out
    assert "  training   1 epoch of " in out
    run = only_run(logs)
    texts = {path.name: path.read_text("utf-8") for path in run.iterdir() if path.suffix in (".json", ".yaml", ".txt")}
    assert {"classes.txt", "config.yaml", "data.json", "environment.json", "unreadable.txt"} <= set(texts)
    assert all(line.isprintable() for text in texts.values() for line in text.splitlines())
    assert sorted(map(json.loads, texts["classes.txt"].splitlines())) == sorted(each.name for each in root.iterdir())
    assert json.loads(texts["unreadable.txt"]) == str(broken)
    assert load_experiment(run / "config.yaml").experiment.data.source == f"folder:{root}"


@pytest.mark.slow
def test_a_resumed_run_knows_what_could_not_be_read(kpipe, experiment, broken, logs, monkeypatch, tmp_path):
    kpipe("run", experiment, f"logs={tmp_path / 'whole'}")
    with monkeypatch.context() as patched:
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        assert kpipe("run", experiment)[0] == 5
    code, _, err = kpipe("run", experiment)
    assert (code, err) == (0, "")
    assert_same_run(only_run(logs), only_run(tmp_path / "whole"))
    whole = json.loads((only_run(tmp_path / "whole") / "summary.json").read_text())
    assert summary_of(logs)["unreadable"] == whole["unreadable"]


def test_a_class_that_loses_all_its_images_ends_the_run(kpipe, experiment, photos, logs):
    for number in range(3):
        (photos / "owl").mkdir(exist_ok=True)
        (photos / "owl" / f"{number}.png").write_bytes(b"no image")
    code, _, err = kpipe("run", experiment, "data.cache=memory")
    assert code == 3
    assert "expected images of every class, got none that can be read of " in err
    assert ". Replace the files, or remove the class\n" in err


def test_too_many_end_the_run(kpipe, experiment, broken, logs):
    code, _, err = kpipe("run", experiment, "data.skip_limit=0.01")
    assert code == 3
    assert "files to be unreadable (data.skip_limit), got" in err
    assert "expected at most 1 % of 60 files to be unreadable (data.skip_limit), got" in err
    assert ", or raise data.skip_limit" in err


def test_one_is_enough_without_permission(kpipe, experiment, broken, logs):
    code, _, err = kpipe("run", experiment, "data.on_error=fail", "data.normalize=unit")
    assert code == 3
    assert "Replace or remove" in err and "or leave such files out with data.on_error=skip" in err
    assert any(f"{file.parent.name}/{file.name}" in err for file in broken)


@pytest.mark.slow
def test_the_same_training_wherever_images_are_kept(kpipe, experiment, broken, tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_CACHE", str(tmp_path / "cache"))
    kpipe("run", experiment, f"logs={tmp_path / 'files'}")
    for cache, place in (("memory", "in memory"), ("disk", "mapped from the disk"), ("auto", "in memory")):
        code, out, err = kpipe("run", experiment, f"data.cache={cache}", f"logs={tmp_path / cache}")
        assert (code, err) == (0, "")
        assert f"  images     {place} (46.1 kB decoded)\n" in out
        assert_same_run(only_run(tmp_path / cache), only_run(tmp_path / "files"))


@pytest.mark.slow
def test_every_augmentation_trains(kpipe, experiment, photos, logs):
    """center_crop and random_resized_crop train below."""
    others = [name for name, row in AUGMENTATIONS.items() if not row.is_crop]
    for augment in (["random_crop", *others], ["{scale_jitter: {low: 18, high: 24}}"]):
        code, _, err = kpipe(
            "run", experiment, f"data.augment=[{', '.join(augment)}]", "data.stored_size=20", "training.epochs=1"
        )
        assert (code, err) == (0, "")


@pytest.mark.slow
def test_classes_that_are_mixed_are_still_learned(kpipe, experiment, photos, logs):
    code, _, err = kpipe("run", experiment, "data.augment=[mixup, cutmix]", "training.epochs=8")
    assert (code, err) == (0, "")
    assert summary_of(logs)["test"]["accuracy"] == 1.0


@pytest.mark.slow
def test_crops_need_no_stored_size(kpipe, experiment, photos, logs):
    for crop in ("center_crop", "random_resized_crop"):
        code, _, err = kpipe("run", experiment, f"data.augment=[{crop}]", "training.epochs=1")
        assert (code, err) == (0, "")


def test_files_are_planned(kpipe, experiment, photos):
    code, out, _ = kpipe("plan", experiment)
    assert code == 0
    assert f"folder:{photos}: 43 train, 5 validation, 12 test" in out


def test_colors_that_gray_images_do_not_have(kpipe, experiment, photos, logs):
    code, _, err = kpipe("run", experiment, "data.augment=[pca_color]", "data.channels=1")
    assert code == 2
    assert err == "command line: data.augment.0: pca_color needs images of 3 channels, got 1\n"


@pytest.mark.slow
def test_rare_classes_count_as_much(kpipe, experiment, photos, logs):
    for file in sorted((photos / "light").iterdir())[8:]:
        file.unlink()
    code, _, err = kpipe("run", experiment, "data.class_weights=balanced", "training.epochs=20")
    assert (code, err) == (0, "")
    assert summary_of(logs)["test"]["accuracy"] == 1.0
