"""Sets of images for tests: folders of files, sets of TensorFlow Datasets, and their batches."""

import functools
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kpipe.data.pipeline import make_pipeline

RANDOM = np.random.default_rng(0)


def write_image(path: Path, value=None, size=(8, 8), channels=3):
    """Write a PNG or JPEG file, by its ending: gray `value`, or random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = RANDOM.integers(0, 256, (*size, channels), np.uint8)
    if value is not None:
        image[:] = value
    encode = tf.io.encode_jpeg if path.suffix.lower() in (".jpg", ".jpeg") else tf.io.encode_png
    path.write_bytes(encode(image).numpy())


def write_classes(root: Path, sizes: dict[str, int], **options):
    for name, number in sizes.items():
        for i in range(number):
            write_image(root / name / f"{i}.png", **options)


def write_numbered(root: Path, images: np.ndarray):
    """Write one PNG for each class, so that the label of an image is its number. Return the paths."""
    paths = [root / f"{number:03}" / "image.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(parents=True)
        path.write_bytes(tf.io.encode_png(image).numpy())
    return paths


def png_header(height: int, width: int) -> bytes:
    """Return a PNG up to where the pixels would begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


@contextmanager
def tfds_in(folder: Path):
    """Give TensorFlow Datasets with `folder` as its data folder."""
    import tensorflow_datasets as tfds

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tfds, "builder", functools.partial(tfds.builder, data_dir=folder))
        yield tfds


def define_set(
    tfds, set_name, splits, *, size=(8, 8, 3), image=None, keys=("image", "label"), classes=("zebra", "ape")
):
    """Register a set with `splits` {name: labels}. The gray value of an image is 10 times its place, modulo 256."""

    class Tiny(tfds.core.GeneratorBasedBuilder):
        name = set_name
        pkg_dir_path = Path(__file__).parent
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": image or tfds.features.Image(shape=size),
                "label": tfds.features.ClassLabel(names=list(classes)),
            }
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features),
                supervised_keys=keys,
                description="",
                homepage="",
            )

        def _split_generators(self, dl_manager):
            if not splits:
                raise OSError("no route to host\nsecond line")
            return {name: self._generate_examples(labels) for name, labels in splits.items()}

        def _generate_examples(self, labels):
            for i, label in enumerate(labels):
                shape = [side or 8 + i for side in size]
                yield i, {"image": np.full(shape, 10 * i % 256, np.uint8), "label": label}

    return Tiny


def prepare_set(tfds, name, shards=1):
    """Write a defined set into this number of files. Return their paths."""
    builder = tfds.builder(name)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return sorted(Path(builder.data_path).glob("*.tfrecord*"))


def batches(split, first=0, last=15, **options):
    """Return training batches of four images."""
    return list(make_pipeline(split, 4, first_step=first, last_step=last, **options).as_numpy_iterator())


def labels_of(found):
    return np.concatenate([labels for _, labels in found]).tolist()


def assert_same_batches(found, expected):
    for batch, other in zip(found, expected, strict=True):
        for array, other_array in zip(batch, other, strict=True):
            assert array.dtype == other_array.dtype
            np.testing.assert_array_equal(array, other_array)
