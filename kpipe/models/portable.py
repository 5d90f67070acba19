"""Saves a network for anyone to load."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from kpipe.catalog.networks import MODELS
from kpipe.errors import EnvironmentFault

# Imported here and not when a name is looked up: `kpipe.models.alexnet` must be the function at any time.
from kpipe.models.building import build_network
from kpipe.models.layers import InputShape
from kpipe.models.preprocessing import Normalization, make_preprocessing


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
        portable = build_network(name, kept, input_shape, classes, make_preprocessing(normalization, portable=True))
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


@contextmanager
def _float32() -> Iterator[None]:
    """Layers made inside are float32: a layer takes its policy when it is made."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
