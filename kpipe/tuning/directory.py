"""A search on disk: `<logs>_searches/<experiment>/<time>_<digest>/`, with one run directory per trial.

Searches lie beside the folder of runs, so that their trials do not fill TensorBoard's list of runs.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpipe.files import read_json, translate_deletion, write_yaml
from kpipe.names import path_shown
from kpipe.runs.directory import fresh_path, without_machine
from kpipe.runs.lock import is_taken, leave, locked_again, locked_folder, take

if TYPE_CHECKING:
    from kpipe.config.schema import Experiment

TRIALS = "trials"
"""The folder of the records of trials."""
CONFIG, SUMMARY = "search.yaml", "search.json"
"""The experiment as it was given, and how the search has ended."""
_SEARCH_LOCK = ".search.lock"  # .lock is the short lock of the runs in a search's folder


@contextmanager
def open_search(
    logs: Path, name: str, identity: dict[str, Any], config: dict[str, Any], *, new: bool = False
) -> Iterator[Path]:
    """Resume the newest search of this experiment and space, or start one, and own it inside the `with`.

    Args:
        logs: the folder of all runs.
        name: of the experiment.
        identity: see `identity_of`.
        config: what search.yaml is to hold: the experiment as it was given.
        new: start another search in any case.

    Yields:
        The folder of the search.

    Raises:
        EnvironmentFault: as `open_run`.
    """
    folder = searches_folder(logs, name)
    elsewhere = (
        f" Searches are kept beside the folder of runs, {path_shown(logs)}: give another one with logs=FOLDER or "
        "KPIPE_LOGS."
    )
    with locked_folder(folder, elsewhere):
        path = None if new else find_search(logs, name, identity)
        path = path or fresh_path(folder, _digest_of(identity))
        (path / TRIALS).mkdir(parents=True, exist_ok=True)
        lock = take(path, "search", _SEARCH_LOCK)
        write_yaml(path / CONFIG, config)
    try:
        with translate_deletion(path):
            yield path
    finally:
        with locked_again(folder):
            leave(path, _SEARCH_LOCK)
            lock.release()


def searches_folder(logs: Path, name: str) -> Path:
    """Return the folder of all searches of an experiment.

    Args:
        logs: the folder of all runs.
        name: of the experiment.
    """
    logs = Path(logs)
    if not logs.name.strip("."):  # . and .. have no name to which something could be added
        logs = logs.resolve()
    return logs.parent / f"{logs.name}_searches" / name


def identity_of(experiment: "Experiment") -> dict[str, Any]:
    """Return what makes two searches the same: experiment and search, resolved."""
    return experiment.identity() | {"search": experiment.search.model_dump(mode="json")}


def find_search(logs: Path, name: str, identity: dict[str, Any]) -> Path | None:
    """Return the folder of the newest search with this identity.

    Args:
        logs: the folder of all runs.
        name: of the experiment.
        identity: see `identity_of`. With another number of trials, or of those that keep their weights, it is still
            the same search.
    """
    return max(searches_folder(logs, name).glob(f"*_{_digest_of(identity)}*"), default=None)


def is_search(path: Path) -> bool:
    """Return whether a folder is that of a search, or what is left of one."""
    return os.path.isfile(path / CONFIG) or os.path.isfile(path / SUMMARY)


def is_running(path: Path) -> bool:
    """Return whether a living process works on a search, as its chief or alone."""
    return is_taken(path, _SEARCH_LOCK)


def unfinished_searches(folder: Path) -> list[Path]:
    """Return the searches in a folder that have not been reported, the newest last."""
    return [path.parent for path in sorted(folder.glob(f"*/{TRIALS}")) if not _is_finished(path.parent)]


def _is_finished(path: Path) -> bool:
    return read_json(path / SUMMARY).get("status") == "finished"


def _digest_of(identity: dict[str, Any]) -> str:
    search = {key: value for key, value in identity["search"].items() if key not in ("trials", "keep")}
    text = json.dumps(without_machine(identity) | {"search": search}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
