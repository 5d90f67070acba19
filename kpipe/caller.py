"""To whom a message speaks: it names options of the command line, keys of an experiment's file, or arguments."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class _Reader:
    is_on_command_line: bool = False
    is_about_an_experiment: bool = False
    options: tuple[str, ...] = ()


_reader = _Reader()


@contextmanager
def _speaking_to(**changes) -> Iterator[None]:
    global _reader
    before, _reader = _reader, replace(_reader, **changes)
    try:
        yield
    finally:
        _reader = before


def on_command_line() -> AbstractContextManager[None]:
    """Let messages name options of the command line, and keys, inside the `with`."""
    return _speaking_to(is_on_command_line=True)


def about_an_experiment() -> ContextDecorator:
    """Let messages name keys of an experiment's file inside the `with`; also a decorator."""
    return _speaking_to(is_about_an_experiment=True)


def with_options(*keys: str) -> ContextDecorator:
    """Let messages name these settings of the data as options of the verb inside the `with`; also a decorator."""
    return _speaking_to(options=keys)


def for_caller(command_line: str, python: str) -> str:
    """Return the words for the user of the command line, or those for the user of Python, whoever it is."""
    return command_line if _reader.is_on_command_line else python


def flag(name: str) -> str:
    """Return how an option is switched on: `--new` on the command line, `new=True` in Python."""
    return for_caller(f"--{name}", f"{name}=True")


def option(name: str, value: object = None) -> str:
    """Return an option of a verb, or the option with a value: `--image-size 32`, or `image_size=32` in Python."""
    if _reader.is_on_command_line:
        typed = f"--{name.replace('_', '-')}"
        return typed if value is None else f"{typed} {value}"
    return name if value is None else f"{name}={value!r}"


def setting(key: str, value: object = None) -> str:
    """Return the name of a setting of the data, or the setting with a value.

    Args:
        key: its key in the section `data` of an experiment. The argument of a function has the name of its last part.
        value: a word or a number.

    Returns:
        `data.cache` or `data.cache=disk`; where there is no experiment, `cache` or `cache='disk'`. As an option of the
        verb, `--cache disk`, or `cache='disk'` in Python.
    """
    if key not in _reader.options and (_reader.is_on_command_line or _reader.is_about_an_experiment):
        return f"data.{key}" if value is None else f"data.{key}={value}"
    return option(key.rpartition(".")[2], value)
