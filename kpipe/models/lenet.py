"""LeNet-5: the form that is usually meant today, the paper's own, and the concept it grew from.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition",
Proceedings of the IEEE 86(11), 1998, section II.B and appendix A.

| layer  | `modern`                    | `original`                          | output for 32x32x1 | parameters     |
|--------|-----------------------------|-------------------------------------|--------------------|----------------|
| c1     | 6 filters 5x5               | the same                            | 28 x 28 x 6        | 156            |
| s2     | 2x2 pooling                 | trained sub-sampling                | 14 x 14 x 6        | 0 or 12        |
| c3     | 16 filters 5x5              | each sees 3 to 6 channels of s2     | 10 x 10 x 16       | 2,416 or 1,516 |
| s4     | 2x2 pooling                 | trained sub-sampling                | 5 x 5 x 16         | 0 or 32        |
| c5     | dense                       | 120 filters as large as all of s4   | 120                | 48,120         |
| f6     | dense                       | dense                               | 84                 | 10,164         |
| logits | dense                       | minus the distance to fixed codes   | 10                 | 850 or 0       |

61,706 and 60,000 trained parameters. `concept` has three channels in each of c1, s2, c3 and s4, sigmoids, and one
dense layer: the drawing with which courses introduce convolutional networks.

All three pad c1's input by 2 where it is smaller than 32 pixels (28 becomes the paper's 32), and no larger one.

Deliberate deviations of `modern` from the paper:
- c3 sees all channels of s2; s2 and s4 have no coefficients; the output is a dense layer under a softmax loss.
- The activation is ReLU unless another is chosen, and there is none after s2 and s4.
- Weights start as in Glorot and Bengio 2010, not uniform in +-2.4 / fan-in; images are scaled to 0..1.

Deliberate deviations of `original`:
- It is trained by the optimizer of the experiment; the paper has a stochastic diagonal Levenberg-Marquardt method.
- In larger images than 32 pixels c5 grows with s4; the paper would slide its 5x5 kernel.
- The codes of the digits are drawn after the paper's figure 3, not copied from it; classes other than 10 have
  random codes.
"""

import keras
from keras import layers

from kpipe.catalog.networks import LeNet5Options
from kpipe.catalog.rows import check_options
from kpipe.models.layers import (
    POOLING,
    FanInUniform,
    InputShape,
    PartialConv2D,
    RBFOutput,
    TrainableSubsampling,
    activated,
    check_arguments,
    make_activation,
    make_logits,
)
from kpipe.models.preprocessing import Preprocessing, scale_to_unit

# The paper's input size, section II.B; below it, c1 pads.
PAPER_SIZE = 32
# Table I of the paper: the channels of s2 that each filter of c3 sees.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip


def lenet5(
    input_shape: InputShape = (28, 28, 1),
    classes: int = 10,
    *,
    variant: str = "modern",
    activation: str = "relu",
    pooling: str = "max",
    preprocessing: Preprocessing | None = None,
    name: str = "lenet5",
) -> keras.Model:
    """Build LeNet-5 (LeCun et al. 1998).

    Args:
        input_shape: (H, W, C), H and W at least 12.
        classes: number of classes, K.
        variant: "modern"; "original", the paper's, whose logits are minus the distances to the codes of the classes
            and whose loss is `map`; or "concept", three sigmoid filters.
        activation: of the modern form after c1, c3, c5 and f6: "relu", "leaky_relu", "sigmoid", "tanh",
            "scaled_tanh" or "maxout".
        pooling: of the modern form, "max" or "average".
        preprocessing: the layer that takes the raw images; None scales them to 0..1, in the original form to
            the paper's -0.1 for 0 and 1.175 for 255.
        name: name of the model.

    Returns:
        An uncompiled model from raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Raises:
        ConfigError: an input that is too small or of unknown size; an option that is unknown or does not apply; no
            class.
    """
    options = check_options("lenet5", LeNet5Options, variant=variant, activation=activation, pooling=pooling)
    check_arguments("lenet5", input_shape, classes, fixed_size=True)
    if preprocessing is None:
        preprocessing = _scale_as_in_the_paper() if variant == "original" else scale_to_unit()
    padding = "same" if min(input_shape[:2]) < PAPER_SIZE else "valid"
    images = keras.Input(input_shape, dtype="float32", name="images")
    logits = _BODIES[variant](preprocessing(images), classes, padding, options)
    return keras.Model(images, logits, name=name)


def _modern(x, classes: int, padding: str, options: LeNet5Options):
    activation, pool = options.activation, POOLING[options.pooling]
    # Features.
    x = activated(layers.Conv2D, 6, 5, padding=padding, activation=activation, name="c1")(x)
    x = pool(2, name="s2")(x)
    x = activated(layers.Conv2D, 16, 5, activation=activation, name="c3")(x)
    x = pool(2, name="s4")(x)
    # Head.
    x = layers.Flatten(name="flatten")(x)
    x = activated(layers.Dense, 120, activation=activation, name="c5")(x)
    x = activated(layers.Dense, 84, activation=activation, name="f6")(x)
    return make_logits(classes)(x)


def _original(x, classes: int, padding: str, _: LeNet5Options):
    def squash(x, name):
        return make_activation("scaled_tanh", f"{name}_tanh")(x)

    def start():
        return {"kernel_initializer": FanInUniform()}

    # Features.
    x = squash(layers.Conv2D(6, 5, padding=padding, **start(), name="c1")(x), "c1")
    x = squash(TrainableSubsampling(name="s2")(x), "s2")
    x = squash(PartialConv2D(C3_TABLE, 5, name="c3")(x), "c3")
    x = squash(TrainableSubsampling(name="s4")(x), "s4")
    # Head.
    x = squash(layers.Conv2D(120, x.shape[1:3], **start(), name="c5")(x), "c5")
    x = layers.Flatten(name="flatten")(x)
    x = squash(layers.Dense(84, **start(), name="f6")(x), "f6")
    return RBFOutput(classes, name="logits")(x)


def _concept(x, classes: int, padding: str, _: LeNet5Options):
    # Features.
    for convolution, subsampling in (("c1", "s2"), ("c3", "s4")):
        x = layers.Conv2D(3, 5, padding=padding, activation="sigmoid", name=convolution)(x)
        x = TrainableSubsampling(name=subsampling)(x)
        x = make_activation("sigmoid", f"{subsampling}_sigmoid")(x)
        padding = "valid"
    # Head.
    return make_logits(classes)(layers.Flatten(name="flatten")(x))


_BODIES = {"modern": _modern, "original": _original, "concept": _concept}


def _scale_as_in_the_paper() -> keras.layers.Layer:
    """Return the layer by which background (0) becomes -0.1 and ink (255) 1.175: section II.B."""
    return layers.Rescaling((1.175 + 0.1) / 255, offset=-0.1, dtype="float32", name="scale")
