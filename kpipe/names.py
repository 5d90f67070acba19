"""Names that users and their files bring, as a screen, a shell and a text file can take them.

The name of a file may hold anything but a slash and a NUL: line breaks, sequences that a terminal obeys, bytes that are
not UTF-8. Python keeps such a byte as half of a surrogate pair, which can be neither printed nor written.
"""

import json
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_SPELLING = "\u200c\u200d\u3000"
_LONGEST = 60  # characters of a name, or of a part of a path, that a message shows


def printable(text: str) -> str:
    """Return text on one line, with escapes for what a screen obeys or cannot show.

    These are control characters, line breaks, marks that change the direction of writing, and bytes that are not UTF-8.
    Letters of all languages stay, with the joiners and the wide space that their words need.
    """
    return "".join(each if each.isprintable() or each in _SPELLING else _escape(each) for each in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte
    if 0x80 <= code <= 0xFF:
        return f"\\u{code:04x}"
    return character.encode("unicode_escape").decode()


def shown(name: str) -> str:
    """Return a name or a path as a message shows it: printable, its long parts shortened."""
    return "/".join(shorten(part, _LONGEST) for part in printable(name).split("/"))


def path_shown(path: object) -> str:
    """Return a path as a message shows it that people copy from: printable, and whole."""
    return printable(str(path))


def from_here(path: Path) -> str:
    """Return a path as it is typed in the working directory: relative, where it lies in it."""
    with suppress(OSError, ValueError):  # the working directory has been deleted; the path lies elsewhere
        return str(path.relative_to(Path.cwd()))
    return str(path)


def quoted(name: str) -> str:
    """Return the name of a file or a class as a message shows it, in quotes."""
    return in_quotes(shown(name))


def in_quotes(text: str) -> str:
    """Return text, printable and in quotes."""
    quote = '"' if "'" in text else "'"
    return quote + printable(text).replace(quote, "\\" + quote) + quote


def shorten(text: str, most: int) -> str:
    """Return text of at most `most` characters; both ends stay, as names often differ at the end."""
    if len(text) <= most:
        return text
    head, tail = most // 2, most - most // 2 - 1
    return f"{text[:head].rstrip()}…{text[-tail:].lstrip()}"


def short_endings(keys: Iterable[str]) -> dict[str, str]:
    """Return the shortest unique end of each dotted key, of at least two words."""
    keys, endings = list(keys), {}
    for key in keys:
        words = key.split(".")
        lengths = range(min(2, len(words)), len(words) + 1)
        ends = (".".join(words[-length:]) for length in lengths)
        endings[key] = next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)
    return endings


def is_utf8(text: str) -> bool:
    """Return whether a name or a path is valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shell_quoted(argument: str) -> str:
    """Return an argument of a command that can be shown and pasted into bash or zsh."""
    if argument.isprintable():
        return shlex.quote(argument)
    return "$'" + printable(argument.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def as_line(name: str) -> str:
    """Return the name as one line of a text file: as it is, or as a JSON string.

    It is a JSON string, in ASCII, where it is not printable or begins with a quotation mark. `json.loads` returns the
    name, and `os.fsencode` of that its bytes.
    """
    return name if name.isprintable() and not name.startswith('"') else json.dumps(name)


def from_line(line: str) -> str:
    """Return the name that `as_line` wrote. Raises ValueError for a damaged one."""
    return json.loads(line) if line.startswith('"') else line
