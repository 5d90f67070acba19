"""`kpipe plan`: what is known about a training before it begins. Nothing is written; `plan_screen` prints it."""

import inspect
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.assembly import Built, Prepared, build, load_weights, make_trainer, prepare
from kpipe.catalog.data import parse_source
from kpipe.catalog.networks import find_network
from kpipe.config.schema import Experiment
from kpipe.console import describe_size
from kpipe.errors import ConfigError, DataError, OutOfMemory
from kpipe.frozen_features import FeaturePlan, plan_features
from kpipe.memory import MemoryGuard
from kpipe.models.building import discard_variables
from kpipe.models.geometry import LayerGeometry, count_macs, estimate_training_memory, fitting_batch_size, measure
from kpipe.models.pretrained import Pretrained
from kpipe.names import printable
from kpipe.normalization import describe_normalization, make_normalization, resolve_normalize
from kpipe.overview import describe_options
from kpipe.runs.machine import resolve_auto
from kpipe.training.device import describe_device, free_memory, seed_everything
from kpipe.training.distribution import make_strategy
from kpipe.training.schedules import rate_of_step
from kpipe.training.timing import time_features, time_steps
from kpipe.training.trainer import Trainer
from kpipe.training.variables import count_kept, count_values, estimate_disk, plan_optimizer_variables

_ENOUGH_STEPS = 10**9  # in an epoch of unknown length, so that any warm-up fits
_CURVE_POINTS = 60
_ASSUMED_SHAPE, _ASSUMED_CLASSES = (224, 224, 3), 1000  # for a network of the user's own that has no defaults


@dataclass(frozen=True)
class Assumed:
    """Assumptions about missing images; None: the default of the network's builder."""

    image_size: int | None = None
    channels: int | None = None
    classes: int | None = None


def make_plan(
    experiment: Experiment, assumed: Assumed | None = None, *, with_data: bool = True, measure_time: bool = False
) -> dict[str, Any]:
    """Return the plan of an experiment, as JSON types.

    Args:
        experiment: what would be trained.
        assumed: assumptions about the images, where they are missing.
        with_data: whether to look for the data at all.
        measure_time: whether to train a few steps on made-up images, to know how long the training takes.

    Returns:
        `parameters`, `trainable_parameters`, `macs` for one image, `layers` from input to output, `data`, `training`
        (memory and disk in bytes, times in seconds; null where the data must be known; `largest_batch_size` should fit
        the memory that is free now; `features` are computed once, see `plan_features`; `time` is null unless it is
        measured, and has one of `stages` for each step from which other layers are trained than before), `experiment`
        (resolved; null without data), `name`, `model`, and `init_from`: what is reused of it, null without it. Its
        `sha256` is null where the weights are not downloaded yet.

    Raises:
        ConfigError: the network cannot be built, the weights cannot be read or do not fit, or something is assumed
            about data that is there.
        DataError: a source of the user's own has a mistake.
        OutOfMemory: the time is to be measured, and the training needs more memory than is free.
    """
    experiment = resolve_auto(experiment)
    assumed = assumed or Assumed()
    weights = load_weights(experiment, only_shapes=True)
    try:
        prepared, missing = _prepare(experiment, weights) if with_data else (None, None)
        if prepared and assumed != Assumed():
            raise ConfigError(
                "--image-size, --channels, --classes: expected only with the name of a network or missing data, but "
                f"{printable(experiment.data.source)} is there. Override data.image_size and data.channels instead."
            )
        if with_data and assumed.image_size is None:
            assumed = replace(assumed, image_size=experiment.data.image_size)
        network = prepared.network if prepared else _assume_network(experiment, assumed, weights)
        built = prepared or _build(experiment, network, weights)
        model = built.model
        rows = measure(model)
        plan = {
            "name": experiment.name,
            "model": experiment.model.name,
            "experiment": experiment.identity() if with_data else None,
            "parameters": model.count_params(),
            "trainable_parameters": count_values(model.trainable_variables),
            "macs": count_macs(rows),
            "layers": [_row(row, built) for row in rows],
            "init_from": built.reuse
            and {
                "source": experiment.model.init_from,
                **asdict(built.reuse),
                "normalization": describe_normalization(network["normalization"]),
            },
            "data": {
                "source": experiment.data.source if with_data else None,
                "missing": missing,
                "image": list(network["input_shape"]),
                "classes": network["classes"],
                "images": prepared.splits.counts if prepared else None,
            },
            "training": _describe_training(experiment, model, prepared.steps_per_epoch if prepared else None),
        }
        planned, note = plan_features(experiment, prepared, 0) if prepared else (None, None)
        plan["training"]["features"] = planned and {"number": planned.number, "size": planned.size}
        plan["training"]["note"] = note
    finally:
        discard_variables()
    if measure_time:
        plan["training"]["time"] = _measure_time(experiment, network, weights, plan["training"], prepared)
    return plan


def _prepare(experiment: Experiment, weights: Pretrained | None) -> tuple[Prepared | None, str | None]:
    """Build with the data that are there; else return None, and why they are not.

    Raises:
        DataError: a source of the user's own has a mistake. Its data are not missing.
    """
    try:
        return prepare(experiment, make_strategy(), only_shapes=True, weights=weights), None
    except (DataError, OutOfMemory) as error:
        if isinstance(error, DataError) and parse_source(experiment.data.source)[0].is_code:
            raise
        return None, str(error)


def _build(experiment: Experiment, network: dict[str, Any], weights: Pretrained | None) -> Built:
    return build(experiment, network, _ENOUGH_STEPS, make_strategy(), only_shapes=True, weights=weights)


def _assume_network(experiment: Experiment, assumed: Assumed, weights: Pretrained | None) -> dict[str, Any]:
    """Return keyword arguments of `build_model` for images that are not there."""
    parameters = inspect.signature(find_network(experiment.model.name).load()).parameters
    shape, classes = (parameters[name].default for name in ("input_shape", "classes"))
    height, width, depth = _ASSUMED_SHAPE if shape is inspect.Parameter.empty else shape
    classes = _ASSUMED_CLASSES if classes is inspect.Parameter.empty else classes
    has_class_for_each_point = classes == height * width
    if size := assumed.image_size:  # a text stays one pixel wide
        height, width = size, size if height == width else width
    shape = (height, width, assumed.channels or experiment.data.channels or depth)
    return {
        "name": experiment.model.name,
        "options": experiment.network_options,
        "input_shape": shape,
        "classes": assumed.classes or (height * width if has_class_for_each_point else classes),
        "normalization": make_normalization(resolve_normalize(experiment.data, weights), shape, None),
    }


def _row(row: LayerGeometry, built: Built) -> dict[str, Any]:
    pairs = {key: _one_if_equal(getattr(row, key)) for key in ("kernel", "stride", "receptive_field", "total_stride")}
    return asdict(row) | pairs | {"training": _rule_of(row.name, built)}


def _rule_of(layer: str, built: Built) -> dict[str, Any] | None:
    """Return how a layer is trained; None: it has no weights. `from_step` is null where it keeps its weights."""
    rule = built.layer_rules.get(layer)
    return rule and {
        "reused": built.reuse and layer in built.reuse.reused,
        "rate": rule.rate,
        "weight_decay": rule.weight_decay,
        "from_step": None if rule.thaws == math.inf else int(rule.thaws),
    }


def _one_if_equal(pair: tuple[int, int] | None) -> int | list[int] | None:
    return pair and (pair[0] if pair[0] == pair[1] else list(pair))


def _describe_training(experiment: Experiment, model: keras.Model, steps_per_epoch: int | None) -> dict[str, Any]:
    training = experiment.training
    batch_size, pieces, kept = experiment.data.batch_size, training.accumulate, plan_optimizer_variables(model)
    memory = estimate_training_memory(model, batch_size // pieces, count_kept(model, kept))
    free = free_memory()
    checkpoint = training.checkpoint
    steps = steps_per_epoch * training.epochs if steps_per_epoch else None
    return {
        "optimizer": training.optimizer.name,
        "options": describe_options(training),
        "loss": experiment.loss[0],
        "precision": experiment.chosen.precision,
        "batch_size": batch_size,
        "epochs": training.epochs,
        "steps_per_epoch": steps_per_epoch,
        "steps": steps,
        "memory": {**asdict(memory), "total": memory.total},
        "free_memory": free,
        "largest_batch_size": None if free is None else pieces * fitting_batch_size(memory, batch_size // pieces, free),
        "disk": asdict(estimate_disk(model, kept, checkpoint.keep, keep_last=checkpoint.keep_last)),
        "schedule": training.learning_rate.schedule,
        "learning_rate": _learning_rate(model.optimizer, steps) if steps else None,
        "time": None,
    }


def _learning_rate(optimizer: keras.optimizers.Optimizer, steps: int) -> list[list[float]]:
    """Return [step, rate] at equal distances over the training: the rate of step 1, the first, to that of the last."""
    steps_shown = sorted({round(step) for step in np.linspace(1, steps, _CURVE_POINTS)})
    return [[step, float(rate_of_step(optimizer, step))] for step in steps_shown]


def _measure_time(
    experiment: Experiment,
    network: dict[str, Any],
    weights: Pretrained | None,
    training: dict[str, Any],
    prepared: Prepared | None,
) -> dict[str, Any]:
    """Train a few steps; return what they say about the whole training, which `training` describes.

    `stages` has one entry for each step from which other layers are trained than before.
    """
    batch_size, free, need = training["batch_size"], training["free_memory"], training["memory"]["total"]
    if free is not None and need > free:
        raise OutOfMemory(
            f"--measure: expected a training step for which {describe_size(free)} of free memory are enough, got one "
            f"that needs about {describe_size(need)}. Take a smaller data.batch_size, or leave out --measure"
        )
    with MemoryGuard(Path(), batch_size, experiment.training.accumulate) as memory:
        seed_everything(experiment.seed, deterministic=experiment.chosen.deterministic)
        steps_per_epoch = training["steps_per_epoch"]
        built = build(experiment, network, steps_per_epoch or _ENOUGH_STEPS, make_strategy(), weights=weights)
        memory.watch(built.model)
        trainer = make_trainer(experiment.training, built.model, built.layer_rules, xla=experiment.chosen.xla)
        planned = None
        if prepared:
            prepared = replace(prepared, model=built.model, layer_rules=built.layer_rules)
            planned, _ = plan_features(experiment, prepared, 0)
        stages = _time_stages(trainer, built, planned, batch_size, network["classes"], steps_per_epoch)
        of_features = planned and time_features(planned.make_extractor(built.model), batch_size).seconds_per_step
    seconds = None
    if training["steps"]:
        ends = [stage["from_step"] for stage in stages[1:]] + [training["steps"]]
        seconds = sum(
            (end - stage["from_step"]) * stage["seconds_per_step"] for stage, end in zip(stages, ends, strict=True)
        )
        seconds += planned.number / batch_size * of_features if planned else 0
        seconds = min(seconds, 60 * (experiment.training.max_minutes or math.inf))
    return {
        "device": describe_device(),
        "features": planned and {"images": planned.number, "seconds": planned.number / batch_size * of_features},
        "stages": stages,
        "seconds": seconds,
    }


def _time_stages(
    trainer: Trainer,
    built: Built,
    planned: FeaturePlan | None,
    batch_size: int,
    classes: int,
    steps_per_epoch: int | None,
) -> list[dict[str, Any]]:
    """Time a step of each stage, from the first step on and from each later one at which layers thaw."""
    stages = []
    for start in sorted({0, *(int(rule.thaws) for rule in built.layer_rules.values() if rule.thaws < math.inf)}):
        trainer.freeze(start)
        head = planned.make_head(built.model) if planned and start < planned.until else None
        measured = time_steps(trainer, batch_size, classes, head=head)
        seconds = measured.seconds_per_step
        stages.append(
            {
                "from_step": start,
                "measured_steps": measured.steps,
                "seconds_per_step": seconds,
                "images_per_second": batch_size / seconds,
                "seconds_per_epoch": steps_per_epoch and seconds * steps_per_epoch,
            }
        )
    return stages
