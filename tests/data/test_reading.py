"""Image files that cannot be read, or are of an unusual kind."""

import io
import re

import numpy as np
import pytest
import tensorflow as tf
from image_sets import assert_same_batches, batches, labels_of, write_numbered
from PIL import Image

from kpipe.data.augmentations.crops import random_crop, random_resized_crop
from kpipe.data.augmentations.geometric import flip_horizontal
from kpipe.data.loading import load_dataset
from kpipe.data.pipeline import iterate_images, make_evaluation_pipeline, make_pipeline
from kpipe.data.splitting import balanced_weights
from kpipe.errors import DataError

IMAGES = np.random.default_rng(2).integers(0, 256, (20, 8, 8, 3), np.uint8)
WHOLE = {"image_size": 8, "validation": 0, "test": 0}
SKIP = {"on_error": "skip", "skip_limit": 0.2}


def encode(kind, size=(8, 8), mode="RGB", **options):
    """Encode an image whose upper half is light and whose lower half is dark."""
    stream = io.BytesIO()
    pixels = np.full(size, 220, np.uint8)
    pixels[size[0] // 2 :] = 40
    Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE).save(stream, kind, **options)
    return stream.getvalue()


def half_a_jpeg():
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    whole = tf.io.encode_jpeg(noise).numpy()
    return whole[: len(whole) // 2]


BROKEN = {3: half_a_jpeg(), 7: b"", 12: b"this is no image"}


def matches(message, text):
    """Return whether a text is a message in which each name of a file may be quoted, and is followed by a reason."""
    pattern = re.escape(message).replace("image\\.png", r"image\.png\S? \([^)]*\)").replace("/tmp", r"\S?/tmp")
    return re.fullmatch(pattern.replace(r"folder:\S?", "folder:"), text)


def write_broken(root, broken=BROKEN):
    """Write IMAGES with their numbers as labels, and break some files. Return the paths of these."""
    paths = write_numbered(root, IMAGES)
    for number, contents in broken.items():
        paths[number].write_bytes(contents)
    return [str(paths[number]) for number in broken]


# --- unusual files ----------------------------------------------------------------------------------------


def sixteen_bits():
    pixels = np.full((8, 8), 220 * 257, np.uint16)
    pixels[4:] = 40 * 257
    return tf.io.encode_png(pixels[..., None]).numpy()


def film():
    light, dark = (Image.new("P", (8, 8)) for _ in range(2))
    first = Image.open(io.BytesIO(encode("GIF")))
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=[light, dark], duration=50)
    return stream.getvalue()


UNUSUAL = {
    "png_called.jpg": encode("PNG"),
    "jpeg_called.png": encode("JPEG", quality=95),
    "cmyk.jpg": encode("JPEG", mode="CMYK", quality=95),
    "gray.jpg": encode("JPEG", mode="L", quality=95),
    "progressive.jpg": encode("JPEG", progressive=True, quality=95),
    "sixteen_bits.png": sixteen_bits(),
    "palette.png": encode("PNG", mode="P"),
    "transparent.png": encode("PNG", mode="RGBA"),
    "one_bit.png": encode("PNG", mode="1"),
    "film.gif": film(),
    "bitmap.bmp": encode("BMP"),
    "large.jpg": encode("JPEG", size=(300, 300), quality=95),
}


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_unusual_files_are_read(tmp_path, cache):
    for name, contents in UNUSUAL.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(contents)
    splits = load_dataset(f"folder:{tmp_path}", cache=cache, **WHOLE)
    assert len(splits.train) == len(UNUSUAL)
    [(images, labels)] = make_evaluation_pipeline(splits.train, 99).as_numpy_iterator()
    for image, label in zip(images, labels, strict=True):
        name = splits.class_names[label]
        within = 45 if name == "one_bit.png" else 12
        assert np.abs(image[:3].astype(int) - 220).max() <= within and image[:3].min() > 128, name
        assert np.abs(image[5:].astype(int) - 40).max() <= within and image[5:].max() < 128, name


def test_a_crop_reads_unusual_files(tmp_path):
    for name, contents in UNUSUAL.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(contents)
    splits = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE)
    crop = random_resized_crop((1, 1), (1, 1))
    whole = make_pipeline(splits.train, len(UNUSUAL), augment=[crop], image_size=8, last_step=1)
    [(images, labels)] = whole.as_numpy_iterator()
    assert sorted(labels) == list(range(len(UNUSUAL)))
    assert (images[:, :3] > 128).all() and (images[:, 5:] < 128).all()


def test_an_image_of_one_pixel(tmp_path):
    paths = write_numbered(tmp_path, IMAGES[:4])
    paths[1].write_bytes(tf.io.encode_png(np.full((1, 1, 3), 99, np.uint8)).numpy())
    paths[2].write_bytes(tf.io.encode_jpeg(np.full((1, 1, 3), 99, np.uint8)).numpy())
    split = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE).train
    for augment in ([], [random_resized_crop()]):
        [(images, labels)] = make_pipeline(split, 4, augment=augment, image_size=8, last_step=1).as_numpy_iterator()
        assert (images[(labels == 1) | (labels == 2)] == 99).all()


# --- on_error: fail ---------------------------------------------------------------------------------------


def test_all_broken_files_are_named_where_images_are_kept(tmp_path):
    paths = write_broken(tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset(f"folder:{tmp_path}", **WHOLE)
    message = (
        f"folder:{tmp_path}: expected images, got 3 files that cannot be decoded: {', '.join(paths)}. "
        "Replace or remove them, or leave such files out with on_error='skip'"
    )
    assert matches(message, str(caught.value))


@pytest.mark.parametrize(("number", "augment"), [(0, []), (19, []), (7, [random_resized_crop()])])
def test_a_training_from_files_ends_at_a_broken_one(tmp_path, number, augment):
    [path] = write_broken(tmp_path, {number: b"no image"})
    split = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE).train
    with pytest.raises(tf.errors.OpError):
        list(make_pipeline(split, 20, augment=augment, image_size=8, last_step=1).as_numpy_iterator())
    message = (
        f"folder:{tmp_path}: expected images, got 1 file that cannot be decoded: {path}. "
        "Replace or remove it, or leave such files out with on_error='skip'"
    )
    assert matches(message, str(split.unreadable.error))


@pytest.mark.parametrize("number", [0, 7, 19])
def test_an_evaluation_from_files_ends_at_a_broken_one(tmp_path, number):
    [path] = write_broken(tmp_path, {number: b"no image"})
    split = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE).train
    with pytest.raises(tf.errors.OpError):
        list(make_evaluation_pipeline(split, 20).as_numpy_iterator())
    message = (
        f"folder:{tmp_path}: expected images, got 1 file that cannot be decoded: {path}. "
        "Replace or remove it, or leave such files out with on_error='skip'"
    )
    assert matches(message, str(split.unreadable.error))


def test_statistics_name_the_broken_files(tmp_path):
    [path] = write_broken(tmp_path, {19: b""})
    split = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE).train
    with pytest.raises(DataError, match=rf"got 1 file that cannot be decoded: \S?{re.escape(path)}\S? \(0 bytes\)\. "):
        list(iterate_images(split))


def test_a_file_that_vanishes_after_loading(tmp_path):
    paths = write_numbered(tmp_path, IMAGES)
    strict = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE).train
    lenient = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE, **SKIP).train
    paths[5].unlink()
    with pytest.raises(tf.errors.OpError):
        batches(strict)
    assert str(paths[5]) in str(strict.unreadable.error)
    assert 5 not in labels_of(batches(lenient))
    assert lenient.unreadable.names() == [str(paths[5])]


# --- on_error: skip ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def skipping(tmp_path_factory):
    """The folder of a set with broken files, and its split kept in memory."""
    root = tmp_path_factory.mktemp("skipping")
    write_broken(root)
    with pytest.MonkeyPatch.context() as patched:  # each class has one image, so that labels are numbers of images
        patched.setattr("kpipe.data.loading._refuse_lost_classes", lambda splits: None)
        return root, load_dataset(f"folder:{root}", **WHOLE, **SKIP).train


def files_of(root, **options):
    return load_dataset(f"folder:{root}", cache="none", **WHOLE, **(SKIP | options)).train


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    root = tmp_path_factory.mktemp("intact")
    write_numbered(root, IMAGES)
    return load_dataset(f"folder:{root}", **WHOLE).train


def test_the_next_readable_image_takes_the_place_of_a_broken_one(skipping, intact):
    root, memory = skipping
    order = labels_of(batches(intact, last=20))
    expected = [next(label for label in order[place:] if label not in BROKEN) for place in range(60)]
    found = batches(memory)
    assert labels_of(found) == expected
    for images, labels in found:
        np.testing.assert_array_equal(images, IMAGES[labels])
    # In each epoch of 20 images, the three replacements appear once more.
    assert [len(set(expected[i : i + 20])) for i in (0, 20, 40)] >= [16] * 3
    split = files_of(root)
    assert_same_batches(batches(split), found)
    assert split.unreadable.names() == memory.unreadable.names()
    assert len(split.unreadable) == 3  # distinct files, over three epochs


@pytest.mark.parametrize("augment", [[flip_horizontal()], [random_crop(), flip_horizontal()]])
def test_kept_and_read_images_are_replaced_alike_under_augmentations(skipping, augment):
    root, memory = skipping
    options = {"augment": augment, "image_size": 6}
    assert_same_batches(batches(files_of(root), **options), batches(memory, **options))


@pytest.mark.slow
def test_from_any_step_on_replacements_are_the_same(skipping):
    root, memory = skipping
    options = {"augment": [random_resized_crop(), flip_horizontal()], "image_size": 6}
    for split in (memory, files_of(root)):
        whole = batches(split, **options)
        for first in np.random.default_rng(0).integers(1, 13, 4).tolist():
            assert_same_batches(batches(split, first, first + 2, **options), whole[first : first + 2])


@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_replaces_by_the_next_of_its_own_and_names_those_that_it_met(skipping, intact, worker):
    split, options = files_of(skipping[0]), {"worker": worker, "workers": 2}
    own = labels_of(batches(intact, last=20, **options))
    expected = [next(label for label in own[place:] if label not in BROKEN) for place in range(30)]
    assert labels_of(batches(split, **options)) == expected
    assert set(own[:30]) & set(BROKEN) <= split.unreadable.numbers <= set(BROKEN)


def test_broken_files_beyond_the_limit_end_the_training(tmp_path):
    paths = write_broken(tmp_path)
    message = (
        f"folder:{tmp_path}: expected at most 10 % of 20 files to be unreadable (skip_limit), "
        f"got 3: {', '.join(paths)}. Replace or remove them, or raise skip_limit"
    )
    with pytest.raises(DataError) as caught:
        load_dataset(f"folder:{tmp_path}", **WHOLE, on_error="skip", skip_limit=0.1)
    assert matches(message, str(caught.value))
    split = files_of(tmp_path, skip_limit=0.1)
    with pytest.raises(tf.errors.OpError):
        batches(split)
    assert matches(message, str(split.unreadable.error))
    with pytest.raises(DataError) as caught:  # and it stays ended
        list(iterate_images(split))
    assert matches(message, str(caught.value))
    assert len(files_of(tmp_path, skip_limit=0.15).unreadable) == 0


@pytest.mark.parametrize("cache", ["memory", "none", "disk"])
def test_evaluation_leaves_broken_files_out(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("KPIPE_CACHE", str(tmp_path / "kept"))
    write_numbered(tmp_path / "set" / "train", IMAGES)
    paths = write_broken(tmp_path / "set" / "test")
    split = load_dataset(f"folder:{tmp_path}/set", cache=cache, image_size=8, validation=0, **SKIP).test
    assert split.unreadable.names() == paths
    dataset = make_evaluation_pipeline(split, 5)
    seen = list(dataset.as_numpy_iterator())
    assert int(dataset.cardinality()) == len(seen) == 4
    readable = [number for number in range(20) if number not in BROKEN]
    assert labels_of(seen) == readable
    np.testing.assert_array_equal(np.concatenate([images for images, _ in seen]), IMAGES[readable])
    np.testing.assert_array_equal(np.concatenate(list(iterate_images(split))), IMAGES[readable])
    weights = balanced_weights(split, 20)
    np.testing.assert_allclose(weights, [number not in BROKEN for number in range(20)])


@pytest.mark.parametrize("options", [{}, SKIP])
def test_a_folder_that_is_gone_ends_the_training(tmp_path, monkeypatch, options):
    monkeypatch.setattr("kpipe.data.files.FURTHEST", 100)
    root = tmp_path / "photos"
    write_numbered(root, IMAGES)
    split = load_dataset(f"folder:{root}", cache="none", **WHOLE, **options).train
    stream = iter(make_pipeline(split, 4, last_step=10_000))
    next(stream)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(tf.errors.OpError):
        for _ in stream:
            pass
    assert str(split.unreadable.error) == (
        f"folder:{root}: expected images, got not one that can be read of 100 in a row. Is the folder still there? "
        "The same command resumes when it is back"
    )


def test_a_file_that_may_not_be_opened_is_no_broken_image(tmp_path, monkeypatch):
    [path, *_] = write_numbered(tmp_path, IMAGES)
    path.unlink()
    path.symlink_to(path)  # as root one may open any file, but not this one
    split = load_dataset(f"folder:{tmp_path}", cache="none", **WHOLE, **SKIP).train
    with pytest.raises(DataError, match=r"image\.png' cannot be read \(.+\)$"):
        split.unreadable.add([0])


def test_the_limit_is_that_of_the_whole_set(tmp_path):
    """Even if all broken files are in one small split."""
    write_broken(tmp_path / "train", {})
    paths = write_numbered(tmp_path / "test", IMAGES)[:4]
    for path in paths[:2]:
        path.write_bytes(b"no image")
    splits = load_dataset(
        f"folder:{tmp_path}", cache="none", image_size=8, on_error="skip", skip_limit=0.1, validation=0.1
    )
    assert len(splits.test.unreadable) == 2
    pool = splits.train.select(np.arange(2))  # as a validation split that is carved out
    pool.unreadable.add([0])
    assert (len(pool.unreadable), pool.unreadable.error) == (1, None)
    with pytest.raises(DataError, match=r"expected at most 10 % of 20 files to be unreadable .*, got 3: "):
        splits.train.unreadable.add([3, 4])
