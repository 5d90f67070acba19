"""One trial: an ordinary run, or several with other seeds, trained as far as the search asks."""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import keras
from rich.console import Console

from kpipe import data
from kpipe.assembly import load_splits, reads_whole_images
from kpipe.config.loading import Loaded
from kpipe.config.schema import DataConfig, Experiment
from kpipe.console import Screen
from kpipe.errors import ConfigError, DataError, Diverged, OutOfMemory
from kpipe.experiment import train
from kpipe.files import read_json
from kpipe.models.googlenet import HEADED, WithAuxiliaryHeads
from kpipe.runs.directory import is_run_of
from kpipe.search.records import Record, read_records, write_record
from kpipe.search.stopping import _LEAST_STEPS, _NEAR_CHANCE, StopBelowMedian
from kpipe.signals import Stop

_AFTER_READING = {"batch_size", "augment", "class_weights"}  # keys of `data` about what is done with what was read


@dataclass
class TrialRunner:
    """Runs the trials of one search, one after the other, in this process.

    Attributes:
        loaded: the experiment and its space.
        search: the search's folder.
        objective: val_accuracy or val_loss.
        worker: the name of this process among several.
        screen: shows how far the reading of the data is.
        on_epoch: gets number, execution, epoch and logs at the end of each epoch.
        stop: the signals; between trials they interrupt.
    """

    loaded: Loaded
    search: Path
    objective: str
    stop: Stop
    worker: str = ""
    screen: Screen = field(default_factory=Screen)
    on_epoch: Callable[[int, int, int, Mapping[str, float]], None] = lambda number, execution, epoch, logs: None
    _data: "tuple[str, data.Splits] | None" = None

    def run(self, record: Record, epochs: int | None = None) -> Record:
        """Trains a trial to its end, or goes on with it, and writes its record.

        Args:
            record: number, values and parent.
            epochs: how many its run has at the end; None: all that the experiment has.

        Returns:
            The record, ended: finished, stopped or failed.
        """
        record = replace(record, status="running", score=None, scores=[], message=None, ended=None)
        write_record(self.search, record)
        try:
            record = self._run_executions(record, epochs)
        except (Diverged, ConfigError, OutOfMemory) as error:
            runs = [self.search / record.run(execution) for execution in range(self._executions)]
            summaries = [read_json(run / "summary.json") for run in runs]
            epochs = max(summary.get("epochs", 0) for summary in summaries)
            seconds = sum(summary.get("seconds", 0.0) for summary in summaries)
            record = replace(record, status="failed", message=str(error), epochs=epochs, seconds=seconds)
        finally:
            keras.backend.clear_session()  # collects the garbage, too
        record = replace(record, ended=time.time())
        write_record(self.search, record)
        self.stop.obey()
        return record

    @property
    def _executions(self) -> int:
        return self.loaded.experiment.search.executions_per_trial

    def _run_executions(self, record: Record, epochs: int | None) -> Record:
        scores, seconds, loss, stopped, reached = [], 0.0, None, False, 0
        for execution in range(self._executions):
            summary, stopped = self._execute(record, execution, epochs)
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

    def _execute(self, record: Record, execution: int, epochs: int | None) -> tuple[dict[str, Any], bool]:
        """One run; returns its summary, and whether the median rule has stopped it."""
        seed = record.values.get("seed", self.loaded.experiment.seed) + execution
        experiment = self.loaded.vary({**record.values, "seed": seed, "training.monitor": self.objective})
        path = self.search / record.run(execution)
        if record.parent is not None:
            _inherit(path, self.search / replace(record, number=record.parent).run(execution))
        wanted = epochs or experiment.training.epochs
        rule = self._median_rule(record, execution, wanted)
        summary = read_json(path / "summary.json")
        is_done = summary.get("status") == "finished" and (summary["epochs"] >= wanted or summary["stopped_early"])
        if not (is_done and is_run_of(path, experiment.identity())):  # else its record was lost
            summary = self._train(experiment, record, execution, path, epochs, rule)
        return summary, rule is not None and rule.has_stopped(self._curve(record, execution))

    def _train(
        self,
        experiment: Experiment,
        record: Record,
        execution: int,
        path: Path,
        epochs: int | None,
        rule: "StopBelowMedian | None",
    ) -> dict[str, Any]:
        """Trains one run to its end; returns its summary."""
        splits = self._load(experiment.data)
        trial = Trial(
            path,
            epochs=epochs,
            constants=self._constants(experiment.data),
            watch=self._watch(experiment, splits),
            callbacks=[rule] if rule else [],
        )
        screen = _Told(lambda epoch, logs: self.on_epoch(record.number, execution, epoch, logs))
        return train(experiment, splits=splits, screen=screen, trial=trial).summary

    def _load(self, config: DataConfig) -> data.Splits:
        """The data, read once for all trials that have the same."""
        key = _digest(config)
        if self._data is None or self._data[0] != key:
            self._data = None  # before the next is read: both need not fit
            self._data = (key, load_splits(config, progress=self.screen.progress))
        splits = self._data[1]
        if splits.validation is None:
            raise DataError(
                f"{config.source}: a search needs a validation part, which this data does not give; take a larger "
                "data.split.validation, or more images a class"
            )
        return splits

    def _constants(self, config: DataConfig) -> Path:
        """Where those of the first layer are kept for all trials of this process with the same data."""
        return self.search / f"normalization-{'-'.join(filter(None, (_digest(config), self.worker)))}.npz"

    def _watch(self, experiment: Experiment, splits: data.Splits) -> Callable[[dict[str, Any]], None]:
        """Ends a training whose loss is that of guessing."""
        loss = experiment.training.loss
        name = loss.name if loss else experiment.model.default_loss
        if name != "cross_entropy":
            return lambda record: None
        classes = len(splits.class_names)
        heads = len(HEADED) if getattr(experiment.model, "auxiliary_heads", False) else 0
        guessing = math.log(classes) * (1 + WithAuxiliaryHeads.auxiliary_weight * heads)
        steps_per_epoch = len(splits.train) // experiment.data.batch_size
        after = self.loaded.experiment.search.stuck_after or max(_LEAST_STEPS, steps_per_epoch)

        def watch(record: dict[str, Any]) -> None:
            # The mean over an epoch passes this number on its way down.
            if (record["split"], record["span"]) != ("train", "steps") or record["step"] < after:
                return
            if abs(record["loss"] - guessing) <= _NEAR_CHANCE * guessing:
                raise Diverged(
                    f"stuck: the training loss is {record['loss']:.3f} after {record['step']:,} steps, within "
                    f"{_NEAR_CHANCE:.0%} of {guessing:.3f}, that of guessing among {classes} classes"
                )

        return watch

    def _median_rule(self, record: Record, execution: int, epochs: int) -> "StopBelowMedian | None":
        rule = getattr(self.loaded.experiment.search, "median_stopping", None)
        if rule is None:
            return None
        earlier = [other for other in read_records(self.search).values() if other.number < record.number]
        curves = [self._curve(other, execution) for other in earlier if other.has_score]
        return StopBelowMedian(rule, self.objective, [curve for curve in curves if curve], epochs)

    def _curve(self, record: Record, execution: int) -> list[float]:
        """The objective of each epoch of a run."""
        path = self.search / record.run(execution) / "metrics.jsonl"
        if not path.exists():
            return []
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line[self.objective.removeprefix("val_")] for line in lines if line["split"] == "validation"]


class _Told(Screen):
    """A screen that shows nothing and tells of each epoch."""

    def __init__(self, on_epoch: Callable[[int, Mapping[str, float]], None]):
        super().__init__(Console(quiet=True))
        self._on_epoch = on_epoch

    def epoch(self, epoch: int, logs: Mapping[str, float], best: bool) -> None:
        self._on_epoch(epoch, logs)


def _inherit(path: Path, parent: Path) -> None:
    """Begins a run as a copy of another; it is never seen half-copied."""
    if path.exists():
        return
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(parent, part, ignore=shutil.ignore_patterns(".lock", ".owner"))
    for events in part.glob("events.out.*"):  # what TensorBoard knows of the parent as a trial
        events.unlink()
    os.rename(part, path)


def _digest(config: DataConfig) -> str:
    """What tells apart data that are read, kept and normalised differently."""
    content = [config.model_dump(mode="json", exclude=_AFTER_READING), reads_whole_images(config)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
