"""The pictures of a run: learning curves, confusion matrix, predictions. PNG files at 150 dpi.

Everything is drawn on a `matplotlib.figure.Figure` of its own, never through pyplot: no display is needed, no
global state is left behind, and a notebook that imports kpipe keeps its own settings.

N images, H height, W width, C channels, K classes.
"""

import math
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

_DPI = 150
_POINTS_PER_INCH = 72
_INK, _FAINT, _GRID = "#222222", "#9a9a9a", "#e6e6e6"
# Blue and vermilion of Okabe and Ito's palette: told apart under every common colour blindness.
_BLUE, _VERMILION = "#0072B2", "#D55E00"
# Red alone says nothing to some readers, so a wrong prediction also gets a frame.
_RED = "#C1121F"

# split, span, label, look
_CURVES = (
    ("train", "steps", "train, each log line", {"color": _BLUE, "linewidth": 0.8, "alpha": 0.45}),
    ("train", "epoch", "train, whole epoch", {"color": _BLUE, "linewidth": 1.8}),
    ("validation", "epoch", "validation", {"color": _VERMILION, "linewidth": 1.8, "linestyle": "--"}),
)
_MOST_MARKERS = 30  # above, the markers of a curve run into a thick band
_MOST_WRITTEN = 20  # classes; above, neither counts nor all names are readable


def write_curves(path: str | PathLike, records: list[dict[str, Any]]) -> None:
    """Draw loss (left) and accuracy (right) over the steps.

    Args:
        path: the PNG file to write; its folder exists.
        records: the lines of `metrics.jsonl`, each with `step`, `split` and `span`. A line without the drawn
            value is passed over, and so is the test split, which is one number and no curve.

    Raises:
        OSError: the file cannot be written.
    """
    _save(_draw_curves(records), path)


def write_search(
    path: str | PathLike, scores: Sequence[float | None], seconds: Sequence[float], *, objective: str
) -> None:
    """Draw the scores of a search's trials, and the best so far, against trials (left) and time (right).

    Args:
        path: the PNG file to write; its folder exists.
        scores: of the trials in the order in which they ended; None: it has none.
        seconds: when each ended.
        objective: what the score is; of a loss the smallest is the best.

    Raises:
        OSError: the file cannot be written.
    """
    _save(_draw_search(scores, seconds, objective), path)


def write_confusion_matrix(
    path: str | PathLike, labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> None:
    """Draw how often each class was taken for which, coloured by the share of the true class.

    Args:
        path: the PNG file to write; its folder exists.
        labels: int [N], 0..K-1, the true classes.
        predictions: int [N], 0..K-1.
        class_names: K names. Up to 20 classes all names and counts are written, above only some names.

    Raises:
        ValueError: labels and predictions differ in length, or one is no class.
        OSError: the file cannot be written.
    """
    _check_classes("write_confusion_matrix", class_names, labels=labels, predictions=predictions)
    _save(_draw_confusion_matrix(labels, predictions, class_names), path)


def write_predictions(
    path: str | PathLike,
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
    most: int = 25,
) -> None:
    """Draw a grid of images with their true and predicted classes; wrong ones are titled in red.

    Args:
        path: the PNG file to write; its folder exists.
        images: uint8 [N, H, W, C], 0..255. One channel is drawn gray, of more than three the first
            three; a sequence [L, 1, C] as the gray picture [L, C].
        labels: int [N], 0..K-1, the true classes.
        predictions: int [N], 0..K-1.
        probabilities: float [N], 0..1, of the predicted class.
        class_names: K names; long ones are shortened.
        title: of the whole picture.
        most: images drawn, the first ones. Without any image the picture says "none".

    Raises:
        ValueError: the arrays differ in length, or a label or prediction is no class.
        OSError: the file cannot be written.
    """
    _check_classes("write_predictions", class_names, labels=labels, predictions=predictions)
    if not len(images) == len(labels) == len(probabilities):
        raise ValueError(
            f"write_predictions: expected as many images and probabilities as labels ({len(labels)}), "
            f"got {len(images)} images and {len(probabilities)} probabilities."
        )
    drawn = (array[:most] for array in (images, labels, predictions, probabilities))
    _save(_draw_predictions(*drawn, class_names, title=title), path)


def write_image_grid(
    path: str | PathLike,
    rows: Sequence[Sequence[tuple[np.ndarray, str]]],
    headings: Sequence[str],
    *,
    title: str,
) -> None:
    """Draw rows of images, each with a caption below it.

    Args:
        path: the PNG file to write; its folder exists.
        rows: each as many (image uint8 [H, W, C] or float32 of 0..255, caption) as there are headings; images may
            differ in size, and are drawn equally large.
        headings: of the columns.
        title: of the whole picture.

    Raises:
        ValueError: a row has another length than `headings`.
        OSError: the file cannot be written.
    """
    if any(len(row) != len(headings) for row in rows):
        lengths = sorted({len(row) for row in rows})
        raise ValueError(f"write_image_grid: expected {len(headings)} images in each row, got {lengths}.")
    figure = Figure(figsize=(1.9 * len(headings), 2.1 * len(rows) + 0.6), layout=_layout())
    figure.suptitle(_shorten(title, 20 * len(headings)), fontsize=12, fontweight="bold", color=_INK, parse_math=False)
    for place, axes in enumerate(figure.subplots(len(rows), len(headings), squeeze=False).flat):
        row, column = divmod(place, len(headings))
        image, caption = rows[row][column]
        _show_image(axes, np.clip(np.round(image), 0, 255).astype(np.uint8), framed=False)
        if not row:
            axes.set_title(headings[column], fontsize=9, color=_INK, parse_math=False)
        axes.set_xlabel(_shorten(caption, 30), fontsize=7.5, color=_INK, parse_math=False)
    _save(figure, path)


def _check_classes(where: str, class_names: Sequence[str], *, labels: np.ndarray, predictions: np.ndarray) -> None:
    if len(labels) != len(predictions):
        raise ValueError(f"{where}: expected as many predictions as labels, got {len(predictions)} and {len(labels)}.")
    for name, classes in (("labels", labels), ("predictions", predictions)):
        if len(classes) and not 0 <= np.min(classes) <= np.max(classes) < len(class_names):
            raise ValueError(
                f"{where}: expected {name} in 0..{len(class_names) - 1}, got {np.min(classes)}..{np.max(classes)}."
            )


def _save(figure: Figure, path: str | PathLike) -> None:
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes: no reason to trouble the screen.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png", dpi=_DPI, facecolor="white")


def _draw_curves(records: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout=_layout())
    loss, accuracy = figure.subplots(1, 2)
    for axes, metric in ((loss, "loss"), (accuracy, "accuracy")):
        _draw_metric(axes, records, metric)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    low, high = accuracy.get_ylim()
    accuracy.set_ylim(low, min(high, 1 + 0.03 * (1 - low)))  # no ticks above 100%
    handles = {line.get_label(): line for axes in (loss, accuracy) for line in axes.get_lines()}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_metric(axes: Axes, records: list[dict[str, Any]], metric: str) -> None:
    _style(axes, title=metric.capitalize(), grid=True)
    axes.set_xlabel("step", color=_INK, fontsize=9)
    last = 0
    for split, span, label, look in _CURVES:
        points = [
            (record["step"], record[metric])
            for record in records
            if (record["split"], record["span"]) == (split, span) and record.get(metric) is not None
        ]
        if not points:
            continue
        # One logged value alone makes no line; epochs are few enough to be told apart.
        marked = len(points) == 1 or (span == "epoch" and len(points) <= _MOST_MARKERS)
        axes.plot(*zip(*points, strict=True), label=label, marker="o" if marked else "", markersize=4, **look)
        last = max(last, points[-1][0])
    if not last:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=_FAINT)
    axes.set_xlim(0, max(last, 1) * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_search(scores: Sequence[float | None], seconds: Sequence[float], objective: str) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout=_layout())
    best = np.maximum if objective.endswith("accuracy") else np.minimum
    trials = np.arange(1, len(scores) + 1)
    known = np.array([math.nan if score is None else score for score in scores], float)
    so_far = _accumulate(best, known)
    shown, beyond = _within_reach(known, so_far)
    minutes = len(seconds) > 0 and max(seconds) > 300
    times = np.asarray(seconds, float) / (60 if minutes else 1)
    panels = (("trials", "trial", trials), ("time", "minutes" if minutes else "seconds", times))
    for axes, (title, unit, places) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        _style(axes, title=f"{objective} against {title}", grid=True)
        axes.set_xlabel(unit, color=_INK, fontsize=9)
        axes.plot(places, shown, "o", color=_BLUE, alpha=0.45, markersize=4, label="a trial")
        if not np.isnan(beyond).all():
            axes.plot(places, beyond, "x", color=_BLUE, alpha=0.45, markersize=5, label="a trial, worse than drawn")
        axes.step(places, so_far, where="post", color=_VERMILION, linewidth=1.8, label="the best so far")
        axes.set_xlim(0, max(places, default=0) * 1.03 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=title == "trials", steps=[1, 2, 5, 10]))
        if objective.endswith("accuracy"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _within_reach(scores: np.ndarray, so_far: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores that are drawn where they are, and the places of those that would press all others together: more than
    four times as far from the best as the median, and off the curve."""
    if np.isnan(scores).all():
        return scores, scores
    top = so_far[-1]
    reach = max(4 * abs(top - np.nanmedian(scores)), np.nanmax(np.abs(top - so_far)))
    is_far = np.abs(top - scores) > reach
    edge = top + math.copysign(reach, np.nanmedian(scores) - top)
    return np.where(is_far, math.nan, scores), np.where(is_far, edge, math.nan)


def _accumulate(best: np.ufunc, values: np.ndarray) -> np.ndarray:
    """The best of all values up to each, those that are no number passed over."""
    worst = -math.inf if best is np.maximum else math.inf
    found = best.accumulate(np.where(np.isnan(values), worst, values))
    return np.where(np.isinf(found), math.nan, found)


def _draw_confusion_matrix(labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]) -> Figure:
    classes = len(class_names)
    counts = _count_pairs(labels, predictions, classes)
    # A class without images has no shares; its row stays empty.
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = max(0.45, 4 / classes) if classes <= _MOST_WRITTEN else 9 / classes  # inches
    figure = Figure(figsize=(cell * classes + 2.8, cell * classes + 2.0), layout=_layout())
    axes = figure.subplots()
    right = f", {np.trace(counts) / len(labels):.1%} right" if len(labels) else ""
    _style(axes, title=f"Confusion matrix: {len(labels):,} images{right}", grid=False)
    # Where no count is written, the square root makes mistakes of a few percent visible.
    norm = PowerNorm(1 if classes <= _MOST_WRITTEN else 0.5, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap="Blues", norm=norm)
    _label_classes(axes, class_names)
    if classes <= _MOST_WRITTEN:
        _write_counts(axes, counts, shares, cell)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=_INK)
    bar.set_label("share of the true class", color=_INK, fontsize=9)
    return figure


def _count_pairs(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """int [K, K]: row = true class, column = predicted class."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(labels, np.int64), np.asarray(predictions, np.int64)), 1)
    return counts


def _label_classes(axes: Axes, class_names: Sequence[str]) -> None:
    shown = range(0, len(class_names), math.ceil(len(class_names) / _MOST_WRITTEN))
    names = [_shorten(class_names[index], 20) for index in shown]
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 3 else {}
    axes.set_xticks(shown, names, parse_math=False, **slanted)
    axes.set_yticks(shown, names, parse_math=False)
    axes.set_xlabel("predicted", color=_INK, fontsize=9)
    axes.set_ylabel("true", color=_INK, fontsize=9)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, cell: float) -> None:
    digits = len(str(counts.max()))
    # A digit is 0.64 em wide in the default font; the number fills at most 85% of its cell.
    size = min(9.0, 0.85 * cell * _POINTS_PER_INCH / (0.64 * digits))
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.65 else _INK if count else _FAINT
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=color)


def _draw_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
) -> Figure:
    # Three columns at least: the title needs the width.
    columns = max(3, math.ceil(math.sqrt(len(images))))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(2.1 * columns, 2.3 * rows + 0.5), layout=_layout())
    figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK, parse_math=False)
    if not len(images):
        figure.text(0.5, 0.45, "none", ha="center", va="center", fontsize=12, color=_FAINT)
    grid = figure.add_gridspec(rows, columns)
    for index, (image, label, prediction, probability) in enumerate(
        zip(images, labels, predictions, probabilities, strict=True)
    ):
        axes = figure.add_subplot(grid[divmod(index, columns)])
        _show_image(axes, image, framed=label != prediction)
        true, predicted = (_shorten(class_names[number], 14) for number in (label, prediction))
        text = f"true: {true}\npredicted: {predicted} ({probability:.0%})"
        color = _INK if label == prediction else _RED
        axes.set_title(text, fontsize=7.5, color=color, parse_math=False)
    return figure


def _show_image(axes: Axes, image: np.ndarray, *, framed: bool) -> None:
    pixels = _displayable(image)
    height, width = pixels.shape[:2]
    # A long sequence, drawn in square pixels, would be a hairline.
    aspect = "equal" if max(height, width) <= 4 * min(height, width) else "auto"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect=aspect)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=framed, color=_RED, linewidth=2)


def _displayable(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] of uint8 [H, W, C]; the missing third of two channels is black.

    A sequence of one-hot characters, [L, 1, V], becomes the gray picture [L, V].
    """
    if image.shape[-1] == 1:
        return image[..., 0]
    if image.shape[1] == 1 and image.shape[-1] > 3:
        return image[:, 0, :]
    channels = image[..., :3]
    return np.pad(channels, ((0, 0), (0, 0), (0, 3 - channels.shape[-1])))


def _shorten(name: str, most: int) -> str:
    """On one line, at most `most` characters; both ends stay, for names often differ in the last word."""
    name = " ".join(str(name).split())
    if len(name) <= most:
        return name
    head, tail = most // 2, most - most // 2 - 1
    return f"{name[:head].rstrip()}…{name[-tail:].lstrip()}"


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches; the default margin is a hair


def _style(axes: Axes, *, title: str, grid: bool) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=_INK)
    if grid:
        axes.spines["bottom"].set(visible=True, color=_FAINT)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
