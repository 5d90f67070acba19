"""Constants of the model's first layer: from `data.normalize`, measured on the training images where they must be."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kpipe.caller import flag
from kpipe.catalog.wording import show
from kpipe.config.rules import normalize_conflicts
from kpipe.config.schema import DataConfig, MeanStd, Projection
from kpipe.data.statistics import measure_constants
from kpipe.errors import ConfigError
from kpipe.models.preprocessing import NAMED, Normalization, load_normalization, make_neutral, save_normalization
from kpipe.models.pretrained import Pretrained, Reuse
from kpipe.names import path_shown

MEASURED_FILES = 2_000
"""Number of files whose colors stand for those of all, where images are decoded each time: decoding all of them would
take as long as an epoch."""

_COST = "With another one, VGG-16 told ten kinds of photographs apart with 43 to 57 % instead of 64 %"
"""Measured as `experiments/finetune_folder.yaml` says in its first lines: `unit` 43.3 %, `imagenet` 56.9 %, `none`
57.3 %, and `caffe`, on which the weights were trained, 64.3 %."""

Normalize = str | MeanStd | Projection | Normalization
"""A value of `data.normalize`, or a normalization with its constants."""


def resolve_normalize(config: DataConfig, weights: Pretrained | Reuse | None) -> Normalize:
    """Return what the first layer does: the value of `data.normalize`, or what the weights were trained with.

    Args:
        config: the section with the key `normalize`.
        weights: what `model.init_from` gives, or in a run that is resumed, whose constants are in a file: the layers
            that began with it. None: nothing.

    Raises:
        ConfigError: the weights were trained with something else, or do not say with what and the experiment neither.
    """
    normalize = config.normalize
    if weights is None:
        return "standardize" if normalize == "auto" else normalize
    if isinstance(weights, Reuse):
        return normalize
    theirs = weights.normalization
    if normalize == "auto":
        if theirs is None:
            raise ConfigError(
                f"data.normalize: expected the normalization that {path_shown(weights.source)} was trained with, which "
                "the file does not say, got none. Weights of keras.applications want caffe, those of torchvision "
                "imagenet"
            )
        return theirs
    ours = _fixed(normalize)
    if theirs is None or (ours and ours.equals(theirs)):
        return normalize
    # A state dict does not say what it was trained with. These constants are published for networks of such names.
    if weights.is_state_dict and (isinstance(normalize, MeanStd) or normalize in ("imagenet", "caffe")):
        return normalize
    raise ConfigError(
        f"data.normalize: expected {describe_normalization(theirs)}, with which {path_shown(weights.source)} was "
        f"trained, got {show(normalize)}. {_COST}; leave data.normalize out"
    )


def most_measured(normalize: Normalize) -> int | None:
    """Return how many files are enough to measure the constants; None: all are needed, or none."""
    return MEASURED_FILES if normalize in ("mean", "standardize") else None


def make_normalization(
    normalize: Normalize,
    shape: tuple[int, int, int],
    batches: Iterable[np.ndarray] | None,
    file: Path | None = None,
) -> Normalization:
    """Return what the model's first layer does, and its constants.

    Args:
        normalize: as `resolve_normalize` returns it.
        shape: (H, W, C) of what the network sees.
        batches: the training split, images uint8 [b, H, W, C], 0..255; read only where something must be measured.
            None: measured constants are neutral.
        file: where a run keeps the constants. Measured ones are read from a file that is whole, so that a resumed run
            does not read every image again; else it is written.

    Raises:
        ConfigError: images of this shape cannot be normalized like this.
    """
    if isinstance(normalize, Normalization):
        if not normalize.fits(shape):
            remedy = (
                f"data.channels={np.size(normalize.mean)}" if normalize.per_channel else "data.image_size to theirs"
            )
            raise ConfigError(
                f"data.normalize: expected images that fit what the weights were trained with, "
                f"{describe_normalization(normalize)}, got images of {'x'.join(map(str, shape))}; set {remedy}"
            )
    else:
        for message in normalize_conflicts(normalize, shape):
            raise ConfigError(f"data.normalize: {message}")
    made = _fixed(normalize)
    if made is None and file and (kept := load_normalization(file, shape)):
        return kept
    if normalize == "auto":
        raise ConfigError(
            f"{file}: expected the constants with which this run began, got a file that is damaged or gone. Restore "
            f"it, or start another run with {flag('new')}"
        )
    if made is None:
        is_projection = isinstance(normalize, Projection)
        kind, components = ("pca", normalize.pca.components) if is_projection else (normalize, None)
        if batches is None:
            made = make_neutral(kind, shape, components)
        else:
            made = Normalization(*measure_constants(batches, kind, components))
    if file:
        save_normalization(file, made)
    return made


def _fixed(normalize: Normalize) -> Normalization | None:
    """Return a normalization whose constants are known; None: they must be measured."""
    if isinstance(normalize, Normalization):
        return normalize
    if isinstance(normalize, MeanStd):
        return Normalization("affine", normalize.mean, normalize.std)
    return NAMED.get(normalize) if isinstance(normalize, str) else None


def describe_normalization(normalization: Normalization) -> str:
    """Return a normalization as `data.normalize` names it; one without a name by its constants."""
    for name, named in NAMED.items():
        if normalization.equals(named):
            return name
    if normalization.kind == "mean_image":
        return f"a mean image of {'x'.join(map(str, np.shape(normalization.mean)))}"
    if normalization.kind == "whiten":
        return f"a whitening of {len(normalization.mean):,} values"
    constants = (normalization.mean, normalization.std)
    mean, std = (", ".join(f"{each:.4g}" for each in np.ravel(values)) for values in constants)
    return f"{{mean: [{mean}], std: [{std}]}}"
