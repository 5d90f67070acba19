"""Breaks trainings on purpose and counts what survives; Keras's own means get the same blows.

    python benchmarks/faults [--quick] [--json FILE] [--only NAME ...] [--seed N] [--jobs N]

Every fault is real where it can be: processes are killed and signalled, files are damaged, a disk is full. What counts
as survived stands in the docstring of each fault. Whatever the benchmark itself did not foresee counts as lost. The
exit status is 1 if kpipe has lost anything.

`--json FILE` writes `{"date", "hardware", "versions", "rows"}`. A row is `{"fault", "variant", "tried", "survived",
"lost"}`, or, of the cost of a commit, `{"work", "variant", "items", "cpu_seconds", "wall_seconds", "bytes"}`: medians
for one commit with and without fsync, and the time of one epoch to compare them with.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kpipe.console import hold_back_libraries

sys.path.append(str(Path(__file__).parents[1]))

from report import write_json

with hold_back_libraries():  # TensorFlow has much to say when it is imported
    import tensorflow as tf
    from chains import chained_kills, chained_kills_of_fit
    from costs import COSTS, measure_costs
    from damage import damaged_checkpoints, damaged_stock
    from full_disk import disk_full, disk_full_stock
    from kills import kills_while_backing_up, kills_while_saving
    from processes import Site, stopping
    from starts import simultaneous_fits, simultaneous_starts
    from stops import signals, signals_to_fit


Attempts = Callable[[Site, int], Iterator[bool]]


@dataclass(frozen=True)
class Variant:
    """One thing that a fault happens to, and how often."""

    name: str
    attempts: Attempts
    full: int
    quick: int


@dataclass(frozen=True)
class Fault:
    name: str
    variants: tuple[Variant, ...]


FAULTS = (
    Fault(
        "kills while saving",
        (
            Variant("kpipe", kills_while_saving, 200, 10),
            Variant("keras_backup", partial(kills_while_backing_up, double=False), 40, 3),
            Variant("keras_backup_double", partial(kills_while_backing_up, double=True), 40, 3),
        ),
    ),
    Fault(
        "chained kills of whole runs",
        (Variant("kpipe", chained_kills, 20, 3), Variant("keras_backup", chained_kills_of_fit, 20, 2)),
    ),
    Fault("signals", (Variant("kpipe", signals, 60, 5), Variant("keras_backup", signals_to_fit, 18, 3))),
    Fault(
        "damaged checkpoints",
        (
            Variant("kpipe", damaged_checkpoints, 45, 8),
            Variant("keras_backup_double", partial(damaged_stock, how="backup"), 42, 6),
            Variant("keras_save", partial(damaged_stock, how="weights"), 21, 6),
        ),
    ),
    Fault(
        "disk full",
        (
            Variant("kpipe", disk_full, 15, 3),
            Variant("keras_backup", partial(disk_full_stock, how="backup"), 10, 2),
            Variant("keras_save", partial(disk_full_stock, how="save"), 10, 2),
        ),
    ),
    Fault(
        "simultaneous starts",
        (Variant("kpipe", simultaneous_starts, 20, 2), Variant("keras_backup", simultaneous_fits, 5, 1)),
    ),
)
STOCK_NAMES = {
    "keras_backup": "BackupAndRestore",
    "keras_backup_double": "BackupAndRestore, double",
    "keras_save": "one file",
}


@dataclass
class Result:
    fault: str
    variant: str
    tried: int = 0
    survived: int = 0
    seconds: float = 0.0
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def row(self) -> dict:
        counts = {"tried": self.tried, "survived": self.survived, "lost": self.tried - self.survived}
        return {"fault": self.fault, "variant": self.variant, **counts}


def make_site(fault: Fault, variant: Variant, root: Path, options: argparse.Namespace) -> Site:
    name = f"{fault.name}, {variant.name}"
    folder = root / re.sub(r"\W+", "-", name)
    folder.mkdir()
    return Site(folder, random.Random(f"{options.seed} {name}"), options.quick)


def run_variant(fault: Fault, variant: Variant, site: Site, progress: Progress) -> Result:
    result, began, name = Result(fault.name, variant.name), time.monotonic(), f"{fault.name}, {variant.name}"
    count = variant.quick if site.quick else variant.full
    task = progress.add_task(name, total=count)
    try:
        for survived in variant.attempts(site, count):
            result.tried, result.survived = result.tried + 1, result.survived + survived
            progress.update(task, completed=result.tried, total=max(count, result.tried))
    finally:
        site.end_children()
    result.seconds, result.losses, result.notes = time.monotonic() - began, site.losses, site.notes
    progress.update(task, total=result.tried)
    if not progress.console.is_terminal:
        progress.console.print(f"{name}: {result.survived}/{result.tried} survived, {result.seconds:.0f} s")
    return result


def run_faults(chosen: Sequence[Fault], root: Path, options: argparse.Namespace, console: Console) -> list[Result]:
    pairs = [(fault, fault.variants[0]) for fault in chosen]  # kpipe's first: they take longer
    pairs += [(fault, variant) for fault in chosen for variant in fault.variants[1:]]
    sites = [make_site(*pair, root, options) for pair in pairs]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        try:
            work = [pool.submit(run_variant, *pair, site, progress) for pair, site in zip(pairs, sites, strict=True)]
            return [future.result() for future in work]
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for site in sites:
                site.end_children()
            raise


SHOWN = 5  # losses of a fault that are told


def show_faults(console: Console, results: list[Result]) -> None:
    table = Table(title="What survives")
    for column in ("fault", "tried", "survived", "lost", "stock Keras under the same blows"):
        table.add_column(column, justify="right" if column in ("tried", "survived", "lost") else "left")
    for ours in (result for result in results if result.variant == "kpipe"):
        stock = [
            f"{STOCK_NAMES[result.variant]} {result.survived}/{result.tried}"
            for result in results
            if result.fault == ours.fault and result.variant != "kpipe"
        ]
        numbers = (ours.tried, ours.survived, ours.tried - ours.survived)
        table.add_row(ours.fault, *map(str, numbers), "\n".join(stock))
    console.print(table)
    for result in results:
        for note in result.notes:
            console.print(f"{result.fault}, {result.variant}: {note}", markup=False, soft_wrap=True)
        if result.variant == "kpipe":
            for loss in result.losses[:SHOWN]:
                console.print(f"LOST: {result.fault}: {loss}", markup=False, style="bold red", soft_wrap=True)
            if (more := len(result.losses) - SHOWN) > 0:
                console.print(f"LOST: {result.fault}: {more} more", style="bold red")


def show_costs(console: Console, rows: list[dict]) -> None:
    table = Table(title="What a commit costs (one an epoch)")
    for column in ("network", "variant", "ms", "bytes", "share of the training time"):
        table.add_column(column, justify="left" if column in ("network", "variant") else "right")
    found = {(row["work"], row["variant"]): row for row in rows}
    for name in COSTS:
        epoch = found[f"epoch of {name}", "kpipe"]["wall_seconds"]
        for variant in ("fsync", "no_fsync"):
            row = found[f"commit of {name}", variant]
            share = row["wall_seconds"] / (row["wall_seconds"] + epoch)
            milliseconds = f"{1000 * row['wall_seconds']:.1f}"
            words = {"fsync": "with fsync", "no_fsync": "without fsync"}
            table.add_row(name, words[variant], milliseconds, f"{row['bytes']:,}", f"{100 * share:.1f} %")
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    names = [fault.name for fault in FAULTS] + ["costs"]
    parser = argparse.ArgumentParser(description="Breaks trainings on purpose and counts what survives.")
    parser.add_argument("--quick", action="store_true", help="a few of each, within two minutes")
    parser.add_argument("--json", metavar="FILE", help="the same as raw numbers")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--seed", type=int, default=0, help="of all random moments and places")
    parser.add_argument("--jobs", type=int, default=2, help="faults at work at the same time")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    with hold_back_libraries():
        return run(options, Console(highlight=False, width=None if sys.stdout.isatty() else 120))


def run(options: argparse.Namespace, console: Console) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    tf.get_logger().setLevel("ERROR")
    chosen = [fault for fault in FAULTS if fault.name in options.only]
    with tempfile.TemporaryDirectory(prefix="kpipe-faults-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        (root / "tmp").mkdir()
        os.environ["TMPDIR"] = str(root / "tmp")  # where killed processes leave TensorFlow's temporary files
        results = run_faults(chosen, root, options, console)
        costs = []
        if "costs" in options.only:
            site = Site(root / "costs", random.Random(options.seed), options.quick)
            try:
                costs = measure_costs(site)
            finally:
                site.end_children()
    show_faults(console, results)
    if costs:
        show_costs(console, costs)
    if options.json:
        write_json(options.json, [result.row for result in results] + costs)
    return int(any(result.losses for result in results if result.variant == "kpipe"))


if __name__ == "__main__":
    sys.exit(main())
