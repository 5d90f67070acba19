"""The learning curves of a run."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from kpipe.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    VERMILION,
    add_caption,
    make_layout,
    style_axes,
)

_PANELS = {"loss": "Loss", "accuracy": "Accuracy", "learning_rate": "Learning rate"}
# split, span, label, line style
_CURVES = (
    ("train", "steps", "train, mean of each log line", {"color": BLUE, "linewidth": 0.8, "alpha": 0.45}),
    ("train", "epoch", "train, mean of each epoch", {"color": BLUE, "linewidth": 1.8}),
    ("validation", "epoch", "validation", {"color": VERMILION, "linewidth": 1.8, "linestyle": "--"}),
)
_AVERAGED = ("validation, averaged weights", {"color": GREEN, "linewidth": 1.8, "linestyle": "-."})
_MOST_MARKERS = 30  # above, the markers of a curve run into a thick band
# On a logarithmic axis, a schedule that ends near zero would leave no room for the rest.
_SMALLEST_RATE = 1e-3  # of the largest


def draw_curves(records: Sequence[dict[str, Any]], *, best_epoch: int | None = None, caption: str = "") -> Figure:
    """Draw loss, accuracy and learning rate over the steps, each in its own panel.

    Args:
        records: the lines of `metrics.jsonl`, each with `step`, `epoch`, `split` and `span`. A panel without values is
            left out, and so is the test split, which is one number and no curve.
        best_epoch: the epoch to mark, counted from 1. It is marked if it has been validated.
        caption: the line below the figure.
    """
    panels = [name for name in _PANELS if any(record.get(name) is not None for record in records)]
    figure = Figure(figsize=(4.2 * max(len(panels), 1), 4.2), layout=make_layout())
    add_caption(figure, caption)
    if not panels:
        figure.text(0.5, 0.5, "none", ha="center", va="center", color=FAINT)
        return figure
    last_step = max(record["step"] for record in records)
    validated = {record["epoch"]: record["step"] for record in records if record["split"] == "validation"}
    handles = {}
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        style_axes(axes, title=_PANELS[name], grid=True)
        _scale_steps(axes, last_step)
        if name == "learning_rate":
            _draw_rate(axes, records)
        else:
            _draw_metric(axes, records, name)
        if best_epoch in validated:
            style = {"color": INK, "linewidth": 1, "linestyle": ":", "zorder": 1}  # behind the curves
            axes.axvline(validated[best_epoch], label=f"best epoch: {best_epoch}", **style)
        handles |= {line.get_label(): line for line in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _scale_steps(axes: Axes, last_step: int) -> None:
    axes.set_xlabel("step", color=INK, fontsize=9)
    axes.set_xlim(0, max(last_step, 1) * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_metric(axes: Axes, records: Sequence[dict[str, Any]], metric: str) -> None:
    curves = [(*curve, metric) for curve in _CURVES] + [("validation", "epoch", *_AVERAGED, f"averaged_{metric}")]
    for split, span, label, line_style, name in curves:
        chosen = [record for record in records if (record["split"], record["span"]) == (split, span)]
        points = _points(chosen, name)
        if not points:
            continue
        # One logged value alone makes no line; epochs are few enough to be told apart.
        marked = len(points) == 1 or (span == "epoch" and len(points) <= _MOST_MARKERS)
        axes.plot(*zip(*points, strict=True), label=label, marker="o" if marked else "", markersize=4, **line_style)
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        low, high = axes.get_ylim()
        axes.set_ylim(low, min(high, 1 + 0.03 * (1 - low)))  # no ticks above 100%


def _draw_rate(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    """Draw the learning rate, on a logarithmic axis if it spans more than a decade."""
    points = _points(records, "learning_rate")
    marker = "o" if len(points) == 1 else ""
    axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.8, marker=marker, markersize=4)
    rates = [rate for _, rate in points if rate > 0]
    if rates and max(rates) > 10 * min(rates):
        axes.set_yscale("log")
        axes.set_ylabel("log scale", color=INK, fontsize=9)
        axes.set_ylim(bottom=max(min(rates), _SMALLEST_RATE * max(rates)) / 1.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.1 * max(rates, default=1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _points(records: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]
