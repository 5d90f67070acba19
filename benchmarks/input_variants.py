"""The ways to feed a network that `input_pipeline.py` compares: each makes a function that handles so many batches.

A variant is what a user of its library would write at its best setting. kpipe and those that run inside TensorFlow are
consumed by a loop inside a `tf.function`, as in training; torch and numba by a loop in Python, as is usual there.

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
"""Handles so many batches; comes back when they are done."""

ENDLESS = 10**7  # steps: more than any measurement takes
SIZE, PADDING = 32, 4  # of the small images
SEEN, STORED = 224, 256  # pixels a side of the photographs
MEAN, STD = np.array([125.3, 123.0, 113.9], np.float32), np.array([63.0, 62.1, 66.7], np.float32)  # of CIFAR-10
PARALLEL = {"num_parallel_calls": tf.data.AUTOTUNE}


def consume(batches: tf.data.Dataset, finish: Callable = lambda images: images) -> Run:
    """`finish` is what is still to be done with the images [B, H, W, C] once they have left the pipeline."""
    iterator = iter(batches)

    @tf.function
    def run(count):
        last = finish(next(iterator)[0])
        for _ in tf.range(count - 1):
            last = finish(next(iterator)[0])
        return last  # else TensorFlow would leave out what nobody uses

    return lambda count: run(tf.constant(count))


def iterate(batches: Iterator) -> Run:
    def run(count):
        for _ in range(count):
            next(batches)

    return run


# --- small images -----------------------------------------------------------------------------------------------------


@functools.cache
def small_images(count: int = 50_000) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int32 [N], both random."""
    draws = np.random.default_rng(0)
    return draws.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8), draws.integers(0, 10, count, np.int32)


def standardize() -> keras.layers.Layer:
    return make_preprocessing(Normalization("affine", MEAN, STD))


def kpipe_small(batch: int) -> tf.data.Dataset:
    """uint8: the network standardises."""
    augment = [data.pad_crop(PADDING), data.flip_horizontal()]
    return data.make_pipeline(data.ArraySplit(*small_images()), batch, augment=augment, last_step=ENDLESS)


def mapped_small(batch: int, **options) -> tf.data.Dataset:
    """float32, image by image."""

    def augment(image, label):
        image = tf.pad(image, [[PADDING, PADDING], [PADDING, PADDING], [0, 0]])
        image = tf.image.random_crop(image, [SIZE, SIZE, 3])
        image = tf.image.random_flip_left_right(image)
        return (tf.cast(image, tf.float32) - MEAN) / STD, label

    images, labels = small_images()
    singles = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images)).repeat()
    return singles.map(augment, **options).batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def naive_small(batch: int) -> tf.data.Dataset:
    return mapped_small(batch)


def autotune_small(batch: int) -> tf.data.Dataset:
    return mapped_small(batch, **PARALLEL)


def layers_small(batch: int) -> tf.data.Dataset:
    """float32, by layers of Keras that get whole batches: RandomCrop then moves all images of a batch alike."""
    augment = keras.Sequential(
        [
            keras.layers.ZeroPadding2D(PADDING),
            keras.layers.RandomCrop(SIZE, SIZE),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Normalization(mean=MEAN.tolist(), variance=np.square(STD).tolist()),
        ]
    )
    images, labels = small_images()
    gathered = gather(images, labels, batch)
    batches = gathered.map(lambda images, labels: (augment(images, training=True), labels), **PARALLEL)
    return batches.prefetch(tf.data.AUTOTUNE)


def gather(images: np.ndarray, labels: np.ndarray, batch: int) -> tf.data.Dataset:
    """Shuffled batches as they are, the cheapest that TensorFlow has: numbers are shuffled, images taken by batch."""
    images, labels = tf.constant(images), tf.constant(labels)
    numbers = tf.data.Dataset.range(len(labels)).shuffle(len(labels)).repeat().batch(batch, drop_remainder=True)
    return numbers.map(lambda wanted: (tf.gather(images, wanted), tf.gather(labels, wanted)), **PARALLEL)


def limit_small(batch: int) -> tf.data.Dataset:
    return gather(*small_images(), batch).prefetch(tf.data.AUTOTUNE)


def load_with_torch(samples, batch: int, workers: int) -> Run:
    """`samples`: an object with a length that gives (image, label) for a number."""
    from torch.utils.data import DataLoader

    more = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    loader = DataLoader(samples, batch, shuffle=True, drop_last=True, num_workers=workers, **more)
    return iterate(itertools.chain.from_iterable(itertools.repeat(loader)))


class TorchSmall:
    """The operations of torchvision's ToTensor, RandomCrop, RandomHorizontalFlip and Normalize, on one image."""

    def __init__(self):
        import torch

        images, self.labels = small_images()
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        self.mean, self.std = (torch.from_numpy(values).reshape(3, 1, 1) for values in (MEAN, STD))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        import torch  # takes a thousandth of the rest, and a module kept in `self` could not be sent to a worker

        image = torch.nn.functional.pad(self.images[number], [PADDING] * 4)
        top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
        image = image[:, top : top + SIZE, left : left + SIZE]
        if torch.rand(1) < 0.5:
            image = image.flip(-1)
        return image.float().sub_(self.mean).div_(self.std), self.labels[number]


def numba_small(batch: int) -> Run:
    """FFCV's way: one compiled loop over the batch that reads each pixel once and writes it once, normalised."""
    from numba import njit, prange

    factors = np.tile(1 / STD, SIZE)  # for a whole row, so that the inner loop is one of SIMD
    offsets = np.tile(-MEAN / STD, SIZE)

    @njit(parallel=True, fastmath=True)
    def fill(images, chosen, factors, offsets, outputs):
        for row in prange(len(chosen)):
            top, left = np.random.randint(-4, 5), np.random.randint(-4, 5)
            flip = np.random.random() < 0.5
            first, last = max(0, -left), min(32, 32 - left)  # the columns that lie inside the image
            for y in range(32):
                output = outputs[row, y]
                output[:] = offsets
                if not 0 <= y + top < 32:
                    continue
                pixels = images[chosen[row], y + top]
                if flip:
                    for x in range(first, last):
                        for c in range(3):
                            output[3 * (31 - x) + c] += pixels[3 * (x + left) + c] * factors[c]
                else:
                    source = pixels[3 * (first + left) : 3 * (last + left)]
                    output[3 * first : 3 * last] += source * factors[: 3 * (last - first)]

    images, labels = small_images()
    images = images.reshape(-1, SIZE, 3 * SIZE)

    def batches():
        ring = itertools.cycle([np.empty((batch, SIZE, 3 * SIZE), np.float32) for _ in range(3)])
        while True:
            order = np.random.permutation(len(images))
            for start in range(0, len(images) - batch + 1, batch):
                chosen = order[start : start + batch]
                outputs = next(ring)
                fill(images, chosen, factors, offsets, outputs)
                yield outputs, labels[chosen]

    return iterate(batches())


# --- training ---------------------------------------------------------------------------------------------------------


def build_network(name: str, preprocessing: Callable) -> keras.Model:
    options = {"lenet5": {}, "vgg16": {"batch_norm": True, "head": "gap"}}[name]
    model = getattr(models, name)((SIZE, SIZE, 3), 10, preprocessing=preprocessing, **options)
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[Accuracy()],
        jit_compile=False,
    )
    return model


def train(name: str, batches: tf.data.Dataset, preprocessing: Callable = lambda images: images) -> Run:
    """Steps of kpipe's own loop. Only where the images come as bytes does the network standardise them."""
    trainer, iterator = Trainer(build_network(name, preprocessing)), iter(batches)
    return lambda count: trainer.run_steps(iterator, count)


def one_batch(batch: int) -> tf.data.Dataset:
    """The same batch over and over, standardised already."""
    images, labels = (values[:batch] for values in small_images())
    return tf.data.Dataset.from_tensors(((images - MEAN) / STD, labels)).repeat()


# --- photographs ------------------------------------------------------------------------------------------------------


def kpipe_first_epoch(folder: Path, batch: int) -> tf.data.Dataset:
    splits = load(folder, image_size=SEEN, cache="none", whole_images=True)
    augment = [data.random_resized_crop(), data.flip_horizontal()]
    return data.make_pipeline(splits.train, batch, augment=augment, image_size=SEEN, last_step=ENDLESS)


def kpipe_later_epochs(folder: Path, batch: int) -> tf.data.Dataset:
    splits = load(folder, image_size=SEEN, stored_size=STORED, cache="memory")
    augment = [data.random_crop(), data.flip_horizontal()]
    return data.make_pipeline(splits.train, batch, augment=augment, image_size=SEEN, last_step=ENDLESS)


def load(folder: Path, **options) -> data.Splits:
    return data.load_dataset(f"folder:{folder}", validation=0, test=0, **options)


def list_photographs(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg"))


def naive_photographs(folder: Path, batch: int) -> tf.data.Dataset:
    """Decodes whole files and resizes a part of each, as TensorFlow's guides do."""

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
        image = tf.image.resize(tf.slice(image, begin, size), [SEEN, SEEN])
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.round(tf.ensure_shape(image, [SEEN, SEEN, 3])), tf.uint8), 0

    paths = list_photographs(folder)
    singles = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat().map(read, **PARALLEL)
    return singles.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


class TorchPhotographs:
    """The operations of torchvision's RandomResizedCrop, RandomHorizontalFlip and PILToTensor, on one file."""

    def __init__(self, folder: Path):
        self.paths = list_photographs(folder)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        import torch
        from PIL import Image

        with Image.open(self.paths[number]) as file:
            image = file.convert("RGB")
        left, top, width, height = draw_box(*image.size)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((SEEN, SEEN), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), 0


def draw_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a part of an image, drawn as torchvision draws them; after ten tries the whole."""
    for _ in range(10):
        pixels = width * height * random.uniform(0.08, 1)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    return 0, 0, width, height


def make_photographs(folder: Path, count: int = 64) -> None:
    """FileSplit that cost a decoder about as much as photographs of ImageNet: 500x375 pixels, about 90,000 bytes."""
    from PIL import Image

    draws = np.random.default_rng(0)
    for number in range(count):
        # Coarse noise for the things that are to be seen, fine noise for their surfaces.
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.BICUBIC)
        pixels = np.asarray(coarse, np.float32) + draws.normal(0, 14, (375, 500, 1))
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)


# --- augmentations of larger images -----------------------------------------------------------------------------------


def large_images(count: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images uint8 [N, 224, 224, 3] and labels int32 [N]."""
    draws = np.random.default_rng(0)
    coarse = draws.uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)
    images = tf.image.resize(coarse, [SEEN, SEEN], "bicubic").numpy()
    return np.clip(images, 0, 255).astype(np.uint8), np.zeros(count, np.int32)


def kpipe_large(augmentation: data.Augmentation, batch: int) -> tf.data.Dataset:
    return data.make_pipeline(data.ArraySplit(*large_images()), batch, augment=[augmentation], last_step=ENDLESS)


def layer_large(layer: keras.layers.Layer, batch: int) -> tf.data.Dataset:
    """What the layer gives: float32."""
    gathered = gather(*large_images(), batch)
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
"""Work: our augmentation and Keras's layer for it."""


# --- the table --------------------------------------------------------------------------------------------------------

SMALL = {
    "kpipe": kpipe_small,
    "naive": naive_small,
    "autotune": autotune_small,
    "keras_layers": layers_small,
}


def make_run(work: str, variant: str, batch: int, folder: Path) -> Run:
    """The function that handles batches of `variant`, ready to be called; `folder` holds photographs."""
    if work == "augment32":
        return _make_small(variant, batch)
    if work.startswith("train_"):
        name = work.split("_")[1]
        if variant == "limit":
            return train(name, one_batch(batch))
        return train(name, SMALL[variant](batch), standardize() if variant == "kpipe" else lambda images: images)
    if work in LAYERS:
        augmentation, layer = LAYERS[work]()
        return consume(kpipe_large(augmentation, batch) if variant == "kpipe" else layer_large(layer, batch))
    if variant.startswith("torch"):
        return load_with_torch(TorchPhotographs(folder), batch, _torch_workers(variant))
    ours = kpipe_first_epoch if work == "jpeg224_first_epoch" else kpipe_later_epochs
    return consume((ours if variant == "kpipe" else naive_photographs)(folder, batch))


def _make_small(variant: str, batch: int) -> Run:
    if variant.startswith("torch"):
        return load_with_torch(TorchSmall(), batch, _torch_workers(variant))
    if variant == "numba":
        return numba_small(batch)
    if variant == "kpipe":
        return consume(kpipe_small(batch), standardize())
    return consume((limit_small if variant == "limit" else SMALL[variant])(batch))


def _torch_workers(variant: str) -> int:
    return min(2, os.cpu_count() or 1) if variant == "torch_workers" else 0
