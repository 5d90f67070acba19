"""Figures of runs and searches: learning curves, confusion matrix, grids of images, scores of trials.

Each `draw_*` returns a `matplotlib.figure.Figure`, made without pyplot: it needs no display, and a notebook that
imports kpipe keeps its own settings. `save_figure` writes a figure to a PNG file.
"""

from kpipe.figures.confusion import draw_class_accuracy, draw_confusion
from kpipe.figures.curves import draw_curves
from kpipe.figures.image_grids import UNKNOWN, draw_image_grid, draw_predictions
from kpipe.figures.search import SearchedKey, draw_search, draw_search_keys
from kpipe.figures.style import describe_undrawn, noting_failures, save_figure

__all__ = [
    "UNKNOWN",
    "SearchedKey",
    "describe_undrawn",
    "draw_class_accuracy",
    "draw_confusion",
    "draw_curves",
    "draw_image_grid",
    "draw_predictions",
    "draw_search",
    "draw_search_keys",
    "noting_failures",
    "save_figure",
]
