"""Fault: several processes start the same training at the same moment.

In turn they start where there is nothing yet ("fresh"), where a run can be resumed ("resumed"), and, two of them, with
--new ("new"); the first round is a crowd. Every process is an attempt.

kpipe (`python -m kpipe.run`) survives if exactly one process owns the run; if every other one ends within two seconds
with exit code 5 and names the run and its owner; and if, but for lock files, the disk is as after a lone start. The
owner is held at the moment at which it owns the run, so whatever else has changed was changed by the others. With --new
each must own a run directory of its own.

Stock Keras (three times `fit` with BackupAndRestore and one directory) survives if only one process has trained a step;
what becomes of the others later does not help.
"""

import hashlib
import itertools
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from expectations import expect
from patches import hold_owner, send_signal
from processes import Child, Sandbox
from runs import SMALL, fork_kpipe, list_runs, only_run
from stock import fit_stock

PROCESSES = {"fresh": 4, "resumed": 4, "new": 2}
CROWD = 20  # processes of the first round
STOCK_PROCESSES = 3
LONGEST_REFUSAL = 2.0  # seconds after which every process that does not own the run must have ended


def wait_for_start(pipe) -> None:
    """Say "ready", receive a moment of the monotonic clock, and wait for it."""
    pipe.send("ready")
    moment = pipe.recv()
    while time.monotonic() < moment:
        pass


def start_all(children: list[Child], *, whole_second: bool = False) -> float:
    """Let all children go at one moment, which is returned; at the beginning of a second if asked for."""
    for child in children:
        child.receive()
    moment = time.monotonic() + 0.1
    if whole_second:
        moment += 1 - (time.time() + 0.1) % 1
    for child in children:
        child.pipe.send(moment)
    return moment


# --- kpipe ------------------------------------------------------------------------------------------------------------


def start_at_once(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Start `count` rounds of processes; yield for each process whether all was as promised."""
    file = SMALL.write(sandbox.folder)
    unfinished = make_unfinished_run(sandbox, file)
    expected = {"fresh": read_tree(start_alone(sandbox, file)), "resumed": read_tree(unfinished)}
    kinds = ["fresh", "new"] if sandbox.quick else ["fresh", "resumed", "new"]
    for number, kind in enumerate(itertools.islice(itertools.cycle(kinds), count)):
        logs = sandbox.make_folder(f"logs-{kind}")
        if kind == "resumed":
            shutil.copytree(unfinished, logs, dirs_exist_ok=True)
        processes = CROWD if number == 0 else PROCESSES[kind]
        if sandbox.quick:
            processes = min(processes, 3)
        arguments = [file, "--new"] if kind == "new" else [file]
        children = [fork_kpipe(sandbox, arguments, logs, start_together) for _ in range(processes)]
        # Run directories are named after the second: those of --new must differ even within one.
        start = start_all(children, whole_second=kind == "new")
        outcome = wait_for_outcome(logs, children, start)
        check = check_new if kind == "new" else partial(check_start, expected=expected[kind])
        for child in children:
            yield sandbox.survives(check, outcome, child)
        for child in children:
            child.kill()


def make_unfinished_run(sandbox: Sandbox, file: str) -> Path:
    """Return a folder with a run that was stopped while it trained."""
    logs = sandbox.make_folder("unfinished")
    fork_kpipe(sandbox, [file], logs, send_signal, "training", signal.SIGTERM, 6, 0.0).exit_code()
    return logs


def start_alone(sandbox: Sandbox, file: str) -> Path:
    """Return the folder of a lone start, as it is when the run is owned."""
    logs = sandbox.make_folder("alone")
    child = fork_kpipe(sandbox, [file], logs, start_together)
    start_all([child])
    child.receive()
    child.kill()
    return logs


def start_together(pipe) -> None:
    hold_owner(pipe)
    wait_for_start(pipe)


@dataclass
class Outcome:
    """What has become of one simultaneous start after `LONGEST_REFUSAL`, or as soon as all is decided.

    Attributes:
        logs: the folder of the runs.
        owners: the processes that own a run.
        exit_codes: of those that have ended, by process ID.
        tree: what is in the folder, see `read_tree`.
    """

    logs: Path
    owners: list[Child] = field(default_factory=list)
    exit_codes: dict[int, int] = field(default_factory=dict)
    tree: dict[str, str] = field(default_factory=dict)


def wait_for_outcome(logs: Path, children: list[Child], start: float) -> Outcome:
    outcome = Outcome(logs)
    undecided = list(children)
    while undecided and time.monotonic() < start + LONGEST_REFUSAL:
        for child in tuple(undecided):
            if "owns" in child.receive_all():
                outcome.owners.append(child)
                undecided.remove(child)
            elif (code := child.exit_code(0)) is not None:
                outcome.exit_codes[child.pid] = code
                undecided.remove(child)
        time.sleep(0.005)
    outcome.tree = read_tree(logs)
    return outcome


def check_start(outcome: Outcome, child: Child, *, expected: dict[str, str]) -> None:
    """Expect one owner, this child to be it or to be refused, and nothing else to have changed on the disk."""
    expect(len(outcome.owners) == 1, f"{len(outcome.owners)} processes own the run")
    expect(outcome.tree == expected, f"changed: {set(outcome.tree.items()) ^ set(expected.items())}")
    owner = outcome.owners[0]
    if child is owner:
        return
    code, message = outcome.exit_codes.get(child.pid), child.stderr
    expect(code == 5, f"the exit code of a refused start within {LONGEST_REFUSAL} s is {code}: {message[-600:]}")
    named = str(only_run(outcome.logs)) in message and f"process {owner.pid} " in message
    expect(named, f"run and owner {owner.pid} are not named: {message!r}")


def check_new(outcome: Outcome, child: Child) -> None:
    """Expect this child to own a run, and as many runs as owners."""
    expect(child in outcome.owners, f"refused: {child.stderr[-600:]}")
    runs = list_runs(outcome.logs)
    expect(len(runs) == len(outcome.owners), f"{len(outcome.owners)} processes own {[run.name for run in runs]}")


def read_tree(folder: Path) -> dict[str, str]:
    """Return the checksum of every file but locks by its path, in which the name of a run, a time, is left out."""
    tree = {}
    for path in sorted(folder.rglob("*")):
        is_lock = path.name in (".lock", ".owner")
        is_experiment = path.suffix == ".yaml" and path.name != "config.yaml"
        if is_lock or is_experiment:
            continue
        names = list(path.relative_to(folder).parts)
        names[1:2] = ["run"] * len(names[1:2])
        content = path.read_bytes() if path.is_file() else b"folder"
        tree["/".join(names)] = hashlib.sha256(content).hexdigest()
    return tree


# --- stock Keras ------------------------------------------------------------------------------------------------------


def start_stock_at_once(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Start `count` rounds of `fit`; yield for each process whether only one of its round has trained."""
    for _ in range(count):
        folder = sandbox.make_folder("fit")
        file = SMALL.write(folder)
        children = [sandbox.fork(fit_together, file, folder) for _ in range(STOCK_PROCESSES)]
        start_all(children)
        for child in children:
            child.exit_code()
        trained = sum("trains" in child.receive_all() for child in children)
        for _ in children:
            yield sandbox.survives(expect, trained == 1, f"{trained} processes have trained with one directory")


def fit_together(pipe, file: str, folder: Path) -> None:
    wait_for_start(pipe)
    fit_stock(pipe, file, folder)
