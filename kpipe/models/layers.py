"""What the networks are made of beyond Keras's own layers, and the checks of a builder's arguments.

Legend of the shapes: B batch, H height, W width, C channels, K classes, * any leading axes. Channels come last.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers, ops

from kpipe.catalog.networks import MODELS
from kpipe.errors import ConfigError

InputShape = Sequence[int | None]

POOLING = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}


# --- activations --------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="kpipe")
class ScaledTanh(layers.Layer):
    """`amplitude x tanh(slope x)`: LeNet-5's squashing function, LeCun et al. 1998, appendix A.

    With the paper's 1.7159 and 2/3, f(1) = 1 and f(-1) = -1, and the curvature is largest there.

    Input: floats [*]. Output: the same shape, within +-amplitude.
    """

    def __init__(self, amplitude: float = 1.7159, slope: float = 2 / 3, **options):
        super().__init__(**options)
        self.amplitude = amplitude
        self.slope = slope

    def call(self, x):
        return self.amplitude * ops.tanh(self.slope * x)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "amplitude": self.amplitude, "slope": self.slope}


@keras.saving.register_keras_serializable(package="kpipe")
class Maxout(layers.Layer):
    """The largest of each `pieces` neighboring channels: Goodfellow et al. 2013, section 2.

    The layer before it has `pieces` times as many filters or units as are wanted.

    Input: floats [*, pieces x C]. Output: [*, C].

    Raises:
        ConfigError: the channels are no multiple of `pieces`, or there is no piece.
    """

    def __init__(self, pieces: int = 2, **options):
        super().__init__(**options)
        if pieces < 1:
            raise ConfigError(f"{self.name}: expected at least 1 piece, got {pieces}.")
        self.pieces = pieces

    def build(self, input_shape):
        if input_shape[-1] % self.pieces:
            raise ConfigError(f"{self.name}: expected a multiple of {self.pieces} channels, got {input_shape[-1]}.")

    def call(self, x):
        return ops.max(ops.reshape(x, (*ops.shape(x)[:-1], x.shape[-1] // self.pieces, self.pieces)), axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] // self.pieces)

    def get_config(self):
        return {**super().get_config(), "pieces": self.pieces}


# `kpipe.catalog.networks.Activation`: Keras computes these inside the layer before them, the others are layers.
_INSIDE = ("relu", "sigmoid", "tanh")
_OWN_LAYER = {
    # Maas et al. 2013, section 2: a slope of 0.01; Keras's own default is 0.3.
    "leaky_relu": lambda name: layers.LeakyReLU(0.01, name=name),
    "scaled_tanh": lambda name: ScaledTanh(name=name),
    "maxout": lambda name: Maxout(name=name),
}


def make_activation(activation: str, name: str) -> layers.Layer:
    """Return an activation, a name in `kpipe.catalog.networks.Activation`, as a layer; maxout halves the channels."""
    return layers.Activation(activation, name=name) if activation in _INSIDE else _OWN_LAYER[activation](name)


def activated(layer_class: type[layers.Layer], units: int, *arguments, activation: str, name: str, **options):
    """Return a function of a tensor: `layer_class(units, ...)` and its activation, with `units` channels in the end.

    An activation that Keras has no function for is a layer `<name>_<activation>`; maxout doubles the channels of
    the layer before it.
    """
    if activation in _INSIDE:
        return layer_class(units, *arguments, activation=activation, name=name, **options)
    wanted = 2 * units if activation == "maxout" else units
    layer = layer_class(wanted, *arguments, name=name, **options)
    activate = make_activation(activation, f"{name}_{activation}")
    return lambda x: activate(layer(x))


# --- normalization ------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="kpipe")
class LocalResponseNormalization(layers.Layer):
    """`x / (k + alpha x S)^beta`, S over the squares of `size` neighboring channels.

    A. Krizhevsky, I. Sutskever, G. Hinton, NIPS 2012, section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75. Alpha
    has two meanings. As the paper is printed, and in `tf.nn.local_response_normalization`, S is the sum of the
    squares; in the paper's own code, Caffe and PyTorch it is that sum divided by n, also at the first and last
    channels, where fewer than n squares are summed.

    Args:
        size: n, how many channels are summed over, with the normalized one in the middle; odd.
        k, alpha, beta: as above.
        alpha_times: what alpha multiplies: "sum" (the paper's text) or "mean" (its code).

    Input: floats [B, H, W, C]. Output: the same shape. The squares are summed in float32.

    Raises:
        ConfigError: an even size, or another `alpha_times`.
    """

    def __init__(self, size=5, k=2.0, alpha=1e-4, beta=0.75, *, alpha_times="sum", **options):
        super().__init__(**options)
        if size < 1 or size % 2 == 0:
            raise ConfigError(f"{self.name}: expected an odd size, got {size}.")
        if alpha_times not in ("sum", "mean"):
            raise ConfigError(f"{self.name}: expected alpha_times 'sum' or 'mean', got {alpha_times!r}.")
        self.size, self.k, self.alpha, self.beta = size, k, alpha, beta
        self.alpha_times = alpha_times

    def call(self, x):
        return x * ops.cast(self.scale(x), x.dtype)

    def scale(self, x):
        """Return what each value of x, [B, H, W, C], is multiplied by: float32 [B, H, W, C]."""
        channels = np.arange(x.shape[-1])
        neighbors = np.abs(channels[:, None] - channels) <= self.size // 2
        alpha = self.alpha / self.size if self.alpha_times == "mean" else self.alpha
        # One matrix product is faster on a CPU than adding `size` shifted copies.
        squares = ops.square(ops.cast(x, "float32"))
        base = self.k + alpha * ops.matmul(squares, neighbors.astype("float32"))
        if self.beta == 0.75:  # two roots cost less than a power
            root = ops.rsqrt(base)
            return root * ops.sqrt(root)
        return ops.power(base, -self.beta)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {name: getattr(self, name) for name in ("size", "k", "alpha", "beta", "alpha_times")}
        return {**super().get_config(), **own}


# --- convolution, pooling and output of special kinds -------------------------------------------------------


@keras.saving.register_keras_serializable(package="kpipe")
class GroupedConv2D(layers.Conv2D):
    """`keras.layers.Conv2D` with `groups`, the same weights and result, computed one group after the other.

    On a CPU, Keras's own grouped convolution takes many times as long as its two halves.

    Input: floats [B, H, W, C]. Output: [B, H', W', filters]; a filter sees the channels of its own
    group only.
    """

    def convolution_op(self, inputs, kernel):
        options = {
            "strides": list(self.strides),
            "padding": self.padding,
            "data_format": self.data_format,
            "dilation_rate": self.dilation_rate,
        }
        axis = -1 if self.data_format == "channels_last" else 1
        channels, kernels = ops.split(inputs, self.groups, axis=axis), ops.split(kernel, self.groups, axis=-1)
        parts = [ops.conv(x, k, **options) for x, k in zip(channels, kernels, strict=True)]
        return ops.concatenate(parts, axis=axis)


def make_initializer(name: str, stddev: float) -> keras.initializers.Initializer:
    """Return an initializer: "paper", N(0, stddev); "he", He et al. 2015; "glorot", Glorot and Bengio 2010."""
    makers = {
        "paper": lambda: keras.initializers.RandomNormal(stddev=stddev),
        "he": keras.initializers.HeNormal,
        "glorot": keras.initializers.GlorotUniform,
    }
    return makers[name]()


@keras.saving.register_keras_serializable(package="kpipe")
class FanInUniform(keras.initializers.Initializer):
    """Uniform within +-`scale` / fan-in: LeCun et al. 1998, appendix A, with a scale of 2.4.

    Fan-in is the number of inputs that one unit sums: all axes of the shape but the last.
    """

    def __init__(self, scale: float = 2.4, fan_in: int | None = None, seed=None):
        self.scale = scale
        self.fan_in = fan_in
        self.seed = seed

    def __call__(self, shape, dtype=None):
        limit = self.scale / (self.fan_in or math.prod(shape[:-1]))
        return keras.random.uniform(shape, -limit, limit, dtype=dtype, seed=self.seed)

    def get_config(self):
        return {"scale": self.scale, "fan_in": self.fan_in, "seed": self.seed}


@keras.saving.register_keras_serializable(package="kpipe")
class PartialConv2D(layers.Layer):
    """A convolution in which each filter sees only some of the input's channels: LeCun et al. 1998, table I.

    Args:
        table: for each filter the numbers of the channels that it sees.
        kernel_size: of the square kernel.

    Input: floats [B, H, W, C]. Output: [B, H - kernel_size + 1, W - kernel_size + 1, len(table)]. Weights: one
    kernel for each connected pair of channel and filter, uniform in +-2.4 / fan-in, and one bias for each filter.

    Raises:
        ConfigError: a channel in the table that the input does not have.
    """

    def __init__(self, table: Sequence[Sequence[int]], kernel_size: int, **options):
        super().__init__(**options)
        self.table = [list(seen) for seen in table]
        self.kernel_size = (kernel_size, kernel_size)
        self.strides = (1, 1)
        self.padding = "valid"

    def build(self, input_shape):
        channels, pairs, largest = input_shape[-1], sum(map(len, self.table)), max(map(max, self.table))
        if largest >= channels:
            raise ConfigError(f"{self.name}: expected channels 0 to {channels - 1} in the table, got {largest}.")
        self.kernel = self.add_weight(shape=(*self.kernel_size, pairs), initializer=self._start, name="kernel")
        self.bias = self.add_weight(shape=(len(self.table),), initializer="zeros", name="bias")
        # Where the kernel of (channel, filter) stands among the pairs; one past the last for "not connected".
        self._place = np.full((channels, len(self.table)), pairs)
        self._place[[channel for seen in self.table for channel in seen], self._filter_of_pair()] = np.arange(pairs)

    def _filter_of_pair(self) -> list[int]:
        return [number for number, seen in enumerate(self.table) for _ in seen]

    def _start(self, shape, dtype=None):
        fan_in = [math.prod(self.kernel_size) * len(self.table[number]) for number in self._filter_of_pair()]
        return FanInUniform(fan_in=1)(shape, dtype) / ops.convert_to_tensor(fan_in, dtype)

    def call(self, x):
        kernels = ops.pad(self.kernel, [[0, 0], [0, 0], [0, 1]])
        kernel = ops.reshape(ops.take(kernels, self._place.ravel(), axis=-1), (*self.kernel_size, *self._place.shape))
        return ops.conv(x, kernel, padding="valid", data_format="channels_last") + self.bias

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        lost = self.kernel_size[0] - 1
        return (batch, height and height - lost, width and width - lost, len(self.table))

    def get_config(self):
        return {**super().get_config(), "table": self.table, "kernel_size": self.kernel_size[0]}


@keras.saving.register_keras_serializable(package="kpipe")
class TrainableSubsampling(layers.Layer):
    """The sum of each 2x2 pixels, times a coefficient, plus a bias, both trained and one for each channel.

    LeCun et al. 1998, section II.B, layers S2 and S4; the squashing function after it is a layer of its own.

    Input: floats [B, H, W, C]. Output: [B, H // 2, W // 2, C]. 2 C weights; the coefficients start uniform in
    +-2.4 / 4.
    """

    pool_size = strides = (2, 2)
    padding = "valid"

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.coefficient = self.add_weight(shape=shape, initializer=FanInUniform(fan_in=4), name="coefficient")
        self.bias = self.add_weight(shape=shape, initializer="zeros", name="bias")

    def call(self, x):
        total = 4 * ops.average_pool(x, self.pool_size, self.strides, data_format="channels_last")
        return total * self.coefficient + self.bias

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, height and height // 2, width and width // 2, channels)


@keras.saving.register_keras_serializable(package="kpipe")
class RBFOutput(layers.Layer):
    """Minus the squared distance to the code of each class: LeCun et al. 1998, section II.B, equation 7.

    The codes are of +1 and -1. For 10 classes and 84 inputs they are stylized digits of 7x12 pixels, as in the
    paper's figure 3; otherwise they are drawn at random, which the paper names as the alternative.

    Args:
        classes: K.
        trainable_codes: whether the codes are trained; in the paper they are not.
        dtype: of the arithmetic and of the result; leave it.

    Input: floats [B, D]. Output: float32 [B, K], at most 0; the nearest class has the largest.
    """

    def __init__(self, classes: int, *, trainable_codes=False, dtype="float32", **options):
        super().__init__(dtype=dtype, **options)
        self.classes = classes
        self.trainable_codes = trainable_codes

    def build(self, input_shape):
        shape = (self.classes, input_shape[-1])
        self.codes = self.add_weight(shape=shape, initializer=_make_codes, trainable=self.trainable_codes, name="codes")

    def call(self, x):
        x = ops.cast(x, self.compute_dtype)
        return -ops.sum(ops.square(x[:, None, :] - self.codes), axis=-1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.classes)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "trainable_codes": self.trainable_codes}


@keras.saving.register_keras_serializable(package="kpipe")
class PositionBias(layers.Layer):
    """Adds a separate bias at each position: the last layer of AlphaGo's policy network.

    Silver et al. 2016, methods, "Neural network architecture".

    Input: floats [B, H, W, C], H and W known. Output: the same shape.

    Raises:
        ConfigError: H or W is unknown.
    """

    def build(self, input_shape):
        check_known_size(self.name, input_shape[1:])
        self.bias = self.add_weight(shape=input_shape[1:], initializer="zeros", name="bias")

    def call(self, x):
        return x + self.bias

    def compute_output_shape(self, input_shape):
        return input_shape


def make_logits(classes: int, **options) -> layers.Layer:
    """Return the last layer of most networks: float32 [B, K] without softmax, also under mixed precision."""
    return layers.Dense(classes, dtype="float32", name="logits", **options)


# --- the paper's bitmaps ------------------------------------------------------------------------------------

_DIGITS = """
.#####. ...##.. .#####. .#####. ....##. ####### ..####. ####### .#####. .#####.
##...## ..###.. ##...## ##...## ...###. ##..... .##.... ##...## ##...## ##...##
##...## .####.. ##...## .....## ...###. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## ..####. ##..... ##..... ....##. ##...## ##...##
##...## ...##.. .....## .....## ..#.##. ######. ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. .##.##. ##...## ######. ...##.. .#####. ##...##
##...## ...##.. ...##.. ..####. .#..##. .....## ##...## ...##.. ##...## .######
##...## ...##.. ..##... .....## ##..##. .....## ##...## ..##... ##...## .....##
##...## ...##.. .##.... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ...##.. ##..... .....## ....##. ##...## ##...## .##.... ##...## .....##
##...## ...##.. ##..... ##...## ....##. ##...## ##...## .##.... ##...## ....##.
.#####. .###### ####### .#####. ....##. .#####. .#####. .##.... .#####. .####..
"""


def digit_codes() -> np.ndarray:
    """Return float32 [10, 84]: the digits 0 to 9 as bitmaps of 7x12 pixels by rows, +1 for ink, -1 for paper."""
    rows = [row.split() for row in _DIGITS.split("\n") if row]
    bitmaps = ["".join(row[digit] for row in rows) for digit in range(10)]
    return np.array([[1.0 if pixel == "#" else -1.0 for pixel in bitmap] for bitmap in bitmaps], "float32")


def _make_codes(shape, dtype=None):
    """Return the initial codes [K, D] of `RBFOutput`, the same in every process."""
    codes = digit_codes()
    if shape != codes.shape:
        codes = np.random.default_rng(0).choice(np.float32([-1, 1]), shape)
    return ops.convert_to_tensor(codes, dtype)


# --- arguments of builders ----------------------------------------------------------------------------------


def check_arguments(network: str, input_shape: InputShape, classes: int, *, fixed_size: bool) -> None:
    """Check the input and the classes of a network, by the sizes in its row of `kpipe.catalog.networks.MODELS`.

    Args:
        network: its name.
        input_shape: (H, W, C).
        classes: K.
        fixed_size: whether H and W must be known, because the network ends in dense layers over positions.

    Raises:
        ConfigError: the network cannot be built for them.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or not shape[2]:
        raise ConfigError(f"{network}: expected an input_shape (height, width, channels), got {shape}.")
    if fixed_size and None in shape:
        raise ConfigError(f"{network}: expected a known height and width before dense layers, got {shape}.")
    smallest = MODELS[network].smallest_size
    if any(side is not None and side < least for side, least in zip(shape, smallest, strict=False)):
        least, size = ("x".join(map(str, sides[:2])) for sides in (smallest, shape))
        raise ConfigError(f"{network}: expected an input of at least {least} pixels, got {size}.")
    if classes < 1:
        raise ConfigError(f"{network}: expected at least 1 class, got {classes}.")


def check_known_size(layer: str, input_shape: InputShape) -> None:
    """Check that H and W of (H, W, C) are known, for a layer with weights for each pixel.

    Raises:
        ConfigError: one of them is unknown.
    """
    if None in input_shape:
        raise ConfigError(f"{layer}: expected a known height and width, got {tuple(input_shape)}.")
