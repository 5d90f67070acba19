"""The confusion matrix. K classes."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter

from kpipe.console import counted
from kpipe.figures.style import FAINT, INK, add_caption, label, make_layout, style_axes

_POINTS_PER_INCH = 72
_CHARACTER = 0.64  # em: the width of a digit in the default font, and of an average letter at most
_MOST_WRITTEN = 20  # classes; above, counts do not fit into their cells
_MOST_NAMES = 40  # above, the names of neighboring classes would run into each other
_LONGEST_NAME = 20  # characters
_NAME_SIZE = 8  # points
_LARGEST = 9  # inches, of the matrix


def draw_confusion_matrix(counts: np.ndarray, class_names: Sequence[str], *, caption: str = "") -> Figure:
    """Draw how often each class was predicted for which, colored by the fraction of the true class.

    Args:
        counts: int [K, K]: row = true class, column = predicted class.
        class_names: K names; long ones are shortened. Counts are written for up to 20 classes; of more than 40
            classes, every second, third and so on has its name written.
        caption: the line below the figure.

    Raises:
        ValueError: the counts are not [K, K].
    """
    classes = len(class_names)
    if np.shape(counts) != (classes, classes):
        got = list(np.shape(counts))
        raise ValueError(f"draw_confusion_matrix: expected counts [{classes}, {classes}], got {got}.")
    # A class without images has no fractions; its row stays empty.
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [label(name, _LONGEST_NAME) for name in class_names]
    name_width = (max(map(len, names)) + 1) * _CHARACTER * _NAME_SIZE / _POINTS_PER_INCH
    cell = min(max(0.45, 4 / classes, name_width), _LARGEST / classes)  # inches
    figure = Figure(figsize=(cell * classes + 2.8, cell * classes + 2.2), layout=make_layout())
    add_caption(figure, caption)
    axes = figure.subplots()
    images = int(counts.sum())
    correct = f", {np.trace(counts) / images:.1%} correct" if images else ""
    style_axes(axes, title=f"Confusion matrix: {counted(images, 'image')}{correct}", grid=False)
    # Where no count is written, the square root makes mistakes of a few percent visible.
    norm = PowerNorm(1 if classes <= _MOST_WRITTEN else 0.5, vmin=0, vmax=1)
    image = axes.imshow(fractions, cmap="Blues", norm=norm)
    _label_classes(axes, names, slanted=name_width > cell)
    if classes <= _MOST_WRITTEN:
        _write_counts(axes, counts, fractions, cell)
    _add_colorbar(axes, image)
    return figure


def _add_colorbar(axes: Axes, image: AxesImage) -> None:
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    bar.set_label("fraction of the true class", color=INK, fontsize=9)


def _label_classes(axes: Axes, names: Sequence[str], *, slanted: bool) -> None:
    shown = range(0, len(names), math.ceil(len(names) / _MOST_NAMES))
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(shown, [names[place] for place in shown], parse_math=False, **slant)
    axes.set_yticks(shown, [names[place] for place in shown], parse_math=False)
    axes.set_xlabel("predicted", color=INK, fontsize=9)
    axes.set_ylabel("true", color=INK, fontsize=9)


def _write_counts(axes: Axes, counts: np.ndarray, fractions: np.ndarray, cell: float) -> None:
    digits = len(str(counts.max()))
    size = min(11, 0.85 * cell * _POINTS_PER_INCH / (_CHARACTER * digits))  # points; at most 85% of the cell
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if fractions[row, column] > 0.65 else INK if count else FAINT
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)
