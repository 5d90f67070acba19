"""Batches for training and for evaluation.

A training batch is a pure function of (seed, step). Two runs agree, and a run that starts at step n sees exactly the
batches that it would have seen. No iterator state has to be saved. An image that cannot be read is replaced by the next
readable one, which then appears twice. That is the next one in the order of all images or, where several workers read
files, among the worker's own rows.

B batch, b rows of one worker, H height, W width, C channels, I pixels a side of what the network sees, K classes, N
images of the split, n uniforms an image.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from kpipe.caller import setting
from kpipe.console import counted
from kpipe.data.augmentations.base import Augmentation, Mix
from kpipe.data.augmentations.crops import Crop, center_crop, take_crops, ten_crop
from kpipe.data.images import Form, to_form
from kpipe.data.order import Drawing
from kpipe.data.reading import read_what_can_be_read
from kpipe.data.splits import ProgressReporter, Split, Splits, no_progress
from kpipe.errors import ConfigError

CHUNK_BYTES, MOST_IN_CHUNK = 2**26, 1024  # largest size and number of images that are read together for statistics


def make_pipeline(
    split: Split,
    batch_size: int,
    *,
    seed: int = 0,
    augment: Sequence[Augmentation | Crop | Mix] = (),
    image_size: int | None = None,
    classes: int | None = None,
    class_weights: np.ndarray | None = None,
    first_step: int = 0,
    last_step: int | None = None,
    worker: int = 0,
    workers: int = 1,
) -> tf.data.Dataset:
    """Return the training batches from `first_step` on, without end: each epoch has another order and other crops.

    For `fit`, `batches.steps_per_epoch` says where an epoch ends:
    `model.fit(batches, epochs=20, steps_per_epoch=batches.steps_per_epoch, shuffle=False)`.

    An epoch has floor(N / B) steps and shows every image at most once. The N mod B images that do not fill a batch are
    left out, others in each epoch. A stream of records is shuffled by file and within blocks, other splits wholly.

    Args:
        split: N images.
        batch_size: number of images in a batch over all workers, at most N.
        seed: seed of the order and of the augmentations.
        augment: augmentations, applied in this order. A crop comes first; without one the network sees the center.
        image_size: I; None: images are as large as the split keeps them.
        classes: K; needed by augmentations that mix labels.
        class_weights: float [K]. A batch then has the weight of each image, which soft labels average.
        first_step: step counted from the start of training, over all epochs.
        last_step: step before which the batches end; None: they do not.
        worker, workers: this worker's rows of the global batch are B / workers from `worker` x B / workers on.

    Returns:
        Dataset with known cardinality and an attribute `steps_per_epoch`, of (images uint8 [b, I, I, C], 0..255, labels
        int32 [b]), and with `class_weights` also weights float32 [b]. After an augmentation that mixes, the labels are
        soft, float32 [b, K], and the images may be float32.

    Raises:
        ConfigError: the batch is larger than the split or not at least 1, or cannot be divided among the workers; the
            crop is larger than the image, or not the first augmentation.
    """
    _check_split("make_pipeline", split, "train")
    crop, changes = _separate_crop(augment)
    size = _crop_size(split, crop, image_size)
    unreadable = split.unreadable.numbers if split.kept_pixels else ()  # others are replaced when they are met
    drawing = make_drawing(split, batch_size, seed, augment, worker, workers, unreadable=unreadable)
    _check_mixing(changes, classes, drawing.count, workers)
    make_batch = _make_batcher(crop, size, changes, classes, class_weights)
    last = np.iinfo(np.int64).max if last_step is None else max(first_step, last_step)
    batches = split.training_batches(drawing, crop, size, first_step, last, make_batch)
    batches = with_cardinality(batches, tf.data.INFINITE_CARDINALITY if last_step is None else last - first_step)
    batches.steps_per_epoch = drawing.steps_per_epoch
    return batches


def make_drawing(
    split: Split,
    batch_size: int,
    seed: int,
    augment: Sequence[Augmentation | Crop | Mix],
    worker: int,
    workers: int,
    *,
    unreadable: Iterable[int],
) -> Drawing:
    """Return the images and uniforms of each step; the arguments are those of `make_pipeline` and of `Drawing`."""
    return Drawing(
        len(split),
        batch_size,
        count_steps_per_epoch(split, batch_size),
        seed=seed,
        uniforms=sum(entry.uniforms for entry in augment),
        worker=worker,
        workers=workers,
        unreadable=unreadable,
    )


def make_evaluation_pipeline(
    split: Split,
    batch_size: int,
    *,
    image_size: int | None = None,
    ten_crops: bool = False,
    worker: int = 0,
    workers: int = 1,
) -> tf.data.Dataset:
    """Return each image once, in the order of the split; the last batch may be smaller.

    Images that are known to be unreadable are left out.

    Args:
        split: N images.
        batch_size: at least 1.
        image_size: I: the network sees the center of each image; None: images are as large as the split keeps them.
        ten_crops: whether each image gives ten views instead of the center, see `ten_crop`; needs `image_size`.
        worker, workers: this worker sees every `workers`-th image from `worker` on.

    Returns:
        Dataset of (images uint8 [b, I, I, C], 0..255, labels int32 [b]), 1 <= b <= B, with known cardinality. The
        images of ten crops are [b, 10, I, I, C].

    Raises:
        ConfigError: `batch_size` is not at least 1, or the crop is larger than the image.
    """
    _check_split("make_evaluation_pipeline", split, "test")
    _check_batch_size(batch_size)
    size = _crop_size(split, center_crop() if ten_crops else None, image_size)

    def see(images, labels):
        return ten_crop(images, size) if ten_crops else _center(images, size), labels

    numbers = split.readable_numbers()[worker::workers]
    return with_cardinality(split.evaluation_batches(numbers, batch_size, see), -(-len(numbers) // batch_size))


def evaluation_batches(
    splits: Splits, name: str, batch_size: int, worker: int = 0, workers: int = 1
) -> tf.data.Dataset | None:
    """Return the evaluation pipeline of a split, as the network sees its images; None where there is no such split."""
    split = splits.by_name.get(name)
    if split is None:
        return None
    return make_evaluation_pipeline(split, batch_size, image_size=splits.image_size, worker=worker, workers=workers)


def iterate_images(
    split: Split, image_size: int | None = None, progress: ProgressReporter = no_progress, *, most: int | None = None
) -> Iterator[np.ndarray]:
    """Yield each readable image once, as evaluation sees it: batches uint8 [b, I, I, C]; the others are noted.

    Args:
        split: the images.
        image_size: I; None: images are used as they are.
        progress: shows how many images are read.
        most: of more files, only so many are decoded, spread evenly over the classes. Streams and images that are kept
            decoded are read whole.

    Raises:
        DataError: more images than allowed cannot be read.
    """
    if most and is_sampled(split, most):
        split = split.select(split.spread(most))
    chunk = max(1, min(MOST_IN_CHUNK, CHUNK_BYTES // int(np.prod(split.shape))))
    for images in split.iterate(chunk, progress):
        yield _center(images, image_size)


def iterate_readable(
    split: Split, batch_size: int, image_size: int, what: str, progress: ProgressReporter = no_progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of all images that can be read: their numbers int64 [b], ascending, and what evaluation sees of
    them, uint8 [b, I, I, C]. The others are noted at the end.

    Args:
        split: images that are not kept decoded.
        batch_size: B, 1 <= b <= B.
        image_size: I.
        what: what is done with them, for the progress bar.
        progress: shows how many images are done.

    Raises:
        DataError: more images than allowed cannot be read.
    """
    for numbers, images, _ in read_what_can_be_read(split, batch_size, what, progress):
        yield numbers, _center(images, image_size)


def resize_for_evaluation(images: np.ndarray, form: Form, image_size: int) -> tf.Tensor:
    """Return what evaluation sees of images in memory, uint8 [B, H, W, C] -> [B, I, I, C].

    Args:
        images: of one size. Images of I x I are taken as they are, but for their channels.
        form: as images are kept.
        image_size: I.
    """
    if images.shape[1:3] == (image_size, image_size):
        form = replace(form, size=None)
    return _center(tf.stack([to_form(tf.constant(image), form) for image in images]), image_size)


def is_sampled(split: Split, most: int) -> bool:
    """Return whether `iterate_images` leaves images of a split out, if it may decode so many files."""
    return not (split.kept_pixels or split.is_stream) and len(split) > most


def count_steps_per_epoch(split: Split, batch_size: int) -> int:
    """Return the number of full batches in an epoch of training.

    Raises:
        ConfigError: there is none, or `batch_size` is not at least 1.
    """
    _check_batch_size(batch_size)
    images = split.images_per_epoch
    if batch_size > images:
        raise ConfigError(
            f"{setting('batch_size')}: expected at most the {counted(images, 'image')} of the training split, got "
            f"{batch_size:,}"
        )
    return images // batch_size


def _check_split(function: str, split: Split, example: str) -> None:
    if not isinstance(split, Split):
        got = "all of the splits" if isinstance(split, Splits) else type(split).__name__
        raise ConfigError(f"{function}: expected one split, such as splits.{example}, got {got}")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"{setting('batch_size')}: expected at least 1, got {batch_size}")


def _separate_crop(augment: Sequence) -> tuple[Crop | None, list[Augmentation | Mix]]:
    """Return the crop, if there is one, and the rest."""
    for place, entry in enumerate(augment):
        if not isinstance(entry, Augmentation | Crop | Mix):
            raise ConfigError(f"augment: expected augmentations such as flip_horizontal(), got {entry!r}")
        if isinstance(entry, Crop) and place:
            raise ConfigError(f"augment: expected {entry.name} as the first entry: it chooses what the others see")
    has_crop = bool(augment) and isinstance(augment[0], Crop)
    return (augment[0] if has_crop else None), list(augment[has_crop:])


def _crop_size(split: Split, crop: Crop | None, image_size: int | None) -> int | None:
    """Return pixels a side of what the network sees; None: images as they are kept."""
    height, width, _ = split.shape
    if image_size is None:
        if crop and (not crop.resamples or height is None or height != width):
            raise ConfigError(f"{crop.name}: expected image_size, the size of the crop, got none")
        return height if crop else None
    if height and not (crop and crop.resamples) and image_size > min(height, width):
        raise ConfigError(
            f"{setting('image_size')}: expected at most the {counted(min(height, width), 'pixel')} of the kept "
            f"images, got {image_size}"
        )
    return image_size


def _check_mixing(changes: Sequence[Augmentation | Mix], classes: int | None, rows: int, workers: int) -> None:
    mixes = [entry.name for entry in changes if isinstance(entry, Mix)]
    if mixes and classes is None:
        raise ConfigError(f"{mixes[0]}: expected the number of classes, got none")
    if mixes and workers > 1 and rows % 2:
        raise ConfigError(
            f"{mixes[0]}: expected an even number of images a worker, which are mixed in pairs, got {rows}"
        )


def _make_batcher(
    crop: Crop | None,
    size: int | None,
    changes: Sequence[Augmentation | Mix],
    classes: int | None,
    class_weights: np.ndarray | None,
) -> Callable:
    """Return the function `make_batch` of `Split.training_batches`."""
    first, *others = _group(changes, crop.uniforms if crop else 0)
    mixes = any(isinstance(entry, Mix) for entry in changes)

    def make_batch(fetch=lambda images: images):
        def begin(numbers, uniforms):
            images = fetch(numbers)
            if crop and not crop.resamples:
                images = take_crops(images, crop, uniforms[:, : crop.uniforms], size)
            return first(_center(images, size), None, uniforms)[0]

        # The labels stay outside: taken in the same function, they make XLA's gather of a crop three times as slow.
        compiled = tf.function(begin, jit_compile=True)
        later = [tf.function(change, jit_compile=True) for change in others]

        def batch(numbers, labels, uniforms):
            images = compiled(numbers, uniforms)
            labels = tf.one_hot(labels, classes) if mixes else labels
            for change in later:
                images, labels = change(images, labels, uniforms)
            if class_weights is None:
                return images, labels
            weights = tf.constant(class_weights, tf.float32)
            return images, labels, tf.linalg.matvec(labels, weights) if mixes else tf.gather(weights, labels)

        return batch

    return make_batch


def _group(changes: Sequence[Augmentation | Mix], column: int) -> list[Callable]:
    """Return functions (images, labels, uniforms) -> (images, labels), each to be compiled alone. The first only moves.

    The uniforms of the changes begin at `column`.
    """
    groups: list[list[tuple[Augmentation | Mix, slice]]] = [[]]
    for entry in changes:
        moves = isinstance(entry, Augmentation) and entry.moves
        if not moves or not all(isinstance(one, Augmentation) and one.moves for one, _ in groups[-1]):
            groups.append([])
        groups[-1].append((entry, slice(column, column + entry.uniforms)))
        column += entry.uniforms
    return [functools.partial(_change, group) for group in groups]


def _change(group: list[tuple[Augmentation | Mix, slice]], images, labels, uniforms):
    for entry, columns in group:
        if isinstance(entry, Mix):
            images, labels = entry.apply(images, labels, uniforms[:, columns])
        else:
            images = entry.apply(images, uniforms[:, columns])
    return images, labels


def _center(images: tf.Tensor, size: int | None) -> tf.Tensor:
    height, width = images.shape[1:3]
    if size is None or (height, width) == (size, size):
        return images
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, top : top + size, left : left + size]


def with_cardinality(batches: tf.data.Dataset, length: int) -> tf.data.Dataset:
    """Assert the cardinality, since Keras counts steps and losses wrongly where it is unknown, without a word."""
    # To optimize its graph, tf.data copies all that a function has captured: the images would be in memory twice.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    batches = batches.apply(tf.data.experimental.assert_cardinality(length))
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)
