"""Whether the disk has room for what a run still needs."""

import re
import shutil

import pytest

from kpipe.errors import EnvironmentFault
from kpipe.runs.disk import check_disk
from kpipe.training.variables import DiskNeed

NEED = DiskNeed(checkpoint=2_000_000, most=9_000_000, finished=3_000_000)


@pytest.fixture
def free(monkeypatch):
    """Pretend a disk with so many bytes free."""
    usage = shutil.disk_usage(".")

    def pretend(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))

    return pretend


def test_a_run_that_does_not_fit_is_refused_with_what_it_needs(tmp_path, free):
    message = (
        f"{tmp_path}: the run needs about 9 MB of disk (4 checkpoints of 2 MB and the network), 9 MB are free. "
        "Make room, lower training.checkpoint.keep, or give another folder with logs=FOLDER or KPIPE_LOGS."
    )
    free(8_999_999)
    with pytest.raises(EnvironmentFault, match=f"^{re.escape(message)}$"):
        check_disk(tmp_path, tmp_path / "checkpoints", NEED, keep=2)
    free(9_000_000)
    check_disk(tmp_path, tmp_path / "checkpoints", NEED, keep=2)


def test_what_lies_there_already_is_not_needed_again(tmp_path, free):
    folder = tmp_path / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    (folder / "weights.npz").write_bytes(bytes(1_000))
    free(8_999_000)
    check_disk(tmp_path, tmp_path / "checkpoints", NEED, keep=2)
    free(8_998_999)
    with pytest.raises(EnvironmentFault, match="the run needs about"):
        check_disk(tmp_path, tmp_path / "checkpoints", NEED, keep=2)
