"""Tables of trials, the best first, that fit the screen."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kpipe.console import width_of
from kpipe.names import printable
from kpipe.tuning.records import Group, Record, rank, show_value

_SHOWN, _SHOWN_FAILED = 10, 5
_WIDTHS = 40, 24, 14  # characters of the column that says why a trial has failed, the widest first
_LONGEST_REASON = 60


@dataclass(frozen=True)
class _Row:
    before: Sequence[str | Text]
    values: Mapping[str, Any]
    """By dotted key."""
    after: Sequence[str] = ()


def trials_table(records: Iterable[Record], objective: str, names: Mapping[str, str], console: Console) -> Table:
    """Make the table of the best trials, and below them the last ones that have failed.

    Args:
        records: those of the trials.
        objective: val_accuracy or val_loss.
        names: the keys of the space, and what they are called here.
        console: where it is printed.
    """
    records = list(records)
    failed = [record for record in records if record.status == "failed"][-_SHOWN_FAILED:]
    shown = [(f"{place}", each, f"{each.score:.4f}") for place, each in enumerate(rank(records, objective)[:_SHOWN], 1)]
    shown += [("", each, Text(f"failed: {_short_reason(each)}", justify="left")) for each in failed]
    rows = [
        _Row((place, f"{record.number}", result), record.values, (f"{record.epochs}", f"{record.seconds:.1f}"))
        for place, record, result in shown
    ]
    return _fit(console, ("rank", "trial", objective), names, ("epochs", "s"), rows)


def groups_table(groups: Sequence[Group], objective: str, names: Mapping[str, str], console: Console) -> Table:
    """Make the table of the best values over several seeds; see `trials_table`."""
    rows = [
        _Row((f"{place}", f"{group.mean:.4f}", f"{group.std:.4f}", f"{len(group.scores)}"), group.values)
        for place, group in enumerate(groups[:_SHOWN], 1)
    ]
    return _fit(console, ("rank", f"mean {objective}", "std", "trainings"), names, (), rows)


def first_sentence(message: str) -> str:
    """Return the beginning of a message that says why a trial has failed."""
    return message.splitlines()[0].split("; ")[0].split(". ")[0].removesuffix(".")


def _short_reason(record: Record) -> str:
    return textwrap.shorten(printable(first_sentence(record.message)), _LONGEST_REASON, placeholder=" …")


def _fit(
    console: Console, before: Sequence[str], names: Mapping[str, str], after: Sequence[str], rows: Sequence[_Row]
) -> Table:
    """Make a table with a column for each key, or where the screen is too narrow for that, one for all keys."""
    shown = [{key: show_value(value) for key, value in row.values.items() if key in names} for row in rows]
    values = [[each.get(key, "") for key in names] for each in shown]
    for width in _WIDTHS:
        table = _make_table(before, names.values(), after, rows, values, width=width)
        if width_of(table, console) <= console.width:
            return table
    values = [[", ".join(f"{names[key]}={value}" for key, value in each.items())] for each in shown]
    return _make_table(before, ["values"], after, rows, values, width=_WIDTHS[-1])


def _make_table(
    before: Sequence[str],
    keys: Iterable[str],
    after: Sequence[str],
    rows: Sequence[_Row],
    values: Sequence[Sequence[str]],
    *,
    width: int,
) -> Table:
    """Make a table; `width`: the most characters of a column before the keys."""
    table = Table(show_edge=False, box=None, header_style="bold")
    for column in before:
        table.add_column(column, justify="right", max_width=max(width, len(column)))
    for column in keys:
        table.add_column(column, overflow="fold")
    for column in after:
        table.add_column(column, justify="right", no_wrap=True)
    for row, cells in zip(rows, values, strict=True):
        # As Text, in which rich does not read brackets as markup.
        table.add_row(*row.before, *map(Text, cells), *row.after)
    return table
