"""The learning curves of a run."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from kpipe.figures.style import (
    BLUE,
    FAINT,
    INK,
    VERMILION,
    make_layout,
    style_axes,
)

# split, span, label, line style
_CURVES = (
    ("train", "steps", "train, each log line", {"color": BLUE, "linewidth": 0.8, "alpha": 0.45}),
    ("train", "epoch", "train, whole epoch", {"color": BLUE, "linewidth": 1.8}),
    ("validation", "epoch", "validation", {"color": VERMILION, "linewidth": 1.8, "linestyle": "--"}),
)
_MOST_MARKERS = 30  # above, the markers of a curve run into a thick band


def draw_curves(records: list[dict[str, Any]]) -> Figure:
    """Draw loss (left) and accuracy (right) over the steps.

    Args:
        records: the lines of `metrics.jsonl`, each with `step`, `split` and `span`. A line without the drawn
            value is skipped, and so is the test split, which is one number and no curve.
    """
    figure = Figure(figsize=(10, 4.2), layout=make_layout())
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
    style_axes(axes, title=metric.capitalize(), grid=True)
    axes.set_xlabel("step", color=INK, fontsize=9)
    last_step = 0
    for split, span, label, line_style in _CURVES:
        points = [
            (record["step"], record[metric])
            for record in records
            if (record["split"], record["span"]) == (split, span) and record.get(metric) is not None
        ]
        if not points:
            continue
        # One logged value alone makes no line; epochs are few enough to be told apart.
        marked = len(points) == 1 or (span == "epoch" and len(points) <= _MOST_MARKERS)
        axes.plot(*zip(*points, strict=True), label=label, marker="o" if marked else "", markersize=4, **line_style)
        last_step = max(last_step, points[-1][0])
    if not last_step:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.set_xlim(0, max(last_step, 1) * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
