"""The experiment: every key, its type, its range and its default, once. The names come from `kpipe.catalog`."""

from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, create_model
from pydantic_core import PydanticCustomError

from kpipe.catalog.data import AUGMENTATIONS, SyntheticOptions, parse_source
from kpipe.catalog.networks import MODELS
from kpipe.catalog.rows import (
    Count,
    Fraction,
    NonNegative,
    OneOf,
    Positive,
    Row,
    Section,
)
from kpipe.catalog.search import SEARCH_METHODS
from kpipe.catalog.training import LOSSES, OPTIMIZERS, SCHEDULES
from kpipe.errors import ConfigError


def _choice(table: dict[str, Row], key: str, default: str | None = None) -> Any:
    """The union of a table's options models, told apart by the value of `key`."""
    members = [create_model(name, __base__=row.options, **{key: (Literal[name], ...)}) for name, row in table.items()]
    fill = BeforeValidator(lambda v: {key: default, **v} if default and isinstance(v, dict) else v)
    return Annotated[reduce(or_, members), Field(discriminator=key), fill]


def _known_source(source: Any) -> Any:
    if isinstance(source, str):
        try:
            parse_source(source)
        except ConfigError as error:
            raise PydanticCustomError("source", "{message}", {"message": str(error)}) from None
    return source


class _Augment(OneOf):
    bare_names: ClassVar[bool] = True


Augment = create_model(
    "Augment", __base__=_Augment, **{name: (row.options | None, None) for name, row in AUGMENTATIONS.items()}
)


class MeanStd(Section):
    """Explicit constants: one for all channels or one per channel, in units of 0..255."""

    mean: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)]
    std: Annotated[list[Positive], Field(min_length=1)]

    def conflicts_with(self, channels: int | None) -> Iterator[str]:
        """What cannot work with images of so many channels; None: not known."""
        if len(self.mean) != len(self.std):
            yield f"expected as many values of std as of mean, got {len(self.std)} and {len(self.mean)}"
        elif channels and len(self.mean) not in (1, channels):
            yield f"expected 1 or {channels} means for images of {channels} channels, got {len(self.mean)}"


class PCAOptions(Section):
    components: Count
    """How many principal components the network sees, the first ones."""


class Projection(Section):
    """A projection on principal components, not whitened: fewer numbers for the network `mlp`."""

    pca: PCAOptions


def _form_of_normalize(value: Any) -> str:
    """The tag; of a mapping it is the class's own name, by which a message finds the keys that it has."""
    if isinstance(value, dict):
        return "Projection" if "pca" in value else "MeanStd"
    return type(value).__name__ if isinstance(value, MeanStd | Projection) else "name"


Normalize = Literal["none", "unit", "mean", "mean_image", "standardize", "pca_whiten", "zca", "imagenet", "caffe"]


class SplitConfig(Section):
    """For sets that do not come in parts; counts round up."""

    validation: Fraction = 0.1
    """Of what the test part leaves."""
    test: Fraction = 0.2


class DataConfig(Section):
    source: Annotated[str, BeforeValidator(_known_source)]
    """digits, synthetic, folder:<path>, tfds:<name>[/<config>]."""
    image_size: Count | None = None
    """Pixels a side of what the network sees. Default: the source's own size."""
    resize: Literal["crop", "pad", "squash"] = "crop"
    """How an image becomes square. crop: the shorter side is scaled and the middle kept; pad: the longer side is scaled
    and the rest is black; squash: both sides are, each by its own factor."""
    stored_size: Count | None = None
    """Pixels a side of the image from which the network sees image_size: evaluation the middle, training the middle or
    the window of random_crop. Default: image_size."""
    channels: Count | None = None
    """1 for grey, 3 for colour. Default: the source's own (folders: 3)."""
    batch_size: Count = 32
    normalize: Annotated[
        Annotated[Normalize, Tag("name")]
        | Annotated[MeanStd, Tag("MeanStd")]
        | Annotated[Projection, Tag("Projection")],
        Discriminator(_form_of_normalize),
    ] = "standardize"
    """The model's first layer. none: 0..255 as they are; unit: to 0..1. By the training part: mean: less the mean of
    each channel (VGG); mean_image: less that of each pixel (AlexNet); standardize: mean 0 and deviation 1 a channel;
    pca_whiten, zca: all numbers of an image made independent, at most 4,096 of them; {pca: {components: k}}: projected
    on the first k principal components, for mlp alone. Fixed, for three channels: imagenet: the mean and deviation of
    its photographs; caffe: blue first, less their mean. {mean: [..], std: [..]}: in units of 0..255."""
    augment: list[Augment] = []
    """Of training, in this order; a window (random_crop, random_resized_crop, scale_jitter, center_crop) first."""
    split: SplitConfig = SplitConfig()
    class_weights: Literal["balanced"] | None = None
    """balanced: the loss of an image counts by images / (classes x images of its class), over the training part."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Where decoded images are kept. disk: in $KPIPE_CACHE, by default ~/.cache/kpipe; none: files are decoded each
    time, records of TensorFlow Datasets are streamed; auto: in memory, part by part, while they fit."""
    cache_gigabytes: Positive = 2.0
    """What `cache: auto` may fill, in 10^9 bytes."""
    on_error: Literal["fail", "skip"] = "fail"
    """What happens at an image that cannot be read. skip: in training the next one takes its place, evaluation leaves
    it out."""
    skip_limit: Fraction = 0.01
    """Largest share of unreadable images in a part under `on_error: skip`; beyond it the run ends."""
    synthetic: SyntheticOptions | None = None
    """Options of the source `synthetic`."""

    applies_when = {"skip_limit": ("on_error", ("skip",)), "cache_gigabytes": ("cache", ("auto",))}


class EarlyStopping(Section):
    patience: Count
    """Epochs without improvement after which training ends."""
    min_delta: NonNegative = 0.0


class LogEvery(OneOf):
    steps: Count | None = None
    epochs: Positive | None = None


class SaveEvery(OneOf):
    steps: Count | None = None
    minutes: Positive | None = None
    epochs: Positive | None = None


class CheckpointConfig(Section):
    every: SaveEvery = SaveEvery(epochs=1)
    """When the state of the training is saved; the best weights so far are saved at the end of their epoch as well."""
    keep: Count = 2
    """How many of the newest stay, besides the best."""
    keep_last: bool = True
    """Whether the last one stays when the run is finished, so that it can be extended."""


class TrainingConfig(Section):
    epochs: Count = 10
    optimizer: _choice(OPTIMIZERS, "name", default="adam") = Field({"name": "adam"}, validate_default=True)
    learning_rate: _choice(SCHEDULES, "schedule", default="cosine") = Field(
        {"schedule": "cosine"}, validate_default=True
    )
    loss: _choice(LOSSES, "name") | None = None
    """Default: the network's own, which is cross_entropy for all but LeNet-5's original form."""
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    deterministic: Literal["auto", True, False] = "auto"
    """The same bits in every run of the same machine. auto: on a CPU, where it costs little."""
    monitor: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    """What decides which weights are the best, and when to stop early."""
    early_stopping: EarlyStopping | None = None
    log_every: LogEvery = LogEvery(steps=50)
    checkpoint: CheckpointConfig = CheckpointConfig()


class Resolved(Section):
    """What a run measured or chose for its machine. Written by kpipe into a run's config.yaml."""

    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"]
    deterministic: bool


class Experiment(Section):
    """One training run, complete."""

    name: Annotated[str, Field(pattern=r"^\w[\w .+-]*$", max_length=100)]
    """Names the folder of its runs. Default: the file's name."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig
    model: _choice(MODELS, "name")
    training: TrainingConfig = TrainingConfig()
    search: _choice(SEARCH_METHODS, "method", default="random") | None = None
    """What `kpipe search` tries; nothing else looks at it."""
    logs: str | None = None
    """Where runs are kept. Default: $KPIPE_LOGS, else tensorboard_logs."""
    chosen: Resolved | None = None

    def identity(self) -> dict[str, Any]:
        """What makes two runs runs of the same experiment: all but where it is kept, what the machine chose, and what a
        search around it would try."""
        return self.model_dump(mode="json", exclude={"chosen", "logs", "search"})


def options(section: Section, kind: str = "name") -> dict[str, Any]:
    """The options of a chosen name: everything in its section but the name."""
    return section.model_dump(exclude={kind})
