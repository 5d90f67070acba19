"""Checking what was written: its own runtime, in a process of its own, must compute what the network computes.

B batch, H height, W width, C channels, K classes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kpipe.catalog.formats import FORMATS
from kpipe.errors import EnvironmentFault, first_line
from kpipe.names import path_shown

BOUND = 1e-4
"""Largest difference between logits, relative to the largest of them. Runtimes sum in another order, which was seen to
make differences of 3e-5 with batch normalization, and 1e-5 without. Half precision or a wrong constant makes 1e-3."""
INT8_BOUND = 0.5
"""The same for int8. It finds a broken file; how good a sound one is, only its accuracy says."""

_SCRIPT = """\
import sys
import numpy as np
images = np.load(sys.argv[1])
{code}
np.save(sys.argv[2], np.asarray(logits))
"""


def compute_logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return what a network computes on the CPU, in full float32: logits float32 [B, K] of images [B, H, W, C]."""
    with tf.device("/CPU:0"):  # a GPU may round the factors of a product to ten bits
        return np.asarray(model(images.astype("float32"), training=False))


def verify(name: str, file: Path, images: np.ndarray, expected: np.ndarray, *, needs: str = "", bound=BOUND) -> float:
    """Return the largest difference between the logits of a written file and the network's, relative to the largest.

    Args:
        name: of the format.
        file: what was written.
        images: [B, H, W, C], 0..255.
        expected: logits float32 [B, K].
        needs: further line of Python that imports what the file needs.
        bound: largest difference that is accepted.

    Raises:
        EnvironmentFault: the runtime cannot load the file, or computes something else.
    """
    how = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        script, given, computed = (Path(folder) / each for each in ("check.py", "images.npy", "logits.npy"))
        script.write_text(_SCRIPT.format(code="\n".join(how.code(str(file), needs))), encoding="utf-8")
        np.save(given, images.astype("float32"))
        # A keras.py in the working directory is another one: -P leaves that out of what Python imports from.
        command = [sys.executable, "-P", str(script), str(given), str(computed)]
        done = subprocess.run(command, env=_environment(needs), capture_output=True, text=True, errors="replace")
        if done.returncode:
            reason = first_line(done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}")
            raise EnvironmentFault(
                f"{name}: expected a file that {how.runtime} can run, got one at which it fails: '{reason}'. "
                f"{_NOTHING_KEPT}"
            )
        logits = np.load(computed)
    difference = _relative_difference(logits, expected)
    if not difference <= bound:  # refuses NaN too
        raise EnvironmentFault(
            f"{name}: expected the logits of {path_shown(file.name)} within {bound:g} of the network's, relative to "
            f"the largest, got a difference of {difference:.2g} in {how.runtime}. {_NOTHING_KEPT}"
        )
    return difference


_NOTHING_KEPT = "Nothing was kept; install the versions in constraints.txt and try again"


def _environment(needs: str) -> dict[str, str]:
    """Return the variables of the process that checks. It can import kpipe where it needs that, and has no GPU.

    This process has taken the memory of the GPU, whose products are less exact.
    """
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if needs:  # kpipe's own folder, as what lies in the working directory is not imported
        folders = [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    return environment


def _relative_difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected value; infinite where the shapes differ."""
    if logits.shape != expected.shape:
        return float("inf")
    return float(np.abs(logits - expected).max() / (np.abs(expected).max() or 1))
