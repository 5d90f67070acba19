"""Functions in a file or module of the user's own, such as `my_nets.py:tiny`, and their options.

The code runs when a function is loaded, and not before: checking an experiment file runs none.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, create_model
from pydantic_core import PydanticCustomError

from kpipe.catalog.rows import Section, whole_number
from kpipe.errors import ConfigError, KpipeError, did_you_mean, first_line
from kpipe.files import expand_path, nearest_file
from kpipe.names import path_shown, quoted

_NAME = re.compile(r"(?P<place>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")
_PLAIN = (int, float, bool, str, list, tuple, dict)
"""Types of options that a YAML file can give."""
_loaded: dict[Path, tuple[int, ModuleType]] = {}
"""Modules by their file, with the time at which the file was last changed."""


def is_own(name: str) -> bool:
    """Return whether a name says where a user's function is defined: `FILE.py:function` or `module:function`."""
    return _NAME.fullmatch(name) is not None


def absolute_name(name: str, folder: Path | None = None) -> str:
    """Return such a name with the path of its file made absolute, so that a run finds it from any working directory.

    Args:
        name: where the function is defined. The name of a module stays as it is.
        folder: where a relative path begins; None: the working directory.

    Raises:
        ConfigError: as `expand_path`.
    """
    place, _, function = name.rpartition(":")
    if not place.endswith(".py"):
        return name
    beside = folder and (folder / place).absolute()
    if beside and beside.exists():
        return f"{beside}:{function}"
    path = expand_path(place)
    is_nowhere = beside and path == Path(place).absolute() and not path.exists()
    return f"{beside if is_nowhere else path}:{function}"


def find_file(name: str) -> Path | None:
    """Return the file of a function; None where it is in a module."""
    place = name.rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def load_function(name: str, where: str) -> Callable:
    """Import a function of the user's own.

    Args:
        name: where it is defined, as `absolute_name` returns it.
        where: key of the experiment that names it; messages begin with it.

    Raises:
        ConfigError: the file or module is not there or cannot be imported, or has no such function.
    """
    place, _, function = name.rpartition(":")
    path = find_file(name)
    if path and not path.is_file():
        meant = nearest_file(path, pattern="*.py")
        origin = ". A path in an experiment's file is relative to that file, in an override to the working directory"
        raise ConfigError(f"{where}: {path_shown(path)}: expected a Python file, got no such file{meant or origin}")
    with running(name, f"{where}: {path_shown(place)}: expected code that can be imported, got"):
        module = _import_file(path) if path else _import_module(place)
    target = getattr(module, function, None)
    if not callable(target):
        names = [each for each, value in vars(module).items() if inspect.isfunction(value) and not each.startswith("_")]
        raise ConfigError(
            f"{where}: {path_shown(place)}: expected a function called {quoted(function)}, got none"
            f"{did_you_mean(function, names)}"
        )
    return target


@contextmanager
def running(name: str, message: str, kind: type[KpipeError] = ConfigError) -> Iterator[None]:
    """Run the user's own code inside the `with`.

    It may import files beside its own. A module may be, and may import what is, in the working directory.

    Args:
        name: where the code is defined.
        message: beginning of the message about an error in it, up to the error.
        kind: class of that error.
    """
    path = find_file(name)
    # As Python does for a script, and for `python -m`; the command `kpipe` has its own folder there.
    folder = str(path.parent) if path else os.path.abspath("")
    is_added = path is not None or not {"", folder} & set(sys.path)
    if is_added:
        sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:
        raise kind(f"{message} {_describe(error, path)}") from error
    finally:
        if is_added:
            with suppress(ValueError):  # the code may have removed it
                sys.path.remove(folder)


def make_options(
    function: Callable,
    name: str,
    where: str,
    base: type[Section],
    *,
    reserved: Collection[str] = (),
    taken: Collection[str] = (),
) -> type[Section]:
    """Return the options of a function: its parameters, with their types and defaults.

    Args:
        function: of the user.
        name: where it is defined.
        where: key of the experiment that names it; messages begin with it.
        base: class of the options.
        reserved: parameters that are no options.
        taken: names that an option cannot have, besides those that begin with _ and those of the class.

    Raises:
        ConfigError: a parameter has a name or a type that an option cannot have.
    """
    fields = {}
    for option, parameter in find_parameters(function, name, where).items():
        if option in reserved or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if option.startswith("_") or option in taken or hasattr(base, option):
            raise ConfigError(
                f"{where}: {name}: expected parameters whose names can be those of options, got {option}. Give it "
                "another name"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        annotation = parameter.annotation
        if annotation is parameter.empty or isinstance(annotation, str):
            annotation = type(default) if type(default) in _PLAIN else Any
        try:
            fields[option] = (_from_yaml(annotation), default)
        except TypeError:
            raise ConfigError(
                f"{where}: {name}: expected parameters of types that YAML has, such as int, str and list[float], got "
                f"{option}: {inspect.formatannotation(annotation)}. Leave the annotation out, or take a name or "
                "numbers and make it of them"
            ) from None
    # The class has no source file to read docstrings from.
    no_docstrings = {"use_attribute_docstrings": False}
    return create_model(name.rpartition(":")[2], __base__=base, __cls_kwargs__=no_docstrings, **fields)


def find_parameters(function: Callable, name: str, where: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function by name, with types instead of their text where they can be found.

    Raises:
        ConfigError: the function does not say which it has.
    """
    # `from __future__ import annotations` makes text of them, which may name what only type checkers import.
    for eval_str in (True, False):
        with suppress(Exception):
            return dict(inspect.signature(function, eval_str=eval_str).parameters)
    raise ConfigError(f"{where}: {name}: expected a function written in Python, got one whose parameters are not known")


def _from_yaml(annotation: Any) -> Any:
    """Return a type that takes what YAML has for values of another type: lists for tuples, and 1e3 for 1000.

    Raises:
        TypeError: YAML has no such values.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is int:
        return whole_number()
    if annotation in (None, NoneType, Any, float, bool, str, list, dict) or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_from_yaml(arguments[0]), *annotation.__metadata__)]
    if annotation is tuple or origin is tuple:
        inner = tuple(each if each is ... else _from_yaml(each) for each in arguments)
        return Annotated[tuple[inner] if inner else tuple, BeforeValidator(_to_tuple)]
    if origin in (list, dict, Sequence):
        return (dict if origin is dict else list)[tuple(map(_from_yaml, arguments))]
    if origin in (Union, UnionType):
        either = Union[tuple(map(_from_yaml, arguments))]  # noqa: UP007, which cannot be written with |
        has_one = len([each for each in arguments if each is not NoneType]) == 1
        return either if has_one else Annotated[either, WrapValidator(_naming(annotation))]
    raise TypeError(annotation)


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _naming(annotation: Any) -> Callable[[Any, ValidatorFunctionWrapHandler], Any]:
    """Return a validator with one message for all types that a value may have; Pydantic has one for each of them."""

    def validate(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError:
            text = inspect.formatannotation(annotation).replace("typing.", "")
            raise PydanticCustomError("own_type", "expected {type}", {"type": text}) from None

    return validate


def _describe(error: BaseException, file: Path | None) -> str:
    """Return an error of the user's code in words, and the line of the file that it comes from."""
    if isinstance(error, SyntaxError):
        other = f" of {path_shown(error.filename)}" if error.filename not in (None, str(file)) else ""
        return f"SyntaxError: {error.msg} in line {error.lineno}{other}"
    kind, text = type(error).__name__, str(error).strip()
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if text.startswith("in user code:"):  # TensorFlow's, with a traceback in its text
        lines += re.findall(rf'File "{re.escape(str(file))}", line (\d+)', text)
        kind, _, text = text.rpartition("\n")[2].strip().partition(": ")
    message = f"{kind}: {first_line(text)}" if text else kind
    return f"{message} in line {lines[-1]}" if lines else message


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(f"{error}. Install it, or add its folder to PYTHONPATH") from None


def _import_file(path: Path) -> ModuleType:
    changed = path.stat().st_mtime_ns
    if path in _loaded and _loaded[path][0] == changed:
        return _loaded[path][1]
    place = hashlib.sha256(bytes(path)).hexdigest()[:8]  # two files may have one name
    spec = importlib.util.spec_from_file_location(f"kpipe_own_{path.stem}_{place}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: classes in it are found again by their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    _loaded[path] = changed, module
    return module
