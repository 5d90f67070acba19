"""Streams of records whose files are damaged."""

import re

import numpy as np
import pytest
import tensorflow as tf
from image_sets import assert_same_batches, batches, define_set, prepare_set, tfds_in

from kpipe.data.loading import load_dataset
from kpipe.data.pipeline import make_evaluation_pipeline
from kpipe.data.reading import translate_reading_errors
from kpipe.data.splitting import balanced_weights
from kpipe.errors import DataError

WHOLE = {"image_size": 8, "validation": 0, "test": 0}


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    with tfds_in(tmp_path_factory.mktemp("tfds")) as tfds:
        yield tfds


class Damaged:
    """Twelve images in three files of four; the second file is damaged once all have been seen."""

    def __init__(self, tfds, name, damage, left):
        define_set(tfds, name, {"train": [0, 1, 1, 1] * 3})
        self.source, self.files = f"tfds:{name}", prepare_set(tfds, name, shards=3)
        assert [sum(1 for _ in tf.data.TFRecordDataset(str(file))) for file in self.files] == [4, 4, 4]
        whole = load_dataset(self.source, cache="memory", **WHOLE).train
        damage(self.files[1])
        self.readable = [*range(4 + left), *range(8, 12)]
        self.unreadable = [number for number in range(12) if number not in self.readable]
        self.names = [f"{self.files[number // 4]}, record {number % 4}" for number in self.unreadable]
        self.images, self.labels = whole.images[self.readable], whole.labels[self.readable]

    def load(self, cache, **options):
        return load_dataset(self.source, cache=cache, **(WHOLE | options))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def empty(file):
    file.write_bytes(b"")


def flip_a_byte(file):
    """Flip a byte of the second record."""
    contents = bytearray(file.read_bytes())
    record = len(next(iter(tf.data.TFRecordDataset(str(file)))).numpy()) + 16
    contents[record + 12 + 20] ^= 255
    file.write_bytes(contents)


def bad_length(file):
    """Make the second record say that it is longer than the file."""
    contents = bytearray(file.read_bytes())
    record = len(next(iter(tf.data.TFRecordDataset(str(file)))).numpy()) + 16
    contents[record : record + 8] = (1 << 40).to_bytes(8, "little")
    file.write_bytes(contents)


# How many records of the file are left, and whether its size betrays that some are lost.
DAMAGES = [(truncate, 3, True), (empty, 0, True), (flip_a_byte, 1, False), (bad_length, 1, False)]


@pytest.fixture(scope="module", params=DAMAGES, ids=lambda row: row[0].__name__)
def damaged(tfds, request):
    damage, left, is_seen = request.param
    return Damaged(tfds, f"tiny_{damage.__name__}", damage, left), is_seen


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_damaged_stream_is_read_as_far_as_it_goes(damaged, cache):
    stream, is_seen = damaged
    splits = stream.load(cache, on_error="skip", skip_limit=0.5)
    split, lost = splits.train, 12 - len(stream.readable)
    if is_seen:
        records = "1 record of train is" if lost == 1 else f"{lost} records of train are"
        assert splits.notes == (f"{records} lost: its files end too early or are damaged",)
        assert (len(split), split.unreadable.names()) == (12 - lost, [])
    else:
        assert splits.notes == ()
        assert (len(split), split.unreadable.names()) == (12, stream.names)
    dataset = make_evaluation_pipeline(split, 4)
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    assert int(dataset.cardinality()) == len(images) == -(-len(stream.readable) // 4)
    np.testing.assert_array_equal(np.concatenate(images), stream.images)
    np.testing.assert_array_equal(np.concatenate(labels), stream.labels)
    counts = np.bincount(stream.labels)
    np.testing.assert_allclose(balanced_weights(split, 2), len(stream.readable) / (2 * counts), rtol=1e-6)


@pytest.mark.slow
def test_a_training_from_a_damaged_stream(damaged):
    stream, _ = damaged
    split = stream.load("none", on_error="skip", skip_limit=0.5).train
    values = set(stream.images[:, 0, 0, 0].tolist())
    whole = batches(split, last=6)  # three epochs of two steps
    for i in (0, 2, 4):
        shown = np.concatenate([images[:, 0, 0, 0] for images, _ in whole[i : i + 2]]).tolist()
        assert len(set(shown)) == 8 and set(shown) <= values
    for first in (1, 3):
        assert_same_batches(batches(split, first, 6), whole[first:])


def test_a_damaged_stream_is_refused(damaged):
    stream, is_seen = damaged
    lost = 12 - len(stream.readable)
    names = ", ".join(map(repr, stream.names))
    if is_seen:
        message = (
            f"{stream.source}, train: expected 12 records, got {12 - lost}: '{stream.files[1]}' cannot be read to the "
            f"end. Remove {stream.files[1].parent} and prepare the set again, or train on what is left with "
            "on_error='skip'"
        )
    else:
        message = f"{stream.source}, train: expected images, got {lost} files that cannot be decoded: {names}. "
    with pytest.raises(DataError, match=re.escape(message)):
        stream.load("memory")
    if is_seen:
        with pytest.raises(DataError, match=re.escape(message)):
            stream.load("none")
        return
    split = stream.load("none").train
    said = f"{stream.source}, train: expected 12 records that can be read, got an error (corrupted record at "
    with pytest.raises(DataError, match=re.escape(said)), translate_reading_errors([split]):
        batches(split)
    with pytest.raises(tf.errors.OpError):
        list(make_evaluation_pipeline(split, 4))
    assert f"got {lost} files that cannot be decoded: {names}. " in str(split.unreadable.error)


def test_a_stream_damaged_beyond_the_limit(damaged):
    stream, is_seen = damaged
    lost = 12 - len(stream.readable)
    if is_seen:
        message = f"expected 12 records and at most 5 % of them lost (skip_limit), got {12 - lost}: "
    else:
        message = f"expected at most 5 % of 12 files to be unreadable (skip_limit), got {lost}: '{stream.names[0]}', "
    for cache in ("memory", "none"):
        with pytest.raises(DataError, match=re.escape(message)):
            stream.load(cache, on_error="skip", skip_limit=0.05)
