"""`kpipe search`: which values of an experiment's keys train best.

keras-tuner says what to try next and speaks with the workers. A trial is an ordinary run in the search's folder, made
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

from kpipe.caller import about_an_experiment, flag
from kpipe.catalog.data import check_source
from kpipe.catalog.weights import check_weights_file
from kpipe.config.loading import Loaded, check_search
from kpipe.config.schema import Experiment
from kpipe.config.space import decode, keys_of
from kpipe.console import Screen, counted
from kpipe.errors import ConfigError, Diverged, EnvironmentFault, Interrupted
from kpipe.files import translate_deletion, translate_write_errors
from kpipe.runs.directory import logs_folder
from kpipe.runs.interruption import how_again
from kpipe.signals import Stop, stop_signals
from kpipe.tuning.directory import find_search, identity_of, open_search, searches_folder, unfinished_searches
from kpipe.tuning.oracles import EPOCHS, PARENT, codes_of, make_oracle, number_of
from kpipe.tuning.records import Record, objective_of, read_records, recover_records
from kpipe.tuning.report import Report
from kpipe.tuning.trials import TrialRunner, prune_weights
from kpipe.tuning.workers import (
    FOLDER,
    Server,
    Workers,
    as_chief,
    chief_address,
    die_with_launcher,
    read_role,
    translate_protocol_errors,
)


@dataclass(frozen=True)
class SearchResult:
    """Where a finished search is, and what its search.json holds."""

    path: Path
    summary: dict[str, Any]


@about_an_experiment()
def search(
    experiment: Loaded, *, new: bool = False, workers: int = 1, screen: Screen | None = None
) -> SearchResult | None:
    """Search, resume the same search where it stopped, or report a finished one.

    Args:
        experiment: what `load_experiment` returned. Without a section `search`, learning rate and optimizer are tried.
        new: start another search in any case.
        workers: processes of this machine that train trials at once.
        screen: where the user sees it; default standard output.

    Returns:
        None for a worker of another process's search, which only the chief reports.

    Raises:
        ConfigError, DataError: nothing can be trained.
        Diverged: no trial has a score.
        EnvironmentFault: the machine refuses; the trials so far are kept.
        Interrupted: by SIGINT, SIGTERM or SIGHUP; the same command resumes the search.
    """
    role = read_role()
    if role is not None and (workers > 1 or (new and role == "worker")):
        raise ConfigError(
            "workers, new: expected neither where KERASTUNER_TUNER_ID says what this process is; only the chief may "
            f"have {flag('new')}"
        )
    loaded, screen = check_search(experiment), screen or Screen()
    experiment = loaded.experiment
    if experiment.training.distribution == "multi_worker":
        raise ConfigError(
            "training.distribution: expected none or mirrored in a search, got multi_worker. A search has workers of "
            f"its own, which train a trial each: {flag('workers')}"
        )
    if role == "worker":
        _work(loaded, screen)
        return None
    for source in experiment.sources:
        check_source(source)
    for source in experiment.weights:
        check_weights_file(source)
    config = {key: value for key, value in loaded.document.data.items() if key != "logs"}
    logs, objective = logs_folder(experiment.logs), objective_of(experiment)
    with (
        stop_signals() as stop,
        translate_write_errors(searches_folder(logs, experiment.name)),
        open_search(logs, experiment.name, identity_of(experiment), config, new=new) as path,
        _translate_interruption(path, stop),
    ):
        before, lost = recover_records(path)
        oracle = make_oracle(experiment.search, objective, experiment.training.epochs, before)
        workers = max(1, min(workers, oracle.total - len(before)))
        _show_header(screen, experiment, path, oracle.total, before, workers)
        _show_notes(screen, loaded, path, before, lost)
        report = Report(path, experiment, total=oracle.total, screen=screen)
        update = _make_update(experiment, path, oracle, report)
        with report.watching(before), _keras_tuner_silenced():
            if role == "chief":
                Server(Tuner(oracle, path).search).wait(update)
            elif workers > 1:
                with as_chief():
                    server = Server(Tuner(oracle, path).search)
                    Workers(loaded, workers, path, screen).supervise(server, stop, update)
            else:
                runner = TrialRunner(loaded, path, objective, stop, screen=screen, on_epoch=report.epoch)
                Tuner(oracle, path, runner, update).search()
        return _finish(experiment, path, oracle, report, before, screen)


def _make_update(experiment: Experiment, path: Path, oracle: keras_tuner.Oracle, report: Report) -> Callable[[], None]:
    """Make a function that updates the report, and removes weights, when a trial has ended since its last call."""
    ended = len(oracle.end_order)

    def update() -> None:
        nonlocal ended
        if len(oracle.end_order) == ended:
            return
        ended = len(oracle.end_order)
        records = read_records(path)
        report.trials_ended(records)
        prune_weights(
            path, records.values(), experiment.search, objective_of(experiment), oracle.weights_may_be_inherited
        )

    return update


def _finish(
    experiment: Experiment,
    path: Path,
    oracle: keras_tuner.Oracle,
    report: Report,
    before: Mapping[int, Record],
    screen: Screen,
) -> SearchResult:
    """Report a search that has no more trials to run; `before`: the records that this process began with."""
    records = read_records(path)
    prune_weights(path, records.values(), experiment.search, objective_of(experiment))
    summary = report.finish(records, is_exhausted=oracle.total < (oracle.requested or 0))
    if before and sum(record.has_ended for record in before.values()) == len(records):
        extended = ", a larger search.trials extends it" if hasattr(experiment.search, "trials") else ""
        screen.prose(f"This search was finished before{extended}; {flag('new')} starts another")
    if summary["best"] is None:
        raise Diverged(
            f"{path}: expected a trial with a score, got none in {counted(summary['trials'], 'trial')}; see the "
            "reasons above"
        )
    return SearchResult(path, summary)


class Tuner(base_tuner.BaseTuner):
    """keras-tuner's loop around trials of kpipe.

    Args:
        oracle: what says what to try next.
        folder: of the search.
        runner: trains the trials; None in the chief, which trains nothing.
        after_trial: is called when a trial has ended.
    """

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
        gc.freeze()  # what exists now stays; checking it after each trial would take longer than a small trial
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


def _keras_tuner_silenced() -> contextlib.redirect_stdout:
    """Drop keras-tuner's prints: the conditions of the space whenever it sends one. A Screen keeps the true output."""
    return contextlib.redirect_stdout(io.StringIO())


def _work(loaded: Loaded, screen: Screen) -> None:
    """Run trials of the chief's search until it has no more."""
    die_with_launcher()
    experiment = loaded.experiment
    logs, objective = logs_folder(experiment.logs), objective_of(experiment)
    folder = searches_folder(logs, experiment.name)
    with stop_signals() as stop, translate_write_errors(folder), translate_protocol_errors():
        oracle = make_oracle(experiment.search, objective, experiment.training.epochs, {})
        tuner = Tuner(oracle, folder)
        screen.line(f"waiting for the chief at {chief_address()}")
        tuner.oracle.get_space()
        path = _find_chief_search(experiment, logs)
        screen.line(f"working on {path}")
        tuner.runner = TrialRunner(loaded, path, objective, stop, worker=tuner.tuner_id, screen=screen)
        with _keras_tuner_silenced(), translate_deletion(path):
            tuner.search()


def _find_chief_search(experiment: Experiment, logs: Path) -> Path:
    """Return the folder of the chief's search, which has made it before it answers."""
    launched = os.environ.get(FOLDER)
    path = Path(launched) if launched else find_search(logs, experiment.name, identity_of(experiment))
    if path is None:
        raise EnvironmentFault(
            f"{searches_folder(logs, experiment.name)}: expected the folder of the chief's search, found none of this "
            "experiment. Workers need the chief's experiment, and its folder of logs on a shared disk (KPIPE_LOGS)."
        )
    return path


def _show_header(
    screen: Screen, experiment: Experiment, path: Path, total: int, before: Mapping[int, Record], workers: int
) -> None:
    search = experiment.search
    epochs = f"{'at most ' if search.method == 'hyperband' else ''}{counted(experiment.training.epochs, 'epoch')}"
    rows = {
        "search": f"{search.method}, {counted(total, 'trial')} of {epochs}, by {objective_of(experiment)}"
        + (f", {workers} workers" if workers > 1 else ""),
        "space": ", ".join(keys_of(search)),
    }
    if before:
        begun = [str(record.number) for record in before.values() if not record.has_ended]
        rows["resumed"] = f"after {counted(len(before) - len(begun), 'trial')}"
        rows["resumed"] += f"; begun: {', '.join(begun)}" if begun else ""
    screen.header(f"kpipe search: {experiment.name}", {"folder": str(path)})
    for name, text in rows.items():
        screen.prose(f"  {name:<10} {text}", indent=13)


def _show_notes(screen: Screen, loaded: Loaded, path: Path, before: Mapping[int, Record], lost: Sequence[int]) -> None:
    """Show what the user should know before the first trial."""
    for note in loaded.notes:
        screen.prose(f"  note: {note}", indent=8)
    if lost:
        numbers = ", ".join(map(str, lost))
        note = f"a record is lost or damaged; these trials are looked up in their runs again: {numbers}"
        screen.prose(f"  note: {note}", indent=8)
    if not before and (others := [other for other in unfinished_searches(path.parent) if other != path]):
        screen.prose("  note: another search is unfinished; it has another space or another experiment:", indent=8)
        screen.line(f"        {others[-1]}")


@contextlib.contextmanager
def _translate_interruption(path: Path, stop: Stop) -> Iterator[None]:
    """Turn an interruption into Interrupted, which says how many trials are done and how to resume."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if not (isinstance(error, KeyboardInterrupt | Interrupted) or stop.raised):
            raise
        done = sum(record.has_ended for record in read_records(path).values())
        raise Interrupted(
            f"{stop.word}; {counted(done, 'trial')} done. {how_again('resumes the search', resumes=True)}",
            stop.exit_code,
        ) from None
