"""The ways to feed a network that `input_pipeline.py` compares; `make_run` is the door.

Each variant is what a user of its library would write, at its best setting. kpipe and what runs inside TensorFlow are
read by a loop inside a `tf.function`, as in training; torch and numba by a loop in Python, as is usual there.

B batch, H height, W width, C channels, N images.
"""

import functools
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kpipe import data, models
from kpipe.models.preprocessing import Normalization, make_preprocessing
from kpipe.training.metrics import Accuracy
from kpipe.training.trainer import Trainer

Run = Callable[[int], object]
"""A function that handles so many batches and returns when they are done."""

SMALL, PADDING = 32, 4  # pixels a side of the small images, and around them before they are cropped
LARGE, STORED_SIZE = 224, 256  # pixels a side of the photographs in training, and as they are kept in memory
MEAN, STD = np.array([125.3, 123.0, 113.9], np.float32), np.array([63.0, 62.1, 66.7], np.float32)  # of CIFAR-10
PARALLEL = {"num_parallel_calls": tf.data.AUTOTUNE}


def consume(batches: tf.data.Dataset, finish: Callable = lambda images: images) -> Run:
    """Read batches inside a `tf.function`; `finish` is still to be done with the images [B, H, W, C] of a batch."""
    iterator = iter(batches)

    @tf.function
    def run(count):
        last = finish(next(iterator)[0])
        for _ in tf.range(count - 1):
            last = finish(next(iterator)[0])
        return last  # otherwise TensorFlow would leave out what nobody uses

    return lambda count: run(tf.constant(count))


def iterate(batches: Iterator) -> Run:
    """Read batches in Python."""

    def run(count):
        for _ in range(count):
            next(batches)

    return run


# --- small images -----------------------------------------------------------------------------------------------------


@functools.cache
def small_images(count: int = 50_000) -> tuple[np.ndarray, np.ndarray]:
    """Return random images uint8 [N, 32, 32, 3] and random labels int32 [N]."""
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, (count, SMALL, SMALL, 3), np.uint8), draws.integers(0, 10, count, np.int32)


def standardize() -> keras.layers.Layer:
    return make_preprocessing(Normalization("affine", MEAN, STD))


def kpipe_small(batch_size: int) -> tf.data.Dataset:
    """Return batches of uint8: kpipe's network standardizes."""
    augment = [data.pad_crop(PADDING), data.flip_horizontal()]
    return data.make_pipeline(data.ArraySplit(*small_images()), batch_size, augment=augment)


def mapped_small(batch_size: int, **options) -> tf.data.Dataset:
    """Augment and standardize to float32 image by image."""

    def augment(image, label):
        image = tf.pad(image, [[PADDING, PADDING], [PADDING, PADDING], [0, 0]])
        image = tf.image.random_crop(image, [SMALL, SMALL, 3])
        image = tf.image.random_flip_left_right(image)
        return (tf.cast(image, tf.float32) - MEAN) / STD, label

    images, labels = small_images()
    singles = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images)).repeat()
    return singles.map(augment, **options).batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def naive_small(batch_size: int) -> tf.data.Dataset:
    return mapped_small(batch_size)


def autotune_small(batch_size: int) -> tf.data.Dataset:
    return mapped_small(batch_size, **PARALLEL)


def layers_small(batch_size: int) -> tf.data.Dataset:
    """Augment and standardize whole batches by Keras layers; RandomCrop then moves all images of a batch alike."""
    augment = keras.Sequential(
        [
            keras.layers.ZeroPadding2D(PADDING),
            keras.layers.RandomCrop(SMALL, SMALL),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Normalization(mean=MEAN.tolist(), variance=np.square(STD).tolist()),
        ]
    )
    images, labels = small_images()
    gathered = gather(images, labels, batch_size)
    batches = gathered.map(lambda images, labels: (augment(images, training=True), labels), **PARALLEL)
    return batches.prefetch(tf.data.AUTOTUNE)


def gather(images: np.ndarray, labels: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Shuffle indices and gather whole batches, which is the cheapest input that TensorFlow has."""
    images, labels = tf.constant(images), tf.constant(labels)
    indices = tf.data.Dataset.range(len(labels)).shuffle(len(labels)).repeat().batch(batch_size, drop_remainder=True)
    return indices.map(lambda of_batch: (tf.gather(images, of_batch), tf.gather(labels, of_batch)), **PARALLEL)


def limit_small(batch_size: int) -> tf.data.Dataset:
    return gather(*small_images(), batch_size).prefetch(tf.data.AUTOTUNE)


def load_with_torch(samples, batch_size: int, workers: int) -> Run:
    """Read `samples`, a torch Dataset, by a DataLoader."""
    from torch.utils.data import DataLoader

    more = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    loader = DataLoader(samples, batch_size, shuffle=True, drop_last=True, num_workers=workers, **more)
    return iterate(itertools.chain.from_iterable(itertools.repeat(loader)))


class TorchSmall:
    """A torch Dataset with the operations of torchvision's RandomCrop, RandomHorizontalFlip and Normalize."""

    def __init__(self):
        import torch

        images, self.labels = small_images()
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self.mean, self.std = (torch.from_numpy(values).reshape(3, 1, 1) for values in (MEAN, STD))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        import torch  # costs a thousandth of the rest; a module kept in `self` could not be sent to a worker

        image = torch.nn.functional.pad(self.images[index], [PADDING] * 4)
        top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
        image = image[:, top : top + SMALL, left : left + SMALL]
        if torch.rand(1) < 0.5:
            image = image.flip(-1)
        return image.float().sub_(self.mean).div_(self.std), self.labels[index]


def numba_small(batch_size: int) -> Run:
    """Do as FFCV does: one compiled loop over the batch reads each pixel once and writes it once, standardized."""
    from numba import njit, prange

    factors = np.tile(1 / STD, SMALL)  # for a whole row of pixels, so that the inner loop is vectorized
    offsets = np.tile(-MEAN / STD, SMALL)

    @njit(parallel=True, fastmath=True)
    def fill(images, indices, factors, offsets, outputs):
        for row in prange(len(indices)):
            top, left = np.random.randint(-PADDING, PADDING + 1), np.random.randint(-PADDING, PADDING + 1)
            flip = np.random.random() < 0.5
            first, last = max(0, -left), min(SMALL, SMALL - left)  # the columns that lie inside the image
            for y in range(SMALL):
                output = outputs[row, y]
                output[:] = offsets
                if not 0 <= y + top < SMALL:
                    continue
                pixels = images[indices[row], y + top]
                if flip:
                    for x in range(first, last):
                        for c in range(3):
                            output[3 * (SMALL - 1 - x) + c] += pixels[3 * (x + left) + c] * factors[c]
                else:
                    source = pixels[3 * (first + left) : 3 * (last + left)]
                    output[3 * first : 3 * last] += source * factors[: 3 * (last - first)]

    images, labels = small_images()
    images = images.reshape(-1, SMALL, 3 * SMALL)

    def batches():
        ring = itertools.cycle([np.empty((batch_size, SMALL, 3 * SMALL), np.float32) for _ in range(3)])
        while True:
            order = np.random.permutation(len(images))
            for start in range(0, len(images) - batch_size + 1, batch_size):
                indices = order[start : start + batch_size]
                outputs = next(ring)
                fill(images, indices, factors, offsets, outputs)
                yield outputs, labels[indices]

    return iterate(batches())


# --- training ---------------------------------------------------------------------------------------------------------


def build_network(name: str, preprocessing: Callable) -> keras.Model:
    """Build and compile LeNet-5 or VGG-16 for the small images."""
    options = {"lenet5": {}, "vgg16": {"batch_norm": True, "head": "gap"}}[name]
    model = getattr(models, name)((SMALL, SMALL, 3), 10, preprocessing=preprocessing, **options)
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[Accuracy()],
        jit_compile=False,
    )
    return model


def train(name: str, batches: tf.data.Dataset, preprocessing: Callable = lambda images: images) -> Run:
    """Train by kpipe's own loop; only if `batches` holds uint8 images must `preprocessing` standardize them."""
    trainer, iterator = Trainer(build_network(name, preprocessing)), iter(batches)
    return lambda count: trainer.run_steps(iterator, count)


def one_batch(batch_size: int) -> tf.data.Dataset:
    """Repeat one batch that is standardized already."""
    images, labels = (values[:batch_size] for values in small_images())
    return tf.data.Dataset.from_tensors(((images - MEAN) / STD, labels)).repeat()


# --- photographs ------------------------------------------------------------------------------------------------------


def kpipe_first_epoch(folder: Path, batch_size: int) -> tf.data.Dataset:
    splits = load(folder, image_size=LARGE, cache="none", whole_images=True)
    augment = [data.random_resized_crop(), data.flip_horizontal()]
    return data.make_pipeline(splits.train, batch_size, augment=augment, image_size=LARGE)


def kpipe_later_epochs(folder: Path, batch_size: int) -> tf.data.Dataset:
    splits = load(folder, image_size=LARGE, stored_size=STORED_SIZE, cache="memory")
    augment = [data.random_crop(), data.flip_horizontal()]
    return data.make_pipeline(splits.train, batch_size, augment=augment, image_size=LARGE)


def load(folder: Path, **options) -> data.Splits:
    return data.load_dataset(f"folder:{folder}", validation=0, test=0, **options)


def list_photographs(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))


def naive_photographs(folder: Path, batch_size: int) -> tf.data.Dataset:
    """Decode whole files and resize a crop of each, as TensorFlow's guides do."""

    def read(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            area_range=[0.08, 1.0],
            aspect_ratio_range=[3 / 4, 4 / 3],
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.resize(tf.slice(image, begin, size), [LARGE, LARGE])
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.round(tf.ensure_shape(image, [LARGE, LARGE, 3])), tf.uint8), 0

    paths = list_photographs(folder)
    singles = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat().map(read, **PARALLEL)
    return singles.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


class TorchPhotographs:
    """A torch Dataset with the operations of torchvision's RandomResizedCrop, RandomHorizontalFlip and PILToTensor."""

    def __init__(self, folder: Path):
        self.paths = list_photographs(folder)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        import torch
        from PIL import Image

        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        left, top, width, height = draw_crop(*image.size)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((LARGE, LARGE), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), 0


def draw_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw left, top, width and height of a crop as torchvision does; after ten tries it is the whole image."""
    for _ in range(10):
        pixels = width * height * random.uniform(0.08, 1)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    return 0, 0, width, height


def make_photographs(folder: Path, count: int = 64) -> None:
    """Write files that take as long to decode as photographs of ImageNet: 500x375 pixels, about 90,000 bytes."""
    from PIL import Image

    draws = np.random.default_rng(0)
    for number in range(count):
        # Coarse noise stands for objects, fine noise for their surfaces.
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.BICUBIC)
        pixels = np.asarray(coarse, np.float32) + draws.normal(0, 14, (375, 500, 1))
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)


# --- folders of many files --------------------------------------------------------------------------------------------


def make_links(folder: Path, count: int, classes: int = 1000) -> None:
    """Write links in the place of JPEG files, as ImageNet has them: a thousand folders, long names."""
    for label in range(classes):
        (folder / f"n{label:08}").mkdir(parents=True)
        for number in range(count // classes):
            (folder / f"n{label:08}" / f"n{label:08}_{number}.JPEG").symlink_to("/dev/null")


def list_as_image_folder(folder: Path) -> list[tuple[str, int]]:
    """List paths and labels as torchvision's ImageFolder does: every path a Python string, in a list."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    samples = []
    for label, name in enumerate(names):
        for place, _, files in sorted(os.walk(folder / name, followlinks=True)):
            for file in sorted(files):
                path = os.path.join(place, file)
                if path.lower().endswith((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")):
                    samples.append((path, label))
    return samples


def list_files(variant: str, folder: Path) -> Run:
    def run(num_batches: int) -> None:
        for _ in range(num_batches):
            if variant == "kpipe":
                data.find_source(f"folder:{folder}", data.Form(LARGE))
            else:
                list_as_image_folder(folder)

    return run


# --- augmentations of larger images -----------------------------------------------------------------------------------


def large_images(count: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth images uint8 [N, 224, 224, 3] and labels int32 [N]."""
    draws = np.random.default_rng(0)
    coarse = draws.uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)
    images = tf.image.resize(coarse, [LARGE, LARGE], "bicubic").numpy()
    return np.clip(images, 0, 255).astype(np.uint8), np.zeros(count, np.int32)


def kpipe_large(augmentation: data.Augmentation, batch_size: int) -> tf.data.Dataset:
    return data.make_pipeline(data.ArraySplit(*large_images()), batch_size, augment=[augmentation])


def layer_large(layer: keras.layers.Layer, batch_size: int) -> tf.data.Dataset:
    """Apply a Keras layer to whole batches; it returns float32."""
    gathered = gather(*large_images(), batch_size)
    batches = gathered.map(lambda images, labels: (layer(images, training=True), labels), **PARALLEL)
    return batches.prefetch(tf.data.AUTOTUNE)


LAYERS = {
    "color_jitter224": lambda: (
        data.color_jitter(0.4, 0.4, 0.4, 0.1),
        keras.layers.RandomColorJitter((0, 255), 0.4, 0.4, 0.4, 0.1),
    ),
    "rotate224": lambda: (data.rotate(15.0), keras.layers.RandomRotation(15 / 360, fill_mode="constant")),
    "rand_augment224": lambda: (data.rand_augment(2), keras.layers.RandAugment((0, 255), num_ops=2)),
}
"""kpipe's augmentation and the Keras layer for each work."""


# --- the table --------------------------------------------------------------------------------------------------------

VARIANTS = {
    "kpipe": kpipe_small,
    "naive": naive_small,
    "autotune": autotune_small,
    "keras_layers": layers_small,
}
"""Batches of small images, as each variant makes them."""


def make_run(work: str, variant: str, batch_size: int, folder: Path) -> Run:
    """Return a function that handles batches of one variant of one work.

    Args:
        work: a name of `input_pipeline.WORKS`.
        variant: one of its variants.
        batch_size: images in a batch.
        folder: JPEG photographs, or links, in a folder for each class.
    """
    if work == "augment32":
        return _augment_small(variant, batch_size)
    if work.startswith("train_"):
        return _train(work.split("_")[1], variant, batch_size)
    if work == "list_130k":
        return list_files(variant, folder)
    if work in LAYERS:
        augmentation, layer = LAYERS[work]()
        return consume(kpipe_large(augmentation, batch_size) if variant == "kpipe" else layer_large(layer, batch_size))
    return _read_photographs(work, variant, batch_size, folder)


def _augment_small(variant: str, batch_size: int) -> Run:
    if variant.startswith("torch"):
        return load_with_torch(TorchSmall(), batch_size, _torch_workers(variant))
    if variant == "numba":
        return numba_small(batch_size)
    if variant == "limit":
        return consume(limit_small(batch_size))
    if variant == "kpipe":
        return consume(kpipe_small(batch_size), standardize())
    return consume(VARIANTS[variant](batch_size))


def _train(network: str, variant: str, batch_size: int) -> Run:
    if variant == "limit":
        return train(network, one_batch(batch_size))
    if variant == "kpipe":
        return train(network, kpipe_small(batch_size), standardize())
    return train(network, VARIANTS[variant](batch_size))


def _read_photographs(work: str, variant: str, batch_size: int, folder: Path) -> Run:
    if variant.startswith("torch"):
        return load_with_torch(TorchPhotographs(folder), batch_size, _torch_workers(variant))
    if variant == "naive":
        return consume(naive_photographs(folder, batch_size))
    kpipe = {"jpeg224_first_epoch": kpipe_first_epoch, "jpeg224_later_epochs": kpipe_later_epochs}[work]
    return consume(kpipe(folder, batch_size))


def _torch_workers(variant: str) -> int:
    return min(2, os.cpu_count() or 1) if variant == "torch_workers" else 0
