"""GoogLeNet: nine inception blocks, and a global average where its predecessors have dense layers.

C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, sections 4 and 5, table 1.

| layers                        | output at 224    | 1x1 | 3x3       | 5x5      | pool | parameters |
|-------------------------------|------------------|-----|-----------|----------|------|------------|
| conv1 7x7/2, pool1 3x3/2, lrn | 56 x 56 x 64     |     |           |          |      | 9,472      |
| conv2 1x1 and 3x3, lrn        | 56 x 56 x 192    |     | 64 > 192  |          |      | 114,944    |
| pool2 3x3/2, inception 3a     | 28 x 28 x 256    | 64  | 96 > 128  | 16 > 32  | 32   | 163,696    |
| inception 3b                  | 28 x 28 x 480    | 128 | 128 > 192 | 32 > 96  | 64   | 388,736    |
| pool3 3x3/2, inception 4a     | 14 x 14 x 512    | 192 | 96 > 208  | 16 > 48  | 64   | 376,176    |
| inception 4b                  | 14 x 14 x 512    | 160 | 112 > 224 | 24 > 64  | 64   | 449,160    |
| inception 4c                  | 14 x 14 x 512    | 128 | 128 > 256 | 24 > 64  | 64   | 510,104    |
| inception 4d                  | 14 x 14 x 528    | 112 | 144 > 288 | 32 > 64  | 64   | 605,376    |
| inception 4e                  | 14 x 14 x 832    | 256 | 160 > 320 | 32 > 128 | 128  | 868,352    |
| pool4 3x3/2, inception 5a     | 7 x 7 x 832      | 256 | 160 > 320 | 32 > 128 | 128  | 1,043,456  |
| inception 5b                  | 7 x 7 x 1024     | 384 | 192 > 384 | 48 > 128 | 128  | 1,444,080  |
| average, dropout 40 %, logits | 1000             |     |           |          |      | 1,025,000  |

6,998,552 parameters, and 13,378,280 with the two auxiliary heads. The table's own column of parameters is rounded
and partly wrong (2.7K for the first layer).

`batch_norm` is torchvision's form: no biases but batch normalization with epsilon 0.001 after each convolution, 3x3
convolutions in the place of 5x5, a last pooling of 2x2: 6,624,904 parameters, with the heads 13,004,888.

Poolings round odd sizes up; the smallest side is 17, which leaves the last pooling two pixels. An auxiliary head
averages windows of 5x5 every 3 pixels, or the whole feature map where it is smaller.

Deliberate deviations from the paper:
- Weights start as in Glorot and Bengio 2010, biases at 0.2, as in the well-known Caffe model; the paper says
  nothing. `batch_norm` starts with a normal distribution of standard deviation 0.01, truncated at two of
  them, as torchvision.
- `batch_norm` has the paper's dropout of 0.4 unless another is chosen; torchvision has 0.2.
- Images are scaled to 0..1 unless a preprocessing is given; the paper subtracts the mean color (section 5).
"""

from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import layers

from kpipe.catalog.networks import GoogLeNetOptions
from kpipe.catalog.rows import check_options
from kpipe.models.layers import (
    InputShape,
    LocalResponseNormalization,
    check_arguments,
    make_initializer,
    make_logits,
)
from kpipe.models.preprocessing import Preprocessing, scale_to_unit

# Table 1: filters of the 1x1 branch, of the 3x3 branch's reduction and itself, of the 5x5 branch's reduction and
# itself, and of the 1x1 convolution after the pooling.
BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
POOLED = ("3b", "4e")
"""Blocks that a pooling follows."""
HEADED = ("4a", "4d")
"""Blocks with an auxiliary head."""
STDDEV = 0.01  # of torchvision's initial weights


@dataclass(frozen=True)
class Variant:
    """What the two variants differ in."""

    batch_norm: bool
    largest_kernel: int
    """Kernel size of the branch that the paper calls 5x5."""
    last_pool: int
    initializer: str = "paper"


VARIANTS = {
    "paper": Variant(batch_norm=False, largest_kernel=5, last_pool=3),
    "batch_norm": Variant(batch_norm=True, largest_kernel=3, last_pool=2),
}


@keras.saving.register_keras_serializable(package="kpipe")
class WithAuxiliaryHeads(keras.Model):
    """A functional model whose first output is the logits and whose others are the logits of auxiliary heads.

    In training the loss is that of the logits plus 0.3 times that of each head (section 5). Metrics, evaluation and
    `predict` know the first output only. It is compiled with an instance of `keras.losses.Loss`, not with a name.
    """

    auxiliary_weight = 0.3

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        logits, *heads = y_pred
        loss = super().compute_loss(x, y, logits, sample_weight, training)
        if training:
            loss = loss + self.auxiliary_weight * sum(self.loss(y, head, sample_weight) for head in heads)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred[0], sample_weight)

    def predict(self, *arguments, **options):
        return super().predict(*arguments, **options)[0]

    def predict_on_batch(self, x):
        return super().predict_on_batch(x)[0]


def googlenet(
    input_shape: InputShape = (224, 224, 3),
    classes: int = 1000,
    *,
    variant: str = "paper",
    auxiliary_heads: bool = False,
    lrn: bool = True,
    dropout: float = 0.4,
    initializer: str = "paper",
    preprocessing: Preprocessing | None = None,
    name: str = "googlenet",
) -> keras.Model:
    """Build GoogLeNet (Szegedy et al. 2015).

    Args:
        input_shape: (H, W, C), H and W at least 17; without auxiliary heads they may be None: any size.
        classes: number of classes, K.
        variant: "paper" or "batch_norm".
        auxiliary_heads: two more classifiers for training: the model is a `WithAuxiliaryHeads` and, when it is
            called, gives a list of three logits.
        lrn: local response normalization in the stem, where the variant has it.
        dropout: dropout rate before the last layer.
        initializer: "paper", "he" or "glorot". "paper": Glorot's weights and biases of 0.2, in the variant
            "batch_norm" weights N(0, 0.01), truncated. With the others, biases start at 0.
        preprocessing: the layer that takes the raw images; None scales them to 0..1.
        name: name of the model.

    Returns:
        An uncompiled model from raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Raises:
        ConfigError: an input that is too small, or of unknown size before the heads; an option that is unknown or does
            not apply; no class.
    """
    options = check_options(
        "googlenet",
        GoogLeNetOptions,
        variant=variant,
        auxiliary_heads=auxiliary_heads,
        lrn=lrn,
        dropout=dropout,
        initializer=initializer,
    )
    check_arguments("googlenet", input_shape, classes, fixed_size=auxiliary_heads)
    row = replace(VARIANTS[variant], initializer=initializer)
    images = keras.Input(input_shape, dtype="float32", name="images")
    x = (preprocessing or scale_to_unit())(images)
    x, heads = _features(x, classes, options, row)
    logits = _head(x, classes, options, row)
    if heads:
        return WithAuxiliaryHeads(images, [logits, *heads], name=name)
    return keras.Model(images, logits, name=name)


def _features(x, classes: int, options: GoogLeNetOptions, row: Variant) -> tuple[Any, list[Any]]:
    """Map images [B, H, W, C] to the output of inception 5b [B, H / 32, W / 32, 1024] and logits of auxiliary heads."""
    x = _stem(x, row, options.lrn and not row.batch_norm)
    heads = []
    for place, filters in BLOCKS.items():
        x = inception(x, filters, f"inception_{place}", row)
        if options.auxiliary_heads and place in HEADED:
            heads.append(_auxiliary_head(x, classes, f"auxiliary_{place}", row))
        if place in POOLED:
            size = row.last_pool if place == "4e" else 3
            x = layers.MaxPooling2D(size, 2, padding="same", name=f"pool{place[0]}")(x)
    return x, heads


def _head(x, classes: int, options: GoogLeNetOptions, row: Variant):
    """Map the output of inception 5b [B, H, W, 1024] to logits [B, K]."""
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    x = layers.Dropout(options.dropout, name="dropout")(x)
    return make_logits(classes, **_start(row, biased=False))(x)


def inception(x, filters: tuple[int, int, int, int, int, int], name: str, row: Variant):
    """Add one inception block with dimension reduction, figure 2b of the paper.

    Args:
        x: [B, H, W, C].
        filters: of the convolutions, as in `BLOCKS`.
        name: begins the names of the block's layers.
        row: the variant.

    Returns:
        [B, H, W, the sum of the four branches' filters].
    """
    one, reduce_three, three, reduce_five, five, pooled = filters
    branches = [_convolution(x, one, 1, f"{name}_1x1", row)]
    for label, reduced, filters_out, kernel in (
        ("3x3", reduce_three, three, 3),
        ("5x5", reduce_five, five, row.largest_kernel),
    ):
        reduction = _convolution(x, reduced, 1, f"{name}_{label}_reduce", row)
        branches.append(_convolution(reduction, filters_out, kernel, f"{name}_{label}", row))
    pool = layers.MaxPooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    branches.append(_convolution(pool, pooled, 1, f"{name}_pool_1x1", row))
    return layers.Concatenate(name=name)(branches)


def _stem(x, row: Variant, lrn: bool):
    def normalize(x, number: int):
        return LocalResponseNormalization(name=f"lrn{number}")(x) if lrn else x

    x = layers.ZeroPadding2D(3, name="pad1")(x)
    x = _convolution(x, 64, 7, "conv1", row, strides=2, padding="valid")
    x = normalize(layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x), 1)
    x = _convolution(x, 64, 1, "conv2_reduce", row)
    x = normalize(_convolution(x, 192, 3, "conv2", row), 2)
    return layers.MaxPooling2D(3, 2, padding="same", name="pool2")(x)


def _auxiliary_head(x, classes: int, name: str, row: Variant):
    """Map [B, H, W, C] to logits [B, K]: the side network of section 5."""
    window = tuple(min(5, side) for side in x.shape[1:3])
    x = layers.AveragePooling2D(window, 3, name=f"{name}_pool")(x)
    x = _convolution(x, 128, 1, f"{name}_1x1", row)
    x = layers.Flatten(name=f"{name}_flatten")(x)
    x = layers.Dense(1024, activation="relu", name=f"{name}_fc", **_start(row))(x)
    x = layers.Dropout(0.7, name=f"{name}_dropout")(x)
    return layers.Dense(classes, dtype="float32", name=f"{name}_logits", **_start(row, biased=False))(x)


def _convolution(x, filters: int, kernel: int, name: str, row: Variant, *, strides: int = 1, padding: str = "same"):
    options = {"strides": strides, "padding": padding, "name": name} | _start(row)
    if not row.batch_norm:
        return layers.Conv2D(filters, kernel, activation="relu", **options)(x)
    x = layers.Conv2D(filters, kernel, use_bias=False, **options)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _start(row: Variant, biased: bool = True) -> dict[str, Any]:
    """Return the initializers of a layer; `biased`: whether the paper's form starts its biases at 0.2."""
    if row.initializer != "paper":
        return {"kernel_initializer": make_initializer(row.initializer, STDDEV)}
    if row.batch_norm:
        return {"kernel_initializer": keras.initializers.TruncatedNormal(stddev=STDDEV)}
    bias = keras.initializers.Constant(0.2 if biased else 0.0)
    return {"kernel_initializer": keras.initializers.GlorotUniform(), "bias_initializer": bias}
