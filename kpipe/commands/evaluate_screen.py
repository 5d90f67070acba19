"""The screen of `kpipe evaluate`: the numbers of the split, of its worst classes, and the most confident mistakes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from kpipe.catalog.evaluation import PROTOCOLS
from kpipe.console import Screen, counted
from kpipe.errors import some
from kpipe.names import from_here, path_shown, printable, shorten

_MOST_CLASSES, _MOST_MISTAKES = 20, 10
_NAME, _FILE = 20, 30  # characters; four columns fit into 80


def show_evaluation(result: dict[str, Any], screen: Screen | None = None) -> None:
    """Print what `evaluate` returns."""
    screen = screen or Screen()
    model, folder = Path(result["model"]), Path(result["folder"])
    rows = {
        "model": f"{result['network']}, {from_here(model)}",
        "data": f"{result['data']}, {result['split']}: {_describe_images(result)}",
        "protocol": f"{result['protocol']}: {_describe_protocol(result)}",
    }
    screen.header(f"evaluation of {model.parent.name if model.stem == 'model' else model.name}", rows, result["notes"])
    screen.console.print(_table_of_numbers(result))
    _show_classes(result["per_class"], screen)
    _show_mistakes(result, screen)
    screen.line(f"Results are in {path_shown(from_here(folder))}")


def _describe_images(result: dict[str, Any]) -> str:
    """Say that the whole split was scored, or what was left out."""
    left_out = result["left_out"]
    if not left_out:
        return f"all {counted(result['images'], 'image')}"
    return f"{counted(result['images'], 'image')}, all but {len(left_out):,} that cannot be read: {some(left_out)}"


def _describe_protocol(result: dict[str, Any]) -> str:
    scales = result.get("scales")
    return PROTOCOLS[result["protocol"]] + (f"; shorter side {', '.join(map(str, scales))}" if scales else "")


def _table_of_numbers(result: dict[str, Any]) -> Table:
    low, high = result["accuracy_interval"]
    table = Table()
    columns = {
        "images": f"{result['images']:,}",
        **{name.replace("_", " "): _number(result[name]) for name in ("loss", "cross_entropy") if name in result},
        "accuracy": _percent(result["accuracy"]),
        "95 % interval": f"{100 * low:.2f} to {100 * high:.2f} %",
        **({"top-5": _percent(result["top5"])} if "top5" in result else {}),
        "ECE": _percent(result["calibration_error"]),
    }
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*columns.values())
    return table


def _show_classes(per_class: Sequence[dict[str, Any]], screen: Screen) -> None:
    """Print the classes with the smallest F1 first; those without images come last."""
    ranked = sorted(per_class, key=lambda row: (not row["images"], row["f1"] if row["f1"] is not None else 0))
    table = Table()
    for name in ("class", "images", "precision", "recall", "F1"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in ranked[:_MOST_CLASSES]:
        numbers = (_percent(row[key]) for key in ("precision", "recall", "f1"))
        table.add_row(_plain(row["class"], _NAME), f"{row['images']:,}", *numbers)
    if (more := len(ranked) - _MOST_CLASSES) > 0:
        screen.line(f"The {_MOST_CLASSES} classes with the lowest F1; the other {more:,} are in per_class.csv:")
    screen.console.print(table)


def _show_mistakes(result: dict[str, Any], screen: Screen) -> None:
    shown, total = result["mistakes"][:_MOST_MISTAKES], result["num_mistakes"]
    if not shown:
        screen.line("No mistakes.")
        return
    screen.line(f"The most confident of {counted(total, 'mistake')}:")
    table = Table()
    for name in ("image", "true", "predicted", "probability"):
        table.add_column(name, justify="right" if name == "probability" else "left", no_wrap=True)
    folder = result["data"].removeprefix("folder:") + "/"
    for row in shown:
        names = (_plain(row[key], 12) for key in ("label", "prediction"))
        table.add_row(_plain(row["file"].removeprefix(folder), _FILE), *names, _percent(row["probability"]))
    screen.console.print(table)


def _plain(name: str, most: int) -> Text:
    """Return a name as a cell that means no more than it says."""
    return Text(shorten(printable(name), most))


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
