"""The screen of `kpipe bench`: a table of the three measurements, what else was measured, and what limits the speed."""

from typing import Any

from rich import box
from rich.table import Table

from kpipe.console import Screen, counted, describe_count, describe_size

_ROWS = {"input": "input alone", "step": "step alone", "together": "both together"}


def show_bench(measured: dict[str, Any], screen: Screen | None = None) -> None:
    """Print what `bench` returns."""
    screen = screen or Screen()
    screen.line("")
    screen.prose(
        f"bench of {measured['name']} on this machine: {measured['device']}, {measured['precision']}, batch size "
        f"{measured['batch_size']}"
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for column in ("images/s", "ms a step", "waiting", "steps measured"):
        table.add_column(column, justify="right")
    for name, label in _ROWS.items():
        row = measured[name]
        waiting = f"{100 * row['waiting']:.0f} %" if "waiting" in row else ""
        speed, milliseconds = _three_digits(row["images_per_second"]), _three_digits(1000 * row["seconds_per_step"])
        table.add_row(label, speed, milliseconds, waiting, f"{row['steps']:,}")
    screen.console.print(table)
    screen.line("")
    for name, value in _describe(measured).items():
        screen.prose(f"  {name:<10} {value}", indent=13)
    for note in measured["notes"]:
        screen.prose(f"  note: {note}", indent=8)
    screen.prose(measured["advice"])


def _describe(measured: dict[str, Any]) -> dict[str, str]:
    memory, flops = measured["memory"], measured["flops"]
    peaks = [
        f"{describe_size(memory[place])} {where}"
        for place, where in (("process", "of this process"), ("gpu", "of the GPU"))
        if memory[place] is not None
    ]
    side, height, width, channels = flops["matrix_side"], *measured["image"]
    per_step, per_second, matrix_rate = (
        f"{describe_count(round(flops[key]))}FLOP" for key in ("per_step", "per_second", "matrix_rate")
    )
    rows = {
        "model": f"{measured['model']}, images of {height}x{width}x{channels}",
        "data": f"{measured['source']}, {measured['images']}",
        "memory": f"at most {' and '.join(peaks)}" if peaks else "",
        "computing": f"{per_step} a step, {per_second}/s alone: {100 * flops['fraction']:.0f} % of the {matrix_rate}/s "
        f"of a product of two {side}x{side} matrices",
        "measured": f"medians of {counted(len(measured['together']['turns']), 'round')}; waiting is the time from "
        "asking for a batch to getting it, as a fraction of the whole",
    }
    return {name: value for name, value in rows.items() if value}


def _three_digits(number: float) -> str:
    return f"{float(f'{number:.3g}'):,.12g}"
