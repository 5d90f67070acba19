"""Figures of runs and searches: learning curves, confusion matrix, grids of images, scores of trials.

Each `draw_*` returns a `matplotlib.figure.Figure`, made without pyplot: no display is needed, no global state is left
behind, and a notebook that imports kpipe keeps its own settings. `save_figure` writes one to a PNG file.
"""

from kpipe.figures.confusion import draw_confusion_matrix
from kpipe.figures.curves import draw_curves
from kpipe.figures.image_grids import draw_image_grid, draw_predictions
from kpipe.figures.search import draw_search
from kpipe.figures.style import save_figure

__all__ = [
    "draw_confusion_matrix",
    "draw_curves",
    "draw_image_grid",
    "draw_predictions",
    "draw_search",
    "save_figure",
]
