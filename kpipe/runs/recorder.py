"""Records a run while it is trained: log, checkpoints, the best weights so far, summary.json."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import keras

from kpipe.config.schema import Experiment
from kpipe.console import Screen
from kpipe.errors import Diverged, Stuck
from kpipe.names import from_here, shell_quoted
from kpipe.runs.directory import Run
from kpipe.runs.logs import RunLog
from kpipe.runs.options import RunOptions
from kpipe.runs.state import AVERAGED, RAW, Best, RunState, score_epoch
from kpipe.signals import Stop
from kpipe.training.averaging import average_of
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.control import Hooks, TrainState
from kpipe.training.distribution import Workers
from kpipe.training_screen import TrainingScreen

_METRICS = ("loss", "accuracy", "top5")  # top5 where there are more than five classes


class Subject(Protocol):
    """The part of `kpipe.assembly.Prepared` that a recorder uses."""

    model: keras.Model
    steps_per_epoch: int

    def find_unreadable(self) -> dict[str, list[int]]:
        """Return the numbers of the images that could not be read so far, by split."""


@dataclass
class Recorder:
    """Keeps the directory of a run up to date.

    Attributes:
        experiment: what is trained, resolved.
        run, checkpoints, log: where it is written.
        state: of the run; the trainer moves `state.train`.
        subject: what is trained, see `kpipe.assembly.Prepared`.
        options: how the experiment is run.
        workers: that train together.
        ended_by: what has ended the training before its last epoch, other than a callback: finish, stuck or
            max_minutes.
    """

    experiment: Experiment
    run: Run
    checkpoints: Checkpoints
    log: RunLog
    state: RunState
    subject: Subject
    options: RunOptions = RunOptions()
    workers: Workers = field(default_factory=Workers)
    ended_by: str | None = field(default=None, init=False)
    _started_at: float = field(init=False)
    """When the training would have started, had it not been interrupted: seconds of the monotonic clock."""

    def __post_init__(self) -> None:
        self._start_clock()

    def _start_clock(self) -> None:
        self._started_at = time.monotonic() - self.state.seconds

    @property
    def epoch(self) -> int:
        """Number of whole epochs so far."""
        return self.state.train.step // self.subject.steps_per_epoch

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        epochs = self.options.epochs or self.experiment.training.epochs
        return self.state.train.is_done(epochs * self.subject.steps_per_epoch)

    @property
    def seconds_left(self) -> float:
        """Seconds of training until training.max_minutes are over; infinity where there is no limit."""
        minutes = self.experiment.training.max_minutes
        return math.inf if minutes is None else 60 * minutes - (time.monotonic() - self._started_at)

    def _is_time_over(self) -> bool:
        has_limit = self.experiment.training.max_minutes is not None
        return has_limit and self.workers.agree(self.seconds_left <= 0)

    def ends_here(self) -> bool:
        """Return whether the training ends before its last epoch: it is to be finished, is stuck, or its time is over.

        An epoch whose steps are done is validated first. Otherwise it would count for nothing.
        """
        if not (self.state.train.ending or self.ended_by or self.is_done):
            if self.options.finish:
                self.ended_by = "finish"
            elif self.state.stuck and self.experiment.training.when_stuck == "stop":
                self.ended_by = "stuck"
            elif self._is_time_over():
                self.ended_by = "max_minutes"
        return self.ended_by is not None

    def save(self) -> None:
        """Save a checkpoint of this moment, from which the run can be resumed; once for each step."""
        state = self.state
        if state.train.step == self.checkpoints.committed:
            return
        self._bring_up_to_date()
        self.checkpoints.commit(
            self.subject.model,
            state.to_dict(),
            step=state.train.step,
            best_steps=[best.step for best in state.best.values()],
            logs=self.log.lengths(),
        )

    def end_epoch(self, logs: Mapping[str, float]) -> bool:
        """Keep the weights if they are the best of their kind so far; return whether they are the best of all.

        Args:
            logs: what Keras's callbacks get at the end of an epoch.
        """
        state, better = self.state, []
        for kind, prefix in self.validated.items():
            validation = {name: logs[prefix + name] for name in _METRICS if prefix + name in logs}
            score, before = score_epoch(self.experiment.training.monitor, validation), state.best.get(kind)
            if before is None or before.score is None or score is None or score > before.score:
                train = {name: logs[name] for name in _METRICS if name in logs}
                state.best[kind] = Best(self.epoch, state.train.step, score, train, validation)
                better.append(kind)
        if better:
            self.save()
        return state.preferred in better and state.best[state.preferred].score is not None

    @property
    def validated(self) -> dict[str, str]:
        """The kinds of weights that are validated, and what their metrics begin with in the logs of an epoch."""
        averaged = {AVERAGED: "val_averaged_"} if average_of(self.subject.model.optimizer) else {}
        return {RAW: "val_"} | averaged

    @property
    def kept(self) -> list[str]:
        """The kinds of weights whose best epoch is kept, the preferred one last."""
        return sorted(self.state.best or [RAW], key=lambda kind: kind == self.state.preferred)

    def load_best_weights(self, kind: str) -> bool:
        """Load the best weights of a kind from their checkpoint; return False where a model file alone has them.

        Where no epoch has ended, the weights are those of the last step.
        """
        best = self.state.best.get(kind)
        if best and not self.checkpoints.has(best.step):
            return False
        if best:
            self.checkpoints.load_weights(best.step, self.subject.model, averaged=kind == AVERAGED)
        return True

    def write_summary(
        self, status: str, scores: Mapping[str, Mapping] | None = None, ended_by: str | None = None
    ) -> dict[str, Any]:
        """Write summary.json and return it.

        Args:
            status: interrupted, diverged, stuck or finished.
            scores: the numbers of the evaluated splits.
            ended_by: what ended a finished run: epochs, early_stopping, max_minutes or finish.
        """
        experiment, state = self.experiment, self.state
        images, seconds = state.train.step * experiment.data.batch_size, state.train.seconds
        seen = {"images": self.subject.steps_per_epoch * experiment.data.batch_size}  # in an epoch
        kinds = {kind: {"epoch": best.epoch, **best.validation} for kind, best in state.best.items()}
        summary = {
            "status": status,
            "experiment": experiment.name,
            "model": experiment.model.name,
            "parameters": self.subject.model.count_params(),
            "image": list(self.subject.model.input_shape[1:]),
            "epochs": self.epoch,
            "best_epoch": state.best_epoch,
            # That of model.keras, which is written just before the run is finished.
            "weights": state.preferred if status == "finished" else self.run.read_json("summary.json").get("weights"),
            **({"best": kinds} if AVERAGED in kinds else {}),
            "ended_by": ended_by,
            "steps": state.train.step,
            "seconds": round(state.seconds, 2),
            "images_per_second": round(images / seconds, 1) if seconds else None,
            "precision": experiment.chosen.precision,
            "seed": experiment.seed,
            "unreadable": {name: len(numbers) for name, numbers in self.subject.find_unreadable().items()},
            "images": state.images,
            "train": state.train_metrics and state.train_metrics | seen,
            **(scores or {}),
        }
        self.run.write_json("summary.json", summary)
        return summary

    def finish(self, scores: Mapping[str, Mapping]) -> dict[str, Any]:
        """Write the test record and the summary of a finished run; delete all checkpoints but, if it is kept, the last.

        The last checkpoint of a run that has ended before its last epoch is kept in any case.

        Args:
            scores: the numbers of the evaluated splits.

        Returns:
            What summary.json holds.
        """
        state = self.state
        ended_by = "early_stopping" if state.train.stopped else self.ended_by or "epochs"
        if "test" in scores:
            # The step and the epoch of the weights that were evaluated.
            best = state.best.get(state.preferred, Best(self.epoch, state.train.step))
            values = {name: value for name, value in scores["test"].items() if name in _METRICS}
            self.log.write({"step": best.step, "epoch": best.epoch, "split": "test", "span": "epoch", **values})
        summary = self.write_summary("finished", scores, ended_by)
        keep_last = self.options.keep_last
        if keep_last is None:
            keep_last = self.experiment.training.checkpoint.keep_last
        self.checkpoints.finish(keep_last=keep_last or self.ended_by is not None)
        return summary

    def make_hooks(self, shown: TrainingScreen, stop: Stop) -> Hooks:
        """Return what the trainer calls while this run is trained.

        Args:
            shown: the screen of the training.
            stop: the signals; once the first step is about to be done, they are obeyed between steps.
        """

        def on_begin() -> None:
            stop.defer()
            self._start_clock()  # to compile is no time of training
            shown.begin(self.seconds_left)

        def on_log(record: dict[str, Any]) -> None:
            self.log.write(record)
            if record["span"] == "steps":
                shown.log_line(record)

        def on_epoch(state: TrainState, logs: Mapping[str, float]) -> None:
            shown.epoch(self.epoch, state.step, logs, self.end_epoch(logs))

        return Hooks(
            on_begin=on_begin,
            on_activity=shown.activity,
            on_thaw=shown.thaw,
            on_log=on_log,
            on_progress=shown.step,
            on_epoch=on_epoch,
            on_save=lambda state: self.save(),
            should_stop=lambda: self.ends_here() or stop.number is not None,  # all workers ask for the time together
        )

    @contextmanager
    def counting_time(self) -> Iterator[None]:
        """Count what is done inside the `with`, before the first step, as time of training."""
        start = time.monotonic()
        yield
        self.state.seconds += time.monotonic() - start

    def note_stuck(self, screen: Screen, reason: str) -> None:
        """Note that the training is stuck; say so, unless the run ends for it."""
        self.state.stuck = reason
        if self.experiment.training.when_stuck == "warn":
            screen.prose(f"warning: {reason}", indent=9)

    def raise_if_stuck(self) -> None:
        """End a run that has stopped because it is stuck.

        Raises:
            Stuck: with what is kept of the run.
        """
        stops = self.state.stuck and self.experiment.training.when_stuck == "stop"
        if stops and self.ended_by in (None, "stuck"):  # None: in the last of its steps
            self.write_summary("stuck")
            again = f"kpipe run --resume {shell_quoted(from_here(self.run.path))}"
            raise Stuck(self.state.stuck, f"What is trained is kept; {again} training.when_stuck=warn trains on")

    @contextmanager
    def saving_at_the_end(self) -> Iterator[None]:
        """Save when the training inside the `with` has ended, and write down how it ended.

        Raises:
            Diverged: with what is kept of the run.
            KeyboardInterrupt: a signal has stopped the training.
        """
        try:
            yield
            self.save()
            self.workers.wait()  # until it is on the disk
            self.write_summary("interrupted")  # until all is evaluated and written
        except Diverged as error:
            self._bring_up_to_date()
            self.write_summary("diverged")
            kept = self.checkpoints.latest
            last = f"The last good checkpoint is kept: {kept}" if kept else "Nothing was saved before."
            raise Diverged(error.reason, last) from None
        if self.state.train.interrupted and self.ended_by is None:
            raise KeyboardInterrupt

    def _bring_up_to_date(self) -> None:
        self.state.seconds = time.monotonic() - self._started_at
        self.state.unreadable = self.subject.find_unreadable()
