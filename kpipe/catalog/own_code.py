"""Functions in a file or module of the user's own, such as `my_nets.py:tiny`, and their options.

The code runs when a function is loaded, and not before: checking an experiment file runs none.
"""

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import create_model

from kpipe.catalog.rows import Section, whole_number
from kpipe.errors import ConfigError, did_you_mean, first_line
from kpipe.files import expand_path, nearest_file
from kpipe.names import path_shown, quoted

_NAME = re.compile(r"(?P<place>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")
_TYPES = {int: whole_number(), float: float, bool: bool, str: str}
"""Types of options by that of their default, where the signature names none."""
_loaded: dict[Path, tuple[int, ModuleType]] = {}
"""Modules by their file, with the time at which the file was last changed."""


def is_own(name: str) -> bool:
    """Return whether a name says where a function of the user's own stands: `FILE.py:function` or `module:function`."""
    return _NAME.fullmatch(name) is not None


def absolute_name(name: str, folder: Path | None = None) -> str:
    """Return such a name with the path of its file made absolute, so that a run finds it from any working directory.

    Args:
        name: where the function stands. The name of a module stays as it is.
        folder: where a relative path begins; None: the working directory.

    Raises:
        ConfigError: as `expand_path`.
    """
    place, _, function = name.rpartition(":")
    if not place.endswith(".py"):
        return name
    beside = folder and (folder / place).absolute()
    return f"{beside if beside and beside.exists() else expand_path(place)}:{function}"


def find_file(name: str) -> Path | None:
    """Return the file of a function; None where it stands in a module."""
    place = name.rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def load_function(name: str, where: str) -> Callable:
    """Import a function of the user's own.

    Args:
        name: where it stands, as `absolute_name` returns it.
        where: key of the experiment that names it; messages begin with it.

    Raises:
        ConfigError: the file or module is not there or cannot be imported, or has no such function.
    """
    place, _, function = name.rpartition(":")
    path = find_file(name)
    try:
        module = _import_file(path, where) if path else importlib.import_module(place)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{where}: {path_shown(place)}: expected code that can be imported, got {describe(error, path)}"
        ) from error
    target = getattr(module, function, None)
    if not callable(target):
        names = [each for each, value in vars(module).items() if inspect.isfunction(value) and not each.startswith("_")]
        raise ConfigError(
            f"{where}: {path_shown(place)}: expected a function called {quoted(function)}, got none"
            f"{did_you_mean(function, names)}"
        )
    return target


def make_options(function: Callable, base: type[Section], given_by_kpipe: Collection[str]) -> type[Section]:
    """Return the options of a function: its parameters, with their types and defaults.

    Args:
        function: of the user.
        base: class of the options.
        given_by_kpipe: parameters that are no options.
    """
    fields = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in given_by_kpipe or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        annotation = parameter.annotation
        if annotation is parameter.empty or isinstance(annotation, str):
            annotation = _TYPES.get(type(default), Any)
        fields[name] = (annotation, default)
    # Its docstrings are looked for in vain: the class stands in no file.
    return create_model(function.__name__, __base__=base, __cls_kwargs__={"use_attribute_docstrings": False}, **fields)


def describe(error: Exception, file: Path | None) -> str:
    """Return an error of the user's code in words, and the line of the file that it comes from."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{type(error).__name__}: {first_line(error)}{f' in line {lines[-1]}' if lines else ''}"


def _import_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        meant = nearest_file(path, pattern="*.py")
        raise ConfigError(f"{where}: {path_shown(path)}: expected a Python file, got no such file{meant}")
    changed = path.stat().st_mtime_ns
    if path in _loaded and _loaded[path][0] == changed:
        return _loaded[path][1]
    spec = importlib.util.spec_from_file_location(f"kpipe_own_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: classes in it are found again by their module
    spec.loader.exec_module(module)
    _loaded[path] = changed, module
    return module
