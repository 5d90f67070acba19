"""The figures of a search: its trials and the best so far, and the scores against each key."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from kpipe.figures.labels import label
from kpipe.figures.style import BLUE, INK, VERMILION, make_layout, style_axes
from kpipe.names import shorten

MOST_KEYS = 12
"""Number of keys that are drawn, at most."""
_MOST_COLUMNS = 4
_WIDE = 3  # panels, whose width one gets whose names need it
_PANEL = 3.3, 3.0  # inches
_CHARACTERS = 42  # of the names of choices that stand side by side under a panel
_LINES = 3  # of each name


@dataclass(frozen=True)
class SearchedKey:
    """The values of one key that a search has tried.

    Attributes:
        name: of the key.
        values: number or name of a choice, for each trial; None for a trial to which the key does not apply.
        choices: the names of all choices; empty where the values are numbers.
        is_log: numbers are drawn on a logarithmic axis.
    """

    name: str
    values: Sequence[float | str | None]
    choices: Sequence[str] = ()
    is_log: bool = False


@dataclass(frozen=True)
class _Scores:
    """The scores of trials, split by where they are drawn; NaN elsewhere.

    Attributes:
        shown: drawn in place.
        beyond: the edge, for scores that are worse than drawn.
        so_far: the best up to each trial.
        has_failed: bool, by trial.
        objective: what the score is.
    """

    shown: np.ndarray
    beyond: np.ndarray
    so_far: np.ndarray
    has_failed: np.ndarray
    objective: str

    @property
    def is_accuracy(self) -> bool:
        return self.objective.endswith("accuracy")


def draw_search(scores: Sequence[float | None], seconds: Sequence[float], *, objective: str) -> Figure:
    """Draw the scores of a search's trials, and the best so far, against trials (left) and time (right).

    Args:
        scores: of the trials in the order in which they ended; None for a trial that has failed.
        seconds: when each ended.
        objective: what the score is, val_accuracy or val_loss. The smallest loss is the best.
    """
    figure = Figure(figsize=(10, 4.2), layout=make_layout())
    split = _split(scores, objective)
    trials = np.arange(1, len(scores) + 1)
    minutes = len(seconds) > 0 and max(seconds) > 300
    times = np.asarray(seconds, float) / (60 if minutes else 1)
    panels = (("trials", "trials ended", trials), ("time", f"{'minutes' if minutes else 'seconds'} of training", times))
    for axes, (title, unit, places) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        style_axes(axes, title=f"{objective} against {title}", grid=True)
        axes.set_xlabel(unit, color=INK, fontsize=9)
        _draw_trials(axes, places, split)
        if not split.has_failed.all():
            axes.step(places, split.so_far, where="post", color=VERMILION, linewidth=1.8, label="the best so far")
        axes.set_xlim(0, max(places, default=0) * 1.03 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=title == "trials", steps=[1, 2, 5, 10]))
    _add_legend(figure)
    return figure


def draw_search_keys(
    keys: Sequence[SearchedKey], scores: Sequence[float | None], *, objective: str, best: int | None = None
) -> Figure:
    """Draw the scores of a search's trials against each of the first 12 keys that apply to a trial, a panel each.

    Args:
        keys: what was tried.
        scores: of the trials; None for a trial that has failed.
        objective: what the score is, val_accuracy or val_loss.
        best: the index of the best trial, which is marked.
    """
    keys = [key for key in keys if any(value is not None for value in key.values)][:MOST_KEYS]
    narrow, wide = [key for key in keys if not _is_wide(key)], [key for key in keys if _is_wide(key)]
    rows = math.ceil(len(narrow) / _MOST_COLUMNS)
    columns = math.ceil(len(narrow) / rows) if narrow else 1  # as even as possible
    width = max(columns, _WIDE if wide else 1.5)
    figure = Figure(figsize=(_PANEL[0] * width, _PANEL[1] * max(rows + len(wide), 1) + 0.4), layout=make_layout())
    grid = figure.add_gridspec(max(rows + len(wide), 1), columns)
    places = [grid[number // columns, number % columns] for number in range(len(narrow))]
    places += [grid[row, :] for row in range(rows, rows + len(wide))]
    split, axes = _split(scores, objective), None
    for key, place in zip(narrow + wide, places, strict=True):
        axes = figure.add_subplot(place, sharey=axes)
        style_axes(axes, title=label(key.name, 40), grid=True)
        axes.tick_params(axis="x", pad=6)  # below the crosses of failed trials
        _draw_key(axes, key, split, best, characters=int(_CHARACTERS * (width if key in wide else width / columns)))
    figure.supylabel(objective, color=INK, fontsize=9)
    _add_legend(figure)
    return figure


def _draw_key(axes: Axes, key: SearchedKey, scores: _Scores, best: int | None, *, characters: int) -> None:
    if key.choices:
        places = [math.nan if value is None else key.choices.index(value) for value in key.values]
        # Trials of one choice beside each other; the golden ratio spreads any number of them evenly.
        places = np.array(places) + 0.5 * (np.arange(len(places)) * 0.618034 % 1 - 0.5)
        axes.set_xlim(-0.6, len(key.choices) - 0.4)
        axes.set_xticks(range(len(key.choices)), _in_lines(key.choices, characters))
    else:
        places = np.array([math.nan if value is None else value for value in key.values], float)
        if key.is_log:
            axes.set_xscale("log")
        else:
            whole = bool((places[~np.isnan(places)] % 1 == 0).all())
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole, steps=[1, 2, 5, 10]))
    _draw_trials(axes, places, scores)
    if best is not None:
        style = {"markerfacecolor": "none", "markeredgecolor": VERMILION, "markeredgewidth": 1.8, "markersize": 9}
        axes.plot(places[best], scores.shown[best], "o", **style, label="the best trial")


def _draw_trials(axes: Axes, places: np.ndarray, scores: _Scores) -> None:
    """Draw trials in place, those that are worse than drawn at the edge, and those that have failed on it."""
    worse, edge = ("v", 0) if scores.is_accuracy else ("^", 1)
    if not scores.has_failed.all():
        axes.plot(places, scores.shown, "o", color=BLUE, alpha=0.45, markersize=4, label="a trial")
    if not np.isnan(scores.beyond).all():
        axes.plot(places, scores.beyond, worse, color=BLUE, alpha=0.45, markersize=5, label="a trial, worse than drawn")
    if scores.has_failed.any():
        failed = places[scores.has_failed]
        style = {"color": INK, "markersize": 6, "clip_on": False, "transform": axes.get_xaxis_transform()}
        axes.plot(failed, np.full(len(failed), edge), "x", **style, label="a failed trial")
    if scores.has_failed.all():
        axes.set_yticks([])  # there are no scores
    elif scores.is_accuracy:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _add_legend(figure: Figure) -> None:
    """Add one legend below all panels."""
    handles = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _is_wide(key: SearchedKey) -> bool:
    """Return whether the names of a key's choices need more room than a panel has."""
    width = _CHARACTERS // max(len(key.choices), 1)
    return any(len(textwrap.wrap(name, width)) > _LINES or _longest_word(name) > width for name in key.choices)


def _longest_word(name: str) -> int:
    return max(map(len, name.split()), default=0)


def _in_lines(names: Sequence[str], characters: int) -> list[str]:
    """Return each name in a few lines, all names together as wide as so many characters."""
    width = max(characters // len(names), 4)
    wrapped = (textwrap.wrap(name, width, break_long_words=False, max_lines=_LINES, placeholder=" …") for name in names)
    return ["\n".join(shorten(line, width) for line in lines) for lines in wrapped]


def _split(scores: Sequence[float | None], objective: str) -> _Scores:
    """Split scores into those that are drawn in place and those that are drawn at the edge.

    A score more than four times as far from the best as the median, and off the curve of the best, would press all
    others together.
    """
    known = np.array([math.nan if score is None else score for score in scores], float)
    so_far = _accumulate(np.maximum if objective.endswith("accuracy") else np.minimum, known)
    has_failed = np.isnan(known)
    if has_failed.all():
        return _Scores(known, known, so_far, has_failed, objective)
    top = so_far[-1]
    reach = max(4 * abs(top - np.nanmedian(known)), np.nanmax(np.abs(top - so_far))) or math.inf
    is_far = np.abs(top - known) > reach
    edge = top - reach if objective.endswith("accuracy") else top + reach
    return _Scores(np.where(is_far, math.nan, known), np.where(is_far, edge, math.nan), so_far, has_failed, objective)


def _accumulate(best: np.ufunc, values: np.ndarray) -> np.ndarray:
    """Return the best of all values up to each, skipping NaN."""
    worst = -math.inf if best is np.maximum else math.inf
    found = best.accumulate(np.where(np.isnan(values), worst, values))
    return np.where(np.isinf(found), math.nan, found)
