"""A search on disk: `search-<id>` beside the runs of its experiment, with one run directory per trial."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kpipe.config.schema import Experiment
from kpipe.files import translate_deletion, write_yaml
from kpipe.runs.directory import SEARCH, fresh_path, read_status, without_machine
from kpipe.runs.lock import ELSEWHERE, leave, locked_again, locked_folder, take

TRIALS = "trials"
"""The folder of the records of trials."""
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
        config: what config.yaml is to hold: the experiment as it was given.
        new: start another search in any case.

    Yields:
        The folder of the search.

    Raises:
        EnvironmentFault: as `open_run`.
    """
    folder = Path(logs) / name
    with locked_folder(folder, ELSEWHERE):
        path = None if new else find_search(logs, name, identity)
        path = path or fresh_path(folder, f"{SEARCH}{_digest_of(identity)}_")
        (path / TRIALS).mkdir(parents=True, exist_ok=True)
        lock = take(path, "search", _SEARCH_LOCK)
        write_yaml(path / "config.yaml", config)
    try:
        with translate_deletion(path):
            yield path
    finally:
        with locked_again(folder):
            leave(path, _SEARCH_LOCK)
            lock.release()


def identity_of(experiment: Experiment) -> dict[str, Any]:
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
    found = (Path(logs) / name).glob(f"{SEARCH}{_digest_of(identity)}_*")
    return max(found, default=None)


def unfinished_searches(folder: Path) -> list[Path]:
    """Return the searches in an experiment's folder that have not been reported, the newest last."""
    found = [path for path in folder.glob(f"{SEARCH}*") if read_status(path) != "finished"]
    return sorted(found, key=lambda path: path.name.partition("_")[2])


def _digest_of(identity: dict[str, Any]) -> str:
    search = {key: value for key, value in identity["search"].items() if key not in ("trials", "keep")}
    text = json.dumps(without_machine(identity) | {"search": search}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
