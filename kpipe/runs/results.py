"""Results of runs, read from their directories without TensorFlow: of thousands, in a second or two.

A run may be at work, interrupted, or damaged. Whatever is missing is None, and nothing raises.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kpipe.files import LARGEST_CONFIG, parse_yaml, read_json
from kpipe.runs.lock import is_taken

COLUMNS = (
    "name", "run", "status", "network", "data", "val_accuracy", "test_accuracy", "parameters", "epochs", "time",
    "images/s", "precision", "seed", "commit", "date", "path",
)  # fmt: skip
"""What is known of every run: accuracies are fractions, `time` is seconds of training, `date` is its beginning."""
RUNS, STD = "runs", "_std"
"""In rows of several seeds: the column with the number of runs, and the end of the names of standard deviations."""

_CONFIG, _SUMMARY, _METRICS = "config.yaml", "summary.json", "metrics.jsonl"
_STATES = ("finished", "interrupted", "diverged", "stuck")  # as summary.json says
_IMAGE_SIZE = "data.image_size"
_SECTION = re.compile(r"\n(?=\w)")
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)_(\d\d)-(\d\d)-(\d\d)")


@dataclass(frozen=True)
class RunRecord:
    """One run directory.

    Attributes:
        columns: by the names in `COLUMNS`.
        config: the values of config.yaml by dotted key; lists are values.
        damage: what cannot be read, for a run whose status is damaged.
    """

    columns: dict[str, Any]
    config: dict[str, Any]
    damage: str | None = None


def is_run(path: Path) -> bool:
    """Return whether a folder is a run directory, or what is left of one."""
    return any(os.path.isfile(path / name) for name in (_CONFIG, _SUMMARY, _METRICS))


def read_run(path: Path) -> RunRecord:
    """Read a run directory."""
    config = _read_config(path / _CONFIG)
    summary, environment = read_json(path / _SUMMARY), read_json(path / "environment.json")
    match summary.get("image"):
        case [int(height), int(width), _] if height == width and config.get(_IMAGE_SIZE, 0) is None:
            config[_IMAGE_SIZE] = height  # that of the images themselves
    damage = _find_damage(path, config, summary)
    status, validation, test = summary.get("status"), summary.get("validation"), summary.get("test")
    epochs = _number_in(summary, "epochs")
    if status != "finished":
        # The summary was written when the run was stopped last, and has no validation.
        status = "running" if is_taken(path) else status if status in _STATES else "interrupted"
        epochs, validation = _read_progress(path / _METRICS, config.get("training.monitor"), epochs)
        test = None
    columns = {
        "name": config.get("name") or path.parent.name,
        "run": path.name,
        "status": "damaged" if damage else status,
        "network": config.get("model.name"),
        "data": config.get("data.source"),
        "val_accuracy": _number_in(validation, "accuracy"),
        "test_accuracy": _number_in(test, "accuracy"),
        "parameters": _number_in(summary, "parameters"),
        "epochs": epochs,
        "time": _number_in(summary, "seconds"),
        "images/s": _number_in(summary, "images_per_second"),
        "precision": config.get("chosen.precision") or config.get("training.precision"),
        "seed": config.get("seed"),
        "commit": _describe_commit(environment.get("git")),
        "date": find_date(path),
        "path": str(path),
    }
    return RunRecord(columns, config, damage)


def _read_config(path: Path) -> dict[str, Any]:
    """Return the values of config.yaml by dotted key; an empty dict where that is gone or damaged."""
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= LARGEST_CONFIG else ""
    except (OSError, ValueError):
        return {}
    sections = list(map(_parse_section, _SECTION.split(text)))
    return {key: value for section in sections for key, value in section.items()} if all(sections) else {}


@lru_cache(maxsize=1000)
def _parse_section(text: str) -> dict[str, Any]:
    """Return the values of a section by dotted key. Most runs share most sections, and parsing them takes longest."""
    plain = json.dumps(parse_yaml(text) or {}, skipkeys=True, default=str)  # YAML has dates as well
    return _flatten(json.loads(plain))


def _flatten(section: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            leaves |= _flatten(value, f"{above}{key}.")
        else:
            leaves[f"{above}{key}"] = value
    return leaves


def _find_damage(path: Path, config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """Return which file of a run cannot be read; None: all can."""
    if not (isinstance(config.get("model.name"), str) and isinstance(config.get("data.source"), str)):
        return f"{_CONFIG} {'is damaged' if (path / _CONFIG).exists() else 'is gone'}"
    if (path / _SUMMARY).exists() and summary.get("status") not in _STATES:
        return f"{_SUMMARY} is damaged"
    return None


def _read_progress(metrics: Path, monitor: str | None, epochs: Any) -> tuple[Any, dict[str, Any]]:
    """Return the whole epochs of an unfinished run so far, and the metrics of its best validation.

    Args:
        metrics: metrics.jsonl.
        monitor: val_accuracy or val_loss.
        epochs: where the records do not say.
    """
    ended, validations = [], []
    for record in _read_epochs(metrics):
        if isinstance(record.get("epoch"), int):
            ended.append(record["epoch"])
        if record.get("split") == "validation":
            validations.append(record)

    def score(record: Mapping[str, Any]) -> float:
        accuracy, loss = (_number_in(record, name) for name in ("accuracy", "loss"))
        return (-math.inf if loss is None else -loss) if monitor == "val_loss" else accuracy or 0.0

    return max(ended, default=epochs), max(validations, key=score, default={})


def _read_epochs(metrics: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of whole epochs, among thousands of others."""
    with suppress(OSError), open(metrics, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if '"span": "epoch"' in line:
                with suppress(ValueError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record


def _number_in(section: Any, name: str) -> float | None:
    value = section.get(name) if isinstance(section, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _describe_commit(git: Any) -> str | None:
    """Return the commit of the code, with `-dirty` at the end as git writes it where the code was changed since."""
    commit = git.get("commit") if isinstance(git, dict) else None
    if not isinstance(commit, str):
        return None
    return f"{commit}-dirty" if git.get("dirty") else commit


def find_date(path: Path) -> str | None:
    """Return when a run began, which its name says; of a trial of a search, when its files last changed."""
    if found := _STAMP.match(path.name):
        return "{} {}:{}:{}".format(*found.groups())
    with suppress(OSError):
        times = [file.stat().st_mtime for file in (path / _SUMMARY, path / _CONFIG) if file.exists()]
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(max(times))) if times else None
    return None
