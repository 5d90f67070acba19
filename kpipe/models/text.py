"""A convolutional network for texts: one-hot characters are an image one pixel wide, one channel a letter.

X. Zhang, J. Zhao, Y. LeCun, "Character-level Convolutional Networks for Text Classification", NIPS 2015, section 2.3,
tables 1 and 2, the small form.

| layers          | what it does                               | output at 1014x1x70 | parameters |
|-----------------|--------------------------------------------|---------------------|------------|
| conv1, pool1    | 256 filters over 7 characters, maxima of 3 | 336 x 1 x 256       | 125,696    |
| conv2, pool2    | 256 filters over 7, maxima of 3            | 110 x 1 x 256       | 459,008    |
| conv3 .. conv5  | 256 filters over 3                         | 104 x 1 x 256       | 196,864 each |
| conv6, pool6    | 256 filters over 3, maxima of 3            | 34 x 1 x 256        | 196,864    |
| fc7, fc8        | dense, dropout after each                  | 1024                | 8,913,920 + 1,049,600 |
| logits          | dense                                      | 4                   | 4,100      |

11,339,780 parameters, for four classes. The shortest text is 123 characters.

Deliberate deviation from the paper: weights start as in He et al. 2015, whatever the width; the paper
has N(0, 0.05) for this one.
"""

import keras
from keras import layers

from kpipe.catalog.networks import TextCNNOptions
from kpipe.catalog.rows import check_options
from kpipe.errors import ConfigError
from kpipe.models.layers import InputShape, check_arguments, make_logits
from kpipe.models.preprocessing import Preprocessing, scale_to_unit

# Table 1: characters under each kernel, and the places that are pooled after it.
CONVOLUTIONS = ((7, 3), (7, 3), (3, None), (3, None), (3, None), (3, 3))


def text_cnn(
    input_shape: InputShape = (1014, 1, 70),
    classes: int = 4,
    *,
    width: int = 256,
    hidden: int = 1024,
    dropout: float = 0.5,
    preprocessing: Preprocessing | None = None,
    name: str = "text_cnn",
) -> keras.Model:
    """Build a network for texts, character by character (Zhang et al. 2015).

    Args:
        input_shape: (L, 1, V), at least 123 characters of an alphabet of V.
        classes: number of classes, K.
        width: filters of each convolution.
        hidden: units of fc7 and fc8.
        dropout: dropout rate after each of them.
        preprocessing: the layer that takes the raw values; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from one-hot texts float32 [B, L, 1, V], 0 or 255, to logits float32 [B, K].

    Raises:
        ConfigError: a text that is too short, of unknown length or not one pixel wide; an option out of range; no
            class.
    """
    options = check_options("text_cnn", TextCNNOptions, width=width, hidden=hidden, dropout=dropout)
    check_arguments("text_cnn", input_shape, classes, fixed_size=True)
    if input_shape[1] != 1:
        raise ConfigError(
            f"text_cnn: expected texts (length, 1, alphabet), got images {tuple(input_shape)}. "
            "Its data is the source 'synthetic' with kind: text."
        )
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    start = {"activation": "relu", "kernel_initializer": "he_normal"}
    # Features.
    for number, (kernel, pooled) in enumerate(CONVOLUTIONS, start=1):
        x = layers.Conv2D(options.width, (kernel, 1), name=f"conv{number}", **start)(x)
        if pooled:
            x = layers.MaxPooling2D((pooled, 1), name=f"pool{number}")(x)
    # Head.
    x = layers.Flatten(name="flatten")(x)
    for number in (7, 8):
        x = layers.Dense(options.hidden, name=f"fc{number}", **start)(x)
        x = layers.Dropout(options.dropout, name=f"drop{number}")(x)
    return keras.Model(images, make_logits(classes)(x), name=name)
