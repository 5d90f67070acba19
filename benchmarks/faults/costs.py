"""What a commit costs: its time with and without fsync, beside the time of the training between two commits.

By default a run commits once an epoch, so the fraction of the time that commits take is commit / (commit + epoch).
"""

import os
from functools import partial
from pathlib import Path
from unittest import mock

from processes import Sandbox
from report import clock, median_row

from kpipe.assembly import Prepared, prepare
from kpipe.config import load_experiment
from kpipe.runs.machine import resolve_auto
from kpipe.runs.state import RunState
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.device import seed_everything
from kpipe.training.distribution import make_strategy
from kpipe.training.trainer import Trainer

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
COSTS = {"LeNet-5": EXPERIMENTS / "quickstart.yaml", "VGG-16": EXPERIMENTS / "vgg16.yaml"}

Times = list[tuple[float, float]]
"""CPU seconds and wall seconds of each measurement."""


def measure_costs(sandbox: Sandbox) -> list[dict]:
    """Measure each experiment in a process of its own; return three rows of each: epoch, commit, commit without fsync.

    A row is {"work", "variant", "items", "cpu_seconds", "wall_seconds", "bytes"}.
    """
    rows = []
    for name, file in COSTS.items():
        child = sandbox.fork(measure_experiment, name, str(file), sandbox.make_folder("cost"), sandbox.quick)
        rows += child.receive(600)
        child.exit_code()
    return rows


def measure_experiment(pipe, name: str, file: str, folder: Path, quick: bool) -> None:
    experiment = resolve_auto(load_experiment(file, ["training.epochs=100"]).experiment)  # more than will be trained
    seed_everything(experiment.seed, deterministic=experiment.chosen.deterministic)
    prepared = prepare(experiment, make_strategy())
    trainer = Trainer(prepared.model)
    images = prepared.steps_per_epoch * experiment.data.batch_size
    epochs = measure_epochs(prepared, trainer, quick)
    commits, size = measure_commits(prepared, folder / "checkpoints", 3 if quick else 20)
    rows = [median_row(f"epoch of {name}", "kpipe", images, epochs) | {"bytes": 0}]
    for variant, times in commits.items():
        rows.append(median_row(f"commit of {name}", variant, 1, times) | {"bytes": size})
    pipe.send(rows)


def measure_epochs(prepared: Prepared, trainer: Trainer, quick: bool) -> Times:
    """Return CPU and wall seconds of three epochs; if `quick`, of one that is estimated from ten steps."""
    iterator = iter(prepared.training_batches(0))
    trainer.run_steps(iterator, 1)  # traces
    steps = min(10, prepared.steps_per_epoch) if quick else prepared.steps_per_epoch
    scale = prepared.steps_per_epoch / steps
    times = [clock(lambda: trainer.run_steps(iterator, steps)) for _ in range(1 if quick else 3)]
    return [(cpu * scale, wall * scale) for cpu, wall in times]


def measure_commits(prepared: Prepared, folder: Path, count: int) -> tuple[dict[str, Times], int]:
    """Commit with and without fsync by turns; return CPU and wall seconds of `count` commits each, and their bytes."""
    checkpoints = Checkpoints(folder)
    state = RunState().to_dict()
    times: dict[str, Times] = {"fsync": [], "no_fsync": []}
    for step, variant in enumerate(list(times) * (count + 1), start=1):
        commit = partial(checkpoints.commit, prepared.model, state, step=step, best_steps=[step], logs={})
        fsync = os.fsync if variant == "fsync" else lambda descriptor: None
        with mock.patch.object(os, "fsync", fsync):
            times[variant].append(clock(commit))
    size = sum(file.stat().st_size for file in checkpoints.latest.iterdir())
    # The first commits find no old checkpoint to remove.
    return {variant: found[1:] for variant, found in times.items()}, size
