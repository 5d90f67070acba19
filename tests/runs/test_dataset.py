"""A run knows its classes and images: it is not resumed with others."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_runs import only_run, refuse_to_write, train_once

from kpipe.errors import DataError
from kpipe.runs.dataset import record_data, record_search_data
from kpipe.runs.directory import Run

CLASSES = ("cat", "dog", "owl")
TINY = """\
data: {source: folder:photos, image_size: 16, batch_size: 8}
model: {name: mlp, width: 8}
training: {epochs: 1, precision: float32}
"""


def write_photo(path, size=(20, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), np.uint8)).save(path)


def write_photos(folder):
    for label, name in enumerate(CLASSES):
        for number in range(10):
            write_photo(folder / name / f"{number}.png", (20 + label, 24))
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Ten photographs of each class, with the same names in all classes, and other sizes."""
    monkeypatch.chdir(tmp_path)
    return write_photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """The folder with a run that can be resumed, of such photographs in `photos` beside it."""
    folder = tmp_path_factory.mktemp("dataset")
    photos = write_photos(folder / "photos")
    replaced = [("kpipe.experiment.save_portable", refuse_to_write)]
    train_once(folder, TINY, f"data.source=folder:{photos}", code=5, replaced=replaced)
    return folder / "logs"


@pytest.fixture
def unfinished(made_once, photos, logs):
    """A copy of it, as if it had been trained on `photos`."""
    shutil.copytree(made_once, logs)
    config = only_run(logs) / "config.yaml"
    config.write_text(config.read_text().replace(str(made_once.parent / "photos"), str(photos)))
    return only_run(logs)


def swap(photos):
    (photos / "cat").rename(photos / "x")
    (photos / "dog").rename(photos / "cat")
    (photos / "x").rename(photos / "dog")


CHANGES = {
    "a renamed class": (lambda photos: (photos / "dog").rename(photos / "wolf"),
                        "class 'dog' is now called 'wolf'"),
    "a class more": (lambda photos: shutil.copytree(photos / "dog", photos / "fox"),
                     "class 'fox' is new; 3 classes then, 4 now"),
    "a class less": (lambda photos: shutil.rmtree(photos / "owl"),
                     "class 'owl' is gone; 3 classes then, 2 now"),
    "swapped classes": (swap, "the images of class 'cat' are now in class 'dog'; the images of class 'dog' "
                              "are now in class 'cat'"),
    "an image more": (lambda photos: write_photo(photos / "cat/new.png"), "10 images of class 'cat' then, 11 now"),
    "an image less": (lambda photos: (photos / "cat/3.png").unlink(), "10 images of class 'cat' then, 9 now"),
    "an image in another class": (lambda photos: (photos / "cat/3.png").rename(photos / "dog/x.png"),
                                  "10 images of class 'cat' then, 9 now; 10 images of class 'dog' then, "
                                  "11 now"),
    "a renamed image": (lambda photos: (photos / "owl/3.png").rename(photos / "owl/three.png"),
                        "the images of class 'owl' have changed (names or sizes)"),
    "splits": (lambda photos: (photos.rename(photos.parent / "train"), photos.mkdir(),
                               (photos.parent / "train").rename(photos / "train"),
                               write_photo(photos / "test/cat/0.png")),
               "the test split is new"),
}  # fmt: skip


def test_what_a_run_records(unfinished):
    assert (unfinished / "classes.txt").read_text() == "cat\ndog\nowl\n"
    record = json.loads((unfinished / "data.json").read_text())
    assert record["classes"] == list(CLASSES)
    assert {name: count for name, (count, _) in record["splits"]["train"].items()} == dict.fromkeys(CLASSES, 10)


def test_other_classes_and_images_are_refused(kpipe, experiment, unfinished, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "kept")
    for name, (change, message) in CHANGES.items():
        change(photos)
        code, _, err = kpipe("run", experiment)
        assert (code, err) == (3, (
            f"{unfinished}: the data are not those that the run began with: {message}. Restore them, or start "
            "another run with --new\n"
        )), name  # fmt: skip
        shutil.rmtree(photos)
        shutil.copytree(tmp_path / "kept", photos)
    code, _, err = kpipe("run", experiment)  # a copy is the same
    assert (code, err) == (0, "")


@pytest.mark.parametrize("damage", [None, "", "{", "[]", '{"classes": 3, "splits": []}'])
def test_a_lost_record_leaves_the_names_of_the_classes(kpipe, experiment, unfinished, photos, damage):
    record = unfinished / "data.json"
    record.unlink() if damage is None else record.write_text(damage)
    (photos / "dog").rename(photos / "wolf")
    code, _, err = kpipe("run", experiment)
    assert code == 3 and "began with: class 'dog' is gone; class 'wolf' is new. Restore them" in err


def test_classes_that_only_their_pixels_tell_apart(kpipe, experiment, photos, logs, monkeypatch):
    for label, name in enumerate(CLASSES):
        for path in (photos / name).iterdir():
            path.unlink()
            Image.new("L", (20, 24), 40 * label).save(path.with_suffix(".bmp"))
    with monkeypatch.context() as patched:
        patched.setattr("kpipe.experiment.save_portable", refuse_to_write)
        assert kpipe("run", experiment)[0] == 5
    swap(photos)
    code, _, err = kpipe("run", experiment)
    assert code == 3 and "the images of class 'cat' are now in class 'dog'; " in err


def test_many_differences_are_counted(kpipe, experiment, unfinished, photos):
    for number in range(7):
        shutil.copytree(photos / "dog", photos / f"new{number}")
    code, _, err = kpipe("run", experiment)
    assert code == 3
    assert "class 'new4' is new; and 3 more. Restore them" in err


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"train": {"": (19, "b")}}, "20 images then, 19 now"),
        ({"train": {"": (20, "b")}}, "the images have changed .names or sizes."),
        ({}, "the train split is gone"),
    ],
)
def test_records_of_a_stream_are_compared_as_a_whole(tmp_path, now, message):
    stream = SimpleNamespace(class_names=("a", "b"), contents={"train": {"": (20, "a")}})
    record_data(Run(tmp_path, False, None), stream)
    again = Run(tmp_path, True, None)
    record_data(again, stream)
    with pytest.raises(DataError, match=f"began with: {message}. Restore them"):
        record_data(again, SimpleNamespace(class_names=("a", "b"), contents=now))
    with pytest.raises(DataError, match=r"the order of the classes was \['a', 'b'\], is \['b', 'a'\]"):
        record_data(again, SimpleNamespace(class_names=("b", "a"), contents=stream.contents))


def test_a_run_is_resumed_from_any_folder(kpipe, experiment, unfinished, photos, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = kpipe("run", "--resume", str(unfinished))
    assert (code, err) == (0, "")
    assert f"  data       folder:{photos}: " in out
    assert f"  run        {unfinished}\n  resumed    after step " in out


def test_a_run_whose_images_were_moved_is_resumed_by_hand(kpipe, experiment, unfinished, photos, tmp_path):
    moved = photos.rename(tmp_path / "moved")
    resume = ("run", "--resume", str(unfinished))
    code, _, err = kpipe(*resume)
    assert code == 3 and err.startswith(f"folder:{photos}: expected a folder of images, got nothing there. ")
    assert err.endswith(f"\nIf you have moved the folder:\n  kpipe run --resume {unfinished} data.source=folder:PATH\n")
    removed = (moved / "cat/3.png").rename(tmp_path / "3.png")
    code, _, err = kpipe(*resume, "data.source=folder:moved")
    assert code == 3 and f"{unfinished}: the data are not those that the run began with: 10 images of class" in err
    removed.rename(moved / "cat/3.png")
    code, out, err = kpipe(*resume, "data.source=folder:moved")
    assert (code, err) == (0, "")
    assert f"  data       folder:{moved}: " in out
    code, _, err = kpipe(*resume, "data.source=digits", "training.epochs=2")
    assert code == 2 and f"{unfinished}: data.source: 'folder:" in err and " in the run, 'digits' now" in err


def test_other_images_are_noticed_before_they_are_decoded(kpipe, experiment, unfinished, photos, monkeypatch):
    write_photo(photos / "cat/new.png")
    monkeypatch.setattr("kpipe.data.loading.cache_in_memory", lambda *arguments, **options: 1 / 0)
    assert kpipe("run", experiment)[0] == 3


def test_a_relative_source_is_another_one_in_another_folder(kpipe, experiment, unfinished, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = kpipe("run", experiment)
    assert (code, err) == (
        3, f"folder:{tmp_path}/elsewhere/photos: expected a folder of images, got nothing there. Check the path after "
           "folder:\n",
    )  # fmt: skip


def test_a_new_run_takes_the_data_as_they_are(kpipe, experiment, unfinished, photos, logs):
    (photos / "dog").rename(photos / "wolf")
    assert kpipe("run", experiment, "--new")[0] == 0
    [new] = [run for run in (logs / "tiny").iterdir() if run.is_dir() and run != unfinished]
    assert (new / "classes.txt").read_text() == "cat\nowl\nwolf\n"


def test_workers_that_begin_at_once_record_the_same_data(tmp_path):
    data = SimpleNamespace(class_names=("a", "b"), contents={"train": {"a": (1, "x"), "b": (2, "y")}})
    with ThreadPoolExecutor(8) as workers:
        for done in [workers.submit(record_search_data, tmp_path / "data-0.json", data) for _ in range(200)]:
            done.result()
    assert json.loads((tmp_path / "data-0.json").read_text())["classes"] == ["a", "b"]
