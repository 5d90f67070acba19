"""The networks by name, and their options."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from kpipe.catalog import own_code, papers
from kpipe.catalog.rows import Count, Fraction, Row, Section
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean

Activation = Literal["relu", "leaky_relu", "sigmoid", "tanh", "scaled_tanh", "maxout"]
Pooling = Literal["max", "average"]
Initializer = Literal["paper", "he", "glorot"]


class NetworkOptions(Section):
    """Options of a network: its builder's arguments besides the input, classes and preprocessing."""

    training_only: ClassVar[tuple[str, ...]] = ()
    """Options that matter for training alone; a network kept for prediction is built without them."""

    @property
    def any_size(self) -> bool:
        """Whether the network ends in a global average, and therefore takes images of any size."""
        return False

    @property
    def first_head_layer(self) -> str | None:
        """Name of the classifier's first layer; all that it is computed from are the features. None: it is the last
        layer with weights."""
        return "gap" if self.any_size else "flatten"

    @property
    def default_loss(self) -> str:
        """Name in `LOSSES` of the loss where the experiment names none."""
        return "cross_entropy"


class LeNet5Options(NetworkOptions):
    variant: Literal["modern", "original", "concept"] = "modern"
    """`modern`: 61,706 parameters, softmax; `original`: the paper's, 60,000; `concept`: three sigmoid filters."""
    activation: Activation = "relu"
    """Activation of the variant `modern`."""
    pooling: Pooling = "max"
    """Pooling of the variant `modern`."""

    applies_when = {"activation": ("variant", ("modern",)), "pooling": ("variant", ("modern",))}

    @property
    def default_loss(self) -> str:
        return "map" if self.variant == "original" else "cross_entropy"

    @property
    def first_head_layer(self) -> str:
        return "c5" if self.variant == "original" else "flatten"


class AlexNetOptions(NetworkOptions):
    variant: Literal["paper", "single_tower", "one_weird_trick", "notes"] = "paper"
    """`paper`: two groups; `single_tower`: none; `one_weird_trick`: Krizhevsky 2014; `notes`: without conv5."""
    activation: Activation = "relu"
    """Activation after each convolution and dense layer but the last."""
    pooling: Pooling = "max"
    """Maximum or mean of each window."""
    overlapping: bool = True
    """Pooling windows of 3x3 every 2 pixels; false: 2x2."""
    lrn: bool = True
    """Local response normalization after conv1 and conv2."""
    width: Count = 4096
    """Units of fc6 and fc7."""
    dropout: Fraction = 0.5
    """Dropout rate beside fc6 and fc7."""
    initializer: Initializer = "paper"
    """Distribution of the initial weights; `paper`: the paper's own."""

    applies_when = {"lrn": ("variant", ("paper", "single_tower"))}


class ZFNetOptions(NetworkOptions):
    variant: Literal["paper", "wide"] = "paper"
    """`wide`: 512, 1024 and 512 filters in the last three convolutions."""
    activation: Activation = "relu"
    """Activation after each convolution and dense layer but the last."""
    pooling: Pooling = "max"
    """Maximum or mean of each window."""
    lrn: bool = True
    """Contrast normalization across feature maps after pool1 and pool2."""
    width: Count = 4096
    """Units of fc6 and fc7."""
    dropout: Fraction = 0.5
    """Dropout rate beside fc6 and fc7."""
    initializer: Initializer = "paper"
    """Distribution of the initial weights; `paper`: the paper's own."""


class GoogLeNetOptions(NetworkOptions):
    variant: Literal["paper", "batch_norm"] = "paper"
    """`batch_norm`: torchvision's form, with 3x3 where the paper has 5x5."""
    auxiliary_heads: bool = False
    """Two more classifiers, after inception 4a and 4d, with weight 0.3 in the training loss."""
    lrn: bool = True
    """Local response normalization in the stem."""
    dropout: Fraction = 0.4
    """Dropout rate before the last layer."""
    initializer: Initializer = "paper"
    """Distribution of the initial weights; `paper`: that of a well-known implementation, as the paper says nothing."""

    applies_when = {"lrn": ("variant", ("paper",))}
    training_only = ("auxiliary_heads",)

    @property
    def any_size(self) -> bool:
        return True


class VGGOptions(NetworkOptions):
    batch_norm: bool = False
    """Batch normalization between each convolution and its activation."""
    head: Literal["fc", "gap"] = "fc"
    """`fc`: two hidden fully connected layers as in the paper; `gap`: global average pooling."""
    width: Count = 4096
    """Units of each hidden layer of the `fc` head; 512 suits images of 32 pixels."""
    dropout: Fraction = 0.5
    """Dropout rate after each hidden layer of the `fc` head."""
    activation: Activation = "relu"
    """Activation after each convolution and dense layer but the last."""
    pooling: Pooling = "max"
    """Maximum or mean of each window."""
    initializer: Initializer = "he"
    """Initializer of the convolutions; `paper`: normal with variance 0.01, for the dense layers too."""

    applies_when = {"width": ("head", ("fc",)), "dropout": ("head", ("fc",))}

    @property
    def any_size(self) -> bool:
        return self.head == "gap"


# A class of its own: one more option in the resolved experiment of the other networks would keep the runs that began
# without it from being resumed.
class VGG11Options(VGGOptions):
    lrn: bool = False
    """Local response normalization after conv1_1: net A-LRN."""


class MLPOptions(NetworkOptions):
    depth: Count = 2
    """Number of hidden layers."""
    width: Count = 512
    """Units of each hidden layer."""
    activation: Activation = "relu"
    """Activation of each hidden layer."""
    dropout: Fraction = 0.0
    """Dropout rate after each hidden layer."""

    @property
    def first_head_layer(self) -> str:
        return "logits"


class GoPolicyOptions(NetworkOptions):
    depth: Count = 12
    """Number of hidden convolutions, one of 5x5 and the others of 3x3."""
    width: Count = 192
    """Filters of each hidden convolution."""

    @property
    def first_head_layer(self) -> str:
        return f"conv{self.depth + 1}"


class SpeechCNNOptions(NetworkOptions):
    width: Count = 64
    """Filters of each convolution."""
    hidden: Count = 128
    """Units of the dense layer before the last."""
    dropout: Fraction = 0.0
    """Dropout rate before the last layer."""


class TextCNNOptions(NetworkOptions):
    width: Count = 256
    """Filters of each convolution."""
    hidden: Count = 1024
    """Units of the two dense layers."""
    dropout: Fraction = 0.5
    """Dropout rate after each of them."""


class OwnNetworkOptions(NetworkOptions):
    """Options of a network of the user's own: parameters of its function."""

    @property
    def first_head_layer(self) -> None:
        return None


@dataclass(frozen=True)
class ModelRow(Row):
    smallest_size: tuple[int, int]
    """Smallest height and width that the builder takes. Below it, a convolution or pooling would be left without input,
    or the last pooling with one pixel."""
    takes_vectors: bool = False
    """Whether the input may be vectors, [1, 1, D], in which no pixel has neighbors."""


def _vgg(name: str, options: type[VGGOptions], summary: str) -> ModelRow:
    return ModelRow(f"kpipe.models:{name}", options, summary, (17, 17), paper=papers.VGG)


MODELS = {
    "lenet5": ModelRow(
        "kpipe.models:lenet5",
        LeNet5Options,
        "LeNet-5: modern, the paper's, a first concept",
        (12, 12),
        paper=papers.LENET,
    ),
    "alexnet": ModelRow(
        "kpipe.models:alexnet",
        AlexNetOptions,
        "AlexNet: 5 convolutions, 3 dense layers",
        (25, 25),
        paper=papers.ALEXNET,
    ),
    "zfnet": ModelRow(
        "kpipe.models:zfnet", ZFNetOptions, "ZFNet: AlexNet with a finer first layer", (21, 21), paper=papers.ZFNET
    ),
    "googlenet": ModelRow(
        "kpipe.models:googlenet", GoogLeNetOptions, "GoogLeNet: 9 inception blocks", (17, 17), paper=papers.GOOGLENET
    ),
    "vgg11": _vgg("vgg11", VGG11Options, "VGG net A: 8 convolutions, 3 dense layers"),
    "vgg13": _vgg("vgg13", VGGOptions, "VGG net B: 10 convolutions, 3 dense layers"),
    "vgg16": _vgg("vgg16", VGGOptions, "VGG net D: 13 convolutions, 3 dense layers"),
    "vgg16_c": _vgg("vgg16_c", VGGOptions, "VGG net C: as D, three convolutions are 1x1"),
    "vgg19": _vgg("vgg19", VGGOptions, "VGG net E: 16 convolutions, 3 dense layers"),
    "mlp": ModelRow("kpipe.models:mlp", MLPOptions, "fully connected layers alone, to compare with", (1, 1), True),
    "go_policy": ModelRow(
        "kpipe.models:go_policy",
        GoPolicyOptions,
        "AlphaGo's policy: no pooling, one class a point",
        (5, 5),
        paper=papers.ALPHAGO,
    ),
    "speech_cnn": ModelRow(
        "kpipe.models:speech_cnn",
        SpeechCNNOptions,
        "spectrograms: pooling along frequency only",
        (19, 29),
        paper=papers.KEYWORDS,
    ),
    "text_cnn": ModelRow(
        "kpipe.models:text_cnn",
        TextCNNOptions,
        "one-hot characters: 1-D convolutions",
        (123, 1),
        paper=papers.CHARACTERS,
    ),
}


@dataclass(frozen=True)
class OwnModelRow(ModelRow):
    """A network of the user's own."""

    function: Callable | None = None

    def load(self) -> Callable:
        return self.function


_RESERVED = ("input_shape", "classes", "preprocessing")
"""Parameters that kpipe gives to the function of a network."""


def find_network(name: str) -> ModelRow:
    """Return the row of a network. Of the user's own, `FILE.py:function` or `module:function`, the code is run.

    Raises:
        ConfigError: an unknown name, or code that cannot be imported or lacks a parameter that every network has.
    """
    if own_code.is_own(name):
        function = own_code.load_function(name, "model.name")
        parameters = own_code.find_parameters(function, name, "model.name")
        if missing := [each for each in _RESERVED if each not in parameters]:
            raise ConfigError(
                f"model.name: {name}: expected a function (input_shape, classes, *, preprocessing, ...) that returns a "
                f"keras.Model, got one without {' and '.join(missing)}"
            )
        options = own_code.make_options(
            function, name, "model.name", OwnNetworkOptions, reserved=_RESERVED, taken=("name", "init_from")
        )
        summary = (inspect.getdoc(function) or name).partition("\n")[0]
        return OwnModelRow(name, options, summary, (1, 1), function=function)
    if name not in MODELS:
        raise ConfigError(f"model: expected the name of a network, got {show(name)}{did_you_mean(name, MODELS)}")
    return MODELS[name]
