"""Every change that this benchmark makes to kpipe, in a child process, before kpipe starts.

A fault must strike at a known moment: within a commit, while TensorFlow traces, as soon as a run is owned. The command
line has no hook for such moments and needs none, so functions of kpipe are wrapped here, and nowhere else. A name that
kpipe no longer has raises AttributeError.
"""

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

from processes import call_later

import kpipe.experiment
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.trainer import Trainer


def replace(owner: object, name: str, function: Callable) -> None:
    """Replace a function of a module or a class until the process ends."""
    mock.patch.object(owner, name, function).start()


def leave_out_figures(pipe) -> None:
    """Draw no figures: nothing here looks at them, and they take half of the time of a run as small as these.

    No setting of an experiment leaves them out.
    """
    replace(kpipe.experiment, "write_figures", lambda *arguments, **options: [])


def hold_owner(pipe) -> None:
    """Say "owns" and wait once the run directory is owned: other starts then find a run that is surely running.

    Seeding is the first thing that kpipe does after it has locked the run directory.
    """

    def hold(*arguments, **options):
        pipe.send("owns")
        pipe.recv()

    replace(kpipe.experiment, "seed_everything", hold)


def before_commit(nth: int, action: Callable[[Checkpoints], None]) -> None:
    """Call an action right before the `nth` commit.

    A callback could not do this: kpipe also commits at moments that no callback sees.
    """
    commit, calls = Checkpoints.commit, itertools.count(1)

    def act_and_commit(self, *arguments, **options):
        if next(calls) == nth:
            action(self)
        return commit(self, *arguments, **options)

    replace(Checkpoints, "commit", act_and_commit)


@dataclass(frozen=True)
class Phase:
    """A phase of a training, recognized by the method that it calls.

    Attributes:
        owner: the class of the method.
        method: its name.
        calls: the first and the last call in which a signal may be sent.
        longest_delay: seconds between the beginning of the call and the signal, at most.
    """

    owner: type
    method: str
    calls: tuple[int, int]
    longest_delay: float


PHASES = {
    "tracing": Phase(Trainer, "run_steps", (1, 1), 0.6),  # the first call trains no step, it only traces
    "training": Phase(Trainer, "run_steps", (2, 16), 0.02),
    "evaluation": Phase(Trainer, "evaluate", (1, 5), 0.02),
    "saving": Phase(Checkpoints, "commit", (1, 7), 0.02),
}


def send_signal(pipe, phase: str, number: int, nth: int, delay: float) -> None:
    """Send this process a signal `delay` seconds after the `nth` call of the phase's method has begun.

    At that moment the time and the step that the training has reached are sent through the pipe. A signal sent by the
    parent process could not hit a phase of milliseconds.
    """
    states = []
    fit = Trainer.fit

    def fit_and_keep_state(self, *arguments, state, **options):
        states.append(state)
        return fit(self, *arguments, state=state, **options)

    def shoot():
        pipe.send((time.monotonic(), states[-1].step if states else 0))
        os.kill(os.getpid(), number)

    owner, method = PHASES[phase].owner, PHASES[phase].method
    original, calls = getattr(owner, method), itertools.count(1)

    def call(*arguments, **options):
        if next(calls) == nth:
            call_later(delay, shoot)
        return original(*arguments, **options)

    replace(Trainer, "fit", fit_and_keep_state)
    replace(owner, method, call)
