"""A source of the sets of TensorFlow Datasets: TFRecord files, prepared beforehand or downloaded.

N images.
"""

import contextlib
import difflib
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import tensorflow as tf

from kpipe.caller import setting
from kpipe.data.images import Form
from kpipe.data.records import RecordSplit, Shard
from kpipe.data.sources.request import SPLIT_NAMES, SourceRequest, check_channels
from kpipe.data.splits import ClassContents, Source
from kpipe.data.unreadable import Unreadable
from kpipe.errors import DataError, first_line, some
from kpipe.names import quoted, shown

FRAME = 16  # bytes that a TFRecord file adds to each record


def read_tfds(request: SourceRequest) -> Source:
    """Find an image classification set of TensorFlow Datasets.

    Args:
        request: its argument is `<name>` or `<name>/<config>`.

    Returns:
        The splits train, validation and test that the set has with labels.

    Raises:
        DataError: the name is unknown, the set is no image classification, it is neither prepared nor can be
            downloaded, or records are lost.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    name, form, where = request.argument, request.form, shown(f"tfds:{request.argument}")
    builder = _tfds_builder(name, where)
    image_key, label_key = _tfds_keys(builder, where)
    present = builder.info.features[image_key].shape[-1]
    if present not in (1, 3):
        raise DataError(f"{where}: expected images of 1 or 3 channels, got {present}. Choose another set")
    check_channels(present, form.channels, where)
    if not request.download and not builder.is_prepared():
        raise DataError(f"{where}: is not prepared in {builder.data_path}; a run would download it")
    _tfds_prepare(builder, name, where)
    splits, contents, notes = {}, {}, []
    for name in builder.info.splits:
        if name not in SPLIT_NAMES:
            notes.append(f"ignored the split {quoted(name)}")
            continue
        split = _make_split(builder, name, form, where, request.skip_limit)
        if _has_labels(split):
            splits[SPLIT_NAMES[name]] = split
            contents[SPLIT_NAMES[name]] = {"": _describe(split)}
        else:
            notes.append(f"ignored the split {quoted(name)}, which has no labels")
    if "train" not in splits:
        raise DataError(f"{where}: expected a split called train, got {some(list(builder.info.splits))}")
    return Source(splits, tuple(builder.info.features[label_key].names), tuple(notes), contents)


def _make_split(builder, name: str, form: Form, where: str, skip_limit: float | None) -> RecordSplit:
    info, features = builder.info.splits[name], builder.info.features
    image_key, label_key = builder.info.supervised_keys
    decoders = {image_key: _skip_decoding()}

    def parse(record):
        example = features.deserialize_example(record, decoders=decoders)
        return example[image_key], tf.cast(example[label_key], tf.int32)

    shards = tuple(Shard(each.filename, each.skip, each.examples_in_shard) for each in info.file_instructions)
    height, width, channels = features[image_key].shape
    shape = (form.size or height, form.size or width, form.channels or channels)
    firsts = np.cumsum([shard.count for shard in shards]) - [shard.count for shard in shards]

    def name_of(number):
        shard = np.searchsorted(firsts, number, side="right") - 1
        return f"{shards[shard].path}, record {number - firsts[shard]}"

    unreadable = Unreadable(f"{where}, {name}", info.num_examples, name_of, skip_limit)
    is_in_form = (height, width) == shape[:2] and height is not None
    split = RecordSplit(shards, parse, replace(form, channels=shape[-1]), shape, unreadable, is_in_form)
    size = sum(os.path.getsize(shard.path) for shard in shards if os.path.exists(shard.path))
    if size == info.num_bytes + FRAME * info.num_examples:
        return split
    return _without_lost(split, builder.data_path, skip_limit)


def _describe(split: RecordSplit) -> ClassContents:
    """Return the number of records, and a digest of the names, sizes and parts of their files."""
    files = [
        (os.path.basename(shard.path), shard.skip, shard.count, os.path.getsize(shard.path))
        for shard in split.shards
        if os.path.exists(shard.path)
    ]
    return len(split), hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def _skip_decoding():
    import tensorflow_datasets as tfds

    return tfds.decode.SkipDecoding()


def _without_lost(split: RecordSplit, folder, skip_limit: float | None) -> RecordSplit:
    """Return the split as far as its files can be read. It is called when their size is wrong."""
    declared = len(split)
    shards = tuple(replace(shard, count=_count_records(shard)) for shard in split.shards)
    lost = declared - sum(shard.count for shard in shards)
    if lost > (skip_limit or 0) * declared:
        cut = [shard.path for shard, now in zip(split.shards, shards, strict=True) if now.count < shard.count]
        allowed = (
            ""
            if skip_limit is None
            else f" and at most {100 * skip_limit:.3g} % of them lost ({setting('skip_limit')})"
        )
        hint = f", or train on what is left with {setting('on_error', 'skip')}" if skip_limit is None else ""
        raise DataError(
            f"{split.unreadable.where}: expected {declared:,} records{allowed}, got {declared - lost:,}: {some(cut)} "
            f"cannot be read to the end. Remove {folder} and prepare the set again{hint}"
        )
    return replace(split, shards=tuple(shard for shard in shards if shard.count), lost=lost)


def _count_records(shard: Shard) -> int:
    """Count the records up to the end or the first damage."""
    records = tf.data.TFRecordDataset(shard.path).skip(shard.skip).take(shard.count)
    # After a damage TensorFlow reads nothing more of the file.
    return int(records.ignore_errors().reduce(np.int64(0), lambda count, record: count + 1))


def _has_labels(split: RecordSplit) -> bool:
    """Return whether a split has labels. Some sets keep them secret, and all of them are -1."""
    try:
        first = next(iter(tf.data.TFRecordDataset(split.shards[0].path).take(1)))
    except (StopIteration, IndexError, tf.errors.OpError):
        return True  # a damaged file is reported where it is read
    return int(split.parse(first)[1]) >= 0


def _tfds_builder(name: str, where: str):
    import tensorflow_datasets as tfds

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints which packages it misses
            builder = tfds.builder(name, try_gcs=False)
            _ = builder.info  # read from its files now, which may be damaged
            return builder
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        nearest = difflib.get_close_matches(name.partition("/")[0], known, n=1)
        hint = f", did you mean '{nearest[0]}'?" if nearest else ""
    except Exception as error:  # of any kind: assertions, missing packages, errors of the network
        hint = _describe_refusal(error)
    # Outside the handlers, whose errors print a whole screen of names.
    raise DataError(f"{where}: expected a set of https://www.tensorflow.org/datasets/catalog, got {quoted(name)}{hint}")


def _describe_refusal(error: Exception) -> str:
    """Return why TensorFlow Datasets does not take a name, without what it says around it."""
    said = str(error).strip()
    if said.startswith("Parsing builder name string"):
        return ", which is not written as <name>, <name>/<config> or <name>:1.0.0"
    said = re.sub(r'^Failed to construct dataset .*?": ', "", said).partition(". Here are")[0]
    return f": {first_line(said or error)}"


def _tfds_keys(builder, where: str) -> tuple[str, str]:
    """Return the names of the image and of the label."""
    import tensorflow_datasets as tfds

    keys, features = builder.info.supervised_keys, builder.info.features
    if keys and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (features[key] for key in keys)
        is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
        if is_image and isinstance(label, tfds.features.ClassLabel):
            return keys
    raise DataError(
        f"{where}: expected an image classification (an 8-bit image and a class label), "
        f"got supervised keys {keys}. Choose another set"
    )


def _tfds_prepare(builder, name: str, where: str) -> None:
    if builder.is_prepared():
        return
    try:
        with _no_retries():
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it downloads
                builder.download_and_prepare()
    except Exception as error:  # any download, disk or format error: the remedy is the same
        raise DataError(
            f"{where}: expected it prepared in {builder.data_path}, got nothing there, "
            f"and it could not be downloaded ({_reason(error)}). "
            "Set TFDS_DATA_DIR to the folder that has it, or prepare it on a machine with a network "
            f'(python -c "import tensorflow_datasets as tfds; tfds.load({name!r})") and copy it there, '
            "or use data.source=digits or data.source=synthetic"
        ) from error


def _reason(error: Exception) -> str:
    """Return why a set could not be prepared: what the system said, which the network's libraries wrap in errors."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    said = [each.strerror for each in reversed(chain) if isinstance(each, OSError) and each.strerror]
    return first_line(said[0] if said else error)


@contextmanager
def _no_retries() -> Iterator[None]:
    """Keep the downloader from trying for minutes where there is no network."""
    from tensorflow_datasets.core.download import downloader

    retries = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = 0
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries
