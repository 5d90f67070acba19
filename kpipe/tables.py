"""The names that an experiment file may use: one table per kind, one row per name.

A row says where the thing is built (`"module:function"`, imported only when it is needed), which options it takes
(a pydantic model, so that a mistake is found without importing Keras) and what else must be known beforehand.
To add a network, an augmentation, an optimizer, a schedule or a loss: write the function, add its row here.
"""

import importlib
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kpipe.errors import ConfigError, did_you_mean

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the experiment: frozen, no unknown keys, no silent conversion (`"3"` is not 3)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_serializer(mode="wrap")
    def _name_first(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The key that chooses the kind stands first; of a one-of mapping only the key that is given."""
        data = handler(self)
        if isinstance(self, OneOf):
            return {key: data[key] for key in self.model_fields_set}
        return dict(sorted(data.items(), key=lambda item: item[0] not in ("name", "schedule", "method")))


class OneOf(Section):
    """A mapping with exactly one of its keys: `{epochs: 5}` or `{steps: 1000}`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})
    # A string says that the key's value has no options to give; only augmentations are written that way.
    bare_names: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def exactly_one(cls, value: Any) -> Any:
        if isinstance(value, str) and cls.bare_names:
            return {value: {}}
        if isinstance(value, dict) and len(value) == 1 and (cls.bare_names or None not in value.values()):
            return {key: {} if options is None and cls.bare_names else options for key, options in value.items()}
        raise PydanticCustomError("one_of", "expected exactly one of {names}", {"names": ", ".join(cls.model_fields)})

    @property
    def chosen(self) -> tuple[str, Any]:
        """The key that is given, and its value."""
        [name] = self.model_fields_set
        return name, getattr(self, name)


class Duration(OneOf):
    """A length of training that says its unit."""

    epochs: Positive | None = None
    steps: Count | None = None
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    """Of the whole training."""


class Milestones(OneOf):
    """Moments of training, in one unit."""

    epochs: list[Positive] | None = None
    steps: list[Count] | None = None
    percent: list[Annotated[float, Field(gt=0, le=100)]] | None = None


# --- networks ---------------------------------------------------------------------------------------------------


Activation = Literal["relu", "leaky_relu", "sigmoid", "tanh", "scaled_tanh", "maxout"]
Pooling = Literal["max", "average"]
Initializer = Literal["paper", "he", "glorot"]


class NetworkOptions(Section):
    """What a network's builder takes besides its input, classes and preprocessing."""

    belongs: ClassVar[dict[str, tuple[str, tuple[str, ...]]]] = {}
    """Option -> (another option, the values of it with which the first means something)."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """Options that the network which is kept for prediction does not need."""

    @property
    def any_size(self) -> bool:
        """Whether the network ends in a global average, and so takes images of any size."""
        return False

    @property
    def own_loss(self) -> str:
        """The name in `LOSSES` that the network is trained with where the experiment names none."""
        return "cross_entropy"


class LeNet5Options(NetworkOptions):
    variant: Literal["modern", "original", "concept"] = "modern"
    """`modern`: 61,706 parameters, softmax; `original`: the paper's, 60,000; `concept`: three sigmoid filters."""
    activation: Activation = "relu"
    pooling: Pooling = "max"

    belongs = {"activation": ("variant", ("modern",)), "pooling": ("variant", ("modern",))}

    @property
    def own_loss(self) -> str:
        return "map" if self.variant == "original" else "cross_entropy"


class AlexNetOptions(NetworkOptions):
    variant: Literal["paper", "single_tower", "one_weird_trick", "notes"] = "paper"
    """`paper`: two groups; `single_tower`: none; `one_weird_trick`: Krizhevsky 2014; `notes`: without conv5."""
    activation: Activation = "relu"
    pooling: Pooling = "max"
    overlapping: bool = True
    """Pooling windows of 3x3 every 2 pixels; false: 2x2."""
    lrn: bool = True
    """Local response normalisation after conv1 and conv2."""
    width: Count = 4096
    """Units of fc6 and fc7."""
    dropout: Share = 0.5
    initializer: Initializer = "paper"

    belongs = {"lrn": ("variant", ("paper", "single_tower"))}


class ZFNetOptions(NetworkOptions):
    variant: Literal["paper", "wide"] = "paper"
    """`wide`: 512, 1024 and 512 maps in the last three convolutions."""
    activation: Activation = "relu"
    pooling: Pooling = "max"
    lrn: bool = True
    """Contrast normalisation across maps after pool1 and pool2."""
    width: Count = 4096
    """Units of fc6 and fc7."""
    dropout: Share = 0.5
    initializer: Initializer = "paper"


class GoogLeNetOptions(NetworkOptions):
    variant: Literal["paper", "batch_norm"] = "paper"
    """`batch_norm`: torchvision's form, with 3x3 where the paper has 5x5."""
    auxiliary_heads: bool = False
    """Two more classifiers, after inception 4a and 4d, with weight 0.3 in the training loss."""
    lrn: bool = True
    """Local response normalisation in the stem."""
    dropout: Share = 0.4
    """Before the last layer."""
    initializer: Initializer = "paper"

    belongs = {"lrn": ("variant", ("paper",))}
    training_only = ("auxiliary_heads",)

    @property
    def any_size(self) -> bool:
        return True


class VGGOptions(NetworkOptions):
    batch_norm: bool = False
    """Batch normalisation between each convolution and its activation."""
    head: Literal["fc", "gap"] = "fc"
    """`fc`: two hidden fully connected layers as in the paper; `gap`: global average pooling."""
    width: Count = 4096
    """Units of each hidden layer of the `fc` head; 512 suits images of 32 pixels."""
    dropout: Share = 0.5
    """After each hidden layer of the `fc` head."""
    activation: Activation = "relu"
    pooling: Pooling = "max"
    initializer: Initializer = "he"
    """Of the convolutions; `paper`: a normal distribution of variance 0.01, for the dense layers too."""

    belongs = {"width": ("head", ("fc",)), "dropout": ("head", ("fc",))}

    @property
    def any_size(self) -> bool:
        return self.head == "gap"


class VGG11Options(VGGOptions):
    lrn: bool = False
    """Local response normalisation after conv1_1: net A-LRN."""


class MLPOptions(NetworkOptions):
    depth: Count = 2
    """Hidden layers."""
    width: Count = 512
    """Units of each."""
    activation: Activation = "relu"
    dropout: Share = 0.0
    """After each hidden layer."""


class GoPolicyOptions(NetworkOptions):
    depth: Count = 12
    """Hidden convolutions: one of 5x5, the others of 3x3."""
    width: Count = 192
    """Maps of each."""


class SpeechCNNOptions(NetworkOptions):
    width: Count = 64
    """Maps of each convolution."""
    hidden: Count = 128
    """Units of the dense layer before the last."""
    dropout: Share = 0.0
    """Before the last layer."""


class TextCNNOptions(NetworkOptions):
    width: Count = 256
    """Maps of each convolution."""
    hidden: Count = 1024
    """Units of the two dense layers."""
    dropout: Share = 0.5
    """After each of them."""


@dataclass(frozen=True)
class Row:
    """One name: where it is built, what options it takes, and a line for `kpipe list`."""

    target: str
    options: type[Section]
    summary: str


@dataclass(frozen=True)
class ModelRow(Row):
    smallest_size: tuple[int, int]
    """The smallest height and width that the builder takes: below, a convolution or pooling would have nothing to look
    at, or the last pooling only one pixel."""


MODELS = {
    "lenet5": ModelRow("kpipe.models:lenet5", LeNet5Options, "LeNet-5: modern, the paper's, a first concept", (12, 12)),
    "alexnet": ModelRow("kpipe.models:alexnet", AlexNetOptions, "AlexNet: 5 convolutions, 3 dense layers", (25, 25)),
    "zfnet": ModelRow("kpipe.models:zfnet", ZFNetOptions, "ZFNet: AlexNet with a finer first layer", (21, 21)),
    "googlenet": ModelRow("kpipe.models:googlenet", GoogLeNetOptions, "GoogLeNet: 9 inception blocks", (17, 17)),
    "vgg11": ModelRow("kpipe.models:vgg11", VGG11Options, "VGG net A: 8 convolutions, 3 dense layers", (17, 17)),
    "vgg13": ModelRow("kpipe.models:vgg13", VGGOptions, "VGG net B: 10 convolutions, 3 dense layers", (17, 17)),
    "vgg16": ModelRow("kpipe.models:vgg16", VGGOptions, "VGG net D: 13 convolutions, 3 dense layers", (17, 17)),
    "vgg16_c": ModelRow("kpipe.models:vgg16_c", VGGOptions, "VGG net C: as D, three convolutions are 1x1", (17, 17)),
    "vgg19": ModelRow("kpipe.models:vgg19", VGGOptions, "VGG net E: 16 convolutions, 3 dense layers", (17, 17)),
    "mlp": ModelRow("kpipe.models:mlp", MLPOptions, "fully connected layers alone, to compare with", (1, 1)),
    "go_policy": ModelRow(
        "kpipe.models:go_policy", GoPolicyOptions, "AlphaGo's policy: no pooling, one class a point", (5, 5)
    ),
    "speech_cnn": ModelRow(
        "kpipe.models:speech_cnn", SpeechCNNOptions, "spectrograms: pooling along frequency only", (19, 29)
    ),
    "text_cnn": ModelRow("kpipe.models:text_cnn", TextCNNOptions, "one-hot characters: 1-D convolutions", (123, 1)),
}

MOST_WHITENED = 4096
"""The most numbers of an image that is whitened: the matrix has as many rows and columns."""

# --- data -------------------------------------------------------------------------------------------------------


class NoOptions(Section):
    pass


class SyntheticOptions(Section):
    kind: Literal["images", "board", "spectrogram", "text"] = "images"
    """What the images show: stripes, Go positions, spoken words, or one-hot characters."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """Default: 10. A board has one class a point instead."""
    images: Count = 2000
    """In all parts together."""


SYNTHETIC_SIZES = {"images": 32, "board": 19, "spectrogram": 40, "text": 128}
"""Pixels a side, points a side, frequency bands or characters, where `image_size` is not given."""
SYNTHETIC_CHANNELS = {"images": 3, "board": 3, "spectrogram": 1, "text": 27}
"""Where `channels` is not given."""


@dataclass(frozen=True)
class SourceRow(Row):
    argument: str | None
    """What stands behind the colon (`folder:<path>`), or None."""
    native_size: int | None
    """Pixels a side where `image_size` is not given; None: known only once the data is read, or `synthetic`'s."""
    needs_size: bool = False
    native_channels: int | None = None
    """Where `channels` is not given; None: known only once the data is read, or `synthetic`'s."""


SOURCES = {
    "digits": SourceRow(
        "kpipe.data.sources:read_digits",
        NoOptions,
        "1,797 handwritten 8x8 digits (embedded)",
        None,
        8,
        native_channels=1,
    ),
    "synthetic": SourceRow(
        "kpipe.data.synthetic:read_synthetic", SyntheticOptions, "procedural, learnable (embedded)", None, None
    ),
    "folder": SourceRow(
        "kpipe.data.folders:read_folder",
        NoOptions,
        "a folder of images, one folder a class",
        "path",
        None,
        True,
        native_channels=3,
    ),
    "tfds": SourceRow(
        "kpipe.data.records:read_tfds",
        NoOptions,
        "an image classification set of TensorFlow Datasets",
        "name",
        None,
    ),
}


@dataclass(frozen=True)
class ColorRow(Row):
    """An augmentation that knows colours."""

    channels: tuple[int, ...] = (1, 3)
    """How many an image may have."""


def wrong_channels(name: str, channels: int) -> str | None:
    """What there is to say of an augmentation of images with so many channels, if it cannot work."""
    row = AUGMENTATIONS[name]
    if isinstance(row, ColorRow) and channels not in row.channels:
        return f"{name} needs images of {' or '.join(map(str, row.channels))} channels, got {channels}"
    return None


@dataclass(frozen=True)
class WindowRow(Row):
    """An augmentation that chooses which part of an image the network sees."""

    whole_image: bool = False
    """It looks at the image as it is in its file."""


def _range(most: float | None = None) -> Any:
    """The type of [smallest, largest], both above 0 and at most `most`."""
    number = Annotated[float, Field(gt=0, le=most, allow_inf_nan=False)]
    return Annotated[list[number], Field(min_length=2, max_length=2)]


class RandomResizedCropOptions(Section):
    area: _range(most=1.0) = [0.08, 1.0]
    """Share of the image, smallest and largest."""
    aspect: _range() = [3 / 4, 4 / 3]
    """Width / height, smallest and largest."""


class ScaleJitterOptions(Section):
    low: Count = 256
    high: Count = 512


class PadCropOptions(Section):
    padding: Count = 4


class TranslateOptions(Section):
    height: Share = 0.1
    width: Share = 0.1


Fill = Annotated[int, Field(ge=0, le=255)]
ClosedShare = Annotated[float, Field(ge=0, le=1)]


class RotateOptions(Section):
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    """The largest angle, either way."""
    fill: Fill = 0


class CutoutOptions(Section):
    size: Count = 16
    """Side of the square, in pixels."""
    fill: Fill = 0


class ColorJitterOptions(Section):
    brightness: ClosedShare = 0.4
    """The factor is uniform in 1 +- this; 0 leaves the operation out."""
    contrast: ClosedShare = 0.4
    saturation: ClosedShare = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The largest shift, in turns."""


class PcaColorOptions(Section):
    deviation: Positive = 0.1
    scale: Literal["paper", "deviation"] = "paper"
    """`paper`: times the eigenvalues of pixels in [0, 1]; `deviation`: times their square roots, about twice as far."""


class GrayscaleOptions(Section):
    probability: ClosedShare = 0.1


class RandAugmentOptions(Section):
    operations: Count = 2
    """Applied to each image, one after the other."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class MixupOptions(Section):
    alpha: Positive = 0.2
    """The share of an image is distributed as Beta(alpha, alpha)."""


class CutmixOptions(Section):
    alpha: Positive = 1.0
    """The share of the pixels left is distributed as Beta(alpha, alpha)."""


AUGMENTATIONS = {
    "random_crop": WindowRow("kpipe.data.windows:random_crop", NoOptions, "a window of image_size in stored_size"),
    "center_crop": WindowRow("kpipe.data.windows:center_crop", NoOptions, "the middle, as in evaluation"),
    "random_resized_crop": WindowRow(
        "kpipe.data.windows:random_resized_crop", RandomResizedCropOptions, "a window of random area and aspect", True
    ),
    "scale_jitter": WindowRow(
        "kpipe.data.windows:scale_jitter", ScaleJitterOptions, "scale at random, then a window", True
    ),
    "pad_crop": Row("kpipe.data.augment:pad_crop", PadCropOptions, "pad with zeros, crop at random to the old size"),
    "translate": Row("kpipe.data.augment:translate", TranslateOptions, "shift by up to a share of the image"),
    "flip_horizontal": Row("kpipe.data.augment:flip_horizontal", NoOptions, "mirror every second image"),
    "flip_vertical": Row("kpipe.data.augment:flip_vertical", NoOptions, "mirror every second image, top and bottom"),
    "rotate": Row("kpipe.data.augment:rotate", RotateOptions, "turn about the centre, bilinear"),
    "cutout": Row("kpipe.data.augment:cutout", CutoutOptions, "cover a square, DeVries and Taylor 2017"),
    "color_jitter": ColorRow(
        "kpipe.data.color:color_jitter", ColorJitterOptions, "brightness, contrast, saturation, hue"
    ),
    "pca_color": ColorRow(
        "kpipe.data.color:pca_color", PcaColorOptions, "shift along ImageNet's colours, as AlexNet did", (3,)
    ),
    "grayscale": ColorRow("kpipe.data.color:grayscale", GrayscaleOptions, "the luminance in all channels"),
    "rand_augment": ColorRow(
        "kpipe.data.rand_augment:rand_augment", RandAugmentOptions, "operations drawn from 14, Cubuk et al. 2020"
    ),
    "mixup": Row("kpipe.data.mix:mixup", MixupOptions, "add two images and their labels, Zhang et al. 2018"),
    "cutmix": Row("kpipe.data.mix:cutmix", CutmixOptions, "a rectangle of another image, Yun et al. 2019"),
}

# --- training ---------------------------------------------------------------------------------------------------


class WeightDecay(Section):
    value: NonNegative
    kind: Literal["l2", "decoupled"] = "l2"
    """`l2`: value x weight is added to the gradient (the papers); `decoupled`: the weight shrinks by
    learning rate x value at each step (AdamW). Never on biases and batch normalisation."""


class OptimizerOptions(Section):
    weight_decay: WeightDecay | None = None


class SGDOptions(OptimizerOptions):
    momentum: Share = 0.0
    nesterov: bool = False


class AdagradOptions(OptimizerOptions):
    initial_accumulator_value: NonNegative = 0.1
    epsilon: Positive = 1e-7


class RMSpropOptions(OptimizerOptions):
    rho: Share = 0.9
    momentum: Share = 0.0
    epsilon: Positive = 1e-7
    centered: bool = False


class AdadeltaOptions(OptimizerOptions):
    rho: Share = 0.95
    epsilon: Positive = 1e-7


class AdamOptions(OptimizerOptions):
    beta_1: Share = 0.9
    beta_2: Share = 0.999
    epsilon: Positive = 1e-7
    amsgrad: bool = False


class AdamWDecay(WeightDecay):
    kind: Literal["l2", "decoupled"] = "decoupled"


class AdamWOptions(AdamOptions):
    weight_decay: AdamWDecay | None = AdamWDecay(value=0.004)


OPTIMIZERS = {
    "sgd": Row("keras.optimizers:SGD", SGDOptions, "stochastic gradient descent, with momentum if given"),
    "adagrad": Row("keras.optimizers:Adagrad", AdagradOptions, "Duchi et al. 2011"),
    "rmsprop": Row("keras.optimizers:RMSprop", RMSpropOptions, "Hinton 2012, lecture 6e"),
    "adadelta": Row("keras.optimizers:Adadelta", AdadeltaOptions, "Zeiler 2012"),
    "adam": Row("keras.optimizers:Adam", AdamOptions, "Kingma and Ba 2015"),
    "adamw": Row("keras.optimizers:AdamW", AdamWOptions, "Adam with decoupled decay, Loshchilov and Hutter 2019"),
}


class ScheduleOptions(Section):
    peak: Positive = 1e-3
    """The highest learning rate, after the warm-up."""
    warmup: Duration | None = None
    """A straight line from 0 up to the peak."""

    @property
    def looks_at_end(self) -> bool:
        """Whether the rates of the first epochs would be others if there were more epochs."""
        lengths = [value for value in vars(self).values() if isinstance(value, OneOf)]
        return any(length.chosen[0] == "percent" for length in lengths)


class MultistepOptions(ScheduleOptions):
    milestones: Milestones = Milestones(percent=[50, 75])
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """At each milestone the rate is multiplied by this."""


class CosineOptions(ScheduleOptions):
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The rate at the end, as a share of the peak."""

    @property
    def looks_at_end(self) -> bool:
        return True


SCHEDULES = {
    "constant": Row("kpipe.training.schedules:constant", ScheduleOptions, "the peak, all along"),
    "multistep": Row("kpipe.training.schedules:multistep", MultistepOptions, "falls by a factor at milestones"),
    "cosine": Row("kpipe.training.schedules:cosine", CosineOptions, "falls along half a cosine to the end"),
}


class EuclideanOptions(Section):
    output: Literal["tanh", "linear"] = "tanh"
    """What the logits pass before they are compared with the coded label."""


class MapOptions(Section):
    j: Positive = 1.0
    """The penalty of the class that is none of the K; the paper gives no value."""


LOSSES = {
    "cross_entropy": Row("kpipe.training.losses:cross_entropy", NoOptions, "softmax and -log of the true class"),
    "euclidean": Row("kpipe.training.losses:euclidean", EuclideanOptions, "half the squared distance to coded labels"),
    "map": Row("kpipe.training.losses:map_criterion", MapOptions, "maximum a posteriori, LeCun et al. 1998, eq. 9"),
}

# --- search -----------------------------------------------------------------------------------------------------


Pair = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]
Whole = int  # inside `Values` the name `int` is a key


class Values(Section):
    """From what a search takes the value of one key: exactly one of choice, uniform, log, int and cases."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """One of these; a list alone means the same."""
    uniform: Pair | None = None
    """[smallest, largest]: each value as likely as any other."""
    log: Pair | None = None
    """[smallest, largest]: each order of magnitude as likely as any other."""
    cases: Annotated[list["Values"], Field(min_length=1)] | None = None
    """Others for other values of the keys in `when`; in a case that none fits, the key keeps its value of the file."""
    when: dict[str, Any] | None = None
    """Keys of the space that are choices, and for each the value, or list of values, with which this is searched."""
    step: Annotated[int, Field(ge=1)] | None = None
    """Distance of the whole numbers of `int`."""
    int: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = None
    """[smallest, largest]: a whole number; the largest only where the steps reach it."""

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"choice": value}
        if isinstance(value, dict):
            given = [kind for kind in VALUE_KINDS if value.get(kind) is not None]
            unknown = [key for key in value if key not in cls.model_fields]
            if len(given) == 1 or unknown:
                return value
        expected = "a list of values, or one of {uniform: [a, b]}, {log: [a, b]}, {int: [a, b]}, {cases: [...]}"
        raise PydanticCustomError("values", "expected {expected}", {"expected": expected})

    @model_serializer(mode="wrap")
    def _given_alone(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def kind(self) -> str:
        """The one of `VALUE_KINDS` that is given."""
        return next(kind for kind in VALUE_KINDS if getattr(self, kind) is not None)


VALUE_KINDS = ("choice", "uniform", "log", "int", "cases")

SPACES: dict[str, dict[str, Any]] = {
    "learning_rate_and_optimizer": {
        "training.optimizer.name": ["sgd", "rmsprop", "adam"],
        "training.learning_rate.peak": {
            "cases": [
                {"log": [1e-2, 1.0], "when": {"training.optimizer.name": "sgd"}},
                {"log": [1e-4, 1e-2], "when": {"training.optimizer.name": ["rmsprop", "adam"]}},
            ]
        },
    }
}
"""Spaces that have a name."""


class MedianStopping(Section):
    epochs: Count = 1
    """That each trial is given."""
    trials: Count = 5
    """That must have ended before one is stopped."""


class SearchOptions(Section):
    space: Annotated[
        Annotated[Literal["learning_rate_and_optimizer"], Tag("name")] | Annotated[dict[str, Values], Tag("keys")],
        Discriminator(lambda value: "keys" if isinstance(value, dict) else "name"),
    ] = "learning_rate_and_optimizer"
    """Dotted keys of this file, and the values that are tried: {training.optimizer.name: [sgd, adam]}."""
    objective: Literal["val_accuracy", "val_loss"] | None = None
    """What a trial's score is, of its best epoch. Default: training.monitor."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of what is tried. The trials themselves all have the experiment's own seed."""
    executions_per_trial: Count = 1
    """Trainings with the seeds seed, seed + 1, ...; the score is their mean."""
    keep: Count = 3
    """How many of the best trials keep their weights."""
    stuck_after: Count | None = None
    """Steps after which a training loss within 2 % of ln(classes), that of guessing, ends a trial. Default: one epoch,
    and at least 100 steps."""


class RandomSearchOptions(SearchOptions):
    trials: Count = 20
    median_stopping: MedianStopping | None = None
    """Ends a trial whose best score so far is below the median of the others' means up to that epoch."""


class GridOptions(SearchOptions):
    trials: Count | None = None
    """At most; default: every combination."""
    median_stopping: MedianStopping | None = None
    """Ends a trial whose best score so far is below the median of the others' means up to that epoch."""


class HyperbandOptions(SearchOptions):
    factor: Annotated[int, Field(ge=2)] = 3
    """One in so many trials goes on to so many times the epochs; training.epochs are the most."""
    iterations: Count = 1
    """Of the whole algorithm."""


class BayesianOptions(RandomSearchOptions):
    initial_trials: Count | None = None
    """Drawn at random before the first guess. Default: three for each key."""


SEARCH_METHODS = {
    "random": Row("kpipe.search.oracles:RandomOracle", RandomSearchOptions, "independent draws, Bergstra 2012"),
    "grid": Row("kpipe.search.oracles:GridOracle", GridOptions, "every combination, in order"),
    "hyperband": Row(
        "kpipe.search.oracles:HyperbandOracle", HyperbandOptions, "many short trials, the best go on, Li et al. 2018"
    ),
    "bayesian": Row(
        "kpipe.search.oracles:BayesianOracle", BayesianOptions, "a Gaussian process guesses where the best is"
    ),
}

TABLES: dict[str, dict[str, Row]] = {
    "models": MODELS,
    "sources": SOURCES,
    "augmentations": AUGMENTATIONS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "losses": LOSSES,
    "search methods": SEARCH_METHODS,
}


def parse_source(source: str) -> tuple[SourceRow, str]:
    """`folder:photos` to its row and `photos`.

    Raises:
        ConfigError: the source is unknown, or what stands behind its colon is missing or too much.
    """
    name, colon, argument = source.partition(":")
    if name not in SOURCES:
        raise ConfigError(f"unknown source '{name}'{did_you_mean(name, SOURCES)}")
    row = SOURCES[name]
    if row.argument and not argument:
        raise ConfigError(f"expected {name}:<{row.argument}>, got '{source}'")
    if colon and not row.argument:
        raise ConfigError(f"expected '{name}' alone, got '{source}'")
    return row, argument


def resolve(row: Row) -> Any:
    """Imports and returns what the row's target names."""
    module, name = row.target.split(":")
    return getattr(importlib.import_module(module), name)
