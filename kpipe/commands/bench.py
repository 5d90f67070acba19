"""`kpipe bench`: how fast an experiment trains on this machine, and what limits it. `bench_screen` prints it.

The input alone, the training step alone and both together take turns, each as in a training. Nothing is kept.
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kpipe.assembly import Prepared, load_splits, load_weights, make_trainer, prepare, reads_whole_images
from kpipe.caller import about_an_experiment
from kpipe.catalog.data import check_source
from kpipe.config.loading import Loaded, experiment_of
from kpipe.config.schema import DataConfig, Experiment, TrainingConfig
from kpipe.console import Screen, describe_size
from kpipe.data.cache import count_bytes
from kpipe.data.files import FileSplit
from kpipe.data.reading import translate_reading_errors
from kpipe.data.splits import Split
from kpipe.frozen_features import make_frozen_features, plan_features
from kpipe.host import peak_memory
from kpipe.memory import MemoryGuard
from kpipe.models.geometry import count_training_flops
from kpipe.names import shorten
from kpipe.runs.machine import check_precision, resolve_auto
from kpipe.training.control import FrozenFeatures
from kpipe.training.device import describe_device, free_memory, gpu_hint, seed_everything
from kpipe.training.distribution import distribute, make_strategy
from kpipe.training.precision import resolve_precision
from kpipe.training.timing import Turn, Work, repeat_batch, time_in_turns
from kpipe.training.trainer import Chunk, Trainer

_TURNS = {"rounds": 5, "turn_seconds": 0.5}
_MAX_SECONDS = 40.0
_ENDLESS = 10**6  # epochs: a short training would end before it is measured
_BUFFERED = 64  # batches that the input may have read ahead, at most
_MOST_IDLING = 2.0  # seconds
_MATRIX_SIDES = {"CPU": 2048, "GPU": 4096}  # large enough for the full rate
_DTYPES = {"float32": "float32", "mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}
_KINDS = {"JPG": "JPEG", "JPE": "JPEG", "JFIF": "JPEG", "TIF": "TIFF"}  # suffixes of files that are called otherwise
_STEADY = 1.5  # factor between the slowest and the fastest round of a measurement
_LOW_RATE = 0.25  # fraction of the matrix rate below which larger batches probably help
_NOTABLE = 0.15  # fraction of the time that the input takes while the step is the limit


@about_an_experiment()
def bench(experiment: Experiment | Loaded, *, screen: Screen | None = None) -> dict[str, Any]:
    """Measure how fast an experiment trains on this machine, without validation and saving. Nothing is kept of it.

    Data is loaded as for a training, and decoded images are cached as the experiment says. Then the input alone (the
    batches are read and not used), the training step alone (on one batch, which the memory holds) and both together, as
    in a training, take turns for about half a minute. A single slow step takes as long as it takes. It is one device
    that is measured, whatever `training.distribution` says.

    Args:
        experiment: what `load_experiment` returned, or its `experiment`.
        screen: shows the progress; default: standard output.

    Returns:
        The measurements, as JSON types. `input`, `step` and `together` have the medians `seconds_per_step` and
        `images_per_second` over their `turns` (seconds per step), and the number of `steps` in these. `step` and
        `together` have `waiting`, the fraction of the time from asking for a batch to getting it; for the one batch of
        `step` that is what asking alone costs. `input_fraction` is the fraction of the time that a training would save
        if the input took none. `memory` has the peaks in bytes of the `process` and of the `gpu`; null where they are
        not known. `flops` has the operations `per_step`, see `count_training_flops`, and `per_second` of the step
        alone; `matrix_rate`, what this device reaches in a product of two large matrices of side `matrix_side`, in the
        precision of the training; and the `fraction` of it that the step reaches. `limit` is `input` or `step`, which
        takes longer alone, and `advice` a sentence with what to try. `name`, `model`, `source`, `images`, `image`,
        `batch_size`, `device`, `precision` and `notes` say what was measured.

    Raises:
        ConfigError, DataError, OutOfMemory: as `train`, before its first step.
    """
    screen, experiment = screen or Screen(), experiment_of(experiment)
    check_source(experiment.data.source)
    experiment = resolve_auto(experiment)
    training = experiment.training.model_copy(update={"epochs": _ENDLESS})
    experiment = experiment.model_copy(update={"training": training})
    batch_size = experiment.data.batch_size
    with MemoryGuard(Path(), batch_size, training.accumulate) as memory:
        seed_everything(experiment.seed, deterministic=experiment.chosen.deterministic)
        weights = load_weights(experiment)
        splits = load_splits(experiment.data, progress=screen.progress)
        with translate_reading_errors(splits.by_name.values()):
            given = {"splits": splits, "weights": weights, "progress": screen.progress}
            prepared = prepare(experiment, make_strategy(), **given)
            tried, (experiment, precision_note) = experiment, check_precision(experiment, prepared.model)
            if experiment is not tried:
                prepared = prepare(experiment, make_strategy(), **given)
            trainer = make_trainer(training, prepared.model, prepared.layer_rules, xla=experiment.chosen.xla)
            notes = [*splits.notes, *prepared.notes, *memory.watch(prepared.model), gpu_hint(), _alone(training)]
            notes.append(precision_note)
            planned, note = plan_features(experiment, prepared, 0)
            features = planned and make_frozen_features(experiment, prepared, planned, screen.progress)
            with screen.status("measuring"):
                measured = _measure(trainer, prepared, features, batch_size, experiment.chosen.precision)
    return {
        "name": experiment.name,
        "model": experiment.model.name,
        "source": experiment.data.source,
        "images": splits.train.where_kept,
        "image": list(splits.image_shape),
        "batch_size": batch_size,
        "device": describe_device(),
        "precision": experiment.chosen.precision,
        **measured,
        **_find_limit(experiment, prepared, features, measured),
        "notes": list(filter(None, [*notes, note, _unsteady(measured)])),
    }


def _unsteady(measured: dict[str, Any]) -> str | None:
    """Return a line for measurements that differ from round to round; None: they do not."""
    rounds = [measured[name]["turns"] for name in ("input", "step", "together")]
    factor = max(max(seconds) / min(seconds) for seconds in rounds)
    if factor < _STEADY:
        return None
    return f"the rounds differ by up to {factor:.1f} times; if something else has used the machine, measure again"


def _alone(training: TrainingConfig) -> str | None:
    """Return a line for an experiment that trains on several devices; None: it does not."""
    if training.distribution == "none":
        return None
    return f"one device was measured, with the whole batch; training.distribution={training.distribution} divides it"


# --- what is measured ---------------------------------------------------------------------------------------


def _measure(
    trainer: Trainer, prepared: Prepared, features: FrozenFeatures | None, batch_size: int, precision: str
) -> dict[str, Any]:
    head = features and features.head
    batches = (features.batches_from if features else prepared.training_batches)(0)
    turns = time_in_turns(_make_works(trainer, batches, head), max_seconds=_MAX_SECONDS, **_TURNS)
    memory = {"process": peak_memory(), "gpu": _gpu_peak()}  # before the matrices take memory of their own
    rows = {name: _summarize(turns[name], batch_size) for name in turns}
    for name in ("step", "together"):
        rows[name]["waiting"] = min(1.0, statistics.median(turn.result.waited / turn.seconds for turn in turns[name]))
    step, together = rows["step"]["seconds_per_step"], rows["together"]["seconds_per_step"]
    layers = head and {layer.name for layer in head.layers}
    flops = batch_size * count_training_flops(prepared.model, layers)
    side, matrix_rate = _measure_matrix_rate(_DTYPES[precision])
    return {
        **rows,
        "input_fraction": max(0.0, 1 - step / together),
        "memory": memory,
        "flops": {
            "per_step": flops,
            "per_second": flops / step,
            "matrix_rate": matrix_rate,
            "matrix_side": side,
            "fraction": flops / step / matrix_rate,
        },
    }


def _make_works(trainer: Trainer, batches: tf.data.Dataset, head: keras.Model | None) -> dict[str, Work]:
    """Return the three works: `input`, `together` and `step`. Those that read share a pipeline, which goes on."""
    read_steps = tf.function(_read)
    iterator = iter(distribute(trainer.strategy, batches))
    same_batch = repeat_batch(trainer, next(iter(batches.take(1))))

    def read(steps: int) -> None:
        read_steps(iterator, tf.constant(steps)).numpy()

    def train(steps: int) -> Chunk:
        return trainer.run_steps(iterator, steps, head)

    read(0)  # traces
    train(0)
    return {
        "input": Work(read, partial(_empty_buffers, read)),
        "together": Work(train, lambda seconds_per_step: train(1)),
        "step": Work(lambda steps: trainer.run_steps(same_batch, steps, head), _wait_until_idle),
    }


def _summarize(turns: Sequence[Turn], batch_size: int) -> dict[str, Any]:
    seconds = [turn.seconds_per_step for turn in turns]
    median = statistics.median(seconds)
    return {
        "seconds_per_step": median,
        "images_per_second": batch_size / median,
        "steps": sum(turn.steps for turn in turns),
        "turns": seconds,
    }


def _read(iterator, num_steps: tf.Tensor) -> tf.Tensor:
    """Read batches as the training loop does, in a graph."""
    for _ in tf.range(num_steps):
        next(iterator)
    return num_steps


def _empty_buffers(read: Callable[[int], object], seconds_per_step: float) -> None:
    """Read what the pipeline has read ahead while others had their turns: such a batch comes at once."""
    for _ in range(_BUFFERED):
        start = time.perf_counter()
        read(1)
        if time.perf_counter() - start > seconds_per_step / 2:
            return


def _wait_until_idle(seconds_per_step: float) -> None:
    """Wait for the pipeline to fill its buffers, as this takes time from what runs beside it."""
    end = time.perf_counter() + _MOST_IDLING
    while time.perf_counter() < end:
        busy = time.process_time()
        time.sleep(0.05)
        if time.process_time() - busy < 0.01:
            return


def _measure_matrix_rate(dtype: str) -> tuple[int, float]:
    """Return the side of two square matrices, and the floating-point operations per second of their product."""
    side = _MATRIX_SIDES["GPU" if tf.config.list_physical_devices("GPU") else "CPU"]
    # Products of matrices of this scale keep it.
    left, right = (tf.cast(tf.random.normal((side, side), stddev=side**-0.5), dtype) for _ in range(2))

    @tf.function
    def multiply(products: tf.Tensor, product: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(products):
            product = tf.matmul(product, right)
        return product[0, 0]

    work = Work(lambda products: multiply(tf.constant(products), left).numpy())
    turns = time_in_turns({"": work}, max_seconds=_MAX_SECONDS / 4, **_TURNS)[""]
    return side, 2 * side**3 / statistics.median(turn.seconds_per_step for turn in turns)


def _gpu_peak() -> int | None:
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] if tf.config.list_physical_devices("GPU") else None


# --- what limits it -----------------------------------------------------------------------------------------


def _find_limit(
    experiment: Experiment, prepared: Prepared, features: FrozenFeatures | None, measured: dict[str, Any]
) -> dict[str, str]:
    """Return which of input and step is the limit, and a sentence on it and on what to try."""
    if features:
        doing, remedy = "reading the features of the frozen layers", "a larger data.batch_size"
    else:
        doing, remedy = _describe_input(experiment.data, prepared.splits.train)
    takes = measured["input_fraction"]
    if measured["input"]["seconds_per_step"] > measured["step"]["seconds_per_step"]:
        return {
            "limit": "input",
            "advice": f"The input is the limit: {doing} takes {_percent(takes)} of the time; try {remedy}.",
        }
    rate = measured["flops"]["fraction"]
    advice = f"The step is the limit: it takes {_percent(1 - takes)} of the time"
    advice += f" and reaches {_percent(rate)} of the device's matrix rate; try {_speed_up_step(experiment, rate)}"
    if takes >= _NOTABLE:
        advice += f"; the input ({doing}) adds the other {_percent(takes)}"
    return {"limit": "step", "advice": f"{advice}."}


def _describe_input(config: DataConfig, train: Split) -> tuple[str, str]:
    """Return what the input does, and what to try where that takes too long."""
    names = [shorten(entry.chosen[0].rpartition("/")[2], 40) for entry in config.augment]
    augmenting = f"augmenting ({', '.join(names)})"
    if train.kept_pixels and not train.kept_pixels.is_mapped:
        if names:
            return augmenting, "fewer or cheaper entries of data.augment"
        return "putting batches together", "a larger data.batch_size"
    size, free = count_bytes(train), free_memory()
    fits = size is not None and free is not None and 2 * size < free
    remedy = f"data.cache=memory ({describe_size(size)})" if fits else "data.cache=disk"
    if train.kept_pixels:
        doing = "reading the decoded images from the disk"
        remedy = remedy if fits else "a faster disk for $KPIPE_CACHE"
    else:
        doing = f"decoding {_describe_kind(train)}"
        if reads_whole_images(config) and not config.stored_size and config.image_size:
            # Crops are then taken from images that are kept a little larger than the network sees them.
            remedy = f"data.cache=disk with data.stored_size={8 * config.image_size // 7}"
    return (f"{doing} and {augmenting}" if names else doing), remedy


def _describe_kind(train: Split) -> str:
    """Return `JPEG files`, or what else is decoded each time."""
    if not isinstance(train, FileSplit):
        return "the records of the stream"
    names = (os.fsdecode(train.names[int(row)]) for row in train.rows[:100])
    [(suffix, _)] = Counter(Path(name).suffix[1:].upper() for name in names).most_common(1)
    return f"{_KINDS.get(suffix, suffix)} files"


def _speed_up_step(experiment: Experiment, fraction: float) -> str:
    """Return what to try where the step takes most of the time.

    Args:
        experiment: what is trained, resolved.
        fraction: of the matrix rate, which the step reaches.
    """
    training = experiment.training
    if experiment.chosen.precision == "float32" and (faster := resolve_precision("auto")) != "float32":
        return f"training.precision={faster}"
    if training.accumulate > 1:
        return "a smaller training.accumulate"
    if fraction < _LOW_RATE:
        return "a larger data.batch_size"
    return "a smaller network or data.image_size, or a faster device"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
