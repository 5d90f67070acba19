"""Errors that a user of kpipe can meet: a class and an exit code for each kind.

Every message says what was expected, what was given, and what to do. The command line prints only the message. A
traceback is for mistakes in kpipe itself.
"""

import difflib
from collections.abc import Iterable, Sequence


class KpipeError(Exception):
    """Base of all errors that the command line prints as a message and turns into `exit_code`."""

    exit_code = 1


class ConfigError(KpipeError, ValueError):
    """A mistake in an experiment file, an override or an argument."""

    exit_code = 2


class DataError(KpipeError, ValueError):
    """Data that is missing or cannot be used."""

    exit_code = 3


class Diverged(KpipeError):
    """The loss, a weight or a variable of the optimizer is no longer finite.

    Attributes:
        reason: the message without what is kept of the run.
    """

    exit_code = 4

    def __init__(self, reason: str, kept: str | None = None):
        super().__init__(f"{reason}. {kept}" if kept else reason)
        self.reason = reason


class EnvironmentFault(KpipeError):
    """A fault of the machine: no permission, disk or memory, or the run belongs to another process."""

    exit_code = 5


class OutOfMemory(EnvironmentFault):
    """The memory is too small for this experiment. A smaller one may fit."""


class Interrupted(KpipeError):
    """A signal ended the run, which can be resumed. Exit code 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `", did you mean 'sgd'?"` for the nearest known name, else the list of known names."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name).lower(), known, n=1)
    if nearest:
        return f", did you mean '{nearest[0]}'?"
    return f" (known: {', '.join(known)})" if known else ""


SHOWN = 5  # names in a message before it says how many more there are


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def first_line(error: Exception) -> str:
    """Return the first line of an error, at most 150 characters: libraries explain at length."""
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__
