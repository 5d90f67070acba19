"""The networks, and what is done with the name of one: build it, save it for anyone to load."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from kpipe.errors import ConfigError, did_you_mean

# Imported here and not when a name is looked up: `kpipe.models.lenet5` must be the function at any time.
from kpipe.models.layers import InputShape, Standardize
from kpipe.models.lenet import lenet5
from kpipe.models.vgg import vgg11, vgg13, vgg16, vgg19
from kpipe.tables import MODELS, resolve

__all__ = ["build_model", "lenet5", "save_portable", "vgg11", "vgg13", "vgg16", "vgg19"]

Constants = float | list[float]


def build_model(
    name: str,
    options: dict,
    *,
    input_shape: InputShape,
    classes: int,
    mean: Constants = 0.0,
    std: Constants = 255.0,
) -> keras.Model:
    """The network called `name`: raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Args:
        name: a name of `kpipe.tables.MODELS`.
        options: what the network's builder takes besides the input, the classes and the preprocessing.
        input_shape: (H, W, C).
        classes: K.
        mean: one number or one per channel, in units of 0..255.
        std: the same, above 0. The first layer gives (images - mean) / std.

    Raises:
        ConfigError: an unknown name, or arguments from which this network cannot be built.
    """
    return _build(name, options, input_shape, classes, Standardize(mean, std, name="standardize"))


def save_portable(
    model: keras.Model,
    path: str | Path,
    *,
    name: str,
    options: dict,
    input_shape: InputShape,
    classes: int,
    mean: Constants,
    std: Constants,
) -> None:
    """Writes `path`, a .keras file in float32 that plain Keras loads where kpipe is not installed.

    The other arguments are those that `model` was built from by `build_model`, under any dtype policy. A file
    that is there already is replaced in one step: it is never seen half-written, and it survives a full disk.

    Raises:
        ConfigError: as `build_model`.
        OSError: the file cannot be written.
    """
    with _float32():
        variance = np.square(std).tolist()
        preprocessing = keras.layers.Normalization(mean=mean, variance=variance, name="standardize")
        portable = _build(name, options, input_shape, classes, preprocessing)
    portable.set_weights(model.get_weights())
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.keras")
    try:
        portable.save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _build(name, options, input_shape, classes, preprocessing) -> keras.Model:
    if name not in MODELS:
        raise ConfigError(f"model: expected the name of a network, got '{name}'{did_you_mean(name, MODELS)}")
    return resolve(MODELS[name])(input_shape, classes, preprocessing=preprocessing, **options)


@contextmanager
def _float32() -> Iterator[None]:
    """Layers made inside are float32: a layer takes its policy when it is made."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
