"""`kpipe search`: which values of an experiment's keys train best.

keras-tuner says what to try next and speaks with the workers; a trial is an ordinary run in the search's folder, made
by the same overrides that a person would type. The order of reading: this page, `trials` (how one trial is trained),
`oracles` (what is tried next), `records` (what is remembered), `report`, `workers`.
"""

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_tuner.engine import base_tuner

from kpipe.config import Loaded
from kpipe.config.space import decode, make_dimensions
from kpipe.console import Screen, counted
from kpipe.errors import Diverged, EnvironmentFault, Interrupted
from kpipe.experiment import logs_of
from kpipe.faults import command_again
from kpipe.rundir import find_search, open_search, worded_write_errors
from kpipe.search.oracles import EPOCHS, PARENT, codes_of, make_oracle, number_of
from kpipe.search.records import Record, read_records
from kpipe.search.report import Report, prune
from kpipe.search.trials import TrialRunner
from kpipe.search.workers import (
    Workers,
    become_chief,
    chief_address,
    die_with_launcher,
    leave_chief,
    role,
    serve,
    worded_protocol_errors,
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
    job = _Job(loaded, screen or Screen())
    part = role()
    if part == "worker":
        _work(job)
        return None
    with (
        stop_signals() as stop,
        worded_write_errors(job.logs),
        open_search(job.logs, job.name, job.identity, job.config, new=new) as path,
        _worded_interruption(path, stop),
    ):
        records = read_records(path)
        oracle = job.make_oracle(records, on_end=lambda: after_trial())
        total = oracle.total
        report = Report(
            path, job.dimensions, objective=job.objective, total=total, epochs=job.epochs, screen=job.screen
        )

        def after_trial() -> None:
            records = read_records(path)
            report.trial_ended(records)
            prune(path, records.values(), job.objective, job.search.keep, oracle.may_go_on)

        _show_header(job, path, records, total, workers)
        with report.watching(records), _keras_tuner_held_back():
            if part == "chief":
                server = serve(_Tuner(oracle, path).search)
                server.join()
                if server.error:
                    raise server.error
            elif workers > 1:
                _search_with(workers, job, oracle, path, stop)
            else:
                runner = TrialRunner(loaded, path, job.objective, stop, screen=job.screen, on_epoch=report.epoch)
                _Tuner(oracle, path, runner).search()
        records = read_records(path)
        prune(path, records.values(), job.objective, job.search.keep)
        summary = report.finish(
            records, space_is_exhausted=bool(job.search_trials and len(records) < job.search_trials)
        )
        if summary["best"] is None:
            raise Diverged(f"{path}: not one of {summary['trials']} trials has a score; the reasons stand above")
        return SearchResult(path, summary)


class _Job:
    """What is searched, and under which names."""

    def __init__(self, loaded: Loaded, screen: Screen):
        self.loaded = loaded
        self.screen = screen
        experiment = loaded.experiment
        self.search = experiment.search
        self.search_trials = getattr(self.search, "trials", None)
        self.name = experiment.name
        self.epochs = experiment.training.epochs
        self.objective = self.search.objective or experiment.training.monitor
        self.logs = logs_of(experiment)
        self.identity = experiment.identity() | {"search": self.search.model_dump(mode="json")}
        self.config = {key: value for key, value in loaded.document.data.items() if key != "logs"}
        self.dimensions = make_dimensions(self.search)

    def make_oracle(self, records: Mapping[int, Record], on_end=lambda: None):
        return make_oracle(self.search, self.objective, self.epochs, records, on_end)


class _Tuner(base_tuner.BaseTuner):
    """keras-tuner's loop around trials of kpipe; `runner` is None in the chief, which trains nothing."""

    def __init__(self, oracle, folder: Path, runner: TrialRunner | None = None):
        self._folder = folder
        self._dimensions = oracle.dimensions
        self.runner = runner
        super().__init__(oracle, directory=str(folder.parent), project_name=folder.name)

    @property
    def project_dir(self):
        return str(self._folder)

    def _try_run_and_update_trial(self, trial):
        # keras-tuner's own takes every error for a trial that has failed. Here those of `TrialRunner.run` are, and
        # another one, a programming error or an interruption, ends the search.
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

    def pre_create_trial(self):
        if self._is_worker():
            time.sleep(0.1)  # keras-tuner asks again at once where there is nothing to do yet

    def save(self):
        pass


def _keras_tuner_held_back() -> contextlib.redirect_stdout:
    """keras-tuner prints the conditions of the space whenever it sends one; a Screen has the true standard output."""
    return contextlib.redirect_stdout(io.StringIO())


def _search_with(workers: int, job: _Job, oracle, path: Path, stop: Stop) -> None:
    become_chief()
    try:
        server = serve(_Tuner(oracle, path).search)
        Workers(job.loaded, workers, path).supervise(server, stop)
    finally:
        leave_chief()


def _work(job: _Job) -> None:
    """The life of a worker: trials of the chief's search until it has no more."""
    die_with_launcher()
    with stop_signals() as stop, worded_write_errors(job.logs), worded_protocol_errors():
        folder = job.logs / job.name
        tuner = _Tuner(job.make_oracle({}), folder)
        job.screen.line(f"waiting for the chief at {chief_address()}")
        tuner.oracle.get_space()
        path = find_search(job.logs, job.name, job.identity)
        if path is None:
            raise EnvironmentFault(
                f"{folder}: expected the folder of the chief's search, found none of this experiment. Workers need the "
                "chief's experiment, and its folder of logs on a shared disk (KPIPE_LOGS)."
            )
        job.screen.line(f"working on {path}")
        tuner.runner = TrialRunner(job.loaded, path, job.objective, stop, worker=tuner.tuner_id, screen=job.screen)
        with _keras_tuner_held_back():
            tuner.search()


def _show_header(job: _Job, path: Path, records: Mapping[int, Record], total: int, workers: int) -> None:
    done = sum(record.has_ended for record in records.values())
    rows = {
        "search": f"{job.search.method}, {counted(total, 'trial')} of {counted(job.epochs, 'epoch')}, "
        f"by {job.objective}" + (f", {workers} workers" if workers > 1 else ""),
        "space": ", ".join(dict.fromkeys(dimension.key for dimension in job.dimensions)),
        "folder": str(path) + (f", resumed after {counted(done, 'trial')}" if records else ""),
    }
    job.screen.header(f"kpipe search: {job.name}", rows)


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
