"""What a search costs beside the training itself, and what its guesses are worth.

    python benchmarks/search.py [FILE] [--only cost memory curves] [--repetitions N] [--seeds N] [--trials N]
                                [--quick] [--profile] [--json FILE]

cost: a trial of one step against the loop that one would write with Keras for the same network, data and batch. Both
run in one process and take turns after a warm-up of each; medians. The trial writes what every run writes:
configuration, logs, a checkpoint that is flushed to the disk, the network. The loop builds, trains, evaluates, saves
and clears Keras's state. `--profile` prints in which functions a trial spends its time.

memory: one search of many trials of one step in one process; the memory of the process at the end of each trial, and
the disk that the search takes at its end.

curves: random and Bayesian search of FILE (default: experiments/search/lenet5_digits.yaml) with several seeds. From
the scores in the order of the trials: the best so far, the trial in which random search reaches its best, and the one
in which Bayesian search has reached as much. Each trial is trained anew.

Each part has a process of its own. `--json` writes `{"date", "hardware", "versions", "rows"}`. A row of cost is
`{"work", "variant", "items", "cpu_seconds", "wall_seconds"}`, medians for one trial; of memory `{"work", "variant",
"trials", "rss_bytes", "disk_bytes"}`; of curves `{"work", "variant", "seed", "objective", "scores"}`, null for a trial
without a score.
"""

import argparse
import cProfile
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

from report import write_json
from rich.console import Console
from rich.table import Table

from kpipe.config import load_search
from kpipe.console import Screen, hold_back_libraries

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SEARCHED = EXPERIMENTS / "search" / "lenet5_digits.yaml"
TARGET = 1.3  # times the loop with Keras, at most
SHOWN_TRIALS = (5, 10, 15, 20)
SHOWN_MEMORY = (5, 10, 20, 30, 40, 50)
SETTLED = 10  # trials, after which the memory of a process should grow no more
PROFILED = 25  # functions

ONE_STEP = ["training.epochs=1", "training.learning_rate.schedule=constant", "training.precision=float32"]
WORKS = {
    "lenet5": ("lenet5.yaml", ["data.image_size=28", "data.augment=[]", "data.batch_size=1280"]),
    "vgg11": ("vgg11.yaml", ["data.batch_size=647"]),
}
"""The file of a network, and what makes an epoch of the 1,293 digits one step."""

OPTIMIZERS = {"lenet5": ("SGD", {"learning_rate": 0.05, "momentum": 0.9}), "vgg11": ("Adam", {"learning_rate": 3e-4})}
"""Those of the files, as one gives them to Keras."""

MANY_TRIALS = """\
data: {source: digits, image_size: 28, batch_size: 1280}
model: {name: lenet5}
training: {epochs: 1, precision: float32, learning_rate: {schedule: constant, peak: 0.01}}
search: {method: random, keep: 3, space: {training.learning_rate.peak: {log: [1e-3, 1e-1]}}}
"""

Rows = list[dict[str, Any]]


class Quiet(Screen):
    """Shows nothing, and calls `on_trial` at the line of each trial."""

    def __init__(self, on_trial: Callable[[], None] = lambda: None):
        super().__init__(Console(quiet=True, force_terminal=False))
        self._on_trial = on_trial

    def line(self, text: str) -> None:
        if text.startswith("trial "):
            self._on_trial()


# --- cost -------------------------------------------------------------------------------------------------------------


def measure_cost(works: Sequence[str], repetitions: int, profile: bool) -> Rows:
    """Medians of both variants of each work."""
    with hold_back_libraries(), tempfile.TemporaryDirectory() as folder:
        rows = []
        for work in works:
            trial, bare = make_variants(work, Path(folder) / work)
            variants = {"kpipe": trial, "keras_fit": bare}
            for run in variants.values():
                run()
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
            for _ in range(repetitions):
                for name, run in variants.items():
                    times[name].append(clock(run))
            rows += [
                {
                    "work": work,
                    "variant": name,
                    "items": 1,
                    "cpu_seconds": statistics.median(cpu for cpu, _ in times[name]),
                    "wall_seconds": statistics.median(wall for _, wall in times[name]),
                }
                for name in variants
            ]
            if profile:
                print_profile(work, trial)
        return rows


def clock(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU, of all threads, and of the clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def print_profile(work: str, run: Callable[[], object]) -> None:
    profiler = cProfile.Profile()
    profiler.runcall(run)
    print(f"A trial of {work}:", flush=True)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(PROFILED)


def make_variants(work: str, folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """A trial and a loop with Keras alone, on the same images; each call is a whole one.

    Args:
        work: a name of `WORKS`.
        folder: is made; what the variants save lies there.
    """
    import keras

    from kpipe.experiment import prepare
    from kpipe.models import build_model
    from kpipe.search.records import Record
    from kpipe.search.trials import TrialRunner
    from kpipe.signals import Stop

    name, overrides = WORKS[work]
    loaded = load_search(EXPERIMENTS / name, overrides + ONE_STEP)
    experiment = loaded.experiment
    (folder / "trials").mkdir(parents=True)
    runner = TrialRunner(loaded, folder, experiment.training.monitor, Stop(), screen=Quiet())
    splits = runner.load_data(experiment.data)
    network = prepare(experiment, splits=splits).network
    batch_size, number = experiment.data.batch_size, 0
    images, labels = splits.train.images[:batch_size], splits.train.labels[:batch_size]

    def trial() -> None:
        nonlocal number
        number += 1
        record = runner.run(Record(number, {}, {}))
        if record.status != "finished" or record.epochs != 1:
            raise RuntimeError(f"{work}: expected a finished trial of one epoch, got {record}")

    def bare() -> None:
        keras.utils.set_random_seed(experiment.seed)
        model = build_model(**network)
        optimizer, options = OPTIMIZERS[work]
        model.compile(
            optimizer=getattr(keras.optimizers, optimizer)(**options),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )
        model.fit(images, labels, batch_size=batch_size, verbose=0)
        model.evaluate(splits.validation.images, splits.validation.labels, batch_size=batch_size, verbose=0)
        model.save(folder / "bare.keras")
        del model
        keras.backend.clear_session()

    return trial, bare


def show_cost(console: Console, rows: Rows) -> None:
    table = Table("work", "CPU s", "CPU s, Keras", "times", "wall s", "wall s, Keras", "times", "target")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        cells = []
        for key in ("cpu_seconds", "wall_seconds"):
            cells += [f"{ours[key]:.3f}", f"{theirs[key]:.3f}", f"{ours[key] / theirs[key]:.2f}"]
        table.add_row(ours["work"], *cells, f"{TARGET}")
    console.print(table)


# --- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(trials: int) -> Rows:
    """One row: the memory after each trial, and the disk at the end."""
    import psutil

    with hold_back_libraries(), tempfile.TemporaryDirectory() as folder:
        from kpipe.search import run_search

        found: list[int] = []
        path = Path(folder) / "memory.yaml"
        path.write_text(MANY_TRIALS)
        loaded = load_search(path, [f"search.trials={trials}", f"logs={folder}"])
        result = run_search(loaded, screen=Quiet(lambda: found.append(psutil.Process().memory_info().rss)))
        disk = sum(file.stat().st_size for file in result.path.rglob("*") if file.is_file())
    return [{"work": "memory", "variant": "kpipe", "trials": trials, "rss_bytes": found, "disk_bytes": disk}]


def slope(values: Sequence[float], first: int) -> float:
    """Growth a trial from trial `first` on: of the straight line with the least squares."""
    return statistics.linear_regression(range(first, len(values) + 1), values[first - 1 :]).slope


def show_memory(console: Console, rows: Rows) -> None:
    (row,) = rows
    megabytes = [size / 1e6 for size in row["rss_bytes"]]
    shown = [trial for trial in SHOWN_MEMORY if trial <= len(megabytes)]
    table = Table("after trial", *map(str, shown))
    table.add_row("memory, MB", *(f"{megabytes[trial - 1]:,.1f}" for trial in shown))
    console.print(table)
    first = SETTLED if SETTLED < len(megabytes) else 1
    ends = (megabytes[-1] - megabytes[first - 1]) / (len(megabytes) - first)
    console.print(
        f"From trial {first} to {len(megabytes)}: {slope(megabytes, first):+.2f} MB a trial by least squares, "
        f"{ends:+.2f} by the two ends. The search takes {row['disk_bytes'] / 1e6:.2f} MB of disk."
    )


# --- curves -----------------------------------------------------------------------------------------------------------


def measure_curves(file: Path, seeds: int, trials: int) -> Rows:
    """The scores of each search in the order of its trials."""
    with hold_back_libraries(), tempfile.TemporaryDirectory() as folder:
        from kpipe.search import run_search
        from kpipe.search.records import read_records

        os.environ["KPIPE_LOGS"] = folder
        rows = []
        for seed in range(seeds):
            for method in ("random", "bayesian"):
                overrides = [f"search.method={method}", f"search.trials={trials}", f"search.seed={seed}"]
                start = time.perf_counter()
                result = run_search(load_search(file, overrides), screen=Quiet())
                records = sorted(read_records(result.path).items())
                scores = [record.score if record.has_score else None for _, record in records]
                objective = result.summary["objective"]
                rows.append(
                    {"work": "curves", "variant": method, "seed": seed, "objective": objective, "scores": scores}
                )
                print(f"seed {seed}, {method}: {len(scores)} trials, {time.perf_counter() - start:.0f} s", flush=True)
        return rows


def best_so_far(scores: Sequence[float | None], larger_is_better: bool) -> list[float]:
    """The best score up to each trial; the worst that there is, before one has any."""
    best, found = -math.inf if larger_is_better else math.inf, []
    for score in scores:
        if score is not None:
            best = max(best, score) if larger_is_better else min(best, score)
        found.append(best)
    return found


def reach(curve: Sequence[float], wanted: float, larger_is_better: bool) -> float:
    """The trial after which the best is as good as `wanted`; infinite: it never is."""
    reached = (best >= wanted if larger_is_better else best <= wanted for best in curve)
    return next((number for number, done in enumerate(reached, 1) if done), math.inf)


def show_curves(console: Console, rows: Rows) -> None:
    objective = rows[0]["objective"]
    larger = objective == "val_accuracy"
    curves = {(row["variant"], row["seed"]): best_so_far(row["scores"], larger) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    trials = max(len(curve) for curve in curves.values())
    shown = [trial for trial in SHOWN_TRIALS if trial < trials] + [trials]
    table = Table("seed", "method", *(f"{objective}, {trial} trials" for trial in shown), "random's best in trial")
    # By method, a row for each seed: the best after the trials that are shown, and when random's best is reached.
    found: dict[str, list[list[float]]] = {"random": [], "bayesian": []}
    for seed in seeds:
        wanted = curves["random", seed][-1]
        for method, of_method in found.items():
            curve = curves[method, seed]
            at_trials = [curve[min(trial, len(curve)) - 1] for trial in shown]  # a space may be exhausted before
            of_method.append([*at_trials, reach(curve, wanted, larger)])
            table.add_row(f"{seed}", method, *_cells(of_method[-1]))
        table.add_section()
    for method, of_method in found.items():
        table.add_row("median", method, *_cells([statistics.median(column) for column in zip(*of_method, strict=True)]))
    console.print(table)


def _cells(numbers: Sequence[float]) -> list[str]:
    *scores, reached = numbers
    return [*(f"{score:.4f}" for score in scores), "not" if math.isinf(reached) else f"{reached:g}"]


# --- the program ------------------------------------------------------------------------------------------------------


def in_process(measure: Callable[..., Rows], *arguments: Any) -> Rows:
    """`measure` in a process that has done nothing before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=SEARCHED, help="the experiment of curves")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=("cost", "memory", "curves"))
    parser.add_argument("--repetitions", type=int, default=7, help="of cost")
    parser.add_argument("--seeds", type=int, default=5, help="of curves: searches by each method")
    parser.add_argument("--trials", type=int, default=20, help="of curves: of each search")
    parser.add_argument("--quick", action="store_true", help="the first network twice; 15 trials; one seed, 8 trials")
    parser.add_argument("--profile", action="store_true", help="where a trial of cost spends its time")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    works = list(WORKS)
    if options.quick:
        works, options.repetitions, options.seeds, options.trials = works[:1], 2, 1, 8
    parts = {
        "cost": (show_cost, measure_cost, works, options.repetitions, options.profile),
        "memory": (show_memory, measure_memory, 15 if options.quick else max(SHOWN_MEMORY)),
        "curves": (show_curves, measure_curves, options.file, options.seeds, options.trials),
    }
    console, rows = Console(), []
    for name in options.only or parts:
        show, *measured = parts[name]
        found = in_process(*measured)
        show(console, found)
        rows += found
    if options.json:
        write_json(options.json, rows, "keras-tuner", "scikit-learn")


if __name__ == "__main__":
    main()
