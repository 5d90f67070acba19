"""Files: written in one step, read without trust, and what is said when the disk refuses."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from kpipe.errors import EnvironmentFault

LARGEST_CONFIG = 100_000  # bytes; an experiment is one page, and reading ten times this takes seconds


_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit for the size of a file (ulimit -f)",
}


REFUSALS = (*_REMEDIES, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)
"""What a file system says when it does not let itself be written."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that looks like a number: PyYAML itself writes the name `1e3` so that YAML 1.2 reads 1000."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if text[:1] in "+-.0123456789" else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def finite_or_null(value: Any) -> Any:
    """JSON knows no infinity, and none but Python reads one."""
    if isinstance(value, dict):
        return {key: finite_or_null(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: neither a reader nor a power cut meets half of it."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a file in one step; what is not finite becomes null."""
    write_text(path, json.dumps(finite_or_null(value), indent=2, allow_nan=False) + "\n")


@contextmanager
def translate_write_errors(folder: Path) -> Iterator[None]:
    """Turns what a file system refuses in the middle of a run into an EnvironmentFault with path and free bytes.

    Args:
        folder: what is being written where an error does not say it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise cannot_write(Path(error.filename or folder), error.errno) from None


def cannot_write(path: Path, code: int) -> EnvironmentFault:
    """The error that says it, with the bytes that are free there; `code`: of `errno`."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return EnvironmentFault(
        f"{path}: cannot be written ({os.strerror(code)}); {shutil.disk_usage(folder).free:,} bytes are free there. "
        f"What was saved before is still there: {remedy(code)} and give the same command again."
    )


def remedy(code: int | None) -> str:
    """What to do about a number of `errno`."""
    return _REMEDIES.get(code, "let it be written")


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Replaces a file in one step."""
    write_text(path, yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write one file's name a line; names need not be valid text."""
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", errors="surrogateescape")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; an empty dict where that is gone or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class _Loader(yaml.SafeLoader):
    """Knows no aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any] | None:
    """What `write_yaml` wrote; None where that is gone, too large or no mapping."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            return None
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
