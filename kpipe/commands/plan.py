"""`kpipe plan`: what is known about a training before it begins. Nothing is trained or written."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from kpipe.assembly import Prepared, prepare, resolve
from kpipe.catalog.networks import MODELS
from kpipe.config.schema import Experiment
from kpipe.console import Screen, describe_size
from kpipe.data.arrays import ArraySplit
from kpipe.data.splits import Splits
from kpipe.errors import ConfigError, DataError
from kpipe.models.geometry import LayerGeometry, count_macs, estimate_training_memory, fitting_batch_size, measure
from kpipe.runs.disk import estimate_disk
from kpipe.training.device import free_memory
from kpipe.training.distribution import make_strategy
from kpipe.training.variables import count_values

_CURVE_POINTS = 60
_CURVE_WIDTH, _CURVE_HEIGHT = 58, 8  # characters


@dataclass(frozen=True)
class Assumed:
    """Assumptions about missing images; None: the default of the network's builder."""

    image_size: int | None = None
    channels: int | None = None
    classes: int | None = None


def make_plan(experiment: Experiment, assumed: Assumed | None = None, *, with_data: bool = True) -> dict[str, Any]:
    """Return the plan of an experiment, as JSON types.

    Args:
        experiment: what would be trained.
        assumed: assumptions about the images, where they are missing.
        with_data: whether to look for the data at all.

    Returns:
        `parameters`, `trainable_parameters`, `macs` for one image, `layers` from input to output, `data`, `training`
        (memory and disk in bytes; null where the data must be known; `largest_batch_size` should fit the memory that
        is free now), `experiment` (resolved; null without data), `name` and `model`.

    Raises:
        ConfigError: the network cannot be built, or something is assumed about data that is there.
    """
    missing, splits = None, None
    if with_data:
        try:
            prepared = prepare(experiment, make_strategy(), statistics=False)
            splits = prepared.splits
        except DataError as error:
            missing = str(error)
        if splits and assumed not in (None, Assumed()):
            raise ConfigError(
                "--image-size, --channels, --classes: expected only with the name of a network or missing data, but "
                f"{experiment.data.source} is there. Override data.image_size and data.channels instead."
            )
    if splits is None:
        assumed = assumed or Assumed()
        if with_data and assumed.image_size is None:
            assumed = replace(assumed, image_size=experiment.data.image_size)
        prepared = prepare(experiment, make_strategy(), statistics=False, splits=_stand_in(experiment, assumed))
    model = prepared.model
    rows = measure(model)
    return {
        "name": experiment.name,
        "model": experiment.model.name,
        "experiment": experiment.identity() if with_data else None,
        "parameters": model.count_params(),
        "trainable_parameters": sum(math.prod(variable.shape) for variable in model.trainable_variables),
        "macs": count_macs(rows),
        "layers": [_row(row) for row in rows],
        "data": _describe_data(experiment, prepared, splits, missing),
        "training": _describe_training(experiment, prepared, splits),
    }


def _stand_in(experiment: Experiment, assumed: Assumed) -> Splits:
    """Return one batch of zeros in the shape that the images would have."""
    parameters = inspect.signature(MODELS[experiment.model.name].load()).parameters
    height, width, depth = parameters["input_shape"].default
    classes = parameters["classes"].default
    has_class_for_each_point = classes == height * width
    if size := assumed.image_size:  # a text stays one pixel wide
        height, width = size, size if height == width else width
    shape = (height, width, assumed.channels or experiment.data.channels or depth)
    classes = assumed.classes or (height * width if has_class_for_each_point else classes)
    batch = experiment.data.batch_size
    split = ArraySplit(np.zeros((batch, *shape), np.uint8), np.zeros(batch, np.int32))
    return Splits(split, split, None, tuple(map(str, range(classes))))


def _row(row: LayerGeometry) -> dict[str, Any]:
    pairs = {key: _one_if_equal(getattr(row, key)) for key in ("receptive_field", "stride")}
    return asdict(row) | pairs


def _one_if_equal(pair: tuple[int, int] | None) -> int | list[int] | None:
    return pair and (pair[0] if pair[0] == pair[1] else list(pair))


def _describe_data(experiment, prepared: Prepared, splits: Splits | None, missing: str | None) -> dict[str, Any]:
    shown = prepared.splits
    return {
        "source": experiment.data.source if splits or missing else None,
        "missing": missing,
        "image": list(shown.image_shape),
        "classes": len(shown.class_names),
        "images": splits.counts if splits else None,
    }


def _describe_training(experiment: Experiment, prepared: Prepared, splits: Splits | None) -> dict[str, Any]:
    model, training = prepared.model, experiment.training
    model.optimizer.build(model.trainable_variables)
    batch_size = experiment.data.batch_size
    memory = estimate_training_memory(model, batch_size, count_values(model.optimizer.variables))
    free = free_memory()
    checkpoint = training.checkpoint
    steps = prepared.steps_per_epoch * training.epochs if splits else None
    return {
        "optimizer": training.optimizer.name,
        "loss": training.loss.name if training.loss else experiment.model.default_loss,
        "precision": resolve(experiment).chosen.precision,
        "batch_size": batch_size,
        "epochs": training.epochs,
        "steps_per_epoch": prepared.steps_per_epoch if splits else None,
        "steps": steps,
        "memory": {**asdict(memory), "total": memory.total},
        "free_memory": free,
        "largest_batch_size": None if free is None else fitting_batch_size(memory, batch_size, free),
        "disk": asdict(estimate_disk(model, checkpoint.keep, keep_last=checkpoint.keep_last)),
        "learning_rate": _learning_rate(model.optimizer, steps) if steps else None,
    }


def _learning_rate(optimizer, steps: int) -> list[list[float]]:
    """Return [step, rate] at equal distances over the training, from the first step to the last."""
    steps_shown = sorted({round(step) for step in np.linspace(0, steps - 1, _CURVE_POINTS)})
    curve = []
    for step in steps_shown:
        optimizer.iterations.assign(step)
        curve.append([step, float(optimizer.learning_rate)])
    return curve


# --- on the screen ------------------------------------------------------------------------------------------


def show_plan(plan: dict[str, Any], screen: Screen | None = None) -> None:
    """Print what `make_plan` returns."""
    screen = screen or Screen()
    data, training = plan["data"], plan["training"]
    frozen = plan["parameters"] - plan["trainable_parameters"]
    rows = {
        "model": f"{plan['model']}, {plan['parameters']:,} parameters"
        + (f" ({frozen:,} of them not trained)" if frozen else ""),
        "image": f"{_sides(data['image'])}, {data['classes']:,} classes, {plan['macs']:,} multiply-adds",
    }
    if data["images"]:
        rows["data"] = f"{data['source']}: " + ", ".join(
            f"{count:,} {split}" for split, count in data["images"].items()
        )
    elif data["missing"]:
        rows["data"] = data["missing"]
        rows["assumed"] = (
            f"{_sides(data['image'])} images, {data['classes']:,} classes; change it with --channels and --classes"
        )
    rows["training"] = f"batch size {training['batch_size']}, {training['optimizer']}, {training['loss']}"
    if data["source"]:
        length = f"{training['epochs']} epochs"
        if training["steps"]:
            length += f" of {training['steps_per_epoch']:,} steps = {training['steps']:,} steps"
        rows["training"] = f"{length}, {rows['training']}"
    memory, disk = training["memory"], training["disk"]
    kinds = ", ".join(
        f"{name} {describe_size(memory[name])}" for name in ("weights", "gradients", "optimizer", "activations")
    )
    rows["memory"] = f"about {describe_size(memory['total'])} in {training['precision']}: {kinds}"
    if training["free_memory"] is not None:
        rows["free"] = f"{describe_size(training['free_memory'])} of memory, minus a fifth: {_fitting(training)}"
    rows["disk"] = (
        f"at most {describe_size(disk['most'])}, a checkpoint has {describe_size(disk['checkpoint'])}; "
        f"{describe_size(disk['finished'])} when finished"
    )
    screen.line("")
    screen.console.print(_layer_table(plan["layers"]))
    screen.header(f"plan of {plan['name']}", rows)
    # The curve is drawn with block characters, which an ASCII terminal cannot show; --json has its numbers.
    if training["learning_rate"] and screen.console.encoding.startswith("utf"):
        screen.line("")
        for line in _curve(training["learning_rate"]):
            screen.line(line)


def _fitting(training: dict[str, Any]) -> str:
    largest = training["largest_batch_size"]
    if largest < 1:
        return "not even one image fits"
    if largest < training["batch_size"]:
        return f"too little for this batch size, {largest:,} should fit"
    return f"batch sizes up to {largest:,} should fit"


def _layer_table(layers: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for column in ("output", "parameters", "multiply-\nadds", "field", "stride"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in layers:
        field, stride = (_sides(layer[key]) for key in ("receptive_field", "stride"))
        numbers = (f"{layer[key]:,}" if layer[key] else "" for key in ("parameters", "macs"))
        table.add_row(layer["name"], _sides(layer["output"]), *numbers, field or "all", stride)
    return table


def _sides(value: int | Sequence[int] | None) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")


def _curve(points: list[list[float]]) -> list[str]:
    from uniplot import plot_to_string

    steps, rates = zip(*points, strict=True)
    peak = max(rates)
    lines = plot_to_string(
        [rate / peak for rate in rates],
        xs=steps,
        lines=True,
        color=False,
        width=_CURVE_WIDTH,
        height=_CURVE_HEIGHT,
        y_min=0,
        y_max=1,
        title=f"learning rate over the steps, in units of its peak of {peak:g}",
    )
    return [line.rstrip() for line in lines.splitlines()]
