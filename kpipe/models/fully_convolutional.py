"""Makes a network fully convolutional, for images of any size: its dense layers become convolutions.

P. Sermanet et al., "OverFeat", ICLR 2014, section 3.3; K. Simonyan, A. Zisserman, ICLR 2015, section 3.2.

B batch, H height, W width, C channels, K classes.
"""

import keras
from keras import layers, ops

from kpipe.errors import ConfigError
from kpipe.models.layers import LocalResponseNormalization, Maxout, ScaledTanh
from kpipe.models.preprocessing import Standardize, SubtractMeanImage, Whiten

CONVOLUTIONAL = (
    layers.InputLayer,
    layers.Conv2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
    layers.ZeroPadding2D,
    layers.BatchNormalization,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.Dropout,
    layers.Concatenate,
    layers.Flatten,
    layers.Dense,
    layers.Rescaling,
    layers.Normalization,
    LocalResponseNormalization,
    Maxout,
    ScaledTanh,
    Standardize,
)
"""Layers that do the same at every position of an image, and those that can be made to."""


def build_fully_convolutional(model: keras.Model) -> keras.Model:
    """Build the network that sees every position of a larger image: logits, averaged over the positions.

    As `build_class_map`, but a network that ends in a global average averages its features instead.

    The first dense layer after `Flatten` becomes a convolution of the size of the feature map that it has been trained
    on, and the dense layers after it become convolutions of 1x1. A network that ends in a global average needs no
    change: its average is over more positions. All weights are those of the model; the first dense layer alone is
    copied.

    Args:
        model: images [B, I, J, C] to logits [B, K], or to a list that begins with them.

    Returns:
        An uncompiled model from images float32 [B, H, W, C], H at least I and W at least J, to logits float32 [B, K].
        Of an image of I x J they are the model's.

    Raises:
        ConfigError: a layer of the network needs images of one size.
    """
    images, logits = _at_all_positions(model, "protocol: expected for dense", ". Use another protocol")
    if len(logits.shape) == 4:
        logits = layers.GlobalAveragePooling2D(dtype="float32", name="positions")(logits)
    return keras.Model(images, logits, name=f"fully_convolutional_{model.name}")


def build_class_map(model: keras.Model) -> keras.Model:
    """Build the network that gives logits for each position of a larger image.

    A global average before the dense layers is left out: of a linear classifier, the mean of the positions is what the
    network says of the whole image.

    Args:
        model: as for `build_fully_convolutional`.

    Returns:
        An uncompiled model from images float32 [B, H, W, C] to logits float32 [B, h, w, K].

    Raises:
        ConfigError: a layer of the network needs images of one size.
    """
    images, logits = _at_all_positions(model, "expected", averages=False)
    return keras.Model(images, logits, name=f"class_map_{model.name}")


def _at_all_positions(model: keras.Model, wanted: str, remedy: str = "", *, averages: bool = True) -> tuple:
    """Return images of any size, and what the network says of them, at each position unless it averages.

    Args:
        model: as for `build_fully_convolutional`.
        wanted: begins the message of an error.
        remedy: ends it.
        averages: whether global averages stay.
    """
    model = keras.Model(model.inputs, model.outputs[0])  # without auxiliary heads
    _check_layers(model, wanted, remedy)
    kernel_sizes = [layer.input.shape[1:3] for layer in model.layers if isinstance(layer, layers.Flatten)]
    height, width, channels = model.input_shape[1:]
    any_size = (None, None, channels)

    def call(layer, x, **options):
        if isinstance(layer, layers.Flatten) or (isinstance(layer, layers.GlobalAveragePooling2D) and not averages):
            return x
        if isinstance(layer, layers.Dense) and layer.kernel.shape[0] != x.shape[-1]:
            return _convolve(layer, kernel_sizes[0], x)
        # A layer without weights may have been built for one size.
        has_no_weights = isinstance(layer, layers.Layer) and not layer.weights
        return (type(layer).from_config(layer.get_config()) if has_no_weights else layer)(x, **options)

    images = keras.Input(any_size, dtype="float32", name="images")
    copied = keras.models.clone_model(model, [images], clone_function=lambda layer: layer, call_function=call)
    return images, copied.outputs[0]


def _check_layers(model: keras.Model, wanted: str, remedy: str) -> None:
    for layer in model.layers:
        if isinstance(layer, SubtractMeanImage | Whiten):
            raise ConfigError(
                f"{wanted} a network that normalizes all pixels alike, got one whose first layer has values for each "
                f"pixel ({layer.name}){remedy}"
            )
        if not isinstance(layer, CONVOLUTIONAL):
            raise ConfigError(
                f"{wanted} a network of convolutions, poolings and dense layers, which can look at images of any size, "
                f"got one with the layer {layer.name} ({type(layer).__name__}){remedy}"
            )
    if sum(isinstance(layer, layers.Flatten) for layer in model.layers) > 1:
        raise ConfigError(f"{wanted} a network with one Flatten layer at most, got several{remedy}")


def _convolve(dense: layers.Dense, kernel_size: tuple[int, int], x):
    """Apply a dense layer at every position of a feature map: [B, H, W, C] to [B, H', W', units]."""
    convolution = layers.Conv2D(
        dense.units,
        kernel_size,
        activation=dense.activation,
        use_bias=dense.use_bias,
        dtype=dense.dtype_policy,
        name=dense.name,
    )
    convolution.build(x.shape)
    convolution.kernel.assign(ops.reshape(dense.kernel, convolution.kernel.shape))
    if dense.use_bias:
        convolution.bias.assign(dense.bias)
    return convolution(x)
