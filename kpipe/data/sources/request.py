"""What the readers of sources are asked, and what they share."""

from dataclasses import dataclass

from kpipe.data.images import Form
from kpipe.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
"""Names of folders and of others' splits -> ours."""


@dataclass(frozen=True)
class SourceRequest:
    """What a reader is asked for.

    Attributes:
        argument: what stands after the colon, `folder:<path>`; empty for a source without one.
        form: of the images.
        skip_limit: fraction of a split's images that may be unreadable or lost; None: not one.
        download: whether what is not there may be downloaded.
    """

    argument: str = ""
    form: Form = Form()
    skip_limit: float | None = None
    download: bool = True


def check_channels(present: int, channels: int | None, where: str) -> None:
    """Refuse a number of channels that cannot be made of those that the images have.

    Raises:
        DataError: there is no such conversion.
    """
    possible = (1, 3) if present in (1, 3) else (present,)
    if channels not in (None, *possible):
        known = " or ".join(map(str, possible))
        raise DataError(f"{where}: expected {known} for data.channels, got {channels}. Leave it out")
