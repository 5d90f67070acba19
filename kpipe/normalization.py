"""Constants of the model's first layer: from `data.normalize`, measured on the training images where they must be."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kpipe.config.rules import normalize_conflicts
from kpipe.config.schema import DataConfig, MeanStd, Projection
from kpipe.data.statistics import measure_constants
from kpipe.errors import ConfigError
from kpipe.models.preprocessing import NAMED, Normalization, load_normalization, make_neutral, save_normalization

MEASURED_FILES = 2_000
"""Number of files whose colors stand for those of all, where images are decoded each time: decoding all of them would
take as long as an epoch."""


def most_measured(config: DataConfig) -> int | None:
    """Return how many files are enough to measure the constants; None: all are needed."""
    return MEASURED_FILES if config.normalize in ("mean", "standardize") else None


def make_normalization(
    config: DataConfig,
    shape: tuple[int, int, int],
    batches: Iterable[np.ndarray] | None,
    file: Path | None = None,
) -> Normalization:
    """Return what the model's first layer does, and its constants.

    Args:
        config: the section with the key `normalize`.
        shape: (H, W, C) of what the network sees.
        batches: the training split, images uint8 [b, H, W, C], 0..255; read only where something must be measured.
            None: measured constants are neutral.
        file: where a run keeps the constants. A file that is whole is read, so that a resumed run does not read every
            image again; else it is written.

    Raises:
        ConfigError: images of this shape cannot be normalized like this.
    """
    normalize = config.normalize
    for message in normalize_conflicts(normalize, shape):
        raise ConfigError(f"data.normalize: {message}")
    if file and (kept := load_normalization(file, shape)):
        return kept
    if isinstance(normalize, MeanStd):
        made = Normalization("affine", normalize.mean, normalize.std)
    elif isinstance(normalize, str) and normalize in NAMED:
        made = NAMED[normalize]
    else:
        is_projection = isinstance(normalize, Projection)
        kind, components = ("pca", normalize.pca.components) if is_projection else (normalize, None)
        if batches is None:
            made = make_neutral(kind, shape, components)
        else:
            made = Normalization(*measure_constants(batches, kind, components))
    if file:
        save_normalization(file, made)
    return made
