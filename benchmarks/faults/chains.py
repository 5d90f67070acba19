"""Chained kills of whole runs."""

import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from processes import Child, Site, expect
from run_files import arrays_of, compare_runs, is_finished, pointed_step
from runs import ALEXNET, LENET, PRECISIONS, Plan, only_run, reference, runs_in
from stock import fit_stock


def chained_kills(site: Site, count: int) -> Iterator[bool]:
    """Whole processes, `python -m kpipe.run`, are killed at random times and started again until one reaches the end.

    Two networks, one with dropout, both with augmentations that draw, each in two precisions. Every kill of a chain
    counts as survived if: each restart says from which committed step it goes on, and repeats no more steps than lie
    between two saves; at the end the weights in model.keras and all of the last checkpoint are bit-identical to those
    of the undisturbed run, metrics.jsonl is equal but for its times, and TensorBoard has the same steps, increasing.
    """
    repeated: list[int] = []
    for plan in itertools.cycle(_chain_plans(site)):
        kills: list[int] = []
        survived = site.survives(Chain(site, plan, reference(site, plan), min(count, 6), kills, repeated).run)
        yield from itertools.repeat(survived, len(kills))
        count -= len(kills)
        if count <= 0:
            break
    site.notes.append(
        f"steps repeated after a kill: median {statistics.median(repeated):.0f}, at most {max(repeated)}, "
        f"saved every {LENET.save_every} (LeNet-5) or {ALEXNET.save_every} (AlexNet)"
    )


def _chain_plans(site: Site) -> list[Plan]:
    if site.quick:
        return [replace(LENET, epochs=10)]
    chosen = itertools.product(PRECISIONS, (LENET, ALEXNET))
    return [replace(plan, name=f"{plan.name}-{precision}", precision=precision) for precision, plan in chosen]


def ended_or_killed(site: Site, child: Child, trains: Callable[[], bool], seconds: float) -> int | None:
    """Kills at a random time, every fourth while it starts up, and returns None; the exit code if it ended before."""
    if site.random.random() < 0.25:
        code = child.exit_code(site.random.uniform(0.3, 4))
    else:
        while not trains() and child.exit_code(0) is None:
            time.sleep(0.02)
        code = child.exit_code(site.random.uniform(0, 0.6 * seconds))
    if code is None:
        child.end()
    return code


@dataclass
class Chain:
    """One run, killed up to `at_most` times; `kills` and `repeated` are added to."""

    site: Site
    plan: Plan
    undisturbed: Path
    at_most: int
    kills: list[int]
    repeated: list[int]

    def run(self) -> None:
        site, logs = self.site, self.site.new("logs")
        path = self.plan.write(logs)
        seconds = json.loads((self.undisturbed / "summary.json").read_text())["seconds"]
        committed, reached, code = None, 0, None
        while code is None:
            child = site.launch(path, KPIPE_LOGS=str(logs))
            if len(self.kills) < self.at_most:
                code = ended_or_killed(site, child, partial(self.trains, child), seconds)
            else:
                code = child.exit_code()
                expect(code is not None, "the last start does not end")
            if code is None:
                self.kills.append(child.pid)
            self.check_beginning(child.said("out"), committed, reached)
            committed, reached = self.look(logs)
            if code is None and any(map(is_finished, runs_in(logs))):
                compare_runs(only_run(logs), self.undisturbed, tidy=False)  # nothing was left to do but to exit
                return
        expect(code == 0, f"ended with {code}: {child.said('err')[-600:]}")
        compare_runs(only_run(logs), self.undisturbed)

    def trains(self, child: Child) -> bool:
        return re.search("^(step|epoch) ", child.said("out"), re.M) is not None

    def check_beginning(self, said: str, committed: int | None, reached: int) -> None:
        found = re.search(r"resumed after step ([\d,]+)", said)
        if "run   " not in said:  # killed before it could say so
            return
        resumed = int(found[1].replace(",", "")) if found else None
        expect(resumed == committed, f"resumed after step {resumed}, {committed} was committed")
        repeats = reached - (committed or 0)
        expect(repeats <= self.plan.save_every, f"{repeats} steps were repeated")
        if reached:
            self.repeated.append(repeats)

    def look(self, logs: Path) -> tuple[int | None, int]:
        """The step that is committed, and the last that was logged."""
        runs = runs_in(logs)
        if not runs:
            return None, 0
        log = runs[-1] / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return pointed_step(runs[-1]), json.loads(lines[-1])["step"] if lines else 0


def chained_kills_of_fit(site: Site, count: int) -> Iterator[bool]:
    """The same networks in `fit` with BackupAndRestore, which saves after as many steps; seeded and deterministic.

    Survived: the weights at the end are bit-identical to those of its own undisturbed training.
    """
    for plan in itertools.cycle(_chain_plans(site)):
        whole = site.new("whole")
        child = site.fork(fit_stock, plan.write(whole), whole)
        child.receive()
        began = time.monotonic()
        expect(child.exit_code() == 0, "fit does not run undisturbed")
        kills: list[int] = []
        survived = site.survives(kill_fit, site, plan, whole, time.monotonic() - began, min(count, 6), kills)
        yield from itertools.repeat(survived, len(kills))
        count -= len(kills)
        if count <= 0:
            break


def kill_fit(site: Site, plan: Plan, whole: Path, seconds: float, at_most: int, kills: list[int]) -> None:
    folder, code = site.new("fit"), None
    path = plan.write(folder)
    while code is None:
        child = site.fork(fit_stock, path, folder)
        if len(kills) < at_most:
            code = ended_or_killed(site, child, partial(child.pipe.poll, 0), seconds)
        else:
            code = child.exit_code()
            expect(code is not None, "the last start does not end")
        if code is None:
            kills.append(child.pid)
    expect(code == 0, f"fit ended with {code}: {child.said('err')[-600:]}")
    expect(arrays_of(folder / "end.npz") == arrays_of(whole / "end.npz"), "the weights differ")
