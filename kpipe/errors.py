"""Errors that a user of kpipe can meet: a class and an exit code for each kind.

Every message says what was expected, what was given, and what to do. The command line prints only the message. A
traceback is for mistakes in kpipe itself.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from kpipe.names import printable, quoted, shorten

SHOWN = 5  # names in a message before it says how many more there are
_LONGEST_LINE = 150  # characters of another library's error


class KpipeError(Exception):
    """Base of all errors that the command line prints as a message and turns into `exit_code`."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        # IPython prints this instead of a traceback: a notebook shows the message alone, too.
        return [f"{type(self).__name__}: {self}"]


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


class Stuck(Diverged):
    """The training loss stays at that of guessing, and `training.when_stuck` is `stop`."""


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
    """Return `", did you mean 'sgd'?"` for the nearest known name, else the list of known names.

    Where names are numbered, as `vgg11` and `vgg16` are, a number that none of them has means them all. A word that
    only one known name contains means that name: `bfloat16` is `mixed_bfloat16`.
    """
    known = list(known)
    containing = [each for each in known if str(name).lower() in each.split("_")]
    nearest = nearest_name(name, known) or (containing[0] if len(containing) == 1 else None)
    if nearest:
        *others, last = [f"'{each}'" for each in _numbered_alike(str(name), nearest, known)]
        return f", did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
    return f" (known: {', '.join(known)})" if known else ""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant; None where none is near.

    Letters in another order are near (`sdg`). Otherwise three quarters of the letters must agree: `resnet50` is not a
    slip of the pen for `lenet5`.
    """
    word, known = str(name).lower(), list(known)
    swapped = [each for each in known if sorted(each) == sorted(word)]
    return next(iter(swapped or difflib.get_close_matches(word, known, n=1, cutoff=0.75)), None)


def _numbered_alike(name: str, nearest: str, known: Sequence[str]) -> list[str]:
    """Return the known names that differ from `nearest` only after their word, if `name` does too; else `nearest`."""
    (word, number), (nearest_word, nearest_number) = _word_and_number(name.lower()), _word_and_number(nearest)
    alike = [each for each in known if _word_and_number(each)[0] == word]
    is_number_wrong = word and word == nearest_word and number != nearest_number
    return alike if is_number_wrong and len(alike) <= 2 * SHOWN else [nearest]


def _word_and_number(name: str) -> tuple[str, str]:
    """Return `("vgg", "16")` of `vgg16_c`."""
    word, number = re.match(r"(\D*)(\d*)", name).groups()
    return word, number


def some(names: Sequence[str], show: Callable[[str], str] = quoted, most: int = SHOWN) -> str:
    """Return the first few names of files or classes, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(show, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def first_line(error: Exception | str) -> str:
    """Return the first line of an error or its text, and of a long one whole sentences: libraries explain at length."""
    lines = str(error).strip().splitlines()
    line = printable(lines[0]) if lines else type(error).__name__
    if len(line) <= _LONGEST_LINE:
        return line
    sentences, words = (line[: _LONGEST_LINE - 1].rpartition(end)[0] for end in (". ", " "))
    return sentences or (f"{words} …" if words else shorten(line, _LONGEST_LINE))
