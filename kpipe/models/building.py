"""Builds a network by its name."""

import keras

from kpipe.catalog.networks import find_network
from kpipe.models.layers import InputShape
from kpipe.models.preprocessing import NAMED, Normalization, make_preprocessing


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
        name: a name of `kpipe.catalog.networks.MODELS`.
        options: what the network's builder takes besides the input, the classes and the preprocessing.
        input_shape: (H, W, C).
        classes: K.
        normalization: what the first layer does, and with which constants.

    Raises:
        ConfigError: an unknown name, or arguments from which this network cannot be built.
    """
    return build_network(name, options, input_shape, classes, make_preprocessing(normalization))


def build_network(name, options, input_shape, classes, preprocessing) -> keras.Model:
    return find_network(name).load()(input_shape, classes, preprocessing=preprocessing, **options)
