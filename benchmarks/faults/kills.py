"""Kills while saving."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from numbered_models import make_lenet, restore, set_values, state_at
from processes import Child, Site, expect

from kpipe.training.checkpoints import Checkpoints

LONGEST_WAIT = 0.25  # seconds, many commits


def kills_while_saving(site: Site, count: int) -> Iterator[bool]:
    """A process that commits back to back is killed by SIGKILL after a random time.

    Survived: a fresh process restores without an error a step that is not older than the last acknowledged one, every
    variable and the state are exactly of that step, its next commit works, and then nothing but the two newest
    checkpoints and the pointer is there.
    """
    folder = site.new("checkpoints")
    child = site.fork(commit_back_to_back, folder)
    _, child.acknowledged, _ = child.receive()
    for _ in range(count):
        acknowledged = kill_at_random(site, child)
        child = site.fork(commit_back_to_back, folder)
        survived = site.survives(check_restart, child, acknowledged)
        yield survived
        if not survived:  # the next attempt shall not suffer from this one
            child.end()
            folder = site.new("checkpoints")
            child = site.fork(commit_back_to_back, folder)
            _, child.acknowledged, _ = child.receive()


def commit_back_to_back(pipe, folder: Path) -> None:
    """Sends ("committed", step, what is in the folder) after each; before it ("restored", ...) if there was one."""
    model, checkpoints, step = make_lenet(), Checkpoints(folder), 0
    if list(folder.iterdir()):
        step, skipped, wrong = restore(model, checkpoints)
        pipe.send(("restored", step, skipped, wrong))
    while True:
        step += 1
        set_values(model, step)
        checkpoints.commit(model, state_at(step), step=step)
        pipe.send(("committed", step, sorted(os.listdir(folder))))


def kill_at_random(site: Site, child: Child) -> int:
    """Returns the last step that was acknowledged."""
    time.sleep(site.random.uniform(0, LONGEST_WAIT))
    last = child.received()
    child.end()
    return max((step for _, step, *_ in [*last, *child.received()]), default=child.acknowledged)


def check_restart(child: Child, acknowledged: int) -> None:
    kind, step, *rest = child.receive()
    expect(kind == "restored", f"the process began anew ({kind})")
    skipped, wrong = rest
    expect(acknowledged <= step <= acknowledged + 1, f"restored step {step} after {acknowledged} was acknowledged")
    expect(not wrong, f"{wrong} is not of step {step}")
    expect(not skipped, f"damaged by a kill: {skipped}")
    kind, after, names = child.receive()
    expect((kind, after) == ("committed", step + 1), f"the next commit gave {kind} {after}")
    expect(names == ["latest", f"step-{step:08}", f"step-{after:08}"], f"left over: {names}")
    child.acknowledged = after


def kills_while_backing_up(site: Site, count: int, *, double: bool) -> Iterator[bool]:
    """The same with `fit` and BackupAndRestore(save_freq=1).

    Survived: the same `fit` in a fresh process restores without an exception and does not start from zero.
    """
    folder = site.new("backup")
    child = site.fork(back_up_back_to_back, folder, double)
    for _ in range(count):
        wait_until_saved(child)
        time.sleep(site.random.uniform(0, LONGEST_WAIT))
        child.end()
        child = site.fork(back_up_back_to_back, folder, double)
        survived = site.survives(check_stock_restart, child)
        yield survived
        if not survived:
            child.end()
            folder = site.new("backup")
            child = site.fork(back_up_back_to_back, folder, double)


def back_up_back_to_back(pipe, folder: Path, double: bool) -> None:
    class Tell(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            pipe.send(("began", int(self.model.optimizer.iterations)))

        def on_train_batch_end(self, batch, logs=None):
            pipe.send(("saved", int(self.model.optimizer.iterations)))

    keras.utils.set_random_seed(0)
    images, labels = np.random.rand(80, 28, 28, 1).astype("float32"), np.random.randint(0, 10, 80)
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1, double_checkpoint=double)
    make_lenet().fit(images, labels, batch_size=8, epochs=10**6, verbose=0, callbacks=[backup, Tell()])


def wait_until_saved(child: Child) -> None:
    while child.receive()[0] != "saved":
        pass


def check_stock_restart(child: Child) -> None:
    kind, iterations = child.receive()
    expect(kind == "began" and iterations > 0, f"began at step {iterations}")
