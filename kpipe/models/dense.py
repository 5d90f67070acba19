"""A network that looks at the whole of an image of any size: its dense layers become convolutions.

P. Sermanet et al., "OverFeat", ICLR 2014, section 3.3; K. Simonyan, A. Zisserman, ICLR 2015, section 3.2.

B batch, H height, W width, C channels, K classes.
"""

import keras
from keras import layers, ops

from kpipe.errors import ConfigError
from kpipe.models.layers import LocalResponseNormalization, Maxout, ScaledTanh
from kpipe.models.preprocessing import Standardize, SubtractMeanImage, Whiten

_OF_ANY_SIZE = (
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
"""Layers that do the same at every place of an image, and those that can be made to."""


def build_dense(model: keras.Model) -> keras.Model:
    """Build the network that sees every place of a larger image: logits, averaged over the places.

    The first dense layer after `Flatten` becomes a convolution of the size of the feature map that it has been trained
    on, and the dense layers after it become convolutions of 1x1. A network that ends in a global average needs no
    change: its average is over more places. All weights are those of the model; only the first dense layer is copied.

    Args:
        model: images [B, I, J, C] to logits [B, K], or to a list that begins with them.

    Returns:
        An uncompiled model from images float32 [B, H, W, C], H at least I and W at least J, to logits float32 [B, K].
        Of an image of I x J they are the model's.

    Raises:
        ConfigError: a layer of the network needs images of one size.
    """
    model = keras.Model(model.inputs, model.outputs[0])  # without auxiliary heads
    _check_layers(model)
    windows = [layer.input.shape[1:3] for layer in model.layers if isinstance(layer, layers.Flatten)]
    height, width, channels = model.input_shape[1:]
    any_size = (None, None, channels)

    def call(layer, x, **options):
        if isinstance(layer, layers.Flatten):
            return x
        if isinstance(layer, layers.Dense) and layer.kernel.shape[0] != x.shape[-1]:
            return _convolve(layer, windows[0], x)
        # A layer without weights may have been built for one size.
        is_bare = isinstance(layer, layers.Layer) and not layer.weights
        return (type(layer).from_config(layer.get_config()) if is_bare else layer)(x, **options)

    images = keras.Input(any_size, dtype="float32", name="images")
    places = keras.models.clone_model(model, [images], clone_function=lambda layer: layer, call_function=call).outputs[
        0
    ]
    if len(places.shape) == 4:
        places = layers.GlobalAveragePooling2D(dtype="float32", name="places")(places)
    return keras.Model(images, places, name=f"dense_{model.name}")


def _check_layers(model: keras.Model) -> None:
    for layer in model.layers:
        if isinstance(layer, SubtractMeanImage | Whiten):
            raise ConfigError(
                "protocol: expected for dense a network that normalizes all pixels alike, got one whose first layer "
                f"has values for each pixel ({layer.name}). Take another protocol"
            )
        if not isinstance(layer, _OF_ANY_SIZE):
            raise ConfigError(
                "protocol: expected for dense a network of convolutions, poolings and dense layers, which can look at "
                f"images of any size, got one with the layer {layer.name} ({type(layer).__name__}). Take another "
                "protocol"
            )
    if sum(isinstance(layer, layers.Flatten) for layer in model.layers) > 1:
        raise ConfigError(
            "protocol: expected for dense a network with one Flatten layer at most, got several. Take another protocol"
        )


def _convolve(dense: layers.Dense, window: tuple[int, int], x):
    """Apply a dense layer at every place of a feature map: [B, H, W, C] to [B, H', W', units]."""
    convolution = layers.Conv2D(
        dense.units,
        window,
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
