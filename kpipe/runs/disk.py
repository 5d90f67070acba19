"""How much disk a run takes, and whether there is as much."""

from dataclasses import dataclass

import keras

from kpipe.training.variables import NETWORK, count_bytes, named_variables


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run takes; logs and figures are small beside them.

    Attributes:
        checkpoint: one checkpoint; the arrays that a callback keeps come on top.
        most: all checkpoints and the saved network, while the next checkpoint is written.
        finished: what is left at the end.
    """

    checkpoint: int
    most: int
    finished: int


def estimate_disk(model: keras.Model, keep: int, *, keep_last: bool = True) -> DiskNeed:
    """What the checkpoints of `model`, compiled and its optimizer built, and its saved network will take.

    Args:
        model: as `Checkpoints.commit` takes it.
        keep: the newest checkpoints that stay, beside the best.
        keep_last: whether the last one stays at the end.
    """
    checkpoint, network = count_bytes(named_variables(model)), count_bytes(named_variables(model, NETWORK))
    # The newest and the best, while the next is written beside them.
    return DiskNeed(checkpoint, (keep + 2) * checkpoint + network, checkpoint * keep_last + network)
