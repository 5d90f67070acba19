"""How much disk a run needs, and whether that much is free."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import keras

from kpipe.console import describe_size
from kpipe.errors import EnvironmentFault
from kpipe.training.variables import NETWORK, count_bytes, named_variables


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run needs; logs and figures are small beside them.

    Attributes:
        checkpoint: one checkpoint, without the arrays that a callback keeps.
        most: all checkpoints and the saved network, while the next checkpoint is written.
        finished: what is left at the end.
    """

    checkpoint: int
    most: int
    finished: int


def estimate_disk(model: keras.Model, keep: int, *, keep_last: bool = True) -> DiskNeed:
    """Return what the checkpoints of a model and its saved network will take.

    Args:
        model: compiled, its optimizer and metrics built.
        keep: how many of the newest checkpoints are kept, besides the best.
        keep_last: whether the last one is kept at the end.
    """
    checkpoint = count_bytes(named_variables(model).values())
    network = count_bytes(named_variables(model, NETWORK).values())
    # The newest and the best, while the next is written beside them.
    return DiskNeed(checkpoint, (keep + 2) * checkpoint + network, checkpoint * keep_last + network)


def check_disk(run_path: Path, checkpoints_path: Path, need: DiskNeed, keep: int) -> None:
    """Raise EnvironmentFault unless what a run still needs is free on its disk.

    Args:
        run_path: directory of the run; it exists.
        checkpoints_path: the run's checkpoints; what lies there already is not needed again.
        need: as `estimate_disk` returns it.
        keep: what the estimate was made for.
    """
    taken = sum(file.stat().st_size for file in checkpoints_path.rglob("*") if file.is_file())
    free = shutil.disk_usage(run_path).free
    if need.most - taken > free:
        raise EnvironmentFault(
            f"{run_path}: the run needs about {describe_size(need.most)} of disk ({keep + 2} checkpoints of "
            f"{describe_size(need.checkpoint)} and the network), {describe_size(free)} are free. Make room, lower "
            "training.checkpoint.keep, or give another folder with logs=FOLDER or KPIPE_LOGS."
        )
