"""What a search knows of its trials: one file per trial, `trials/0007.json`, written by the process that runs it.

These records are the whole memory of a search. The engine's own state is rebuilt from them. A record that is lost is
recovered: what was tried follows from the trials before it, and its result from its run directory.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from kpipe.files import finite_or_null, read_json, write_text
from kpipe.names import printable
from kpipe.tuning.directory import TRIALS

if TYPE_CHECKING:
    from kpipe.config.schema import Experiment

_SCORED = ("finished", "stopped")
_FORMAT = 1  # of a record; another format is ignored


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        number: 1, 2, ... in the order in which the trials began.
        codes: what the engine suggested, by its own names.
        values: the same as overrides, by dotted key.
        status: running, finished, stopped by the median rule, or failed.
        score: mean of `scores`; None for a trial without a score.
        scores: the objective of the best epoch, of each execution.
        loss: the validation loss of the best epoch of execution 0; it decides between equal scores.
        epochs: that its run has seen, those of its parent included.
        seconds: of training of all executions, those of its parent included.
        parent: the trial whose run it has resumed, under hyperband.
        message: why it failed.
        ended: seconds since 1970.
    """

    number: int
    codes: dict[str, Any]
    values: dict[str, Any]
    status: Literal["running", "finished", "stopped", "failed"] = "running"
    score: float | None = None
    scores: list[float] = field(default_factory=list)
    loss: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    parent: int | None = None
    message: str | None = None
    ended: float | None = None

    @property
    def has_ended(self) -> bool:
        return self.status != "running"

    @property
    def has_score(self) -> bool:
        return self.status in _SCORED and self.score is not None and math.isfinite(self.score)

    def run(self, execution: int = 0) -> str:
        """Return the name of its run directory in the search's folder."""
        return f"{self.number:04}" + (f"-seed{execution}" if execution else "")


def parse_run(name: str) -> int | None:
    """Return the number of the trial whose run directory has this name; None for another folder."""
    found = re.fullmatch(r"(\d{4,})(-seed\d+)?", name)
    return int(found[1]) if found else None


_ADAPTER = TypeAdapter(Record)


def write_record(search: Path, record: Record) -> None:
    """Replace the file of a trial, in the folder of its search, in one step."""
    content = {"format": _FORMAT, **finite_or_null(asdict(record))}
    write_text(search / TRIALS / f"{record.number:04}.json", json.dumps(content, indent=1) + "\n")


def read_records(search: Path) -> dict[int, Record]:
    """Read the records of a search, by number, except those that are damaged."""
    found = {}
    for path in sorted((search / TRIALS).glob("*.json")):
        content = read_json(path)
        if content.pop("format", None) != _FORMAT:
            continue
        try:
            record = _ADAPTER.validate_python(content)
        except ValidationError:
            continue
        if path.name == f"{record.number:04}.json":
            found[record.number] = record
    return found


def recover_records(search: Path) -> tuple[dict[int, Record], list[int]]:
    """Read the records from which a search is resumed, and remove those from the first lost one on.

    What the removed ones tried is suggested again, since it follows from the trials before, and their results are
    found in their run directories.

    Returns:
        The records up to the first that is lost or damaged, by number, and the numbers from that one on.
    """
    records = read_records(search)
    whole = next(number for number in range(1, len(records) + 2) if number not in records) - 1
    lost = []
    for path in sorted((search / TRIALS).glob("*.json")):
        if not (path.stem.isdecimal() and int(path.stem) <= whole):
            path.unlink()
            lost += [int(path.stem)] if path.stem.isdecimal() else []
    missing = [number for number in range(whole + 1, max(lost, default=0)) if number not in lost]
    return {number: record for number, record in records.items() if number <= whole}, sorted([*lost, *missing])


def objective_of(experiment: "Experiment") -> str:
    """Return what the score of a trial is: val_accuracy or val_loss."""
    return experiment.search.objective or experiment.training.monitor


def rank(records: Iterable[Record], objective: str) -> list[Record]:
    """Return the trials that have a score, best first: by score, then by validation loss, then by number."""
    sign = -1 if objective == "val_accuracy" else 1
    scored = [record for record in records if record.has_score]
    return sorted(scored, key=lambda r: (sign * r.score, math.inf if r.loss is None else r.loss, r.number))


@dataclass(frozen=True)
class Group:
    """Trainings that differ only in their seed."""

    values: dict[str, Any]
    scores: list[float]

    @property
    def mean(self) -> float:
        return mean(self.scores)

    @property
    def std(self) -> float:
        """Standard deviation of the sample; NaN for one training."""
        return stdev(self.scores) if len(self.scores) > 1 else math.nan


def group_over_seeds(records: Iterable[Record], objective: str) -> list[Group]:
    """Group all trainings by the values of the keys other than `seed`, best mean first."""
    groups: dict[str, Group] = {}
    for record in records:
        if record.has_score:
            values = {key: value for key, value in record.values.items() if key != "seed"}
            groups.setdefault(json.dumps(values), Group(values, [])).scores.extend(record.scores)
    return sorted(groups.values(), key=lambda group: group.mean, reverse=objective == "val_accuracy")


def write_trials(path: Path, records: Iterable[Record], objective: str, keys: list[str]) -> None:
    """Write trials.csv: ranked trials first, then those without a score."""
    order = rank(records, objective)
    rest = sorted((record for record in records if record not in order), key=lambda record: record.number)
    rows = [
        {
            "rank": place,
            "trial": record.number,
            "status": record.status,
            "score": "" if record.score is None else record.score,
            "epochs": record.epochs,
            "seconds": round(record.seconds, 2),
            "run": record.run(),
        }
        | {key: to_scalar(record.values[key]) for key in keys if key in record.values}
        | {"message": printable(record.message or "")}
        for place, record in [*enumerate(order, 1), *(("", record) for record in rest)]
    ]
    columns = ["rank", "trial", "status", "score", "epochs", "seconds", "run", *keys, "message"]
    _write_csv(path, columns, rows)


def write_groups(path: Path, groups: list[Group], keys: list[str]) -> None:
    """Write groups.csv: mean and standard deviation over seeds."""
    rows = [
        {"rank": place, "trainings": len(group.scores), "mean": group.mean, "deviation": group.std}
        | {key: to_scalar(value) for key, value in group.values.items()}
        for place, group in enumerate(groups, 1)
    ]
    _write_csv(path, ["rank", "trainings", "mean", "deviation", *keys], rows)


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def to_scalar(value: Any) -> bool | int | float | str:
    """Return a value without structure: text is printable, lists and sections become JSON."""
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, bool | int | float) else json.dumps(value)


def show_value(value: Any) -> str:
    """Return a value of a key as tables and figures show it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value) if isinstance(value, str) else json.dumps(value).replace('"', "")
