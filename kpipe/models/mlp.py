"""A multilayer perceptron: the fully connected baseline that convolutional networks are compared with.

It forgets which pixels are neighbors and has a weight for each pixel in each unit: with two layers of 512 units,
669,706 parameters on 28x28x1 images, ten times those of LeNet-5.
"""

import keras
from keras import layers

from kpipe.catalog.networks import MLPOptions
from kpipe.catalog.rows import check_options
from kpipe.models.layers import InputShape, activated, check_arguments, make_logits
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
    """Build a multilayer perceptron.

    Args:
        input_shape: (H, W, C).
        classes: number of classes, K.
        depth: hidden layers, `fc1` and so on.
        width: units of each.
        activation: "relu", "leaky_relu", "sigmoid", "tanh", "scaled_tanh" or "maxout".
        dropout: dropout rate after each hidden layer.
        preprocessing: the layer that takes the raw images; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Raises:
        ConfigError: an input of unknown size, an unknown option, no class.
    """
    options = check_options("mlp", MLPOptions, depth=depth, width=width, activation=activation, dropout=dropout)
    check_arguments("mlp", input_shape, classes, fixed_size=True)
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    # Features.
    x = layers.Flatten(name="flatten")(x)
    for number in range(1, options.depth + 1):
        x = activated(layers.Dense, options.width, activation=options.activation, name=f"fc{number}")(x)
        x = layers.Dropout(options.dropout, name=f"drop{number}")(x)
    # Head.
    return keras.Model(images, make_logits(classes)(x), name=name)
