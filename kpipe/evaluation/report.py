"""The figures of a finished run, and those that an evaluation draws as well."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import keras
from matplotlib.figure import Figure

from kpipe.config.schema import Experiment
from kpipe.console import counted
from kpipe.evaluation.metrics import Outcomes, make_confusion_matrix
from kpipe.evaluation.predictions import Examples, Predictions
from kpipe.explaining.feature_maps import first_filters, has_filters
from kpipe.figures.confusion import draw_class_accuracy, draw_confusion
from kpipe.figures.curves import draw_curves
from kpipe.figures.explanations import draw_filters
from kpipe.figures.image_grids import draw_predictions
from kpipe.figures.labels import run_label
from kpipe.figures.style import noting_failures, save_figure
from kpipe.runs.state import RunState

FIGURES = {
    "curves": "Learning curves",
    "confusion_matrix": "Confusion matrix",
    "class_accuracy": "Accuracy of each class",
    "predictions": "Predictions",
    "mistakes": "Most confident mistakes",
    "filters": "Filters of the first convolution",
}
"""Names of the files in `figures/`, and what they show."""


def write_figures(
    run: Path,
    experiment: Experiment,
    state: RunState,
    model: keras.Model,
    predictions: Predictions | None,
    class_names: Sequence[str],
) -> list[str]:
    """Draw the curves of a run, its first filters and, of a held-out split, confusions, classes, predictions, mistakes.

    Args:
        run: the run directory, whose metrics.jsonl is read; the figures are written to `figures/` in it.
        experiment: what was trained.
        state: of the run; the model has the weights that it keeps.
        model: images [B, H, W, C] to logits [B, K].
        predictions: of the held-out split; None: there is none.
        class_names: K names.

    Returns:
        A line for the user about each figure that could not be drawn.

    Raises:
        OSError: the disk refuses what is written.
    """
    source = run_label(run.name, experiment.name)
    weights = f"weights of {state.kept}"

    def draw_run() -> Figure:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        caption = "\n".join([f"{source} · {weights}", *_describe_training_accuracy(experiment, model)])
        return draw_curves([json.loads(line) for line in lines], best_epoch=state.best_epoch, caption=caption)

    drawings = plan_figures(model, predictions, class_names, source=source, weights=weights)
    return save_figures(run, {"curves": draw_run} | drawings)


def plan_figures(
    model: keras.Model, predictions: Predictions | None, class_names: Sequence[str], *, source: str, weights: str
) -> dict[str, Callable[[], Figure]]:
    """Return functions that draw what a model has learned, by names in FIGURES.

    Args:
        model: images [B, H, W, C] to logits [B, K].
        predictions: of a held-out split; None: there is none.
        class_names: K names.
        source: which run this is, for the line below a figure.
        weights: which weights the model has, for the same line.
    """
    drawings: dict[str, Callable[[], Figure]] = {}
    if predictions is not None:
        outcomes, sample, mistakes = predictions.outcomes, predictions.sample, predictions.mistakes
        images = counted(len(outcomes), "image")
        style = {"class_names": class_names, "caption": f"{source} · {predictions.split} split, {images} · {weights}"}
        counts = cache(partial(make_confusion_matrix, outcomes, len(class_names)))  # gigabytes of very many classes
        title = f"Predictions: {len(sample.labels)} of {images}, drawn at random"
        drawings |= {
            "confusion_matrix": lambda: draw_confusion(counts(), **style),
            "class_accuracy": lambda: draw_class_accuracy(counts(), **style),
            "predictions": lambda: draw_predictions(**vars(sample), **style, title=title),
            "mistakes": lambda: draw_mistakes(mistakes, outcomes, files=predictions.files, **style),
        }
    if has_filters(model):
        drawings["filters"] = lambda: draw_filters(first_filters(model), caption=f"{source} · {weights}")
    return drawings


def save_figures(run: Path, drawings: Mapping[str, Callable[[], Figure]]) -> list[str]:
    """Draw figures into `figures/` of a run.

    Args:
        run: the run directory.
        drawings: functions that draw them, by names in FIGURES.

    Returns:
        A line for the user about each figure that could not be drawn.

    Raises:
        OSError: the disk refuses what is written.
    """
    failures: list[str] = []
    for name, draw in drawings.items():
        file = _file_of(run, name)
        with noting_failures(failures, run, str(file.relative_to(run))):
            file.parent.mkdir(exist_ok=True)
            save_figure(draw(), file)
    return failures


def list_figures(run: Path) -> dict[str, Path]:
    """Return the figures of a run that have been drawn, by their names in FIGURES."""
    files = {name: _file_of(run, name) for name in FIGURES}
    return {name: file for name, file in files.items() if file.exists() and file.stat().st_size}


def _file_of(run: Path, name: str) -> Path:
    return run / "figures" / f"{name}.png"


def draw_mistakes(
    mistakes: Examples, outcomes: Outcomes, *, class_names: Sequence[str], caption: str, files: Sequence[str] = ()
) -> Figure:
    """Draw the most confident mistakes.

    Args:
        mistakes: the most confident first.
        outcomes: of all images.
        class_names: K names.
        caption: the line below the figure.
        files: paths of the images, which stand below them; none where they have none.
    """
    total = len(outcomes.mistakes)
    title = f"Mistakes: {len(mistakes.labels)} of {total:,}, the most confident first"
    title = title if total else f"No mistakes among {counted(len(outcomes), 'image')}"
    return draw_predictions(**vars(mistakes), class_names=class_names, files=files, caption=caption, title=title)


def _describe_training_accuracy(experiment: Experiment, model: keras.Model) -> list[str]:
    """Return a line on why training accuracy differs from that of a held-out split; none where it hardly does."""
    reasons = ["on augmented images"] if experiment.data.augment else []
    if any(isinstance(layer, keras.layers.Dropout) and layer.rate for layer in model.layers):
        reasons.append("with dropout")
    return [f"Training accuracy is measured during the epoch, {' and '.join(reasons)}."] if reasons else []
