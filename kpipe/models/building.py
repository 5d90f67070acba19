"""Building a network by its name, if need be without the memory that its weights take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from kpipe.catalog.networks import find_network
from kpipe.models.layers import InputShape
from kpipe.models.preprocessing import NAMED, Normalization, Preprocessing, make_preprocessing


def build_model(
    name: str,
    options: dict[str, Any],
    *,
    input_shape: InputShape,
    classes: int,
    normalization: Normalization = NAMED["unit"],
) -> keras.Model:
    """Build the network called `name`: raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Args:
        name: a name in `kpipe.catalog.networks.MODELS`.
        options: arguments of the network's builder besides the input, the classes and the preprocessing.
        input_shape: (H, W, C).
        classes: K.
        normalization: how the first layer normalizes the raw images, and its constants.

    Raises:
        ConfigError: an unknown name, or arguments from which this network cannot be built.
    """
    return build_network(name, options, input_shape, classes, make_preprocessing(normalization))


@contextmanager
def deferred_initialization() -> Iterator[None]:
    """Build networks and optimizers inside the `with` whose variables have a shape and a dtype, but no value yet.

    They take no memory and compute nothing. End with `initialize_variables` or `discard_variables`.
    """
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    except BaseException:
        discard_variables()
        raise


def initialize_variables() -> None:
    """Initialize the variables made under `deferred_initialization`, as they would have been at once."""
    with keras.StatelessScope():
        pass  # Keras 3.15 does it where the outermost such scope ends, and has no public function for it


def discard_variables() -> None:
    """Keep Keras from initializing, later, the variables made under `deferred_initialization`.

    Keras counts the names of layers from 1 again, and draws its own seed anew. The dtype policy stays.
    """
    policy = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)


def build_network(
    name: str, options: dict[str, Any], input_shape: InputShape, classes: int, preprocessing: Preprocessing
) -> keras.Model:
    """Build the network called `name` with this layer for the raw images; otherwise as `build_model`."""
    return find_network(name).load()(input_shape, classes, preprocessing=preprocessing, **options)
