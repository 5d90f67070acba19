"""What the readers of sources share."""

from kpipe.errors import DataError

PART_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


def check_channels(present: int, channels: int | None, where: str) -> None:
    """Refuses a number of channels that cannot be made of those that the images have."""
    possible = (1, 3) if present in (1, 3) else (present,)
    if channels not in (None, *possible):
        known = " or ".join(map(str, possible))
        raise DataError(f"{where}: expected {known} for data.channels, got {channels}. Leave it out")
