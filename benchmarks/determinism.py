"""What the same bits in every run cost: steps of training with and without TensorFlow's deterministic operations.

    python benchmarks/determinism.py [--repetitions N] [--quick] [--json FILE]

Each measurement has a process of its own, since the setting holds for a whole process; the variants take turns. A
process trains as many steps to warm up as it then measures. `--json` writes `{"date", "hardware", "versions", "rows"}`
with medians.
"""

import argparse
import multiprocessing
from pathlib import Path

from report import clock, median_row, write_json
from rich.console import Console
from rich.table import Table

from kpipe.config import load_experiment
from kpipe.streams import hold_back_libraries

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STEPS = {"quickstart.yaml": 800, "alexnet.yaml": 40, "vgg16.yaml": 40}
"""How many steps of each experiment are measured."""
VARIANTS = {"deterministic": True, "free": False}


def measure(repetitions: int, shortened: int) -> list[dict]:
    """Measure every variant of every experiment in turn; return a row of each.

    Args:
        repetitions: measurements of each variant.
        shortened: by how many times less than `STEPS` is trained.
    """
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    images: dict[str, int] = {}
    for _ in range(repetitions):
        for name, steps in STEPS.items():
            for variant, deterministic in VARIANTS.items():
                images[name], seconds = measure_in_process(name, deterministic, steps // shortened)
                times.setdefault((name, variant), []).append(seconds)
    return [median_row(name, variant, images[name], seconds) for (name, variant), seconds in times.items()]


def measure_in_process(name: str, deterministic: bool, steps: int) -> tuple[int, tuple[float, float]]:
    """Return the images in `steps` steps of an experiment, and the CPU and wall seconds that these steps take."""
    forks = multiprocessing.get_context("forkserver")
    pipe, child_pipe = forks.Pipe()
    process = forks.Process(target=train_and_send, args=(child_pipe, name, deterministic, steps))
    process.start()
    child_pipe.close()
    answer = pipe.recv()
    process.join()
    return answer


def train_and_send(pipe, name: str, deterministic: bool, steps: int) -> None:
    with hold_back_libraries():
        from kpipe.assembly import prepare
        from kpipe.runs.machine import resolve_auto
        from kpipe.training.device import seed_everything
        from kpipe.training.distribution import make_strategy
        from kpipe.training.trainer import Trainer

        overrides = ["training.precision=float32", "training.epochs=1000"]  # more than will be trained
        overrides.append(f"training.deterministic={str(deterministic).lower()}")
        experiment = resolve_auto(load_experiment(EXPERIMENTS / name, overrides).experiment)
        seed_everything(experiment.seed, deterministic=experiment.chosen.deterministic)
        prepared = prepare(experiment, make_strategy())
        trainer = Trainer(prepared.model)
        batches = iter(prepared.training_batches(0))
        trainer.run_steps(batches, steps)
        seconds = clock(lambda: trainer.run_steps(batches, steps))
        pipe.send((steps * experiment.data.batch_size, seconds))


def show(console: Console, rows: list[dict]) -> None:
    table = Table("work", "images", "CPU s", "CPU s, free", "wall s", "wall s, free", "cost")
    for deterministic, free in zip(rows[::2], rows[1::2], strict=True):
        seconds = [f"{row[key]:.2f}" for key in ("cpu_seconds", "wall_seconds") for row in (deterministic, free)]
        cost = deterministic["cpu_seconds"] / free["cpu_seconds"] - 1
        table.add_row(deterministic["work"], f"{deterministic['items']:,}", *seconds, f"{100 * cost:+.1f} %")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repetition of a tenth of the steps")
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    options = parser.parse_args()
    rows = measure(1, 10) if options.quick else measure(options.repetitions, 1)
    show(Console(), rows)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
