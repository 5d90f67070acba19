"""Names and captions, cut or broken to the room that a figure has for them.

Room is counted in columns: an average letter takes one, a Chinese one two, and a mark above or below a letter none.
"""

import math
import os
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from kpipe.names import printable, quoted

_POINTS_PER_INCH = 72
_CHARACTER, _BOLD = 0.6, 0.7  # em: the width of a column in the default font, at most
_LEAST = 6  # columns of folders that say something


def count_columns(text: str) -> int:
    """Return how many columns a text takes."""
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(inches: float, size: float) -> int:
    """Return how many columns of a size in points fit in a width."""
    return max(4, int(inches * _POINTS_PER_INCH / (_CHARACTER * size)))


# One name.


def label(name: str, most: int) -> str:
    """Return the name of a class on one line of at most `most` columns; one of spaces alone is put in quotes.

    A longer name keeps its beginning and its end, as names often differ at their end: `German sho…pointer`.
    """
    return _cut(_on_one_line(name), most)


def _on_one_line(name: str) -> str:
    text = printable(name)
    return quoted(text) if text.isspace() else " ".join(text.split())


def run_label(run: str, experiment: str = "", most: int = 60) -> str:
    """Return the name of a run, of at most `most` columns, after that of its experiment.

    The name of a run begins with a time, which says which run it is, so it is cut at its end alone.
    """
    text = _on_one_line(run)
    if count_columns(text) > most:
        text = f"{_first(text, most - 1).rstrip()}…"
    return f"{label(experiment, most)} · {text}" if experiment else text


def isolated(name: str) -> str:
    """Return a name as a part of a longer text: one that is written from right to left reorders nothing around it."""
    is_reordering = any(unicodedata.bidirectional(each) in ("R", "AL") for each in name)
    return f"\u2068{name}\u2069" if is_reordering else name


def _cut(text: str, most: int, head: int | None = None) -> str:
    """Return text of at most `most` columns, of which `head` are its beginning: by default half of them."""
    if count_columns(text) <= most:
        return text
    head = most // 2 if head is None else head
    return f"{_first(text, head).rstrip()}…{_last(text, most - 1 - head).lstrip()}"


def _first(text: str, most: int) -> str:
    columns = 0
    for place, character in enumerate(text):
        columns += _columns_of(character)
        if columns > most:
            return text[:place]
    return text


def _last(text: str, most: int) -> str:
    end = _first(text[::-1], most)[::-1]
    start = next((place for place, each in enumerate(end) if not unicodedata.category(each).startswith("M")), len(end))
    return end[start:]  # a mark without its letter would stand alone


# The names of one figure.


def distinct_labels(names: Iterable[str], most: int) -> list[str]:
    """Return the names of a figure as `label` does, but different names stay different.

    Args:
        names: of classes or layers, those that the figure shows.
        most: columns of each.
    """
    names = list(names)
    texts = {name: _on_one_line(name) for name in dict.fromkeys(names)}
    labels = {name: _cut(text, most) for name, text in texts.items()}
    groups: dict[str, list[str]] = {}
    for name in labels:
        groups.setdefault(labels[name], []).append(name)
    for group in groups.values():
        if len(group) > 1:
            labels.update(zip(group, _cut_apart([texts[name] for name in group], most), strict=True))
    _number_equal(labels, most)
    return [labels[name] for name in names]


def path_labels(paths: Iterable[str], most: int) -> list[str]:
    """Return paths of at most `most` columns, of which the folders are cut first; different ones stay different."""
    paths = list(paths)
    parts = {path: path.rpartition("/") for path in paths}
    names = [name for _, _, name in parts.values()]
    short = dict(zip(names, distinct_labels(names, most), strict=True))
    labels = {path: _join(folder + slash, short[name], most) for path, (folder, slash, name) in parts.items()}
    _number_equal(labels, most)
    return ["/".join(map(isolated, labels[path].split("/"))) for path in paths]


def _join(folder: str, name: str, most: int) -> str:
    folder, room = _on_one_line(folder) if folder else "", most - count_columns(name)
    if count_columns(folder) <= room:
        return folder + name
    return _cut(folder, room) + name if room >= _LEAST else name


def _cut_apart(texts: Sequence[str], most: int) -> list[str]:
    """Cut texts where their ends, or what comes after their common beginning, tell them apart."""
    common, few = os.path.commonprefix(texts), most // 4
    # Differences deep in the middle: little of the common beginning stays, and of the word in which they differ.
    start = max(len(common) - few, 1 + max(map(common.rfind, " _-")))
    without = [f"{text[:few]}…{text[start:]}" if start > few else text for text in texts]
    for candidates in (texts, without):
        heads = sorted(range(most), key=lambda head: abs(head - most // 2))
        cuts = [[_cut(text, most, head) for text in candidates] for head in heads]
        different = [found for found in cuts if len(set(found)) == len(texts)]
        # Half of a number is another number.
        whole = (found for found in different if not any(map(_divides_number, candidates, found)))
        if different:
            return next(whole, different[0])
    return [_cut(text, most) for text in texts]


def _divides_number(text: str, cut: str) -> bool:
    head, ellipsis, tail = cut.rpartition("…")
    ends = text[max(0, len(head) - 1) : len(head) + 1], text[-len(tail) - 1 :][:2] if tail else ""
    return bool(ellipsis) and any(len(end) == 2 and end.isdigit() for end in ends)


def _number_equal(labels: dict[str, str], most: int) -> None:
    """Number labels that are still equal."""
    counts, taken = Counter(labels.values()), set(labels.values())
    for name, text in labels.items():
        if counts[text] > 1:
            endings = (f" ({number})" for number in range(1, len(labels) * 2 + 1))
            new = (_cut(text, most - len(ending)) + ending for ending in endings)
            labels[name] = next(each for each in new if each not in taken)
            taken.add(labels[name])


# Several lines.


def two_lines(texts: Iterable[str], most: int) -> list[str]:
    """Return captions of at most two lines of `most` columns; different ones stay different.

    Args:
        texts: captions; a line break in one stays where it is.
        most: columns of a line.
    """
    texts = list(texts)
    parts = [text.partition("\n") for text in texts]
    above = distinct_labels([first for first, line_break, _ in parts if line_break], most)
    below = distinct_labels([" ".join(rest.split()) for _, line_break, rest in parts if line_break], most)
    # Words do not fill a line to its end.
    whole = iter(distinct_labels([first for first, line_break, _ in parts if not line_break], most * 7 // 4))
    broken = iter(zip(above, below, strict=True))
    return ["\n".join(next(broken)) if line_break else _break(next(whole), most) for _, line_break, _ in parts]


def _break(text: str, most: int) -> str:
    """Break a text of less than two lines, between words where that is enough."""
    lines = _wrap(text, most)
    if len(lines) > 2:
        first = _first(text, most)
        lines = [first, text[len(first) :]]
    return "\n".join(lines)


def wrap(text: str, inches: float, size: float, *, bold: bool = False) -> str:
    """Return a text of which no line is wider than this; parts of a broken line are about equally long."""
    most = max(4, int(inches * _POINTS_PER_INCH / ((_BOLD if bold else _CHARACTER) * size)))
    return "\n".join(_break_evenly(line, most) for line in text.split("\n"))


def _break_evenly(line: str, most: int) -> str:
    columns = count_columns(line)
    count = math.ceil(columns / most)
    for width in range(math.ceil(columns / max(1, count)), most + 1):
        lines = _wrap(line, max(1, width))
        if len(lines) <= count:
            return "\n".join(lines)
    return "\n".join(_wrap(line, most))


def _wrap(text: str, most: int) -> list[str]:
    """Break text as `textwrap.wrap` does, but by columns."""
    # A character of two columns is two characters while it is broken. Hyphens are in times and names.
    padded = re.sub(".", lambda found: found[0] + "\0" * (_columns_of(found[0]) == 2), text)
    return [line.replace("\0", "") for line in textwrap.wrap(padded, most, break_on_hyphens=False)]
