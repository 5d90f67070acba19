"""Experiment files and their runs."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from patches import leave_out_figures
from processes import Site, expect
from run_files import compare_runs

from kpipe import cli


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
