"""The figures of a finished run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from kpipe.config.schema import Experiment
from kpipe.console import counted
from kpipe.evaluation.predictions import Predictions, collect_predictions
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
    if split is not None:
        found = None
        with noting_failures(failures, run, _MATRIX, _PREDICTIONS, _MISTAKES):
            found = collect_predictions(model, held_out[split], seed=experiment.seed)
        if found is not None:
            images = counted(len(found.labels), "image")
            caption = f"{source} · {split} split, {images} · {weights}"
            failures += _write_predictions(run, found, class_names, caption)
    return failures


def _write_predictions(run: Path, found: Predictions, class_names: Sequence[str], caption: str) -> list[str]:
    """Draw confusion matrix, predictions and mistakes; return a line about each that could not be drawn."""
    failures: list[str] = []
    names = {"class_names": class_names, "caption": caption}
    with noting_failures(failures, run, _MATRIX):
        save_figure(draw_confusion_matrix(found.labels, found.predictions, **names), run / _MATRIX)
    with noting_failures(failures, run, _PREDICTIONS):
        images = counted(len(found.labels), "image")
        title = f"Predictions: {len(found.sample.labels)} of {images}, drawn at random"
        save_figure(draw_predictions(**vars(found.sample), **names, title=title), run / _PREDICTIONS)
    with noting_failures(failures, run, _MISTAKES):
        shown, wrong = len(found.mistakes.labels), found.num_mistakes
        title = f"Mistakes: {shown} of {wrong:,}, the highest probability first" if wrong else "No mistakes"
        save_figure(draw_predictions(**vars(found.mistakes), **names, title=title), run / _MISTAKES)
    return failures


def _describe_training_accuracy(experiment: Experiment, model: keras.Model) -> list[str]:
    """Return a line on why training accuracy differs from that of a held-out split; none where it hardly does."""
    reasons = ["on augmented images"] if experiment.data.augment else []
    if any(isinstance(layer, keras.layers.Dropout) and layer.rate for layer in model.layers):
        reasons.append("with dropout")
    return [f"Training accuracy is measured during the epoch, {' and '.join(reasons)}."] if reasons else []
