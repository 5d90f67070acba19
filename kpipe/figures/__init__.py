"""The pictures of a run: learning curves, confusion matrix, predictions. PNG files at 150 dpi.

Everything is drawn on a `matplotlib.figure.Figure` of its own, never through pyplot: no display is needed, no
global state is left behind, and a notebook that imports kpipe keeps its own settings.
"""

from kpipe.figures.confusion import write_confusion_matrix
from kpipe.figures.curves import write_curves
from kpipe.figures.image_grids import write_image_grid, write_predictions
from kpipe.figures.search import write_search

__all__ = ["write_confusion_matrix", "write_curves", "write_image_grid", "write_predictions", "write_search"]
