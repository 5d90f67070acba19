"""The figure of a search: its trials, and the best so far."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from kpipe.figures.style import BLUE, INK, VERMILION, make_layout, style_axes


def draw_search(scores: Sequence[float | None], seconds: Sequence[float], *, objective: str) -> Figure:
    """Draw the scores of a search's trials, and the best so far, against trials (left) and time (right).

    Args:
        scores: of the trials in the order in which they ended; None for a trial without a score.
        seconds: when each ended.
        objective: what the score is, val_accuracy or val_loss. The smallest loss is the best.
    """
    figure = Figure(figsize=(10, 4.2), layout=make_layout())
    best = np.maximum if objective.endswith("accuracy") else np.minimum
    trials = np.arange(1, len(scores) + 1)
    known = np.array([math.nan if score is None else score for score in scores], float)
    so_far = _accumulate(best, known)
    shown, beyond = _within_reach(known, so_far)
    minutes = len(seconds) > 0 and max(seconds) > 300
    times = np.asarray(seconds, float) / (60 if minutes else 1)
    panels = (("trials", "trial", trials), ("time", "minutes" if minutes else "seconds", times))
    for axes, (title, unit, places) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        style_axes(axes, title=f"{objective} against {title}", grid=True)
        axes.set_xlabel(unit, color=INK, fontsize=9)
        axes.plot(places, shown, "o", color=BLUE, alpha=0.45, markersize=4, label="a trial")
        if not np.isnan(beyond).all():
            axes.plot(places, beyond, "x", color=BLUE, alpha=0.45, markersize=5, label="a trial, worse than drawn")
        axes.step(places, so_far, where="post", color=VERMILION, linewidth=1.8, label="the best so far")
        axes.set_xlim(0, max(places, default=0) * 1.03 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=title == "trials", steps=[1, 2, 5, 10]))
        if objective.endswith("accuracy"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _within_reach(scores: np.ndarray, so_far: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split the scores into those that are drawn in place and those that are drawn at the edge, NaN elsewhere.

    A score more than four times as far from the best as the median, and off the curve of the best, would press all
    others together.
    """
    if np.isnan(scores).all():
        return scores, scores
    top = so_far[-1]
    reach = max(4 * abs(top - np.nanmedian(scores)), np.nanmax(np.abs(top - so_far)))
    is_far = np.abs(top - scores) > reach
    edge = top + math.copysign(reach, np.nanmedian(scores) - top)
    return np.where(is_far, math.nan, scores), np.where(is_far, edge, math.nan)


def _accumulate(best: np.ufunc, values: np.ndarray) -> np.ndarray:
    """Return the best of all values up to each, skipping NaN."""
    worst = -math.inf if best is np.maximum else math.inf
    found = best.accumulate(np.where(np.isnan(values), worst, values))
    return np.where(np.isinf(found), math.nan, found)
