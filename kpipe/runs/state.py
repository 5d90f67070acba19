"""What a checkpoint remembers besides the model's variables, and how a run is brought back to it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import keras

from kpipe.caller import flag
from kpipe.console import describe_counts
from kpipe.errors import DataError
from kpipe.runs.directory import Run
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.control import TrainState

RAW, AVERAGED = "raw", "averaged"
"""Kinds of weights: as trained, and their moving averages."""


@dataclass
class Best:
    """The best epoch of a run so far, by the validation of one kind of weights."""

    epoch: int
    step: int
    """Step of the checkpoint that holds the weights."""
    score: list[float] | None = None
    """See `score_epoch`."""
    train: dict[str, float] = field(default_factory=dict)
    """Metrics of the training, means over the epoch."""
    validation: dict[str, float] = field(default_factory=dict)
    """Metrics of the validation."""


@dataclass
class RunState:
    """State of a run at one step. A field that is added, removed or means something else raises `FORMAT` in
    `kpipe.training.checkpoints`."""

    train: TrainState = field(default_factory=TrainState)
    best: dict[str, Best] = field(default_factory=dict)
    """The best epoch by the kind of weights; empty before the first epoch has ended."""
    stuck: str | None = None
    """What was found out about a training that is stuck at guessing; None: it was not, or not yet."""
    seconds: float = 0.0
    """Training time of all processes, from the first step to the last save."""
    images: dict[str, int] = field(default_factory=dict)
    """Number of images by split."""
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the images that could not be read, by split."""

    def __post_init__(self) -> None:
        if isinstance(self.train, dict):  # as `to_dict` writes it
            self.train = TrainState(**self.train)
            self.best = {kind: Best(**best) for kind, best in self.best.items()}

    @property
    def preferred(self) -> str:
        """The kind of weights with the better best epoch. Without a validation that is the averaged one."""
        scores = {kind: best.score for kind, best in self.best.items() if best.score is not None}
        if scores:
            return max(scores, key=lambda kind: (scores[kind], kind == RAW))
        return AVERAGED if AVERAGED in self.best else RAW

    @property
    def best_epoch(self) -> int:
        """The best epoch of the preferred weights, counted from 1; 0 before the first one has ended."""
        return self.best[self.preferred].epoch if self.best else 0

    @property
    def train_metrics(self) -> dict[str, float]:
        """Metrics of the training in the best epoch."""
        return self.best[self.preferred].train if self.best else {}

    @property
    def kept(self) -> str:
        """What has the weights that a run keeps: its best epoch, or before the first one has ended, its last step."""
        averaged = ", averaged" if self.preferred == AVERAGED else ""
        return f"epoch {self.best_epoch}{averaged}" if self.best else f"step {self.train.step:,}"

    def describe_best(self) -> str:
        """Return which epoch was the best so far, and its scores; empty before the first validation."""
        if not self.best or not (best := self.best[self.preferred]).validation:
            return ""
        values = [f"val_{name} {best.validation[name]:.4f}" for name in ("accuracy", "loss")]
        return f"{self.kept}, {', '.join(values)}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types, and the NumPy arrays that callbacks keep: `RunState(**state.to_dict())` is the same."""
        best = {kind: asdict(best) for kind, best in self.best.items()}
        return {**vars(self), "train": self.train.to_dict(), "best": best}


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
            f"{describe_counts(images)} now. Bring them back, or start another run with {flag('new')}."
        )
    for kind, best in state.best.items():
        # A finished run that is extended has its best weights in model files alone.
        if not checkpoints.is_whole(best.step) and (checkpoints.has(best.step) or not run.find_model(kind)):
            what = "the best averaged weights" if kind == AVERAGED else "the best weights"
            notes.append(
                f"{what} so far, of step {best.step:,}, are damaged or gone; the best is searched anew from here"
            )
            state.best[kind] = Best(restored.step // steps_per_epoch, restored.step)
    if state.train.stopped:
        epoch = state.train.step // steps_per_epoch
        notes.append(f"early stopping has ended this training in epoch {epoch}; more epochs do not change that")
    return Restored(state, restored.logs, tuple(notes))


def score_epoch(monitor: str, validation: Mapping[str, float]) -> list[float] | None:
    """Return the score of an epoch, larger is better; None without validation.

    The monitored number decides, and the validation loss where that is equal.

    Args:
        monitor: val_accuracy or val_loss.
        validation: metrics of the validation split; empty without validation.
    """
    if not validation:
        return None
    negative_loss = -validation["loss"]
    return [validation["accuracy"], negative_loss] if monitor == "val_accuracy" else [negative_loss]
