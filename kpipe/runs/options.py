"""How an experiment is run, apart from what is trained, and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from kpipe.errors import ConfigError


@dataclass(frozen=True)
class RunOptions:
    """How an experiment is run, apart from what is trained.

    Attributes:
        new: start another run even if one of this experiment is unfinished.
        label: what a new run directory is named after, beside the time.
        resume: the run directory to resume; see `kpipe.runs.resume.check_resume` for what may differ from it.
        finish: end the resumed run as it stands: train no further, evaluate, and write what a finished run has.
        path: the run directory. An existing run of this experiment there is resumed; anything else is deleted.
        epochs: stop after this many epochs; the schedule still spans `training.epochs`.
        constants: the file that keeps the constants of the first layer for several runs.
        evaluate: the splits to evaluate at the end.
        draw: draw figures, and the graph in TensorBoard.
        keep_last: keep the last checkpoint of the finished run; None: as `training.checkpoint.keep_last` says.
        callbacks: Keras callbacks besides the experiment's. They may raise Diverged.
    """

    new: bool = False
    label: str = ""
    resume: Path | None = None
    finish: bool = False
    path: Path | None = None
    epochs: int | None = None
    constants: Path | None = None
    evaluate: tuple[str, ...] = ("validation", "test")
    draw: bool = True
    keep_last: bool | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()

    def __post_init__(self) -> None:
        if self.finish and self.resume is None:
            raise ConfigError("finish: expected a run to finish in `resume`, got none")
        if self.new and self.resume is not None:
            raise ConfigError("new and resume: expected one of them, got both")


@dataclass(frozen=True)
class Result:
    """Directory of a finished run, and what its summary.json holds."""

    path: Path
    summary: dict[str, Any]
