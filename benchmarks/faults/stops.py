"""Signals."""

import itertools
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
from patches import PHASES, send_signal_in
from processes import SOON, Child, Site, expect, prefixed
from run_files import check_no_debris, check_whole, pointed_step
from runs import SMALL, finish, only_run, reference, run_kpipe, runs_in
from stock import fit_stock

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def signals(site: Site, count: int) -> Iterator[bool]:
    """SIGINT and SIGTERM, at a random moment of each phase: start-up, tracing, training, evaluation, saving.

    Survived: the exit code is 130 or 143; the process has ended within two seconds (not while it starts up: a library
    that is being imported cannot be left); standard error names the step that is saved, which is not older than the one
    that was reached, and the command, or says that there is nothing to keep; the checkpoint of that step is whole and
    nothing else lies about; the same command ends bit-identical to the undisturbed run.
    """
    cases = itertools.product(("start-up", *PHASES), SIGNALS)
    if site.quick:
        cases = zip(("start-up", *PHASES), itertools.cycle(SIGNALS), strict=False)
    expected = reference(site, SMALL)
    for phase, number in itertools.islice(itertools.cycle(list(cases)), count):
        yield site.survives(signal_once, site, phase, number, expected)


def signal_once(site: Site, phase: str, number: int, expected: Path) -> None:
    logs = site.new(f"logs-{phase}")
    plan = SMALL.write(logs)
    if phase == "start-up":
        child = site.launch(plan, KPIPE_LOGS=str(logs))
        wait_for_handler(child)
        time.sleep(site.random.uniform(0, 4))
        child.signal(number)
        sent, reached = time.monotonic(), 0
    else:
        *_, calls, seconds = PHASES[phase]
        shot = (phase, number, site.random.randint(1, calls), site.random.uniform(0, seconds))
        child = site.fork(run_kpipe, [plan], send_signal_in, *shot, KPIPE_LOGS=str(logs))
        sent, reached = child.receive()
    code = child.exit_code()
    took = time.monotonic() - sent
    with prefixed(f"{phase}, {signal.Signals(number).name}"):
        expect(code == SIGNALS[number], f"the exit code is {code}: {child.said('err')[-600:]}")
        expect(took < SOON or phase == "start-up", f"the end came {took:.1f} seconds after the signal")
        check_left_by_signal(child.said("err"), plan, logs, phase, reached)
        finish(site, plan, logs, expected)


def wait_for_handler(child: Child) -> None:
    """Until Python has come as far as kpipe's own first line of work; before that nobody could answer a signal."""
    status = Path(f"/proc/{child.pid}/status")
    while status.exists() and child.exit_code(0) is None:
        caught = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    time.sleep(0.5)  # where there is no such file


def check_left_by_signal(said: str, plan: str, logs: Path, phase: str, reached: int) -> None:
    saved = re.search(r"saved up to step ([\d,]+)", said)
    if saved is None:
        nothing = "nothing to keep" in said and f"python -m kpipe.run {plan}" in said
        nothing = nothing or (phase == "start-up" and "before another step was done" in said)
        expect(nothing, f"neither a step nor that there is nothing to keep is named: {said!r}")
        expect(phase in ("start-up", "tracing"), f"there was something to keep: {said!r}")
        expect(not runs_in(logs), "a run directory was left with nothing in it")
        return
    expect(f"python -m kpipe.run {plan}" in said, f"the command is not named: {said!r}")
    step, run = int(saved[1].replace(",", "")), only_run(logs)
    expect(step >= reached, f"step {step} is saved, {reached} was reached")
    newest = max(run.glob("checkpoints/step-*"))
    expect(newest.name == f"step-{step:08}" and pointed_step(run) == step, f"{newest.name} is there, {step} is named")
    check_whole(newest)
    check_no_debris(run)


STOCK_PHASES = ("training", "evaluation", "saving")


def signals_to_fit(site: Site, count: int) -> Iterator[bool]:
    """The same signals while `fit` with BackupAndRestore trains, evaluates or saves.

    Survived: what it leaves can be opened, and is of the step that was reached when the signal came, or a later one.
    """
    cases = itertools.product(STOCK_PHASES, SIGNALS)
    for phase, number in itertools.islice(itertools.cycle(list(cases)), count):
        yield site.survives(signal_fit_once, site, phase, number)


def signal_fit_once(site: Site, phase: str, number: int) -> None:
    folder = site.new("fit")
    nth = site.random.randint(*{"training": (1, 60), "evaluation": (1, 3), "saving": (1, 7)}[phase])
    shot = (phase, number, nth, site.random.uniform(0, 0.02))
    child = site.fork(fit_stock, SMALL.write(folder), folder, shot)
    while (reached := child.receive()) == "trains":
        pass
    child.exit_code()
    backup = folder / "backup" / "latest.weights.h5"
    with prefixed(f"{phase}, {signal.Signals(number).name}"):
        expect((folder / "end.npz").exists() or backup.exists(), f"nothing is saved, step {reached} was reached")
        if not (folder / "end.npz").exists():
            with h5py.File(backup) as file:
                saved = int(file["optimizer/vars/0"][()])
            expect(saved >= reached, f"step {saved} is saved, {reached} was reached")
