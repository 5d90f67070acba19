"""What shows a finished run as a whole: report.html and its end in TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kpipe.config.schema import Experiment
from kpipe.evaluation.page import PAGE, write_page
from kpipe.evaluation.predictions import Predictions
from kpipe.evaluation.report import list_figures
from kpipe.figures.style import noting_failures
from kpipe.runs.tensorboard import write_ending


def write_overview(
    run: Path,
    experiment: Experiment,
    summary: Mapping[str, Any],
    predictions: Predictions | None,
    class_names: Sequence[str],
) -> list[str]:
    """Write report.html, and what TensorBoard shows of a finished run.

    Args:
        run: directory of a finished run, with its figures.
        experiment: what was trained, resolved.
        summary: what summary.json holds.
        predictions: of the held-out split; None: there is none.
        class_names: K names.

    Returns:
        A line for the user about what could not be drawn.

    Raises:
        OSError: the disk refuses what is written.
    """
    failures: list[str] = []
    with noting_failures(failures, run, PAGE):
        write_page(run, experiment)
    if experiment.logging.tensorboard:
        with noting_failures(failures, run, "TensorBoard's figures"):
            curves = predictions.precision_recall(class_names) if predictions else {}
            write_ending(run, experiment, summary, list_figures(run), curves)
    return failures
