"""The request that each reader of a source takes, and checks that they share."""

from dataclasses import dataclass

from kpipe.caller import setting
from kpipe.data.images import Form
from kpipe.data.splits import ProgressReporter, no_progress
from kpipe.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
"""Names of folders and splits -> names of kpipe's splits."""


@dataclass(frozen=True)
class SourceRequest:
    """Request for the images of a source.

    Attributes:
        argument: text after the colon, as in `folder:<path>`; empty for a source without one.
        form: form of the images.
        skip_limit: largest fraction of a split's images that may be unreadable or lost; None: none of them.
        download: whether a set that is not there may be downloaded.
        progress: shows how many files were found.
    """

    argument: str = ""
    form: Form = Form()
    skip_limit: float | None = None
    download: bool = True
    progress: ProgressReporter = no_progress


def check_channels(present: int, channels: int | None, where: str) -> None:
    """Check that images can be converted to a number of channels.

    Raises:
        DataError: they cannot.
    """
    possible = (1, 3) if present in (1, 3) else (present,)
    if channels not in (None, *possible):
        known = " or ".join(map(str, possible))
        raise DataError(f"{where}: expected {known} for {setting('channels')}, got {channels}. Leave it out")
