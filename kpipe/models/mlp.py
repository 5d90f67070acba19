"""A multilayer perceptron: the fully connected baseline that convolutional networks are compared with.

It forgets which pixels are neighbours and has a weight for each pixel in each unit: with two layers of 512 units,
669,706 parameters on 28x28x1 images, ten times those of LeNet-5.
"""

import keras
from keras import layers

from kpipe.models.layers import (
    ACTIVATIONS,
    InputShape,
    activated,
    check_arguments,
    check_choice,
    make_logits,
)
from kpipe.models.preprocessing import Preprocessing, scale_to_unit


def mlp(
    input_shape: InputShape = (28, 28, 1),
    classes: int = 10,
    *,
    depth: int = 2,
    width: int = 512,
    activation: str = "relu",
    dropout: float = 0.0,
    preprocessing: Preprocessing | None = None,
    name: str = "mlp",
) -> keras.Model:
    """A multilayer perceptron: raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Args:
        input_shape: (H, W, C).
        classes: K.
        depth: hidden layers, `fc1` and so on.
        width: units of each.
        activation: a name of `kpipe.models.layers.ACTIVATIONS`.
        dropout: share of units left out after each hidden layer.
        preprocessing: the layer that sees the raw images first; None scales them to 0..1.
        name: of the model.

    Raises:
        ConfigError: an input of unknown size, an unknown activation, no class.
    """
    check_arguments("mlp", input_shape, classes, fixed_size=True)
    check_choice("mlp", "activation", activation, ACTIVATIONS)

    images = keras.Input(input_shape, dtype="float32", name="images")
    x = layers.Flatten(name="flatten")((preprocessing or scale_to_unit())(images))
    for number in range(1, depth + 1):
        x = activated(layers.Dense, width, activation=activation, name=f"fc{number}")(x)
        x = layers.Dropout(dropout, name=f"drop{number}")(x)
    return keras.Model(images, make_logits(classes)(x), name=name)
