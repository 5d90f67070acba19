"""Sources of images and augmentations by name, and their options."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from kpipe.catalog.rows import (
    ClosedShare,
    Count,
    NoOptions,
    Positive,
    Row,
    Section,
    Share,
)
from kpipe.errors import ConfigError, did_you_mean

MOST_WHITENED = 4096
"""The most numbers of an image that is whitened: the matrix has as many rows and columns."""


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
        "kpipe.data.sources.digits:read_digits",
        NoOptions,
        "1,797 handwritten 8x8 digits (embedded)",
        None,
        8,
        native_channels=1,
    ),
    "synthetic": SourceRow(
        "kpipe.data.sources.synthetic:read_synthetic", SyntheticOptions, "procedural, learnable (embedded)", None, None
    ),
    "folder": SourceRow(
        "kpipe.data.sources.folder:read_folder",
        NoOptions,
        "a folder of images, one folder a class",
        "path",
        None,
        True,
        native_channels=3,
    ),
    "tfds": SourceRow(
        "kpipe.data.sources.tfds:read_tfds",
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
    "random_crop": WindowRow(
        "kpipe.data.augmentations.crops:random_crop", NoOptions, "a window of image_size in stored_size"
    ),
    "center_crop": WindowRow("kpipe.data.augmentations.crops:center_crop", NoOptions, "the middle, as in evaluation"),
    "random_resized_crop": WindowRow(
        "kpipe.data.augmentations.crops:random_resized_crop",
        RandomResizedCropOptions,
        "a window of random area and aspect",
        True,
    ),
    "scale_jitter": WindowRow(
        "kpipe.data.augmentations.crops:scale_jitter", ScaleJitterOptions, "scale at random, then a window", True
    ),
    "pad_crop": Row(
        "kpipe.data.augmentations.geometric:pad_crop", PadCropOptions, "pad with zeros, crop at random to the old size"
    ),
    "translate": Row(
        "kpipe.data.augmentations.geometric:translate", TranslateOptions, "shift by up to a share of the image"
    ),
    "flip_horizontal": Row(
        "kpipe.data.augmentations.geometric:flip_horizontal", NoOptions, "mirror every second image"
    ),
    "flip_vertical": Row(
        "kpipe.data.augmentations.geometric:flip_vertical", NoOptions, "mirror every second image, top and bottom"
    ),
    "rotate": Row("kpipe.data.augmentations.geometric:rotate", RotateOptions, "turn about the centre, bilinear"),
    "cutout": Row(
        "kpipe.data.augmentations.geometric:cutout", CutoutOptions, "cover a square, DeVries and Taylor 2017"
    ),
    "color_jitter": ColorRow(
        "kpipe.data.augmentations.color:color_jitter", ColorJitterOptions, "brightness, contrast, saturation, hue"
    ),
    "pca_color": ColorRow(
        "kpipe.data.augmentations.color:pca_color",
        PcaColorOptions,
        "shift along ImageNet's colours, as AlexNet did",
        (3,),
    ),
    "grayscale": ColorRow(
        "kpipe.data.augmentations.color:grayscale", GrayscaleOptions, "the luminance in all channels"
    ),
    "rand_augment": ColorRow(
        "kpipe.data.augmentations.rand_augment:rand_augment",
        RandAugmentOptions,
        "operations drawn from 14, Cubuk et al. 2020",
    ),
    "mixup": Row(
        "kpipe.data.augmentations.mix:mixup", MixupOptions, "add two images and their labels, Zhang et al. 2018"
    ),
    "cutmix": Row(
        "kpipe.data.augmentations.mix:cutmix", CutmixOptions, "a rectangle of another image, Yun et al. 2019"
    ),
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
