"""Constants of the model's first layer: from `data.normalize`, measured on the training images where they must be."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kpipe import data
from kpipe.config.rules import normalize_conflicts
from kpipe.config.schema import DataConfig, MeanStd, Projection
from kpipe.errors import ConfigError
from kpipe.models.preprocessing import NAMED, Normalization, load_normalization, save_normalization


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
    if file and (kept := load_normalization(file, shape)):
        return kept
    made = _from_config(config.normalize, shape, batches)
    if file:
        save_normalization(file, made)
    return made


def _from_config(
    normalize: str | MeanStd | Projection, shape: tuple[int, int, int], batches: Iterable[np.ndarray] | None
) -> Normalization:
    for message in normalize_conflicts(normalize, shape):
        raise ConfigError(f"data.normalize: {message}")
    if isinstance(normalize, MeanStd):
        return Normalization("affine", normalize.mean, normalize.std)
    if isinstance(normalize, Projection):
        kind, components = "pca", normalize.pca.components
    else:
        kind, components = normalize, None
    if kind in NAMED:
        return NAMED[kind]
    return _neutral(kind, components, shape) if batches is None else _measured(kind, components, batches)


def _measured(kind: str, components: int | None, batches: Iterable[np.ndarray]) -> Normalization:
    if kind == "mean_image":
        return Normalization("mean_image", data.mean_image(batches))
    if kind in data.WHITENINGS:
        mean, matrix = data.whitening(batches, kind, components)
        return Normalization("whiten", mean, matrix=matrix)
    mean, std = data.channel_statistics(batches)
    return Normalization("affine", mean, std if kind == "standardize" else 1.0)


def _neutral(kind: str, components: int | None, shape: tuple[int, int, int]) -> Normalization:
    if kind == "mean_image":
        return Normalization("mean_image", np.zeros(shape, np.float32))
    if kind in data.WHITENINGS:
        dimensions = math.prod(shape)
        matrix = np.eye(dimensions, components, dtype=np.float32)
        return Normalization("whiten", np.zeros(dimensions, np.float32), matrix=matrix)
    return NAMED["unit"]
