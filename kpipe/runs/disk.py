"""Checks that a run has the disk that it needs."""

import shutil
from pathlib import Path

from kpipe.console import describe_size
from kpipe.errors import EnvironmentFault
from kpipe.training.variables import DiskNeed


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
