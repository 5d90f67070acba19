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
from kpipe.figures.style import save_figure


def write_figures(run: Path, model: keras.Model, batches: tf.data.Dataset | None, class_names: Sequence[str]) -> None:
    """Draw the curves of a run and, of a held-out split, confusion matrix, predictions and mistakes.

    Args:
        run: the run directory, whose metrics.jsonl is read; the figures are written to `figures/` in it.
        model: images [B, H, W, C] to logits [B, K].
        batches: of the held-out split; None: there is none.
        class_names: K names.

    Raises:
        OSError: a figure cannot be written.
    """
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    save_figure(draw_curves(records), folder / "curves.png")
    if batches is None:
        return
    found = collect_predictions(model, batches)
    matrix = draw_confusion_matrix(found.labels, found.predictions, class_names)
    save_figure(matrix, folder / "confusion_matrix.png")
    save_figure(
        draw_predictions(*vars(found.first).values(), class_names, title="Predictions"), folder / "predictions.png"
    )
    wrong = found.num_mistakes
    title = f"Mistakes with the highest probability, of {wrong:,}" if wrong else "No mistakes"
    save_figure(draw_predictions(*vars(found.mistakes).values(), class_names, title=title), folder / "mistakes.png")
