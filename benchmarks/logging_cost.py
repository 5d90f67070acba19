"""What it costs to log a run: whole runs with and without TensorBoard, its images, histograms and statistics.

    python benchmarks/logging_cost.py [--repetitions N] [--quick] [--json FILE]

Each measurement is a `kpipe run` in a process of its own, from its start to its end; the variants take turns. `--json`
writes `{"date", "hardware", "versions", "rows"}` with medians.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import median_row, write_json
from rich.console import Console
from rich.table import Table

QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
EPOCHS = (20, 100)
IMAGES = 1280  # of an epoch of the quickstart
VARIANTS = {
    "nothing": ("logging.tensorboard=false",),
    "without images": ("logging.images=false",),
    "default": (),
    "on request": ("logging.histograms.epochs=5", "logging.layer_statistics.steps=500"),
}


def measure(repetitions: int, lengths: tuple[int, ...]) -> list[dict]:
    """Measure every variant of every length in turn; return a row of each.

    Args:
        repetitions: measurements of each variant.
        lengths: epochs of the runs.
    """
    times: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for _ in range(repetitions):
        for epochs in lengths:
            for variant, overrides in VARIANTS.items():
                seconds = time_run(f"training.epochs={epochs}", *overrides)
                times.setdefault((epochs, variant), []).append(seconds)
    return [
        median_row(f"{epochs} epochs", variant, epochs * IMAGES, seconds)
        for (epochs, variant), seconds in times.items()
    ]


def time_run(*overrides: str) -> tuple[float, float]:
    """Return the CPU and wall seconds of a run of the quickstart."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kpipe.run", str(QUICKSTART), *overrides]
        before, start = children_seconds(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"KPIPE_LOGS": folder})
        return children_seconds() - before, time.perf_counter() - start


def children_seconds() -> float:
    """Return the CPU seconds of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def show(console: Console, rows: list[dict]) -> None:
    table = Table("work", "logged", "CPU s", "wall s", "more CPU than nothing")
    least = {row["work"]: row["cpu_seconds"] for row in rows if row["variant"] == "nothing"}
    for row in rows:
        more = row["cpu_seconds"] / least[row["work"]] - 1
        seconds = [f"{row[key]:.2f}" for key in ("cpu_seconds", "wall_seconds")]
        table.add_row(row["work"], row["variant"], *seconds, f"{more:+.1%}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the short runs once")
    parser.add_argument("--json", help="file for the raw numbers")
    arguments = parser.parse_args()
    rows = measure(1, EPOCHS[:1]) if arguments.quick else measure(arguments.repetitions, EPOCHS)
    show(Console(), rows)
    if arguments.json:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    main()
