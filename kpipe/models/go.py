"""AlphaGo's policy network: a convolutional network without pooling, one class for each point of the board.

D. Silver et al., "Mastering the game of Go with deep neural networks and tree search", Nature 529, 2016, methods,
"Neural network architecture".

| layers         | what it does                                   | output at 19x19x48 | parameters |
|----------------|------------------------------------------------|--------------------|------------|
| conv1          | 192 filters 5x5, padded, ReLU                  | 19 x 19 x 192      | 230,592    |
| conv2 .. conv12| 192 filters 3x3, padded, ReLU                  | 19 x 19 x 192      | 331,968 each |
| conv13         | one filter 1x1, and a bias for each point      | 361                | 192 + 361  |

3,882,793 parameters. Pooling would throw away where on the board a stone stands, which is the answer.

Deliberate deviation from the paper: planes come as 0 and 255 and are scaled to 0 and 1. Which planes there
are depends on the data (the paper has 48).
"""

import keras
from keras import layers

from kpipe.catalog.networks import GoPolicyOptions
from kpipe.catalog.rows import check_options
from kpipe.errors import ConfigError
from kpipe.models.layers import InputShape, PositionBias, check_arguments
from kpipe.models.preprocessing import Preprocessing, scale_to_unit


def go_policy(
    input_shape: InputShape = (19, 19, 48),
    classes: int = 361,
    *,
    depth: int = 12,
    width: int = 192,
    preprocessing: Preprocessing | None = None,
    name: str = "go_policy",
) -> keras.Model:
    """Build AlphaGo's policy network (Silver et al. 2016).

    Args:
        input_shape: (H, W, C), H and W at least 5.
        classes: number of classes, K: the points of the board, H x W.
        depth: hidden convolutions.
        width: filters of each.
        preprocessing: the layer that takes the raw planes; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from boards float32 [B, H, W, C], 0..255, to logits float32 [B, H x W], row by row.

    Raises:
        ConfigError: a board that is too small or of unknown size, or classes that are not its points;
            an option that is out of range.
    """
    options = check_options("go_policy", GoPolicyOptions, depth=depth, width=width)
    check_arguments("go_policy", input_shape, classes, fixed_size=True)
    rows, columns, _ = input_shape
    if classes != rows * columns:
        raise ConfigError(
            f"go_policy: expected one class for each of the {rows}x{columns} = {rows * columns} points of the "
            f"board, got {classes}. Its data is the source 'synthetic' with kind: board."
        )
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    # Features.
    for number in range(1, options.depth + 1):
        kernel = 5 if number == 1 else 3
        x = layers.Conv2D(options.width, kernel, padding="same", activation="relu", name=f"conv{number}")(x)
    # Head.
    x = layers.Conv2D(1, 1, use_bias=False, dtype="float32", name=options.first_head_layer)(x)
    x = PositionBias(dtype="float32", name="position_bias")(x)
    return keras.Model(images, layers.Flatten(dtype="float32", name="logits")(x), name=name)
