"""Runs one experiment from its file to a trained network. Start reading here.

`train` is the whole job, in the order in which things happen: open the run, assemble, restore, fit, evaluate, write.
`assembly` builds data, model and optimizer, `training.trainer` has the loop, and `runs` keeps the run directory.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from kpipe.assembly import (
    Prepared,
    build,
    load_splits,
    load_weights,
    make_cadence,
    make_callbacks,
    make_trainer,
    make_watchers,
    prepare,
)
from kpipe.caller import about_an_experiment
from kpipe.catalog.data import check_source
from kpipe.config.loading import Loaded, experiment_of
from kpipe.config.schema import Experiment
from kpipe.console import Screen
from kpipe.data.pipeline import evaluation_batches
from kpipe.data.reading import translate_reading_errors
from kpipe.data.splits import Splits
from kpipe.evaluation.epoch_figures import make_epoch_figures
from kpipe.evaluation.overview import write_overview
from kpipe.evaluation.predictions import Predictions
from kpipe.evaluation.report import write_figures
from kpipe.figures.image_grids import tile_images
from kpipe.files import expand_path
from kpipe.frozen_features import FeaturePlan, make_frozen_features, plan_features
from kpipe.memory import MemoryGuard
from kpipe.models.portable import load_portable_weights, save_portable
from kpipe.models.pretrained import Reuse
from kpipe.overview import show_header, show_result
from kpipe.runs.cluster import (
    check_same_data,
    check_same_experiment,
    open_run_together,
    share_resolved,
    translate_lost_workers,
)
from kpipe.runs.dataset import record_data, record_unreadable
from kpipe.runs.directory import Run, logs_folder
from kpipe.runs.disk import check_disk
from kpipe.runs.environment import record_environment
from kpipe.runs.interruption import translate_interruption
from kpipe.runs.logs import RunLog
from kpipe.runs.machine import check_precision, resolve_auto
from kpipe.runs.options import Result, RunOptions
from kpipe.runs.recorder import Recorder
from kpipe.runs.resume import check_resume
from kpipe.runs.state import restore_state
from kpipe.signals import Stop, ending_at_once, stop_signals
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.device import gpu_hint, grow_gpu_memory, seed_everything
from kpipe.training.distribution import Workers, cluster_hint, count_devices, find_worker, make_strategy
from kpipe.training.profiling import profiling
from kpipe.training.trainer import Trainer
from kpipe.training.variables import estimate_disk
from kpipe.training_screen import training_screen

_INIT_FROM = "init_from.json"  # what a run has taken from `model.init_from`


@about_an_experiment()
def train(
    experiment: Experiment | Loaded,
    options: RunOptions | None = None,
    *,
    splits: Splits | None = None,
    screen: Screen | None = None,
) -> Result:
    """Train, evaluate and save; resume the unfinished run of the same experiment.

    Args:
        experiment: what to train: what `load_experiment` returned, or its `experiment`.
        options: how to run it.
        splits: the data, where it is loaded already.
        screen: where progress is printed; default: standard output.

    Raises:
        ConfigError, DataError: nothing was trained.
        EnvironmentFault: the machine refuses; what was saved before is still there.
        Diverged: the loss or a weight is no longer finite.
        Stuck: the loss stays at that of guessing, and training.when_stuck is stop.
        Interrupted: by SIGINT, SIGTERM or SIGHUP; the same command resumes the run.
    """
    experiment, options, screen = experiment_of(experiment), options or RunOptions(), screen or Screen()
    if splits is None:
        check_source(experiment.data.source)  # before there is a run directory
    strategy = _find_strategy(experiment, screen)
    workers = Workers(strategy)
    if not workers.is_chief:
        screen = Screen(Console(quiet=True))
    with translate_lost_workers(workers):
        check_same_experiment(experiment, workers)
    resume = options.resume and expand_path(str(options.resume), "resume").resolve()
    if resume:
        check_resume(resume, experiment)
    with (
        # Open the run: find an unfinished one of this experiment, or start another.
        stop_signals() as stop,
        translate_lost_workers(workers),
        open_run_together(
            workers,
            logs_folder(experiment.logs),
            experiment.name,
            experiment.identity(),
            new=options.new,
            resume=resume,
            at=options.path,
            label=options.label,
        ) as run,
        screen.logging_to(run.path / "console.log"),
        translate_interruption(run, stop),
        translate_lost_workers(workers, run),
        MemoryGuard(run.path, experiment.data.batch_size, experiment.training.accumulate) as memory,
    ):
        # Assemble: data, model, optimizer, with every `auto` of the experiment resolved.
        experiment, prepared, precision_note = _assemble(experiment, options, splits, strategy, workers, run, screen)
        training, splits = experiment.training, prepared.splits
        model, steps_per_epoch = prepared.model, prepared.steps_per_epoch
        trainer = make_trainer(training, model, prepared.layer_rules, xla=experiment.chosen.xla)
        checkpoints = Checkpoints(run.checkpoints, training.checkpoint.keep, writes=workers.is_chief)

        # Restore: the state of a resumed run, and whether this machine has the disk and memory for the rest.
        restored = restore_state(run, checkpoints, model, splits.counts, steps_per_epoch)
        splits.note_unreadable(restored.state.unreadable)
        need = estimate_disk(model, model.optimizer.variables, training.checkpoint.keep)
        if workers.is_chief:
            check_disk(run.path, run.checkpoints, need, training.checkpoint.keep)
        run.begin(experiment.identity(), experiment.chosen.model_dump())
        changed = record_environment(run, experiment)
        with (
            translate_reading_errors(splits.by_name.values()),
            closing(RunLog(run.path, restored.log_lengths, tensorboard=experiment.logging.tensorboard)) as log,
        ):
            recorder = Recorder(experiment, run, checkpoints, log, restored.state, prepared, options, workers)
            state = recorder.state
            if not run.resumed:
                batch = _first_batch(experiment, prepared) if options.draw else None
                log.write_start(run.path / "config.yaml", model, batch=batch, graph=options.draw)
            notes = [*splits.notes, *splits.describe_conversions(), *prepared.notes, run.note, precision_note]
            notes += [*restored.notes, *changed, *memory.watch(model), *log.lost]
            notes += [gpu_hint(count_devices(strategy)), cluster_hint(training.distribution)]
            ends = recorder.is_done or recorder.ends_here()
            planned, note = (None, None) if ends else plan_features(experiment, prepared, state.train.step)
            notes.append(note)
            show_header(screen, experiment, prepared, run, state, filter(None, notes))

            # Fit: to the end, with checkpoints on the way, at a stop and at the end.
            if not ends:
                _fit(recorder, prepared, trainer, planned, screen, stop)
            stop.obey()  # all is saved
            recorder.raise_if_stuck()
            if not workers.is_chief:
                workers.wait()  # for what the chief still does
                return Result(run.path, {})

            # Save the best weights, and evaluate them on every held-out split.
            _save_models(recorder, prepared)
            if workers.count > 1:
                trainer = _trainer_of_one(experiment, prepared, run)
            scores, predictions = _evaluate(trainer, splits, experiment, options, screen)

            # Write: figures, summary.json; and say where they are.
            undrawn = []
            if options.draw:
                with screen.status("drawing figures"):
                    undrawn = write_figures(run.path, experiment, state, model, predictions, splits.class_names)
            stop.obey()  # a signal that a library has turned into an error of its own
            stop.defer()  # what is left takes a second, and a finished run is not resumed
            summary = recorder.finish(scores)
            if options.draw:
                undrawn += write_overview(run.path, experiment, summary, predictions, splits.class_names)
            record_unreadable(run, splits)
            show_result(screen, experiment, prepared, run, state, summary, notes=undrawn, shown=notes)
            with suppress(tf.errors.OpError):  # another worker has ended, and this run is finished all the same
                workers.wait()
            return Result(run.path, summary)


def _find_strategy(experiment: Experiment, screen: Screen) -> tf.distribute.Strategy:
    """Return the strategy under which the experiment is trained, once all workers are there."""
    name = experiment.training.distribution
    grow_gpu_memory()  # before a GPU is used
    if name != "multi_worker":
        return make_strategy(name)
    index, count = find_worker()
    screen.line(f"worker {index} of {count}, waiting for the others ...")
    with ending_at_once():
        return make_strategy(name)


def _assemble(
    experiment: Experiment,
    options: RunOptions,
    splits: Splits | None,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    run: Run,
    screen: Screen,
) -> tuple[Experiment, Prepared, str | None]:
    """Load the data, build the model, and write to the run what a resumed one needs to build the same.

    Returns:
        The experiment, resolved; data and model; and a line for the user on the precision, or None.
    """
    experiment = share_resolved(resolve_auto(experiment, run), workers)
    seed_everything(experiment.seed, deterministic=experiment.chosen.deterministic)
    constants = options.constants or run.constants
    weights = Reuse.from_record(run.read_json(_INIT_FROM)) if run.resumed else None
    if weights is None and experiment.model.init_from:
        with screen.status("reading weights"):
            weights = load_weights(experiment)
    if splits is None:
        splits = load_splits(experiment.data, check=partial(record_data, run), progress=screen.progress)
    else:
        record_data(run, splits)
    check_same_data(run, workers)
    given = {"splits": splits, "weights": weights, "constants": constants, "progress": screen.progress}
    prepared, precision_note = prepare(experiment, strategy, **given), None
    if not run.resumed:
        tried = experiment
        experiment, precision_note = _check_precision(tried, prepared, workers)
        if experiment is not tried:
            prepared = prepare(experiment, strategy, **given)
    if constants != run.constants:
        shutil.copy(constants, run.constants)
    if prepared.reuse:
        record = {"source": experiment.model.init_from, **asdict(prepared.reuse)}
        run.write_json(_INIT_FROM, record | {"normalization": prepared.normalization})
    return experiment, prepared, precision_note


def _check_precision(experiment: Experiment, prepared: Prepared, workers: Workers) -> tuple[Experiment, str | None]:
    """Call `check_precision`; all workers take what the chief has found. Where it is another one, seed anew."""
    checked, note = check_precision(experiment, prepared.model)
    checked = share_resolved(checked, workers)
    if checked.chosen.precision == experiment.chosen.precision:
        return experiment, note
    seed_everything(experiment.seed, deterministic=experiment.chosen.deterministic)
    return checked, note


def _fit(
    recorder: Recorder,
    prepared: Prepared,
    trainer: Trainer,
    planned: FeaturePlan | None,
    screen: Screen,
    stop: Stop,
) -> None:
    """Train from the state of the run to its end, or until `stop` is set; the run is saved in either case.

    Args:
        recorder, prepared, trainer, screen, stop: of the run.
        planned: the features of frozen layers from which the rest is trained; None: all layers are trained.
    """
    experiment, options, workers = recorder.experiment, recorder.options, recorder.workers
    training, steps_per_epoch = experiment.training, prepared.steps_per_epoch
    with recorder.counting_time():
        features = planned and make_frozen_features(experiment, prepared, planned, screen.progress)
    part = (workers.index, workers.count)
    validation = evaluation_batches(prepared.splits, "validation", experiment.data.batch_size, *part)
    length = {"epochs": options.epochs or training.epochs, "steps_per_epoch": steps_per_epoch}
    with (
        recorder.saving_at_the_end(),
        _watching(recorder, prepared, trainer, None if planned else validation, screen, stop) as watchers,
        training_screen(screen, **length, last_thaw=prepared.last_thaw) as shown,
    ):
        trainer.fit(
            prepared.training_batches,
            **length,
            state=recorder.state.train,
            validation=validation,
            features=features,
            callbacks=[*make_callbacks(training), *options.callbacks, *watchers],
            cadence=make_cadence(training, steps_per_epoch),
            hooks=recorder.make_hooks(shown, stop),
        )


def _trainer_of_one(experiment: Experiment, prepared: Prepared, run: Run) -> Trainer:
    """Return a trainer with the weights of the run that needs no other worker."""
    strategy = make_strategy()
    built = build(experiment, prepared.network, prepared.steps_per_epoch, strategy, weights=prepared.reuse)
    load_portable_weights(built.model, run.model)
    return make_trainer(experiment.training, built.model, built.layer_rules, xla=experiment.chosen.xla)


def _first_batch(experiment: Experiment, prepared: Prepared) -> np.ndarray | None:
    """Return the images of the first training batch side by side; None where they are not to be shown."""
    if not (experiment.logging.tensorboard and experiment.logging.images):
        return None
    images, *_ = next(iter(prepared.training_batches(0).take(1)))
    return tile_images(images.numpy())


@contextmanager
def _watching(
    recorder: Recorder,
    prepared: Prepared,
    trainer: Trainer,
    validation: tf.data.Dataset | None,
    screen: Screen,
    stop: Stop,
) -> Iterator[list[keras.callbacks.Callback]]:
    """Give the callbacks that watch a training and change nothing in it.

    Args:
        recorder, prepared, trainer, screen, stop: of the training.
        validation: images of the validation split; None: there are none, or it is evaluated without images.
    """
    experiment, run, log = recorder.experiment, recorder.run, recorder.log
    watchers = make_watchers(
        experiment,
        prepared,
        on_stuck=partial(recorder.note_stuck, screen),
        write=log.write_training_scalars,
        write_histograms=log.write_histograms,
    )
    logging, profile = experiment.logging, experiment.training.profile
    is_drawn = recorder.options.draw and logging.tensorboard and logging.images
    if is_drawn and validation is not None and recorder.workers.count == 1:  # a worker sees a part of the split
        figures = make_epoch_figures(
            trainer,
            run.path,
            validation,
            name=experiment.name,
            class_names=prepared.splits.class_names,
            seed=experiment.seed,
            write=log.write_images,
            should_stop=lambda: stop.number is not None,
        )
        watchers.append(figures)
    with profiling(run.path / "train", profile.steps) if profile else nullcontext() as callback:
        yield [*watchers, *([callback] if callback else [])]


def _save_models(recorder: Recorder, prepared: Prepared) -> None:
    """Save the best weights of each kind. Those that are preferred stay in the model."""
    run, preferred = recorder.run, recorder.state.preferred
    for kind in recorder.kept:
        if not recorder.load_best_weights(kind):  # a finished run that was extended has them in its model files alone
            load_portable_weights(prepared.model, run.find_model(kind))
        save_portable(prepared.model, run.model_of(kind, preferred), **prepared.network)
    (run.path / f"model_{preferred}.keras").unlink(missing_ok=True)


def _evaluate(
    trainer: Trainer, splits: Splits, experiment: Experiment, options: RunOptions, screen: Screen
) -> tuple[dict[str, dict[str, float]], Predictions | None]:
    """Return loss, metrics and number of images of each held-out split, and the predictions of which figures are drawn.

    The test split is drawn if it is there, else the validation split.
    """
    scores, predictions = {}, None
    for name in options.evaluate:
        batches = evaluation_batches(splits, name, experiment.data.batch_size)
        if batches is None:
            continue
        with screen.status(f"evaluating the {name} split"):
            if options.draw and name == splits.held_out:
                predictions = Predictions(name, seed=experiment.seed)
                scores[name] = trainer.evaluate_batches(batches, predictions.add)
                predictions.name_files(splits.by_name[name])
            else:
                scores[name] = trainer.evaluate(batches)
    return scores, predictions
