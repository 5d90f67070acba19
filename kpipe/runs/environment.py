"""What a run's numbers depend on besides its experiment: versions, device, commit."""

import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf

from kpipe.catalog.own_code import find_file
from kpipe.config.schema import Experiment
from kpipe.names import path_shown
from kpipe.runs.directory import Run
from kpipe.training.device import describe_device
from kpipe.training.distribution import count_devices, make_strategy


def describe_environment(distribution: str = "none") -> dict[str, Any]:
    """Return versions, device and all else that numbers depend on, down to the last bit, and the code's commit.

    Args:
        distribution: `training.distribution`.
    """
    packages = ("kpipe", "tensorflow", "keras", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "platform": platform.platform(),
        "device": describe_device(count_devices(make_strategy(distribution))),
        # Other threads or kernels sum in another order.
        "threads": [tf.config.threading.get_intra_op_parallelism_threads(), os.cpu_count()],
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "git": _git_state(),
    }


def record_environment(run: Run, experiment: Experiment) -> list[str]:
    """Write environment.json; a resumed run keeps that of its beginning and adds its own.

    Args:
        run: the run directory.
        experiment: what is trained, resolved.

    Returns:
        Lines for the user about what has changed since.
    """
    now = {
        **describe_environment(experiment.training.distribution),
        **experiment.chosen.model_dump(),
        "precision_reason": experiment.chosen.precision_reason,
        "command": sys.argv,
        "seed": experiment.seed,
    }
    own = [experiment.model.name, *(entry.chosen[0] for entry in experiment.data.augment)]
    files = [file for name in own if (file := find_file(name)) and file.exists()]
    now["own_code"] = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    before = run.read_json("environment.json") if run.resumed else {}
    if not before:
        run.write_json("environment.json", now)
        return []
    run.write_json("environment.json", before | {"resumed": [*before.get("resumed", []), now]})
    then, today = ({**each.get("versions", {}), **each} for each in (before, now))
    names = [*now["versions"], "device", "threads", "onednn"]
    changed = [f"{name} was {then.get(name)}, is {today[name]}" for name in names if then.get(name) != today[name]]
    notes = [f"the last bits may differ from those of an uninterrupted run: {'; '.join(changed)}"] if changed else []
    code_then = before.get("own_code", {})
    return notes + [
        f"{path_shown(file)} has changed since the run began; the rest of the training may differ from its beginning"
        for file, digest in now["own_code"].items()
        if digest != code_then.get(file, digest)
    ]


def _git_state() -> dict[str, Any] | None:
    """Return the code's commit and whether it was changed since; None outside a checkout."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
