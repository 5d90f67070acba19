"""Experiments small enough to be trained many times, and kpipe's runs of them in child processes."""

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from expectations import expect
from patches import leave_out_figures
from processes import Child, Sandbox
from run_files import compare_runs

from kpipe import cli

COMMAND = "python -m kpipe.run"  # as kpipe names it in its messages


@dataclass(frozen=True)
class Experiment:
    """What varies between the experiment files of this benchmark."""

    name: str
    model: str
    image_size: int
    images: int
    epochs: int
    batch_size: int
    save_every: int
    """Steps between two checkpoints."""
    precision: str = "float32"

    def write(self, folder: Path) -> str:
        """Write the experiment file and return its path."""
        path = folder / f"{self.name}.yaml"
        path.write_text(
            f"data: {{source: synthetic, image_size: {self.image_size}, channels: 1, batch_size: {self.batch_size}, "
            "augment: [{pad_crop: {padding: 2}}, flip_horizontal], "
            f"synthetic: {{classes: 10, images: {self.images}}}}}\n"
            f"model: {{{self.model}}}\n"
            f"training: {{epochs: {self.epochs}, precision: {self.precision}, learning_rate: {{peak: 2e-4}}, "
            f"log_every: {{steps: 5}}, checkpoint: {{every: {{steps: {self.save_every}}}}}}}\n"
        )
        return str(path)


SMALL = Experiment("small", "name: lenet5", image_size=16, images=500, epochs=3, batch_size=16, save_every=7)
LENET = Experiment("lenet", "name: lenet5", image_size=28, images=4000, epochs=20, batch_size=64, save_every=37)
ALEXNET = Experiment(
    "alexnet", "name: alexnet, width: 64", image_size=28, images=1000, epochs=5, batch_size=32, save_every=9
)


def launch_kpipe(sandbox: Sandbox, file: str, logs: Path) -> Child:
    """Start `python -m kpipe.run FILE` as a program of its own."""
    # Unbuffered, so that what a killed process has printed can be read.
    return sandbox.launch(sys.executable, "-m", "kpipe.run", file, KPIPE_LOGS=str(logs), PYTHONUNBUFFERED="1")


def fork_kpipe(sandbox: Sandbox, arguments: Sequence[str], logs: Path, prepare: Callable, *options) -> Child:
    """Start `python -m kpipe.run ARGUMENTS` in a forked process, which is faster.

    Args:
        sandbox: where to start it.
        arguments: the experiment file, and options of the command.
        logs: the folder of the runs.
        prepare: called as `prepare(pipe, *options)` in the child before kpipe starts.
        options: of `prepare`.
    """
    return sandbox.fork(_run_kpipe, arguments, prepare, options, KPIPE_LOGS=str(logs))


def _run_kpipe(pipe, arguments: Sequence[str], prepare: Callable, options: Sequence) -> int:
    sys.argv = ["run.py", *arguments]  # from which kpipe takes the command that its messages name
    prepare(pipe, *options)
    return cli.main(["run", *arguments])


_undisturbed: dict[Experiment, Path] = {}
_undisturbed_lock = threading.Lock()


def undisturbed_run(sandbox: Sandbox, experiment: Experiment) -> Path:
    """Return the run of an experiment that nothing has happened to; it is trained once."""
    with _undisturbed_lock:
        if experiment not in _undisturbed:
            logs = sandbox.make_folder("undisturbed")
            child = fork_kpipe(sandbox, [experiment.write(logs)], logs, leave_out_figures)
            if child.exit_code() != 0:
                raise RuntimeError(f"{experiment.name} does not even run undisturbed: {child.stderr}")
            _undisturbed[experiment] = only_run(logs)
        return _undisturbed[experiment]


def finish(sandbox: Sandbox, file: str, logs: Path, undisturbed: Path) -> str:
    """Give the same command again, compare the finished run with the undisturbed one, and return what was printed."""
    child = fork_kpipe(sandbox, [file], logs, leave_out_figures)
    code = child.exit_code()
    expect(code == 0, f"the relaunched command ended with {code}: {child.stderr[-600:]}")
    compare_runs(only_run(logs), undisturbed)
    return child.stdout


def list_runs(logs: Path) -> list[Path]:
    return sorted(path for path in logs.glob("*/*") if path.is_dir())


def only_run(logs: Path) -> Path:
    """Return the only run there should be."""
    runs = list_runs(logs)
    expect(len(runs) == 1, f"expected one run in {logs}, found {[run.name for run in runs]}")
    return runs[0]


def is_finished(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "finished"
