"""What the same bits in every run cost: steps of training with and without TensorFlow's deterministic operations.

    python benchmarks/determinism.py [--repetitions N] [--quick] [--json FILE]

Each measurement has a process of its own, since the setting holds for a whole process; the variants take turns. A
process trains one stretch of steps to warm up and then measures another of the same length. `--json` writes
`{"date", "hardware", "versions", "rows"}` with medians.
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

from report import write_json
from rich.console import Console
from rich.table import Table

from kpipe.config import load_experiment
from kpipe.console import hold_back_libraries

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WORKS = {"quickstart.yaml": 800, "alexnet.yaml": 40, "vgg16.yaml": 40}
"""Experiment: steps that are measured."""


def measure(pipe, name: str, deterministic: bool, steps: int) -> None:
    """Sends (items, CPU seconds, wall seconds) of `steps` steps."""
    with hold_back_libraries():
        from kpipe.experiment import prepare, seed_everything
        from kpipe.training.trainer import Trainer

        overrides = ["training.precision=float32", "training.epochs=1000"]
        experiment = load_experiment(EXPERIMENTS / name, overrides).experiment
        seed_everything(experiment.seed, deterministic)
        prepared = prepare(experiment)
        trainer = Trainer(prepared.model)
        batches = iter(prepared.batches_from(0))
        trainer.run_steps(batches, steps)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.run_steps(batches, steps)
        pipe.send((steps * experiment.data.batch_size, time.process_time() - cpu, time.perf_counter() - wall))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repetition of a tenth of the steps")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    forks = multiprocessing.get_context("forkserver")
    found: dict[tuple[str, bool], list[tuple]] = {}
    for _ in range(1 if options.quick else options.repetitions):
        for name, steps in WORKS.items():
            for deterministic in (True, False):
                pipe, end = forks.Pipe()
                arguments = (end, name, deterministic, steps // 10 if options.quick else steps)
                process = forks.Process(target=measure, args=arguments)
                process.start()
                end.close()
                found.setdefault((name, deterministic), []).append(pipe.recv())
                process.join()
    rows = [
        {
            "work": name,
            "variant": "deterministic" if deterministic else "free",
            "items": times[0][0],
            "cpu_seconds": statistics.median(cpu for _, cpu, _ in times),
            "wall_seconds": statistics.median(wall for _, _, wall in times),
        }
        for (name, deterministic), times in found.items()
    ]
    table = Table("work", "images", "CPU s", "CPU s, free", "wall s", "wall s, free", "cost")
    for with_it, without in zip(rows[::2], rows[1::2], strict=True):
        seconds = [f"{row[key]:.2f}" for key in ("cpu_seconds", "wall_seconds") for row in (with_it, without)]
        cost = with_it["cpu_seconds"] / without["cpu_seconds"] - 1
        table.add_row(with_it["work"], f"{with_it['items']:,}", *seconds, f"{100 * cost:+.1f} %")
    Console().print(table)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
