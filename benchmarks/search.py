"""What a search costs beside the training itself, and what its suggestions are worth.

    python benchmarks/search.py [FILE] [--only cost memory curves] [--repetitions N] [--seeds N] [--trials N]
                                [--quick] [--profile] [--json FILE]

cost: a trial of one step against what one would write with Keras for the same network, data and batch. Both run in one
process and take turns after a warm-up of each. The trial writes what every run writes: configuration, logs, the
network, and a checkpoint that is flushed to the disk. With Keras alone the model is built, trained, evaluated and
saved, and Keras's state is cleared. `--profile` prints in which functions a trial spends its time.

memory: one search of many trials of one step in one process; the memory of the process at the end of each trial, and
the disk space of the search at its end.

curves: random and Bayesian search of FILE (default: experiments/search/lenet5_digits.yaml) with several seeds. The
scores in the order of the trials give the best score so far, and the trial after which each method is as good as
random search is at its end. Each trial is trained anew.

Each measurement has a process of its own. `--json` writes `{"date", "hardware", "versions", "rows"}`. A row of cost is
`{"work", "variant", "items", "cpu_seconds", "wall_seconds"}`, medians for one trial; of memory `{"work", "variant",
"trials", "rss_bytes", "disk_bytes"}`; of curves `{"work", "variant", "seed", "objective", "scores"}`, null for a trial
without a score.
"""

import argparse
import cProfile
import itertools
import math
import multiprocessing
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from report import clock, median_row, write_json
from rich.console import Console
from rich.table import Table

from kpipe.config import Loaded, load_search
from kpipe.console import Screen
from kpipe.streams import hold_back_libraries

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
DEFAULT_FILE = EXPERIMENTS / "search" / "lenet5_digits.yaml"
TARGET = 1.3  # how many times the seconds of Keras alone a trial may take
SHOWN_TRIALS = (5, 10, 15, 20)
SHOWN_MEMORY = (5, 10, 20, 30, 40, 50)
WARM_UP = 10  # trials after which the memory of a process should grow no more
PROFILED = 25  # functions

ONE_STEP = ["training.epochs=1", "training.learning_rate.schedule=constant", "training.precision=float32"]
WORKS = {
    "lenet5": ("lenet5.yaml", ["data.image_size=28", "data.augment=[]", "data.batch_size=1280"]),
    "vgg11": ("vgg11.yaml", ["data.batch_size=647"]),
}
"""The experiment file of each network, and the overrides with which an epoch of the 1,293 digits is one step."""

OPTIMIZERS = {"lenet5": ("SGD", {"learning_rate": 0.05, "momentum": 0.9}), "vgg11": ("Adam", {"learning_rate": 3e-4})}
"""The optimizers of these files, as one gives them to Keras."""

MANY_TRIALS = """\
data: {source: digits, image_size: 28, batch_size: 1280}
model: {name: lenet5}
training: {epochs: 1, precision: float32, learning_rate: {schedule: constant, peak: 0.01}}
search: {method: random, keep: 3, space: {training.learning_rate.peak: {log: [1e-3, 1e-1]}}}
"""

Rows = list[dict[str, Any]]


class Quiet(Screen):
    """Shows nothing, and calls `on_trial` when a search would print the line of a trial."""

    def __init__(self, on_trial: Callable[[], None] = lambda: None):
        super().__init__(Console(quiet=True, force_terminal=False))
        self._on_trial = on_trial

    def line(self, text: str, style: str | None = None) -> None:
        if text.startswith("trial "):
            self._on_trial()


# --- cost -------------------------------------------------------------------------------------------------------------


def measure_cost(works: Sequence[str], repetitions: int, profile: bool) -> Rows:
    """Measure a trial and Keras alone by turns; return a row of each, by work."""
    with hold_back_libraries(), tempfile.TemporaryDirectory() as folder:
        rows = []
        for work in works:
            file, overrides = WORKS[work]
            loaded = load_search(EXPERIMENTS / file, overrides + ONE_STEP)
            variants = {
                "kpipe": make_trial(loaded, Path(folder) / work),
                "keras_fit": make_keras_fit(loaded, *OPTIMIZERS[work], Path(folder) / f"{work}.keras"),
            }
            for run in variants.values():
                run()
            times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
            for _ in range(repetitions):
                for variant, run in variants.items():
                    times[variant].append(clock(run))
            rows += [median_row(work, variant, 1, times[variant]) for variant in variants]
            if profile:
                print_profile(work, variants["kpipe"])
        return rows


def print_profile(work: str, run: Callable[[], object]) -> None:
    """Print the functions in which most of the time of one call is spent."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    print(f"A trial of {work}:", flush=True)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(PROFILED)


def make_trial(loaded: Loaded, folder: Path) -> Callable[[], None]:
    """Return a function that runs one whole trial; the runs are written to `folder`."""
    from kpipe.signals import Stop
    from kpipe.tuning.records import Record
    from kpipe.tuning.trials import TrialRunner

    (folder / "trials").mkdir(parents=True)
    runner = TrialRunner(loaded, folder, loaded.experiment.training.monitor, Stop(), screen=Quiet())
    numbers = itertools.count(1)

    def run_trial() -> None:
        record = runner.run(Record(next(numbers), {}, {}))
        if record.status != "finished" or record.epochs != 1:
            raise RuntimeError(f"{folder.name}: expected a finished trial of one epoch, got {record}")

    return run_trial


def make_keras_fit(loaded: Loaded, optimizer: str, options: dict[str, float], path: Path) -> Callable[[], None]:
    """Return a function that does the same with Keras alone, on the same images; the model is saved to `path`."""
    import keras

    from kpipe.assembly import prepare
    from kpipe.models import build_model
    from kpipe.runs.machine import resolve_auto
    from kpipe.training.distribution import make_strategy

    experiment = resolve_auto(loaded.experiment)
    prepared = prepare(experiment, make_strategy())
    splits, network, batch_size = prepared.splits, prepared.network, experiment.data.batch_size
    images, labels = splits.train.images[:batch_size], splits.train.labels[:batch_size]

    def fit() -> None:
        keras.utils.set_random_seed(experiment.seed)
        model = build_model(**network)
        model.compile(
            optimizer=getattr(keras.optimizers, optimizer)(**options),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )
        model.fit(images, labels, batch_size=batch_size, verbose=0)
        model.evaluate(splits.validation.images, splits.validation.labels, batch_size=batch_size, verbose=0)
        model.save(path)
        del model
        keras.backend.clear_session()

    return fit


def show_cost(console: Console, rows: Rows) -> None:
    table = Table("work", "CPU s", "CPU s, Keras", "times", "wall s", "wall s, Keras", "times", "target")
    for trial, keras_fit in zip(rows[::2], rows[1::2], strict=True):
        cells = []
        for key in ("cpu_seconds", "wall_seconds"):
            cells += [f"{trial[key]:.3f}", f"{keras_fit[key]:.3f}", f"{trial[key] / keras_fit[key]:.2f}"]
        table.add_row(trial["work"], *cells, f"{TARGET}")
    console.print(table)


# --- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(trials: int) -> Rows:
    """Run one search; return a row with the memory after each trial and the disk space at the end."""
    import psutil

    with hold_back_libraries(), tempfile.TemporaryDirectory() as folder:
        from kpipe.tuning.tuner import search

        memory: list[int] = []
        path = Path(folder) / "memory.yaml"
        path.write_text(MANY_TRIALS)
        loaded = load_search(path, [f"search.trials={trials}", f"logs={folder}/logs"])
        result = search(loaded, screen=Quiet(lambda: memory.append(psutil.Process().memory_info().rss)))
        disk = sum(file.stat().st_size for file in result.path.rglob("*") if file.is_file())
    return [{"work": "memory", "variant": "kpipe", "trials": trials, "rss_bytes": memory, "disk_bytes": disk}]


def growth(values: Sequence[float], first: int) -> float:
    """Return the growth per trial from trial `first` on, by least squares."""
    return statistics.linear_regression(range(first, len(values) + 1), values[first - 1 :]).slope


def show_memory(console: Console, rows: Rows) -> None:
    (row,) = rows
    megabytes = [size / 1e6 for size in row["rss_bytes"]]
    shown = [trial for trial in SHOWN_MEMORY if trial <= len(megabytes)]
    table = Table("after trial", *map(str, shown))
    table.add_row("memory, MB", *(f"{megabytes[trial - 1]:,.1f}" for trial in shown))
    console.print(table)
    first = WARM_UP if WARM_UP < len(megabytes) else 1
    between_ends = (megabytes[-1] - megabytes[first - 1]) / (len(megabytes) - first)
    console.print(
        f"From trial {first} to {len(megabytes)}: {growth(megabytes, first):+.2f} MB a trial by least squares, "
        f"{between_ends:+.2f} from the first to the last. The search takes {row['disk_bytes'] / 1e6:.2f} MB of disk."
    )


# --- curves -----------------------------------------------------------------------------------------------------------


def measure_curves(file: Path, seeds: int, trials: int) -> Rows:
    """Search with each seed by both methods; return a row with the scores of each search in the order of its trials."""
    with hold_back_libraries(), tempfile.TemporaryDirectory() as folder:
        from kpipe.tuning.records import read_records
        from kpipe.tuning.tuner import search

        os.environ["KPIPE_LOGS"] = f"{folder}/logs"  # searches are written beside it
        rows = []
        for seed in range(seeds):
            for method in ("random", "bayesian"):
                overrides = [f"search.method={method}", f"search.trials={trials}", f"search.seed={seed}"]
                start = time.perf_counter()
                result = search(load_search(file, overrides), screen=Quiet())
                records = sorted(read_records(result.path).items())
                scores = [record.score if record.has_score else None for _, record in records]
                objective = result.summary["objective"]
                rows.append(
                    {"work": "curves", "variant": method, "seed": seed, "objective": objective, "scores": scores}
                )
                print(f"seed {seed}, {method}: {len(scores)} trials, {time.perf_counter() - start:.0f} s", flush=True)
        return rows


def best_so_far(scores: Sequence[float | None], larger_is_better: bool) -> list[float]:
    """Return the best score up to each trial; infinitely bad before the first score."""
    best, curve = -math.inf if larger_is_better else math.inf, []
    for score in scores:
        if score is not None:
            best = max(best, score) if larger_is_better else min(best, score)
        curve.append(best)
    return curve


def trials_to_reach(curve: Sequence[float], score: float, larger_is_better: bool) -> float:
    """Return the trial after which the best score is as good as `score`; infinity if it never is."""
    reached = (best >= score if larger_is_better else best <= score for best in curve)
    return next((trial for trial, done in enumerate(reached, 1) if done), math.inf)


def show_curves(console: Console, rows: Rows) -> None:
    objective = rows[0]["objective"]
    larger_is_better = objective == "val_accuracy"
    curves = {(row["variant"], row["seed"]): best_so_far(row["scores"], larger_is_better) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    trials = max(len(curve) for curve in curves.values())
    shown = [trial for trial in SHOWN_TRIALS if trial < trials] + [trials]
    table = Table("seed", "method", *(f"{objective}, {trial} trials" for trial in shown), "random's best in trial")
    # For each method and seed: the best score after each trial that is shown, and when random's best is reached.
    numbers: dict[str, list[list[float]]] = {"random": [], "bayesian": []}
    for seed in seeds:
        random_best = curves["random", seed][-1]
        for method, by_seed in numbers.items():
            curve = curves[method, seed]
            scores = [curve[min(trial, len(curve)) - 1] for trial in shown]  # a small space is exhausted earlier
            by_seed.append([*scores, trials_to_reach(curve, random_best, larger_is_better)])
            table.add_row(f"{seed}", method, *_format(by_seed[-1]))
        table.add_section()
    for method, by_seed in numbers.items():
        medians = [statistics.median(column) for column in zip(*by_seed, strict=True)]
        table.add_row("median", method, *_format(medians))
    console.print(table)


def _format(numbers: Sequence[float]) -> list[str]:
    *scores, trial = numbers
    return [*(f"{score:.4f}" for score in scores), "not" if math.isinf(trial) else f"{trial:g}"]


# --- the program ------------------------------------------------------------------------------------------------------


def call_in_process(measure: Callable[..., Rows], *arguments: Any) -> Rows:
    """Call `measure` in a process that has done nothing before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=DEFAULT_FILE, help="the experiment of curves")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=("cost", "memory", "curves"))
    parser.add_argument("--repetitions", type=int, default=7, help="of cost: measurements of each variant")
    parser.add_argument("--seeds", type=int, default=5, help="of curves: searches by each method")
    parser.add_argument("--trials", type=int, default=20, help="of curves: trials of each search")
    parser.add_argument(
        "--quick", action="store_true", help="two repetitions of LeNet-5; 15 trials; one seed with 8 trials"
    )
    parser.add_argument("--profile", action="store_true", help="where a trial of cost spends its time")
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    options = parser.parse_args()
    works, memory_trials = list(WORKS), max(SHOWN_MEMORY)
    if options.quick:
        works, memory_trials = works[:1], 15
        options.repetitions, options.seeds, options.trials = 2, 1, 8
    measurements = {
        "cost": (show_cost, measure_cost, works, options.repetitions, options.profile),
        "memory": (show_memory, measure_memory, memory_trials),
        "curves": (show_curves, measure_curves, options.file, options.seeds, options.trials),
    }
    console, rows = Console(), []
    for name in options.only or measurements:
        show, measure, *arguments = measurements[name]
        measured = call_in_process(measure, *arguments)
        show(console, measured)
        rows += measured
    if options.json:
        write_json(options.json, rows, "keras-tuner", "scikit-learn")


if __name__ == "__main__":
    main()
