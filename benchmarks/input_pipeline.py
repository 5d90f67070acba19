"""What it costs to feed a network: CPU seconds of kpipe's pipeline, and of what else one would write.

    python benchmarks/input_pipeline.py [--only WORK ...] [--folder DIR] [--repetitions N] [--quick] [--json FILE]

`pip install -e ".[bench]"` brings the libraries that kpipe is compared with. Each variant of a work has a process of
its own, in which everything is built, traced and compiled before the first measurement. Then the variants take turns,
one at a time. What counts is CPU time, of all threads and of worker processes: input that hides behind the training
of a fast device still takes cores from it.

`--json` writes `{"date", "hardware", "versions", "rows"}` with medians, and those of each repetition beside them, in
the order in which they were measured.
"""

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from report import write_json
from rich.console import Console
from rich.table import Table

from kpipe.console import hold_back_libraries

# Threads of OpenMP that wait would otherwise spin, and their CPU time be counted against torch and numba.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
FORK = multiprocessing.get_context("forkserver")  # children are forked off a process that has imported TensorFlow
FORK.set_forkserver_preload(["kpipe.experiment"])
LIBRARIES = {"torch": "torch", "torch_workers": "torch", "numba": "numba"}


@dataclass(frozen=True)
class Work:
    batch: int
    batches: int
    """That are measured at a time."""
    variants: tuple[str, ...]
    targets: dict[str, float] = field(default_factory=dict)
    """Variant: so many times the CPU time of kpipe it should take, at least; in training, of kpipe: the largest share
    of the input."""


SMALL = ("kpipe", "naive", "autotune", "keras_layers")
JPEG = ("kpipe", "naive", "torch", "torch_workers")
LAYER = Work(32, 12, ("kpipe", "keras_layers"), {"keras_layers": 5})
WORKS = {
    "augment32": Work(
        256, 195, (*SMALL, "torch", "torch_workers", "numba", "limit"), {"naive": 12, "torch": 5, "numba": 0.5}
    ),
    "train_lenet5_b256": Work(256, 60, (*SMALL, "limit"), {"kpipe": 0.10}),
    "train_vgg16": Work(128, 4, (*SMALL, "limit"), {"kpipe": 0.01}),
    "jpeg224_first_epoch": Work(32, 20, JPEG, {"naive": 1.4}),
    "jpeg224_later_epochs": Work(32, 20, JPEG, {"naive": 13}),
    "color_jitter224": LAYER,
    "rotate224": LAYER,
    "rand_augment224": LAYER,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def serve(pipe, name: str, variant: str, folder: Path, quick: bool) -> None:
    """In a process of its own: gets ready, then sends (CPU seconds, wall seconds) whenever it is asked."""
    with hold_back_libraries():
        from input_variants import make_run

        work = WORKS[name]
        run, batches = make_run(name, variant, work.batch, folder), _count_batches(work, quick)
        run(max(2, batches // 5))
        pipe.send(None)
        while pipe.recv():
            wall, cpu = time.perf_counter(), _cpu_seconds()
            run(batches)
            pipe.send((_cpu_seconds() - cpu, time.perf_counter() - wall))


def _count_batches(work: Work, quick: bool) -> int:
    return max(1, work.batches // 10) if quick else work.batches


def _cpu_seconds() -> float:
    """Of this process and of those that it has started."""
    workers = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(times.user + times.system for times in workers)


def measure(name: str, folder: Path, repetitions: int, quick: bool) -> list[dict]:
    """The rows of one work, with the figures of each repetition beside their medians."""
    turns, found = {}, {}
    try:
        for variant in filter(is_there, WORKS[name].variants):
            turns[variant], found[variant] = Turns(name, variant, folder, quick), []
        for _ in range(repetitions):
            for variant, times in found.items():
                times.append(turns[variant].take())
    finally:
        for each in turns.values():
            each.end()
    images = WORKS[name].batch * _count_batches(WORKS[name], quick)
    return [_row(name, variant, images, times) for variant, times in found.items()]


class Turns:
    """The process of one variant. Between its turns it is stopped: else it would read ahead, and the next measurement
    would find that work done, and have disturbed those of the others."""

    def __init__(self, name: str, variant: str, folder: Path, quick: bool):
        self.pipe, end = FORK.Pipe()
        process = FORK.Process(target=serve, args=(end, name, variant, folder, quick))
        process.start()
        end.close()
        self.process = psutil.Process(process.pid)
        self.pipe.recv()
        self._stop()

    def take(self) -> tuple[float, float]:
        """CPU seconds and wall seconds."""
        for process in self._all():
            process.resume()
        self.pipe.send(True)
        times = self.pipe.recv()
        self._stop()
        return times

    def _all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def _stop(self) -> None:
        for process in self._all():
            process.suspend()

    def end(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for process in self._all():
                process.kill()


def is_there(variant: str) -> bool:
    library = LIBRARIES.get(variant)
    return library is None or importlib.util.find_spec(library) is not None


def _row(name: str, variant: str, images: int, times: list[tuple[float, float]]) -> dict:
    cpu, wall = ([round(seconds, 4) for seconds in column] for column in zip(*times, strict=True))
    return {
        "work": name,
        "variant": variant,
        "items": images,
        "cpu_seconds": statistics.median(cpu),
        "wall_seconds": statistics.median(wall),
        "repetitions": {"cpu_seconds": cpu, "wall_seconds": wall},
    }


# --- the table --------------------------------------------------------------------------------------------------------


def show(console: Console, rows: list[dict], photographs: str) -> None:
    table = Table("work", "variant", title="Input of training: what an image costs")
    for column in ("images", "CPU µs", "wall µs", "reached", "target"):
        table.add_column(column, justify="right")
    table.caption = (
        "Reached: CPU time of the variant over that of kpipe; in training, the share of the CPU time that is input. "
        f"Nothing is taken off for shuffling and gathering. Photographs: {photographs}."
    )
    for row in rows:
        micros = [f"{1e6 * row[key] / row['items']:,.1f}" for key in ("cpu_seconds", "wall_seconds")]
        reached, target = compare(row, {other["variant"]: other for other in rows if other["work"] == row["work"]})
        is_first = row["variant"] == "kpipe"
        if is_first:
            table.add_section()
        table.add_row(row["work"] if is_first else "", row["variant"], f"{row['items']:,}", *micros, reached, target)
    console.print(table)


def compare(row: dict, others: dict[str, dict]) -> tuple[str, str]:
    """What was reached and what was aimed at, in words; `others` are the rows of the same work by variant."""
    name, variant = row["work"], row["variant"]
    target = WORKS[name].targets.get(variant.removesuffix("_workers"))
    if name.startswith("train_"):
        if variant == "limit":
            return "", ""
        share = 1 - others["limit"]["cpu_seconds"] / row["cpu_seconds"]
        return f"{100 * share:.1f} %", f"at most {100 * target:g} %" if target else ""
    if variant == "kpipe":
        return "", ""
    return f"{row['cpu_seconds'] / others['kpipe']['cpu_seconds']:.2f}", f"at least {target:g}" if target else ""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="WORK", choices=WORKS, default=list(WORKS), help=", ".join(WORKS))
    parser.add_argument("--folder", type=Path, help="JPEG photographs, a folder for each class; default: made-up ones")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repetition of a tenth of the batches")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    with hold_back_libraries():
        run(options, Console(highlight=False, width=None if sys.stdout.isatty() else 120))


def run(options: argparse.Namespace, console: Console) -> None:
    wanted = {variant for name in options.only for variant in WORKS[name].variants}
    for variant in sorted(variant for variant in wanted if not is_there(variant)):
        console.print(
            f'{variant}: left out, {LIBRARIES[variant]} is not installed; pip install -e ".[bench]" brings it'
        )
    rows = []
    with tempfile.TemporaryDirectory(prefix="kpipe-photographs-") as made_up:
        folder = options.folder
        if folder is None and any(name.startswith("jpeg") for name in options.only):
            from input_variants import make_photographs

            folder = Path(made_up)
            make_photographs(folder)
        for name in options.only:
            rows += measure(name, folder, 1 if options.quick else options.repetitions, options.quick)
            console.print(f"{name}: done")
    show(console, rows, str(options.folder or "made up; --folder DIR takes real ones"))
    if options.json:
        write_json(options.json, rows, *sorted(filter(is_there, set(LIBRARIES.values()))))


if __name__ == "__main__":
    main()
