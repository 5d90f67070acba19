"""What a network takes for what: the confusion matrix, the pairs that it confuses most, each class. K classes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from kpipe.console import counted
from kpipe.figures.labels import count_columns, distinct_labels, isolated, wrap
from kpipe.figures.style import BLUE, CAPTION, FAINT, GRID, INK, add_caption, make_layout, style_axes

_POINTS_PER_INCH = 72
_CHARACTER = 0.64  # em: the width of a digit in the default font, and of an average letter at most
_MOST_WRITTEN = 20  # classes; above, counts do not fit into their cells
_MOST_IN_MATRIX = 30  # classes; above, its names and cells could not be read
_MOST_BARS = 40  # pairs or classes in a figure
_LONGEST_NAME, _LONGEST_OF_PAIR, _LONGEST_OF_BAR = 24, 26, 36  # columns
_NAME_SIZE = 8  # points
_LARGEST = 9  # inches, of the matrix


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], *, caption: str = "") -> Figure:
    """Draw how often each class was predicted for which: the matrix, or above 30 classes the most frequent pairs.

    Args:
        counts: int [K, K]: row = true class, column = predicted class.
        class_names: K names; long ones are shortened. In a matrix, counts are written for up to 20 classes. Its colors
            are fractions of the true class.
        caption: the line below the figure.

    Raises:
        ValueError: the counts are not [K, K].
    """
    classes = len(class_names)
    if np.shape(counts) != (classes, classes):
        got = list(np.shape(counts))
        raise ValueError(f"draw_confusion: expected counts [{classes}, {classes}], got {got}.")
    if classes > _MOST_IN_MATRIX:
        return _draw_pairs(counts, class_names, caption)
    # A class without images has no fractions; its row stays empty.
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = distinct_labels(class_names, _LONGEST_NAME)
    name_width = (max(map(count_columns, names)) + 1) * _CHARACTER * _NAME_SIZE / _POINTS_PER_INCH
    cell = min(max(0.45, 4 / classes, name_width), _LARGEST / classes)  # inches
    figure = Figure(figsize=(cell * classes + 2.8, cell * classes + 2.2), layout=make_layout())
    add_caption(figure, caption)
    axes = figure.subplots()
    images = int(counts.sum())
    correct = f", {np.trace(counts) / images:.1%} correct" if images else ""
    title = f"Confusion matrix: {counted(images, 'image')}{correct}"
    style_axes(axes, title=wrap(title, cell * classes + 1.7 - name_width / 2, 11, bold=True), grid=False)
    # Where no count is written, the square root makes mistakes of a few percent visible.
    norm = PowerNorm(1 if classes <= _MOST_WRITTEN else 0.5, vmin=0, vmax=1)
    image = axes.imshow(fractions, cmap="Blues", norm=norm)
    _label_classes(axes, names, slanted=name_width > cell)
    if classes <= _MOST_WRITTEN:
        _write_counts(axes, counts, fractions, cell)
    _add_colorbar(axes, image)
    return figure


def draw_class_accuracy(counts: np.ndarray, class_names: Sequence[str], *, caption: str = "") -> Figure:
    """Draw the accuracy of each class, the lowest first; of more than 40 classes, the 40 lowest.

    Args:
        counts: int [K, K]: row = true class, column = predicted class. A class without images is left out.
        class_names: K names; long ones are shortened.
        caption: the line below the figure.
    """
    images = counts.sum(1)
    there = np.flatnonzero(images)
    accuracies = np.diagonal(counts)[there] / images[there]
    # Of classes with the same accuracy, the one with the most images says the most.
    order = np.lexsort((-images[there], accuracies))[:_MOST_BARS]
    names = distinct_labels([class_names[there[place]] for place in order], _LONGEST_OF_BAR)
    texts = [f"n = {images[there[place]]:,}" for place in order]
    rows = list(zip(names, accuracies[order], texts, strict=True))
    figure, axes = _draw_bars(rows, _title_of_accuracies(accuracies, len(order)), caption)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    mean = np.trace(counts) / max(1, counts.sum())
    axes.axvline(mean, color=INK, linewidth=1, linestyle=":")
    axes.set_xlabel(f"accuracy (dotted line: all images, {mean:.1%})\nn = images per class", color=INK, fontsize=9)
    return figure


def _title_of_accuracies(accuracies: np.ndarray, drawn: int) -> str:
    classes, zeros = len(accuracies), int(np.sum(accuracies == 0))
    if zeros >= drawn < classes:
        return f"{zeros:,} of {classes:,} classes have an accuracy of 0: the {drawn} with the most images"
    if drawn < classes:
        return f"The {drawn} classes with the lowest accuracy, of {classes:,}"
    return "Accuracy of each class: all are 0" if 0 < classes == zeros else "Accuracy of each class"


def _draw_pairs(counts: np.ndarray, class_names: Sequence[str], caption: str) -> Figure:
    mistakes = np.array(counts)
    np.fill_diagonal(mistakes, 0)
    cells = np.argwhere(mistakes)
    order = np.argsort(-mistakes[tuple(cells.T)], kind="stable")[:_MOST_BARS]
    pairs, wrong = cells[order].tolist(), int(mistakes.sum())
    title = f"The {len(pairs)} most frequent confusions: {counted(int(counts.sum()), 'image')}, {wrong:,} wrong"
    classes = sorted({number for pair in pairs for number in pair})
    labels = distinct_labels([class_names[number] for number in classes], _LONGEST_OF_PAIR)
    names = dict(zip(classes, map(isolated, labels), strict=True))
    rows = [
        (
            f"{names[true]} taken for {names[predicted]}",
            float(mistakes[true, predicted]),
            f"{mistakes[true, predicted]:,} of {counts[true].sum():,}",
        )
        for true, predicted in pairs
    ]
    figure, axes = _draw_bars(rows, title if rows else "No confusions", caption)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("images, and of how many of the true class", color=INK, fontsize=9)
    return figure


def _draw_bars(rows: Sequence[tuple[str, float, str]], title: str, caption: str) -> tuple[Figure, Axes]:
    """Draw bars from the top down, each (name, length, text at its end)."""
    figure = Figure(figsize=(8, 0.22 * max(len(rows), 4) + 1.6), layout=make_layout())
    add_caption(figure, caption)
    axes = figure.subplots()
    name_width = (
        max((count_columns(name) for name, _, _ in rows), default=0) * _CHARACTER * _NAME_SIZE / _POINTS_PER_INCH
    )
    style_axes(axes, title=wrap(title, 7.6 - name_width, 11, bold=True), grid=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    places = range(len(rows))
    axes.barh(places, [length for _, length, _ in rows], color=BLUE, height=0.7)
    axes.set_yticks(places, [name for name, _, _ in rows], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    for place, (_, length, text) in zip(places, rows, strict=True):
        look = {"fontsize": 7, "color": CAPTION, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
        axes.annotate(text, (length, place), (3, 0), textcoords="offset points", va="center", **look)
    return figure, axes


def _add_colorbar(axes: Axes, image: AxesImage) -> None:
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.set_label("fraction of the true class", color=INK, fontsize=9)


def _label_classes(axes: Axes, names: Sequence[str], *, slanted: bool) -> None:
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(len(names)), names, parse_math=False, **slant)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted", color=INK, fontsize=9)
    axes.set_ylabel("true", color=INK, fontsize=9)


def _write_counts(axes: Axes, counts: np.ndarray, fractions: np.ndarray, cell: float) -> None:
    digits = len(str(counts.max()))
    size = min(11, 0.85 * cell * _POINTS_PER_INCH / (_CHARACTER * digits))  # points; at most 85% of the cell
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if fractions[row, column] > 0.65 else INK if count else FAINT
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)
