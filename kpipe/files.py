"""Files: paths as users write them, written in one step, read without trust, and a message where the disk refuses."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from kpipe.errors import ConfigError, EnvironmentFault, KpipeError, nearest_name
from kpipe.names import as_line, from_line, path_shown, quoted
from kpipe.signals import stop_signals

LARGEST_CONFIG = 100_000  # bytes; an experiment is one page, and reading ten times this takes seconds

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit for the size of a file (ulimit -f)",
}

REFUSALS = (*_REMEDIES, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)
"""Error numbers of a file system that does not accept what is written."""


_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^}]*)\})", re.ASCII)


def expand_path(text: str, where: str = "") -> Path:
    """Return the absolute path that a user means: `~`, `~user`, `$NAME` and `${NAME}` are replaced as in a shell.

    Symbolic links are not resolved. `$NAME` stays where the variable is not set and the path exists as it is written.

    Args:
        text: what the user wrote.
        where: what gave it, such as `--output` or `KPIPE_LOGS`; it begins the message of an error.

    Raises:
        ConfigError: there is no such user, no home directory, no such variable, or no current folder.
    """
    try:
        path = Path(_expand_user(_expand_variables(text))).absolute()
        plain = Path(os.path.abspath(path))  # without .., unless that comes after a link
        return plain if os.path.realpath(plain) == os.path.realpath(path) else path
    except FileNotFoundError:
        problem = f"{text!r} is relative to the current folder, which has been deleted. Change to another folder"
    except ConfigError as error:
        problem = str(error)
    raise ConfigError(f"{where}: {problem}" if where else problem)


def _expand_variables(text: str) -> str:
    if not text:
        raise ConfigError("expected a path, got nothing")
    unset = [name for match in _VARIABLE.findall(text) for name in match if name and not os.environ.get(name)]
    if not unset:
        return os.path.expandvars(text)
    if os.path.lexists(os.path.expanduser(text)):
        return text
    raise ConfigError(
        f"expected a value of the variable {unset[0]} for {text!r}, got none. Set it, or write the path out"
    )


def _expand_user(text: str) -> str:
    expanded, user = os.path.expanduser(text), text.partition(os.sep)[0]
    if user == "~" and (expanded == text or os.environ.get("HOME") == ""):
        raise ConfigError(f"expected a home directory for {text!r}, got none. Set HOME, or write the path out")
    if user.startswith("~") and expanded == text:
        raise ConfigError(
            f"expected a user of this machine after ~, got {text!r}. Write the path out, or write {'./' + text!r} if "
            "this is its name"
        )
    return expanded


def cache_folder() -> Path:
    """Return the folder of decoded images: $KPIPE_CACHE, else ~/.cache/kpipe."""
    return expand_path(os.environ.get("KPIPE_CACHE") or "~/.cache/kpipe", "KPIPE_CACHE")


class _Dumper(yaml.SafeDumper):
    """Quote text that looks like a number: PyYAML itself writes the name `1e3` so that YAML 1.2 reads 1000.

    Text that is not printable is quoted too, which keeps its line breaks on one line.
    """


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if text[:1] in "+-.0123456789" or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def finite_or_null(value: Any) -> Any:
    """Replace infinities and NaN by None: JSON has neither, and none but Python reads them."""
    if isinstance(value, dict):
        return {key: finite_or_null(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file in one step: neither a reader nor a power cut meets half of it.

    Yields:
        The path to write, beside `path` and with its suffix. It is always the same, so that what a kill leaves behind
        is overwritten. After an error it is removed, and `path` stays as it was.
    """
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


@contextmanager
def filling(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Replace files and folders in a folder: all of them or none.

    Args:
        folder: is made where it is not there. What else lies in it stays.
        names: of all that may be written, also in folders in it. What was not written is removed, as it would be of an
            earlier time.

    Yields:
        An empty folder to write to, in `folder`. Its name is always the same, so that what a kill leaves behind is
        overwritten. After an error it is removed, and `folder` stays as it was.

    Raises:
        EnvironmentFault: the folder cannot be made.
    """
    part = folder / f".{Path(names[0]).parts[0]}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
    except OSError as error:
        raise cannot_write(folder, error.errno) from None
    try:
        with stop_signals() as stop:
            yield part
            stop.defer()  # the rest takes milliseconds
            for name in names:
                _replace(folder / name, part / name)
            stop.obey()
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()


def _replace(target: Path, new: Path) -> None:
    """Put a new file or folder in the place of another, or nothing, where there is no new one."""
    if target.is_dir():
        target.rename(new.with_name(f".{new.name}"))  # a folder that is not empty cannot be overwritten
    elif not new.exists():
        target.unlink(missing_ok=True)
    if new.exists():
        target.parent.mkdir(exist_ok=True)
        os.replace(new, target)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file in one step; numbers that are not finite become null."""
    write_text(path, json.dumps(finite_or_null(value), indent=2, allow_nan=False) + "\n")


@contextmanager
def translate_write_errors(folder: Path) -> Iterator[None]:
    """Convert an error of the file system in the middle of a run to an EnvironmentFault with path and free bytes.

    Args:
        folder: path for the message where the error names none.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise cannot_write(Path(error.filename or folder), error.errno) from None


@contextmanager
def translate_deletion(folder: Path) -> Iterator[None]:
    """Convert an error to an EnvironmentFault where somebody has deleted the folder, or a file in it that is needed.

    Errors of kpipe's own kinds explain themselves.
    """
    try:
        yield
    except KpipeError:
        raise
    except Exception as error:
        if not folder.is_dir():
            raise EnvironmentFault(
                f"{path_shown(folder)}: this folder has been deleted or moved while kpipe was writing to it, so "
                "nothing can be saved any more. Give the same command again to start anew."
            ) from error
        if missing := _missing_in(folder, error):
            raise EnvironmentFault(
                f"{missing}: has been deleted while kpipe needed it. Give the same command again."
            ) from error
        raise


def _missing_in(folder: Path, error: Exception) -> Path | None:
    """Return what an error says is not there, or the folder above that is not there either; None: nothing in here."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    if not isinstance(name, str | Path) or not Path(name).is_relative_to(folder):
        return None
    return next(path for path in (Path(name), *Path(name).parents) if path.parent.exists())


def nearest_file(path: Path, *others: str, pattern: str = "*") -> str:
    """Return `, did you mean 'vgg16.keras'?` for the nearest name beside a file that is not there; empty without one.

    Args:
        path: the file.
        others: names that are meant as well.
        pattern: of the names that are looked at.
    """
    names = [found.name for found in path.parent.glob(pattern)] if path.parent.is_dir() else []
    nearest = nearest_name(path.name, [*names, *others])
    return f", did you mean {quoted(nearest)}?" if nearest else ""


def check_output_folder(folder: Path) -> Path:
    """Return a folder that can be made and written; raise ConfigError where it cannot, before any work."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    for part in folder.relative_to(existing).parts:
        try:
            os.lstat(existing / part)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ConfigError(f"output: expected shorter names, got {path_shown(folder)}") from None
    if not existing.is_dir():
        what = "is a file" if existing.exists() else "is a link to what is not there"
        raise ConfigError(f"output: expected a folder, got {path_shown(folder)}, and {path_shown(existing)} {what}")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"output: expected a folder in which you may write, got {path_shown(folder)}")
    return folder


def cannot_write(path: Path, code: int) -> EnvironmentFault:
    """Return the error for a number of `errno`; its message has the bytes that are free there."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return EnvironmentFault(
        f"{path_shown(path)}: cannot be written ({os.strerror(code)}); {shutil.disk_usage(folder).free:,} bytes are "
        f"free there. What was saved before is still there: {remedy(code)} and give the same command again."
    )


def refusal_in(error: Exception) -> int | None:
    """Return the number of `errno` with which a file system refused, also out of another library's words; else None."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return error.errno
    return next((code for code in REFUSALS if os.strerror(code) in str(error)), None)


def remedy(code: int | None) -> str:
    """Return what to do about a number of `errno`."""
    return _REMEDIES.get(code, "let it be written")


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Replace a file in one step."""
    write_text(path, to_yaml(value))


def to_yaml(value: Any, **style: Any) -> str:
    """Return a value as YAML, in printable lines.

    Args:
        value: of plain types. Text of all languages stays as it is, unless something in it is not printable.
        style: further arguments of `yaml.dump`.
    """
    options = {"Dumper": _Dumper, "sort_keys": False, **style}
    text = yaml.dump(value, allow_unicode=True, **options)
    return text if all(map(str.isprintable, text.split("\n"))) else yaml.dump(value, **options)


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write one name of a file or a class a line, see `kpipe.names.as_line`."""
    path.write_text("".join(f"{as_line(name)}\n" for name in names), encoding="utf-8")


def read_names(path: Path) -> list[str]:
    """Return what `write_names` wrote; an empty list where that is gone or damaged."""
    try:
        return list(map(from_line, path.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError):
        return []


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote; an empty dict where that is gone or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_LOADERS = [getattr(yaml, name) for name in ("CSafeLoader", "SafeLoader") if hasattr(yaml, name)]
"""The one in C takes an eighth of the time, but knows no half of a surrogate pair, which a path in a file may have."""
_DEEPEST = 30  # levels of nesting; kpipe writes fewer than ten


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Return what `write_yaml` wrote; None where that is gone, too large or no mapping."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            return None
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_yaml(text: str) -> dict[str, Any] | None:
    """Return what `to_yaml` made to text; None where that is no mapping."""
    for loader in _LOADERS:
        with suppress(ValueError, yaml.YAMLError):
            _refuse_bombs(text, loader)
            found = yaml.load(text, loader)
            return found if isinstance(found, dict) else None
    return None


def _refuse_bombs(text: str, loader: type) -> None:
    """Raise YAMLError for aliases, a few lines of which expand to gigabytes, and for a depth that overflows a stack."""
    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
            raise yaml.YAMLError("expected YAML without aliases and deep nesting")
