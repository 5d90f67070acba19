"""Features: what the frozen layers of a network make of the images, computed once instead of in each epoch.

A batch of features is that of the images which `make_pipeline` would show, in the same view of each.

N images of the split, V views of an image (as it is, and flipped), F shape of an image's features, B batch, I pixels a
side of what the network sees.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kpipe.data.augmentations.base import Augmentation, Mix
from kpipe.data.augmentations.crops import Crop
from kpipe.data.pipeline import make_drawing, make_evaluation_pipeline, with_cardinality
from kpipe.data.pixels import make_resident
from kpipe.data.splits import ProgressReporter, Split, no_progress


def count_views(augment: Sequence[Augmentation | Crop | Mix]) -> int | None:
    """Return how many different images the augmentations make of one; None: more than can be kept."""
    views = 1
    for entry in augment:
        if isinstance(entry, Augmentation) and entry.is_flip:
            views *= 2
        elif not (isinstance(entry, Crop) and entry.uniforms == 0):  # the center, which evaluation shows as well
            return None
    return views


def compute_features(
    split: Split,
    image_size: int | None,
    augment: Sequence[Augmentation | Crop],
    features_of: Callable[[tf.Tensor], tf.Tensor],
    batch_size: int,
    make: Callable[[tuple[int, ...]], np.ndarray],
    progress: ProgressReporter = no_progress,
) -> np.ndarray:
    """Return the features of each view of each image, [N, V, *F]; those of unreadable images are 0.

    Args:
        split: the images.
        image_size: I.
        augment: augmentations with few views, see `count_views`.
        features_of: images uint8 [b, I, I, C] -> features [b, *F].
        batch_size: at most as many images at a time.
        make: returns an array float32 of a shape, filled with 0.
        progress: shows how many images are done.
    """
    flips = [entry for entry in augment if isinstance(entry, Augmentation)]
    views, features = count_views(augment), None
    with progress("computing features", len(split)) as done:
        for images, numbers in make_evaluation_pipeline(split.numbered(), batch_size, image_size=image_size):
            for view in range(views):
                found = features_of(_turn(images, flips, view)).numpy()
                if features is None:
                    features = make((len(split), views, *found.shape[1:]))
                features[numbers.numpy(), view] = found
            done(len(images))
    return features


def make_feature_pipeline(
    split: Split,
    features: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    augment: Sequence[Augmentation | Crop],
    class_weights: np.ndarray | None = None,
    first_step: int,
    last_step: int,
    worker: int = 0,
    workers: int = 1,
) -> tf.data.Dataset:
    """Return the training batches of `make_pipeline` with features instead of images.

    Args:
        split: N images, whose labels are used.
        features: [N, V, *F].
        batch_size, seed, augment, class_weights, first_step, worker, workers: as for `make_pipeline`.
        last_step: step before which the batches end.

    Returns:
        Dataset of (features [B, *F], labels int32 [B]), and with `class_weights` also weights float32 [B].
    """
    drawing = make_drawing(split, batch_size, seed, augment, worker, workers, unreadable=split.unreadable.numbers)
    labels, fetch = tf.constant(split.labels), _fetcher(features)
    columns = np.cumsum([0, *(entry.uniforms for entry in augment)])[:-1]
    flips = [int(column) for column, entry in zip(columns, augment, strict=True) if isinstance(entry, Augmentation)]

    def batch(numbers, uniforms):
        views = sum(tf.cast(uniforms[:, column] < 0.5, tf.int64) * 2**place for place, column in enumerate(flips))
        chosen = tf.gather(labels, numbers)
        found = (fetch(numbers, views if flips else tf.zeros_like(numbers)), chosen)
        return found if class_weights is None else (*found, tf.gather(tf.constant(class_weights, tf.float32), chosen))

    batches = drawing.draw(first_step, last_step).map(batch, num_parallel_calls=tf.data.AUTOTUNE)
    return with_cardinality(batches, last_step - first_step)


def make_feature_evaluation_pipeline(split: Split, features: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Return the batches of `make_evaluation_pipeline` with features [N, 1, *F] instead of images."""
    labels, fetch, numbers = tf.constant(split.labels), _fetcher(features), split.readable_numbers()
    batches = tf.data.Dataset.from_tensor_slices(numbers).batch(batch_size)
    batches = batches.map(lambda wanted: (fetch(wanted, tf.zeros_like(wanted)), tf.gather(labels, wanted)))
    return with_cardinality(batches, -(-len(numbers) // batch_size))


def _turn(images: tf.Tensor, flips: Sequence[Augmentation], view: int) -> tf.Tensor:
    """Return a view of images: flip i is made if bit i of its number is set."""
    for place, flip in enumerate(flips):
        uniform = 0.0 if view >> place & 1 else 0.5
        images = flip.apply(images, tf.fill((tf.shape(images)[0], 1), uniform))
    return images


def _fetcher(features: np.ndarray) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return a function (numbers int64 [b], views int64 [b]) -> features [b, *F] for use inside a graph."""
    if not isinstance(features, np.memmap):
        resident = make_resident(features)
        return lambda numbers, views: tf.gather_nd(resident, tf.stack([numbers, views], axis=1))

    def fetch(numbers, views):
        found = tf.numpy_function(lambda numbers, views: features[numbers, views], [numbers, views], features.dtype)
        return tf.ensure_shape(found, [*numbers.shape, *features.shape[2:]])

    return fetch
