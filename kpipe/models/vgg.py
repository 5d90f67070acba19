"""The VGG networks with 11, 13, 16 and 19 layers: nets A, B, D and E.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
table 1.

All convolutions are 3x3 with stride 1 and padding 1, each followed by ReLU; all poolings are 2x2 maxima with
stride 2. The number of convolutions of each stage:

| layers              | maps | output at 224 | vgg11 (A)   | vgg13 (B)   | vgg16 (D)   | vgg19 (E)   |
|---------------------|------|---------------|-------------|-------------|-------------|-------------|
| conv1_1 .. pool1    | 64   | 112 x 112     | 1           | 2           | 2           | 2           |
| conv2_1 .. pool2    | 128  | 56 x 56       | 1           | 2           | 2           | 2           |
| conv3_1 .. pool3    | 256  | 28 x 28       | 2           | 2           | 3           | 4           |
| conv4_1 .. pool4    | 512  | 14 x 14       | 2           | 2           | 3           | 4           |
| conv5_1 .. pool5    | 512  | 7 x 7         | 2           | 2           | 3           | 4           |
| fc6, fc7            | 4096 |               |             |             |             |             |
| logits              | 1000 |               |             |             |             |             |
| parameters          |      |               | 132,863,336 | 133,047,848 | 138,357,544 | 143,667,240 |

Deliberate deviations from the paper:
- Batch normalisation (`batch_norm`), the global average head (`head="gap"`) and a narrower `width` are
  offered; the defaults are the paper's network.
- Convolutions start as in He et al. 2015 (section 2.2 there), dense layers as in Glorot and Bengio 2010. The
  paper first trains net A and copies its layers; it notes that Glorot's start makes that unnecessary
  (section 3.1).
- Images come scaled to 0..1 unless a preprocessing is given; the paper takes off the mean colour
  (section 2.1).
- The dense layers are not turned into convolutions for testing at other sizes (section 3.2).
- Net C, whose third convolutions are 1x1, is left out.
"""

import keras
from keras import layers

from kpipe.models.layers import InputShape, check_arguments, check_choice, make_logits, scale_to_unit

# Table 1 of the paper: convolutions in each of the five stages, and their maps.
STAGES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
MAPS = (64, 128, 256, 512, 512)


def _convolution(x, maps: int, place: str, batch_norm: bool):
    """[B, H, W, *] to [B, H, W, maps], not negative; `place` is the `3_2` of `conv3_2`."""
    activation = None if batch_norm else "relu"
    x = layers.Conv2D(
        maps, 3, padding="same", activation=activation, kernel_initializer="he_normal", name=f"conv{place}"
    )(x)
    if not batch_norm:
        return x
    # With Keras's own momentum of 0.99 the moving averages lag behind on small sets, which have few steps.
    # 0.9 and 1e-5 are also torchvision's.
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"bn{place}")(x)
    return layers.ReLU(name=f"relu{place}")(x)


def _head(x, head: str, width: int, dropout: float):
    """[B, H, W, 512] to [B, width] (`fc`) or [B, 512] (`gap`)."""
    if head == "gap":
        return layers.GlobalAveragePooling2D(name="gap")(x)
    x = layers.Flatten(name="flatten")(x)
    for number in (6, 7):
        x = layers.Dense(width, activation="relu", name=f"fc{number}")(x)
        x = layers.Dropout(dropout, name=f"drop{number}")(x)
    return x


def _vgg(network, input_shape, classes, *, batch_norm, head, width, dropout, preprocessing, name) -> keras.Model:
    """The network whose stages are `STAGES[network]`; arguments as `vgg11`."""
    check_choice(network, "head", head, ("fc", "gap"))
    check_arguments(network, input_shape, classes, fixed_size=head == "fc")

    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    for stage, (depth, maps) in enumerate(zip(STAGES[network], MAPS, strict=True), start=1):
        for number in range(1, depth + 1):
            x = _convolution(x, maps, f"{stage}_{number}", batch_norm)
        x = layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    return keras.Model(images, make_logits(classes)(_head(x, head, width, dropout)), name=name)


def vgg11(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = False,
    head: str = "fc",
    width: int = 4096,
    dropout: float = 0.5,
    preprocessing: keras.layers.Layer | None = None,
    name: str = "vgg11",
) -> keras.Model:
    """Net A: raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Args:
        input_shape: (H, W, C), H and W at least 32; with head "gap" they may be None: any size.
        classes: K.
        batch_norm: batch normalisation between each convolution and its ReLU.
        head: "fc", two hidden dense layers as in the paper, or "gap", global average pooling.
        width: units of each hidden layer of the "fc" head.
        dropout: share of units left out after each hidden layer of the "fc" head.
        preprocessing: the layer that sees the raw images first; None scales them to 0..1.
        name: of the model.

    Raises:
        ConfigError: an input too small, or of unknown size before the "fc" head; an unknown head; no class.
    """
    options = dict(batch_norm=batch_norm, head=head, width=width, dropout=dropout)
    return _vgg("vgg11", input_shape, classes, **options, preprocessing=preprocessing, name=name)


def vgg13(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = False,
    head: str = "fc",
    width: int = 4096,
    dropout: float = 0.5,
    preprocessing: keras.layers.Layer | None = None,
    name: str = "vgg13",
) -> keras.Model:
    """Net B; arguments, result and errors as `vgg11`."""
    options = dict(batch_norm=batch_norm, head=head, width=width, dropout=dropout)
    return _vgg("vgg13", input_shape, classes, **options, preprocessing=preprocessing, name=name)


def vgg16(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = False,
    head: str = "fc",
    width: int = 4096,
    dropout: float = 0.5,
    preprocessing: keras.layers.Layer | None = None,
    name: str = "vgg16",
) -> keras.Model:
    """Net D; arguments, result and errors as `vgg11`."""
    options = dict(batch_norm=batch_norm, head=head, width=width, dropout=dropout)
    return _vgg("vgg16", input_shape, classes, **options, preprocessing=preprocessing, name=name)


def vgg19(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    batch_norm: bool = False,
    head: str = "fc",
    width: int = 4096,
    dropout: float = 0.5,
    preprocessing: keras.layers.Layer | None = None,
    name: str = "vgg19",
) -> keras.Model:
    """Net E; arguments, result and errors as `vgg11`."""
    options = dict(batch_norm=batch_norm, head=head, width=width, dropout=dropout)
    return _vgg("vgg19", input_shape, classes, **options, preprocessing=preprocessing, name=name)
