"""AlexNet, and three networks that go by its name.

A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
sections 3 and 5. A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.

| layer         | what it does                  | output at 224 | parameters |
|---------------|-------------------------------|---------------|------------|
| conv1         | 96 filters 11x11, stride 4    | 55 x 55 x 96  | 34,944     |
| lrn1, pool1   | 3x3 maxima, stride 2          | 27 x 27 x 96  |            |
| conv2         | 256 filters 5x5, two groups   | 27 x 27 x 256 | 307,456    |
| lrn2, pool2   | 3x3 maxima, stride 2          | 13 x 13 x 256 |            |
| conv3         | 384 filters 3x3               | 13 x 13 x 384 | 885,120    |
| conv4         | 384 filters 3x3, two groups   | 13 x 13 x 384 | 663,936    |
| conv5, pool5  | 256 filters 3x3, two groups   | 6 x 6 x 256   | 442,624    |
| fc6, fc7      | dense, dropout after each     | 4096          | 54,534,144 |
| logits        | dense                         | 1000          | 4,097,000  |

| variant           | what it is                                                                       | parameters |
|-------------------|----------------------------------------------------------------------------------|------------|
| `paper`           | the two-GPU network as one: filters in two groups                                | 60,965,224 |
| `single_tower`    | the same without groups                                                          | 62,378,344 |
| `one_weird_trick` | 64-192-384-256-256 filters, no normalization, padding 2: torchvision's `alexnet` | 61,100,840 |
| `notes`           | that without conv5, as lecture notes have it (56,454,730 with 10 classes)        | 60,510,760 |

The paper's 224 pixels do not give 55 positions of conv1 by any rounding down. Its own code rounds up and reads
zeros past the right and lower border; so does `paper` here, and an input of 227 pixels needs none of them.

Small images: where the stride of 4 would leave pool5 nothing to pool, conv1 has a stride of 2, and where that is
not enough, of 1. So 64 pixels keep the paper's stride, 28 and 32 have a stride of 1; the smallest side is 25.

Deliberate deviations from the paper:
- The order is the text's (ReLU, normalization, pooling), and alpha multiplies the sum of the squares; the paper's
  own code pools before the first ReLU and divides alpha by 5.
- All weights learn at one rate; in the paper's code biases learn twice as fast.
- Images are scaled to 0..1 unless a preprocessing is given; the paper subtracts the mean image (section 2).
- `one_weird_trick` and `notes` start as the paper does, with zero biases; their dropout stands before fc6 and fc7.
"""

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from kpipe.catalog.networks import AlexNetOptions
from kpipe.catalog.rows import check_options
from kpipe.models.layers import (
    POOLING,
    GroupedConv2D,
    InputShape,
    LocalResponseNormalization,
    activated,
    check_arguments,
    make_initializer,
    make_logits,
)
from kpipe.models.preprocessing import Preprocessing, scale_to_unit


@dataclass(frozen=True)
class Variant:
    """One row of the second table above."""

    filters: tuple[int, ...]
    """Filters of conv1, conv2 and so on."""
    grouped: tuple[int, ...] = ()
    """Numbers of the convolutions with two groups."""
    padding: int | None = None
    """Zeros around the image; None: as many at the right and lower border as conv1 lacks."""
    lrn: bool = True
    ones: tuple[str, ...] = ("conv2", "conv4", "conv5", "fc6", "fc7")
    """Layers whose biases start at 1 (section 5)."""
    dropout_first: bool = False
    """Whether dropout comes before fc6 and fc7, not after them."""


VARIANTS = {
    "paper": Variant((96, 256, 384, 384, 256), grouped=(2, 4, 5)),
    "single_tower": Variant((96, 256, 384, 384, 256)),
    "one_weird_trick": Variant((64, 192, 384, 256, 256), padding=2, lrn=False, ones=(), dropout_first=True),
    "notes": Variant((64, 192, 384, 256), padding=2, lrn=False, ones=(), dropout_first=True),
}
KERNELS = (11, 5, 3, 3, 3)
POOLED = (1, 2, 5)  # pool5 follows the last convolution, whatever its number
STDDEV = 0.01  # of the first weights, section 5


def alexnet(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    variant: str = "paper",
    activation: str = "relu",
    pooling: str = "max",
    overlapping: bool = True,
    lrn: bool = True,
    width: int = 4096,
    dropout: float = 0.5,
    initializer: str = "paper",
    preprocessing: Preprocessing | None = None,
    name: str = "alexnet",
) -> keras.Model:
    """Build AlexNet (Krizhevsky et al. 2012).

    Args:
        input_shape: (H, W, C), H and W at least 25.
        classes: number of classes, K.
        variant: "paper", "single_tower", "one_weird_trick" or "notes".
        activation: "relu", "leaky_relu", "sigmoid", "tanh", "scaled_tanh" or "maxout".
        pooling: "max" or "average".
        overlapping: pooling windows of 3x3 every 2 pixels (section 3.4); False: 2x2.
        lrn: local response normalization (section 3.3), where the variant has it.
        width: units of fc6 and fc7.
        dropout: dropout rate at fc6 and fc7.
        initializer: "paper" (weights N(0, 0.01), some biases 1), "he" or "glorot" (biases 0).
        preprocessing: the layer that takes the raw images; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Raises:
        ConfigError: an input that is too small or of unknown size; an option that is unknown or does not apply; no
            class.
    """
    options = check_options(
        "alexnet",
        AlexNetOptions,
        variant=variant,
        activation=activation,
        pooling=pooling,
        overlapping=overlapping,
        lrn=lrn,
        width=width,
        dropout=dropout,
        initializer=initializer,
    )
    check_arguments("alexnet", input_shape, classes, fixed_size=True)
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    x = _features(x, input_shape, options)
    return keras.Model(images, _head(x, classes, options), name=name)


def _features(x, input_shape: InputShape, options: AlexNetOptions):
    """Map images [B, H, W, C] to the output of pool5."""
    row, pool_size = VARIANTS[options.variant], 3 if options.overlapping else 2
    stride = _first_stride(min(input_shape[:2]), row, pool_size)
    x = layers.ZeroPadding2D(_padding(input_shape, row, stride), name="pad1")(x)
    for number, (filters, kernel) in enumerate(zip(row.filters, KERNELS, strict=False), start=1):
        layer_class, arguments = layers.Conv2D, _start(f"conv{number}", options)
        if number in row.grouped:
            layer_class, arguments = GroupedConv2D, arguments | {"groups": 2}
        arguments |= {"strides": stride, "padding": "valid"} if number == 1 else {"padding": "same"}
        x = activated(layer_class, filters, kernel, activation=options.activation, **arguments)(x)
        if options.lrn and row.lrn and number <= 2:
            x = LocalResponseNormalization(name=f"lrn{number}")(x)
        if number in POOLED[:2] or number == len(row.filters):
            x = POOLING[options.pooling](pool_size, 2, name=f"pool{number}")(x)
    return x


def _head(x, classes: int, options: AlexNetOptions):
    """Map the output of pool5 to logits [B, K]."""
    dropout_first = VARIANTS[options.variant].dropout_first
    x = layers.Flatten(name="flatten")(x)
    for number in (6, 7):
        arguments = _start(f"fc{number}", options)
        dense = activated(layers.Dense, options.width, activation=options.activation, **arguments)
        drop = layers.Dropout(options.dropout, name=f"drop{number}")
        x = dense(drop(x)) if dropout_first else drop(dense(x))
    return make_logits(classes, kernel_initializer=make_initializer(options.initializer, STDDEV))(x)


def _start(layer: str, options: AlexNetOptions) -> dict[str, Any]:
    """Return a layer's name and the initializers of its weights."""
    ones = options.initializer == "paper" and layer in VARIANTS[options.variant].ones
    kernel_initializer = make_initializer(options.initializer, STDDEV)
    return {"name": layer, "kernel_initializer": kernel_initializer, "bias_initializer": "ones" if ones else "zeros"}


def _first_stride(side: int, row: Variant, pool_size: int) -> int:
    """Return the largest stride of conv1, of 4, 2 and 1, that leaves pool5 something to pool."""
    for stride in (4, 2):
        lost = side + 2 * (row.padding or 0) - KERNELS[0]
        size = 1 + (-(-lost // stride) if row.padding is None else lost // stride)
        for _ in POOLED:
            size = (size - pool_size) // 2 + 1
        if size >= 1:
            return stride
    return 1


def _padding(input_shape: InputShape, row: Variant, stride: int) -> tuple:
    """Return the zeros around the image, ((top, bottom), (left, right))."""
    if row.padding is not None:
        return ((row.padding, row.padding), (row.padding, row.padding))
    return tuple((0, (KERNELS[0] - side) % stride) for side in input_shape[:2])
