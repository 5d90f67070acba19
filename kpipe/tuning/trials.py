"""One trial: an ordinary run, or several with other seeds, trained for as many epochs as the search asks."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import keras

from kpipe import data
from kpipe.assembly import load_splits, reads_whole_images
from kpipe.catalog.search import SearchOptions
from kpipe.config.loading import Loaded
from kpipe.config.schema import DataConfig, Experiment
from kpipe.console import Screen, quiet_console
from kpipe.errors import ConfigError, DataError, Diverged, OutOfMemory
from kpipe.experiment import train
from kpipe.files import read_json
from kpipe.names import printable
from kpipe.runs.dataset import record_search_data
from kpipe.runs.directory import is_run_of
from kpipe.runs.options import RunOptions
from kpipe.signals import Stop
from kpipe.tuning.records import Record, rank, read_records, write_record
from kpipe.tuning.stopping import StopBelowMedian

_AFTER_READING = {"batch_size", "augment", "class_weights"}  # keys of `data` that apply to data that has been read


@dataclass
class TrialRunner:
    """Run the trials of one search, one after the other, in this process.

    Attributes:
        loaded: the experiment and its space.
        folder: of the search.
        objective: val_accuracy or val_loss.
        stop: the signals; between trials they interrupt.
        worker: the name of this process among several.
        screen: shows the progress of reading the data.
        on_epoch: gets number, execution, epoch and logs at the end of each epoch.
    """

    loaded: Loaded
    folder: Path
    objective: str
    stop: Stop
    worker: str = ""
    screen: Screen = field(default_factory=Screen)
    on_epoch: Callable[[int, int, int, Mapping[str, float]], None] = lambda number, execution, epoch, logs: None
    _last_data: tuple[str, data.Splits] | None = None
    """The data of the last trial, and what tells them apart from others."""

    def run(self, record: Record, epochs: int | None = None) -> Record:
        """Train a trial to its end, or resume it, and write its record.

        Args:
            record: number, values and parent.
            epochs: how many its run has at the end. None: all that the experiment has.

        Returns:
            The record, ended: finished, stopped or failed.
        """
        record = replace(record, status="running", score=None, scores=[], message=None, ended=None)
        write_record(self.folder, record)
        try:
            record = self._run_executions(record, epochs)
        except (Diverged, ConfigError, OutOfMemory) as error:
            record = self._fail(record, error.reason if isinstance(error, Diverged) else str(error))
        finally:
            keras.backend.clear_session()  # collects the garbage, too
        record = replace(record, ended=time.time())
        write_record(self.folder, record)
        self.stop.obey()
        return record

    def load_data(self, config: DataConfig) -> data.Splits:
        """Load the data, once for all trials that read the same.

        Raises:
            DataError: there is no validation split, or the data are not those that the search began with.
        """
        key = _digest_of_data(config)
        if self._last_data is None or self._last_data[0] != key:
            self._last_data = None  # before the next is read: both need not fit
            check = partial(record_search_data, self.folder / f"data-{key}.json")
            self._last_data = (key, load_splits(config, check=check, progress=self.screen.progress))
        splits = self._last_data[1]
        if splits.validation is None:
            raise DataError(
                f"{printable(config.source)}: a search needs a validation split, which this data does not give; take a "
                "larger data.split.validation, or more images per class"
            )
        return splits

    @property
    def _executions(self) -> int:
        return self.loaded.experiment.search.executions_per_trial

    def _run_executions(self, record: Record, epochs: int | None) -> Record:
        scores, seconds, loss, stopped, reached = [], 0.0, None, False, 0
        for execution in range(self._executions):
            summary, stopped = self._run_execution(record, execution, epochs)
            validation = summary["validation"]
            scores.append(validation[self.objective.removeprefix("val_")])
            loss = validation["loss"] if loss is None else loss
            seconds, reached = seconds + summary["seconds"], max(reached, summary["epochs"])
            if stopped:
                break
        status = "stopped" if stopped else "finished"
        return replace(
            record, status=status, score=mean(scores), scores=scores, loss=loss, seconds=seconds, epochs=reached
        )

    def _fail(self, record: Record, message: str) -> Record:
        """Return the record of a failed trial, with what its runs had reached."""
        runs = [self.folder / record.run(execution) for execution in range(self._executions)]
        summaries = [read_json(run / "summary.json") for run in runs]
        epochs = max(summary.get("epochs", 0) for summary in summaries)
        seconds = sum(summary.get("seconds", 0.0) for summary in summaries)
        return replace(record, status="failed", message=message, epochs=epochs, seconds=seconds)

    def _run_execution(self, record: Record, execution: int, epochs: int | None) -> tuple[dict[str, Any], bool]:
        """Run a trial with one seed; return the run's summary, and whether the median rule has stopped it."""
        experiment = self._vary(record, execution)
        path = self.folder / record.run(execution)
        if record.parent is not None:
            inherit_run(path, self.folder / replace(record, number=record.parent).run(execution))
        last_epoch = epochs or experiment.training.epochs
        rule = self._make_median_rule(record, execution, last_epoch)
        summary = read_json(path / "summary.json")
        is_done = summary.get("status") == "finished" and (
            summary["epochs"] >= last_epoch or summary["ended_by"] != "epochs"
        )
        if not (is_done and is_run_of(path, experiment.identity())):  # else its record was lost
            on_epoch = partial(self.on_epoch, record.number, execution)
            reporter = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1, logs))
            callbacks = [reporter, *([rule] if rule else [])]
            summary = self._train(experiment, path, epochs, callbacks)
        return summary, rule is not None and rule.has_stopped(self._read_curve(record, execution))

    def _vary(self, record: Record, execution: int) -> Experiment:
        seed = record.values.get("seed", self.loaded.experiment.seed) + execution
        fixed = {"seed": seed, "training.monitor": self.objective, "training.when_stuck": "stop"}
        return self.loaded.vary({**record.values, **fixed})

    def _train(
        self, experiment: Experiment, path: Path, epochs: int | None, callbacks: Sequence[keras.callbacks.Callback]
    ) -> dict[str, Any]:
        """Train one run to its end; return its summary."""
        splits = self.load_data(experiment.data)
        os.stat(self.folder)  # a run makes the folder that it lies in; not this one again, if it has been deleted
        options = RunOptions(
            path=path,
            epochs=epochs,
            # Weights bring constants of their own.
            constants=None if experiment.model.init_from else self._constants_path(experiment.data),
            evaluate=("validation",),
            draw=False,
            keep_last=True,  # hyperband may resume from it
            callbacks=callbacks,
        )
        return train(experiment, options, splits=splits, screen=Screen(quiet_console())).summary

    def _constants_path(self, config: DataConfig) -> Path:
        """Return where the first layer's constants are kept for all trials of this process with the same data."""
        return self.folder / f"normalization-{'-'.join(filter(None, (_digest_of_data(config), self.worker)))}.npz"

    def _make_median_rule(self, record: Record, execution: int, epochs: int) -> StopBelowMedian | None:
        rule = getattr(self.loaded.experiment.search, "median_stopping", None)
        if rule is None:
            return None
        earlier = [other for other in read_records(self.folder).values() if other.number < record.number]
        curves = [self._read_curve(other, execution) for other in earlier if other.has_score]
        return StopBelowMedian(rule, self.objective, [curve for curve in curves if curve], epochs)

    def _read_curve(self, record: Record, execution: int) -> list[float]:
        """Read the objective after each epoch of a run."""
        path = self.folder / record.run(execution) / "metrics.jsonl"
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line[self.objective.removeprefix("val_")] for line in lines if line["split"] == "validation"]


def inherit_run(path: Path, parent: Path) -> None:
    """Begin a run as a copy of another one; it is never seen half-copied."""
    if path.exists():
        return
    staging = path.with_name(f".{path.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(parent, staging, ignore=shutil.ignore_patterns(".lock", ".owner"))
    for events in staging.glob("events.out.*"):  # what TensorBoard knows of the parent as a trial
        events.unlink()
    os.rename(staging, path)


def prune_weights(
    folder: Path,
    records: Iterable[Record],
    options: SearchOptions,
    objective: str,
    may_be_inherited: Callable[[int], bool] = lambda number: False,
) -> None:
    """Remove the weights of ended trials, except those of the best and those that others may begin with.

    Args:
        folder: of the search.
        records: those of the trials.
        options: how many of the best keep their weights, and how often each trial is trained.
        objective: of the search.
        may_be_inherited: takes a trial's number; returns whether its weights may still be needed.
    """
    records = list(records)
    kept = {record.number for record in rank(records, objective)[: options.keep]}
    for record in records:
        if not record.has_ended or record.number in kept or may_be_inherited(record.number):
            continue
        for execution in range(options.executions_per_trial):
            run = folder / record.run(execution)
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
            for model in run.glob("model*.keras"):
                model.unlink()


def _digest_of_data(config: DataConfig) -> str:
    """Return what tells apart data that are read, kept and normalized differently."""
    content = [config.model_dump(mode="json", exclude=_AFTER_READING), reads_whole_images(config)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
