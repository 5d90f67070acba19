"""One experiment, from its file to a trained network: the page to read first.

`train` is the whole job, in the order in which things happen. `prepare` is its first half: it builds data, model
and optimizer and trains nothing. Nowhere else do data, models and training meet.
"""

import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import ValidationError

from kpipe import data, figures
from kpipe.catalog.data import AUGMENTATIONS, ImageFacts
from kpipe.config.resume import check_resume
from kpipe.config.schema import DataConfig, Experiment, Resolved, options
from kpipe.console import Screen, describe_size
from kpipe.data.reading import translate_reading_errors
from kpipe.errors import ConfigError, DataError, Diverged, EnvironmentFault
from kpipe.files import translate_write_errors
from kpipe.memory import memory_notes, translate_tensorflow_errors
from kpipe.models.building import build_model
from kpipe.models.portable import load_portable_weights, save_portable
from kpipe.normalization import make_normalization
from kpipe.runs.directory import Run, open_run
from kpipe.runs.disk import estimate_disk
from kpipe.runs.environment import describe_environment
from kpipe.runs.interruption import translate_interruption
from kpipe.runs.logs import RunLog
from kpipe.signals import Stop, stop_signals
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.device import describe_device, gpu_hint
from kpipe.training.distribution import make_strategy
from kpipe.training.losses import make_loss
from kpipe.training.metrics import Accuracy
from kpipe.training.optimizers import make_optimizer
from kpipe.training.precision import precision_scope, resolve_precision
from kpipe.training.schedules import make_schedule
from kpipe.training.trainer import Cadence, Hooks, Trainer, TrainState


@dataclass(frozen=True)
class Prepared:
    """What an experiment is made of, built and not yet trained."""

    splits: data.Splits
    model: keras.Model
    network: dict[str, Any]
    """The arguments that `build_model` has built the model from."""
    batches_from: Callable[[int], tf.data.Dataset]
    steps_per_epoch: int
    log_every: int
    precision: str


@dataclass(frozen=True)
class Result:
    """Where a finished run is, and its numbers: what summary.json holds."""

    path: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What a search asks of a run. Such a run leaves the test part alone and draws no figures.

    Attributes:
        path: the run directory; a run of the same experiment that is there is gone on with.
        epochs: after which it ends; its schedule is made for all epochs of the experiment. None: after these.
        constants: the file in which the search keeps those of the first layer.
        watch: gets each record of metrics.jsonl, and may raise Diverged.
        callbacks: Keras callbacks besides the experiment's.
    """

    path: Path
    epochs: int | None = None
    constants: Path | None = None
    watch: Callable[[dict[str, Any]], None] = lambda record: None
    callbacks: Sequence[keras.callbacks.Callback] = ()


@dataclass
class Progress:
    """What a checkpoint remembers besides the model's variables."""

    train: TrainState = field(default_factory=TrainState)
    best_epoch: int = 0
    best_step: int | None = None
    """The step of the checkpoint that holds the best weights."""
    best_score: list[float] | None = None
    """What `_score` gave it."""
    train_metrics: dict[str, float] = field(default_factory=dict)
    """Means over the best epoch."""
    seconds: float = 0.0
    """Of all processes that have trained, from the first step to the last save."""
    images: dict[str, int] = field(default_factory=dict)
    """How many each part has."""
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    """The numbers of those that could not be read, by part."""

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Progress":
        return cls(**{**saved, "train": TrainState(**saved["train"])})

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "train": self.train.to_dict()}


def prepare(
    experiment: Experiment,
    *,
    splits: data.Splits | None = None,
    statistics: bool = True,
    constants: Path | None = None,
    progress: data.Progress = data.no_progress,
) -> Prepared:
    """Builds data, model, schedule and optimizer.

    Args:
        experiment: what to build.
        splits: the data, where it is loaded already.
        statistics: False leaves the scan of the training part out, and downloads nothing; the first layer then has
            neutral constants.
        constants: the file in which a run keeps those of the first layer, see `make_normalization`.
        progress: shows how far the reading of the data is.

    Raises:
        ConfigError, DataError: as `load_dataset`, `build_model` and the rest.
    """
    config, training = experiment.data, experiment.training
    splits = splits or load_splits(config, ahead=statistics, progress=progress)
    if training.early_stopping and splits.validation is None:
        raise ConfigError("training.early_stopping: needs a validation part, this data has none")
    steps_per_epoch = data.count_steps_per_epoch(splits.train, config.batch_size)
    batches_from = _training_batches(experiment, splits, steps_per_epoch * training.epochs)
    images = data.iterate_images(splits.train, splits.image_size, progress) if statistics else None
    network = {
        "name": experiment.model.name,
        "options": options(experiment.model),
        "input_shape": splits.image_shape,
        "classes": len(splits.class_names),
        "normalization": make_normalization(config, splits.image_shape, images, constants),
    }
    precision = choose(experiment, experiment.chosen).precision
    with make_strategy().scope(), precision_scope(precision):
        model = build_model(**network)
        model.compile(
            optimizer=_optimizer(training, steps_per_epoch),
            loss=_loss(experiment),
            metrics=[Accuracy()],
            jit_compile=False,  # on a CPU, XLA makes these networks slower
        )
    log_every = _count_steps(training.log_every, steps_per_epoch)
    return Prepared(splits, model, network, batches_from, steps_per_epoch, log_every, precision)


def train(
    experiment: Experiment,
    *,
    splits: data.Splits | None = None,
    new: bool = False,
    resume: str | os.PathLike | None = None,
    screen: Screen | None = None,
    trial: Trial | None = None,
) -> Result:
    """Trains, evaluates and saves; resumes the unfinished run of the same experiment by itself.

    Args:
        experiment: what to train.
        splits: the data, where it is loaded already.
        new: start another run even if one of this experiment is unfinished.
        resume: the run directory to go on with; see `kpipe.config.check_resume` for what may differ from it.
        screen: where the user sees it; default standard output.
        trial: what a search asks of it; it says the run directory.

    Raises:
        ConfigError, DataError: nothing was trained.
        EnvironmentFault: the machine refuses; what was saved before is still there.
        Diverged: the loss or a weight is no longer finite.
        Interrupted: by SIGINT or SIGTERM; the same command goes on.
    """
    screen = screen or Screen()
    if resume is not None:
        resume = Path(resume).resolve()
        check_resume(resume, experiment)
    logs = logs_of(experiment)
    with (
        stop_signals() as stop,
        translate_write_errors(resume or logs),
        open_run(logs, experiment.name, experiment.identity(), new=new, resume=resume, at=trial and trial.path) as run,
        translate_interruption(run, stop),
    ):
        chosen = choose(experiment, _chosen_before(run) or experiment.chosen)
        experiment = experiment.model_copy(update={"chosen": chosen})
        seed_everything(experiment.seed, chosen.deterministic)
        batch_size = experiment.data.batch_size
        with translate_tensorflow_errors(run, batch_size):
            kept = run.path / "normalization.npz"
            constants = trial.constants if trial and trial.constants else kept
            prepared = prepare(experiment, splits=splits, constants=constants, progress=screen.progress)
            if constants != kept:
                shutil.copy(constants, kept)
        trainer = Trainer(prepared.model, make_strategy())
        checkpoints = Checkpoints(run.checkpoints, experiment.training.checkpoint.keep)
        progress, log_lengths, notes = _restore(run, checkpoints, prepared)
        _check_disk(run, experiment, prepared.model)
        if run.status is not None:  # also of a finished run that is extended: from here on it is unfinished
            run.write_json("summary.json", run.read_json("summary.json") | {"status": "interrupted"})
        run.write_config(experiment.identity(), chosen.model_dump())
        notes += _record_environment(run, experiment)
        notes += memory_notes(prepared.model, batch_size)
        with (
            translate_tensorflow_errors(run, batch_size, prepared.model),
            translate_reading_errors(prepared.splits.parts.values()),
            closing(RunLog(run.path, log_lengths)) as log,
        ):
            _show_header(screen, experiment, prepared, run, progress, [*notes, *log.lost])
            if not run.resumed:
                log.write_text("config", (run.path / "config.yaml").read_text(encoding="utf-8"))
                if trial is None:
                    log.write_graph(_graph(prepared.model))
            started_at = time.monotonic() - progress.seconds
            job = _Job(experiment, prepared, trainer, checkpoints, progress, run, log, screen, stop, started_at, trial)
            _fit(job)
            return _finish(job)


def logs_of(experiment: Experiment) -> Path:
    """The folder of all runs."""
    return Path(experiment.logs or os.environ.get("KPIPE_LOGS") or "tensorboard_logs")


def load_splits(config: DataConfig, *, ahead: bool = True, progress: data.Progress = data.no_progress) -> data.Splits:
    """`load_dataset` with the options of the experiment's section.

    Args:
        config: the section.
        ahead: False decodes nothing beforehand and downloads nothing, whatever the section says.
        progress: shows how far the decoding is.
    """
    passed_on = ("image_size", "stored_size", "resize", "channels", "cache_gigabytes", "on_error", "skip_limit")
    return data.load_dataset(
        config.source,
        **{name: getattr(config, name) for name in passed_on},
        cache=config.cache,
        ahead=ahead,
        whole_images=needs_whole_images(config),
        validation=config.split.validation,
        test=config.split.test,
        download=ahead,
        progress=progress,
        **_source_options(config),
    )


def needs_whole_images(config: DataConfig) -> bool:
    """Whether an augmentation looks at the images as they are in their files."""
    return any(AUGMENTATIONS[entry.chosen[0]].reads_whole_image for entry in config.augment)


def find_source(config: DataConfig, *, skip_limit: float | None) -> data.Source:
    """`data.find_source` for the experiment's section; nothing is downloaded."""
    form = data.Form(config.stored_size or config.image_size, config.resize, config.channels)
    return data.find_source(config.source, form, skip_limit=skip_limit, download=False, **_source_options(config))


def _source_options(config: DataConfig) -> dict[str, Any]:
    return config.synthetic.model_dump() if config.synthetic else {}


def count_images(splits: data.Splits) -> dict[str, int]:
    """Of each part that there is."""
    return {name: len(part) for name, part in splits.parts.items()}


def choose(experiment: Experiment, before: Resolved | None = None) -> Resolved:
    """What `auto` means: what it meant before, in the run that is resumed or repeated, else what suits this machine."""
    precision, deterministic = experiment.training.precision, experiment.training.deterministic
    if before:
        precision = before.precision if precision == "auto" else precision
        deterministic = before.deterministic if deterministic == "auto" else deterministic
    on_cpu = not tf.config.list_physical_devices("GPU")
    return Resolved(
        precision=resolve_precision(precision),
        deterministic=on_cpu if deterministic == "auto" else deterministic,
    )


def _chosen_before(run: Run) -> Resolved | None:
    if not run.chosen:
        return None
    try:
        return Resolved.model_validate(run.chosen)
    except ValidationError:
        raise ConfigError(
            f"{run.path / 'config.yaml'}: chosen: expected precision and deterministic as kpipe has written them, got "
            f"{run.chosen}; start another run with --new"
        ) from None


def seed_everything(seed: int, deterministic: bool) -> None:
    """Python's, NumPy's and Keras's seeds, and TensorFlow's deterministic operations, for the whole process."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def environment(experiment: Experiment) -> dict[str, Any]:
    """What somebody needs to know to understand the run's numbers later."""
    return {**describe_environment(), **experiment.chosen.model_dump(), "command": sys.argv, "seed": experiment.seed}


def make_augmentations(config: DataConfig, channels: int) -> list[data.Augmentation | data.Window | data.Mix]:
    """What the section asks for, for `make_pipeline`; ConfigError if images of so many channels do not suit it."""
    made = []
    for place, entry in enumerate(config.augment):
        name, chosen_options = entry.chosen
        row = AUGMENTATIONS[name]
        images = ImageFacts(config.image_size, config.stored_size, channels)
        for message in row.conflicts_with(name, chosen_options, images, place):
            raise ConfigError(f"data.augment.{place}: {message}")
        made.append(row.load()(**options(chosen_options)))
    return made


def _training_batches(experiment: Experiment, splits: data.Splits, last_step: int) -> Callable[[int], tf.data.Dataset]:
    config, classes = experiment.data, len(splits.class_names)
    augment = make_augmentations(config, splits.image_shape[-1])

    def batches_from(first_step: int) -> tf.data.Dataset:
        weights = data.balanced_weights(splits.train, classes) if config.class_weights else None
        return data.make_pipeline(
            splits.train,
            config.batch_size,
            seed=experiment.seed,
            augment=augment,
            image_size=splits.image_size,
            classes=classes,
            class_weights=weights,
            first_step=first_step,
            last_step=last_step,
        )

    return batches_from


def _optimizer(training, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    rate = training.learning_rate
    schedule = make_schedule(
        rate.schedule,
        options(rate, "schedule"),
        total_steps=steps_per_epoch * training.epochs,
        steps_per_epoch=steps_per_epoch,
    )
    chosen_options = options(training.optimizer)
    decay = chosen_options.pop("weight_decay")
    return make_optimizer(training.optimizer.name, chosen_options, schedule, weight_decay=decay)


def _loss(experiment: Experiment) -> keras.losses.Loss:
    chosen_loss = experiment.training.loss
    if chosen_loss is None:
        return make_loss(experiment.model.default_loss)
    return make_loss(chosen_loss.name, options(chosen_loss))


def _restore(
    run: Run, checkpoints: Checkpoints, prepared: Prepared
) -> tuple[Progress, dict[str, int] | None, list[str]]:
    """Where the run stands, the lengths of its logs at that moment (None for a new run), and notes for the user."""
    images = count_images(prepared.splits)
    if not run.resumed:
        return Progress(images=images), None, []
    restored = checkpoints.restore(prepared.model)
    progress = Progress.from_dict(restored.state)
    notes = [f"{damage}; the one before it is taken" for damage in restored.skipped]
    if progress.images != images:
        raise DataError(
            f"{run.path}: the data are not those that the run began with: {_in_words(progress.images)} then, "
            f"{_in_words(images)} now. Bring them back, or start another run with --new."
        )
    for name, part in prepared.splits.parts.items():
        if part.unreadable is not None:
            part.unreadable.add(progress.unreadable.get(name, ()))
    best = progress.best_step
    # A finished run that is extended has its best weights in model.keras alone.
    if best is not None and not checkpoints.is_whole(best) and (checkpoints.has(best) or not run.model.exists()):
        notes.append(f"the best weights so far, of step {best:,}, are damaged; the best is looked for anew from here")
        progress.best_epoch, progress.best_step = restored.step // prepared.steps_per_epoch, restored.step
        progress.best_score, progress.train_metrics = None, {}
    if progress.train.stopped:
        epoch = progress.train.step // prepared.steps_per_epoch
        notes.append(f"early stopping has ended this training in epoch {epoch}; more epochs do not change that")
    return progress, restored.logs, notes


def _check_disk(run: Run, experiment: Experiment, model: keras.Model) -> None:
    checkpoint = experiment.training.checkpoint
    need = estimate_disk(model, checkpoint.keep)
    there = sum(file.stat().st_size for file in run.checkpoints.rglob("*") if file.is_file())
    free = shutil.disk_usage(run.path).free
    if need.most - there > free:
        raise EnvironmentFault(
            f"{run.path}: the run needs about {describe_size(need.most)} of disk ({checkpoint.keep + 2} checkpoints of "
            f"{describe_size(need.checkpoint)} and the network), {describe_size(free)} are free. Make room, lower "
            "training.checkpoint.keep, or give another folder with logs=FOLDER or KPIPE_LOGS."
        )


def _record_environment(run: Run, experiment: Experiment) -> list[str]:
    """Writes environment.json; a run that is resumed keeps the one it began with. Returns what has changed since."""
    now, before = environment(experiment), run.read_json("environment.json") if run.resumed else {}
    if not before:
        run.write_json("environment.json", now)
        return []
    run.write_json("environment.json", before | {"resumed": [*before.get("resumed", []), now]})
    then, today = ({**each.get("versions", {}), **each} for each in (before, now))
    names = [*now["versions"], "device", "threads", "onednn"]
    changed = [f"{name} was {then.get(name)}, is {today[name]}" for name in names if then.get(name) != today[name]]
    return [f"the last bits may differ from those of an uninterrupted run: {'; '.join(changed)}"] if changed else []


@dataclass(frozen=True)
class _Job:
    """All that stands ready when the training begins."""

    experiment: Experiment
    prepared: Prepared
    trainer: Trainer
    checkpoints: Checkpoints
    progress: Progress
    run: Run
    log: RunLog
    screen: Screen
    stop: Stop
    started_at: float
    """When the training would have started, had it not been interrupted; in seconds of the monotonic clock."""
    trial: Trial | None

    @property
    def batch_size(self) -> int:
        return self.experiment.data.batch_size

    @property
    def splits(self) -> data.Splits:
        return self.prepared.splits

    def evaluation_batches(self, name: str) -> tf.data.Dataset | None:
        """Of a part, if there is one."""
        part = self.splits.parts.get(name)
        return part and data.make_evaluation_pipeline(part, self.batch_size, image_size=self.splits.image_size)

    def save(self) -> None:
        """Commits this moment: resuming goes on from here."""
        progress = self.progress
        progress.seconds = time.monotonic() - self.started_at
        progress.unreadable = {name: sorted(found.numbers) for name, found in self.unreadable().items()}
        self.checkpoints.commit(
            self.prepared.model,
            progress.to_dict(),
            step=progress.train.step,
            best_step=progress.best_step,
            logs=self.log.lengths(),
        )

    def unreadable(self) -> dict[str, data.Unreadable]:
        """The images of each part that could not be read, so far; only parts that have some."""
        found = {name: part.unreadable for name, part in self.splits.parts.items()}
        return {name: images for name, images in found.items() if images}

    def end_epoch(self, logs: dict[str, float]) -> None:
        """Keeps the weights if they are the best so far."""
        state, progress = self.progress.train, self.progress
        score = _score(self.experiment.training.monitor, logs)
        best = progress.best_score is None or score is None or score > progress.best_score
        epoch = state.step // self.prepared.steps_per_epoch
        if best:
            progress.best_epoch, progress.best_step, progress.best_score = epoch, state.step, score
            progress.train_metrics = {name: logs[name] for name in ("loss", "accuracy")}
            self.save()
        self.screen.epoch(epoch, logs, best and score is not None)

    def write_summary(self, status: str, parts: dict[str, dict] | None = None) -> dict[str, Any]:
        """Writes summary.json and returns it; `parts`: the numbers of the held-out parts."""
        progress, model = self.progress, self.prepared.model
        images = progress.train.step * self.batch_size
        summary = {
            "status": status,
            "experiment": self.experiment.name,
            "model": self.experiment.model.name,
            "parameters": model.count_params(),
            "epochs": progress.train.step // self.prepared.steps_per_epoch,
            "best_epoch": progress.best_epoch,
            "stopped_early": progress.train.stopped,
            "steps": progress.train.step,
            "seconds": round(progress.seconds, 2),
            "images_per_second": round(images / progress.seconds, 1) if progress.seconds else None,
            "precision": self.experiment.chosen.precision,
            "seed": self.experiment.seed,
            "unreadable": {name: len(images) for name, images in self.unreadable().items()},
            "train": progress.train_metrics,
            **(parts or {}),
        }
        self.run.write_json("summary.json", summary)
        return summary


def _fit(job: _Job) -> None:
    """Trains to the end, with checkpoints on the way, at a stop and at the end."""
    training, screen, trial = job.experiment.training, job.screen, job.trial
    epochs = trial.epochs if trial and trial.epochs else training.epochs
    state, steps_per_epoch = job.progress.train, job.prepared.steps_per_epoch
    validation = job.evaluation_batches("validation")
    every = training.checkpoint.every

    def on_log(record: dict) -> None:
        job.log.write(record)
        if record["span"] == "steps":
            screen.log(record)
        if trial:
            trial.watch(record)

    try:
        with screen.training(epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=job.batch_size):
            job.trainer.fit(
                job.prepared.batches_from,
                steps_per_epoch=steps_per_epoch,
                epochs=epochs,
                state=state,
                validation=validation,
                callbacks=[*_callbacks(training), *(trial.callbacks if trial else ())],
                cadence=Cadence(
                    log_every=job.prepared.log_every,
                    save_every=_count_steps(every, steps_per_epoch),
                    save_seconds=60 * every.minutes if every.minutes else math.inf,
                ),
                hooks=Hooks(
                    on_begin=job.stop.defer,
                    on_log=on_log,
                    on_progress=lambda step, metrics: screen.step(step),
                    on_epoch=lambda state, logs: job.end_epoch(logs),
                    on_save=lambda state: job.save(),
                    should_stop=lambda: job.stop.number is not None,
                ),
            )
        job.save()
    except Diverged as error:
        job.progress.seconds = time.monotonic() - job.started_at
        job.write_summary("diverged")
        if trial:  # whose checkpoints the search removes
            raise
        kept = job.checkpoints.latest
        raise Diverged(
            f"{error}. " + (f"The last good checkpoint is kept: {kept}" if kept else "Nothing was saved before.")
        ) from None
    if state.interrupted:
        job.write_summary("interrupted")
        raise KeyboardInterrupt


def _count_steps(every: Any, steps_per_epoch: int) -> int | None:
    """A duration of the experiment in whole steps, at least 1; None where it is a time."""
    return every.steps or (max(1, round(every.epochs * steps_per_epoch)) if every.epochs else None)


def _callbacks(training) -> list[keras.callbacks.Callback]:
    if training.early_stopping is None:
        return []
    mode = "min" if training.monitor == "val_loss" else "max"
    options_given = training.early_stopping.model_dump()
    return [keras.callbacks.EarlyStopping(monitor=training.monitor, mode=mode, **options_given)]


def _finish(job: _Job) -> Result:
    """Takes the best weights, evaluates them on every held-out part, and writes what the run leaves behind."""
    job.stop.obey()  # all is saved
    run, prepared, progress, checkpoints = job.run, job.prepared, job.progress, job.checkpoints
    if checkpoints.has(progress.best_step):
        checkpoints.load_weights(progress.best_step, prepared.model)
    else:
        load_portable_weights(prepared.model, run.model)
    parts = {}
    for name in ("validation",) if job.trial else ("validation", "test"):
        if batches := job.evaluation_batches(name):
            parts[name] = job.trainer.evaluate(batches)
    if "test" in parts:
        test = {name: parts["test"][name] for name in ("loss", "accuracy")}
        epoch = progress.train.step // prepared.steps_per_epoch
        job.log.write({"step": progress.train.step, "epoch": epoch, "split": "test", "span": "epoch", **test})
    save_portable(prepared.model, run.model, **prepared.network)
    if job.trial is None:
        _write_figures(job)
    job.stop.defer()  # what is left takes milliseconds, and a finished run is not gone on with
    summary = job.write_summary("finished", parts)
    keep_last = job.experiment.training.checkpoint.keep_last or job.trial is not None  # hyperband may go on from it
    checkpoints.finish(keep_last=keep_last)  # the best weights are in model.keras
    if progress.train_metrics:
        trained_on = progress.train_metrics | {"images": prepared.steps_per_epoch * job.batch_size}
        parts = {f"train, during epoch {progress.best_epoch}": trained_on, **parts}
    job.screen.result(parts)
    _report_unreadable(job)
    job.screen.line(f"Weights of epoch {progress.best_epoch}, {progress.seconds:.0f} s of training, in {run.path}")
    job.screen.line(f"Curves: tensorboard --logdir {shlex.quote(str(run.path.parent.parent))}")
    return Result(run.path, summary)


def _report_unreadable(job: _Job) -> None:
    """Writes the names of the files that were left out to unreadable.txt, and says how many there are."""
    found = job.unreadable()
    if found:
        path = job.run.path / "unreadable.txt"
        names = [name for images in found.values() for name in images.names()]
        write_names(path, names)
        counts = _in_words({name: len(images) for name, images in found.items()})
        job.screen.line(f"Unreadable and left out: {counts}; their names are in {path}")


def write_names(path: Path, names: list[str]) -> None:
    """One file's name a line; they need not be valid text."""
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", errors="surrogateescape")


def _score(monitor: str, logs: dict[str, float]) -> list[float] | None:
    """The larger, the better: the monitored number first, the validation loss where that is equal."""
    if "val_loss" not in logs:
        return None
    return [logs["val_accuracy"], -logs["val_loss"]] if monitor == "val_accuracy" else [-logs["val_loss"]]


def _write_figures(job: _Job) -> None:
    folder = job.run.path / "figures"
    folder.mkdir(exist_ok=True)
    records = [json.loads(line) for line in (job.run.path / "metrics.jsonl").read_text().splitlines()]
    figures.write_curves(folder / "curves.png", records)
    batches, names = job.evaluation_batches("test") or job.evaluation_batches("validation"), job.splits.class_names
    if batches is None:
        return
    judged = _judge(job.prepared.model, batches)
    figures.write_confusion_matrix(folder / "confusion_matrix.png", judged.labels, judged.predictions, names)
    wrong = np.count_nonzero(judged.predictions != judged.labels)
    figures.write_predictions(folder / "predictions.png", *judged.first, names, title="Predictions")
    title = f"The surest of {wrong} mistakes" if wrong else "No mistakes"
    figures.write_predictions(folder / "mistakes.png", *judged.mistakes, names, title=title)


@dataclass(frozen=True)
class _Judged:
    """What the network says of a part, and the images that are worth a look.

    `first` and `mistakes`: images uint8 [n, H, W, C], labels, predictions int [n], probabilities of these float [n];
    the surest mistakes first.
    """

    labels: np.ndarray
    predictions: np.ndarray
    first: tuple[np.ndarray, ...]
    mistakes: tuple[np.ndarray, ...]


def _judge(model: keras.Model, batches: tf.data.Dataset, most: int = 25) -> _Judged:
    """Looks at each image once and keeps no more than `most` of a kind: the part may be larger than the memory."""
    answers, first, mistakes = [], None, None
    for images, labels in batches.as_numpy_iterator():
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(model.predict_on_batch(images)))
        rows = (images, labels, probabilities.argmax(-1), probabilities.max(-1))
        answers.append(rows[1:3])
        first = _take(_join(first, rows), slice(most))
        wrong = _join(mistakes, _take(rows, rows[1] != rows[2]))
        mistakes = _take(wrong, np.argsort(-wrong[3], kind="stable")[:most])
    labels, predictions = (np.concatenate(column) for column in zip(*answers, strict=True))
    return _Judged(labels, predictions, first, mistakes)


def _join(rows: tuple | None, more: tuple) -> tuple[np.ndarray, ...]:
    return more if rows is None else tuple(np.concatenate(pair) for pair in zip(rows, more, strict=True))


def _take(rows: tuple, chosen) -> tuple[np.ndarray, ...]:
    return tuple(column[chosen] for column in rows)


def _show_header(
    screen: Screen, experiment: Experiment, prepared: Prepared, run: Run, progress: Progress, notes: list[str]
) -> None:
    splits = prepared.splits
    shape = "x".join(str(side) for side in splits.image_shape)
    parts = _in_words(count_images(splits))
    rows = {
        "model": f"{experiment.model.name}, {prepared.model.count_params():,} parameters",
        "data": f"{experiment.data.source}: {parts}; {len(splits.class_names)} classes; {shape}",
        "images": _describe_keeping(splits),
        "training": f"{experiment.training.epochs} epochs of {prepared.steps_per_epoch:,} steps, "
        f"batch size {experiment.data.batch_size}, {experiment.training.optimizer.name}",
        "device": f"{describe_device()}, {experiment.chosen.precision}",
        "run": f"{run.path}" + (f", resumed after step {progress.train.step:,}" if run.resumed else ""),
    }
    screen.header(f"kpipe {version('kpipe')}: {experiment.name}", rows)
    for note in filter(None, (*splits.notes, run.note, *notes, gpu_hint())):
        screen.line(f"  note: {note}")


def _describe_keeping(splits: data.Splits) -> str:
    """Where the images of each part lie, the parts that lie at one place together."""
    places: dict[str, list[str]] = {}
    for name, part in splits.parts.items():
        if isinstance(part, data.Part):
            place = "mapped from the disk" if part.pixels.is_mapped else "in memory"
        else:
            place = "decoded each time" if isinstance(part, data.Files) else "streamed"
        places.setdefault(place, []).append(name)
    kept = {id(part.pixels): part.pixels.images.nbytes for part in splits.parts.values() if isinstance(part, data.Part)}
    size = f" ({describe_size(sum(kept.values()))} decoded)" if kept else ""
    if len(places) == 1:
        return f"{next(iter(places))}{size}"
    return "; ".join(f"{' and '.join(names)} {place}" for place, names in places.items()) + size


def _in_words(images: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {part}" for part, count in images.items())


def _graph(model: keras.Model) -> tf.Graph:
    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    return tf.function(lambda images: model(images, training=False)).get_concrete_function(spec).graph
