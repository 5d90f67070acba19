"""One experiment, from its file to a trained network: the page to read first.

`train` is the whole job, in the order in which things happen. `prepare` is its first half: it builds data, model
and optimizer and trains nothing. Nowhere else do data, models and training meet.
"""

import errno
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe import data, figures
from kpipe.config import Chosen, DataConfig, Experiment, options
from kpipe.console import Screen
from kpipe.errors import ConfigError, Diverged, EnvironmentFault, Interrupted
from kpipe.models import build_model, save_portable
from kpipe.rundir import Run, open_run
from kpipe.tables import AUGMENTATIONS, resolve
from kpipe.training.callbacks import RunLog
from kpipe.training.checkpoints import load_checkpoint, save_checkpoint
from kpipe.training.device import describe_device, gpu_hint
from kpipe.training.distribution import make_strategy
from kpipe.training.losses import make_loss
from kpipe.training.optimizers import make_optimizer
from kpipe.training.precision import precision_scope, resolve_precision
from kpipe.training.schedules import make_schedule
from kpipe.training.trainer import Trainer, TrainState


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


@dataclass
class Progress:
    """What a checkpoint remembers besides the model's variables. JSON types."""

    train: TrainState = field(default_factory=TrainState)
    best_epoch: int = 0
    best_score: list[float] | None = None
    train_metrics: dict[str, float] = field(default_factory=dict)
    """Means over the best epoch."""
    seconds: float = 0.0
    logs: dict[str, int] = field(default_factory=dict)
    """The length of every log in bytes at this moment."""

    @classmethod
    def load(cls, path: Path, model: keras.Model) -> "Progress":
        saved = load_checkpoint(path, model)
        return cls(**{**saved, "train": TrainState(**saved["train"])})

    def save(self, path: Path, model: keras.Model) -> None:
        save_checkpoint(path, model, {**vars(self), "train": self.train.to_dict()})


def prepare(experiment: Experiment, *, splits: data.Splits | None = None, statistics: bool = True) -> Prepared:
    """Builds data, model, schedule and optimizer.

    Args:
        experiment: what to build.
        splits: the data, where it is loaded already.
        statistics: False leaves the scan of the training part out, and downloads nothing; the first layer then has
            neutral constants.

    Raises:
        ConfigError, DataError: as `load_dataset`, `build_model` and the rest.
    """
    config, training = experiment.data, experiment.training
    splits = splits or load_splits(config, download=statistics)
    if training.early_stopping and splits.validation is None:
        raise ConfigError("training.early_stopping: needs a validation part, this data has none")
    steps_per_epoch = data.count_steps_per_epoch(splits.train, config.batch_size)
    batches_from = _training_batches(experiment, splits.train, steps_per_epoch * training.epochs)
    mean, std = normalisation(config, splits.train.images) if statistics else (0.0, 255.0)
    network = {
        "name": experiment.model.name,
        "options": options(experiment.model),
        "input_shape": splits.train.images.shape[1:],
        "classes": len(splits.class_names),
        "mean": mean,
        "std": std,
    }
    precision = choose(experiment, experiment.chosen).precision
    with make_strategy().scope(), precision_scope(precision):
        model = build_model(**network)
        model.compile(
            optimizer=_optimizer(training, steps_per_epoch),
            loss=_loss(experiment),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            jit_compile=False,  # on a CPU, XLA makes these networks slower
        )
    log_every = training.log_every
    log_steps = log_every.steps or max(1, round(log_every.epochs * steps_per_epoch))
    return Prepared(splits, model, network, batches_from, steps_per_epoch, log_steps, precision)


def train(
    experiment: Experiment,
    *,
    splits: data.Splits | None = None,
    new: bool = False,
    screen: Screen | None = None,
) -> Result:
    """Trains, evaluates and saves; resumes the unfinished run of the same experiment by itself.

    Args:
        experiment: what to train.
        splits: the data, where it is loaded already.
        new: start another run even if one of this experiment is unfinished.
        screen: where the user sees it; default standard output.

    Raises:
        ConfigError, DataError: nothing was trained.
        EnvironmentFault: the machine refuses; what was saved before is still there.
        Diverged: the loss is no longer finite.
        Interrupted: by SIGINT or SIGTERM; the same command goes on.
    """
    screen = screen or Screen()
    logs = Path(experiment.logs or os.environ.get("KPIPE_LOGS") or "tensorboard_logs")
    with _full_disk(logs), open_run(logs, experiment.name, experiment.identity(), new=new) as run:
        chosen = choose(experiment, Chosen(**run.chosen) if run.chosen else experiment.chosen)
        experiment = experiment.model_copy(update={"chosen": chosen})
        seed_everything(experiment.seed, chosen.deterministic)
        prepared = prepare(experiment, splits=splits)
        run.write_config(experiment.identity(), chosen.model_dump())
        run.write_json("environment.json", environment(experiment))
        run.checkpoints.mkdir(exist_ok=True)
        trainer = Trainer(prepared.model, make_strategy())
        progress = Progress.load(run.last_checkpoint, prepared.model) if run.resumed else Progress()
        _show_header(screen, experiment, prepared, run, progress)
        with closing(RunLog(run.path, progress.logs if run.resumed else None)) as log, _stop_signals() as stop:
            if not run.resumed:
                log.write_text("config", (run.path / "config.yaml").read_text(encoding="utf-8"))
                log.write_graph(_graph(prepared.model))
            job = _Job(experiment, prepared, trainer, progress, run, log, screen)
            _fit(job, stop)
            return _finish(job)


def load_splits(config: DataConfig, *, download: bool = True) -> data.Splits:
    """`load_dataset` with the options of the experiment's section."""
    synthetic = config.synthetic.model_dump() if config.synthetic else {}
    return data.load_dataset(
        config.source,
        image_size=config.image_size,
        channels=config.channels,
        validation=config.split.validation,
        test=config.split.test,
        download=download,
        **synthetic,
    )


def normalisation(config: DataConfig, images: np.ndarray) -> tuple[Any, Any]:
    """Mean and deviation for the model's first layer, in units of 0..255; `images`: the training part, uint8."""
    named = {"none": (0.0, 1.0), "unit": (0.0, 255.0)}
    if config.normalize == "standardize":
        return data.channel_statistics(images)
    if isinstance(config.normalize, str):
        return named[config.normalize]
    mean, std = config.normalize.mean, config.normalize.std
    if len(mean) not in (1, images.shape[-1]):
        raise ConfigError(
            f"data.normalize: expected 1 or {images.shape[-1]} means for images of {images.shape[-1]} channels, "
            f"got {len(mean)}"
        )
    return (mean[0], std[0]) if len(mean) == 1 else (mean, std)


def choose(experiment: Experiment, before: Chosen | None = None) -> Chosen:
    """What `auto` means: what it meant before, in the run that is resumed or repeated, else what suits this machine."""
    precision, deterministic = experiment.training.precision, experiment.training.deterministic
    if before:
        precision = before.precision if precision == "auto" else precision
        deterministic = before.deterministic if deterministic == "auto" else deterministic
    on_cpu = not tf.config.list_physical_devices("GPU")
    return Chosen(
        precision=resolve_precision(precision),
        deterministic=on_cpu if deterministic == "auto" else deterministic,
    )


def seed_everything(seed: int, deterministic: bool) -> None:
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def environment(experiment: Experiment) -> dict[str, Any]:
    """What somebody needs to know to understand the run's numbers later."""
    packages = ("kpipe", "tensorflow", "keras", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "platform": platform.platform(),
        "device": describe_device(),
        **experiment.chosen.model_dump(),
        "git": _git_state(),
        "command": sys.argv,
        "seed": experiment.seed,
    }


def _training_batches(experiment: Experiment, part: data.Part, last_step: int) -> Callable[[int], tf.data.Dataset]:
    config = experiment.data
    augment = []
    for entry in config.augment:
        name, chosen_options = entry.chosen
        augment.append(resolve(AUGMENTATIONS[name])(**options(chosen_options)))

    def batches_from(first_step: int) -> tf.data.Dataset:
        return data.make_pipeline(
            part,
            config.batch_size,
            seed=experiment.seed,
            augment=augment,
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
        return make_loss(experiment.model.own_loss)
    return make_loss(chosen_loss.name, options(chosen_loss))


@dataclass(frozen=True)
class _Job:
    """All that stands ready when the training begins."""

    experiment: Experiment
    prepared: Prepared
    trainer: Trainer
    progress: Progress
    run: Run
    log: RunLog
    screen: Screen
    began: float = field(default_factory=time.monotonic)

    @property
    def batch_size(self) -> int:
        return self.experiment.data.batch_size

    def save(self, seconds_before: float) -> None:
        """Commits this moment: resuming goes on from here."""
        self.progress.seconds = seconds_before + time.monotonic() - self.began
        self.progress.logs = self.log.lengths()
        self.progress.save(self.run.last_checkpoint, self.prepared.model)

    def end_epoch(self, logs: dict[str, float]) -> None:
        """Keeps the weights if they are the best so far.

        Raises:
            Diverged: the validation loss is not finite.
        """
        state, progress = self.progress.train, self.progress
        if not math.isfinite(logs.get("val_loss", 0.0)):
            raise Diverged(f"the validation loss became {logs['val_loss']} at step {state.step}; try a lower rate")
        score = _score(self.experiment.training.monitor, logs)
        best = progress.best_score is None or score is None or score > progress.best_score
        epoch = state.step // self.prepared.steps_per_epoch
        if best:
            progress.best_epoch, progress.best_score = epoch, score
            progress.train_metrics = {name: logs[name] for name in ("loss", "accuracy")}
            progress.save(self.run.best_checkpoint, self.prepared.model)
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
            "steps": progress.train.step,
            "seconds": round(progress.seconds, 2),
            "images_per_second": round(images / progress.seconds, 1) if progress.seconds else None,
            "precision": self.experiment.chosen.precision,
            "seed": self.experiment.seed,
            "train": progress.train_metrics,
            **(parts or {}),
        }
        self.run.write_json("summary.json", summary)
        return summary


def _fit(job: _Job, stop: "_Stop") -> None:
    """Trains to the end, with a checkpoint at the end of each epoch and at a stop."""
    training, splits, screen = job.experiment.training, job.prepared.splits, job.screen
    progress, seconds_before = job.progress, job.progress.seconds
    validation = data.make_evaluation_pipeline(splits.validation, job.batch_size) if splits.validation else None
    steps_per_epoch = job.prepared.steps_per_epoch

    def on_log(record: dict) -> None:
        job.log.write(record)
        if record["span"] == "steps":
            screen.log(record)

    def on_epoch(state: TrainState, logs: dict) -> None:
        job.end_epoch(logs)
        job.save(seconds_before)

    try:
        with screen.training(epochs=training.epochs, steps_per_epoch=steps_per_epoch, batch_size=job.batch_size):
            job.trainer.fit(
                job.prepared.batches_from,
                steps_per_epoch=steps_per_epoch,
                epochs=training.epochs,
                state=progress.train,
                validation=validation,
                callbacks=_callbacks(training),
                log_every=job.prepared.log_every,
                on_log=on_log,
                on_progress=lambda step, metrics: screen.step(step),
                on_epoch=on_epoch,
                should_stop=lambda: stop.number is not None,
            )
        if progress.train.interrupted:
            job.save(seconds_before)
    except Diverged:
        progress.seconds = seconds_before + time.monotonic() - job.began
        job.write_summary("diverged")
        raise
    if progress.train.interrupted:
        job.write_summary("interrupted")
        raise Interrupted(
            f"interrupted after step {progress.train.step:,}, which is saved. The same command goes on from there:\n"
            f"  {_command()}",
            stop.number,
        )


def _callbacks(training) -> list[keras.callbacks.Callback]:
    if training.early_stopping is None:
        return []
    mode = "min" if training.monitor == "val_loss" else "max"
    options_given = training.early_stopping.model_dump()
    return [keras.callbacks.EarlyStopping(monitor=training.monitor, mode=mode, **options_given)]


def _finish(job: _Job) -> Result:
    """Takes the best weights, evaluates them on every held-out part, and writes what the run leaves behind."""
    run, prepared, progress = job.run, job.prepared, job.progress
    load_checkpoint(run.best_checkpoint, prepared.model)
    parts = {}
    for name in ("validation", "test"):
        if part := getattr(prepared.splits, name):
            parts[name] = job.trainer.evaluate(data.make_evaluation_pipeline(part, job.batch_size))
    if "test" in parts:
        test = {name: parts["test"][name] for name in ("loss", "accuracy")}
        epoch = progress.train.step // prepared.steps_per_epoch
        job.log.write({"step": progress.train.step, "epoch": epoch, "split": "test", "span": "epoch", **test})
    save_portable(prepared.model, run.path / "model.keras", **prepared.network)
    _write_figures(run, prepared, job.batch_size)
    summary = job.write_summary("finished", parts)
    run.best_checkpoint.unlink()  # its weights are in model.keras
    trained_on = progress.train_metrics | {"images": prepared.steps_per_epoch * job.batch_size}
    job.screen.result({f"train, during epoch {progress.best_epoch}": trained_on, **parts})
    job.screen.line(f"Weights of epoch {progress.best_epoch}, {progress.seconds:.0f} s of training, in {run.path}")
    job.screen.line(f"Curves: tensorboard --logdir {shlex.quote(str(run.path.parent.parent))}")
    return Result(run.path, summary)


def _score(monitor: str, logs: dict[str, float]) -> list[float] | None:
    """The larger, the better: the monitored number first, the validation loss where that is equal."""
    if "val_loss" not in logs:
        return None
    return [logs["val_accuracy"], -logs["val_loss"]] if monitor == "val_accuracy" else [-logs["val_loss"]]


def _write_figures(run: Run, prepared: Prepared, batch_size: int) -> None:
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    figures.write_curves(folder / "curves.png", records)
    part = prepared.splits.test or prepared.splits.validation
    if part is None:
        return
    names = prepared.splits.class_names
    logits = prepared.model.predict(data.make_evaluation_pipeline(part, batch_size).map(lambda x, y: x), verbose=0)
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    predictions, confidence = probabilities.argmax(-1), probabilities.max(-1)
    figures.write_confusion_matrix(folder / "confusion_matrix.png", part.labels, predictions, names)
    wrong = np.flatnonzero(predictions != part.labels)
    wrong = wrong[np.argsort(-confidence[wrong])]  # the surest mistakes first
    for file, title, chosen in (
        ("predictions.png", "Predictions", np.arange(min(25, len(part)))),
        ("mistakes.png", f"The surest of {len(wrong)} mistakes" if len(wrong) else "No mistakes", wrong),
    ):
        columns = (array[chosen] for array in (part.images, part.labels, predictions, confidence))
        figures.write_predictions(folder / file, *columns, names, title=title)


def _show_header(screen, experiment, prepared, run, progress) -> None:
    splits = prepared.splits
    counts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    shape = "x".join(str(side) for side in splits.train.images.shape[1:])
    parts = ", ".join(f"{len(part):,} {name}" for name, part in counts.items() if part)
    rows = {
        "model": f"{experiment.model.name}, {prepared.model.count_params():,} parameters",
        "data": f"{experiment.data.source}: {parts}; {len(splits.class_names)} classes; {shape}",
        "training": f"{experiment.training.epochs} epochs of {prepared.steps_per_epoch:,} steps, "
        f"batch size {experiment.data.batch_size}, {experiment.training.optimizer.name}",
        "device": f"{describe_device()}, {experiment.chosen.precision}",
        "run": f"{run.path}" + (f", resumed after step {progress.train.step:,}" if run.resumed else ""),
    }
    screen.header(f"kpipe {version('kpipe')}: {experiment.name}", rows)
    for note in filter(None, (*splits.notes, run.note, gpu_hint())):
        screen.line(f"  note: {note}")


def _graph(model: keras.Model) -> tf.Graph:
    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    return tf.function(lambda images: model(images, training=False)).get_concrete_function(spec).graph


def _git_state() -> dict[str, Any] | None:
    """Commit of the code, and whether it was changed since; None outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _command() -> str:
    script = os.path.basename(sys.argv[0])
    program = {"run.py": ["python", "-m", "kpipe.run"], "__main__.py": ["python", "-m", "kpipe"]}
    # With --new, it would not be this run that goes on.
    arguments = [argument for argument in sys.argv[1:] if argument != "--new"]
    return shlex.join([*program.get(script, ["kpipe"]), *arguments])


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Words what a file system refuses in the middle of a run."""
    refusals = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
    try:
        yield
    except OSError as error:
        if error.errno not in refusals:
            raise
        raise EnvironmentFault(
            f"{error.filename or folder}: cannot be written ({error.strerror}). What was saved before is still there: "
            "make room and give the same command again."
        ) from None


@dataclass
class _Stop:
    number: int | None = None


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Notes SIGINT and SIGTERM, so that the loop can end between two chunks; a second SIGINT ends at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame) -> None:
        if stop.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
