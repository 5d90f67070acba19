"""The figures of a finished run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from kpipe.config.schema import Experiment
from kpipe.console import counted
from kpipe.evaluation.predictions import collect_predictions
from kpipe.figures.confusion import draw_confusion_matrix
from kpipe.figures.curves import draw_curves
from kpipe.figures.image_grids import draw_predictions
from kpipe.figures.style import label, noting_failures, save_figure
from kpipe.runs.state import RunState

_FIGURES = ("curves", "confusion_matrix", "predictions", "mistakes")
_CURVES, _MATRIX, _PREDICTIONS, _MISTAKES = (f"figures/{name}.png" for name in _FIGURES)


def write_figures(
    run: Path,
    experiment: Experiment,
    state: RunState,
    model: keras.Model,
    held_out: Mapping[str, tf.data.Dataset | None],
    class_names: Sequence[str],
) -> list[str]:
    """Draw the curves of a run and, of a held-out split, confusion matrix, predictions and mistakes.

    Args:
        run: the run directory, whose metrics.jsonl is read; the figures are written to `figures/` in it.
        experiment: what was trained. Its seed draws the images that are shown.
        state: of the run; the model has the weights that it keeps.
        model: images [B, H, W, C] to logits [B, K].
        held_out: batches by split, None where there is no such split. The test split is drawn if it is there, else the
            validation split.
        class_names: K names.

    Returns:
        A line for the user about each figure that could not be drawn.

    Raises:
        OSError: the disk refuses what is written.
    """
    failures: list[str] = []
    source = label(f"{experiment.name} · {run.name}", 100)
    weights = f"weights of {state.kept}"
    with noting_failures(failures, run, _CURVES):
        (run / "figures").mkdir(exist_ok=True)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        caption = "\n".join([f"{source} · {weights}", *_describe_training_accuracy(experiment, model)])
        figure = draw_curves([json.loads(line) for line in lines], best_epoch=state.best_epoch, caption=caption)
        save_figure(figure, run / _CURVES)
    split = next((name for name in ("test", "validation") if held_out.get(name)), None)
    if split is None:
        return failures
    found = None
    with noting_failures(failures, run, _MATRIX, _PREDICTIONS, _MISTAKES):
        found = collect_predictions(model, held_out[split], seed=experiment.seed)
    if found is None:
        return failures
    images = len(found.labels)
    caption = f"{source} · {split} split, {counted(images, 'image')} · {weights}"
    with noting_failures(failures, run, _MATRIX):
        figure = draw_confusion_matrix(found.labels, found.predictions, class_names, caption=caption)
        save_figure(figure, run / _MATRIX)
    with noting_failures(failures, run, _PREDICTIONS):
        title = f"Predictions: {len(found.sample.labels)} of {counted(images, 'image')}, drawn at random"
        figure = draw_predictions(*vars(found.sample).values(), class_names, title=title, caption=caption)
        save_figure(figure, run / _PREDICTIONS)
    with noting_failures(failures, run, _MISTAKES):
        shown, wrong = len(found.mistakes.labels), found.num_mistakes
        title = f"Mistakes: {shown} of {wrong:,}, the highest probability first" if wrong else "No mistakes"
        figure = draw_predictions(*vars(found.mistakes).values(), class_names, title=title, caption=caption)
        save_figure(figure, run / _MISTAKES)
    return failures


def _describe_training_accuracy(experiment: Experiment, model: keras.Model) -> list[str]:
    """Return a line on why training accuracy differs from that of a held-out split; none where it hardly does."""
    reasons = ["on augmented images"] if experiment.data.augment else []
    if any(isinstance(layer, keras.layers.Dropout) and layer.rate for layer in model.layers):
        reasons.append("with dropout")
    return [f"Training accuracy is measured during the epoch, {' and '.join(reasons)}."] if reasons else []
