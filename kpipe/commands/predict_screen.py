"""What `kpipe predict` prints: a table, CSV or JSON."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from kpipe.console import Screen, counted
from kpipe.evaluation.predictions import Prediction
from kpipe.names import printable, shorten

_LONGEST_CLASS = (24, 14)  # characters of a class name in the table, and where only one class would fit
_OF_FILES = 0.4  # fraction of the screen's width that long paths take from the classes
_DIGITS = 7  # that are significant in float32

Write = Callable[[Prediction], None]
"""Prints the predictions one after the other."""


def csv_writer() -> Write:
    """Return a function that prints a line for each class of an image: its columns are the same whatever `top` is."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["file", "rank", "class", "probability"])

    def write(prediction: Prediction) -> None:
        for rank, (name, probability) in enumerate(_ranked(prediction), 1):
            rows.writerow([prediction.file, rank, name, probability])

    return write


def jsonl_writer() -> Write:
    """Return a function that prints one JSON object a line."""

    def write(prediction: Prediction) -> None:
        ranked = [{"class": name, "probability": probability} for name, probability in _ranked(prediction)]
        print(json.dumps({"file": prediction.file, "predictions": ranked}))

    return write


def _ranked(prediction: Prediction) -> Iterator[tuple[str, float]]:
    """Yield class names and probabilities, without digits that mean nothing."""
    for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
        yield name, float(f"{probability:.{_DIGITS}g}")


def table_writer(screen: Screen, files: Sequence[str], class_names: Sequence[str], top: int) -> Write:
    """Return a function that prints an image in a row with as many classes as fit; a single image in a column.

    Args:
        screen: where to print.
        files: all files, whose paths make the first column.
        class_names: K names.
        top: number of classes for each image.
    """
    if len(files) == 1:
        return lambda prediction: _print_single(prediction, screen)
    top = min(top, len(class_names))
    for longest in _LONGEST_CLASS:
        name_width = min(longest, _widest(class_names))
        file_width, fitting = _columns(screen, _widest(files), top, len("  100.0 % ") + name_width)
        if fitting > 1:
            break
    heading = "most probable classes" if fitting == top else f"{fitting} most probable of {counted(top, 'class')}"
    is_first = True

    def write(prediction: Prediction) -> None:
        nonlocal is_first
        if is_first:
            screen.line(f"{_fit('file', file_width)}  {heading}", style="bold")
            is_first = False
        ranked = zip(prediction.probabilities[:fitting], prediction.classes, strict=False)
        cells = [f"  {100 * probability:5.1f} % {_fit(name, name_width)}" for probability, name in ranked]
        screen.line(f"{_fit(prediction.file, file_width)}{''.join(cells)}".rstrip())

    return write


def _columns(screen: Screen, longest: int, top: int, cell: int) -> tuple[int, int]:
    """Return the width of the column of files, and how many cells of classes fit beside it: one at least."""
    if not screen.console.is_terminal:
        return longest, top
    width = screen.console.width
    file_width = min(longest, max(int(_OF_FILES * width), width - top * cell))
    return file_width, max(1, min(top, (width - file_width) // cell))


def _print_single(prediction: Prediction, screen: Screen) -> None:
    screen.line(prediction.file, style="bold")
    for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
        screen.line(f"  {100 * probability:6.2f} %  {name}")


def _widest(texts: Iterable[str]) -> int:
    return max(cell_len(printable(text)) for text in texts)


def _fit(text: str, cells: int) -> str:
    """Return text in exactly so many cells of a terminal, on which some letters take two."""
    text = fitted = printable(text)
    while (excess := cell_len(fitted) - cells) > 0:
        fitted = shorten(text, len(fitted) - -(-excess // 2))
    return set_cell_size(fitted, cells)
