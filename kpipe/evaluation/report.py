"""The figures of a finished run."""

import json
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from kpipe.evaluation.predictions import collect_predictions
from kpipe.figures.confusion import draw_confusion_matrix
from kpipe.figures.curves import draw_curves
from kpipe.figures.image_grids import draw_predictions
from kpipe.figures.style import noting_failures, save_figure

_FIGURES = ("curves", "confusion_matrix", "predictions", "mistakes")
_CURVES, _MATRIX, _PREDICTIONS, _MISTAKES = (f"figures/{name}.png" for name in _FIGURES)


def write_figures(
    run: Path, model: keras.Model, batches: tf.data.Dataset | None, class_names: Sequence[str]
) -> list[str]:
    """Draw the curves of a run and, of a held-out split, confusion matrix, predictions and mistakes.

    Args:
        run: the run directory, whose metrics.jsonl is read; the figures are written to `figures/` in it.
        model: images [B, H, W, C] to logits [B, K].
        batches: of the held-out split; None: there is none.
        class_names: K names.

    Returns:
        A line for the user about each figure that could not be drawn.

    Raises:
        OSError: the disk refuses what is written.
    """
    failures: list[str] = []
    with noting_failures(failures, run, _CURVES):
        (run / "figures").mkdir(exist_ok=True)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        save_figure(draw_curves([json.loads(line) for line in lines]), run / _CURVES)
    if batches is None:
        return failures
    found = None
    with noting_failures(failures, run, _MATRIX, _PREDICTIONS, _MISTAKES):
        found = collect_predictions(model, batches)
    if found is None:
        return failures
    with noting_failures(failures, run, _MATRIX):
        save_figure(draw_confusion_matrix(found.labels, found.predictions, class_names), run / _MATRIX)
    with noting_failures(failures, run, _PREDICTIONS):
        figure = draw_predictions(*vars(found.first).values(), class_names, title="Predictions")
        save_figure(figure, run / _PREDICTIONS)
    with noting_failures(failures, run, _MISTAKES):
        wrong = found.num_mistakes
        title = f"Mistakes with the highest probability, of {wrong:,}" if wrong else "No mistakes"
        save_figure(draw_predictions(*vars(found.mistakes).values(), class_names, title=title), run / _MISTAKES)
    return failures
