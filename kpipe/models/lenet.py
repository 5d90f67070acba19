"""LeNet-5, in the form that is usually meant today.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998, section II.B.

| layer  | what it does                | output for 28x28x1 | parameters |
|--------|-----------------------------|--------------------|------------|
| c1     | 6 maps 5x5, padded by 2     | 28 x 28 x 6        | 156        |
| s2     | 2x2 pooling                 | 14 x 14 x 6        |            |
| c3     | 16 maps 5x5                 | 10 x 10 x 16       | 2,416      |
| s4     | 2x2 pooling                 | 5 x 5 x 16         |            |
| c5     | dense                       | 120                | 48,120     |
| f6     | dense                       | 84                 | 10,164     |
| logits | dense                       | 10                 | 850        |

61,706 parameters, at 28x28 and at the paper's 32x32.

Deliberate deviations from the paper:
- c1 pads inputs smaller than 32 pixels by 2 (28 becomes the paper's 32); larger inputs are not padded.
- c3 sees all maps of s2, not the paper's table of connections (1,516 parameters there).
- s2 and s4 have no trainable coefficient and bias, and no squashing behind them.
- The activation is ReLU by default and a plain tanh on request, not the scaled 1.7159 tanh(2/3 a).
- c5 is a dense layer, which is the same at 32 pixels.
- The output is a dense layer under a softmax loss, not distances to fixed bitmaps.
- Weights start as in Glorot and Bengio 2010, not uniform in +-2.4 / fan-in; images come scaled to 0..1.
"""

import keras
from keras import layers

from kpipe.models.layers import InputShape, check_arguments, check_choice, make_logits, scale_to_unit

# The paper's input size, section II.B; below it, c1 pads.
PAPER_SIZE = 32
POOLING = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}


def lenet5(
    input_shape: InputShape = (28, 28, 1),
    classes: int = 10,
    *,
    activation: str = "relu",
    pooling: str = "max",
    preprocessing: keras.layers.Layer | None = None,
    name: str = "lenet5",
) -> keras.Model:
    """LeNet-5: raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Args:
        input_shape: (H, W, C), H and W at least 12.
        classes: K.
        activation: after c1, c3, c5 and f6; any activation of Keras.
        pooling: "max" or "average".
        preprocessing: the layer that sees the raw images first; None scales them to 0..1.
        name: of the model.

    Raises:
        ConfigError: an input that is too small or of unknown size, an unknown pooling, no class.
    """
    check_arguments("lenet5", input_shape, classes, fixed_size=True)
    check_choice("lenet5", "pooling", pooling, POOLING)
    pool = POOLING[pooling]
    padding = "same" if min(input_shape[:2]) < PAPER_SIZE else "valid"

    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    x = layers.Conv2D(6, 5, padding=padding, activation=activation, name="c1")(x)
    x = pool(2, name="s2")(x)
    x = layers.Conv2D(16, 5, activation=activation, name="c3")(x)
    x = pool(2, name="s4")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(120, activation=activation, name="c5")(x)
    x = layers.Dense(84, activation=activation, name="f6")(x)
    return keras.Model(images, make_logits(classes)(x), name=name)
