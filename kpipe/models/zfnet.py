"""ZFNet: AlexNet with a finer first layer, found by looking at AlexNet's features.

M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, figure 3 and sections 3, 4.1.

| layer        | what it does                          | output at 224  | parameters |
|--------------|---------------------------------------|----------------|------------|
| conv1        | 96 filters 7x7, stride 2, padding 1   | 110 x 110 x 96 | 14,208     |
| pool1, lrn1  | 3x3 maxima, stride 2, padding 1       | 55 x 55 x 96   |            |
| conv2        | 256 filters 5x5, stride 2             | 26 x 26 x 256  | 614,656    |
| pool2, lrn2  | 3x3 maxima, stride 2, padding 1       | 13 x 13 x 256  |            |
| conv3        | 384 filters 3x3                       | 13 x 13 x 384  | 885,120    |
| conv4        | 384 filters 3x3                       | 13 x 13 x 384  | 1,327,488  |
| conv5, pool5 | 256 filters 3x3; 3x3 maxima, stride 2 | 6 x 6 x 256    | 884,992    |
| fc6, fc7     | dense, dropout after each             | 4096           | 54,534,144 |
| logits       | dense                                 | 1000           | 4,097,000  |

62,357,608 parameters; `wide` has 512, 1024 and 512 filters in conv3 to conv5 (section 5.1), 107,627,624.

A filter of a convolution whose root mean square exceeds 0.1 is scaled back to 0.1 after each step (section 3).

Small images: where the two strides of 2 would leave pool5 nothing to pool, conv1 has a stride of 1, and where that
is not enough, conv2 too. So 64 pixels keep the paper's strides; the smallest side is 21.

Deliberate deviations from the paper:
- "Contrast normalized across feature maps" is AlexNet's local response normalization with its constants: the paper
  gives no formula.
- With `pooling="average"` the zeros around a feature map count.
- Images are scaled to 0..1 unless a preprocessing is given; the paper subtracts the mean image (section 3).
"""

from typing import Any

import keras
from keras import layers, ops

from kpipe.catalog.networks import ZFNetOptions
from kpipe.catalog.rows import check_options
from kpipe.models.layers import (
    POOLING,
    InputShape,
    LocalResponseNormalization,
    activated,
    check_arguments,
    make_initializer,
    make_logits,
)
from kpipe.models.preprocessing import Preprocessing, scale_to_unit

# Filters of conv1 to conv5.
VARIANTS = {"paper": (96, 256, 384, 384, 256), "wide": (96, 256, 512, 1024, 512)}
STDDEV = 0.01  # of the first weights, section 3


@keras.saving.register_keras_serializable(package="kpipe")
class MaxRMS(keras.constraints.Constraint):
    """Scales each filter of a kernel [h, w, C, filters] back to a root mean square of at most `radius`.

    Zeiler and Fergus 2014, section 3, with a radius of 0.1.
    """

    def __init__(self, radius: float = 0.1):
        self.radius = radius

    def __call__(self, kernel):
        rms = ops.sqrt(ops.mean(ops.square(kernel), axis=(0, 1, 2), keepdims=True))
        # The maximum keeps a filter of zeros from being divided by zero.
        return kernel * (self.radius / ops.maximum(rms, self.radius))

    def get_config(self):
        return {"radius": self.radius}


def zfnet(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    variant: str = "paper",
    activation: str = "relu",
    pooling: str = "max",
    lrn: bool = True,
    width: int = 4096,
    dropout: float = 0.5,
    initializer: str = "paper",
    preprocessing: Preprocessing | None = None,
    name: str = "zfnet",
) -> keras.Model:
    """Build ZFNet (Zeiler and Fergus 2014).

    Args:
        input_shape: (H, W, C), H and W at least 21.
        classes: number of classes, K.
        variant: "paper" or "wide".
        activation: "relu", "leaky_relu", "sigmoid", "tanh", "scaled_tanh" or "maxout".
        pooling: "max" or "average".
        lrn: contrast normalization after pool1 and pool2.
        width: units of fc6 and fc7.
        dropout: dropout rate after fc6 and fc7.
        initializer: "paper" (weights N(0, 0.01)), "he" or "glorot"; biases 0.
        preprocessing: the layer that takes the raw images; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Raises:
        ConfigError: an input that is too small or of unknown size; an unknown option; no class.
    """
    options = check_options(
        "zfnet",
        ZFNetOptions,
        variant=variant,
        activation=activation,
        pooling=pooling,
        lrn=lrn,
        width=width,
        dropout=dropout,
        initializer=initializer,
    )
    check_arguments("zfnet", input_shape, classes, fixed_size=True)
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    x = _features(x, _strides(min(input_shape[:2])), options)
    return keras.Model(images, _head(x, classes, options), name=name)


def _features(x, strides: tuple[int, int], options: ZFNetOptions):
    """Map images [B, H, W, C] to the output of pool5; `strides`: of conv1 and conv2."""
    x = layers.ZeroPadding2D(1, name="pad1")(x)
    x = _pool(_convolve(x, 1, 7, options, strides[0], "valid"), 1, options)
    x = _pool(_convolve(x, 2, 5, options, strides[1], "valid"), 2, options)
    for number in (3, 4, 5):
        x = _convolve(x, number, 3, options)
    return _pool(x, 5, options, padding=0)


def _head(x, classes: int, options: ZFNetOptions):
    """Map the output of pool5 to logits [B, K]."""
    x = layers.Flatten(name="flatten")(x)
    for number in (6, 7):
        x = activated(layers.Dense, options.width, **_start(f"fc{number}", options))(x)
        x = layers.Dropout(options.dropout, name=f"drop{number}")(x)
    return make_logits(classes, kernel_initializer=make_initializer(options.initializer, STDDEV))(x)


def _convolve(x, number: int, kernel: int, options: ZFNetOptions, stride: int = 1, padding: str = "same"):
    filters = VARIANTS[options.variant][number - 1]
    arguments = _start(f"conv{number}", options) | {"kernel_constraint": MaxRMS()}
    return activated(layers.Conv2D, filters, kernel, strides=stride, padding=padding, **arguments)(x)


def _pool(x, number: int, options: ZFNetOptions, padding: int = 1):
    # After an activation that is never negative a zero cannot win; after others it bounds the maximum.
    x = layers.ZeroPadding2D(padding, name=f"pool{number}_pad")(x) if padding else x
    x = POOLING[options.pooling](3, 2, name=f"pool{number}")(x)
    return LocalResponseNormalization(name=f"lrn{number}")(x) if options.lrn and number < 5 else x


def _start(layer: str, options: ZFNetOptions) -> dict[str, Any]:
    """Return a layer's name, its activation and the initializer of its kernel."""
    kernel_initializer = make_initializer(options.initializer, STDDEV)
    return {"name": layer, "kernel_initializer": kernel_initializer, "activation": options.activation}


def _strides(side: int) -> tuple[int, int]:
    """Return the strides of conv1 and conv2: the paper's, or the largest that leave pool5 something to pool."""
    for first, second in ((2, 2), (1, 2)):
        size = ((side + 2 - 7) // first + 2) // 2  # conv1, and pool1 with its padding
        size = ((size - 5) // second + 2) // 2
        if size >= 3:
            return first, second
    return 1, 1
