"""The screen of `kpipe results`: what is the same in all runs in one line, and a table of what is not."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from kpipe.console import Screen, counted, describe_count, describe_time, width_of
from kpipe.names import from_here, printable, shell_quoted, short_endings, shorten
from kpipe.runs.results import RUNS, STD
from kpipe.tuning.records import show_value

_FIRST = (
    "name", "run", "status", "test_accuracy", "val_accuracy", "network", "data", "parameters", "epochs", "time",
    "images/s", "precision", "seed", "commit",
)  # fmt: skip
_LAST = ("date",)
_OF_SEARCHES = (
    "name", "search", "status", "trials", "best_score", "best_values", "objective", "best_trial", "failed", "date",
)  # fmt: skip
_TEXT = {"name", "run", "search", "status", "network", "data", "precision", "commit", "date", "best_values"}
"""Columns that are aligned to the left, as those of keys are."""
_WIDTHS = 40, 24, 20  # characters of a cell with text, the widest first
_COMMIT = 7  # characters that git shows


def show_results(results: Mapping[str, Any], screen: Screen | None = None) -> None:
    """Print what `collect_results` returns. On a terminal, columns that it has no room for are named below."""
    screen = screen or Screen()
    runs, searches = results["runs"], results["searches"]
    if results["found"]:
        screen.line(_title(results), style="bold")
    if len(runs) == 1:
        for name, value in _describe_one(results).items():
            screen.prose(f"  {name}  {value}", indent=4)
    elif runs:
        columns, same = _columns_of_runs(results)
        _show_table(columns, screen)
        if same:
            screen.prose(f"The same in all: {same}.")
    if searches:
        if runs:
            screen.line("")
        screen.line("1 search" if len(searches) == 1 else f"{len(searches):,} searches", style="bold")
        _show_table(_columns_of_searches(searches), screen)
        if not results["trials"]:
            screen.line("The trials of the last one:")
            screen.line(f"  kpipe results {shell_quoted(from_here(Path(searches[-1]['path'])))}")
    for note in results["notes"]:
        screen.line(f"note: {note}")


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return the same tables in Markdown, which are never cut."""
    parts = []
    if results["runs"]:
        columns, same = _columns_of_runs(results)
        parts += [_markdown_table(columns), *([f"The same in all: {same}.\n"] if same else [])]
    if results["searches"]:
        parts.append(_markdown_table(_columns_of_searches(results["searches"])))
    return "\n".join(parts)


def _title(results: Mapping[str, Any]) -> str:
    shown, found = sum(row.get(RUNS, 1) for row in results["runs"]), results["found"]
    number = counted(found, "run") if shown == found else f"{shown:,} of {counted(found, 'run')}"
    return f"{number} in {results['folder']}"


# --- cells ----------------------------------------------------------------------------------------------------------


def _columns_of_runs(results: Mapping[str, Any]) -> tuple[dict[str, list[str]], str]:
    """Return the cells of each column by its header, the most important first, and what is the same in all runs."""
    rows, keys = results["runs"], short_endings(results["keys"])
    columns = {keys.get(name, name): [_cell(name, row) for row in rows] for name in (*_FIRST, *keys, *_LAST)}
    same = {name: cells[0] for name, cells in columns.items() if name != "run" and rows[1:] and len(set(cells)) == 1}
    text = ", ".join(f"{name} {value}" for name, value in same.items() if value and name != "date")
    return {name: cells for name, cells in columns.items() if name not in same}, text


def _describe_one(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a single run by their names, which are all of one length."""
    [row] = results["runs"]
    cells = {name: _cell(name, row) for name in (*_FIRST, *_LAST)}
    width = max(map(len, cells))
    return {f"{name:<{width}}": cell for name, cell in cells.items() if cell}


def _columns_of_searches(searches: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    columns = {name: [_cell(name, row) for row in searches] for name in _OF_SEARCHES}
    if not any(row["failed"] for row in searches):
        del columns["failed"]
    return columns


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return ""
    match name:
        case "val_accuracy" | "test_accuracy":
            std = row.get(name + STD)
            return f"{100 * value:.2f} %" if std is None else f"{100 * value:.2f} ± {100 * std:.2f} %"
        case "parameters":
            return describe_count(round(value))
        case "epochs":
            return f"{value:g}"
        case "time":
            return describe_time(value)
        case "images/s":
            return f"{value:,.0f}"
        case "best_score":
            return f"{100 * value:.2f} %" if row["objective"] == "val_accuracy" else f"{value:.4f}"
        case "best_values":
            endings = short_endings(value)
            return ", ".join(f"{endings[key]}={show_value(each)}" for key, each in value.items())
        case "trials":
            return f"{value} of {row['of']}" if row["of"] and row["of"] != value else f"{value}"
        case "run" if isinstance(value, list):
            return counted(len(value), "run")
        case "commit":
            return ", ".join(map(_short_commit, value)) if isinstance(value, list) else _short_commit(value)
        case "date":
            return value[:-3]
    return ", ".join(map(_show_entry, value)) if isinstance(value, list) else show_value(value)


def _show_entry(entry: Any) -> str:
    """Return an entry of a list; `{flip_horizontal: {}}` is its name alone."""
    match entry:
        case dict() if len(entry) == 1:
            [(name, options)] = entry.items()
            return f"{show_value(name)} {show_value(options)}" if options else show_value(name)
    return show_value(entry)


def _short_commit(commit: str) -> str:
    whole, dash, mark = commit.partition("-")
    return f"{whole[:_COMMIT]}{dash}{mark}"


# --- tables ---------------------------------------------------------------------------------------------------------


def _show_table(columns: dict[str, list[str]], screen: Screen) -> None:
    console = screen.console
    if not screen.has_width:
        table = _make_table(columns, None)
        console.width = max(console.width, width_of(table, console))
        console.print(table)
        return
    screen.fitting_table(columns, *(partial(_make_table, width=width) for width in _WIDTHS))


def _make_table(columns: Mapping[str, Sequence[str]], width: int | None) -> Table:
    """Make a table; `width`: the most characters of a cell, None: as many as it has."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in columns:
        broken = name if width is None else name.replace("_", "_\n").replace(".", ".\n").replace("/", "/\n")
        is_text = name in _TEXT or "." in name
        table.add_column(Text(broken), justify="left" if is_text else "right", no_wrap=True)
    for cells in zip(*columns.values(), strict=True):
        named = zip(columns, map(printable, cells), strict=True)
        # As Text, in which rich does not read brackets as markup.
        table.add_row(*(Text(cell if width is None else _shorten(name, cell, width)) for name, cell in named))
    return table


def _shorten(name: str, cell: str, width: int) -> str:
    """Return a cell of at most `width` characters. Of a run the beginning stays, which is its time."""
    if name in ("run", "search") and len(cell) > width and "/" not in cell:
        return f"{cell[: width - 1]}…"
    return shorten(cell, width)


def _markdown_table(columns: Mapping[str, Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    escaped = ([printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)
