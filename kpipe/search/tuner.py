"""`kpipe search`: which values of an experiment's keys train best.

keras-tuner says what to try next and speaks with the workers; a trial is an ordinary run in the search's folder, made
by the same overrides that a person would type. The order of reading: this page, `trials` (how one trial is trained),
`oracles` (what is tried next), `records` (what is remembered), `report`, `workers`.
"""

import contextlib
import gc
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine import base_tuner

from kpipe.config.loading import Loaded
from kpipe.config.space import decode, keys_of, make_dimensions
from kpipe.console import Screen, counted
from kpipe.errors import ConfigError, Diverged, EnvironmentFault, Interrupted
from kpipe.files import translate_write_errors
from kpipe.runs.directory import logs_folder
from kpipe.runs.interruption import command_again
from kpipe.search.directory import find_search, open_search, unfinished_searches
from kpipe.search.oracles import EPOCHS, PARENT, codes_of, make_oracle, number_of
from kpipe.search.records import Record, read_records, take_up
from kpipe.search.report import Report, prune
from kpipe.search.trials import TrialRunner
from kpipe.search.workers import (
    FOLDER,
    Server,
    Workers,
    as_chief,
    chief_address,
    die_with_launcher,
    role,
    translate_protocol_errors,
)
from kpipe.signals import Stop, stop_signals


@dataclass(frozen=True)
class SearchResult:
    """Where a finished search is, and what its summary.json holds."""

    path: Path
    summary: dict[str, Any]


def run_search(
    loaded: Loaded, *, new: bool = False, workers: int = 1, screen: Screen | None = None
) -> SearchResult | None:
    """Searches; goes on with the same search where it stood, and reports a finished one.

    Args:
        loaded: the experiment and its section `search`, see `kpipe.config.load_search`.
        new: start another search in any case.
        workers: processes of this machine that train trials at once.
        screen: where the user sees it; default standard output.

    Returns:
        None for a worker of another process's search, which only the chief reports.

    Raises:
        ConfigError, DataError: nothing can be trained.
        Diverged: not one trial has a score.
        EnvironmentFault: the machine refuses; the trials so far are kept.
        Interrupted: by SIGINT or SIGTERM; the same command goes on.
    """
    part = role()
    if part is not None and (workers > 1 or (new and part == "worker")):
        raise ConfigError(
            "--workers, --new: expected neither where KERASTUNER_TUNER_ID says what this process is; --new is for the "
            "chief alone"
        )
    job = _Job(loaded, screen or Screen())
    if part == "worker":
        _work(job)
        return None
    with (
        stop_signals() as stop,
        translate_write_errors(job.logs),
        open_search(job.logs, job.name, job.identity, job.config, new=new) as path,
        _worded_interruption(path, stop),
    ):
        before, lost = take_up(path)
        oracle = job.make_oracle(before)
        _show_header(job, path, oracle.total, before, lost, workers)
        report = Report(
            path, loaded.experiment, job.dimensions, objective=job.objective, total=oracle.total, screen=job.screen
        )

        known = len(oracle.end_order)

        def look() -> None:
            """Brings the report up to date when a trial has ended."""
            nonlocal known
            if len(oracle.end_order) > known:
                known = len(oracle.end_order)
                records = read_records(path)
                report.trials_ended(records)
                prune(path, records.values(), job.search, job.objective, oracle.may_go_on)

        with report.watching(before), _keras_tuner_held_back():
            if part == "chief":
                Server(_Tuner(oracle, path).search).wait(look)
            elif workers > 1:
                with as_chief():
                    server = Server(_Tuner(oracle, path).search)
                    Workers(loaded, workers, path, job.screen).supervise(server, stop, look)
            else:
                runner = TrialRunner(loaded, path, job.objective, stop, screen=job.screen, on_epoch=report.epoch)
                _Tuner(oracle, path, runner, look).search()
        return _finish(job, path, report, oracle, before)


class _Job:
    """What is searched, and under which names.

    Attributes:
        loaded, search: the experiment, and its section.
        name, logs: of the experiment.
        epochs: the most that a trial trains.
        objective: val_accuracy or val_loss.
        identity: what makes two searches the same.
        config: the experiment as it was given.
        dimensions: of the space.
    """

    def __init__(self, loaded: Loaded, screen: Screen):
        self.loaded = loaded
        self.screen = screen
        experiment = loaded.experiment
        self.search = experiment.search
        self.name = experiment.name
        self.epochs = experiment.training.epochs
        self.objective = self.search.objective or experiment.training.monitor
        self.logs = logs_folder(experiment.logs)
        self.identity = experiment.identity() | {"search": self.search.model_dump(mode="json")}
        self.config = {key: value for key, value in loaded.document.data.items() if key != "logs"}
        self.dimensions = make_dimensions(self.search)

    def make_oracle(self, records: Mapping[int, Record]) -> keras_tuner.Oracle:
        return make_oracle(self.search, self.objective, self.epochs, records)


def _finish(
    job: _Job, path: Path, report: Report, oracle: keras_tuner.Oracle, before: Mapping[int, Record]
) -> SearchResult:
    """Reports a search that has no more trials to do."""
    records = read_records(path)
    prune(path, records.values(), job.search, job.objective)
    summary = report.finish(records, is_exhausted=oracle.total < (oracle.asked_for or 0))
    if before and sum(record.has_ended for record in before.values()) == len(records):
        more = ", more search.trials go on with it" if hasattr(job.search, "trials") else ""
        job.screen.line(f"It was finished before{more}; --new starts another")
    if summary["best"] is None:
        raise Diverged(f"{path}: not one of {summary['trials']} trials has a score; the reasons stand above")
    return SearchResult(path, summary)


class _Tuner(base_tuner.BaseTuner):
    """keras-tuner's loop around trials of kpipe; `runner` is None in the chief, which trains nothing."""

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        folder: Path,
        runner: TrialRunner | None = None,
        after_trial: Callable[[], None] = lambda: None,
    ):
        self._folder = folder
        self._dimensions = oracle.dimensions
        self._after_trial = after_trial
        self.runner = runner
        super().__init__(oracle, directory=str(folder.parent), project_name=folder.name)

    @property
    def project_dir(self):
        return str(self._folder)

    def search(self):
        gc.freeze()  # what is there now stays; looking at it after each trial would take longer than a small trial
        super().search()

    def _try_run_and_update_trial(self, trial):
        # Its public way, `run_trial`, takes every error for a trial that has failed, and prints a traceback for each.
        # Here `TrialRunner.run` says what has failed; a programming error or an interruption ends the search.
        codes = codes_of(trial)
        parent = codes.get(PARENT)
        record = Record(
            number_of(trial.trial_id),
            codes,
            decode(self._dimensions, codes),
            parent=None if parent is None else number_of(parent),
        )
        record = self.runner.run(record, codes.get(EPOCHS))
        if record.has_score:
            self.oracle.update_trial(trial.trial_id, {self.runner.objective: record.score})
        trial.status = "COMPLETED" if record.has_score else "FAILED"

    def on_trial_end(self, trial):
        self.oracle.end_trial(trial)
        self._after_trial()

    def pre_create_trial(self):
        if self._is_worker():
            time.sleep(0.1)  # keras-tuner asks again at once where there is nothing to do yet

    def save(self):
        pass


def _keras_tuner_held_back() -> contextlib.redirect_stdout:
    """keras-tuner prints the conditions of the space whenever it sends one; a Screen has the true standard output."""
    return contextlib.redirect_stdout(io.StringIO())


def _work(job: _Job) -> None:
    """The life of a worker: trials of the chief's search until it has no more."""
    die_with_launcher()
    with stop_signals() as stop, translate_write_errors(job.logs), translate_protocol_errors():
        folder = job.logs / job.name
        tuner = _Tuner(job.make_oracle({}), folder)
        job.screen.line(f"waiting for the chief at {chief_address()}")
        tuner.oracle.get_space()
        launched = os.environ.get(FOLDER)
        path = Path(launched) if launched else find_search(job.logs, job.name, job.identity)
        if path is None:
            raise EnvironmentFault(
                f"{folder}: expected the folder of the chief's search, found none of this experiment. Workers need the "
                "chief's experiment, and its folder of logs on a shared disk (KPIPE_LOGS)."
            )
        job.screen.line(f"working on {path}")
        tuner.runner = TrialRunner(job.loaded, path, job.objective, stop, worker=tuner.tuner_id, screen=job.screen)
        with _keras_tuner_held_back():
            tuner.search()


def _show_header(
    job: _Job, path: Path, total: int, before: Mapping[int, Record], lost: Sequence[int], workers: int
) -> None:
    done = [record for record in before.values() if record.has_ended]
    begun = [str(record.number) for record in before.values() if not record.has_ended]
    resumed = f", resumed after {counted(len(done), 'trial')}" if before else ""
    resumed += f"; {', '.join(begun)} begun" if begun else ""
    epochs = f"{'at most ' if job.search.method == 'hyperband' else ''}{counted(job.epochs, 'epoch')}"
    rows = {
        "search": f"{job.search.method}, {counted(total, 'trial')} of {epochs}, by {job.objective}"
        + (f", {workers} workers" if workers > 1 else ""),
        "space": ", ".join(keys_of(job.search)),
        "folder": f"{path}{resumed}",
    }
    job.screen.header(f"kpipe search: {job.name}", rows)
    notes = list(job.loaded.notes)
    if lost:
        numbers = ", ".join(map(str, lost))
        notes.append(f"a record is lost or damaged; these trials are looked up in their runs again: {numbers}")
    if not before and (others := [other for other in unfinished_searches(path.parent) if other != path]):
        notes.append(f"{others[-1]} is unfinished; it has another space or another experiment")
    for note in notes:
        job.screen.line(f"  note: {note}")


@contextlib.contextmanager
def _worded_interruption(path: Path, stop: Stop) -> Iterator[None]:
    """Says how many trials are done, and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if not (isinstance(error, KeyboardInterrupt | Interrupted) or stop.raised):
            raise
        done = sum(record.has_ended for record in read_records(path).values())
        raise Interrupted(
            f"{stop.word}; {counted(done, 'trial')} done. The same command goes on from there:\n"
            f"  {command_again(resumes=True)}",
            stop.exit_code,
        ) from None
