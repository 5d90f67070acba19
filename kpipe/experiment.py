"""One experiment, from its file to a trained network: the page to read first.

`train` is the whole job, in the order in which things happen: open the run, assemble, restore, fit, evaluate, write.
`assembly` builds data, model and optimizer; `training.trainer` has the loop; `runs` is what lies on the disk.
"""

import math
import shlex
import shutil
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kpipe import data
from kpipe.assembly import (
    Prepared,
    describe,
    make_callbacks,
    prepare,
    resolve,
    seed_everything,
)
from kpipe.config.schema import Experiment, TrainingConfig
from kpipe.console import Screen, describe_counts
from kpipe.data.reading import translate_reading_errors
from kpipe.errors import Diverged
from kpipe.evaluation.report import write_figures
from kpipe.files import write_names
from kpipe.memory import memory_notes, translate_tensorflow_errors
from kpipe.models.portable import load_portable_weights, save_portable
from kpipe.runs.directory import logs_folder, open_run
from kpipe.runs.disk import check_disk, estimate_disk
from kpipe.runs.environment import record_environment
from kpipe.runs.interruption import translate_interruption
from kpipe.runs.logs import RunLog
from kpipe.runs.options import Result, RunOptions
from kpipe.runs.recorder import Recorder
from kpipe.runs.resume import check_resume
from kpipe.runs.state import restore_state
from kpipe.signals import Stop, stop_signals
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.device import describe_device, gpu_hint
from kpipe.training.distribution import make_strategy
from kpipe.training.durations import steps_of
from kpipe.training.trainer import Cadence, Hooks, Trainer


def train(
    experiment: Experiment,
    options: RunOptions | None = None,
    *,
    splits: data.Splits | None = None,
    screen: Screen | None = None,
) -> Result:
    """Train, evaluate and save; resume the unfinished run of the same experiment.

    Args:
        experiment: what to train.
        options: how to run it.
        splits: the data, where it is loaded already.
        screen: where the user sees it; default standard output.

    Raises:
        ConfigError, DataError: nothing was trained.
        EnvironmentFault: the machine refuses; what was saved before is still there.
        Diverged: the loss or a weight is no longer finite.
        Interrupted: by SIGINT or SIGTERM; the same command resumes the run.
    """
    screen, options = screen or Screen(), options or RunOptions()
    resume = options.resume and Path(options.resume).resolve()
    if resume:
        check_resume(resume, experiment)
    logs, which = logs_folder(experiment.logs), {"new": options.new, "resume": resume, "at": options.path}
    with (
        stop_signals() as stop,
        open_run(logs, experiment.name, experiment.identity(), **which) as run,
        translate_interruption(run, stop),
    ):
        experiment = resolve(experiment, run)
        seed_everything(experiment)
        batch_size, keep = experiment.data.batch_size, experiment.training.checkpoint.keep
        with translate_tensorflow_errors(run.path, batch_size):
            constants = options.constants or run.constants
            prepared = prepare(
                experiment, make_strategy(), splits=splits, constants=constants, progress=screen.progress
            )
            if constants != run.constants:
                shutil.copy(constants, run.constants)
        trainer, checkpoints = Trainer(prepared.model), Checkpoints(run.checkpoints, keep)
        restored = restore_state(run, checkpoints, prepared.model, prepared.splits.counts, prepared.steps_per_epoch)
        prepared.note_unreadable(restored.state.unreadable)
        check_disk(run.path, run.checkpoints, estimate_disk(prepared.model, keep), keep)
        run.begin(experiment.identity(), experiment.chosen.model_dump())
        notes = [*restored.notes, *record_environment(run, experiment), *memory_notes(prepared.model, batch_size)]

        with (
            translate_tensorflow_errors(run.path, batch_size, prepared.model),
            translate_reading_errors(prepared.splits.by_name.values()),
            closing(RunLog(run.path, restored.log_lengths)) as log,
        ):
            recorder = Recorder(experiment, run, checkpoints, log, restored.state, prepared)
            _show_header(screen, experiment, prepared, recorder, [*notes, *log.lost])
            if not run.resumed:
                log.write_start(run.path / "config.yaml", prepared.model if options.draw else None)
            _fit(experiment.training, prepared, trainer, recorder, options, screen, stop)
            stop.obey()  # all is saved
            scores = _evaluate(prepared, trainer, recorder, options.evaluate)
            save_portable(prepared.model, run.model, **prepared.network)
            if options.draw:
                held_out = prepared.evaluation_batches("test") or prepared.evaluation_batches("validation")
                write_figures(run.path, prepared.model, held_out, prepared.splits.class_names)
            stop.defer()  # what is left takes milliseconds, and a finished run is not resumed
            summary = recorder.finish(scores, keep_last=options.keep_last)
            _show_result(screen, prepared, recorder, scores)
            return Result(run.path, summary)


def _fit(
    training: TrainingConfig,
    prepared: Prepared,
    trainer: Trainer,
    recorder: Recorder,
    options: RunOptions,
    screen: Screen,
    stop: Stop,
) -> None:
    """Train to the end, with checkpoints on the way, at a stop and at the end."""
    state, steps_per_epoch = recorder.state.train, prepared.steps_per_epoch
    epochs = options.epochs or training.epochs
    every = training.checkpoint.every

    def on_log(record: dict[str, Any]) -> None:
        recorder.log.write(record)
        if record["span"] == "steps":
            screen.log(record)
        options.on_record(record)

    def on_epoch(state, logs: dict[str, float]) -> None:
        is_best = recorder.end_epoch(logs)
        screen.epoch(recorder.epoch, logs, is_best)

    try:
        with screen.training(epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=prepared.batch_size):
            trainer.fit(
                prepared.training_batches,
                steps_per_epoch=steps_per_epoch,
                epochs=epochs,
                state=state,
                validation=prepared.evaluation_batches("validation"),
                callbacks=[*make_callbacks(training), *options.callbacks],
                cadence=Cadence(
                    log_every=steps_of(training.log_every, steps_per_epoch=steps_per_epoch),
                    save_every=steps_of(every, steps_per_epoch=steps_per_epoch),
                    save_seconds=60 * every.minutes if every.minutes else math.inf,
                ),
                hooks=Hooks(
                    on_begin=stop.defer,
                    on_log=on_log,
                    on_progress=lambda step, metrics: screen.step(step),
                    on_epoch=on_epoch,
                    on_save=lambda state: recorder.save(),
                    should_stop=lambda: stop.number is not None,
                ),
            )
        recorder.save()
    except Diverged as error:
        kept = recorder.diverged()
        last = f"The last good checkpoint is kept: {kept}" if kept else "Nothing was saved before."
        raise Diverged(error.reason, last) from None
    if state.interrupted:
        recorder.write_summary("interrupted")
        raise KeyboardInterrupt


def _evaluate(
    prepared: Prepared, trainer: Trainer, recorder: Recorder, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Load the best weights and evaluate them on the named splits, as far as there are such."""
    if not recorder.load_best_weights():
        load_portable_weights(prepared.model, recorder.run.model)
    batches = {name: prepared.evaluation_batches(name) for name in names}
    scores = {name: trainer.evaluate(found) for name, found in batches.items() if found}
    if "test" in scores:
        recorder.log_test(scores["test"])
    return scores


def _show_header(
    screen: Screen, experiment: Experiment, prepared: Prepared, recorder: Recorder, notes: Sequence[str | None]
) -> None:
    run, resumed = recorder.run, f", resumed after step {recorder.state.train.step:,}"
    rows = describe(experiment, prepared) | {
        "device": f"{describe_device()}, {experiment.chosen.precision}",
        "run": f"{run.path}{resumed if run.resumed else ''}",
    }
    screen.header(f"kpipe {version('kpipe')}: {experiment.name}", rows)
    for note in filter(None, (*prepared.splits.notes, run.note, *notes, gpu_hint())):
        screen.line(f"  note: {note}")


def _show_result(screen: Screen, prepared: Prepared, recorder: Recorder, scores: dict[str, dict[str, float]]) -> None:
    """Print the table of results, where the files are, and how to see the curves; name unreadable files in a list."""
    state, run = recorder.state, recorder.run.path
    if state.train_metrics:
        trained_on = {"images": prepared.steps_per_epoch * prepared.batch_size}
        scores = {f"train, during epoch {state.best_epoch}": state.train_metrics | trained_on, **scores}
    screen.result(scores)
    if names := prepared.unreadable_names():
        write_names(run / "unreadable.txt", [name for found in names.values() for name in found])
        counts = describe_counts({name: len(found) for name, found in names.items()})
        screen.line(f"Unreadable and left out: {counts}; their names are in {run / 'unreadable.txt'}")
    screen.line(f"Weights of epoch {state.best_epoch}, {state.seconds:.0f} s of training, in {run}")
    screen.line(f"Curves: tensorboard --logdir {shlex.quote(str(run.parent.parent))}")
