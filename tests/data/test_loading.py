"""Sources, splits and statistics."""

import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from image_sets import define_set, png_header, tfds_in, write_classes, write_image
from PIL import Image

from kpipe.data import statistics
from kpipe.data.images import Form
from kpipe.data.loading import find_source, load_dataset
from kpipe.data.statistics import channel_statistics, mean_image, whitening
from kpipe.errors import ConfigError, DataError, OutOfMemory

RANDOM = np.random.default_rng(0)
NO_TEST = "there is no test split: the data has train and validation only. test=0.2 takes one from the training split"


def counts(split, classes):
    return np.bincount(split.labels, minlength=classes).tolist()


def same(split, other):
    return np.array_equal(split.images, other.images) and np.array_equal(split.labels, other.labels)


# --- embedded ---------------------------------------------------------------------------------------------


def test_digits_have_their_fixed_split():
    splits = load_dataset("digits")
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [1293, 144, 360]
    assert splits.train.images.shape == (1293, 8, 8, 1)
    assert (splits.train.images.dtype, splits.train.labels.dtype) == (np.uint8, np.int32)
    assert (splits.train.images.min(), splits.train.images.max()) == (0, 255)
    assert splits.class_names == tuple("0123456789")
    assert splits.notes == ()
    every = np.concatenate([split.images for split in (splits.train, splits.validation, splits.test)])
    assert len(np.unique(every.reshape(1797, -1), axis=0)) == 1797
    np.testing.assert_allclose(counts(splits.test, 10), np.array(counts(splits.train, 10)) * 360 / 1293, atol=1)
    assert same(splits.train, load_dataset().train)


def test_digits_resized_and_in_color():
    images = load_dataset("digits", image_size=32, channels=3).train.images
    assert images.shape == (1293, 32, 32, 3)
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


@pytest.mark.parametrize(("validation", "test", "sizes"), [(0, 0.2, [1437, 0, 360]), (0.1, 0, [1617, 180, 0])])
def test_a_fraction_of_nothing_leaves_the_split_out(validation, test, sizes):
    splits = load_dataset("digits", validation=validation, test=test)
    assert [len(split or ()) for split in (splits.train, splits.validation, splits.test)] == sizes


# --- arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "digit"}, "unknown source 'digit', did you mean 'digits'?"),
        (
            {"source": "mnist"},
            "unknown source 'mnist' (known: digits, synthetic, folder:<path>, tfds:<name>, python:<FILE.py:function>). "
            "A set of TensorFlow Datasets is written tfds:mnist",
        ),
        ({"source": "/photos/pets"}, "unknown source '/photos/pets'. Write folder:/photos/pets"),
        ({"source": Path("/photos")}, "unknown source '/photos'. Write folder:/photos"),
        ({"source": "digits:8"}, "expected 'digits' alone, got 'digits:8'"),
        ({"source": "folder"}, "expected folder:<path>, got 'folder'"),
        ({"source": "tfds:"}, "expected tfds:<name>, got 'tfds:'"),
        ({"image_size": 0}, "image_size: expected at least 1, got 0"),
        ({"image_size": 8, "stored_size": 0}, "stored_size: expected at least 1, got 0"),
        ({"channels": 0}, "channels: expected at least 1, got 0"),
        ({"validation": 1.0}, "validation: expected a fraction of at least 0 and below 1, got 1.0"),
        ({"test": -0.1}, "test: expected a fraction of at least 0 and below 1, got -0.1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ConfigError) as caught:
        load_dataset(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"source": "digits", "image_size": 20_000},
            "digits: its 1,797 images of 20000x20000x1 take 719 GB of memory, 5 GB are free. Take a smaller image_size",
        ),
        (
            {"source": "synthetic", "image_size": 16, "images": 10**12},
            "synthetic: its 1,000,000,000,000 images of 16x16x3 take 768,000 GB of memory, 5 GB are free. "
            "Take a smaller image_size or fewer images",
        ),
    ],
)
def test_images_that_do_not_fit_into_the_memory_are_not_made(monkeypatch, arguments, said):
    monkeypatch.setattr("kpipe.data.pixels.free_memory", lambda: 5 * 10**9)
    with pytest.raises(OutOfMemory) as caught:
        load_dataset(**arguments)
    assert str(caught.value) == said


def test_channels_that_cannot_be_made():
    with pytest.raises(DataError, match=r"digits: expected 1 or 3 for channels, got 2\. Leave it out"):
        load_dataset("digits", channels=2)


# --- folders ----------------------------------------------------------------------------------------------


def test_folder_of_classes_is_split(tmp_path):
    write_classes(tmp_path, {"b": 20, "a": 30})
    splits = load_dataset(f"folder:{tmp_path}")
    assert splits.class_names == ("a", "b")
    assert [counts(split, 2) for split in (splits.train, splits.validation, splits.test)] == [
        [22, 14],
        [2, 2],
        [6, 4],
    ]
    assert splits.train.images.shape == (36, 8, 8, 3)


@pytest.mark.parametrize("validation", ["validation", "val", "VALID"])
def test_folder_with_all_splits_keeps_them(tmp_path, validation):
    for split, number in (("train", 4), (validation, 2), ("test", 3)):
        write_classes(tmp_path / split, {"cat": number, "dog": number})
    splits = load_dataset(f"folder:{tmp_path}")
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [8, 4, 6]
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_folder_with_a_test_split_has_validation_carved_out(tmp_path):
    write_classes(tmp_path / "train", {"cat": 10, "dog": 10})
    write_classes(tmp_path / "test", {"dog": 3})
    splits = load_dataset(f"folder:{tmp_path}")
    assert [counts(split, 2) for split in (splits.train, splits.validation, splits.test)] == [
        [9, 9],
        [1, 1],
        [0, 3],
    ]


def test_folder_with_a_validation_split_has_no_test(tmp_path):
    write_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    write_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    splits = load_dataset(f"folder:{tmp_path}")
    assert (len(splits.train), len(splits.validation), splits.test) == (6, 2, None)
    assert splits.notes == (NO_TEST,)


def test_a_missing_test_split_is_carved_out_where_it_is_asked_for(tmp_path):
    write_classes(tmp_path / "train", {"cat": 8, "dog": 4})
    write_classes(tmp_path / "val", {"cat": 1, "dog": 1})
    splits = load_dataset(f"folder:{tmp_path}", test=0.25)
    assert [counts(split, 2) for split in splits.by_name.values()] == [[6, 3], [1, 1], [2, 1]]
    assert splits.notes == ("the test split is taken from the training split (test): the data has none of its own",)
    assert load_dataset(f"folder:{tmp_path}", test=0).notes == ()
    write_classes(tmp_path / "test", {"cat": 1, "dog": 1})
    splits = load_dataset(f"folder:{tmp_path}", test=0.25)
    assert splits.counts == {"train": 12, "validation": 2, "test": 2}
    assert splits.notes == ("test is not used: the data has a test split of its own",)


def test_small_class_goes_whole_to_train(tmp_path):
    write_classes(tmp_path, {"many": 20, "few": 2})
    splits = load_dataset(f"folder:{tmp_path}")
    assert counts(splits.train, 2) == [2, 14]
    assert splits.notes == ("too few images to split, all of them in train: 'few'",)


def test_splits_that_come_out_empty_are_none(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 1})
    splits = load_dataset(f"folder:{tmp_path}")
    assert (len(splits.train), splits.validation, splits.test) == (3, None, None)
    assert splits.notes == (
        "too few images to split, all of them in train: 'a', 'b'",
        "there is no test split: too few images to split",
        "there is no validation split: too few images to split",
    )


def test_folder_ignores_what_is_no_image(tmp_path):
    write_classes(tmp_path, {"cat": 2, "dog": 2})
    write_image(tmp_path / "dog" / "more" / "PHOTO.JPG")
    write_image(tmp_path / ".cache" / "x.png")
    write_image(tmp_path / "overview.png")
    for name in ("notes.txt", "cat/.DS_Store", "empty/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    splits = load_dataset(f"folder:{tmp_path}", validation=0, test=0)
    assert counts(splits.train, 2) == [2, 3]
    assert splits.notes == (
        "ignored 1 image outside of the class folders: 'overview.png'",
        "ignored 1 file that is not an image: 'notes.txt'",
        "ignored 1 folder that is not a class: 'empty'",
    )


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_images_are_named_by_their_files(tmp_path, cache):
    write_classes(tmp_path, {"a": 8, "b": 8})
    splits = load_dataset(f"folder:{tmp_path}", image_size=8, cache=cache, validation=0.25, test=0)
    validation = splits.validation
    assert validation.name_images() == [str(tmp_path / name) for name in validation.name_images(in_set=True)]
    assert sorted(name[:2] for name in validation.name_images(in_set=True)) == ["a/", "a/", "b/", "b/"]


def test_a_pipe_is_never_opened(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    os.mkfifo(tmp_path / "a" / "pipe")
    for folder in (tmp_path, tmp_path / "a"):
        os.mkfifo(folder / "x_data.png")
    for name in ("a", "b"):  # the first file of each, and nothing tells the classes apart
        (tmp_path / name / "0.png").unlink()
        (tmp_path / name / "0.png").symlink_to(tmp_path / "a" / "pipe")
        (tmp_path / name / "1.png").write_bytes(b"the same")
    found = find_source(f"folder:{tmp_path}", Form(8))
    assert len(found.splits["train"]) == 4


def test_a_file_takes_little_memory(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2000):
            (tmp_path / name / f"n01440764_{number:05}.JPEG").touch()
    tracemalloc.start()
    found = find_source(f"folder:{tmp_path}", Form(8))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 300 * len(found.splits["train"])


def test_classes_that_a_split_lacks_are_named(tmp_path):
    for split, classes in {"train": "abc", "validation": "ab", "test": "c"}.items():
        write_classes(tmp_path / split, dict.fromkeys(classes, 2))
    notes = load_dataset(f"folder:{tmp_path}").notes
    assert notes == ("validation has no images of 'c'", "test has no images of 'a', 'b'")


def test_one_stray_file_is_named(tmp_path):
    write_classes(tmp_path / "train", {"cat": 2, "dog": 2})
    (tmp_path / "notes.txt").write_text("no image")
    notes = load_dataset(f"folder:{tmp_path}", validation=0, test=0).notes
    assert notes == ("ignored 1 file that is not an image: 'notes.txt'",)


def test_folder_with_umlauts_spaces_and_gray_images(tmp_path):
    root = tmp_path / "schöne Bilder"
    write_image(root / "Käfer rot" / "ein Käfer.jpeg", 77, channels=1)
    write_image(root / "Äpfel" / "ö ü.png", 200)
    split = load_dataset(f"folder:{root}", validation=0, test=0).train
    assert {label: int(image.mean()) for label, image in zip(split.labels, split.images, strict=True)} == {
        0: 77,
        1: 200,
    }


@pytest.mark.parametrize("size", [(20, 40), (40, 20), (8, 16), (10, 10)])
def test_resize_scales_the_shorter_side_and_crops_the_center(tmp_path, size):
    for name in ("a", "b"):
        write_image(tmp_path / name / "0.png", size=size)
    raw = tf.io.decode_png((tmp_path / "a" / "0.png").read_bytes()).numpy()
    split = load_dataset(f"folder:{tmp_path}", image_size=10, validation=0, test=0).train
    shorter = min(size)
    scaled = tf.image.resize(raw, [side * 10 // shorter for side in size], antialias=True).numpy()
    top, left = ((side - 10) // 2 for side in scaled.shape[:2])
    expected = np.round(scaled[top : top + 10, left : left + 10])
    np.testing.assert_array_equal(split.images[split.labels == 0][0], expected)


def test_gray_from_color_is_the_luminance(tmp_path):
    for name, color in (("green", (0, 255, 0)), ("blue", (0, 0, 255))):
        write_image(tmp_path / name / "0.png", color)
    split = load_dataset(f"folder:{tmp_path}", channels=1, validation=0, test=0).train
    assert split.images.shape == (2, 8, 8, 1)
    assert dict(zip(split.labels.tolist(), split.images[:, 0, 0, 0].tolist(), strict=True)) == {0: 29, 1: 149}


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_classes(tmp_path, {"a": 1}, size=(8, 8))
    write_classes(tmp_path, {"b": 1}, size=(6, 9))
    with pytest.raises(DataError, match=r"images of one size, got 8x8 and 6x9\. Set image_size"):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("image_size", [None, 8])
def test_broken_files_are_named(tmp_path, image_size):
    write_classes(tmp_path, {"a": 3, "b": 3})
    broken = tmp_path / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        load_dataset(f"folder:{tmp_path}", image_size=image_size)
    assert re.fullmatch(
        rf"folder:{tmp_path}: expected images, got 1 file that cannot be decoded: \S*{broken}\S* \(cut off\)\. "
        r"Replace or remove it, or leave such files out with on_error='skip'",
        str(caught.value),
    )


def test_many_broken_files_are_counted(tmp_path):
    write_classes(tmp_path, {"a": 3, "b": 3})
    for i in range(7):
        (tmp_path / "a" / f"broken{i}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"got 7 files .*broken4\.jpg\S* \(0 bytes\) and 2 more\. Replace or"):
        load_dataset(f"folder:{tmp_path}", image_size=8)


@pytest.mark.parametrize("size", [(50_000, 40_000), (10, 2**31 - 1), (1, 178_956_971)])
@pytest.mark.parametrize("image_size", [8, None])
def test_a_file_that_declares_too_many_pixels_is_not_decoded(tmp_path, size, image_size):
    write_classes(tmp_path, {"a": 2, "b": 2})
    bomb = tmp_path / "b" / "bomb.jpg"  # what it is says the file, not its name
    bomb.write_bytes(png_header(*size))
    declared = "declares more than 178,956,970 pixels, which are not read"
    with pytest.raises(DataError, match=rf"got 1 file that cannot be decoded: .*bomb\.jpg\S* \({declared}\)\. Replace"):
        load_dataset(f"folder:{tmp_path}", image_size=image_size)


def test_a_strip_is_refused_where_the_resize_would_explode(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    write_image(tmp_path / "a" / "strip.png", size=(60_000, 1))
    with pytest.raises(DataError, match=r"strip\.png\S* \(damaged, or so narrow that it would grow too large\)"):
        load_dataset(f"folder:{tmp_path}", image_size=224)


def test_files_of_all_formats_pass(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2}, size=(6, 9))
    for ending in ("jpg", "bmp", "gif"):
        Image.new("RGB", (9, 6)).save(tmp_path / "a" / f"image.{ending}")
    assert load_dataset(f"folder:{tmp_path}", image_size=8, validation=0, test=0).train.images.shape == (7, 8, 8, 3)


def test_a_cut_header_is_left_to_decoding(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "cut.png").write_bytes(png_header(300, 200)[:20])
    with pytest.raises(DataError, match=r"got 1 file that cannot be decoded: .*cut\.png"):
        load_dataset(f"folder:{tmp_path}", image_size=8)


def test_links_are_followed_to_classes_and_images_and_not_in_circles(tmp_path):
    write_classes(tmp_path / "elsewhere", {"dog": 3})
    write_classes(tmp_path / "set", {"cat": 2})
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "set" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "dog" / "0.png")
    (tmp_path / "set" / "cat" / "circle").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "all").symlink_to(tmp_path)
    (tmp_path / "set" / "self").symlink_to("self")
    splits = load_dataset(f"folder:{tmp_path / 'set'}", validation=0, test=0)
    assert (splits.class_names, counts(splits.train, 2)) == (("cat", "dog"), [3, 3])
    assert splits.notes == (
        "ignored 1 file that is not an image: 'self'",
        "ignored 1 folder that is not a class: 'all'",
        "ignored 1 link to a folder inside a class: 'cat/circle'",
    )


def test_a_pipe_is_not_waited_for_and_a_broken_link_is_named(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    notes = load_dataset(f"folder:{tmp_path}", validation=0, test=0).notes
    assert notes == ("ignored 1 file that is not an image: 'a/pipe.png'",)
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"cannot be decoded: .*gone\.png\S* \(No such file or directory\)\. Replace"):
        load_dataset(f"folder:{tmp_path}")


def file_instead(root):
    root.rmdir()
    root.write_text("")


def one_class(root):
    write_classes(root, {"cat": 2})


def unknown_class(root):
    write_classes(root / "train", {"cat": 1, "dog": 1})
    write_classes(root / "test", {"cat": 1, "cow": 1})


def no_train(root):
    write_classes(root / "val", {"cat": 1})
    write_classes(root / "test", {"cat": 1})


def two_validations(root):
    for split in ("train", "val", "valid"):
        write_classes(root / split, {"cat": 1})


def empty_test(root):
    write_classes(root / "train", {"cat": 1, "dog": 1})
    (root / "test").mkdir()


BAD_FOLDERS = [
    (lambda root: root.rmdir(), r"expected a folder of images, got nothing there\. Check the path"),
    (
        lambda root: (root.rmdir(), root.write_text("")),
        r"expected a folder of images, got a file\. Check the path",
    ),
    (lambda root: None, r"expected one folder per class, got no images in folders\. Put images \(\.jpg, "),
    (one_class, r"expected at least two classes, got one, 'cat'\. Add a folder for each other class"),
    (unknown_class, r"expected in test/ the classes of train/ only, got 'cow'\. Add images of it to train/"),
    (no_train, r"expected a train folder, got 'test', 'val'\. Add train/"),
    (two_validations, r"expected one validation folder, got 'val', 'valid'\. Keep one of them"),
    (empty_test, r"expected one folder per class in test/, got an empty folder"),
]


@pytest.mark.parametrize(("make", "message"), BAD_FOLDERS)
def test_bad_folders(tmp_path, make, message):
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=f"folder:{root}: {message}"):
        load_dataset(f"folder:{root}", image_size=8)


# --- TensorFlow Datasets ----------------------------------------------------------------------------------


@pytest.fixture
def tfds_data(tmp_path):
    """A fresh data folder; returns the module."""
    with tfds_in(tmp_path) as tfds:
        yield tfds


def test_tfds_splits_by_name(tfds_data):
    define_set(tfds_data, "tiny_splits", {"train": [0, 1] * 10, "test": [-1] * 4, "extra": [0], "validation": [1, 0]})
    splits = load_dataset("tfds:tiny_splits")
    assert (len(splits.train), len(splits.validation), splits.test) == (20, 2, None)
    assert splits.class_names == ("zebra", "ape")
    assert splits.train.images.shape == (20, 8, 8, 3)
    assert splits.train.labels.dtype == np.int32
    assert {split: found[""][0] for split, found in splits.contents.items()} == {"train": 20, "validation": 2}
    places = splits.train.images[:, 0, 0, 0] // 10
    np.testing.assert_array_equal(splits.train.labels, places % 2)
    assert sorted(splits.notes) == [
        "ignored the split 'extra'",
        "ignored the split 'test', which has no labels",
        NO_TEST,
    ]


def test_tfds_with_images_of_many_sizes(tfds_data):
    define_set(tfds_data, "tiny_sizes", {"train": [0, 1] * 5}, size=(None, None, 3))
    splits = load_dataset("tfds:tiny_sizes", image_size=6, channels=1)
    assert [split.images.shape for split in (splits.train, splits.validation, splits.test)] == [
        (7, 6, 6, 1),
        (1, 6, 6, 1),
        (2, 6, 6, 1),
    ]
    with pytest.raises(DataError, match=r"tfds:tiny_sizes, train: expected images of one size, got .*Set image_size"):
        load_dataset("tfds:tiny_sizes")


@pytest.mark.parametrize(("lost", "seen"), [(1, 9), (200, 8)])
def test_tfds_with_damaged_files(tfds_data, tmp_path, lost, seen):
    name = f"tiny_damaged_{lost}"
    define_set(tfds_data, name, {"train": [0, 1] * 5})
    load_dataset(f"tfds:{name}")
    [records] = tmp_path.rglob("*.tfrecord*")
    records.write_bytes(records.read_bytes()[:-lost])
    message = (
        rf"tfds:{name}, train: expected 10 records, got {seen}: '{re.escape(str(records))}' cannot be read to the end"
        r"\. Remove .* and prepare the set again, or train on what is left with on_error='skip'"
    )
    with pytest.raises(DataError, match=message):
        load_dataset(f"tfds:{name}")


def test_tfds_that_lost_whole_records(tfds_data, tmp_path):
    define_set(tfds_data, "tiny_lost", {"train": [0, 1] * 5})
    load_dataset("tfds:tiny_lost")
    [records] = tmp_path.rglob("*.tfrecord*")
    first = list(tf.data.TFRecordDataset(str(records)).take(6).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(records)) as writer:
        for record in first:
            writer.write(record)
    with pytest.raises(DataError, match=r"tfds:tiny_lost, train: expected 10 records, got 6: "):
        load_dataset("tfds:tiny_lost")


def test_tfds_without_train(tfds_data):
    define_set(tfds_data, "tiny_test", {"test": [0, 1]})
    with pytest.raises(DataError, match=r"tfds:tiny_test: expected a split called train, got 'test'"):
        load_dataset("tfds:tiny_test")


def test_tfds_that_is_no_image_classification(tfds_data):
    define_set(tfds_data, "tiny_keys", {"train": [0]}, keys=None)
    define_set(tfds_data, "tiny_text", {"train": [0]}, image=tfds_data.features.Text())
    for name, keys in (("tiny_keys", "None"), ("tiny_text", r"\('image', 'label'\)")):
        message = rf"tfds:{name}: expected an image classification .*got supervised keys {keys}\. Choose another"
        with pytest.raises(DataError, match=message):
            load_dataset(f"tfds:{name}")


def test_tfds_that_cannot_be_downloaded(tfds_data, tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setattr(downloader, "MAX_RETRIES", 7)
    define_set(tfds_data, "tiny_offline", {})
    with pytest.raises(DataError) as caught:
        load_dataset("tfds:tiny_offline")
    assert str(caught.value) == (
        f"tfds:tiny_offline: expected it prepared in {tmp_path}/tiny_offline/1.0.0, got nothing there, "
        "and it could not be downloaded (no route to host). "
        "Set TFDS_DATA_DIR to the folder that has it, or prepare it on a machine with a network "
        "(python -c \"import tensorflow_datasets as tfds; tfds.load('tiny_offline')\") and copy it there, "
        "or use data.source=digits or data.source=synthetic"
    )
    assert downloader.MAX_RETRIES == 7


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifr10", ", did you mean 'cifar10'?"),
        ("qqzzqq", ""),
        ("mnist/no", ": BuilderConfig no not found with version 3.0.1"),
        ("mnist/", ", which is not written as <name>, <name>/<config> or <name>:1.0.0"),
        ("mn ist", ", which is not written as <name>, <name>/<config> or <name>:1.0.0"),
        ("a/b/c", ", which is not written as <name>, <name>/<config> or <name>:1.0.0"),
        ("mnist\n/", ", which is not written as <name>, <name>/<config> or <name>:1.0.0"),
        ("mnist:9.9.9", ": Dataset mnist cannot be loaded at version 9.9.9, only: 3.0.1."),
        ("mnist/size=3", ": DatasetBuilder.__init__() got an unexpected keyword argument 'size'"),
    ],
)
def test_tfds_unknown_names(tfds_data, name, hint):
    with pytest.raises(DataError) as caught:
        load_dataset(f"tfds:{name}")
    catalog = "https://www.tensorflow.org/datasets/catalog"
    shown = name.replace("\n", "\\n")
    assert str(caught.value) == f"tfds:{shown}: expected a set of {catalog}, got '{shown}'{hint}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'datasets'"), "No module named 'datasets'"),
        (AssertionError(), "AssertionError"),
        (tf.errors.FailedPreconditionError(None, None, "Could not resolve host\n\t more"), "Could not resolve host"),
    ],
)
def test_whatever_tfds_raises_for_a_name_is_a_line(tfds_data, monkeypatch, capsys, error, reason):
    def builder(name, **options):
        print("**** please install datasets ****")
        raise error

    monkeypatch.setattr(tfds_data, "builder", builder)
    with pytest.raises(DataError) as caught:
        load_dataset("tfds:huggingface:mnist")
    assert str(caught.value).endswith(f"/catalog, got 'huggingface:mnist': {reason}")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_embedded_sources_do_not_import_tfds():
    script = "import sys, kpipe.data as d; d.load_dataset(); print('tensorflow_datasets' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.split()[-1:] == ["False"], result.stderr


# --- statistics -------------------------------------------------------------------------------------------


def in_batches(images, size=100):
    return (images[start : start + size] for start in range(0, len(images), size))


def test_statistics_agree_with_numpy():
    images = RANDOM.integers(0, 256, (1500, 5, 7, 3), np.uint8) // np.array([1, 2, 3], np.uint8)
    mean, std = channel_statistics(in_batches(images))
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(mean_image(in_batches(images)), images.mean(axis=0), rtol=1e-6)


def test_statistics_of_a_constant_channel():
    assert channel_statistics([np.full((2, 3, 3, 1), 255, np.uint8)]) == ([255.0], [1e-3])


@pytest.fixture(scope="module")
def related():
    """600 images [3, 4, 2] whose pixels depend on each other; the first one is always 7."""
    random = np.random.default_rng(4)
    pixels = random.normal(size=(600, 24)) @ random.normal(size=(24, 24)) * 9 + 120
    pixels[:, 0] = 7
    return np.clip(pixels, 0, 255).astype(np.uint8).reshape(600, 3, 4, 2)


def eigenvalues_of(images):
    return np.linalg.eigvalsh(np.cov(images.reshape(len(images), -1).astype(float), rowvar=False, bias=True))[::-1]


@pytest.mark.parametrize("kind, components", [("pca", None), ("pca", 5), ("pca_whiten", None), ("zca", None)])
def test_statistics_do_not_depend_on_batches_and_order(related, kind, components):
    mean, matrix = whitening([related], kind, components)
    again = whitening(in_batches(related[::-1], 7), kind, components)
    assert (mean.dtype, matrix.dtype, matrix.shape) == (np.float32, np.float32, (24, components or 24))
    assert (again[0].tobytes(), again[1].tobytes()) == (mean.tobytes(), matrix.tobytes())
    assert channel_statistics([related]) == channel_statistics(in_batches(related[::-1], 7))
    np.testing.assert_array_equal(mean.reshape(3, 4, 2), mean_image(in_batches(related[::-1], 7)))


def test_sums_of_white_images_are_exact():
    images = np.full((1000, 1, 2, 1), 255, np.uint8)
    images[0] = 254
    mean, covariance = statistics._moments([images])
    assert (mean == 254.999).all()
    np.testing.assert_allclose(covariance, 0.000999, rtol=1e-6)


def test_pca_is_that_of_scikit_learn(related):
    from sklearn.decomposition import PCA

    rows = related.reshape(600, -1).astype(float)
    theirs = PCA(5, svd_solver="full").fit(rows)
    mean, matrix = whitening([related], "pca", 5)
    np.testing.assert_allclose(mean, theirs.mean_, rtol=1e-6)
    signs = np.sign(np.take_along_axis(theirs.components_, np.abs(theirs.components_).argmax(1)[:, None], 1))
    np.testing.assert_allclose(matrix, (signs * theirs.components_).T, atol=1e-5)
    np.testing.assert_allclose((rows - mean) @ matrix, theirs.transform(rows) * signs.T, rtol=1e-3, atol=1e-2)


def test_whitened_images_are_independent_but_for_the_noise(related):
    rows, eigenvalues = related.reshape(600, -1).astype(float), eigenvalues_of(related)
    shrunk = eigenvalues / (eigenvalues + 0.01 * eigenvalues.mean())
    by_pca, by_zca = (
        (rows - mean) @ matrix for mean, matrix in (whitening([related], k) for k in ("pca_whiten", "zca"))
    )
    np.testing.assert_allclose(np.cov(by_pca, rowvar=False, bias=True), np.diag(shrunk), atol=1e-4)
    covariance = np.cov(by_zca, rowvar=False, bias=True)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[::-1], shrunk, atol=1e-4)
    _, matrix = whitening([related], "zca")
    np.testing.assert_allclose(matrix[0, 1:], 0, atol=1e-12)  # the pixel that never changes goes its own way
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)


def test_images_without_a_difference_are_whitened_to_nothing():
    mean, matrix = whitening([np.full((3, 2, 2, 1), 9, np.uint8)], "zca")
    assert (mean == 9).all() and np.isfinite(matrix).all()


@pytest.mark.parametrize("measure", [channel_statistics, mean_image, lambda images: whitening(images, "zca")])
def test_statistics_of_something_else(measure):
    for images in (np.zeros((2, 2, 1), np.uint8), np.zeros((1, 2, 2, 1))):
        with pytest.raises(ValueError, match=r": expected uint8 images \[b, H, W, C\], got (uint8|float64) \["):
            measure([images])
    for batches in ([], [np.zeros((0, 2, 2, 1), np.uint8)]):
        with pytest.raises(ValueError, match=": expected at least one image, got none"):
            measure(batches)


def test_another_whitening():
    with pytest.raises(ValueError, match="whitening: expected one of pca, pca_whiten, zca, got 'white'"):
        whitening([], "white")
