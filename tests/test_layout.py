"""Layouts of folders as people have them: their structure decides what is a split and what a class."""

import os
import re
import unicodedata

import pytest

from kpipe.errors import DataError
from kpipe.layout import find_images, find_layout


@pytest.fixture
def make(tmp_path):
    """Write empty image files.

    `train/cat=3` stands for three images in that folder, `train/` for an empty folder, another path for a file.
    """

    def make(*entries):
        for entry in entries:
            if entry.endswith("/"):
                (tmp_path / entry).mkdir(parents=True)
                continue
            path, _, count = entry.partition("=")
            names = [tmp_path / path / f"{i}.png" for i in range(int(count))] if count else [tmp_path / path]
            for name in names:
                name.parent.mkdir(parents=True, exist_ok=True)
                name.touch()
        return tmp_path

    return make


def classes_of(layout):
    return {split: list(classes) for split, classes in layout.splits.items()}


CATS = ["cat", "dog"]
LAYOUTS = {
    "classes": (["cat=2", "dog=2"], {"train": CATS}),
    "splits": (["train/cat=1", "train/dog=1", "validation/cat=1", "test/dog=1"],
               {"train": CATS, "validation": ["cat"], "test": ["dog"]}),
    "other words": (["Training/cat=1", "Training/dog=1", "Testing/cat=1", "Testing/dog=1"],
                    {"train": CATS, "test": CATS}),
    "sets": (["training_set/cat=1", "training_set/dog=1", "test_set/cat=1"], {"train": CATS, "test": ["cat"]}),
    "dev": (["train/cat=1", "train/dog=1", "dev/cat=1", "test/cat=1"],
            {"train": CATS, "validation": ["cat"], "test": ["cat"]}),
    "eval": (["train/cat=1", "train/dog=1", "eval/cat=1"], {"train": CATS, "validation": ["cat"]}),
    "dev and eval": (["train/cat=1", "train/dog=1", "dev/cat=1", "eval/dog=1"],
                     {"train": CATS, "validation": ["cat"], "test": ["dog"]}),
    "capitals and spaces": (["Train Data/cat=1", "Train Data/dog=1", "Validation/cat=1"],
                            {"train": CATS, "validation": ["cat"]}),
    "a year": (["train2017/cat=1", "train2017/dog=1", "val2017/cat=1"], {"train": CATS, "validation": ["cat"]}),
    "a shared word": (["asl_alphabet_train/a=1", "asl_alphabet_train/b=1", "asl_alphabet_test/a=1"],
                      {"train": ["a", "b"], "test": ["a"]}),
    "wrapped twice": (["pets/pets/cat=1", "pets/pets/dog=1", "pets/readme.txt"], {"train": CATS}),
    "wrapped splits": (["data/train/cat=1", "data/train/dog=1", "data/val/cat=1"],
                       {"train": CATS, "validation": ["cat"]}),
    "each split wrapped": (["seg_train/seg_train/cat=1", "seg_train/seg_train/dog=1", "seg_test/seg_test/cat=1",
                            "seg_test/seg_test/dog=1", "seg_pred/seg_pred=3"], {"train": CATS, "test": CATS}),
    "a class called test": (["control=2", "test=2"], {"train": ["control", "test"]}),
    "classes called train and test": (["car=2", "test=1", "train=2"], {"train": ["car", "test", "train"]}),
    "only train": (["train/cat=1", "train/dog=1"], {"train": CATS}),
    "unlabeled test": (["train/cat=1", "train/dog=1", "test1=3"], {"train": CATS}),
    "each class wrapped": (["cat/images=1", "dog/images=1"], {"train": CATS}),
    "groups of classes": (["animal/cat=1", "animal/dog=1", "plant/tree=1"], {"train": ["animal", "plant"]}),
    "images beside the classes": (["train/cat=1", "train/dog=1", "train/overview.png", "val/cat=1"],
                                  {"train": CATS, "validation": ["cat"]}),
    "a copy of the classes": (["yes=1", "no=1", "tumor/yes=1", "tumor/no=1"], {"train": ["no", "yes"]}),
    "a copy in train": (["train/a=1", "train/b=1", "train/train/a=1", "train/train/b=1", "val/a=1"],
                        {"train": ["a", "b"], "validation": ["a"]}),
    "a split without classes": (["train/cat=1", "train/dog=1", "val/images=3"], {"train": CATS}),
    "a wrapper with an image": (["pets/cat=1", "pets/dog=1", "pets/overview.jpg"], {"train": CATS}),
    "code beside the classes": (["cat=1", "dog=1", "venv/bin/python", "venv/a.py", "venv/b.py", "src/.git/HEAD"],
                                {"train": CATS}),
    "code called evaluation": (["images/cat=1", "images/dog=1", "evaluation/eval.m"], {"train": CATS}),
    "camel case": (["TrainImages/a=1", "TrainImages/b=1", "TestImages/a=1"], {"train": ["a", "b"], "test": ["a"]}),
    "a copy of the splits": (
        ["x/train/a=1", "x/train/b=1", "x/test/a=1", "x/x/train/a=1", "x/x/train/b=1", "x/x/test/a=1", "__MACOSX/a=1"],
        {"train": ["a", "b"], "test": ["a"]},
    ),
    "a class with breeds": (["cat=1", "dog/poodle=1", "dog/pug=1"], {"train": CATS}),
    "pictures that end like kpipe's": (["cat/x_data.png", "cat/y_data.png", "dog=1"], {"train": CATS}),
    "folders of systems": (["cat=1", "dog=1", "__MACOSX/cat=1", ".git/x=1", "@eaDir/cat=1", "cat/@eaDir/0=1"],
                           {"train": CATS}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_are_clear(make, name):
    entries, expected = LAYOUTS[name]
    assert classes_of(find_layout(make(*entries))) == expected


REFUSED = {
    "the same folders": (
        ["part1/cat=1", "part1/dog=1", "part2/cat=1", "part2/dog=1"],
        r"expected one folder per class, or such folders in train/, validation/ and test/; got part1/ with the "
        r"folders \S*cat\S*, \S*dog\S*; part2/ with .*\. To train on one of them, write "
        r"data\.source=folder:\S*/part1\. If they are splits, rename them to train, validation and test, and move "
        r"others away\. If they are classes, put their images directly into them",
    ),
    "train among classes": (
        ["car=2", "train/steam=1", "train/diesel=1"],
        r"got car/ with images; train/ with the folders .*rename them to train, validation and test, and move other",
    ),
    "a part with fewer classes": (["a/cat=1", "a/dog=1", "a/cow=1", "test/cat=1", "test/dog=1"], "got a/ with the"),
    "images in the splits": (
        ["train=3", "test=2"],
        r"expected one folder per class in \S*test\S*, \S*train\S*, got images without classes\. Sort them into one",
    ),
    "no train": (["val/cat=1", "test/cat=1"], r"expected a train folder, got \S*test\S*, \S*val\S*\. Add train/"),
    "two validations": (
        ["train/cat=1", "train/dog=1", "val/cat=1", "valid/cat=1"],
        r"expected one validation folder, got \S*val\S*, \S*valid\S*\. Keep one of them",
    ),
    "flat": (["0.png"], r"expected one folder per class, got no images in folders\. Put images \(\.jpg"),
    "nothing": (["notes.txt"], r"expected one folder per class, got no images in folders"),
    "one class": (["cat=2"], r"expected at least two classes, got one, \S*cat\S*\. Add a folder for each other class"),
    "a class that train lacks": (
        ["train/cat=1", "train/dog=1", "val/cat=1", "val/cow=1"],
        r"expected in val/ the classes of train/ only, got \S*cow\S*\. Add images of it to train/, or move it",
    ),
    "capitals": (
        ["train/Cat=1", "train/Dog=1", "val/cat=1", "val/dog=1"],
        r"expected in val/ .* got \S*cat\S*, \S*dog\S*\. Upper and lower case differ\. Add",
    ),
    "other kinds": (
        ["cat=1", "dog=1", "cow/0.heic", "cow/1.HEIC", "cow/notes.txt"],
        r"expected images in \S*/cow, got 2 files of other kinds \(\S*\.heic\S*\)\. Convert them",
    ),
    "no endings": (["cat=1", "dog=1", "cow/IM0001"], r"in \S*/cow, got 1 file of another kind \(\S*without an ending"),
    "an empty split": (["train/cat=1", "train/dog=1", "test/"], r"per class in test/, got an empty folder\. Put"),
    "no classes in train": (
        ["train=2", "val/cat=1", "val/dog=1"],
        r"expected one folder per class in \S*train\S*, got images without classes\. Sort them into one folder",
    ),
    "only train, without classes": (["train=2"], r"per class in \S*train\S*, got images without classes"),
    "splits beside other images": (
        ["plants/train/a=1", "plants/train/b=1", "plants/valid/a=1", "test/test=2"],
        r"got plants/ with the splits \S*train\S*, \S*valid\S*\. To train on these, write \S*/plants$",
    ),
    "a test without labels beside the set": (
        ["simpsons/bart=1", "simpsons/lisa=1", "simpsons_testset=2"],
        r"got simpsons/ with the folders \S*bart\S*, \S*lisa\S*, and \S*simpsons_testset\S* beside it\. "
        r"To train on simpsons/, write data\.source=folder:\S*/simpsons$",
    ),
    "masks": (["images=2", "masks=2"], r"got only \S*images\S*, \S*masks\S*\. Sort"),
    "another name for the rest": (
        ["train/cat=1", "train/dog=1", "holdout/cat=1", "holdout/dog=1"], "got holdout/ with the folders",
    ),
    "one more with the same classes": (
        ["train/cat=1", "train/dog=1", "test/cat=1", "cross_validation/cat=1", "cross_validation/dog=1"],
        "got cross_validation/ with the folders .*; test/ with .*; train/ with .* move others away",
    ),
    "train beside another group": (
        ["train/steam=1", "train/electric=1", "bus/double=1", "bus/single=1"], "got bus/ with the folders .*; train/ w",
    ),
    "screenshots beside the set": (
        ["dataset/cat=1", "dataset/dog=1", "images=3", "README.md"],
        r"got dataset/ with the folders \S*cat\S*, \S*dog\S*, and 'images' beside it\. To train on dataset/, write ",
    ),
    "results beside the set": (["pets/cat=1", "pets/dog=1", "output/plots=2"], r", and 'output' beside it\. To train"),
    "splits in the classes": (
        ["cat/train=1", "cat/test=1", "dog/train=1", "dog/test=1"],
        r"expected class folders in split folders, got split folders in class folders: cat/ with the folders "
        r"\S*test\S*, \S*train\S*; dog/ .*\. Move them: cat/test to test/cat, and so on",
    ),
    "masks in the classes": (
        ["a/images=1", "a/masks=1", "b/images=1", "b/masks=1"],
        r"expected images directly in one folder per class, got a/ with .*\. Move the images into the folders of their",
    ),
    "arrays": (["cat=1", "dog=1", "cow/0.npy"], r"in \S*/cow, got 1 file of another kind \('?\.npy'?\)\. Convert"),
    "scans": (["cat=1", "dog=1", "cow/0.nii.gz", "cow/1.nii.gz"], r"got 2 files of other kinds \('?\.nii\.gz'?\)"),
    "several classes that train lacks": (
        ["train/a=1", "train/b=1", "val/c=1", "val/d=1"], r"Add images of them to train/, or move them out of val/",
    ),
    "two folders of one name": (["cat=1", "cat =1", "dog=1"], r"expected class names that differ, got .*Rename one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused(make, name):
    entries, message = REFUSED[name]
    root = make(*entries)
    with pytest.raises(DataError, match=f"(?s)^folder:{re.escape(str(root))}: .*{message}"):
        find_layout(root)


def test_what_is_left_out_is_noted(make):
    root = make("train/cat=1", "train/dog=1", "test1=3", "samples=2", "notes.txt", "train/empty/README", "train/x.csv")
    layout = find_layout(root)
    assert [path.relative_to(root).as_posix() for path in layout.files] == ["notes.txt", "train/x.csv"]
    assert [path.relative_to(root).as_posix() for path in layout.folders] == ["samples", "train/empty"]
    assert [path.relative_to(root).as_posix() for path in layout.unlabeled] == ["test1"]


@pytest.mark.parametrize("entries", [
    ["tensorboard_logs/x/2026-01-01/figures=3"],
    ["my_logs/x/2026-01-01/figures=3", "my_logs/x/2026-01-01/config.yaml", "my_logs/x/2026-01-01/environment.json"],
    ["tensorboard_logs_searches/x/2026-01-01_1234abcd/figures=3"],
    ["my_searches/x/1/search.png", "my_searches/x/1/search.yaml", "my_searches/x/1/trials/0001.json"],
])  # fmt: skip
def test_own_output_is_never_read(make, entries):
    assert classes_of(find_layout(make("cat=1", "dog=1", *entries))) == {"train": CATS}


def test_links_to_nothing_in_the_place_of_classes_are_refused(make, tmp_path):
    root = make("train/cat=1", "train/dog=1")
    (root / "test").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=f"expected folders in {root}, got links to nothing: 'test'. Mend or remove"):
        find_layout(root)
    (root / "test").unlink()
    (root / "train" / "cow").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=f"expected folders in {root}/train, got links to nothing: 'cow'"):
        find_layout(root)


def test_names_are_compared_in_one_form_of_unicode(make):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = make(f"train/{decomposed}=1", "train/dog =1", f"val/{composed}=1", "val/dog=1")
    layout = find_layout(root)
    assert classes_of(layout) == {"train": [composed, "dog"], "validation": [composed, "dog"]}
    assert layout.splits["train"][composed] == root / "train" / decomposed


def test_links_in_a_circle_end(make, tmp_path):
    root = make("cat=1", "dog=1")
    (tmp_path / "all").symlink_to(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "two").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "one").symlink_to(tmp_path / "one")
    layout = find_layout(root)
    assert classes_of(layout) == {"train": CATS}
    assert [path.name for path in layout.folders] == ["all", "one", "two"]


def test_copies_and_groups_are_noted(make):
    root = make("animal/cat=1", "animal/dog=1", "plant/tree=1", "animal/x=1", "all/animal/cat=1", "all/plant/tree=1")
    layout = find_layout(root)
    assert classes_of(layout) == {"train": ["animal", "plant"]}
    assert ([path.name for path in layout.copies], [path.name for path in layout.groups]) == (["all"], ["animal"])


def test_each_folder_is_read_a_few_times(make, monkeypatch):
    root, scandir, calls = make(*(f"{number}/images=1" for number in range(300))), os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or scandir(path))
    assert len(find_layout(root).splits["train"]) == 300
    assert len(calls) < 300 * 10


def test_a_folder_that_may_not_be_read(make, monkeypatch):
    root, scandir = make("cat=1", "dog=1"), os.scandir

    def refuse(path):
        if os.path.basename(path) == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"folder:.*: .*/dog cannot be read \(Permission denied\)"):
        find_layout(root)


def test_what_is_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(File name too long\)"):
        find_layout(tmp_path / ("x" * 300))
    with pytest.raises(
        DataError, match=r"expected a folder of images, got nothing there\. Check the path after folder:"
    ):
        find_layout(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"expected a folder of images, got a file\. Check the path"):
        find_layout(tmp_path / "file")


def test_the_images_that_are_meant(make, tmp_path):
    root = make("set/b/10.png", "set/b/9.JPG", "set/b/.hidden.png", "set/b/notes.txt", "set/a.png", "set/.trash/1.png",
                "set/c10/1.png", "set/c9/1.png", "set/b/__MACOSX/1.png", "elsewhere/1.png", "a file")  # fmt: skip
    (root / "set" / "link").symlink_to(root / "elsewhere")
    (root / "set" / "b" / "circle").symlink_to(root / "set")
    (root / "set" / "gone.png").symlink_to("nowhere")
    names = ["a.png", "gone.png", "b/9.JPG", "b/10.png", "c9/1.png", "c10/1.png", "link/1.png"]
    found = find_images([str(root / "a file"), str(root / "set"), "gone.jpg"])
    assert found == [str(root / "a file"), *(str(root / "set" / name) for name in names), "gone.jpg"]


def test_a_folder_that_cannot_be_read_is_named(make, monkeypatch):
    root = make("set/b/1.png")

    def refuse(folder):
        raise PermissionError(13, "Permission denied", os.fsencode(folder))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=rf"^{root}/set: cannot be read \(Permission denied\)$"):
        find_images([str(root / "set")])


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match=r"/pipe.jpg: expected an image file or a folder, got a pipe or a device$"):
        find_images([str(tmp_path / "pipe.jpg")])
