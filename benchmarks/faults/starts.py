"""Simultaneous starts."""

import hashlib
import itertools
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from patches import send_signal_in
from processes import SOON, Child, Site, expect
from runs import SMALL, only_run, run_kpipe, runs_in
from stock import fit_stock

import kpipe.experiment

PROCESSES = 4  # of a simultaneous start; two where each shall get a run
CROWD = 20  # processes of the first round


def simultaneous_starts(site: Site, count: int) -> Iterator[bool]:
    """Processes give the same command at the same moment, in turn where there is nothing, where a run can be resumed,
    and, two of them, with --new; the first time a crowd. `count` is the number of rounds; every process is an attempt.

    Survived: exactly one process owns the run; every other one has ended within two seconds with code 5 and names the
    run and the owner; and but for lock files the disk is as a lone start would have left it. The owner is held at the
    moment at which it owns the run, so that whatever else changes was changed by the others. With --new both own a run
    directory, and not the same.
    """
    unfinished = site.new("unfinished")
    plan = SMALL.write(site.folder)
    shot = ("training", signal.SIGTERM, 5, 0.0)
    child = site.fork(run_kpipe, [plan], send_signal_in, *shot, KPIPE_LOGS=str(unfinished))
    child.exit_code()
    alone = site.new("alone")
    child = site.fork(run_kpipe, [plan], wait_for_start, KPIPE_LOGS=str(alone))
    start_all([child])
    child.receive()
    child.end()
    expected = {"fresh": tree_of(alone), "resumed": tree_of(unfinished)}
    kinds = itertools.cycle(["fresh", "new"] if site.quick else ["fresh", "resumed", "new"])
    for kind, first in zip(
        itertools.islice(kinds, count), itertools.chain([True], itertools.repeat(False)), strict=False
    ):
        logs = site.new(f"logs-{kind}")
        if kind == "resumed":
            shutil.copytree(unfinished, logs, dirs_exist_ok=True)
        arguments = [plan, "--new"] if kind == "new" else [plan]
        processes = 2 if kind == "new" else 3 if site.quick else CROWD if first else PROCESSES
        children = [site.fork(run_kpipe, arguments, wait_for_start, KPIPE_LOGS=str(logs)) for _ in range(processes)]
        began = start_all(children, whole_second=kind == "new")
        outcome = Outcome(logs, children, began)
        for number in range(processes):
            check = outcome.check_new if kind == "new" else partial(outcome.check, expected=expected[kind])
            yield site.survives(check, number)
        for child in children:
            child.end()


def wait_for_start(pipe) -> None:
    """Waits for the moment that the pipe gives; later, when the run is owned, tells and is held there."""

    def hold(*arguments, **options):
        pipe.send("owns")
        pipe.recv()

    kpipe.experiment.seed_everything = hold
    pipe.send("ready")
    moment = pipe.recv()
    while time.monotonic() < moment:
        pass


def start_all(children: list[Child], *, whole_second: bool = False) -> float:
    """Lets them go at one moment, which is returned."""
    for child in children:
        child.receive()
    moment = time.monotonic() + 0.1
    if whole_second:
        moment += 1 - (time.time() + 0.1) % 1
    for child in children:
        child.pipe.send(moment)
    return moment


class Outcome:
    """Of one simultaneous start."""

    def __init__(self, logs: Path, children: list[Child], began: float):
        self.logs, self.children = logs, children
        deadline, self.owners, self.codes = began + SOON, [], {}
        while time.monotonic() < deadline and len(self.owners) + len(self.codes) < len(children):
            for child in children:
                if child.pid in self.codes or child in self.owners:
                    continue
                if "owns" in child.received():
                    self.owners.append(child)
                elif (code := child.exit_code(0)) is not None:
                    self.codes[child.pid] = code
            time.sleep(0.005)
        self.tree = tree_of(logs)

    def check(self, number: int, expected: dict[str, str]) -> None:
        child = self.children[number]
        expect(len(self.owners) == 1, f"{len(self.owners)} processes own the run")
        expect(self.tree == expected, f"changed: {set(self.tree.items()) ^ set(expected.items())}")
        if child is self.owners[0]:
            return
        code, said = self.codes.get(child.pid), child.said("err")
        expect(code == 5, f"a loser's exit code within {SOON} s is {code}: {said[-600:]}")
        run = str(only_run(self.logs))
        named = run in said and f"process {self.owners[0].pid} " in said
        expect(named, f"run and owner {self.owners[0].pid} are not named: {said!r}")

    def check_new(self, number: int) -> None:
        expect(self.children[number] in self.owners, f"refused: {self.children[number].said('err')[-600:]}")
        runs = runs_in(self.logs)
        expect(len(runs) == len(self.owners), f"{len(self.owners)} processes own {[run.name for run in runs]}")


def tree_of(folder: Path) -> dict[str, str]:
    """Checksum of every file but locks, by its path; the name of a run, which is a time, left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name not in (".lock", ".owner") and path.suffix != ".yaml" or path.name == "config.yaml":
            parts = list(path.relative_to(folder).parts)
            parts[1:2] = ["run"] * len(parts[1:2])
            content = path.read_bytes() if path.is_file() else b"folder"
            found["/".join(parts)] = hashlib.sha256(content).hexdigest()
    return found


def simultaneous_fits(site: Site, count: int) -> Iterator[bool]:
    """Three processes call `fit` with BackupAndRestore and one directory at the same moment.

    Survived: only one of them has trained a step; what becomes of the others later does not help.
    """
    for _ in range(count):
        folder = site.new("fit")
        plan = SMALL.write(folder)
        children = [site.fork(fit_at_once, plan, folder) for _ in range(3)]
        start_all(children)
        for child in children:
            child.exit_code()
        trained = sum("trains" in child.received() for child in children)
        for _ in children:
            yield site.survives(expect, trained == 1, f"{trained} processes have trained with one directory")


def fit_at_once(pipe, plan: str, folder: Path) -> None:
    pipe.send("ready")
    moment = pipe.recv()
    while time.monotonic() < moment:
        pass
    fit_stock(pipe, plan, folder)
