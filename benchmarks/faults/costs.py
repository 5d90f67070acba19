"""The cost of a commit."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from processes import Site

import kpipe.experiment
from kpipe.config import load_experiment
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


COSTS = {"LeNet-5": ROOT / "experiments" / "quickstart.yaml", "VGG-16": ROOT / "experiments" / "vgg16.yaml"}


def measure_costs(site: Site) -> list[dict]:
    """Of each experiment: a commit with and without fsync, by turns, and the training between two commits."""
    rows = []
    for name, path in COSTS.items():
        commits, epochs = (3, 1) if site.quick else (20, 3)
        child = site.fork(measure_commits, name, str(path), site.new("cost"), commits, epochs)
        rows += child.receive(600)
        child.exit_code()
    return rows


def measure_commits(pipe, name: str, path: str, folder: Path, commits: int, epochs: int) -> None:
    """By default a run commits once an epoch: the share of the time is commit / (commit + epoch)."""
    experiment = load_experiment(path, ["training.epochs=100"]).experiment  # more than will be done
    kpipe.experiment.seed_everything(experiment.seed, kpipe.experiment.choose(experiment).deterministic)
    prepared = kpipe.experiment.prepare(experiment)
    trainer, checkpoints = Trainer(prepared.model), Checkpoints(folder / "checkpoints")
    iterator = iter(prepared.batches_from(0))
    trainer.run_steps(iterator, 1)
    steps = prepared.steps_per_epoch if epochs > 1 else min(10, prepared.steps_per_epoch)
    times = [timed(lambda: trainer.run_steps(iterator, steps)) for _ in range(epochs if epochs > 1 else 1)]
    scale = prepared.steps_per_epoch / steps
    images = prepared.steps_per_epoch * experiment.data.batch_size
    rows = [cost_row(f"epoch of {name}", "kpipe", images, [(cpu * scale, wall * scale) for cpu, wall in times], 0)]
    fsync, by_variant = os.fsync, {"fsync": [], "no_fsync": []}
    for step, variant in enumerate(list(by_variant) * (commits + 1), start=1):
        os.fsync = fsync if variant == "fsync" else lambda descriptor: None
        state = kpipe.experiment.Progress().to_dict()
        commit = partial(checkpoints.commit, prepared.model, state, step=step, best_step=step, logs={})
        by_variant[variant].append(timed(commit))
    os.fsync = fsync
    size = sum(file.stat().st_size for file in checkpoints.latest.iterdir())
    for variant, found in by_variant.items():
        rows.append(cost_row(f"commit of {name}", variant, 1, found[1:], size))  # the first finds nothing to remove
    pipe.send(rows)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the CPU and of the wall clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def cost_row(work: str, variant: str, items: int, times: list[tuple[float, float]], size: int) -> dict:
    cpu, wall = (round(statistics.median(column), 6) for column in zip(*times, strict=True))
    return {"work": work, "variant": variant, "items": items, "cpu_seconds": cpu, "wall_seconds": wall, "bytes": size}
