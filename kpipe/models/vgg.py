"""The VGG networks with 11, 13, 16 and 19 layers: nets A, A-LRN, B, C, D and E.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
table 1.

All convolutions are 3x3 with stride 1 and padding 1, each followed by ReLU; all poolings are 2x2 maxima with
stride 2. The number of convolutions of each stage:

| layers              | filters | output at 224 | vgg11 (A)   | vgg13 (B)   | vgg16_c (C) | vgg16 (D)   | vgg19 (E)   |
|---------------------|---------|---------------|-------------|-------------|-------------|-------------|-------------|
| conv1_1 .. pool1    | 64      | 112 x 112     | 1           | 2           | 2           | 2           | 2           |
| conv2_1 .. pool2    | 128     | 56 x 56       | 1           | 2           | 2           | 2           | 2           |
| conv3_1 .. pool3    | 256     | 28 x 28       | 2           | 2           | 3           | 3           | 4           |
| conv4_1 .. pool4    | 512     | 14 x 14       | 2           | 2           | 3           | 3           | 4           |
| conv5_1 .. pool5    | 512     | 7 x 7         | 2           | 2           | 3           | 3           | 4           |
| fc6, fc7            | 4096    |               |             |             |             |             |             |
| logits              | 1000    |               |             |             |             |             |             |
| parameters          |         |               | 132,863,336 | 133,047,848 | 133,638,952 | 138,357,544 | 143,667,240 |

In net C the third convolution of a stage is 1x1. Net A-LRN is `vgg11` with `lrn`: AlexNet's normalization after
conv1_1.

Poolings round odd sizes up, so 28 pixels become 14, 7, 4, 2 and 1; the smallest side is 17, which leaves pool5
two pixels.

Deliberate deviations from the paper:
- Batch normalization (`batch_norm`), the global average head (`head="gap"`) and a narrower `width` are offered; the
  defaults are the paper's network.
- Convolutions start as in He et al. 2015 (section 2.2 there), dense layers as in Glorot and Bengio 2010, unless
  `initializer="paper"` is chosen. The paper first trains net A, whose layers `model.init_from` reuses; it notes
  that Glorot's start makes that unnecessary (section 3.1).
- Images are scaled to 0..1 unless a preprocessing is given; the paper subtracts the mean color (section 2.1).
"""

from collections.abc import Callable

import keras
from keras import layers

from kpipe.catalog.networks import VGG11Options, VGGOptions
from kpipe.catalog.rows import check_options
from kpipe.models.layers import (
    POOLING,
    InputShape,
    LocalResponseNormalization,
    activated,
    check_arguments,
    make_activation,
    make_initializer,
    make_logits,
)
from kpipe.models.preprocessing import Preprocessing, scale_to_unit

# Table 1 of the paper: the kernels of the convolutions in each of the five stages, and the stages' filters.
STAGES = {
    "vgg11": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "vgg13": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "vgg16": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "vgg16_c": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "vgg19": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
FILTERS = (64, 128, 256, 512, 512)
STDDEV = 0.1  # section 3.1: a variance of 0.01
COPIED = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "logits")
"""What deeper nets take from net A: its first four convolutions and its dense layers, section 3.1."""


def list_places(network: str) -> list[str]:
    """Return the `3_2` of each convolution `conv3_2`, in order."""
    stages = enumerate(STAGES[network], start=1)
    return [f"{stage}_{number}" for stage, kernels in stages for number in range(1, len(kernels) + 1)]


def vgg11(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = False,
    head: str = "fc",
    width: int = 4096,
    dropout: float = 0.5,
    activation: str = "relu",
    pooling: str = "max",
    initializer: str = "he",
    lrn: bool = False,
    preprocessing: Preprocessing | None = None,
    name: str = "vgg11",
) -> keras.Model:
    """Build VGG net A: 8 convolutions and 3 dense layers.

    Args:
        input_shape: (H, W, C), H and W at least 17; with head "gap" they may be None: any size.
        classes: number of classes, K.
        batch_norm: batch normalization between each convolution and its activation.
        head: "fc", two hidden dense layers as in the paper, or "gap", global average pooling.
        width: units of each hidden layer of the "fc" head.
        dropout: dropout rate after each hidden layer of the "fc" head.
        activation: "relu", "leaky_relu", "sigmoid", "tanh", "scaled_tanh" or "maxout".
        pooling: "max" or "average".
        initializer: "he" (dense layers: Glorot), "glorot", or "paper": N(0, variance 0.01), section 3.1.
        lrn: local response normalization after conv1_1: net A-LRN.
        preprocessing: the layer that takes the raw images; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Raises:
        ConfigError: an input too small, or of unknown size before the "fc" head; an option that is unknown or
            does not apply; no class.
    """
    options = check_options(
        "vgg11",
        VGG11Options,
        batch_norm=batch_norm,
        head=head,
        width=width,
        dropout=dropout,
        activation=activation,
        pooling=pooling,
        initializer=initializer,
        lrn=lrn,
    )
    return _build("vgg11", input_shape, classes, options, preprocessing, name, lrn=lrn)


def _builder(network: str, net: str) -> Callable[..., keras.Model]:
    """Return the function `network`, which builds the net that the paper calls `net`.

    The nets share one docstring, in which `help` names the net.
    """

    def build(
        input_shape: InputShape = (224, 224, 3),
        classes: int = 1000,
        *,
        batch_norm: bool = False,
        head: str = "fc",
        width: int = 4096,
        dropout: float = 0.5,
        activation: str = "relu",
        pooling: str = "max",
        initializer: str = "he",
        preprocessing: Preprocessing | None = None,
        name: str = network,
    ) -> keras.Model:
        """Build VGG net NET.

        Args:
            input_shape: (H, W, C), H and W at least 17; with head "gap" they may be None: any size.
            classes: number of classes, K.
            batch_norm: batch normalization between each convolution and its activation.
            head: "fc", two hidden dense layers as in the paper, or "gap", global average pooling.
            width: units of each hidden layer of the "fc" head.
            dropout: dropout rate after each hidden layer of the "fc" head.
            activation: "relu", "leaky_relu", "sigmoid", "tanh", "scaled_tanh" or "maxout".
            pooling: "max" or "average".
            initializer: "he" (dense layers: Glorot), "glorot", or "paper": N(0, variance 0.01), section 3.1.
            preprocessing: the layer that takes the raw images; None scales them to 0..1.
            name: name of the model.

        Returns:
            An uncompiled model from raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

        Raises:
            ConfigError: an input too small, or of unknown size before the "fc" head; an option that is unknown or
                does not apply; no class.
        """
        options = check_options(
            network,
            VGGOptions,
            batch_norm=batch_norm,
            head=head,
            width=width,
            dropout=dropout,
            activation=activation,
            pooling=pooling,
            initializer=initializer,
        )
        return _build(network, input_shape, classes, options, preprocessing, name)

    build.__name__ = build.__qualname__ = network
    build.__doc__ = (build.__doc__ or "").replace("NET", net, 1)  # None under python -OO
    return build


vgg13 = _builder("vgg13", "B: 10 convolutions and 3 dense layers")
vgg16 = _builder("vgg16", "D: 13 convolutions and 3 dense layers")
vgg16_c = _builder("vgg16_c", "C: 13 convolutions, three of them 1x1, and 3 dense layers")
vgg19 = _builder("vgg19", "E: 16 convolutions and 3 dense layers")


def _build(
    network: str,
    input_shape: InputShape,
    classes: int,
    options: VGGOptions,
    preprocessing: Preprocessing | None,
    name: str,
    *,
    lrn: bool = False,
) -> keras.Model:
    check_arguments(network, input_shape, classes, fixed_size=not options.any_size)
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    x = _features(x, STAGES[network], options, lrn=lrn)
    return keras.Model(images, _head(x, classes, options), name=name)


def _features(x, stages: tuple[tuple[int, ...], ...], options: VGGOptions, *, lrn: bool):
    """Map images to [B, H / 32, W / 32, 512], rounded up: five stages of convolutions, a pooling after each."""
    for stage, (kernels, filters) in enumerate(zip(stages, FILTERS, strict=True), start=1):
        for number, kernel in enumerate(kernels, start=1):
            x = _convolve(x, filters, kernel, f"{stage}_{number}", options)
            if lrn and stage == number == 1:
                x = LocalResponseNormalization(name="lrn1")(x)
        x = POOLING[options.pooling](2, padding="same", name=f"pool{stage}")(x)
    return x


def _convolve(x, filters: int, kernel: int, place: str, options: VGGOptions):
    """Map [B, H, W, *] to [B, H, W, filters]; `place` is the `3_2` of `conv3_2`."""
    activation = options.activation
    initializer = make_initializer(options.initializer, STDDEV)
    arguments = {"padding": "same", "kernel_initializer": initializer, "name": f"conv{place}"}
    if not options.batch_norm:
        return activated(layers.Conv2D, filters, kernel, activation=activation, **arguments)(x)
    x = layers.Conv2D(2 * filters if activation == "maxout" else filters, kernel, **arguments)(x)
    # With Keras's own momentum of 0.99 the moving averages lag behind on small sets, which have few steps.
    # 0.9 and 1e-5 are also torchvision's.
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"bn{place}")(x)
    return make_activation(activation, f"{activation}{place}")(x)


def _head(x, classes: int, options: VGGOptions):
    """Map the output of pool5 [B, H, W, 512] to logits [B, K]."""

    def start() -> keras.initializers.Initializer:
        return make_initializer("glorot" if options.initializer == "he" else options.initializer, STDDEV)

    if options.head == "gap":
        x = layers.GlobalAveragePooling2D(name="gap")(x)
    else:
        x = layers.Flatten(name="flatten")(x)
        for number in (6, 7):
            arguments = {"activation": options.activation, "kernel_initializer": start(), "name": f"fc{number}"}
            x = activated(layers.Dense, options.width, **arguments)(x)
            x = layers.Dropout(options.dropout, name=f"drop{number}")(x)
    return make_logits(classes, kernel_initializer=start())(x)
