"""Break trainings on purpose and count what survives; stock Keras meets the same faults.

    python benchmarks/faults [--quick] [--json FILE] [--only NAME ...] [--seed N] [--jobs N]

Faults are real wherever possible: processes are killed and stopped, files are damaged, a disk is full. The docstring of
each fault's module says what is done and what counts as survived; whatever the benchmark did not foresee counts as
lost. The exit code is 1 if kpipe has lost anything.

`--json FILE` writes `{"date", "hardware", "versions", "rows"}`. A row is `{"fault", "variant", "tried", "survived",
"lost"}`, or, for the cost of a commit, `{"work", "variant", "items", "cpu_seconds", "wall_seconds", "bytes"}`: medians
of one commit with and without fsync, and of one epoch to compare them with.
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

from kpipe.streams import hold_back_libraries

sys.path.append(str(Path(__file__).parents[1]))  # report.py, which all benchmarks share

from report import write_json

with hold_back_libraries():  # TensorFlow has much to say when it is imported
    import tensorflow as tf
    from chains import kill_in_chains, kill_stock_in_chains
    from costs import COSTS, measure_costs
    from damage import damage_checkpoints, damage_stock
    from full_disk import fill_disk, fill_disk_of_stock
    from kills import kill_stock_while_saving, kill_while_saving
    from processes import Sandbox, stopping
    from starts import start_at_once, start_stock_at_once
    from stops import stop, stop_stock


# --- the table of faults ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """What a fault happens to.

    Attributes:
        name: in the raw numbers.
        attempts: yields for each attempt whether it was survived; gets the sandbox, and about how many to make.
        count: how many attempts are made.
        quick_count: how many with `--quick`.
    """

    name: str
    attempts: Callable[[Sandbox, int], Iterator[bool]]
    count: int
    quick_count: int


FAULTS = {
    "kills while saving": (
        Variant("kpipe", kill_while_saving, 200, 10),
        Variant("keras_backup", partial(kill_stock_while_saving, double=False), 40, 3),
        Variant("keras_backup_double", partial(kill_stock_while_saving, double=True), 40, 3),
    ),
    "chained kills of whole runs": (
        Variant("kpipe", kill_in_chains, 20, 3),
        Variant("keras_backup", kill_stock_in_chains, 20, 2),
    ),
    "signals": (
        Variant("kpipe", stop, 60, 5),
        Variant("keras_backup", stop_stock, 18, 3),
    ),
    "damaged checkpoints": (
        Variant("kpipe", damage_checkpoints, 45, 8),
        Variant("keras_backup_double", partial(damage_stock, how="backup"), 42, 6),
        Variant("keras_save", partial(damage_stock, how="weights"), 21, 6),
    ),
    "disk full": (
        Variant("kpipe", fill_disk, 15, 3),
        Variant("keras_backup", partial(fill_disk_of_stock, how="backup"), 10, 2),
        Variant("keras_save", partial(fill_disk_of_stock, how="save"), 10, 2),
    ),
    "simultaneous starts": (
        Variant("kpipe", start_at_once, 20, 2),  # rounds of several processes
        Variant("keras_backup", start_stock_at_once, 5, 1),
    ),
}
"""The variants of each fault, kpipe first."""

STOCK_NAMES = {
    "keras_backup": "BackupAndRestore",
    "keras_backup_double": "BackupAndRestore, double",
    "keras_save": "one file",
}


# --- running them -----------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What has become of one variant."""

    fault: str
    variant: str
    tried: int = 0
    survived: int = 0
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.tried - self.survived

    @property
    def row(self) -> dict:
        return {name: getattr(self, name) for name in ("fault", "variant", "tried", "survived", "lost")}


def make_sandbox(name: str, root: Path, options: argparse.Namespace) -> Sandbox:
    folder = root / re.sub(r"\W+", "-", name)
    folder.mkdir()
    return Sandbox(folder, random.Random(f"{options.seed} {name}"), options.quick)


def run_variant(fault: str, variant: Variant, sandbox: Sandbox, progress: Progress) -> Result:
    name, start = f"{fault}, {variant.name}", time.monotonic()
    count = variant.quick_count if sandbox.quick else variant.count
    result = Result(fault, variant.name, losses=sandbox.losses, notes=sandbox.notes)
    task = progress.add_task(name, total=count)
    try:
        for survived in variant.attempts(sandbox, count):
            result.tried += 1
            result.survived += survived
            progress.update(task, completed=result.tried, total=max(count, result.tried))
    finally:
        sandbox.kill_children()
    progress.update(task, total=result.tried)
    if not progress.console.is_terminal:
        seconds = time.monotonic() - start
        progress.console.print(f"{name}: {result.survived}/{result.tried} survived, {seconds:.0f} s")
    return result


def run_faults(names: Sequence[str], root: Path, options: argparse.Namespace, console: Console) -> list[Result]:
    """Run all variants of these faults, `--jobs` at a time."""
    pairs = [(name, FAULTS[name][0]) for name in names]  # kpipe's first: they take longest
    pairs += [(name, variant) for name in names for variant in FAULTS[name][1:]]
    sandboxes = [make_sandbox(f"{name}, {variant.name}", root, options) for name, variant in pairs]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        try:
            jobs = [
                pool.submit(run_variant, *pair, sandbox, progress)
                for pair, sandbox in zip(pairs, sandboxes, strict=True)
            ]
            return [job.result() for job in jobs]
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for sandbox in sandboxes:
                sandbox.kill_children()
            raise


def run_costs(root: Path, options: argparse.Namespace) -> list[dict]:
    sandbox = make_sandbox("costs", root, options)
    try:
        return measure_costs(sandbox)
    finally:
        sandbox.kill_children()


# --- showing them -----------------------------------------------------------------------------------------------------

SHOWN_LOSSES = 5  # of a fault


def show_faults(console: Console, results: list[Result]) -> None:
    table = Table(title="What survives")
    for column in ("fault", "tried", "survived", "lost", "stock Keras, survived / tried"):
        table.add_column(column, justify="right" if column in ("tried", "survived", "lost") else "left")
    for ours in (result for result in results if result.variant == "kpipe"):
        stock = [
            f"{STOCK_NAMES[result.variant]} {result.survived}/{result.tried}"
            for result in results
            if result.fault == ours.fault and result.variant != "kpipe"
        ]
        table.add_row(ours.fault, f"{ours.tried}", f"{ours.survived}", f"{ours.lost}", "\n".join(stock))
    console.print(table)
    for result in results:
        for note in result.notes:
            console.print(f"{result.fault}, {result.variant}: {note}", markup=False, soft_wrap=True)
        if result.variant == "kpipe":
            for loss in result.losses[:SHOWN_LOSSES]:
                console.print(f"LOST: {result.fault}: {loss}", markup=False, style="bold red", soft_wrap=True)
            if (more := len(result.losses) - SHOWN_LOSSES) > 0:
                console.print(f"LOST: {result.fault}: {more} more", style="bold red")


def show_costs(console: Console, rows: list[dict]) -> None:
    table = Table(title="What a commit costs (one an epoch)")
    for column in ("network", "variant", "ms", "bytes", "fraction of the training time"):
        table.add_column(column, justify="left" if column in ("network", "variant") else "right")
    by_name = {(row["work"], row["variant"]): row for row in rows}
    for network in COSTS:
        epoch = by_name[f"epoch of {network}", "kpipe"]["wall_seconds"]
        for variant, words in (("fsync", "with fsync"), ("no_fsync", "without fsync")):
            row = by_name[f"commit of {network}", variant]
            commit = row["wall_seconds"]
            fraction = f"{100 * commit / (commit + epoch):.1f} %"
            table.add_row(network, words, f"{1000 * commit:.1f}", f"{row['bytes']:,}", fraction)
    console.print(table)


# --- the program ------------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    names = [*FAULTS, "costs"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few of each, within two minutes")
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--seed", type=int, default=0, help="for all random moments and places")
    parser.add_argument("--jobs", type=int, default=2, help="how many variants run at the same time")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    with hold_back_libraries():
        return run(options, Console(highlight=False, width=None if sys.stdout.isatty() else 120))


def run(options: argparse.Namespace, console: Console) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    tf.get_logger().setLevel("ERROR")
    names = [name for name in FAULTS if name in options.only]
    with tempfile.TemporaryDirectory(prefix="kpipe-faults-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        (root / "tmp").mkdir()
        os.environ["TMPDIR"] = str(root / "tmp")  # where killed processes leave TensorFlow's temporary files
        results = run_faults(names, root, options, console)
        costs = run_costs(root, options) if "costs" in options.only else []
    show_faults(console, results)
    if costs:
        show_costs(console, costs)
    if options.json:
        write_json(options.json, [result.row for result in results] + costs)
    return int(any(result.losses for result in results if result.variant == "kpipe"))


if __name__ == "__main__":
    sys.exit(main())
