"""Fault: a whole training is killed at random times, and started again until one start reaches the end.

The networks are LeNet-5 and AlexNet (which has dropout), both with random augmentations, each in float32 and in
mixed_bfloat16. A chain is one training with all its kills; every kill of a chain survives or is lost with the chain.

kpipe (`python -m kpipe.run`) survives if each restart says from which committed step it resumes; if it repeats no more
steps than lie between two saves; and if at the end the weights in model.keras and all of the last checkpoint are
bit-identical to those of a run that nothing happened to, metrics.jsonl is equal but for its times, and TensorBoard
shows the same steps, each once.

Stock Keras (`fit` with BackupAndRestore, which saves as often) survives if at the end its weights are bit-identical to
those of its own undisturbed training.
"""

import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from expectations import expect
from processes import Child, Sandbox
from run_files import committed_step, compare_runs, read_arrays
from runs import ALEXNET, LENET, Experiment, is_finished, launch_kpipe, list_runs, only_run, undisturbed_run
from stock import fit_stock

MOST_KILLS = 6  # of one chain


def choose_experiments(sandbox: Sandbox) -> list[Experiment]:
    if sandbox.quick:
        return [replace(LENET, epochs=10)]
    return [
        replace(experiment, name=f"{experiment.name}-{precision}", precision=precision)
        for precision in ("float32", "mixed_bfloat16")
        for experiment in (LENET, ALEXNET)
    ]


def start_until_finished(
    sandbox: Sandbox,
    start: Callable[[], Child],
    trains: Callable[[Child], bool],
    seconds: float,
    most_kills: int,
) -> Iterator[tuple[Child, bool]]:
    """Start a training again and again, and kill it at random moments.

    Args:
        sandbox: where this happens.
        start: starts, or restarts, the training.
        trains: whether a child has begun to train.
        seconds: how long the whole training takes.
        most_kills: after so many, a start is left to reach the end.

    Yields:
        Each child once it has ended, and whether it was killed; the last one has ended by itself.
    """
    kills = 0
    while True:
        child = start()
        code = child.exit_code() if kills == most_kills else kill_or_wait(sandbox, child, trains, seconds)
        killed = code is None
        if killed:
            expect(kills < most_kills, "the last start does not end")
            kills += 1
        yield child, killed
        if not killed:
            expect(code == 0, f"ended with {code}: {child.stderr[-600:]}")
            return


def kill_or_wait(sandbox: Sandbox, child: Child, trains: Callable[[Child], bool], seconds: float) -> int | None:
    """Kill the child at a random moment, every fourth time during start-up; return its exit code if it ended before."""
    if sandbox.random.random() < 0.25:
        code = child.exit_code(sandbox.random.uniform(0.3, 4))
    else:
        while not trains(child) and child.exit_code(0) is None:
            time.sleep(0.02)
        code = child.exit_code(sandbox.random.uniform(0, 0.6 * seconds))
    if code is None:
        child.kill()
    return code


# --- kpipe ------------------------------------------------------------------------------------------------------------


def kill_in_chains(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Run chains until there were `count` kills; yield whether each was survived."""
    repeated: list[int] = []
    for experiment in itertools.cycle(choose_experiments(sandbox)):
        chain = Chain(sandbox, experiment, undisturbed_run(sandbox, experiment), min(count, MOST_KILLS))
        survived = sandbox.survives(chain.run)
        repeated += chain.repeated
        yield from itertools.repeat(survived, chain.kills)
        count -= chain.kills
        if count <= 0:
            break
    if repeated:
        sandbox.notes.append(
            f"steps repeated after a kill: median {statistics.median(repeated):.0f}, at most {max(repeated)}, "
            f"saved every {LENET.save_every} (LeNet-5) or {ALEXNET.save_every} (AlexNet)"
        )


@dataclass
class Chain:
    """One run of kpipe that is killed up to `most_kills` times.

    Attributes:
        kills: how often it was killed.
        repeated: how many steps each restart has repeated.
    """

    sandbox: Sandbox
    experiment: Experiment
    undisturbed: Path
    most_kills: int
    kills: int = 0
    repeated: list[int] = field(default_factory=list)

    def run(self) -> None:
        """Train to the end; Lost if anything is not as promised."""
        logs = self.sandbox.make_folder("logs")
        start = partial(launch_kpipe, self.sandbox, self.experiment.write(logs), logs)
        seconds = json.loads((self.undisturbed / "summary.json").read_text())["seconds"]
        committed, reached = None, 0
        for child, killed in start_until_finished(self.sandbox, start, has_trained, seconds, self.most_kills):
            self.kills += killed
            self.check_beginning(child.stdout, committed, reached)
            committed, reached = find_last_steps(logs)
            if killed and any(map(is_finished, list_runs(logs))):  # nothing was left to do but to exit
                compare_runs(only_run(logs), self.undisturbed, tidy=False)
                return
        compare_runs(only_run(logs), self.undisturbed)

    def check_beginning(self, output: str, committed: int | None, reached: int) -> None:
        """Expect that a start has resumed from the committed step, once it has said so."""
        if "run   " not in output:  # killed before
            return
        match = re.search(r"resumed +after step ([\d,]+)", output)
        resumed = int(match[1].replace(",", "")) if match else None
        expect(resumed == committed, f"resumed after step {resumed}, {committed} was committed")
        repeats = reached - (committed or 0)
        expect(repeats <= self.experiment.save_every, f"{repeats} steps were repeated")
        if reached:
            self.repeated.append(repeats)


def has_trained(child: Child) -> bool:
    return re.search("^(step|epoch) ", child.stdout, re.M) is not None


def find_last_steps(logs: Path) -> tuple[int | None, int]:
    """Return the committed step, and the last step in metrics.jsonl."""
    runs = list_runs(logs)
    if not runs:
        return None, 0
    log = runs[-1] / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return committed_step(runs[-1]), json.loads(lines[-1])["step"] if lines else 0


# --- stock Keras ------------------------------------------------------------------------------------------------------


def kill_stock_in_chains(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Run chains of `fit` until there were `count` kills; yield whether each was survived."""
    for experiment in itertools.cycle(choose_experiments(sandbox)):
        chain = StockChain(sandbox, experiment, *train_stock_undisturbed(sandbox, experiment), min(count, MOST_KILLS))
        survived = sandbox.survives(chain.run)
        yield from itertools.repeat(survived, chain.kills)
        count -= chain.kills
        if count <= 0:
            break


def train_stock_undisturbed(sandbox: Sandbox, experiment: Experiment) -> tuple[Path, float]:
    """Return the folder of a training that nothing happens to, and the seconds from its first step to its end."""
    folder = sandbox.make_folder("undisturbed")
    child = sandbox.fork(fit_stock, experiment.write(folder), folder)
    child.receive()
    start = time.monotonic()
    expect(child.exit_code() == 0, "fit does not run undisturbed")
    return folder, time.monotonic() - start


@dataclass
class StockChain:
    """One training by `fit` that is killed up to `most_kills` times; `seconds` is how long the undisturbed one took."""

    sandbox: Sandbox
    experiment: Experiment
    undisturbed: Path
    seconds: float
    most_kills: int
    kills: int = 0

    def run(self) -> None:
        """Train to the end; Lost if the weights differ from the undisturbed ones."""
        folder = self.sandbox.make_folder("fit")
        start = partial(self.sandbox.fork, fit_stock, self.experiment.write(folder), folder)
        for _, killed in start_until_finished(self.sandbox, start, has_sent, self.seconds, self.most_kills):
            self.kills += killed
        same = read_arrays(folder / "end.npz") == read_arrays(self.undisturbed / "end.npz")
        expect(same, "the weights differ")


def has_sent(child: Child) -> bool:
    return child.pipe.poll(0)
