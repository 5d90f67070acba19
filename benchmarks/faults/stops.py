"""Fault: SIGINT or SIGTERM stops a training, at a random moment of each of its phases.

The phases of kpipe (`python -m kpipe.run`) are start-up, tracing, training, evaluation and saving. kpipe survives if:

- the exit code is 130 or 143, and the process has ended within two seconds (not during start-up: a library that is
  being imported cannot be interrupted);
- standard error names the command that resumes the run and the step that is saved, which is not older than the one that
  was reached, or says that there is nothing to keep;
- the checkpoint of that step is whole, and no half-written file is left;
- the same command then ends bit-identical to a run that nothing happened to.

Stock Keras (`fit` with BackupAndRestore, while it trains, evaluates or saves) survives if what it leaves can be opened,
and is of the step that was reached when the signal came, or of a later one.
"""

import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
from expectations import expect, prefix_losses
from patches import PHASES, send_signal
from processes import Child, Sandbox, call_later
from run_files import check_checkpoint, check_no_debris, committed_step
from runs import COMMAND, SMALL, finish, fork_kpipe, launch_kpipe, list_runs, only_run, undisturbed_run
from stock import fit_stock

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LONGEST_STOP = 2.0  # seconds from the signal to the end of the process


# --- kpipe ------------------------------------------------------------------------------------------------------------


def stop(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Stop `count` runs, in every phase by every signal in turn; yield whether each stop was survived."""
    phases = ("start-up", *PHASES)
    cases = list(itertools.product(phases, EXIT_CODES))
    if sandbox.quick:
        cases = list(zip(phases, itertools.cycle(EXIT_CODES), strict=False))
    undisturbed = undisturbed_run(sandbox, SMALL)
    for phase, number in itertools.islice(itertools.cycle(cases), count):
        yield sandbox.survives(stop_once, sandbox, phase, number, undisturbed)


def stop_once(sandbox: Sandbox, phase: str, number: int, undisturbed: Path) -> None:
    logs = sandbox.make_folder(f"logs-{phase}")
    file = SMALL.write(logs)
    if phase == "start-up":
        child, sent, reached = stop_at_start(sandbox, file, logs, number)
    else:
        child, sent, reached = stop_in_phase(sandbox, file, logs, number, phase)
    code = child.exit_code()
    seconds = time.monotonic() - sent
    with prefix_losses(f"{phase}, {signal.Signals(number).name}"):
        expect(code == EXIT_CODES[number], f"the exit code is {code}: {child.stderr[-600:]}")
        expect(seconds < LONGEST_STOP or phase == "start-up", f"ended {seconds:.1f} seconds after the signal")
        check_what_is_left(child.stderr, file, logs, phase, reached)
        finish(sandbox, file, logs, undisturbed)


def stop_at_start(sandbox: Sandbox, file: str, logs: Path, number: int) -> tuple[Child, float, int]:
    """Send a signal during start-up; return the child, the time of the signal, and the step reached: none."""
    child = launch_kpipe(sandbox, file, logs)
    wait_for_handler(child)
    time.sleep(sandbox.random.uniform(0, 4))
    child.signal(number)
    return child, time.monotonic(), 0


def stop_in_phase(sandbox: Sandbox, file: str, logs: Path, number: int, phase: str) -> tuple[Child, float, int]:
    """Let the child send itself a signal; return it, the time of the signal, and the step reached."""
    nth = sandbox.random.randint(*PHASES[phase].calls)
    delay = sandbox.random.uniform(0, PHASES[phase].longest_delay)
    child = fork_kpipe(sandbox, [file], logs, send_signal, phase, number, nth, delay)
    return child, *child.receive()


def wait_for_handler(child: Child) -> None:
    """Wait until kpipe handles signals; before its first line of work nobody could answer one."""
    status = Path(f"/proc/{child.pid}/status")
    while status.exists() and child.exit_code(0) is None:
        caught = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    time.sleep(0.5)  # where there is no such file


def check_what_is_left(message: str, file: str, logs: Path, phase: str, reached: int) -> None:
    """Expect a whole checkpoint of the step that the message names, or a message that there is nothing to keep."""
    match = re.search(r"saved up to step ([\d,]+)", message)
    if match is None:
        nothing = "nothing to keep" in message and f"{COMMAND} {file}" in message
        nothing = nothing or (phase == "start-up" and "before another step was done" in message)
        expect(nothing, f"neither a step nor that there is nothing to keep is named: {message!r}")
        expect(phase in ("start-up", "tracing"), f"there was something to keep: {message!r}")
        expect(not list_runs(logs), "a run directory was left with nothing in it")
        return
    expect(f"{COMMAND} {file}" in message, f"the command is not named: {message!r}")
    step, run = int(match[1].replace(",", "")), only_run(logs)
    expect(step >= reached, f"step {step} is saved, {reached} was reached")
    newest = max(run.glob("checkpoints/step-*"))
    named = newest.name == f"step-{step:08}" and committed_step(run) == step
    expect(named, f"the newest checkpoint is {newest.name}, the message names {step}")
    check_checkpoint(newest)
    check_no_debris(run)


# --- stock Keras ------------------------------------------------------------------------------------------------------

STOCK_PHASES = {"training": (1, 60), "evaluation": (1, 3), "saving": (1, 7)}
"""How often each phase is entered, first and last, before a signal may be sent."""


def stop_stock(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Stop `count` trainings by `fit`; yield whether each stop was survived."""
    cases = list(itertools.product(STOCK_PHASES, EXIT_CODES))
    for phase, number in itertools.islice(itertools.cycle(cases), count):
        yield sandbox.survives(stop_stock_once, sandbox, phase, number)


def stop_stock_once(sandbox: Sandbox, phase: str, number: int) -> None:
    folder = sandbox.make_folder("fit")
    nth, delay = sandbox.random.randint(*STOCK_PHASES[phase]), sandbox.random.uniform(0, 0.02)
    child = sandbox.fork(fit_stock, SMALL.write(folder), folder, SendSignal, phase, number, nth, delay)
    while (reached := child.receive()) == "trains":
        pass
    child.exit_code()
    if (folder / "end.npz").exists():  # the signal came too late to stop anything
        return
    backup = folder / "backup" / "latest.weights.h5"
    with prefix_losses(f"{phase}, {signal.Signals(number).name}"):
        expect(backup.exists(), f"nothing is saved, step {reached} was reached")
        with h5py.File(backup) as file:
            saved = int(file["optimizer/vars/0"][()])
        expect(saved >= reached, f"step {saved} is saved, {reached} was reached")


class SendSignal(keras.callbacks.Callback):
    """Sends this process a signal `delay` seconds after a phase of `fit` has been entered for the `nth` time.

    At that moment the step that was reached is sent through the pipe.
    """

    def __init__(self, pipe, backup: keras.callbacks.BackupAndRestore, phase: str, number: int, nth: int, delay: float):
        super().__init__()
        self.pipe, self.phase, self.number, self.delay = pipe, phase, number, delay
        self.left = nth
        save = backup._save_model  # BackupAndRestore tells nobody that it begins to save
        backup._save_model = lambda: self.enter("saving") or save()

    def enter(self, phase: str) -> None:
        if phase == self.phase:
            self.left -= 1
            if self.left == 0:
                call_later(self.delay, self.shoot)

    def shoot(self) -> None:
        self.pipe.send(int(self.model.optimizer.iterations))
        os.kill(os.getpid(), self.number)

    def on_train_batch_begin(self, batch, logs=None):
        self.enter("training")

    def on_test_begin(self, logs=None):
        self.enter("evaluation")
