"""What it costs to reach 99 % on the test images of MNIST: a run of kpipe, and an ordinary script with Keras.

    python benchmarks/time_to_accuracy.py [--data-dir DIR] [--seeds N] [--quick] [--json FILE]

Both train LeNet-5, in a process of its own for each seed, by turns. kpipe runs
`experiments/reproduce/lenet5_mnist_fast.yaml` to its end. The script, `benchmarks/mnist_keras.py`, ends with the first
epoch after which the test accuracy is high enough. `--json` writes `{"date", "hardware", "versions", "rows"}` with
medians, and beside them what each seed took.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from report import median_row, write_json
from rich.console import Console
from rich.table import Table

TARGET = 0.99
EXPERIMENT = Path(__file__).parents[1] / "experiments" / "reproduce" / "lenet5_mnist_fast.yaml"
SCRIPT = Path(__file__).with_name("mnist_keras.py")
MOST_EPOCHS = 60  # of the script
QUICK_EPOCHS = 3
IMAGES = 60_000  # of an epoch
TARGETS = {"epochs": "3, better 2", "times": "8"}


@dataclass(frozen=True)
class Measurement:
    """What one training took, from the start of its process to its end, and how good it was."""

    epochs: int
    accuracy: float
    cpu_seconds: float
    wall_seconds: float
    training_cpu_seconds: float
    training_wall_seconds: float


# --- measuring --------------------------------------------------------------------------------------------------------


def run_kpipe(seed: int, epochs: int) -> Measurement:
    """Run the experiment, whatever the script's most epochs are."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "kpipe.run", str(EXPERIMENT), f"seed={seed}", f"logs={folder}"]
        seconds, _ = watch(command, begin="compiling the training step", end="evaluating the test split")
        [path] = Path(folder).glob("*/*/summary.json")
        summary = json.loads(path.read_text())
    return Measurement(summary["epochs"], summary["test"]["accuracy"], *seconds)


def run_keras(seed: int, epochs: int) -> Measurement:
    command = [str(SCRIPT), f"--target={TARGET}", f"--epochs={epochs}", f"--seed={seed}"]
    seconds, last = watch(command, begin="Epoch 1/", end='{"epochs"')
    return Measurement(**json.loads(last), **dict(zip(SECONDS, seconds, strict=True)))


SECONDS = ("cpu_seconds", "wall_seconds", "training_cpu_seconds", "training_wall_seconds")
VARIANTS = {"kpipe": run_kpipe, "keras": run_keras}


def watch(command: list[str], *, begin: str, end: str) -> tuple[tuple[float, ...], str]:
    """Run Python, and note the time at which it prints two lines.

    Args:
        command: arguments of Python.
        begin, end: how the lines begin between which it trains.

    Returns:
        CPU and wall seconds of the whole process, and those between the lines; and the line at the end.
    """
    start, marks = time.perf_counter(), {}
    process = psutil.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for line in process.stdout:
        for mark in (begin, end):
            if line.startswith(mark) and mark not in marks:
                times = process.cpu_times()
                marks[mark] = times.user + times.system, time.perf_counter(), line
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status or len(marks) < 2:
        raise RuntimeError(
            f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}, after {sorted(marks)}"
        )
    (cpu_begin, wall_begin, _), (cpu_end, wall_end, line) = marks[begin], marks[end]
    whole = usage.ru_utime + usage.ru_stime, wall
    return (*whole, cpu_end - cpu_begin, wall_end - wall_begin), line


def measure(seeds: int, epochs: int, console: Console) -> dict[str, list[Measurement]]:
    """Return what each variant took with each seed, by its name."""
    measurements = {variant: [] for variant in VARIANTS}
    for seed in range(seeds):
        for variant, run in VARIANTS.items():
            found = run(seed, epochs)
            measurements[variant].append(found)
            console.print(
                f"{variant}, seed {seed}: {found.accuracy:.2%} after {found.epochs} epochs, {found.cpu_seconds:.1f} s"
            )
    return measurements


def make_row(variant: str, found: list[Measurement]) -> dict:
    times = [(each.cpu_seconds, each.wall_seconds) for each in found]
    items = round(IMAGES * statistics.mean(each.epochs for each in found))
    return median_row("lenet5", variant, items, times) | {"seeds": [asdict(each) for each in found]}


# --- the table --------------------------------------------------------------------------------------------------------


def show(console: Console, measurements: dict[str, list[Measurement]]) -> None:
    columns = ("epochs", "accuracy", f"seeds at {TARGET:.1%}", "CPU s", "wall s", "CPU s, training", "wall s, training")
    table = Table("variant", title="LeNet-5 on MNIST, means over the seeds")
    for column in (*columns, "times CPU", "times CPU, training"):
        table.add_column(column, justify="right")
    base = {key: mean_of(measurements["kpipe"], key) for key in SECONDS}
    for variant, found in measurements.items():
        seconds = {key: mean_of(found, key) for key in SECONDS}
        times = [f"{seconds[key] / base[key]:.1f}" for key in SECONDS[::2]] if variant != "kpipe" else ["", ""]
        reached = sum(each.accuracy >= TARGET for each in found)
        table.add_row(
            variant,
            f"{mean_of(found, 'epochs'):.1f}",
            f"{mean_of(found, 'accuracy'):.2%}",
            f"{reached} of {len(found)}",
            *(f"{value:.1f}" for value in seconds.values()),
            *times,
        )
    table.caption = f"Targets for kpipe: {TARGETS['epochs']} epochs, {TARGETS['times']} times less CPU."
    console.print(table)


def mean_of(found: list[Measurement], key: str) -> float:
    return statistics.mean(getattr(each, key) for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", metavar="DIR", help="folder of TensorFlow Datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help=f"one seed, and Keras for {QUICK_EPOCHS} epochs at most")
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    options = parser.parse_args()
    if options.data_dir:
        os.environ["TFDS_DATA_DIR"] = options.data_dir
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    seeds, epochs = (1, QUICK_EPOCHS) if options.quick else (options.seeds, MOST_EPOCHS)
    measurements = measure(seeds, epochs, console)
    show(console, measurements)
    if options.json:
        rows = [make_row(variant, found) for variant, found in measurements.items()]
        write_json(options.json, rows, "tensorflow-datasets")


if __name__ == "__main__":
    main()
