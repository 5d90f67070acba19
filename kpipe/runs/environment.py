"""What a run's numbers depend on besides its experiment: versions, device, commit."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf

from kpipe.training.device import describe_device


def describe_environment() -> dict[str, Any]:
    """Return versions, device and all else that numbers depend on, down to the last bit, and the code's commit."""
    packages = ("kpipe", "tensorflow", "keras", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "platform": platform.platform(),
        "device": describe_device(),
        # Other threads or kernels sum in another order.
        "threads": [tf.config.threading.get_intra_op_parallelism_threads(), os.cpu_count()],
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "git": _git_state(),
    }


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
