"""Where decoded images are kept: in memory, on the disk, or nowhere."""

import errno
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from image_sets import define_set, prepare_set, tfds_in, write_classes, write_image, write_numbered

from kpipe.data import cache
from kpipe.data.arrays import ArraySplit
from kpipe.data.files import FileSplit
from kpipe.data.loading import load_dataset
from kpipe.data.records import RecordSplit
from kpipe.errors import DataError, EnvironmentFault, OutOfMemory

IMAGES = np.random.default_rng(4).integers(0, 256, (12, 8, 8, 3), np.uint8)
WHOLE = {"image_size": 8, "validation": 0, "test": 0}
BYTES = 8 * 8 * 3


@pytest.fixture
def root(tmp_path):
    write_numbered(tmp_path / "set", IMAGES)
    return tmp_path / "set"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of what is kept on the disk."""
    monkeypatch.setenv("KPIPE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def nothing_is_decoded(monkeypatch):
    def prevent():
        monkeypatch.setattr(cache, "read_what_can_be_read", lambda *_: pytest.fail("decoded"))

    return prevent


def load(root, cache="disk", **options):
    return load_dataset(f"folder:{root}", cache=cache, **(WHOLE | options))


def sets_in(folder):
    """Return the sets that are kept, without the hidden locks beside them."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def is_mapped(split):
    return isinstance(split, ArraySplit) and split.kept_pixels.is_mapped


# --- which kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache", "kind", "mapped"), [("auto", ArraySplit, False), ("memory", ArraySplit, False)])
def test_images_are_kept_in_memory(root, cache, kind, mapped):
    split = load(root, cache).train
    assert type(split) is kind and split.kept_pixels.is_mapped is mapped
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, np.arange(12))


def test_images_are_kept_nowhere(root, kept, nothing_is_decoded):
    nothing_is_decoded()
    assert type(load(root, "none").train) is FileSplit
    assert not kept.exists()


def test_images_are_kept_on_the_disk(root, kept):
    split = load(root, "disk").train
    assert is_mapped(split) and not split.kept_pixels.images.flags.writeable
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, np.arange(12))
    assert len(sets_in(kept)) == 1


def test_a_stream_is_kept_as_files_are(tmp_path, kept):
    with tfds_in(tmp_path / "tfds") as tfds:
        define_set(tfds, "tiny_kept", {"train": [0, 1] * 6})
        prepare_set(tfds, "tiny_kept", shards=2)
        memory, mapped, stream = (
            load_dataset("tfds:tiny_kept", cache=cache, **WHOLE).train for cache in ("memory", "disk", "none")
        )
        again = load_dataset("tfds:tiny_kept", cache="disk", **WHOLE).train
    assert type(stream) is RecordSplit and is_mapped(mapped) and not is_mapped(memory)
    for split in (mapped, again):
        np.testing.assert_array_equal(split.images, memory.images)
        np.testing.assert_array_equal(split.labels, memory.labels)


def test_auto_keeps_split_by_split_what_fits(tmp_path):
    for name, number in (("train", 6), ("validation", 3), ("test", 2)):
        write_classes(tmp_path / name, {"a": number, "b": number})

    def kinds(images):
        splits = load_dataset(f"folder:{tmp_path}", image_size=8, cache="auto", cache_gigabytes=images * BYTES / 1e9)
        return {name: type(split) for name, split in splits.by_name.items()}

    assert kinds(22) == {"train": ArraySplit, "validation": ArraySplit, "test": ArraySplit}
    assert kinds(21.9) == {"train": ArraySplit, "validation": ArraySplit, "test": FileSplit}
    assert kinds(17.9) == {"train": ArraySplit, "validation": FileSplit, "test": ArraySplit}
    assert kinds(11.9) == {"train": FileSplit, "validation": ArraySplit, "test": ArraySplit}
    assert kinds(1) == {"train": FileSplit, "validation": FileSplit, "test": FileSplit}


def test_memory_keeps_what_auto_would_not(root):
    assert type(load(root, "auto", cache_gigabytes=0).train) is FileSplit
    assert type(load(root, "memory", cache_gigabytes=0).train) is ArraySplit


def test_memory_that_is_not_there_is_not_filled(root, monkeypatch):
    monkeypatch.setattr("kpipe.data.pixels.free_memory", lambda: 100)
    with pytest.raises(OutOfMemory) as caught:
        load(root, "memory")
    assert re.fullmatch(
        rf"folder:{root}: its 12 images of \d+x\d+x3 take \S+ kB of memory, 100 bytes are free\. "
        r"Set cache='none' or cache='disk', or take a smaller image_size",
        str(caught.value),
    )
    assert load(root, "none").train.where_kept == "decoded each time"


def test_auto_counts_the_stored_size(root):
    assert type(load(root, "auto", cache_gigabytes=12 * BYTES / 1e9).train) is ArraySplit
    assert type(load(root, "auto", stored_size=9, cache_gigabytes=12 * BYTES / 1e9).train) is FileSplit
    splits = load(root, "memory", stored_size=9)
    assert splits.train.shape == (9, 9, 3) and splits.image_shape == (8, 8, 3)


def test_crops_of_whole_images_are_not_kept_by_auto(tmp_path):
    for name in ("train", "validation", "test"):
        write_classes(tmp_path / name, {"a": 2, "b": 2})

    def kinds(**options):
        splits = load_dataset(f"folder:{tmp_path}", image_size=8, whole_images=True, **options)
        return [type(split) for split in splits.by_name.values()]

    assert kinds() == [FileSplit, ArraySplit, ArraySplit]  # evaluation sees its images in their form all the same
    assert kinds(cache="memory") == [ArraySplit, ArraySplit, ArraySplit]


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_images_of_many_sizes_cannot_stay_in_their_files(tmp_path, kept, cache):
    write_image(tmp_path / "set" / "a" / "0.png", size=(8, 8))
    write_image(tmp_path / "set" / "b" / "0.png", size=(6, 9))
    with pytest.raises(
        DataError,
        match=r"set: its images may differ in size\. Set image_size, or cache='memory' if all have one size",
    ):
        load(tmp_path / "set", cache, image_size=None)
    assert not sets_in(kept)


# --- on the disk ------------------------------------------------------------------------------------------


def test_a_second_load_decodes_nothing(root, kept, nothing_is_decoded):
    load(root)
    nothing_is_decoded()
    split = load(root).train
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, np.arange(12))


def test_splits_that_are_carved_out_are_mapped_too(tmp_path, kept, nothing_is_decoded):
    write_classes(tmp_path / "set", {"a": 10, "b": 10})
    fractions = {"validation": 0.2, "test": 0.2}
    splits = load(tmp_path / "set", **fractions)
    assert all(map(is_mapped, splits.by_name.values())) and len(splits.by_name) == 3
    for name, split in load(tmp_path / "set", "memory", **fractions).by_name.items():
        np.testing.assert_array_equal(split.images, splits.by_name[name].images)
        np.testing.assert_array_equal(split.labels, splits.by_name[name].labels)
    nothing_is_decoded()
    load(tmp_path / "set", **fractions)


@pytest.mark.parametrize("options", [{"image_size": 6}, {"stored_size": 9}, {"channels": 1}, {"resize": "pad"}])
def test_another_form_is_kept_beside_it(root, kept, options):
    load(root)
    load(root, **options)
    assert len(sets_in(kept)) == 2
    np.testing.assert_array_equal(load(root).train.images, IMAGES)


def test_a_file_that_changes_is_decoded_anew(root, kept):
    load(root)
    path = root / "003" / "image.png"
    before = path.stat()
    path.write_bytes(tf.io.encode_png(IMAGES[5]).numpy())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    split = load(root).train
    np.testing.assert_array_equal(split.images[3], IMAGES[5])
    np.testing.assert_array_equal(split.images[4:], IMAGES[4:])


def test_labels_are_those_of_now(tmp_path, kept):
    """Another class in between moves the numbers of the later ones, and no file."""
    write_classes(tmp_path / "set" / "train", {"a": 2, "c": 2})
    write_classes(tmp_path / "set" / "test", {"c": 2})
    assert load(tmp_path / "set").test.labels.tolist() == [1, 1]
    write_classes(tmp_path / "set" / "train", {"b": 2})
    splits = load(tmp_path / "set")
    assert splits.class_names == ("a", "b", "c")
    assert splits.test.labels.tolist() == [2, 2]


def test_nothing_is_left_of_a_decoding_that_failed(root, kept):
    (root / "007" / "image.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"got 1 file that cannot be decoded: .*007/image\.png\S* \(.*\)\. Replace"):
        load(root)
    assert sets_in(kept) == []


def test_broken_files_are_remembered(root, kept, nothing_is_decoded):
    write_image(root / "007" / "other.png", size=(8, 8))
    (root / "007" / "image.png").write_bytes(b"no image")
    allowed = {"on_error": "skip", "skip_limit": 0.1}
    load(root, **allowed)
    nothing_is_decoded()
    assert load(root, **allowed).train.unreadable.names() == [str(root / "007" / "image.png")]
    with pytest.raises(DataError, match=r"got 1 file that cannot be decoded: .*007/image\.png"):
        load(root)  # what was kept under skip is not good enough
    with pytest.raises(DataError, match=r"expected at most 5 % of 13 files to be unreadable .*, got 1: "):
        load(root, on_error="skip", skip_limit=0.05)


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(root, kept, nothing_is_decoded, monkeypatch):
    nothing_is_decoded()
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12 * BYTES - 1))
    message = (
        f"{kept}: the decoded images of folder:{root} need 2.3 kB of disk, 2.3 kB are free. Make room, "
        "set KPIPE_CACHE to another folder, or set data.cache=none"
    )
    with pytest.raises(EnvironmentFault, match=re.escape(message)):
        load(root)
    assert sets_in(kept) == []


def test_a_folder_that_cannot_be_made_is_named(root, kept):
    kept.write_text("")
    message = (
        f"{kept}: the folder of decoded images and features cannot be made (File exists): set KPIPE_CACHE to another "
        "folder, or set data.cache=none"
    )
    with pytest.raises(EnvironmentFault, match=f"^{re.escape(message)}$"):
        load(root)


def test_of_two_that_start_together_one_decodes(root, kept, monkeypatch):
    calls, decode = [], cache._decode
    monkeypatch.setattr(cache, "_decode", lambda *arguments: calls.append(1) or decode(*arguments))
    with ThreadPoolExecutor(2) as pool:
        for splits in pool.map(lambda _: load(root), range(2)):
            np.testing.assert_array_equal(splits.train.images, IMAGES)
    assert len(calls) == 1
    assert len(sets_in(kept)) == 1


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "notes.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:20])])
def test_a_damaged_set_is_decoded_again(root, kept, name, damage):
    load(root)
    [place] = sets_in(kept)
    damage(place / name)
    for _ in range(2):
        np.testing.assert_array_equal(load(root).train.images, IMAGES)
    assert len(sets_in(kept)) == 1


def test_what_a_killed_process_left_is_removed(root, kept):
    load(root)
    [place] = sets_in(kept)
    shutil.rmtree(place)
    debris = kept / f".{place.name}-abc"
    debris.mkdir()
    load(root)
    assert not debris.exists()


def test_the_place_is_in_the_home_folder_unless_it_is_set(root, tmp_path, monkeypatch):
    monkeypatch.delenv("KPIPE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(root)
    assert len(sets_in(tmp_path / "home" / ".cache" / "kpipe")) == 1
    monkeypatch.setenv("KPIPE_CACHE", "~/$PLACE")
    monkeypatch.setenv("PLACE", "scratch")
    load(root)
    assert len(sets_in(tmp_path / "home" / "scratch")) == 1


def test_features_that_the_disk_refuses_are_said(kept):
    def fill(make):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    message = f"{kept}: the features of the images cannot be written (Disk quota exceeded): set KPIPE_CACHE to another"
    with pytest.raises(EnvironmentFault, match=re.escape(message)):
        cache.keep_on_disk(kept, "features", fill)
    assert not list(kept.glob("*.npy"))
