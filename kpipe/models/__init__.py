"""The networks, and what is done with the name of one: build it, save it for anyone to load."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from kpipe.errors import ConfigError, EnvironmentFault, did_you_mean

# Imported here and not when a name is looked up: `kpipe.models.alexnet` must be the function at any time.
from kpipe.models.alexnet import alexnet
from kpipe.models.go import go_policy
from kpipe.models.googlenet import googlenet
from kpipe.models.layers import InputShape
from kpipe.models.lenet import lenet5
from kpipe.models.mlp import mlp
from kpipe.models.preprocessing import (
    NAMED,
    Normalization,
    check_whitening,
    load_normalization,
    make_preprocessing,
    save_normalization,
)
from kpipe.models.speech import speech_cnn
from kpipe.models.text import text_cnn
from kpipe.models.vgg import start_from_net_a, vgg11, vgg13, vgg16, vgg16_c, vgg19
from kpipe.models.zfnet import zfnet
from kpipe.tables import MODELS, resolve

__all__ = [
    "NAMED",
    "Normalization",
    "alexnet",
    "build_model",
    "check_whitening",
    "go_policy",
    "googlenet",
    "lenet5",
    "load_normalization",
    "load_portable_weights",
    "mlp",
    "save_normalization",
    "save_portable",
    "speech_cnn",
    "start_from_net_a",
    "text_cnn",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg16_c",
    "vgg19",
    "zfnet",
]


def build_model(
    name: str,
    options: dict,
    *,
    input_shape: InputShape,
    classes: int,
    normalization: Normalization = NAMED["unit"],
) -> keras.Model:
    """The network called `name`: raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Args:
        name: a name of `kpipe.tables.MODELS`.
        options: what the network's builder takes besides the input, the classes and the preprocessing.
        input_shape: (H, W, C).
        classes: K.
        normalization: what the first layer does, and with which constants.

    Raises:
        ConfigError: an unknown name, or arguments from which this network cannot be built.
    """
    return _build(name, options, input_shape, classes, make_preprocessing(normalization))


def save_portable(
    model: keras.Model,
    path: str | Path,
    *,
    name: str,
    options: dict,
    input_shape: InputShape,
    classes: int,
    normalization: Normalization,
) -> None:
    """Writes `path`, a .keras file in float32, of plain Keras layers wherever the network allows.

    LeNet-5, VGG and the others without layers of kpipe's own load where kpipe is not installed, unless the images are
    whitened or a mean image is taken off. What only the training needs, such as auxiliary heads, is left out. A
    network that ends in a global average is written for images of any size, if its first layer takes them.

    The other arguments are those that `model` was built from by `build_model`, under any dtype policy. A file
    that is there already is replaced in one step: it is never seen half-written, and it survives a full disk.

    Raises:
        ConfigError: as `build_model`.
        OSError: the file cannot be written.
    """
    section = MODELS[name].options
    kept = {option: value for option, value in options.items() if option not in section.training_only}
    if section(**kept).any_size and normalization.per_channel:
        input_shape = (None, None, input_shape[-1])
    with _float32():
        portable = _build(name, kept, input_shape, classes, make_preprocessing(normalization, portable=True))
    for layer in portable.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.part.keras")  # always the same: what a kill leaves is written over
    try:
        portable.save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_portable_weights(model: keras.Model, path: str | Path) -> None:
    """Gives `model`, built as the one that `save_portable` wrote, the weights in `path`.

    Layers that only the training needs keep theirs.

    Raises:
        EnvironmentFault: the file cannot be read.
    """
    try:
        portable = keras.models.load_model(path, compile=False)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"{path}: the best weights so far cannot be read ({error}); remove the file and give the same command again"
        ) from None
    for layer in portable.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())


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
