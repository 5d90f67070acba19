"""Breaks trainings on purpose and counts what survives; Keras's own means get the same blows.

    python benchmarks/faults.py [--quick] [--json FILE] [--only NAME ...] [--seed N] [--jobs N]

Every fault is real where it can be: processes are killed and signalled, files are damaged, a disk is full. What counts
as survived stands in the docstring of each fault. Whatever the benchmark itself did not foresee counts as lost. The
exit status is 1 if kpipe has lost anything.

`--json FILE` writes `{"date", "hardware", "versions", "rows"}`. A row is `{"fault", "variant", "tried", "survived",
"lost"}`, or, of the cost of a commit, `{"work", "variant", "items", "cpu_seconds", "wall_seconds", "bytes"}`: medians
for one commit with and without fsync, and the time of one epoch to compare them with.
"""

import argparse
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from multiprocessing.connection import wait
from pathlib import Path

from report import write_json
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kpipe import cli
from kpipe.config import load_experiment
from kpipe.console import hold_back_libraries

with hold_back_libraries():  # TensorFlow has much to say when it is imported
    import h5py
    import keras
    import numpy as np
    import tensorflow as tf

    import kpipe.experiment
    from kpipe.models import build_model
    from kpipe.training import checkpoints as checkpoints_module
    from kpipe.training.checkpoints import Checkpoints
    from kpipe.training.trainer import Trainer, _Loop

FORK = multiprocessing.get_context("forkserver")  # children are forked off a process that has imported TensorFlow
FORK.set_forkserver_preload(["kpipe.experiment"])
PATIENCE = 120  # seconds, for whatever should take a few
SOON = 2.0  # seconds within which a signal and a refused start are obeyed
MEMBERS = ("weights.npz", "training.npz", "state.json")
ROOT = Path(__file__).parents[1]

stopping = threading.Event()


class Lost(Exception):
    """What was promised did not hold."""


def expect(holds: object, otherwise: str) -> None:
    if not holds:
        raise Lost(otherwise)


# --- processes --------------------------------------------------------------------------------------------------------


class Child:
    """A process started here; `pid`, its exit code, what it has printed, and for a forked one a pipe to it."""

    def __init__(self, output: Path, work: Callable | None, arguments: Sequence, environment: dict[str, str]):
        """`work(pipe, *arguments)` in a forked process, or, without it, a program with these arguments."""
        self.output = output
        self.pipe = None
        self.acknowledged = 0  # the last step whose commit was told
        if work is None:
            with open(output / "out", "wb") as out, open(output / "err", "wb") as err:
                self._program = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=os.environ | environment
                )
            self.pid = self._program.pid
            return
        self._program = None
        self.pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=_work, args=(theirs, str(output), environment, work, arguments))
        self._process.start()
        theirs.close()
        self.pid = self._process.pid

    def exit_code(self, seconds: float = PATIENCE) -> int | None:
        """Waits for the end; None: it has not come. Negative: the number of the signal that brought it."""
        if self._program is None:
            self._process.join(max(seconds, 0))
            return self._process.exitcode
        with suppress(subprocess.TimeoutExpired):
            return self._program.wait(max(seconds, 0))
        return None

    def signal(self, number: int) -> None:
        if self.exit_code(0) is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self.exit_code()

    def receive(self, seconds: float = PATIENCE):
        """The next message."""
        expect(self.pipe.poll(seconds), f"process {self.pid} has not answered in {seconds} seconds")
        try:
            return self.pipe.recv()
        except EOFError:
            raise Lost(f"process {self.pid} has ended ({self.exit_code()}): {self.said('err')[-600:]}") from None

    def received(self) -> list:
        """The messages that are there already."""
        messages = []
        with suppress(EOFError, OSError):
            while self.pipe.poll(0):
                messages.append(self.pipe.recv())
        return messages

    def said(self, stream: str) -> str:
        return (self.output / stream).read_text(errors="replace")


def _work(pipe, output: str, environment: dict[str, str], work: Callable, arguments: Sequence) -> None:
    """What a forked process does."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(work(pipe, *arguments))


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@dataclass
class Site:
    """Where one fault happens to one variant: a folder, random numbers of its own, and what was found."""

    folder: Path
    random: random.Random
    quick: bool
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _count: Iterator[int] = field(default_factory=itertools.count)
    _children: list[Child] = field(default_factory=list)

    def new(self, name: str) -> Path:
        path = self.folder / f"{next(self._count):04}-{name}"
        path.mkdir(parents=True)
        return path

    def fork(self, work: Callable, *arguments, **environment: str) -> Child:
        return self._start(work, arguments, environment)

    def launch(self, *arguments: str, **environment: str) -> Child:
        """`python -m kpipe.run`, a whole process."""
        environment |= {"PYTHONUNBUFFERED": "1"}  # what a killed process has said shall be seen
        return self._start(None, (sys.executable, "-m", "kpipe.run", *arguments), environment)

    def _start(self, work, arguments, environment) -> Child:
        expect(not stopping.is_set(), "the benchmark is being stopped")
        self._children = [child for child in self._children if child.exit_code(0) is None]
        child = Child(self.new("output"), work, arguments, environment)
        self._children.append(child)
        return child

    def end_children(self) -> None:
        for child in self._children:
            child.signal(signal.SIGKILL)
        for child in self._children:
            child.exit_code()

    def survives(self, attempt: Callable[..., None], *arguments) -> bool:
        """Whether an attempt found all that was promised."""
        try:
            attempt(*arguments)
        except Exception as error:
            if stopping.is_set():
                raise
            what = str(error) if isinstance(error, Lost) else f"{type(error).__name__}: {error}"
            self.losses.append(what)
            return False
        return True


# --- experiments ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """An experiment file."""

    name: str
    model: str
    size: int
    images: int
    epochs: int
    batch_size: int
    save_every: int
    precision: str = "float32"
    classes: int = 10

    def write(self, folder: Path) -> str:
        path = folder / f"{self.name}.yaml"
        path.write_text(
            f"data: {{source: synthetic, image_size: {self.size}, channels: 1, batch_size: {self.batch_size}, "
            "augment: [{pad_crop: {padding: 2}}, flip_horizontal], "
            f"synthetic: {{classes: {self.classes}, images: {self.images}}}}}\n"
            f"model: {{{self.model}}}\n"
            f"training: {{epochs: {self.epochs}, precision: {self.precision}, learning_rate: {{peak: 2e-4}}, "
            f"log_every: {{steps: 5}}, checkpoint: {{every: {{steps: {self.save_every}}}}}}}\n"
        )
        return str(path)


SMALL = Plan("small", "name: lenet5", size=16, images=500, epochs=3, batch_size=16, save_every=7)
LENET = Plan("lenet", "name: lenet5", size=28, images=4000, epochs=20, batch_size=64, save_every=37)
ALEXNET = Plan("alexnet", "name: alexnet, width: 64", size=28, images=1000, epochs=5, batch_size=32, save_every=9)
PRECISIONS = ("float32", "mixed_bfloat16")


def run_kpipe(pipe, arguments: Sequence[str], prelude: Callable | None = None, *prepared) -> int:
    """`python -m kpipe.run ARGUMENTS` in this process, once `prelude` has prepared what shall happen to it."""
    sys.argv = ["run.py", *arguments]
    if prelude:
        prelude(pipe, *prepared)
    return cli.main(["run", *arguments])


def leave_out_figures(pipe) -> None:
    """Nothing here looks at them, and they take half of the time of a run as small as these."""
    kpipe.experiment._write_figures = lambda *arguments: None


def runs_in(logs: Path) -> list[Path]:
    return sorted(path for path in logs.glob("*/*") if path.is_dir())


def only_run(logs: Path) -> Path:
    runs = runs_in(logs)
    expect(len(runs) == 1, f"expected one run in {logs}, found {[run.name for run in runs]}")
    return runs[0]


_references: dict[Plan, Path] = {}
_references_lock = threading.Lock()


def reference(site: Site, plan: Plan) -> Path:
    """The run of a plan that nothing has happened to; made once."""
    with _references_lock:
        if plan not in _references:
            logs = site.new("reference")
            child = site.fork(run_kpipe, [plan.write(logs)], leave_out_figures, KPIPE_LOGS=str(logs))
            if child.exit_code() != 0:
                raise RuntimeError(f"{plan.name} does not even run undisturbed: {child.said('err')}")
            _references[plan] = only_run(logs)
        return _references[plan]


def finish(site: Site, plan: str, logs: Path, expected: Path) -> str:
    """Gives the same command again, which must end as the undisturbed run has; returns what it printed."""
    child = site.fork(run_kpipe, [plan], leave_out_figures, KPIPE_LOGS=str(logs))
    code = child.exit_code()
    expect(code == 0, f"the relaunched command ended with {code}: {child.said('err')[-600:]}")
    compare_runs(only_run(logs), expected)
    return child.said("out")


# --- what is on the disk, read without kpipe --------------------------------------------------------------------------


def signature(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_whole(checkpoint: Path) -> None:
    """Every member as the manifest describes it, and the manifest as it was signed."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    expect(manifest.pop("sha256") == signature(manifest), f"{checkpoint}: the manifest is damaged")
    expect(checkpoint.name == f"step-{manifest['step']:08}", f"{checkpoint}: is of step {manifest['step']}")
    expect(set(manifest["members"]) == set(MEMBERS), f"{checkpoint}: members {sorted(manifest['members'])}")
    for name, said in manifest["members"].items():
        content = (checkpoint / name).read_bytes()
        expect(len(content) == said["bytes"], f"{checkpoint / name}: has {len(content)} bytes of {said['bytes']}")
        expect(hashlib.sha256(content).hexdigest() == said["sha256"], f"{checkpoint / name}: another checksum")


def pointed_step(run: Path) -> int | None:
    """The step that `latest` names; None: nothing was committed."""
    try:
        return int((run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    except FileNotFoundError:
        return None


def check_no_debris(folder: Path) -> None:
    """No file that is hidden or half-written, at any depth."""
    found = [path for path in folder.rglob("*") if path.name[0] == "." or path.suffix in (".part", ".tmp", ".gone")]
    expect(not found, f"debris: {[str(path.relative_to(folder)) for path in found]}")


def timeless(record: dict) -> dict:
    return {key: value for key, value in record.items() if not key.endswith(("seconds", "per_second"))}


def network_of(path: Path) -> dict[str, bytes]:
    """The arrays of a .keras file."""
    arrays = {}

    def keep(name, found):
        if isinstance(found, h5py.Dataset):
            arrays[name] = (str(found.dtype), found.shape, found[()].tobytes())

    with zipfile.ZipFile(path) as archive, h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(keep)
    return arrays


def arrays_of(path: Path) -> dict[str, tuple]:
    with np.load(path) as file:
        return {name: (str(file[name].dtype), file[name].shape, file[name].tobytes()) for name in file.files}


def charts_of(run: Path) -> dict[tuple[str, str], list[int]]:
    """The steps of every tag of TensorBoard, in the order of the event files."""
    steps: dict[tuple[str, str], list[int]] = {}
    for file in sorted(run.glob("*/events.out.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                steps.setdefault((file.parent.name, value.tag), []).append(event.step)
    return steps


def is_finished(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "finished"


def compare_runs(run: Path, expected: Path, *, tidy: bool = True) -> None:
    """Network, last checkpoint and logs to the last bit, but for what is a time; and, if `tidy`, no debris."""
    expect(network_of(run / "model.keras") == network_of(expected / "model.keras"), "model.keras differs")
    step = pointed_step(run)
    expect(step is not None and step == pointed_step(expected), f"the last checkpoint is of step {step}")
    ours, theirs = (path / "checkpoints" / f"step-{step:08}" for path in (run, expected))
    check_whole(ours)
    for name in ("weights.npz", "training.npz"):
        expect(arrays_of(ours / name) == arrays_of(theirs / name), f"{name} of the last checkpoint differs")
    lines = [[timeless(json.loads(line)) for line in open(path / "metrics.jsonl")] for path in (run, expected)]
    expect(lines[0] == lines[1], "metrics.jsonl differs")
    charts = charts_of(run)
    for (part, tag), steps in charts.items():
        rises = all(a < b for a, b in itertools.pairwise(steps))
        expect(rises, f"TensorBoard: the steps of {part}/{tag} do not always increase: {steps}")
    expect(charts == charts_of(expected), "TensorBoard shows other steps than the undisturbed run")
    if tidy:
        check_no_debris(run)


# --- models whose variables tell their step ---------------------------------------------------------------------------


def make_lenet() -> keras.Model:
    """LeNet-5 with Adam, all its variables built."""
    model = build_model("lenet5", {}, input_shape=(28, 28, 1), classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(optimizer="adam", loss=loss, metrics=[accuracy], jit_compile=False)
    Trainer(model)  # builds the variables of optimizer and metrics
    return model


def variables_of(model: keras.Model, *, metrics: bool = True) -> list[keras.Variable]:
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    return variables + model.metrics_variables * metrics


def value_at(step: int, index: int, variable: keras.Variable) -> np.ndarray:
    """Numbers that are others at every place and every step, so that a mixture of two steps is recognised."""
    numbers = (31 * step + 7 * index + np.arange(np.prod(variable.shape, dtype=int))) % 8191
    return numbers.reshape(variable.shape).astype(variable.dtype)


def set_values(model: keras.Model, step: int) -> None:
    for index, variable in enumerate(variables_of(model)):
        variable.assign(value_at(step, index, variable))


def differing(model: keras.Model, step: int, *, metrics: bool = True) -> str:
    """Names a variable that does not have its value of this step; empty: there is none."""
    for index, variable in enumerate(variables_of(model, metrics=metrics)):
        if not np.array_equal(variable.numpy(), value_at(step, index, variable)):
            return variable.path
    return ""


def state_at(step: int) -> dict:
    return {"step": step, "words": [str(step)] * 100, "array": np.arange(step, step + 9)}


def is_state_at(state: dict, step: int) -> bool:
    wanted = state_at(step)
    arrays = np.array_equal(state.pop("array"), wanted.pop("array"))
    return arrays and state == wanted


def restore(model: keras.Model, checkpoints: Checkpoints) -> tuple[int, tuple[str, ...], str]:
    """Over variables that have no step's values: the step, what was passed over, and what is not of that step."""
    set_values(model, -1)
    restored = checkpoints.restore(model)
    wrong = differing(model, restored.step)
    if not is_state_at(restored.state, restored.step):
        wrong += " and the state"
    return restored.step, restored.skipped, wrong


# --- kills while saving -----------------------------------------------------------------------------------------------

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


# --- chained kills of whole runs --------------------------------------------------------------------------------------


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


def fit_stock(pipe, plan: str, folder: Path, shoot: tuple | None = None) -> None:
    """The plan's network and data in `keras.Model.fit`; tells when it has trained a step, and leaves end.npz."""
    experiment = load_experiment(plan).experiment
    kpipe.experiment.seed_everything(experiment.seed, deterministic=True)
    prepared = kpipe.experiment.prepare(experiment)
    train, validation = prepared.splits.train, prepared.splits.validation
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=experiment.training.checkpoint.every.steps)
    prepared.model.fit(
        train.images,
        train.labels,
        batch_size=experiment.data.batch_size,
        epochs=experiment.training.epochs,
        validation_data=(validation.images, validation.labels),
        verbose=0,
        callbacks=[TellOnce(pipe), backup, *([Shoot(pipe, backup, *shoot)] if shoot else [])],
    )
    np.savez(folder / "end.npz", **{variable.path: variable.numpy() for variable in prepared.model.variables})


class TellOnce(keras.callbacks.Callback):
    """Says "trains" after the first step."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe, self.told = pipe, False

    def on_train_batch_end(self, batch, logs=None):
        if not self.told:
            self.pipe.send("trains")
        self.told = True


# --- signals ----------------------------------------------------------------------------------------------------------

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
PHASES = {
    "tracing": (Trainer, "run_steps", 1, 0.6),
    "training": (_Loop, "run_chunk", 15, 0.02),
    "evaluation": (Trainer, "evaluate", 5, 0.02),
    "saving": (Checkpoints, "commit", 7, 0.02),
}
"""Where each begins, up to which of its calls is waited for, and for how many seconds at most from there."""


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


@contextmanager
def prefixed(where: str) -> Iterator[None]:
    try:
        yield
    except Lost as loss:
        raise Lost(f"{where}: {loss}") from None


def wait_for_handler(child: Child) -> None:
    """Until Python has come as far as kpipe's own first line of work; before that nobody could answer a signal."""
    status = Path(f"/proc/{child.pid}/status")
    while status.exists() and child.exit_code(0) is None:
        caught = int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    time.sleep(0.5)  # where there is no such file


def send_signal_in(pipe, phase: str, number: int, nth: int, delay: float) -> None:
    """Arms the real signal: `delay` seconds after the `nth` call of the phase's function."""
    loops = []
    run = _Loop.run
    _Loop.run = lambda self, *arguments: loops.append(self) or run(self, *arguments)
    owner, name, *_ = PHASES[phase]
    inner, calls = getattr(owner, name), itertools.count(1)

    def shoot():
        pipe.send((time.monotonic(), loops[-1].state.step if loops else 0))
        os.kill(os.getpid(), number)

    def entered(*arguments, **options):
        if next(calls) == nth:
            start_timer(delay, shoot)
        return inner(*arguments, **options)

    setattr(owner, name, entered)


def start_timer(delay: float, shoot: Callable[[], None]) -> None:
    timer = threading.Timer(delay, shoot)
    timer.daemon = True
    timer.start()


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


class Shoot(keras.callbacks.Callback):
    """Sends this process a signal in a phase of `fit`."""

    def __init__(self, pipe, backup, phase: str, number: int, nth: int, delay: float):
        super().__init__()
        self.pipe, self.number, self.delay = pipe, number, delay
        self.left = {phase: nth}
        save = backup._save_model
        backup._save_model = lambda: self.enter("saving") or save()

    def enter(self, phase: str) -> None:
        if phase not in self.left:
            return
        self.left[phase] -= 1
        if self.left[phase] == 0:
            start_timer(self.delay, self.shoot)

    def shoot(self):
        self.pipe.send(int(self.model.optimizer.iterations))
        os.kill(os.getpid(), self.number)

    def on_train_batch_begin(self, batch, logs=None):
        self.enter("training")

    def on_test_begin(self, logs=None):
        self.enter("evaluation")


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


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """What happens to one file."""

    kind: str
    file: str
    place: float = 0.0
    """As a share of the file."""
    bit: int = 0

    def do(self, folder: Path, canary: Path) -> None:
        path = folder / self.file
        place = min(int(self.place * path.stat().st_size), path.stat().st_size - 1)
        if self.kind == "truncated":
            os.truncate(path, place)
        elif self.kind == "bit flipped":
            content = bytearray(path.read_bytes())
            content[place] ^= 1 << self.bit
            path.write_bytes(content)
        elif self.kind == "deleted":
            path.unlink()
        elif self.kind == "symlink":
            elsewhere = folder.parent / f"elsewhere-{path.name}"
            path.rename(elsewhere)
            path.symlink_to(elsewhere)
        elif self.kind == "pickle":
            plant_pickle(path, canary)
        elif self.kind == "nonsense":
            path.write_bytes(b"\xff\x00step-")


def list_damages(site: Site, files: Sequence[str], places: int) -> list[Damage]:
    """Truncated, bits flipped and deleted, over all files."""
    found = []
    for file in files:
        shares = [0.0, 1.0, *(site.random.random() for _ in range(places - 2))]
        found += [Damage("truncated", file, share) for share in shares]
        bits = ((site.random.random(), site.random.randrange(8)) for _ in range(places))
        found += [Damage("bit flipped", file, *bit) for bit in bits]
        found.append(Damage("deleted", file))
    return found


def take_by_kind(damages: list[Damage], count: int) -> list[Damage]:
    """`count` of them, of as many kinds and files as possible."""
    by_kind: dict[str, list[Damage]] = {}
    for damage in damages:
        by_kind.setdefault(damage.kind, []).append(damage)
    rows = itertools.zip_longest(*by_kind.values())
    return [damage for row in rows for damage in row if damage][:count]


class _Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def plant_pickle(member: Path, canary: Path) -> None:
    """An object among the arrays, and a manifest that says that this is as it should be."""
    with np.load(member) as file:
        arrays = dict(file)
    arrays[next(iter(arrays))] = np.array([_Canary(canary)], dtype=object)
    np.savez(member, **arrays)
    path = member.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    content = member.read_bytes()
    manifest["members"][member.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    path.write_text(json.dumps(manifest | {"sha256": signature(manifest)}))


def damaged_checkpoints(site: Site, count: int) -> Iterator[bool]:
    """Two commits; then the files of the newer one are truncated, flipped, deleted, made links, given a pickle.

    Survived: restoring names the damaged one, takes the one before, with every variable and the state exactly of that
    step, and no pickle was run. Without a legible pointer nothing is damaged: the newest is taken without a word.
    """
    files = [f"step-00000002/{name}" for name in (*MEMBERS, "manifest.json")]
    damages = list_damages(site, files, places=4)
    damages += [Damage("symlink", file) for file in files]
    damages += [Damage("pickle", file) for file in files[:2]]
    damages += [Damage("deleted", "latest"), Damage("truncated", "latest"), Damage("nonsense", "latest")]
    whole = site.new("whole")
    child = site.fork(restore_on_request, whole)
    child.receive()
    site.random.shuffle(damages)
    for damage in take_by_kind(damages, count):
        if child.exit_code(0) is not None:
            child = site.fork(restore_on_request, whole)
            child.receive()
        yield site.survives(damage_once, site, child, whole, damage)


def restore_on_request(pipe, whole: Path) -> None:
    """Commits twice if there is nothing yet; then answers each folder with what is restored from it."""
    model = make_lenet()
    if not list(whole.iterdir()):
        for step in (1, 2):
            set_values(model, step)
            Checkpoints(whole).commit(model, state_at(step), step=step)
    pipe.send("ready")
    while True:
        folder = pipe.recv()
        try:
            pipe.send(restore(model, Checkpoints(folder)))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def damage_once(site: Site, child: Child, whole: Path, damage: Damage) -> None:
    folder = site.new("damaged") / "checkpoints"
    shutil.copytree(whole, folder)
    canary = folder.parent / "canary"
    damage.do(folder, canary)
    child.pipe.send(folder)
    answer = child.receive()
    with prefixed(str(damage)):
        expect(not canary.exists(), "the pickle was run")
        expect(not isinstance(answer, str), f"nothing was restored: {answer}")
        step, skipped, wrong = answer
        expect(not wrong, f"{wrong} is not of step {step}")
        harmless = damage.file == "latest"
        expect(step == (2 if harmless else 1), f"step {step} was restored")
        named = [str(folder / "step-00000002") in line for line in skipped]
        expect(named == ([] if harmless else [True]), f"said: {skipped}")


@dataclass(frozen=True)
class StockFile:
    """How Keras keeps a training in files."""

    files: tuple[str, ...]
    save: Callable[[keras.Model, Path], None]
    load: Callable[[keras.Model, Path], None]


def _back_up(model: keras.Model, folder: Path) -> None:
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1, double_checkpoint=True)
    backup.set_model(model)
    backup.on_train_batch_end(1)


def _load_backup(model: keras.Model, folder: Path) -> None:
    model._initial_epoch = None
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=1, double_checkpoint=True)
    backup.set_model(model)
    backup.on_train_begin()
    if model._initial_epoch != 0:
        raise Lost("another epoch was restored")


BACKUP = StockFile(("latest.weights.h5", "training_metadata.json"), _back_up, _load_backup)
WEIGHTS_FILE = StockFile(
    ("all.weights.h5",),
    lambda model, folder: model.save_weights(folder / "all.weights.h5"),
    lambda model, folder: model.load_weights(folder / "all.weights.h5"),
)
STOCK_FILES = {"backup": BACKUP, "weights": WEIGHTS_FILE}


def damaged_stock(site: Site, count: int, *, how: str) -> Iterator[bool]:
    """The same damage to the files of BackupAndRestore (with double_checkpoint=True) or of `save_weights`.

    Survived: an error is raised, or weights, optimizer and epoch are those of one of the two saves.
    """
    damages = list_damages(site, STOCK_FILES[how].files, places=10)
    whole = site.new("whole")
    child = site.fork(load_on_request, whole, how)
    child.receive()
    site.random.shuffle(damages)
    for damage in take_by_kind(damages, count):
        if child.exit_code(0) is not None:
            child = site.fork(load_on_request, whole, how)
            child.receive()
        yield site.survives(damage_stock_once, site, child, whole, damage)


def load_on_request(pipe, whole: Path, how: str) -> None:
    model, stock = make_lenet(), STOCK_FILES[how]
    if not list(whole.iterdir()):
        for step in (1, 2):
            set_values(model, step)
            stock.save(model, whole)
    pipe.send("ready")
    while True:
        folder = pipe.recv()
        set_values(model, -1)
        try:
            stock.load(model, folder)
        except Lost as loss:
            pipe.send(str(loss))
        except Exception:
            pipe.send("")  # it is noticed
        else:
            wrong = [differing(model, step, metrics=False) for step in (1, 2)]
            pipe.send("" if "" in wrong else f"{wrong[1]} was restored wrongly")


def damage_stock_once(site: Site, child: Child, whole: Path, damage: Damage) -> None:
    folder = site.new("damaged") / "files"
    shutil.copytree(whole, folder)
    damage.do(folder, folder)
    child.pipe.send(folder)
    answer = child.receive()
    expect(not answer, f"{damage}: {answer}")


# --- disk full --------------------------------------------------------------------------------------------------------

TMPFS_BYTES = 2_000_000


def disk_full(site: Site, count: int) -> Iterator[bool]:
    """A commit of a whole run finds no room: a limit to the size of files, a full tmpfs, ENOSPC where it can come.

    The last is given by write, fsync or rename, from a random call on; instead of a tmpfs where none may be mounted.
    Survived: the exit code is 5; the message names the path and how many bytes are missing where; the checkpoint before
    is whole and nothing lies about; with room again the same command goes on from a whole checkpoint and ends
    bit-identical to the undisturbed run, so that exactly what was saved was restored.
    """
    expected = reference(site, SMALL)
    kinds = ["limit", "tmpfs" if can_mount(site) else "write", "write", "fsync", "rename"]
    if site.quick:
        kinds = ["limit", kinds[1], site.random.choice(kinds[2:])]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        yield site.survives(fill_once, site, kind, expected)


def can_mount(site: Site) -> bool:
    try:
        with mounted(site.new("mount")):
            return True
    except (OSError, subprocess.SubprocessError):
        site.notes.append("disk full: no tmpfs may be mounted here; injected errors instead")
        return False


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", folder], **quiet)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], **quiet)


def fill_once(site: Site, kind: str, expected: Path) -> None:
    with ExitStack() as stack:
        logs = site.new(f"logs-{kind}")
        plan = SMALL.write(site.new("plan"))
        if kind == "tmpfs":
            stack.enter_context(mounted(logs))
        calls = {"write": 5, "fsync": 7, "rename": 3}.get(kind, 1)  # in one commit
        how = (kind, site.random.randint(2, 6), site.random.random(), site.random.randrange(calls))
        child = site.fork(run_kpipe, [plan], fill_disk, *how, str(logs), KPIPE_LOGS=str(logs))
        with prefixed(f"{kind}, {how[1:]}"):
            before, code = child.receive(), child.exit_code()
            said = child.said("err")
            expect(code == 5, f"the exit code is {code}: {said[-600:]}")
            run = only_run(logs)
            expect(str(run) in said and re.search(r"[\d,]+ bytes", said), f"path and bytes are not named: {said!r}")
            check_whole(run / "checkpoints" / f"step-{before:08}")
            check_no_debris(run)
            step = pointed_step(run)
            expect(step >= before, f"the pointer names step {step}, {before} was committed")
            (logs / "filler").unlink(missing_ok=True)
            expect(f"resumed after step {step}" in finish(site, plan, logs, expected), "it was not resumed")


def fill_disk(pipe, kind: str, nth: int, share: float, call: int, logs: str) -> None:
    """Arms it: the `nth` commit finds `share` of a checkpoint free, or its `call`th call of this kind fails."""
    commit, commits = Checkpoints.commit, itertools.count(1)

    def commit_on_a_full_disk(self, *arguments, **options):
        if next(commits) == nth:
            pipe.send(int(self.latest.name.removeprefix("step-")))
            sizes = [file.stat().st_size for file in self.latest.iterdir()]
            if kind == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * max(sizes)), resource.RLIM_INFINITY))
            elif kind == "tmpfs":
                leave_free(Path(logs), int(share * sum(sizes)))
            else:
                refuse_calls(kind, call, share)
        return commit(self, *arguments, **options)

    Checkpoints.commit = commit_on_a_full_disk


def leave_free(folder: Path, size: int) -> None:
    with open(folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - size))


def refuse_calls(kind: str, first: int, share: float) -> None:
    """From its call number `first` on, counted from 0, `kind` has no space left."""
    calls = itertools.count()

    def refuses(path) -> None:
        if next(calls) >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def refusing(function):
        return lambda path, *arguments: refuses(path) or function(path, *arguments)

    if kind == "fsync":
        os.fsync = refusing(os.fsync)
    elif kind == "rename":
        os.rename, os.replace = refusing(os.rename), refusing(os.replace)
    else:
        checkpoints_module.open = partial(_open_refusing, refuses, share)


def _open_refusing(refuses: Callable, share: float, path, mode: str = "r", **options):
    file = open(path, mode, **options)
    if "w" in mode:
        write = file.write
        refused = None
        try:
            refuses(path)
        except OSError as error:
            refused = error

        def write_some(content):
            if refused:
                write(bytes(content)[: int(share * len(content))])
                raise refused
            return write(content)

        return _Writer(file, write_some)
    return file


class _Writer:
    """A file whose `write` is another."""

    def __init__(self, file, write: Callable):
        self._file, self.write = file, write

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


def disk_full_stock(site: Site, count: int, *, how: str) -> Iterator[bool]:
    """The same limit and the same tmpfs for `model.save` to one path, or for BackupAndRestore.

    Survived: an earlier save, or the new one, can be loaded afterwards, with all its values. The tmpfs is milder to
    them than to kpipe: they overwrite the old file, which makes the room that the new one needs.
    """
    kinds = ["limit", "tmpfs"] if can_mount(site) else ["limit"]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        yield site.survives(fill_stock_once, site, kind, how)


def fill_stock_once(site: Site, kind: str, how: str) -> None:
    folder = site.new(f"stock-{kind}")
    with mounted(folder) if kind == "tmpfs" else ExitStack():
        child = site.fork(save_on_full_disk, folder, kind, how, site.random.random())
        answer = child.receive()
        child.end()
    expect(not answer, f"{kind}: {answer}")


def save_on_full_disk(pipe, folder: Path, kind: str, how: str, share: float) -> None:
    """Saves twice, the second time without room; sends what is wrong with what can be loaded then."""
    model = make_lenet()
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=1)
    backup.set_model(model)
    save = {"save": lambda: model.save(folder / "model.keras"), "backup": lambda: backup.on_train_batch_end(1)}[how]
    set_values(model, 1)
    save()
    size = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), resource.RLIM_INFINITY))
    else:
        leave_free(folder, int(share * size))
    set_values(model, 2)
    with suppress(Exception):
        save()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "filler").unlink(missing_ok=True)
    try:
        if how == "save":
            model = keras.models.load_model(folder / "model.keras")
        else:
            set_values(model, -1)
            _load_backup(model, folder / "backup")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    wrong = [differing(model, step, metrics=False) for step in (1, 2)]
    pipe.send("" if "" in wrong else f"{wrong[0]} was restored wrongly")


# --- simultaneous starts ----------------------------------------------------------------------------------------------

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


# --- the cost of a commit ---------------------------------------------------------------------------------------------

COSTS = {"LeNet-5": ROOT / "experiments" / "quickstart.yaml", "VGG-16": ROOT / "experiments" / "vgg16.yaml"}


def measure_costs(site: Site) -> list[dict]:
    """Of each experiment: a commit with and without fsync, by turns, and the training between two commits."""
    rows = []
    for name, path in COSTS.items():
        commits, epochs = (3, 1) if site.quick else (20, 3)
        child = site.fork(measure_commits, name, str(path), site.new("cost"), commits, epochs)
        rows += child.receive(600)
        child.exit_code()
    return rows


def measure_commits(pipe, name: str, path: str, folder: Path, commits: int, epochs: int) -> None:
    """By default a run commits once an epoch: the share of the time is commit / (commit + epoch)."""
    experiment = load_experiment(path, ["training.epochs=100"]).experiment  # more than will be done
    kpipe.experiment.seed_everything(experiment.seed, kpipe.experiment.choose(experiment).deterministic)
    prepared = kpipe.experiment.prepare(experiment)
    trainer, checkpoints = Trainer(prepared.model), Checkpoints(folder / "checkpoints")
    iterator = iter(prepared.batches_from(0))
    trainer.run_steps(iterator, 1)
    steps = prepared.steps_per_epoch if epochs > 1 else min(10, prepared.steps_per_epoch)
    times = [timed(lambda: trainer.run_steps(iterator, steps)) for _ in range(epochs if epochs > 1 else 1)]
    scale = prepared.steps_per_epoch / steps
    images = prepared.steps_per_epoch * experiment.data.batch_size
    rows = [cost_row(f"epoch of {name}", "kpipe", images, [(cpu * scale, wall * scale) for cpu, wall in times], 0)]
    fsync, by_variant = os.fsync, {"fsync": [], "no_fsync": []}
    for step, variant in enumerate(list(by_variant) * (commits + 1), start=1):
        os.fsync = fsync if variant == "fsync" else lambda descriptor: None
        state = kpipe.experiment.Progress().to_dict()
        commit = partial(checkpoints.commit, prepared.model, state, step=step, best_step=step, logs={})
        by_variant[variant].append(timed(commit))
    os.fsync = fsync
    size = sum(file.stat().st_size for file in checkpoints.latest.iterdir())
    for variant, found in by_variant.items():
        rows.append(cost_row(f"commit of {name}", variant, 1, found[1:], size))  # the first finds nothing to remove
    pipe.send(rows)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the CPU and of the wall clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def cost_row(work: str, variant: str, items: int, times: list[tuple[float, float]], size: int) -> dict:
    cpu, wall = (round(statistics.median(column), 6) for column in zip(*times, strict=True))
    return {"work": work, "variant": variant, "items": items, "cpu_seconds": cpu, "wall_seconds": wall, "bytes": size}


# --- the table of faults ----------------------------------------------------------------------------------------------

Attempts = Callable[[Site, int], Iterator[bool]]


@dataclass(frozen=True)
class Variant:
    """One thing that a fault happens to, and how often."""

    name: str
    attempts: Attempts
    full: int
    quick: int


@dataclass(frozen=True)
class Fault:
    name: str
    variants: tuple[Variant, ...]


FAULTS = (
    Fault(
        "kills while saving",
        (
            Variant("kpipe", kills_while_saving, 200, 10),
            Variant("keras_backup", partial(kills_while_backing_up, double=False), 40, 3),
            Variant("keras_backup_double", partial(kills_while_backing_up, double=True), 40, 3),
        ),
    ),
    Fault(
        "chained kills of whole runs",
        (Variant("kpipe", chained_kills, 20, 3), Variant("keras_backup", chained_kills_of_fit, 20, 2)),
    ),
    Fault("signals", (Variant("kpipe", signals, 60, 5), Variant("keras_backup", signals_to_fit, 18, 3))),
    Fault(
        "damaged checkpoints",
        (
            Variant("kpipe", damaged_checkpoints, 45, 8),
            Variant("keras_backup_double", partial(damaged_stock, how="backup"), 42, 6),
            Variant("keras_save", partial(damaged_stock, how="weights"), 21, 6),
        ),
    ),
    Fault(
        "disk full",
        (
            Variant("kpipe", disk_full, 15, 3),
            Variant("keras_backup", partial(disk_full_stock, how="backup"), 10, 2),
            Variant("keras_save", partial(disk_full_stock, how="save"), 10, 2),
        ),
    ),
    Fault(
        "simultaneous starts",
        (Variant("kpipe", simultaneous_starts, 20, 2), Variant("keras_backup", simultaneous_fits, 5, 1)),
    ),
)
STOCK_NAMES = {
    "keras_backup": "BackupAndRestore",
    "keras_backup_double": "BackupAndRestore, double",
    "keras_save": "one file",
}


@dataclass
class Result:
    fault: str
    variant: str
    tried: int = 0
    survived: int = 0
    seconds: float = 0.0
    losses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def row(self) -> dict:
        counts = {"tried": self.tried, "survived": self.survived, "lost": self.tried - self.survived}
        return {"fault": self.fault, "variant": self.variant, **counts}


def make_site(fault: Fault, variant: Variant, root: Path, options: argparse.Namespace) -> Site:
    name = f"{fault.name}, {variant.name}"
    folder = root / re.sub(r"\W+", "-", name)
    folder.mkdir()
    return Site(folder, random.Random(f"{options.seed} {name}"), options.quick)


def run_variant(fault: Fault, variant: Variant, site: Site, progress: Progress) -> Result:
    result, began, name = Result(fault.name, variant.name), time.monotonic(), f"{fault.name}, {variant.name}"
    count = variant.quick if site.quick else variant.full
    task = progress.add_task(name, total=count)
    try:
        for survived in variant.attempts(site, count):
            result.tried, result.survived = result.tried + 1, result.survived + survived
            progress.update(task, completed=result.tried, total=max(count, result.tried))
    finally:
        site.end_children()
    result.seconds, result.losses, result.notes = time.monotonic() - began, site.losses, site.notes
    progress.update(task, total=result.tried)
    if not progress.console.is_terminal:
        progress.console.print(f"{name}: {result.survived}/{result.tried} survived, {result.seconds:.0f} s")
    return result


def run_faults(chosen: Sequence[Fault], root: Path, options: argparse.Namespace, console: Console) -> list[Result]:
    pairs = [(fault, fault.variants[0]) for fault in chosen]  # kpipe's first: they take longer
    pairs += [(fault, variant) for fault in chosen for variant in fault.variants[1:]]
    sites = [make_site(*pair, root, options) for pair in pairs]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        try:
            work = [pool.submit(run_variant, *pair, site, progress) for pair, site in zip(pairs, sites, strict=True)]
            return [future.result() for future in work]
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for site in sites:
                site.end_children()
            raise


SHOWN = 5  # losses of a fault that are told


def show_faults(console: Console, results: list[Result]) -> None:
    table = Table(title="What survives")
    for column in ("fault", "tried", "survived", "lost", "stock Keras under the same blows"):
        table.add_column(column, justify="right" if column in ("tried", "survived", "lost") else "left")
    for ours in (result for result in results if result.variant == "kpipe"):
        stock = [
            f"{STOCK_NAMES[result.variant]} {result.survived}/{result.tried}"
            for result in results
            if result.fault == ours.fault and result.variant != "kpipe"
        ]
        numbers = (ours.tried, ours.survived, ours.tried - ours.survived)
        table.add_row(ours.fault, *map(str, numbers), "\n".join(stock))
    console.print(table)
    for result in results:
        for note in result.notes:
            console.print(f"{result.fault}, {result.variant}: {note}", markup=False, soft_wrap=True)
        if result.variant == "kpipe":
            for loss in result.losses[:SHOWN]:
                console.print(f"LOST: {result.fault}: {loss}", markup=False, style="bold red", soft_wrap=True)
            if (more := len(result.losses) - SHOWN) > 0:
                console.print(f"LOST: {result.fault}: {more} more", style="bold red")


def show_costs(console: Console, rows: list[dict]) -> None:
    table = Table(title="What a commit costs (one an epoch)")
    for column in ("network", "variant", "ms", "bytes", "share of the training time"):
        table.add_column(column, justify="left" if column in ("network", "variant") else "right")
    found = {(row["work"], row["variant"]): row for row in rows}
    for name in COSTS:
        epoch = found[f"epoch of {name}", "kpipe"]["wall_seconds"]
        for variant in ("fsync", "no_fsync"):
            row = found[f"commit of {name}", variant]
            share = row["wall_seconds"] / (row["wall_seconds"] + epoch)
            milliseconds = f"{1000 * row['wall_seconds']:.1f}"
            words = {"fsync": "with fsync", "no_fsync": "without fsync"}
            table.add_row(name, words[variant], milliseconds, f"{row['bytes']:,}", f"{100 * share:.1f} %")
    console.print(table)


def parse_arguments() -> argparse.Namespace:
    names = [fault.name for fault in FAULTS] + ["costs"]
    parser = argparse.ArgumentParser(description="Breaks trainings on purpose and counts what survives.")
    parser.add_argument("--quick", action="store_true", help="a few of each, within two minutes")
    parser.add_argument("--json", metavar="FILE", help="the same as raw numbers")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--seed", type=int, default=0, help="of all random moments and places")
    parser.add_argument("--jobs", type=int, default=2, help="faults at work at the same time")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    with hold_back_libraries():
        return run(options, Console(highlight=False, width=None if sys.stdout.isatty() else 120))


def run(options: argparse.Namespace, console: Console) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    tf.get_logger().setLevel("ERROR")
    chosen = [fault for fault in FAULTS if fault.name in options.only]
    with tempfile.TemporaryDirectory(prefix="kpipe-faults-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        (root / "tmp").mkdir()
        os.environ["TMPDIR"] = str(root / "tmp")  # where killed processes leave TensorFlow's temporary files
        results = run_faults(chosen, root, options, console)
        costs = []
        if "costs" in options.only:
            site = Site(root / "costs", random.Random(options.seed), options.quick)
            try:
                costs = measure_costs(site)
            finally:
                site.end_children()
    show_faults(console, results)
    if costs:
        show_costs(console, costs)
    if options.json:
        write_json(options.json, [result.row for result in results] + costs)
    return int(any(result.losses for result in results if result.variant == "kpipe"))


if __name__ == "__main__":
    sys.exit(main())
