"""The experiment file: each key with its type, range and default. The names come from `kpipe.catalog`."""

from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kpipe.catalog.data import (
    AUGMENTATIONS,
    NORMALIZATIONS,
    SOURCES,
    MeanStd,
    Projection,
    absolute_source,
    parse_background,
)
from kpipe.catalog.evaluation import ON_ERROR, RESIZES
from kpipe.catalog.networks import MODELS, OwnNetworkOptions
from kpipe.catalog.own_code import absolute_name, is_own
from kpipe.catalog.rows import (
    Count,
    Duration,
    Fraction,
    NonNegative,
    NoOptions,
    OneOf,
    Positive,
    Row,
    Section,
    whole_number,
)
from kpipe.catalog.search import SEARCH_METHODS
from kpipe.catalog.training import LOSSES, OPTIMIZERS, SCHEDULES, Average, Clip, LayerOptions, ReusedLayers
from kpipe.catalog.weights import absolute_weights
from kpipe.errors import ConfigError

# Pydantic would search all frames of the interpreter for the docstrings of a class that no file holds, which takes
# seconds where many modules are loaded.
_NO_SOURCE = {"use_attribute_docstrings": False}


def _choice(table: dict[str, Row], key: str, default: str | None = None, **common: Any) -> Any:
    """Return the union of a table's options, told apart by the value of `key`; `common` are fields of all members."""
    members = [
        create_model(
            name,
            __base__=row.options,
            __doc__=row.summary,
            __cls_kwargs__=_NO_SOURCE,
            **{key: (Literal[name], ...)},
            **common,
        )
        for name, row in table.items()
    ]
    fill = BeforeValidator(lambda v: {key: default, **v} if default and isinstance(v, dict) else v)
    return Annotated[reduce(or_, members), Field(discriminator=key), fill]


def _known_source(source: Any) -> Any:
    if isinstance(source, str):
        try:
            return absolute_source(source)
        except ConfigError as error:
            raise PydanticCustomError("source", "{message}", {"message": str(error)}) from None
    return source


def _known_background(background: Any) -> Any:
    try:
        parse_background(background)
    except ConfigError as error:
        raise PydanticCustomError("source", "{message}", {"message": str(error)}) from None
    return background


def _known_weights(source: Any) -> Any:
    if isinstance(source, str):
        try:
            return absolute_weights(source)
        except ConfigError as error:
            raise PydanticCustomError("source", "{message}", {"message": str(error)}) from None
    return source


class _Augment(OneOf):
    bare_names: ClassVar[bool] = True


Augment = create_model(
    "Augment",
    __base__=_Augment,
    __cls_kwargs__=_NO_SOURCE,
    **{name: (row.options | None, Field(None, description=row.summary)) for name, row in AUGMENTATIONS.items()},
)


class OwnAugment(_Augment):
    """An augmentation of the user's own. What its options may be is known when its code is run."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def find_code(cls, entry: Any) -> dict[str, Any]:
        named = {entry: None} if isinstance(entry, str) else entry
        return {absolute_name(name): options or {} for name, options in named.items()}


def _own_or_known_augment(entry: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    names = list(entry) if isinstance(entry, dict) else [entry]
    is_of_own = len(names) == 1 and isinstance(names[0], str) and is_own(names[0])
    return OwnAugment.model_validate(entry) if is_of_own else validate(entry)


def _form_of_normalize(value: Any) -> str:
    """Return the tag of the union. Of a mapping it is the name of its class, by which a message finds its keys."""
    if isinstance(value, dict):
        return "Projection" if "pca" in value else "MeanStd"
    return type(value).__name__ if isinstance(value, MeanStd | Projection) else "name"


Normalize = Literal[*(name for name, row in NORMALIZATIONS.items() if row.options is NoOptions)]

InitFrom = Field(
    None,
    description="Weights from which the network starts: a run directory, a Keras file (.keras, .weights.h5), a PyTorch "
    "state dict in torchvision's names (.pth, .safetensors), or `imagenet` for those of keras.applications. Default: "
    "random weights.",
)


class SplitConfig(Section):
    """Fractions of the images that become the splits which the data lacks. Counts are rounded up."""

    validation: Fraction = 0.1
    """Fraction for validation, of the images that the test split leaves."""
    test: Fraction | None = None
    """Fraction of all images for the test split. Default: 0.2 of data without splits. Data that has only a validation
    split gets a test split, taken from the training split, if this is given."""


class _DataConfig(Section):
    """Images: where they come from, and how they are resized, split, augmented and kept."""

    source: Annotated[str, BeforeValidator(_known_source)]
    """Source of the images: digits, synthetic, folder:<path> or tfds:<name>[/<config>]."""
    image_size: Count | None = None
    """Side of the square images that the network sees, in pixels. Default: the source's own size."""
    resize: Literal[*RESIZES] = "crop"
    """How an image becomes square. `crop`: scale the shorter side and crop the center. `pad`: scale the longer side and
    fill the rest with black. `squash`: scale each side by its own factor."""
    stored_size: Count | None = None
    """Side at which images are kept, in pixels. Evaluation crops the center of `image_size`. Training does the same, or
    crops at random with `random_crop`. Default: `image_size`."""
    channels: Count | None = None
    """1 for gray, 3 for color. Default: the source's own, and 3 for a folder."""
    background: Annotated[Literal["white", "black"] | list[int], BeforeValidator(_known_background)] = "white"
    """Color that the transparent pixels of an image show: white, black, or [red, green, blue] of 0 to 255."""
    batch_size: Count = 32
    """Number of images in each training step."""
    normalize: Annotated[
        Annotated[Normalize, Tag("name")]
        | Annotated[MeanStd, Tag("MeanStd")]
        | Annotated[Projection, Tag("Projection")],
        Discriminator(_form_of_normalize),
    ] = "auto"
    """What the model's first layer does. `auto`: what the weights of `model.init_from` were trained with, and without
    them `standardize`. `none`: keep pixels in [0, 255]. `unit`: scale them to [0, 1].

    Measured on the training split: `mean` subtracts the mean of each channel (VGG). `mean_image` subtracts the mean of
    each pixel (AlexNet). `standardize` gives each channel mean 0 and standard deviation 1. `pca_whiten` and `zca`
    decorrelate all values of an image, at most 4,096. `{pca: {components: k}}` projects onto k principal components.

    Fixed, for three channels: `imagenet` uses the mean and standard deviation of ImageNet. `caffe` subtracts its mean
    and puts blue first. `{mean: [..], std: [..]}` gives the constants, for pixels in [0, 255]."""
    augment: list[Annotated[SerializeAsAny[Augment], WrapValidator(_own_or_known_augment)]] = []
    """Augmentations of the training images, in this order. A crop (`random_crop`, `random_resized_crop`,
    `scale_jitter`, `center_crop`) comes first."""
    split: SplitConfig = SplitConfig()
    """How the splits are made that the data lacks."""
    class_weights: Literal["balanced"] | None = None
    """`balanced` weights the loss of each image by images / (classes x images of its class), in the training split."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Where decoded images are kept. `auto`: in memory, split by split, while they fit. `disk`: in $KPIPE_CACHE, by
    default ~/.cache/kpipe. `none`: nowhere, so that images are decoded in each epoch."""
    cache_gigabytes: Positive = 2.0
    """Memory that `cache: auto` may fill, in 10^9 bytes."""
    on_error: Literal[*ON_ERROR] = "fail"
    """What happens when an image cannot be read. `fail`: the run ends. `skip`: training takes the next image instead,
    and evaluation leaves it out."""
    skip_limit: Fraction = 0.01
    """Largest fraction of unreadable images in a split with `on_error: skip`. The run ends where there are more."""

    applies_when = {"skip_limit": ("on_error", ("skip",)), "cache_gigabytes": ("cache", ("auto",))}


DataConfig = create_model(
    "DataConfig",
    __base__=_DataConfig,
    __cls_kwargs__=_NO_SOURCE,
    __doc__=_DataConfig.__doc__,
    **{
        name: (row.options | None, Field(None, description=f"Options of the source `{name}`."))
        for name, row in SOURCES.items()
        if row.options.model_fields or row.is_code
    },
)


class EarlyStopping(Section):
    """When training ends early."""

    patience: Count
    """Number of epochs without improvement after which training ends."""
    min_delta: NonNegative = 0.0
    """Smallest change that counts as an improvement."""


class LogEvery(OneOf):
    """How often something is logged."""

    steps: Count | None = None
    epochs: Positive | None = None


class SaveEvery(OneOf):
    """How often a checkpoint is saved."""

    steps: Count | None = None
    minutes: Positive | None = None
    epochs: Positive | None = None


class LoggingConfig(Section):
    """What is logged besides the metrics."""

    tensorboard: bool = True
    """Whether the run is logged to TensorBoard. metrics.jsonl, the figures and report.html are there in any case."""
    images: bool = True
    """Whether TensorBoard shows images during the training: the first batch as the network sees it, and at the end of
    up to ten epochs what it says of the validation split. They take at most 2 % of the time."""
    histograms: LogEvery | None = None
    """How often histograms of weights and activations are logged to TensorBoard. Default: never."""
    layer_statistics: LogEvery | None = None
    """How often the fraction of dead ReLUs of each layer, and the norm of its update divided by that of its weights,
    are logged to TensorBoard. `{steps: 500}` costs about 1 % of the time. Default: never."""


class CheckpointConfig(Section):
    """When checkpoints are saved, and which are kept."""

    every: SaveEvery = SaveEvery(epochs=1)
    """How often the state of the training is saved. The best weights are saved at the end of their epoch as well."""
    keep: Count = 2
    """Number of newest checkpoints that are kept, besides the best."""
    keep_last: bool = True
    """Whether the last checkpoint is kept when the run is finished, so that it can be extended."""


class Profile(Section):
    """Which steps are profiled."""

    steps: Annotated[list[Count], Field(min_length=2, max_length=2)]
    """The first and the last one, as [10, 20]. The first steps of a process also allocate memory."""

    @field_validator("steps")
    @classmethod
    def _check_order(cls, steps: list[int]) -> list[int]:
        if steps[0] > steps[1]:
            raise PydanticCustomError("order", "expected a first step that is not after the last")
        return steps


class TrainingConfig(Section):
    """How the network is trained, logged and saved."""

    epochs: whole_number(ge=1, lt=10**9) = 10
    """Number of passes over the training split."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes of training after which the run ends, wherever it is, with the best weights so far. Default: no limit."""
    optimizer: _choice(OPTIMIZERS, "name", default="adam") = Field({"name": "adam"}, validate_default=True)
    learning_rate: _choice(SCHEDULES, "schedule", default="cosine") = Field(
        {"schedule": "cosine"}, validate_default=True
    )
    clip: Clip | None = None
    """Largest gradient. What is larger is scaled down or cut. Default: no limit."""
    accumulate: Count = 1
    """Number of pieces in which a step computes its batch, so that a batch larger than the memory fits. A step, its
    learning rate and its log lines are those of the whole batch."""
    average: Average | None = None
    """Moving average of the weights, validated beside them. Default: none."""
    reused_layers: ReusedLayers | None = None
    """How the layers are trained whose weights come from `model.init_from`. Default: as all others."""
    layers: list[LayerOptions] = []
    """How single layers are trained, for experts. It takes precedence over `reused_layers`."""
    loss: _choice(LOSSES, "name") | None = None
    """Loss function. Default: the network's own, which is `cross_entropy` for all but the original LeNet-5. Options
    without a `name` are those of the network's own."""
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Precision of the computations. `auto`: what suits the device."""
    deterministic: Literal["auto", True, False] = "auto"
    """Whether each run on the same machine computes the same bits. `auto`: on a CPU, where it costs little, unless
    `xla` is on."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Whether XLA compiles the training step. `auto`: on a GPU, unless `deterministic` is true. On a CPU, XLA makes
    these networks slower."""
    monitor: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    """Metric that decides which weights are the best, and when training stops early."""
    early_stopping: EarlyStopping | None = None
    """End training when `monitor` no longer improves. Default: train all epochs."""
    when_stuck: Literal["warn", "stop"] = "warn"
    """What happens once the mean loss of 50 training steps is within 2 % of guessing, that of a network that gives all
    images the same answer. `warn`: a line says so, with likely causes. `stop`: the run ends, and what is trained is
    kept; the trials of a search always do. Only `cross_entropy` has a known loss of guessing."""
    stuck_after: Duration | None = None
    """Length of training before these 50 steps. Default: one epoch, but at least 100 steps."""
    distribution: Literal["none", "mirrored", "multi_worker"] = "none"
    """Which devices train together: one; all GPUs of this machine; or one device each of several processes, which
    TF_CONFIG or SLURM lists. They share `data.batch_size`."""
    profile: Profile | None = None
    """Steps whose operations and times are recorded for TensorBoard's profiler. Default: none."""
    log_every: LogEvery = LogEvery(steps=50)
    """How often training metrics are logged."""
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def tied_to_epochs(self) -> str | None:
        """What more epochs would have changed from the first step on, in words; None: nothing."""
        if self.learning_rate.depends_on_total_steps:
            return f"its schedule '{self.learning_rate.schedule}'"
        frozen = [section.frozen for section in (self.reused_layers, *self.layers) if section]
        if any(isinstance(each, Duration) and each.percent for each in frozen):
            return "a length in percent, for which layers are frozen,"
        return None


class Resolved(Section):
    """Settings resolved from `auto` on this machine. Written by kpipe into a run's config.yaml."""

    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"]
    precision_reason: str = Field("", exclude=True)
    deterministic: bool
    xla: bool = False


class OwnModel(OwnNetworkOptions):
    """A network of the user's own. What its options may be is known when its code is run."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, BeforeValidator(absolute_name)]
    init_from: Annotated[str, BeforeValidator(_known_weights)] | None = InitFrom


def _own_or_known(model: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    name = model.get("name") if isinstance(model, dict) else None
    return OwnModel.model_validate(model) if isinstance(name, str) and is_own(name) else validate(model)


class Experiment(Section):
    """Everything about one training run."""

    name: Annotated[str, Field(pattern=r"^\w[\w .,+=@()-]*$", max_length=100)]
    """Name of the folder with its runs. Default: the name of the file."""
    seed: whole_number(ge=0, lt=2**31) = 0
    """Seed of the initial weights, the order of the images, the augmentations and dropout."""
    data: DataConfig
    model: Annotated[
        SerializeAsAny[
            _choice(MODELS, "name", init_from=(Annotated[str, BeforeValidator(_known_weights)] | None, InitFrom))
        ],
        WrapValidator(_own_or_known),
    ]
    training: TrainingConfig = TrainingConfig()
    logging: LoggingConfig = LoggingConfig()
    search: _choice(SEARCH_METHODS, "method", default="random") | None = None
    """What `kpipe search` tries. Nothing else reads it."""
    logs: str | None = None
    """Folder with all runs. Default: $KPIPE_LOGS, else tensorboard_logs."""
    chosen: Resolved | None = None
    """Settings resolved on the machine of a run, which repeating the run uses for `auto`."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_loss(cls, plain: Any) -> Any:
        """Let options of the loss without its name be those of the network's default loss."""
        match plain:
            case {"training": {"loss": dict(given)}, "model": {"name": str(network), **rest}} if (
                network in MODELS or is_own(network)
            ):
                kind = MODELS[network].options if network in MODELS else OwnNetworkOptions
                # Not validated: a mistake in an option of the network is reported where it stands.
                options = kind.model_construct(**{str(key): value for key, value in rest.items()})
                loss = {"name": options.default_loss, **given}
                return {**plain, "training": {**plain["training"], "loss": loss}}
        return plain

    @property
    def loss(self) -> tuple[str, dict[str, Any]]:
        """Name and options of the loss: the experiment's, else the network's default."""
        given = self.training.loss
        return (given.name, options(given)) if given else (self.model.default_loss, {})

    @property
    def network_options(self) -> dict[str, Any]:
        """Options of the network's builder."""
        return self.model.model_dump(exclude={"name", "init_from"})

    @property
    def sources(self) -> list[str]:
        """The source of the images, and those that a search tries."""
        return [self.data.source, *self._tried("data.source")]

    @property
    def weights(self) -> list[str]:
        """What `model.init_from` names, and what a search tries for it."""
        tried = [absolute_weights(source) for source in self._tried("model.init_from") if source]
        return [self.model.init_from, *tried] if self.model.init_from else tried

    def _tried(self, key: str) -> list[Any]:
        """Return the values that a search tries for a key."""
        space = self.search.space if self.search else {}
        values = space.get(key) if isinstance(space, dict) else None
        return (values and values.choice) or []

    def identity(self) -> dict[str, Any]:
        """Return what two runs of the same experiment share: all but the folder, what was resolved on the machine, and
        the search."""
        return self.model_dump(mode="json", exclude={"chosen", "logs", "search"})


def options(section: Section, kind: str = "name") -> dict[str, Any]:
    """Return the options of a named section: everything but the name."""
    return section.model_dump(exclude={kind})
