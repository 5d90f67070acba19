"""How long `kpipe results` takes to list thousands of runs.

    python benchmarks/results.py [--repetitions N] [--quick] [--json FILE]

The runs are made up: directories with the files that a finished run leaves, each with a seed and a learning rate of its
own. Each measurement is a process of its own, from its start to its end. `--json` writes `{"date", "hardware",
"versions", "rows"}` with medians.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import median_row, write_json
from rich.console import Console
from rich.table import Table

from kpipe.config import load_experiment
from kpipe.files import to_yaml

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "vgg16.yaml"
NUMBERS = 1_000, 10_000
"""How many runs are listed."""
VARIANTS = {"screen": [], "single runs": ["--runs"], "csv": ["--csv"], "filter": ["--filter", "status=diverged"]}


def make_runs(logs: Path, number: int) -> None:
    """Write the directories of runs that differ in seed, peak of the learning rate and accuracy."""
    experiment = load_experiment(EXPERIMENT, ["training.learning_rate.peak=0.12345"]).experiment
    config = to_yaml(experiment.identity() | {"chosen": {"precision": "float32", "deterministic": True}})
    summary = {"status": "finished", "parameters": 134_000_000, "epochs": 2, "seconds": 54.2, "images_per_second": 70.1}
    for place in range(number):
        path = logs / "vgg16" / f"2026-11-29_{place // 3600 % 24:02}-{place // 60 % 60:02}-{place % 60:02}_{place}"
        path.mkdir(parents=True)
        own = config.replace("seed: 0", f"seed: {place % 5}").replace("0.12345", str(0.001 * (1 + place // 5)))
        metrics = {"loss": 0.5, "accuracy": 0.9 + place / number / 10, "images": 1000}
        (path / "config.yaml").write_text(own)
        (path / "summary.json").write_text(json.dumps(summary | {"validation": metrics, "test": metrics}, indent=2))
        (path / "environment.json").write_text(json.dumps({"git": {"commit": "0" * 40, "dirty": False}}, indent=2))


def measure(logs: Path, options: list[str]) -> tuple[float, float]:
    """Return the CPU and wall seconds of one process that lists the runs."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "kpipe", "results", str(logs), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repetition, 1,000 runs only")
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    options = parser.parse_args()
    rows = []
    for number in NUMBERS[:1] if options.quick else NUMBERS:
        with tempfile.TemporaryDirectory() as folder:
            make_runs(Path(folder), number)
            times = {variant: [] for variant in VARIANTS}
            for _ in range(1 if options.quick else options.repetitions):
                for variant, arguments in VARIANTS.items():
                    times[variant].append(measure(Path(folder), arguments))
        rows += [median_row("results", variant, number, seconds) for variant, seconds in times.items()]
    table = Table("runs", "variant", "CPU s", "wall s")
    for row in rows:
        table.add_row(f"{row['items']:,}", row["variant"], f"{row['cpu_seconds']:.2f}", f"{row['wall_seconds']:.2f}")
    Console().print(table)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
