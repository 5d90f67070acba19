"""Features of frozen layers, computed once and kept like decoded images, so that an epoch costs the head alone."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from kpipe import data
from kpipe.assembly import Prepared, make_augmentations
from kpipe.config.schema import Experiment
from kpipe.console import counted, describe_size
from kpipe.data.cache import keep_on_disk
from kpipe.data.features import (
    compute_features,
    count_views,
    make_feature_evaluation_pipeline,
    make_feature_pipeline,
)
from kpipe.data.pixels import allocate
from kpipe.errors import OutOfMemory
from kpipe.files import cache_folder
from kpipe.models.structure import features_and_head, last_fixed_output
from kpipe.training.control import FrozenFeatures
from kpipe.training.device import free_memory
from kpipe.training.distribution import make_strategy, workers_of

_OUTPUT = "the output of the frozen layers"
_EACH_EPOCH = "it is computed in each epoch"


@dataclass(frozen=True)
class FeaturePlan:
    """Features that are worth computing once."""

    output: keras.KerasTensor
    """The last output of the frozen layers, [B, *F]."""
    until: float
    """The step at which the first of these layers thaws; infinity: never."""
    augment: list[data.Augmentation | data.Crop | data.Mix]
    """Augmentations of the training images, with few views."""
    number: int
    """Number of features: one for each view of a training image, and one for each image of the validation split."""

    @property
    def size(self) -> int:
        """Bytes of all features."""
        return self.number * math.prod(self.output.shape[1:]) * np.dtype(np.float32).itemsize

    def make_extractor(self, model: keras.Model) -> keras.Model:
        """Return the frozen layers of the model: images -> features."""
        return keras.Model(model.inputs, self.output, name="features")

    def make_head(self, model: keras.Model) -> keras.Model:
        """Return the other layers of the model: features -> its outputs."""
        return keras.Model(self.output, model.outputs, name="head")


def plan_features(experiment: Experiment, prepared: Prepared, step: int) -> tuple[FeaturePlan | None, str | None]:
    """Return the features of frozen layers that are worth computing once.

    They are while all layers up to the head are frozen, and each image has few views: it is not augmented, or only
    flipped. Features are kept where `data.cache` keeps images: in memory, on the disk, or nowhere.

    Args:
        experiment: what is trained, resolved.
        prepared: data and model; the weights of the model are not read.
        step: the next step to do.

    Returns:
        The plan, or None; and a line for the user, or None.
    """
    config, splits = experiment.data, prepared.splits
    output, until = _find_features(experiment, prepared, step)
    if experiment.training.distribution != "none" or output is None or config.cache == "none" or splits.train.is_stream:
        return None, None
    augment = make_augmentations(config, splits.image_shape)
    views = count_views(augment)
    if views is None:
        return None, (
            "the layers up to the head are frozen, but data.augment makes new images in each epoch; without it, or "
            "with flips alone, their output would be computed only once"
        )
    images = len(splits.train) + len(splits.validation or ())
    plan = FeaturePlan(output, until, augment, len(splits.train) * (views - 1) + images)
    if config.cache == "auto" and plan.size > config.cache_gigabytes * 1e9:
        return None, f"{_OUTPUT} would take {describe_size(plan.size)}, more than data.cache_gigabytes; {_EACH_EPOCH}"
    where = "on the disk" if config.cache == "disk" else "in memory"
    note = (
        f"the layers up to the head are frozen{'' if until == math.inf else f' until step {int(until):,}'}: their "
        f"output is computed once, for {counted(images, 'image')}"
        f"{f', {views} views of each in training' if views > 1 else ''}, and kept {where} ({describe_size(plan.size)})"
    )
    return plan, note


def make_frozen_features(
    experiment: Experiment, prepared: Prepared, plan: FeaturePlan, progress: data.ProgressReporter = data.no_progress
) -> FrozenFeatures:
    """Compute the features of a plan, with the weights that the model has now.

    Raises:
        DataError: an image cannot be read.
        EnvironmentFault: the disk refuses them, or they are more than the memory that is free.
    """
    config, splits, model = experiment.data, prepared.splits, prepared.model
    free = free_memory()
    if config.cache == "memory" and free is not None and plan.size > free:
        raise OutOfMemory(
            f"{_OUTPUT} takes {describe_size(plan.size)} of memory, {describe_size(free)} are free. Set "
            f"data.cache=disk, or data.cache=none, with which {_EACH_EPOCH}"
        )
    extractor = plan.make_extractor(model)

    @partial(tf.function, reduce_retracing=True)
    def features_of(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(extractor(images, training=False), tf.float32)

    def compute(split: data.Split, augment: list) -> np.ndarray:
        def fill(make: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
            return compute_features(split, splits.image_size, augment, features_of, config.batch_size, make, progress)

        if config.cache != "disk":
            return fill(partial(allocate, dtype=np.float32))
        return keep_on_disk(cache_folder(), _digest(extractor, split, augment), fill)

    worker, workers = workers_of(make_strategy())
    batches = partial(
        make_feature_pipeline,
        splits.train,
        compute(splits.train, plan.augment),
        config.batch_size,
        seed=experiment.seed,
        augment=plan.augment,
        class_weights=data.balanced_weights(splits.train, len(splits.class_names)) if config.class_weights else None,
        last_step=prepared.steps_per_epoch * experiment.training.epochs,
        worker=worker,
        workers=workers,
    )
    validation = None
    if splits.validation is not None:
        features = compute(splits.validation, [])
        validation = make_feature_evaluation_pipeline(splits.validation, features, config.batch_size)
    return FrozenFeatures(
        plan.make_head(model), plan.until, lambda first_step: batches(first_step=first_step), validation
    )


def _find_features(experiment: Experiment, prepared: Prepared, step: int) -> tuple[keras.KerasTensor | None, float]:
    """Return the last output of the frozen layers, and the step at which the first of them thaws.

    Layers of the head count if they stay frozen for as long as all layers before it. None: not all of these are frozen
    at this step.
    """
    thaws = {name: rule.thaws for name, rule in prepared.layer_rules.items()}
    division = features_and_head(prepared.model, experiment.model.name, prepared.network["options"])
    until = min((thaws[layer.name] for layer in division.features if layer.name in thaws), default=0)
    if until <= step:
        return None, math.inf
    fixed = [layer.name for layer in prepared.model.layers if thaws.get(layer.name, math.inf) >= until]
    return last_fixed_output(prepared.model, fixed), until


def _digest(extractor: keras.Model, split: data.Split, augment: list) -> str:
    """Return a digest of all that features depend on: layers and weights, images and their views, and TensorFlow."""
    views = [entry.name for entry in augment]
    digest = hashlib.sha256(repr((tf.__version__, views, extractor.dtype_policy.name)).encode())
    digest.update(extractor.to_json().encode())
    for weight in extractor.get_weights():
        digest.update(np.ascontiguousarray(weight))
    digest.update(split.digest().encode())
    return digest.hexdigest()[:32]
