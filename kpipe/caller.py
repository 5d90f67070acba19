"""To whom a message speaks: it names options of the command line, keys of an experiment's file, or arguments."""

from collections.abc import Iterator
from contextlib import contextmanager

_is_on_command_line = _is_about_an_experiment = False
_options: tuple[str, ...] = ()


@contextmanager
def on_command_line() -> Iterator[None]:
    """Let messages name options of the command line, and keys, inside the `with`."""
    global _is_on_command_line
    before, _is_on_command_line = _is_on_command_line, True
    try:
        yield
    finally:
        _is_on_command_line = before


@contextmanager
def about_an_experiment() -> Iterator[None]:
    """Let messages name keys of an experiment's file inside the `with`; also a decorator."""
    global _is_about_an_experiment
    before, _is_about_an_experiment = _is_about_an_experiment, True
    try:
        yield
    finally:
        _is_about_an_experiment = before


@contextmanager
def with_options(*keys: str) -> Iterator[None]:
    """Let messages name these settings of the data as options of the verb inside the `with`; also a decorator."""
    global _options
    before, _options = _options, keys
    try:
        yield
    finally:
        _options = before


def for_caller(command_line: str, python: str) -> str:
    """Return the words for the user of the command line, or those for the user of Python, whoever it is."""
    return command_line if _is_on_command_line else python


def flag(name: str) -> str:
    """Return how an option is switched on: `--new` on the command line, `new=True` in Python."""
    return for_caller(f"--{name}", f"{name}=True")


def setting(key: str, value: object = None) -> str:
    """Return the name of a setting of the data, or the setting with a value.

    Args:
        key: its key in the section `data` of an experiment. The argument of a function has the name of its last part.
        value: a word or a number.

    Returns:
        `data.cache` or `data.cache=disk`; where there is no experiment, `cache` or `cache='disk'`. As an option of the
        verb, `--cache disk`, or `cache='disk'` in Python.
    """
    is_option = key in _options
    if is_option and _is_on_command_line:
        option = f"--{key.replace('_', '-')}"
        return option if value is None else f"{option} {value}"
    if not is_option and (_is_on_command_line or _is_about_an_experiment):
        return f"data.{key}" if value is None else f"data.{key}={value}"
    argument = key.rpartition(".")[2]
    return argument if value is None else f"{argument}={value!r}"
