"""The screen of `kpipe plan`: a table of the layers, what the training needs, and the curve of the learning rate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from kpipe.console import Screen, counted, describe_count, describe_counts, describe_size, describe_time, width_of
from kpipe.errors import some

_CURVE_WIDTH, _CURVE_HEIGHT = 58, 8  # characters
_LABELS = 16  # characters beside the curve
_MARKS = {"begin": "├ ", "continue": "│ ", "join": "└ "}
_ASCII_MARKS = {"begin": "+ ", "continue": ": ", "join": "\\ "}


def show_plan(plan: dict[str, Any], screen: Screen | None = None) -> None:
    """Print what `make_plan` returns."""
    screen = screen or Screen()
    screen.line("")
    _show_layers(plan["layers"], screen)
    screen.line("")
    screen.line(f"plan of {plan['name']}", style="bold")
    for name, value in {**_describe_model(plan), **_describe_training(plan["training"], plan["data"])}.items():
        screen.prose(f"  {name:<10} {value}", indent=13)
    # The curve is drawn with block characters, which an ASCII terminal cannot show; --json has its numbers.
    if plan["training"]["learning_rate"] and _can_show_lines(screen):
        screen.line("")
        for line in _curve(plan["training"]["learning_rate"], min(_CURVE_WIDTH, screen.console.width - _LABELS)):
            screen.line(line)
        if plan["training"]["schedule"] == "plateau":
            screen.prose(
                "The curve shows plateau without reductions: the rate falls when training.monitor no longer improves."
            )


def _can_show_lines(screen: Screen) -> bool:
    return screen.console.encoding.startswith("utf")


# --- layers -------------------------------------------------------------------------------------------------


def _show_layers(layers: list[dict[str, Any]], screen: Screen) -> None:
    """Print the table of the layers, without the last columns where the screen is too narrow for them."""
    marks = _MARKS if _can_show_lines(screen) else _ASCII_MARKS
    rows = list(_rows(layers, marks))
    columns = _columns(rows, "{:,}".format)
    if width_of(_table(columns), screen.console) > screen.console.width:
        columns = _columns(rows, describe_count)
    screen.fitting_table(columns, _table)
    if any(layer["is_in_branch"] for layer in layers):
        begin, follow, join = (mark.strip() for mark in marks.values())
        screen.prose(
            f"{begin} begins a branch after the last layer without a mark or with {join}, {follow} continues it, and "
            f"{join} joins the branches."
        )


def _rows(layers: list[dict[str, Any]], marks: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the first cell of each row and its layer: the name, after a mark that shows how branches run."""
    trunk = before = {"name": None, "is_in_branch": False}
    for layer in layers:
        mark = ""
        if layer["is_in_branch"]:
            [start, *_] = layer["inputs"]
            mark = marks["continue"]
            if not (before["is_in_branch"] and start == before["name"]):
                mark = marks["begin"]
                if start != trunk["name"]:
                    yield f"after {start}:", {}
        elif before["is_in_branch"]:
            mark = marks["join"]
        yield mark + layer["name"], layer
        before = layer
        trunk = trunk if layer["is_in_branch"] else layer


def _columns(rows: list[tuple[str, dict[str, Any]]], number: Callable[[int], str]) -> dict[str, list[str]]:
    """Return the cells of each column by its name, the most important columns first."""
    layers = [layer for _, layer in rows]
    columns = {
        "layer": [name for name, _ in rows],
        "output": [_sides(layer.get("output")) for layer in layers],
        "kernel/stride": [_kernel_and_stride(layer) for layer in layers],
        "padding": [_padding(layer.get("padding")) for layer in layers],
        "groups": [str(layer.get("groups") or "") for layer in layers],
        "params": [number(layer["parameters"]) if layer.get("parameters") else "" for layer in layers],
        "mult-adds": [number(layer["macs"]) if layer.get("macs") else "" for layer in layers],
        "field": [_sides(layer["receptive_field"]) or "all" if layer else "" for layer in layers],
        "total stride": [_sides(layer.get("total_stride")) for layer in layers],
    }
    if all(groups in ("", "1") for groups in columns["groups"]):
        del columns["groups"]
    trained = [_describe_rule(layer.get("training")) for layer in layers]
    return {"layer": columns.pop("layer"), "training": trained, **columns} if any(trained) else columns


def _describe_rule(rule: dict[str, Any] | None) -> str:
    """Return how a layer is trained; empty for a layer without weights, or trained like any other."""
    if not rule:
        return ""
    words = {None: [], True: ["reused"], False: ["new"]}[rule["reused"]]
    if rule["from_step"] is None:
        return " ".join([*words, "frozen"])
    if rule["from_step"]:
        words.append(f"from step {rule['from_step'] + 1:,}")
    words += [] if rule["rate"] == 1 else [f"x {rule['rate']:g}"]
    words += [] if rule["weight_decay"] is None else [f"decay {rule['weight_decay']:g}"]
    return " ".join(words)


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in columns:
        two_lines = name.replace("/", "/\n").replace("-", "-\n").replace(" ", "\n")
        table.add_column(two_lines, justify="left" if name == "layer" else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _kernel_and_stride(layer: dict[str, Any]) -> str:
    if not layer.get("kernel"):
        return ""
    kernel = layer["kernel"]
    return f"{_sides(kernel if isinstance(kernel, list) else [kernel, kernel])}/{_sides(layer['stride'])}"


def _padding(padding: str | Sequence[Sequence[int]] | None) -> str:
    """Return `same`, `valid`, or the pixels that a padding layer adds: `3` on each side, `0+3` before and after."""
    if padding is None or isinstance(padding, str):
        return padding or ""
    rows, columns = padding
    if rows != columns:
        return f"{rows[0]}+{rows[1]}x{columns[0]}+{columns[1]}"
    return str(rows[0]) if rows[0] == rows[1] else f"{rows[0]}+{rows[1]}"


def _sides(value: int | Sequence[int] | None) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")


# --- rows below the table -----------------------------------------------------------------------------------


def _describe_model(plan: dict[str, Any]) -> dict[str, str]:
    data, frozen = plan["data"], plan["parameters"] - plan["trainable_parameters"]
    classes = counted(data["classes"], "class")
    rows = {
        "model": f"{plan['model']}, {counted(plan['parameters'], 'parameter')}"
        + (f" ({frozen:,} of them not trained)" if frozen else ""),
        **_describe_weights(plan["init_from"]),
        "image": f"{_sides(data['image'])}, {classes}, {plan['macs']:,} multiply-adds",
    }
    if data["images"]:
        rows["data"] = f"{data['source']}: {describe_counts(data['images'])}"
    elif data["missing"]:
        rows["data"] = data["missing"]
        rows["assumed"] = f"{_sides(data['image'])} images, {classes}; change it with --channels and --classes"
    return rows


def _describe_weights(init_from: dict[str, Any] | None) -> dict[str, str]:
    if not init_from:
        return {}
    new = ", ".join(init_from["new"]) or "none"
    later = " (downloaded when the training begins)" if init_from["sha256"] is None else ""
    reused = counted(len(init_from["reused"]), "layer")
    rows = {
        "weights": f"{init_from['kind']}{later}: {reused} reused; new: {new}; normalization: "
        f"{init_from['normalization']}"
    }
    if left_out := init_from["left_out"]:
        reasons = dict.fromkeys(left_out.values())
        named = {why: [name for name in left_out if left_out[name] == why] for why in reasons}
        rows["left out"] = "; ".join(f"{some(names)}, because {why}" for why, names in named.items())
    return rows


def _describe_training(training: dict[str, Any], data: dict[str, Any]) -> dict[str, str]:
    rows = {
        "training": ", ".join(
            [f"batch size {training['batch_size']}", training["optimizer"], training["loss"], *training["options"]]
        )
    }
    if data["source"]:
        length = counted(training["epochs"], "epoch")
        if training["steps"]:
            steps = counted(training["steps"], "step")
            length += f" of {counted(training['steps_per_epoch'], 'step')} = {steps}"
        rows["training"] = f"{length}, {rows['training']}"
    rows |= {"features": training["note"]} if training["note"] else {}
    rows["time"] = (
        _describe_measurement(training["time"]) if training["time"] else "add --measure to time a few training steps"
    )
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
    return rows


def _describe_measurement(measured: dict[str, Any]) -> str:
    times, stages = [], measured["stages"]
    if features := measured["features"]:
        times.append(f"{describe_time(features['seconds'])} for the features")
    for stage in stages:
        speed = float(f"{stage['images_per_second']:.3g}")
        start = f"from step {stage['from_step'] + 1:,} on " if stages[1:] else ""
        times.append(f"{start}{stage['seconds_per_step']:.3g} s a step ({speed:,.12g} images/s)")
        if stage["seconds_per_epoch"] and not stages[1:]:
            times.append(f"{describe_time(stage['seconds_per_epoch'])} an epoch")
    if measured["seconds"]:
        times.append(f"{describe_time(measured['seconds'])} for the whole training")
    steps = counted(sum(stage["measured_steps"] for stage in stages), "step")
    return (
        f"{', '.join(times)}; measured on this machine ({measured['device']}) over {steps}, without reading images and "
        "validation"
    )


def _fitting(training: dict[str, Any]) -> str:
    largest = training["largest_batch_size"]
    if largest < 1:
        return "not even one image fits"
    if largest < training["batch_size"]:
        return f"too little for this batch size, {largest:,} should fit"
    return f"batch sizes up to {largest:,} should fit"


def _curve(points: list[list[float]], width: int) -> list[str]:
    from uniplot import plot_to_string

    steps, rates = zip(*points, strict=True)
    peak = max(rates)
    lines = plot_to_string(
        [rate / peak for rate in rates],
        xs=steps,
        lines=True,
        color=False,
        width=width,
        height=_CURVE_HEIGHT,
        y_min=0,
        y_max=1,
        title=f"learning rate over the steps, in units of its peak of {peak:.4g}",
    )
    return [line.rstrip() for line in lines.splitlines()]
