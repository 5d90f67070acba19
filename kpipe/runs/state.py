"""What a checkpoint remembers besides the model's variables, and how a run is brought back to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from kpipe.console import describe_counts
from kpipe.errors import DataError
from kpipe.runs.directory import Run
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.control import TrainState


@dataclass
class RunState:
    """State of a run at one step. A field that is added, removed or means something else raises `FORMAT` in
    `kpipe.training.checkpoints`."""

    train: TrainState = field(default_factory=TrainState)
    best_epoch: int = 0
    best_step: int | None = None
    """Step of the checkpoint that holds the best weights."""
    best_score: list[float] | None = None
    """Score of the best epoch, see `score_epoch`."""
    train_metrics: dict[str, float] = field(default_factory=dict)
    """Means over the best epoch."""
    seconds: float = 0.0
    """Training time of all processes, from the first step to the last save."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of images by split."""
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the images that could not be read, by split."""

    def __post_init__(self) -> None:
        if isinstance(self.train, dict):  # as `to_dict` writes it
            self.train = TrainState(**self.train)

    @property
    def kept(self) -> str:
        """What has the weights that a run keeps: its best epoch, or before the first one has ended, its last step."""
        return f"epoch {self.best_epoch}" if self.best_step else f"step {self.train.step:,}"

    def describe_best(self) -> str:
        """Return which epoch was the best so far, and its scores; empty before the first validation."""
        if not (self.best_step and self.best_score):
            return ""
        *accuracy, negative_loss = self.best_score  # see `score_epoch`
        values = [f"val_accuracy {value:.4f}" for value in accuracy] + [f"val_loss {-negative_loss:.4f}"]
        return f"epoch {self.best_epoch}, {', '.join(values)}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, and the NumPy arrays that callbacks keep: `RunState(**state.to_dict())` is the same."""
        return {**vars(self), "train": self.train.to_dict()}


@dataclass(frozen=True)
class Restored:
    """Where a run stands when its training begins.

    Attributes:
        state: at the first step, or at the checkpoint.
        log_lengths: bytes of every log at the checkpoint; None for a new run.
        notes: lines for the user.
    """

    state: RunState
    log_lengths: dict[str, int] | None = None
    notes: tuple[str, ...] = ()


def restore_state(
    run: Run, checkpoints: Checkpoints, model: keras.Model, images: Mapping[str, int], steps_per_epoch: int
) -> Restored:
    """Bring model and state to the newest whole checkpoint of a resumed run; a new run starts at step 0.

    Args:
        run: the run directory.
        checkpoints: of this run.
        model: compiled, optimizer and metrics built (a `Trainer` does that).
        images: number of images by split.
        steps_per_epoch: full batches in an epoch.

    Raises:
        DataError: the data have changed since the run began.
        ConfigError, EnvironmentFault: as `Checkpoints.restore`.
    """
    if not run.resumed:
        return Restored(RunState(images=dict(images)))
    restored = checkpoints.restore(model)
    state = RunState(**restored.state)
    notes = [f"{damage}; the one before it is taken" for damage in restored.skipped]
    if state.images != images:
        raise DataError(
            f"{run.path}: the data are not those that the run began with: {describe_counts(state.images)} then, "
            f"{describe_counts(images)} now. Bring them back, or start another run with --new."
        )
    best = state.best_step
    # A finished run that is extended has its best weights in model.keras alone.
    if best is not None and not checkpoints.is_whole(best) and (checkpoints.has(best) or not run.model.exists()):
        notes.append(f"the best weights so far, of step {best:,}, are damaged; the best is searched anew from here")
        state.best_epoch, state.best_step = restored.step // steps_per_epoch, restored.step
        state.best_score, state.train_metrics = None, {}
    if state.train.stopped:
        epoch = state.train.step // steps_per_epoch
        notes.append(f"early stopping has ended this training in epoch {epoch}; more epochs do not change that")
    return Restored(state, restored.logs, tuple(notes))


def score_epoch(monitor: str, logs: Mapping[str, float]) -> list[float] | None:
    """Return the score of an epoch, larger is better; None without validation.

    The monitored number decides, and the validation loss where that is equal.
    """
    if "val_loss" not in logs:
        return None
    return [logs["val_accuracy"], -logs["val_loss"]] if monitor == "val_accuracy" else [-logs["val_loss"]]
