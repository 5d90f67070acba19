"""Builds all that a training needs from an experiment: data, model, schedule, optimizer, loss. Trains nothing.

`train` and `plan` share `prepare`; nowhere else do data, models and training meet. Each part gets its own section of
the experiment.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe import data
from kpipe.catalog.data import AUGMENTATIONS, ImageFacts, parse_background
from kpipe.catalog.own_code import is_own, load_function, make_options, running
from kpipe.catalog.rows import Section, check_options
from kpipe.catalog.training import PlateauOptions
from kpipe.config.schema import DataConfig, Experiment, TrainingConfig, options
from kpipe.console import describe_size
from kpipe.data.pixels import check_memory
from kpipe.errors import ConfigError, OutOfMemory
from kpipe.models.building import build_model, deferred_initialization, discard_variables, initialize_variables
from kpipe.models.pretrained import Pretrained, Reuse, find_reuse, initialize_from, load_pretrained
from kpipe.normalization import describe_normalization, make_normalization, most_measured, resolve_normalize
from kpipe.training.averaging import WeightAverage
from kpipe.training.control import Cadence
from kpipe.training.device import free_memory, grow_gpu_memory
from kpipe.training.distribution import synchronize, workers_of
from kpipe.training.durations import steps_of
from kpipe.training.finetuning import LayerRule, make_layer_rules
from kpipe.training.layer_statistics import LayerHistograms, LayerStatistics
from kpipe.training.loss_scaling import LossScaling
from kpipe.training.losses import make_loss
from kpipe.training.metrics import make_metrics
from kpipe.training.optimizers import make_optimizer
from kpipe.training.precision import precision_scope
from kpipe.training.schedules import ReduceOnPlateau, make_schedule
from kpipe.training.stuck import StuckWatcher
from kpipe.training.trainer import Trainer
from kpipe.training.variables import count_bytes


@dataclass(frozen=True, kw_only=True)
class Built:
    """A compiled model, and how its layers are trained."""

    model: keras.Model
    layer_rules: dict[str, LayerRule]
    """How each layer with weights is trained, by its name."""
    reuse: Reuse | None
    """Layers whose weights come from `model.init_from`; None: all weights are random."""


@dataclass(frozen=True, kw_only=True)
class Prepared(Built):
    """An experiment, built on its data and not yet trained."""

    splits: data.Splits
    network: dict[str, Any]
    """Keyword arguments that were passed to `build_model`."""
    training_batches: Callable[[int], tf.data.Dataset]
    """Function that returns the batches from a given step to the end of the training."""
    steps_per_epoch: int
    notes: tuple[str, ...] = ()
    """Lines for the user: how the constants of the first layer were measured."""

    @property
    def normalization(self) -> str:
        """What the first layer does to the images, see `describe_normalization`."""
        return describe_normalization(self.network["normalization"])

    @property
    def last_thaw(self) -> float:
        """The step from which all layers are trained that are to be trained."""
        return max(rule.thaws for rule in self.layer_rules.values() if rule.thaws < math.inf)

    def find_unreadable(self) -> dict[str, list[int]]:
        """Return the numbers of the images that could not be read so far, by split; only splits that have some."""
        return self.splits.find_unreadable()


def prepare(
    experiment: Experiment,
    strategy: tf.distribute.Strategy,
    *,
    splits: data.Splits | None = None,
    only_shapes: bool = False,
    weights: Pretrained | Reuse | None = None,
    constants: Path | None = None,
    progress: data.ProgressReporter = data.no_progress,
) -> Prepared:
    """Build data, model, schedule, optimizer and loss.

    Args:
        experiment: what to build, resolved (see `kpipe.runs.machine.resolve_auto`).
        strategy: of this process, see `make_strategy`.
        splits: the data, where it is loaded already.
        only_shapes: for a plan. Nothing is downloaded, the training split is not scanned, and the model has no weights
            yet, see `deferred_initialization`.
        weights: what `model.init_from` names, see `load_weights`. Of a run that is resumed, which loads its own weights
            later: the layers that began with it.
        constants: the file in which a run keeps those of the first layer, see `make_normalization`.
        progress: shows how far the reading of the data is.

    Raises:
        ConfigError, DataError: as `load_dataset`, `make_normalization`, `build_model`, `make_optimizer`.
        OutOfMemory: a batch or the weights do not fit into the memory that is free.
    """
    config, training = experiment.data, experiment.training
    splits = splits or load_splits(config, ahead=not only_shapes, progress=progress)
    if not only_shapes:
        batch = (config.batch_size, *splits.image_shape)
        check_memory(batch, "data.batch_size", "Take a smaller data.batch_size or data.image_size")
    if training.early_stopping and splits.validation is None:
        raise ConfigError("training.early_stopping: needs a validation split, this data has none")
    if isinstance(training.learning_rate, PlateauOptions) and splits.validation is None:
        raise ConfigError("training.learning_rate.schedule: plateau needs a validation split, this data has none")
    steps_per_epoch = data.count_steps_per_epoch(splits.train, config.batch_size)
    _check_profile(experiment, steps_per_epoch)
    _check_replicas(experiment, strategy)
    training_batches = _make_training_batches(experiment, splits, steps_per_epoch * training.epochs, strategy)
    normalize = resolve_normalize(config, weights)
    most = most_measured(normalize)
    images = None if only_shapes else data.iterate_images(splits.train, splits.image_size, progress, most=most)
    network = {
        "name": experiment.model.name,
        "options": experiment.network_options,
        "input_shape": splits.image_shape,
        "classes": len(splits.class_names),
        "normalization": make_normalization(normalize, splits.image_shape, images, constants),
    }
    built = build(
        experiment,
        network,
        steps_per_epoch,
        strategy,
        only_shapes=only_shapes,
        weights=weights,
        class_names=splits.class_names,
    )
    notes = ()
    if most and data.is_sampled(splits.train, most):
        notes = (f"mean and standard deviation of the pixels are those of {most:,} images (data.normalize)",)
    return Prepared(
        **vars(built),
        splits=splits,
        network=network,
        training_batches=training_batches,
        steps_per_epoch=steps_per_epoch,
        notes=notes,
    )


def build(
    experiment: Experiment,
    network: dict[str, Any],
    steps_per_epoch: int,
    strategy: tf.distribute.Strategy,
    *,
    only_shapes: bool = False,
    weights: Pretrained | Reuse | None = None,
    class_names: Sequence[str] | None = None,
) -> Built:
    """Build and compile the model.

    Args:
        experiment: its sections `model` and `training` are used.
        network: keyword arguments of `build_model`.
        steps_per_epoch: full batches in an epoch.
        strategy, only_shapes, weights: as for `prepare`.
        class_names: in the order of the logits; None: not known.

    Raises:
        ConfigError: as `build_model`, `find_reuse`, `make_layer_rules` and `make_optimizer`.
        OutOfMemory: the weights do not fit into the memory that is free.
    """
    training = experiment.training
    with strategy.scope(), precision_scope(experiment.chosen.precision):
        with deferred_initialization():
            model = build_model(**network)
        synchronize(model, strategy)
        if not only_shapes:
            _check_weights_fit(model)
            initialize_variables()
        reuse = weights if isinstance(weights, Reuse) else None
        if isinstance(weights, Pretrained):
            start = find_reuse if only_shapes else initialize_from
            reuse = start(model, weights, network["name"], network["options"], class_names)
        lengths = _lengths(experiment, steps_per_epoch)
        rules = make_layer_rules(
            [layer.name for layer in model.layers if layer.trainable_weights],
            reused=reuse.reused if reuse else (),
            reused_layers=training.reused_layers,
            entries=training.layers,
            steps_of=partial(steps_of, **lengths),
            total_steps=lengths["total_steps"],
        )
        for name, rule in rules.items():
            model.get_layer(name).trainable = rule.thaws < math.inf
        optimizer = _make_optimizer(training, model, rules, lengths)
        model.compile(
            optimizer=LossScaling(optimizer) if experiment.chosen.precision == "mixed_float16" else optimizer,
            loss=make_loss(*experiment.loss),
            metrics=make_metrics(network["classes"]),
            jit_compile=False,  # on a CPU, XLA makes these networks slower
        )
    return Built(model=model, layer_rules=rules, reuse=reuse)


def load_weights(experiment: Experiment, *, only_shapes: bool = False) -> Pretrained | None:
    """Read the weights that `model.init_from` names; None: it names none.

    Args:
        experiment: its sections `model` and `data` are used.
        only_shapes: as for `load_pretrained`.

    Raises:
        ConfigError: as `load_pretrained`, and as `resolve_normalize`.
    """
    source = experiment.model.init_from
    if source is None:
        return None
    weights = load_pretrained(
        source,
        experiment.model.name,
        experiment.network_options,
        image_size=experiment.data.image_size,
        only_shapes=only_shapes,
    )
    resolve_normalize(experiment.data, weights)  # before the images are read
    return weights


def make_trainer(
    training: TrainingConfig, model: keras.Model, rules: Mapping[str, LayerRule], *, xla: bool = False
) -> Trainer:
    """Return the trainer of a model whose layers are trained by these rules.

    Args:
        training: the section of the experiment.
        model: compiled.
        rules: how each layer is trained, by its name.
        xla: whether XLA compiles the training step.
    """
    thaws = {name: rule.thaws for name, rule in rules.items() if rule.thaws}
    return Trainer(model, thaws=thaws, pieces=training.accumulate, xla=xla)


def load_splits(
    config: DataConfig,
    *,
    ahead: bool = True,
    check: Callable[[data.Source], None] = lambda source: None,
    progress: data.ProgressReporter = data.no_progress,
) -> data.Splits:
    """Call `load_dataset` with the options of the experiment's section.

    Args:
        config: the section.
        ahead: False decodes nothing beforehand and downloads nothing, whatever the section says.
        check, progress: as in `load_dataset`.

    Raises:
        ConfigError, DataError, EnvironmentFault: as `load_dataset`, and as `check`.
    """
    grow_gpu_memory()  # a search reads data before anything else
    form = ("image_size", "stored_size", "resize", "channels", "background")
    reading = ("cache", "cache_gigabytes", "on_error", "skip_limit")
    return data.load_dataset(
        config.source,
        **{name: getattr(config, name) for name in (*form, *reading)},
        ahead=ahead,
        whole_images=reads_whole_images(config),
        validation=config.split.validation,
        test=config.split.test,
        download=ahead,
        check=check,
        progress=progress,
        **_source_options(config),
    )


def find_source(config: DataConfig, *, skip_limit: float | None) -> data.Source:
    """Call `data.find_source` for the experiment's section; nothing is downloaded."""
    form = make_form(config)
    return data.find_source(config.source, form, skip_limit=skip_limit, download=False, **_source_options(config))


def make_form(config: DataConfig) -> data.Form:
    """Return the form in which the section keeps images."""
    background = parse_background(config.background)
    return data.Form(config.stored_size or config.image_size, config.resize, config.channels, background)


def reads_whole_images(config: DataConfig) -> bool:
    """Return whether an augmentation reads the images as they are in their files."""
    names = [entry.chosen[0] for entry in config.augment]
    return any(AUGMENTATIONS[name].reads_whole_image for name in names if not is_own(name))


def make_augmentations(
    config: DataConfig, image_shape: tuple[int, int, int]
) -> list[data.Augmentation | data.Crop | data.Mix]:
    """Build the augmentations of the section, for `make_pipeline`.

    Raises:
        ConfigError: images of this shape (H, W, C) do not suit one of them, or the user's own code cannot be used.
    """
    height, width, channels = image_shape
    images = ImageFacts(config.image_size, config.stored_size, channels, height == width)
    augmentations = []
    for place, (name, chosen) in enumerate(entry.chosen for entry in config.augment):
        if is_own(name):
            augmentations.append(_make_own_augmentation(f"data.augment.{place}", name, chosen, image_shape))
            continue
        row = AUGMENTATIONS[name]
        for message in row.conflicts_with(name, chosen, images, place):
            raise ConfigError(f"data.augment.{place}: {message}")
        augmentations.append(row.load()(**options(chosen)))
    return augmentations


def _make_own_augmentation(
    where: str, name: str, given: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> data.Augmentation | data.Crop | data.Mix:
    """Call a function of the user's own that returns an augmentation, and check what comes out of that."""
    function = load_function(name, where)
    checked = check_options(where, make_options(function, name, where, Section), **given)
    with running(name, f"{where}: {name}: expected an augmentation, got"):
        augmentation = function(**dict(checked))
    if not isinstance(augmentation, data.Augmentation | data.Crop | data.Mix):
        raise ConfigError(
            f"{where}: {name}: expected a function that returns a kpipe.data.Augmentation, got "
            f"{type(augmentation).__name__}"
        )
    if isinstance(augmentation, data.Augmentation):
        _check_own_augmentation(where, name, augmentation, image_shape)
    return augmentation


def _check_own_augmentation(
    where: str, name: str, augmentation: data.Augmentation, image_shape: tuple[int, int, int]
) -> None:
    """Raise ConfigError unless it makes images of images. Nothing is computed."""
    images, uniforms = tf.TensorSpec([None, *image_shape], tf.uint8), tf.TensorSpec([None, augmentation.uniforms])
    with running(name, f"{where}: {name}: expected an augmentation of images, got"):
        returned = tf.function(augmentation.apply).get_concrete_function(images, uniforms).structured_outputs
    got = getattr(returned, "dtype", None), getattr(returned, "shape", None)
    if got[0] != tf.uint8 or not images.shape.is_compatible_with(got[1]):
        raise ConfigError(
            f"{where}: {name}: expected images of the shape and type that it is given, uint8 "
            f"{images.shape.as_list()}, got {got[0].name if got[0] else type(returned).__name__} "
            f"{got[1].as_list() if got[1] else ''}".rstrip()
        )


def make_callbacks(training: TrainingConfig) -> list[keras.callbacks.Callback]:
    """Build the Keras callbacks that the section asks for."""
    callbacks = []
    if training.early_stopping:
        mode = "min" if training.monitor == "val_loss" else "max"
        stopping = training.early_stopping.model_dump()
        callbacks.append(keras.callbacks.EarlyStopping(training.monitor, mode=mode, **stopping))
    if isinstance(training.learning_rate, PlateauOptions):
        callbacks.append(ReduceOnPlateau(training.monitor))
    return callbacks


def make_watchers(
    experiment: Experiment,
    prepared: Prepared,
    *,
    on_stuck: Callable[[str], None],
    write: Callable[[int, Mapping[str, float]], None],
    write_histograms: Callable[[int, Mapping[str, np.ndarray]], None],
) -> list[keras.callbacks.Callback]:
    """Build the callbacks that watch a training and change nothing in it.

    Args:
        experiment: what is trained.
        prepared: data and model.
        on_stuck: called once if the training is stuck at guessing, with a sentence that says so.
        write: gets the step and the statistics of the layers, by tag.
        write_histograms: gets the step and the values of each histogram, by tag.
    """
    training, steps_per_epoch = experiment.training, prepared.steps_per_epoch
    length = _lengths(experiment, steps_per_epoch)
    stuck_after = training.stuck_after and steps_of(training.stuck_after, **length)
    frequencies = _class_frequencies(experiment.data, prepared.splits)
    watchers = [StuckWatcher(frequencies, on_stuck, steps_per_epoch=steps_per_epoch, stuck_after=stuck_after)]
    logging = experiment.logging
    if logging.tensorboard and (logging.layer_statistics or logging.histograms):
        train = prepared.splits.train
        # As many images as the memory takes at once.
        some = train.select(train.spread(min(len(train), experiment.data.batch_size // training.accumulate)))
        images = next(data.iterate_images(some, prepared.splits.image_size), None)
        if images is None:  # none of them can be read
            return watchers
        if every := logging.layer_statistics:
            watchers.append(LayerStatistics(tf.constant(images), steps_of(every, **length), write))
        if every := logging.histograms:
            watchers.append(LayerHistograms(tf.constant(images), steps_of(every, **length), write_histograms))
    return watchers


def _check_profile(experiment: Experiment, steps_per_epoch: int) -> None:
    """Raise ConfigError if the steps that are to be profiled come after the end of the training."""
    profile, steps = experiment.training.profile, experiment.training.epochs * steps_per_epoch
    if profile and profile.steps[0] > steps:
        raise ConfigError(
            f"training.profile.steps: expected steps of the training, which has {steps:,}, got {profile.steps}"
        )


def _check_replicas(experiment: Experiment, strategy: tf.distribute.Strategy) -> None:
    """Raise ConfigError unless a batch can be divided among the replicas, and their rows into pieces."""
    batch, replicas, pieces = experiment.data.batch_size, strategy.num_replicas_in_sync, experiment.training.accumulate
    if batch % replicas:
        raise ConfigError(f"data.batch_size: expected a multiple of the {replicas} devices, got {batch}")
    if replicas > 1 and batch // replicas % pieces:
        raise ConfigError(
            f"training.accumulate: expected a divisor of the {batch // replicas} images of a batch on each of "
            f"{replicas} devices, got {pieces}"
        )


def _class_frequencies(config: DataConfig, splits: data.Splits) -> np.ndarray:
    """Return the fraction of the training loss that each class has: float [K]; alike where counting reads images."""
    classes = len(splits.class_names)
    if config.class_weights or splits.train.is_stream:
        return np.full(classes, 1 / classes)
    counts = splits.train.count_labels(classes)
    return counts / counts.sum()


def make_cadence(training: TrainingConfig, steps_per_epoch: int) -> Cadence:
    """Return when the trainer logs and saves, in steps of this training."""
    every = training.checkpoint.every
    return Cadence(
        log_every=steps_of(training.log_every, steps_per_epoch=steps_per_epoch),
        save_every=steps_of(every, steps_per_epoch=steps_per_epoch),
        save_seconds=60 * every.minutes if every.minutes else math.inf,
    )


def _check_weights_fit(model: keras.Model) -> None:
    need, free = count_bytes(model.variables), free_memory()
    if free is not None and need > free:
        largest = max(model.variables, key=lambda variable: math.prod(variable.shape))
        discard_variables()
        raise OutOfMemory(
            f"the weights of {model.name} take {describe_size(need)} of memory, {describe_size(free)} are free. "
            f"The largest is {largest.path}, {'x'.join(map(str, largest.shape))}. Take a smaller network, or a smaller "
            "data.image_size"
        )


def _make_training_batches(
    experiment: Experiment, splits: data.Splits, last_step: int, strategy: tf.distribute.Strategy
) -> Callable[[int], tf.data.Dataset]:
    config, classes = experiment.data, len(splits.class_names)
    augment = make_augmentations(config, splits.image_shape)
    worker, workers = workers_of(strategy)

    @functools.lru_cache(maxsize=1)  # the first batch is shown, and another pipeline would take a second of the start
    def training_batches(first_step: int) -> tf.data.Dataset:
        weights = data.balanced_weights(splits.train, classes) if config.class_weights else None
        return data.make_pipeline(
            splits.train,
            config.batch_size,
            seed=experiment.seed,
            augment=augment,
            image_size=splits.image_size,
            classes=classes,
            class_weights=weights,
            first_step=first_step,
            last_step=last_step,
            worker=worker,
            workers=workers,
        )

    return training_batches


def _lengths(experiment: Experiment, steps_per_epoch: int) -> dict[str, int]:
    """Return what converts lengths of training into steps: keyword arguments of `make_schedule` and `steps_of`."""
    return {
        "steps_per_epoch": steps_per_epoch,
        "total_steps": steps_per_epoch * experiment.training.epochs,
        "batch_size": experiment.data.batch_size,
    }


def _make_optimizer(
    training: TrainingConfig, model: keras.Model, rules: Mapping[str, LayerRule], lengths: Mapping[str, int]
) -> keras.optimizers.Optimizer:
    rate, average = training.learning_rate, training.average
    given = options(training.optimizer)
    decay = given.pop("weight_decay")
    by_path = {v.path: rule for name, rule in rules.items() for v in model.get_layer(name).trainable_variables}
    return make_optimizer(
        training.optimizer.name,
        given,
        make_schedule(rate.schedule, options(rate, "schedule"), **lengths),
        weight_decay=decay,
        clip=training.clip and training.clip.model_dump(),
        rates={path: rule.rate for path, rule in by_path.items()},
        decays={path: rule.weight_decay for path, rule in by_path.items() if rule.weight_decay is not None},
        average=average and WeightAverage(average.decay, warmup=average.warmup),
    )


def _source_options(config: DataConfig) -> dict[str, Any]:
    section = getattr(config, config.source.partition(":")[0], None)
    return section.model_dump() if section else {}
