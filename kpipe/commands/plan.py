"""`kpipe plan`: what is known about a training before it begins. Nothing is trained or written."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np
from rich import box
from rich.table import Table

from kpipe.assembly import Prepared, build, prepare
from kpipe.catalog.networks import MODELS
from kpipe.config.schema import Experiment, options
from kpipe.console import Screen, describe_size
from kpipe.errors import ConfigError, DataError, OutOfMemory
from kpipe.models.building import discard_variables
from kpipe.models.geometry import LayerGeometry, count_macs, estimate_training_memory, fitting_batch_size, measure
from kpipe.names import printable
from kpipe.normalization import make_normalization
from kpipe.runs.machine import resolve_auto
from kpipe.training.device import free_memory
from kpipe.training.distribution import make_strategy
from kpipe.training.variables import count_values, estimate_disk, plan_optimizer_variables

_ENOUGH_STEPS = 10**9  # in an epoch of unknown length, so that any warm-up fits
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
    experiment = resolve_auto(experiment)
    assumed = assumed or Assumed()
    try:
        prepared, missing = _prepare(experiment) if with_data else (None, None)
        if prepared and assumed != Assumed():
            raise ConfigError(
                "--image-size, --channels, --classes: expected only with the name of a network or missing data, but "
                f"{printable(experiment.data.source)} is there. Override data.image_size and data.channels instead."
            )
        if with_data and assumed.image_size is None:
            assumed = replace(assumed, image_size=experiment.data.image_size)
        network = prepared.network if prepared else _assume_network(experiment, assumed)
        model = prepared.model if prepared else _build(experiment, network)
        rows = measure(model)
        return {
            "name": experiment.name,
            "model": experiment.model.name,
            "experiment": experiment.identity() if with_data else None,
            "parameters": model.count_params(),
            "trainable_parameters": count_values(model.trainable_variables),
            "macs": count_macs(rows),
            "layers": [_row(row) for row in rows],
            "data": {
                "source": experiment.data.source if with_data else None,
                "missing": missing,
                "image": list(network["input_shape"]),
                "classes": network["classes"],
                "images": prepared.splits.counts if prepared else None,
            },
            "training": _describe_training(experiment, model, prepared.steps_per_epoch if prepared else None),
        }
    finally:
        discard_variables()


def _prepare(experiment: Experiment) -> tuple[Prepared | None, str | None]:
    """Build with the data that are there; else return None, and why they are not."""
    try:
        return prepare(experiment, make_strategy(), only_shapes=True), None
    except (DataError, OutOfMemory) as error:
        return None, str(error)


def _build(experiment: Experiment, network: dict[str, Any]) -> keras.Model:
    return build(experiment, network, _ENOUGH_STEPS, make_strategy(), only_shapes=True)


def _assume_network(experiment: Experiment, assumed: Assumed) -> dict[str, Any]:
    """Return keyword arguments of `build_model` for images that are not there."""
    parameters = inspect.signature(MODELS[experiment.model.name].load()).parameters
    height, width, depth = parameters["input_shape"].default
    classes = parameters["classes"].default
    has_class_for_each_point = classes == height * width
    if size := assumed.image_size:  # a text stays one pixel wide
        height, width = size, size if height == width else width
    shape = (height, width, assumed.channels or experiment.data.channels or depth)
    return {
        "name": experiment.model.name,
        "options": options(experiment.model),
        "input_shape": shape,
        "classes": assumed.classes or (height * width if has_class_for_each_point else classes),
        "normalization": make_normalization(experiment.data, shape, None),
    }


def _row(row: LayerGeometry) -> dict[str, Any]:
    pairs = {key: _one_if_equal(getattr(row, key)) for key in ("receptive_field", "stride")}
    return asdict(row) | pairs


def _one_if_equal(pair: tuple[int, int] | None) -> int | list[int] | None:
    return pair and (pair[0] if pair[0] == pair[1] else list(pair))


def _describe_training(experiment: Experiment, model: keras.Model, steps_per_epoch: int | None) -> dict[str, Any]:
    training = experiment.training
    batch_size, kept = experiment.data.batch_size, plan_optimizer_variables(model)
    memory = estimate_training_memory(model, batch_size, count_values(kept))
    free = free_memory()
    checkpoint = training.checkpoint
    steps = steps_per_epoch * training.epochs if steps_per_epoch else None
    return {
        "optimizer": training.optimizer.name,
        "loss": experiment.loss[0],
        "precision": experiment.chosen.precision,
        "batch_size": batch_size,
        "epochs": training.epochs,
        "steps_per_epoch": steps_per_epoch,
        "steps": steps,
        "memory": {**asdict(memory), "total": memory.total},
        "free_memory": free,
        "largest_batch_size": None if free is None else fitting_batch_size(memory, batch_size, free),
        "disk": asdict(estimate_disk(model, kept, checkpoint.keep, keep_last=checkpoint.keep_last)),
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
