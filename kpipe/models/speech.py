"""A convolutional network for spoken words: a spectrogram is an image of frequency against time.

T. Sainath, C. Parada, "Convolutional Neural Networks for Small-footprint Keyword Spotting", Interspeech 2015, table 1,
`cnn-trad-fpool3`.

| layer  | what it does                             | output at 40x32x1 | parameters |
|--------|------------------------------------------|-------------------|------------|
| conv1  | 64 filters, 8 frequencies x 20 frames    | 33 x 13 x 64      | 10,304     |
| pool1  | maxima of 3 frequencies                  | 11 x 13 x 64      |            |
| conv2  | 64 filters, 4 frequencies x 10 frames    | 8 x 4 x 64        | 163,904    |
| linear | dense, 32, without activation            | 32                | 65,568     |
| fc     | dense                                    | 128               | 4,224      |
| logits | dense                                    | 4                 | 516        |

244,516 parameters with biases, for 4 outputs; 244,224 without, the paper's 244.2K. It pools along frequency
only: voices differ in pitch, while the time at which a sound is heard carries the word.

Deliberate deviation from the paper: longer recordings than 32 frames are taken too; `linear` grows with them.
"""

import keras
from keras import layers

from kpipe.catalog.networks import SpeechCNNOptions
from kpipe.catalog.rows import check_options
from kpipe.models.layers import InputShape, check_arguments, make_logits
from kpipe.models.preprocessing import Preprocessing, scale_to_unit


def speech_cnn(
    input_shape: InputShape = (40, 32, 1),
    classes: int = 4,
    *,
    width: int = 64,
    hidden: int = 128,
    dropout: float = 0.0,
    preprocessing: Preprocessing | None = None,
    name: str = "speech_cnn",
) -> keras.Model:
    """Build a network for spoken words (Sainath and Parada 2015).

    Args:
        input_shape: (F, T, C), at least 19 frequency bands and 29 frames.
        classes: number of classes, K.
        width: filters of each convolution.
        hidden: units of `fc`.
        dropout: dropout rate before the last layer.
        preprocessing: the layer that takes the raw values; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from spectrograms float32 [B, F, T, C], 0..255, to logits float32 [B, K].

    Raises:
        ConfigError: a spectrogram that is too small or of unknown size; an option out of range; no class.
    """
    options = check_options("speech_cnn", SpeechCNNOptions, width=width, hidden=hidden, dropout=dropout)
    check_arguments("speech_cnn", input_shape, classes, fixed_size=True)
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    # Features.
    x = layers.Conv2D(options.width, (8, 20), activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D((3, 1), name="pool1")(x)
    x = layers.Conv2D(options.width, (4, 10), activation="relu", name="conv2")(x)
    # Head.
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(32, name="linear")(x)
    x = layers.Dense(options.hidden, activation="relu", name="fc")(x)
    x = layers.Dropout(options.dropout, name="dropout")(x)
    return keras.Model(images, make_logits(classes)(x), name=name)
