"""Fault: a process is killed while it saves.

A process saves back to back, after every step, and is killed by SIGKILL after a random time. A fresh process then
resumes from what is on the disk.

kpipe (`Checkpoints.commit`) survives a kill if the fresh process restores, without an error, a step that is not older
than the last one that was reported as committed; if every variable and the state are exactly of that step; and if after
the next commit the folder holds nothing but the two newest checkpoints and the pointer to the newest.

Stock Keras (`fit` with `BackupAndRestore(save_freq=1)`, with and without `double_checkpoint`) survives if the same
`fit` in a fresh process restores without an exception and does not begin at step zero.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from expectations import expect
from numbered_models import commit, make_lenet, restore
from processes import Child, Sandbox

from kpipe.training.checkpoints import Checkpoints

LONGEST_WAIT = 0.25  # seconds before a kill; a save takes a small fraction of it


# --- kpipe ------------------------------------------------------------------------------------------------------------


@dataclass
class Saver:
    """A process that commits back to back to a folder, and the last step it has reported as committed."""

    child: Child
    folder: Path
    committed: int = 0


def kill_while_saving(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Kill a process that commits back to back, over and over; yield whether each kill was survived."""
    saver = start_saver(sandbox)
    for _ in range(count):
        committed = kill_at_random(sandbox, saver)
        saver = Saver(sandbox.fork(commit_back_to_back, saver.folder), saver.folder)
        survived = sandbox.survives(check_restart, saver, committed)
        yield survived
        if not survived:  # the next kill must not suffer from this one
            saver.child.kill()
            saver = start_saver(sandbox)


def start_saver(sandbox: Sandbox) -> Saver:
    """Start in an empty folder, and wait for the first commit."""
    folder = sandbox.make_folder("checkpoints")
    child = sandbox.fork(commit_back_to_back, folder)
    _, step, _ = child.receive()
    return Saver(child, folder, step)


def commit_back_to_back(pipe, folder: Path) -> None:
    """Restore what there is, send ("restored", step, skipped, wrong), then commit forever.

    Each commit is followed by ("committed", step, names in the folder).
    """
    model, checkpoints, step = make_lenet(), Checkpoints(folder), 0
    if list(folder.iterdir()):
        step, skipped, wrong = restore(model, checkpoints)
        pipe.send(("restored", step, skipped, wrong))
    while True:
        step += 1
        commit(model, checkpoints, step)
        pipe.send(("committed", step, sorted(os.listdir(folder))))


def kill_at_random(sandbox: Sandbox, saver: Saver) -> int:
    """Kill the child at a random moment and return the last step that it has reported as committed."""
    time.sleep(sandbox.random.uniform(0, LONGEST_WAIT))
    messages = saver.child.receive_all()
    saver.child.kill()
    messages += saver.child.receive_all()
    return max((step for _, step, *_ in messages), default=saver.committed)


def check_restart(saver: Saver, committed: int) -> None:
    """Expect a new process to restore the step that was committed, and its next commit to work."""
    kind, step, *rest = saver.child.receive()
    expect(kind == "restored", f"the process began anew ({kind})")
    skipped, wrong = rest
    expect(committed <= step <= committed + 1, f"restored step {step} after {committed} was committed")
    expect(not wrong, f"{wrong} is not of step {step}")
    expect(not skipped, f"damaged by a kill: {skipped}")
    kind, saver.committed, names = saver.child.receive()
    expect((kind, saver.committed) == ("committed", step + 1), f"the next commit gave {kind} {saver.committed}")
    expect(names == ["latest", f"step-{step:08}", f"step-{step + 1:08}"], f"left over: {names}")


# --- stock Keras ------------------------------------------------------------------------------------------------------


def kill_stock_while_saving(sandbox: Sandbox, count: int, *, double: bool) -> Iterator[bool]:
    """Kill `fit` with BackupAndRestore over and over; yield whether each kill was survived."""
    folder = sandbox.make_folder("backup")
    child = sandbox.fork(back_up_back_to_back, folder, double)
    for _ in range(count):
        wait_until_saved(child)
        time.sleep(sandbox.random.uniform(0, LONGEST_WAIT))
        child.kill()
        child = sandbox.fork(back_up_back_to_back, folder, double)
        survived = sandbox.survives(check_stock_restart, child)
        yield survived
        if not survived:
            child.kill()
            folder = sandbox.make_folder("backup")
            child = sandbox.fork(back_up_back_to_back, folder, double)


def back_up_back_to_back(pipe, folder: Path, double: bool) -> None:
    """Train forever and save after every step; send ("began", step) once and ("saved", step) after every step."""

    class TellSteps(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            pipe.send(("began", int(self.model.optimizer.iterations)))

        def on_train_batch_end(self, batch, logs=None):
            pipe.send(("saved", int(self.model.optimizer.iterations)))

    keras.utils.set_random_seed(0)
    images, labels = np.random.rand(80, 28, 28, 1).astype("float32"), np.random.randint(0, 10, 80)
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1, double_checkpoint=double)
    make_lenet().fit(images, labels, batch_size=8, epochs=10**6, verbose=0, callbacks=[backup, TellSteps()])


def wait_until_saved(child: Child) -> None:
    while child.receive()[0] != "saved":
        pass


def check_stock_restart(child: Child) -> None:
    kind, step = child.receive()
    expect(kind == "began" and step > 0, f"began at step {step}")
