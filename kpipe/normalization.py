"""What the model's first layer does: from the experiment's word for it to constants, measured where they must be."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kpipe import data
from kpipe.config.schema import DataConfig, MeanStd, Projection
from kpipe.errors import ConfigError
from kpipe.models.preprocessing import NAMED, Normalization, check_whitening, load_normalization, save_normalization


def normalisation(
    config: DataConfig,
    shape: tuple[int, int, int],
    batches: Iterable[np.ndarray] | None,
    file: Path | None = None,
) -> Normalization:
    """What the model's first layer does.

    Args:
        config: says what.
        shape: (H, W, C) of what the network sees.
        batches: the training part, images uint8 [b, H, W, C], 0..255; looked at only where something must be measured.
            None: what would be measured is neutral.
        file: where a run keeps it: read where it is whole, so that a resumed run does not look at every image again,
            else written.

    Raises:
        ConfigError: it cannot be done to images of this shape.
    """
    if file and (kept := load_normalization(file, shape)):
        return kept
    found = _normalisation(config, shape, batches)
    if file:
        save_normalization(file, found)
    return found


def _normalisation(
    config: DataConfig, shape: tuple[int, int, int], batches: Iterable[np.ndarray] | None
) -> Normalization:
    chosen = config.normalize
    if isinstance(chosen, MeanStd):
        return _explicit_constants(chosen, shape[-1])
    if isinstance(chosen, str) and chosen in NAMED:
        if not NAMED[chosen].fits(shape):
            raise ConfigError(f"data.normalize: expected images of 3 channels for {chosen}, got {shape[-1]}")
        return NAMED[chosen]
    kind, components = ("pca", chosen.pca.components) if isinstance(chosen, Projection) else (chosen, None)
    if kind in data.WHITENINGS:
        check_whitening("data.normalize", shape, components)
    return _neutral(kind, components, shape) if batches is None else _measured(kind, components, batches)


def _explicit_constants(chosen: MeanStd, channels: int) -> Normalization:
    if len(chosen.mean) not in (1, channels):
        raise ConfigError(
            f"data.normalize: expected 1 or {channels} means for images of {channels} channels, got {len(chosen.mean)}"
        )
    return Normalization("affine", chosen.mean, chosen.std)


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
