"""`kpipe results`: all runs of a folder in one table, and its searches. TensorFlow is not imported.

Runs differ in a few keys of their config.yaml, and those become columns. Repeated seeds become one row, on demand.
"""

import csv
import io
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kpipe.errors import ConfigError, EnvironmentFault, nearest_name, some
from kpipe.files import expand_path, finite_or_null, read_json
from kpipe.names import from_here, in_quotes, path_shown, short_endings
from kpipe.runs.directory import logs_folder
from kpipe.runs.results import COLUMNS, RUNS, STD, RunRecord, find_date, is_run, read_run
from kpipe.tuning.directory import CONFIG, SUMMARY, is_running, is_search, searches_folder
from kpipe.tuning.records import Record, parse_run, rank, read_records, show_value, to_scalar

SEARCH_COLUMNS = (
    "name", "search", "status", "trials", "of", "failed", "objective", "best_score", "best_trial", "best_values",
    "date", "path",
)  # fmt: skip
Row = dict[str, Any]
"""Values by column, and by dotted key of config.yaml."""

_LEVELS = 2  # from the folder of all runs over those of the experiments down to the runs
_IN_COLUMNS = {
    "name", "seed", "model.name", "data.source", "training.precision", "chosen.precision",
}  # fmt: skip
"""Keys of config.yaml that are columns already."""
_WITHOUT_EFFECT = re.compile(r"logs|logging\b.*|training\.(log_every|checkpoint|when_stuck|profile)\b.*")
"""Keys of config.yaml that say what is written and when, and change no result."""
_ACCURACIES = ("val_accuracy", "test_accuracy")
_OF_GROUPS = (RUNS, *(name + STD for name in _ACCURACIES))
_AVERAGED = (*_ACCURACIES, "parameters", "epochs", "time", "images/s")
_FILTER = re.compile(r"\s*([^=<>!]+?)\s*(!=|>=|<=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_FRACTION = "a fraction of 1 or a percentage such as 97%"
_UNITS = {"time": "a number of seconds", **dict.fromkeys(_ACCURACIES, _FRACTION)}
_COMPARISONS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
_EPOCHS = "training.epochs"
_ABSENT = object()


def collect_results(
    folder: str | None = None,
    *,
    sort: str | None = None,
    filters: Sequence[str] = (),
    grouped: bool = False,
    trials: bool = False,
) -> dict[str, Any]:
    """Return what `kpipe results --json` prints.

    Args:
        folder: the folder of all runs, that of an experiment, a run, or a search; None: $KPIPE_LOGS, else
            tensorboard_logs.
        sort: the column to sort by, with a minus in front for the largest first; None: the newest last.
        filters: `column=value` each, with `=`, `!=`, `<`, `>`, `<=` or `>=`. All of them must hold.
        grouped: make one row of finished runs that differ only in their seed.
        trials: take the trials of searches for runs as well.

    Returns:
        `folder`; `found`, the number of runs before the filters; `keys`, the dotted keys of config.yaml in which the
        runs differ; `columns`, which are `COLUMNS` and these keys, and for groups the number of runs and standard
        deviations; `runs`, the values by column; `trials`, whether trials are among them; `searches`, the values by
        `SEARCH_COLUMNS`, of those for which the filters hold; `notes`, which say what is damaged, and which values
        there are where no run has that of a filter.

    Raises:
        ConfigError: there is no such folder, no run in it, no such column, or a filter cannot hold.
        EnvironmentFault: the folder cannot be read.
    """
    path = logs_folder(None) if folder is None else expand_path(folder, "FOLDER")
    runs, searches = _find(path)
    opened = searches if trials or is_search(path) else []
    records = [*map(read_run, runs), *(record for search in opened for record in _read_trials(search))]
    notes = [f"{path_shown(each.columns['path'])}: {each.damage}" for each in records if each.damage]
    rows = [{**each.config, **each.columns} for each in records]
    known = dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)])
    conditions = [_parse_filter(text, rows, known) for text in filters]
    is_of_both = all(each.column in SEARCH_COLUMNS for each in conditions)
    found_searches = list(map(_read_search, searches)) if is_of_both else []
    notes += _describe_unmatched(conditions, [*rows, *found_searches])
    rows = _arrange([row for row in rows if _holds(conditions, row)], sort, known, grouped)
    keys = _find_differing_keys(rows)
    columns = [*_list_columns(grouped), *keys]
    results = {
        "folder": path_shown(from_here(path)),
        "found": len(records),
        "columns": columns,
        "keys": keys,
        "runs": [{name: _look_up(row, name, None) for name in columns} for row in rows],
        "trials": bool(opened),
        "searches": [search for search in found_searches if _holds(conditions, search)],
        "notes": notes,
    }
    return finite_or_null(results)


def _arrange(rows: list[Row], sort: str | None, known: Iterable[str], grouped: bool) -> list[Row]:
    """Return the rows, grouped and in their order."""
    rows = sorted(rows, key=_age)
    if grouped:
        rows = sorted(_group(rows), key=_age)
    return _sort(rows, sort, [*known, *_OF_GROUPS] if grouped else known) if sort else rows


def _list_columns(grouped: bool) -> list[str]:
    """Return the columns of every table; of groups each accuracy is followed by its standard deviation."""
    if not grouped:
        return list(COLUMNS)
    pairs = [[name, name + STD] if name in _ACCURACIES else [name] for name in COLUMNS]
    columns = [name for pair in pairs for name in pair]
    return [*columns[:2], RUNS, *columns[2:]]


def to_csv(results: Mapping[str, Any]) -> str:
    """Return the runs as CSV. What is not known is empty; lists and sections are JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(results["columns"])
    for row in results["runs"]:
        writer.writerow(["" if (value := row[name]) is None else to_scalar(value) for name in results["columns"]])
    return text.getvalue()


# --- finding --------------------------------------------------------------------------------------------------------


def _find(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the runs and the searches that belong to a folder.

    Raises:
        ConfigError: there are none.
        EnvironmentFault: the folder cannot be read.
    """
    found = list(_walk(folder, _LEVELS))
    if not is_run(folder):
        # Of all experiments, or where the folder is that of an experiment, of this one.
        for beside in (searches_folder(folder, ""), searches_folder(folder.parent, folder.name)):
            found += _walk(beside, _LEVELS)
    if not found:
        raise ConfigError(
            f"{path_shown(folder)}: expected a folder with runs, {_describe_content(folder)}. Give the folder in which "
            "your runs are saved, or train a first one: kpipe run EXPERIMENT.yaml"
        )
    return [path for path in found if not is_search(path)], [path for path in found if is_search(path)]


def _describe_content(folder: Path) -> str:
    if not os.path.isdir(folder):
        return "got a file" if os.path.lexists(folder) else "found no such folder"
    try:
        return "found none in it" if os.listdir(folder) else "got an empty one"
    except OSError as error:
        raise EnvironmentFault(f"{path_shown(folder)}: cannot be read ({error.strerror})") from None


def _walk(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the runs and the searches in a folder, by name."""
    if is_run(folder) or is_search(folder):
        yield folder
    elif levels:
        for child in _subfolders(folder):
            yield from _walk(child, levels - 1)


def _subfolders(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(Path(each.path) for each in entries if each.is_dir() and not each.name.startswith("."))
    return []


# --- searches -------------------------------------------------------------------------------------------------------


def _read_search(path: Path) -> Row:
    records, summary = read_records(path), read_json(path / SUMMARY)
    is_finished = summary.get("status") == "finished"
    objective, trials = summary.get("objective"), summary.get("trials")
    status = "finished" if is_finished else "running" if is_running(path) else "interrupted"
    if not is_finished:
        try:
            objective, trials = _read_plan(path)
        except ConfigError:
            status = "damaged"
    best = next(iter(rank(records.values(), objective)), None) if objective else None
    values = (path.parent.name, path.name, status, sum(each.has_ended for each in records.values()), trials)
    values += (sum(each.status == "failed" for each in records.values()), objective)
    values += (best.score, best.number, best.values) if best else (None, None, None)
    return dict(zip(SEARCH_COLUMNS, (*values, find_date(path), str(path)), strict=True))


def _read_plan(path: Path) -> tuple[str, int]:
    """Return the objective of a search that has not ended, and how many trials it is to have.

    Raises:
        ConfigError: search.yaml is gone or damaged.
    """
    from kpipe.config.loading import load_search  # takes half a second, for the defaults that the file leaves out
    from kpipe.tuning.records import objective_of

    experiment = load_search(path / CONFIG).experiment
    return objective_of(experiment), experiment.search.trials


def _read_trials(search: Path) -> Iterator[RunRecord]:
    """Yield the runs of a search, and the trials that have none since they failed before."""
    records, seen = read_records(search), set()
    for path in filter(is_run, _subfolders(search)):
        run, number = read_run(path), parse_run(path.name)
        seen.add(number)
        columns = {"run": f"{search.name}/{path.name}"}
        record = records.get(number)
        if record and record.status in ("stopped", "failed") and run.columns["status"] in ("finished", "interrupted"):
            columns["status"] = record.status
        yield RunRecord({**run.columns, **columns}, run.config, run.damage)
    for number, record in records.items():
        if number not in seen and record.has_ended:
            yield RunRecord(_columns_of_trial(search, record), record.values)


def _columns_of_trial(search: Path, record: Record) -> Row:
    known = {
        "name": search.parent.name,
        "run": f"{search.name}/{record.run()}",
        "status": record.status,
        "network": record.values.get("model.name"),
        "data": record.values.get("data.source"),
        "seed": record.values.get("seed"),
        "path": str(search / record.run()),
    }
    return dict.fromkeys(COLUMNS) | known


# --- rows -----------------------------------------------------------------------------------------------------------


def _look_up(row: Mapping[str, Any], name: str, default: Any = _ABSENT) -> Any:
    """Return the value of a column or a key; of a section that is off, such as `warmup: null`, for all of its keys."""
    above = (each for each in _above(name) if each not in COLUMNS)
    return next((row[each] for each in (name, *above) if each in row), default)


def _find_differing_keys(rows: Iterable[Row]) -> list[str]:
    """Return the keys of config.yaml that have several values.

    Options that only some kinds have, such as the momentum of sgd, differ where those that have them do. Of a section
    that is off in some runs, such as `average: null`, options that are the same in the others are told by one key.
    """
    rows = list(rows)
    left_out = {*COLUMNS, *_OF_GROUPS, *_IN_COLUMNS}
    if all(row["status"] != "finished" or row.get(_EPOCHS) in (None, row["epochs"]) for row in rows):
        left_out.add(_EPOCHS)  # unless a run was stopped before
    keys = dict.fromkeys(key for row in rows for key in row if key not in left_out)
    sections = {above for key in keys for above in _above(key)}
    given = {key: set() for key in keys if key not in sections and not _WITHOUT_EFFECT.fullmatch(key)}
    off = {key: set() for key in given}
    for row in rows:
        for key, seen in given.items():
            if key in row:
                seen.add(repr(row[key]))
            elif (value := _look_up(row, key)) is not _ABSENT:
                off[key].add(repr(value))
    differing = [key for key, seen in given.items() if len(seen | off[key]) > 1]
    told = {_section_of(key) for key in differing if off[key] and len(given[key]) > 1}
    kept = []
    for key in differing:
        if off[key] and len(given[key]) == 1:
            if _section_of(key) in told:
                continue
            told.add(_section_of(key))
        kept.append(key)
    return kept


def _section_of(key: str) -> str:
    return key.rpartition(".")[0]


def _above(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _resolve_column(name: str, known: Iterable[str], option: str) -> str:
    """Return the column or the key that a user means by its name or its end.

    Raises:
        ConfigError: there is none, or several.
    """
    if name in known:
        return name
    keys = [key for key in known if key.endswith(f".{name}")]
    if len(keys) > 1:
        raise ConfigError(f"{option}: expected one column, got {in_quotes(name)}, which may be {' or '.join(keys)}")
    if keys:
        return keys[0]
    nearest = nearest_name(name, [*known, *short_endings(known).values(), *(key.rpartition(".")[2] for key in known)])
    others = f" (known: {', '.join(COLUMNS)}, and the keys of config.yaml)"
    advice = f", did you mean {in_quotes(nearest)}?" if nearest else others
    raise ConfigError(f"{option}: expected a column, got {in_quotes(name)}{advice}")


@dataclass(frozen=True)
class _Condition:
    """A filter. A value that is not known meets none but `!=`."""

    text: str
    column: str
    sign: str
    holds: Callable[[Any], bool]


def _parse_filter(text: str, rows: Iterable[Row], known: Iterable[str]) -> _Condition:
    """Return what a filter says.

    Raises:
        ConfigError: it has no such form, names no column, or compares numbers with text or an accuracy with 30.
    """
    found = _FILTER.fullmatch(text)
    if not found:
        raise ConfigError(f"--filter: expected a form such as status=finished or epochs>10, got {in_quotes(text)}")
    column, sign, value = _resolve_column(found[1], known, "--filter"), found[2], found[3]
    number = _parse_number(value)
    is_text = sign in _COMPARISONS and number is None and _has_numbers(rows, column)
    if is_text or (column in _ACCURACIES and (number or 0) > 1):
        expected = _UNITS.get(column, "a number")
        raise ConfigError(f"--filter: expected {expected} to compare {column} with, got {in_quotes(value)}")
    return _Condition(text, column, sign, _make_condition(sign, value))


def _holds(conditions: Iterable[_Condition], row: Row) -> bool:
    return all(each.holds(_look_up(row, each.column, None)) for each in conditions)


def _describe_unmatched(conditions: Iterable[_Condition], rows: Sequence[Row]) -> Iterator[str]:
    """Yield which values there are, for each condition on a value that nothing has."""
    for each in conditions:
        if each.sign == "=" and rows and not any(_holds([each], row) for row in rows):
            values = [value for row in rows if (value := _look_up(row, each.column, None)) is not None]
            there = list(dict.fromkeys(map(show_value, sorted(values, key=_place))))
            yield f"--filter {each.text}: no run has this value" + (f"; there are {some(there, str)}" if there else "")


def _has_numbers(rows: Iterable[Row], column: str) -> bool:
    """Return whether the values of a column are numbers."""
    values = [_look_up(row, column, None) for row in rows]
    is_number = column in _AVERAGED or any(map(_is_number, values))
    return is_number and not any(isinstance(value, str) for value in values)


def _make_condition(sign: str, text: str) -> Callable[[Any], bool]:
    """Return the condition of a filter on the value of a column."""
    number, word = _parse_number(text), text.casefold()

    def equals(value: Any) -> bool:
        if number is not None and _is_number(value):
            return value == number
        shown = show_value(value).casefold()
        return value is not None and fnmatchcase(shown, word) or word == shown

    def compares(value: Any) -> bool:
        if number is not None and _is_number(value):
            return _COMPARISONS[sign](value, number)
        return isinstance(value, str) and _COMPARISONS[sign](value, text)

    if sign == "!=":
        return lambda value: not equals(value)
    return equals if sign == "=" else compares


def _parse_number(text: str) -> float | None:
    with suppress(ValueError):
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(value: Any) -> tuple[bool, Any]:
    """Return the key by which values are sorted: numbers first."""
    return (False, value) if _is_number(value) else (True, show_value(value))


def _age(row: Row) -> tuple[str, str]:
    return row["date"] or "", str(row["path"])


def _sort(rows: list[Row], sort: str, known: Iterable[str]) -> list[Row]:
    """Return the rows in the order of a column; those without a value come last.

    Raises:
        ConfigError: there is no such column.
    """
    column = _resolve_column(sort.removeprefix("-"), known, "--sort")

    def place(row: Row) -> tuple[bool, Any]:
        return _place(_look_up(row, column, None))

    have, lack = [], []
    for row in rows:
        (lack if _look_up(row, column, None) is None else have).append(row)
    return sorted(have, key=place, reverse=sort.startswith("-")) + lack


def _group(rows: Iterable[Row]) -> list[Row]:
    """Make one row of finished runs that differ only in their seed. Of the runs with one seed, the newest counts.

    Args:
        rows: the newest last.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        config = {key: value for key, value in row.items() if key not in COLUMNS and not _WITHOUT_EFFECT.fullmatch(key)}
        same = repr(sorted({**config, "name": row["name"]}.items())) if row["status"] == "finished" else row["path"]
        groups.setdefault(same, []).append(row)
    merged = []
    for members in groups.values():
        of_seeds = list({str(row["seed"]): row for row in members}.values())
        merged += [_merge(of_seeds)] if len(of_seeds) > 1 else [{**row, RUNS: 1} for row in members]
    return merged


def _merge(rows: Sequence[Row]) -> Row:
    """Return the row of several seeds: means of numbers, the newest date, and lists of whatever else differs."""
    merged = {**rows[-1], RUNS: len(rows)}
    for column in COLUMNS:
        values = [row[column] for row in rows if row[column] is not None]
        if column in _AVERAGED:
            merged[column] = mean(values) if values else None
        elif column != "date" and len(distinct := list(dict.fromkeys(map(str, values)))) > 1:
            merged[column] = values if column == "seed" else distinct
    for column in _ACCURACIES:
        values = [row[column] for row in rows if row[column] is not None]
        merged[column + STD] = stdev(values) if len(values) > 1 else None
    return merged
