"""Features of frozen layers, computed once and kept like decoded images, so that an epoch costs the head alone."""

import hashlib
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kpipe import data
from kpipe.assembly import Prepared, make_augmentations
from kpipe.config.schema import Experiment
from kpipe.console import describe_size
from kpipe.data.cache import keep_on_disk
from kpipe.data.features import (
    compute_features,
    count_views,
    make_feature_evaluation_pipeline,
    make_feature_pipeline,
)
from kpipe.files import cache_folder
from kpipe.models.structure import features_and_head, last_fixed_output
from kpipe.training.control import FrozenFeatures
from kpipe.training.distribution import make_strategy, workers_of


def make_frozen_features(
    experiment: Experiment, prepared: Prepared, step: int, progress: data.ProgressReporter = data.no_progress
) -> tuple[FrozenFeatures | None, str | None]:
    """Compute the features of the frozen layers, where that is worth it.

    It is while all layers up to the head are frozen, and each image has few views: it is not augmented, or only
    flipped. Features are kept where `data.cache` keeps images: in memory, on the disk, or nowhere.

    Args:
        experiment: what is trained, resolved.
        prepared: data and model, with the weights of this step.
        step: the next step to do.
        progress: shows how many images are done.

    Returns:
        The features, or None; and a line for the user, or None.

    Raises:
        DataError: an image cannot be read.
        EnvironmentFault: the disk refuses them.
    """
    config, splits, model = experiment.data, prepared.splits, prepared.model
    thaws = {name: rule.thaws for name, rule in prepared.layer_rules.items()}
    fixed = {name for name, thaw in thaws.items() if thaw > step}
    output = last_fixed_output(model, fixed) if fixed else None
    if output is None:
        return None, None
    division = features_and_head(model, experiment.model.name, prepared.network["options"])
    needed = [layer.name for layer in division.features if layer.name in thaws]
    if not needed or not fixed.issuperset(needed):
        return None, None
    augment = make_augmentations(config, splits.image_shape)
    views = count_views(augment)
    if views is None:
        return None, (
            "the layers up to the head are frozen, but data.augment makes new images in each epoch; without it, or "
            "with flips alone, their output would be computed only once"
        )
    if config.cache == "none" or splits.train.is_stream:
        return None, None
    held_out = {"validation": splits.validation} if splits.validation is not None else {}
    images = len(splits.train) * views + sum(map(len, held_out.values()))
    size = images * math.prod(output.shape[1:]) * np.dtype(np.float32).itemsize
    if config.cache == "auto" and size > config.cache_gigabytes * 1e9:
        return None, (
            f"the output of the frozen layers would take {describe_size(size)}, more than data.cache_gigabytes; it is "
            "computed in each epoch"
        )
    extractor = keras.Model(model.inputs, output)
    features_of = tf.function(lambda images: tf.cast(extractor(images, training=False), tf.float32))

    def compute(split: data.Split, augment: list) -> np.ndarray:
        def fill(make: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
            return compute_features(split, splits.image_size, augment, features_of, config.batch_size, make, progress)

        if config.cache != "disk":
            return fill(lambda shape: np.zeros(shape, np.float32))
        return keep_on_disk(cache_folder(), _digest(extractor, split, count_views(augment)), fill)

    train = compute(splits.train, augment)
    validation = None
    for split in held_out.values():
        validation = make_feature_evaluation_pipeline(split, compute(split, []), config.batch_size)
    weights = data.balanced_weights(splits.train, len(splits.class_names)) if config.class_weights else None
    worker, workers = workers_of(make_strategy())
    last_step = prepared.steps_per_epoch * experiment.training.epochs

    def batches_from(first_step: int) -> tf.data.Dataset:
        return make_feature_pipeline(
            splits.train,
            train,
            config.batch_size,
            seed=experiment.seed,
            augment=augment,
            class_weights=weights,
            first_step=first_step,
            last_step=last_step,
            worker=worker,
            workers=workers,
        )

    until = min(thaws[name] for name in needed)
    where = "on the disk" if config.cache == "disk" else "in memory"
    note = (
        f"the layers up to the head are frozen: their output is computed once and kept {where} ({describe_size(size)})"
    )
    return FrozenFeatures(keras.Model(output, model.outputs), until, batches_from, validation), note


def _digest(extractor: keras.Model, split: data.Split, views: int) -> str:
    """Return a digest of all that features depend on: the layers and their weights, the images, and the machine."""
    digest = hashlib.sha256(repr((tf.__version__, views, extractor.dtype_policy.name)).encode())
    digest.update(extractor.to_json().encode())
    for weight in extractor.get_weights():
        digest.update(np.ascontiguousarray(weight))
    digest.update(split.digest().encode())
    return digest.hexdigest()[:32]
