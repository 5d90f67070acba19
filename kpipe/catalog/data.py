"""Sources of images and augmentations by name, and their options."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kpipe.catalog.rows import (
    ClosedFraction,
    Count,
    Fraction,
    Positive,
    Row,
    Section,
)
from kpipe.errors import ConfigError, did_you_mean

MOST_WHITENED = 4096
"""The most values of an image that is whitened: the matrix has as many rows and columns."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a set's images before they are read; None: not yet."""

    size: int | None = None
    """Pixels a side of what the network sees; of images that are not square, their height."""
    stored_size: int | None = None
    """Pixels a side at which images are kept, where that differs."""
    channels: int | None = None
    is_square: bool = True

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What cannot be meant together, as (key of the section `data`, message)."""
        if self.stored_size and (self.size is None or self.stored_size < self.size):
            least = self.size or "which is missing"
            yield "stored_size", f"expected at least data.image_size, {least}, got {self.stored_size}"
        if self.stored_size and not self.is_square:
            yield "stored_size", "needs square images"


def whitening_conflict(shape: Sequence[int | None], components: int | None = None) -> str | None:
    """What to say where images (H, W, C) cannot be whitened; None where they can, or where the shape is not known."""
    if None in shape:
        return None
    values, size = math.prod(shape), "x".join(map(str, shape))
    if values > MOST_WHITENED:
        return (
            f"expected images of at most {MOST_WHITENED:,} values to whiten, got {size} = {values:,}. "
            "Take a smaller image_size, or normalize each channel"
        )
    if components is not None and not 1 <= components <= values:
        return f"expected 1 to {values:,} components for images of {size}, got {components:,}"
    return None


# --- sources --------------------------------------------------------------------------------------------------------


class SourceOptions(Section):
    """The options of a source, and what they say about its images."""

    native_size: ClassVar[int | None] = None
    """Pixels a side where `image_size` is not given; None: known only once the data is read."""
    native_channels: ClassVar[int | None] = None
    """Where `channels` is not given; None: known only once the data is read."""
    has_fixed_channels: ClassVar[bool] = False
    """Whether `channels` cannot be chosen."""
    is_square: ClassVar[bool] = True


class DigitsOptions(SourceOptions):
    native_size = 8
    native_channels = 1


class FolderOptions(SourceOptions):
    native_channels = 3


_KINDS = {"images": (32, 3), "board": (19, 3), "spectrogram": (40, 1), "text": (128, 27)}


class SyntheticOptions(SourceOptions):
    kind: Literal["images", "board", "spectrogram", "text"] = "images"
    """What the images show: stripes, Go positions, spoken words, or one-hot characters."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """Default: 10. A board has one class a point instead."""
    images: Count = 2000
    """In all splits together."""

    @property
    def native_size(self) -> int:
        """Pixels a side, points a side, frequency bands or characters."""
        return _KINDS[self.kind][0]

    @property
    def native_channels(self) -> int:
        return _KINDS[self.kind][1]

    @property
    def has_fixed_channels(self) -> bool:
        return self.kind != "images"

    @property
    def is_square(self) -> bool:
        """Spectrograms and texts are not: their size is the height."""
        return self.kind in ("images", "board")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.kind == "board" and self.classes is not None:
            yield "classes", "a board has one class a point; leave it out"


@dataclass(frozen=True)
class SourceRow(Row):
    argument: str | None = None
    """What stands after the colon (`folder:<path>`), or None."""
    needs_size: bool = False
    """Whether `image_size` must be given."""
    channels: tuple[int, ...] | None = (1, 3)
    """What `data.channels` may be; None: anything."""
    is_embedded: bool = False
    """Whether it comes with kpipe: such a set has no splits of its own."""
    is_resized: bool = True
    """Whether its images have a size of their own, from which they are brought to another."""


SOURCES = {
    "digits": SourceRow(
        "kpipe.data.sources.digits:read_digits",
        DigitsOptions,
        "1,797 handwritten 8x8 digits (embedded)",
        is_embedded=True,
    ),
    "synthetic": SourceRow(
        "kpipe.data.sources.synthetic:read_synthetic",
        SyntheticOptions,
        "procedural, learnable (embedded)",
        channels=None,
        is_embedded=True,
        is_resized=False,
    ),
    "folder": SourceRow(
        "kpipe.data.sources.folder:read_folder",
        FolderOptions,
        "a folder of images, one folder a class",
        argument="path",
        needs_size=True,
    ),
    "tfds": SourceRow(
        "kpipe.data.sources.tfds:read_tfds",
        SourceOptions,
        "an image classification set of TensorFlow Datasets",
        argument="name",
    ),
}


# --- augmentations --------------------------------------------------------------------------------------------------


class AugmentationOptions(Section):
    """The options of an augmentation, and what they ask of the images."""

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        """What cannot work with images of this size."""
        return iter(())


@dataclass(frozen=True)
class AugmentationRow(Row):
    channels: tuple[int, ...] | None = None
    """How many channels an image may have; None: any."""
    is_crop: bool = False
    """It chooses which part of an image the network sees, and so comes first."""
    reads_whole_image: bool = False
    """It looks at the image as it is in its file."""

    def conflicts_with(self, name: str, options: AugmentationOptions, images: ImageFacts, place: int) -> Iterator[str]:
        """What cannot work about this entry of `data.augment`.

        Args:
            name: of the row.
            options: of the entry.
            images: as far as they are known.
            place: of the entry in the list, from 0 on.
        """
        if self.is_crop:
            if place:
                yield f"expected {name} as the first entry: it chooses what the others see"
            if images.size is None:
                yield f"{name} needs data.image_size, the size of the crop"
            if not images.is_square:
                yield f"{name} needs square images"
        yield from options.conflicts_with(images)
        if self.channels and images.channels and images.channels not in self.channels:
            yield f"{name} needs images of {' or '.join(map(str, self.channels))} channels, got {images.channels}"


def _range(most: float | None = None) -> Any:
    """The type of [smallest, largest], both above 0 and at most `most`."""
    number = Annotated[float, Field(gt=0, le=most, allow_inf_nan=False)]
    return Annotated[list[number], Field(min_length=2, max_length=2)]


class RandomCropOptions(AugmentationOptions):
    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        if images.size and (images.stored_size or images.size) <= images.size:
            got = images.stored_size or "none"
            yield f"random_crop needs a data.stored_size above data.image_size, {images.size}, got {got}"


class RandomResizedCropOptions(AugmentationOptions):
    area: _range(most=1.0) = [0.08, 1.0]
    """Fraction of the image, smallest and largest."""
    aspect: _range() = [3 / 4, 4 / 3]
    """Width / height, smallest and largest."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        for name, pair in (("area", self.area), ("aspect", self.aspect)):
            if pair[0] > pair[1]:
                yield name, f"expected [smallest, largest], got {pair}"


class ScaleJitterOptions(AugmentationOptions):
    low: Count = 256
    high: Count = 512

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.low > self.high:
            yield "low", f"expected at most high, {self.high}, got {self.low}"

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        if images.size and self.low < images.size:
            yield f"expected low of at least data.image_size, {images.size}, got {self.low}"


class PadCropOptions(AugmentationOptions):
    padding: Count = 4

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        if images.size and self.padding >= images.size:
            yield f"expected padding below data.image_size, {images.size}, got {self.padding}"


class TranslateOptions(AugmentationOptions):
    height: Fraction = 0.1
    width: Fraction = 0.1


Fill = Annotated[int, Field(ge=0, le=255)]


class RotateOptions(AugmentationOptions):
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    """The largest angle, either way."""
    fill: Fill = 0


class CutoutOptions(AugmentationOptions):
    size: Count = 16
    """Side of the square, in pixels."""
    fill: Fill = 0

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        if images.size and self.size >= images.size:
            yield f"expected size below data.image_size, {images.size}, got {self.size}"


class ColorJitterOptions(AugmentationOptions):
    brightness: ClosedFraction = 0.4
    """The factor is uniform in 1 +- this; 0 leaves the operation out."""
    contrast: ClosedFraction = 0.4
    saturation: ClosedFraction = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The largest shift, in turns."""


class PcaColorOptions(AugmentationOptions):
    deviation: Positive = 0.1
    scale: Literal["paper", "deviation"] = "paper"
    """`paper`: times the eigenvalues of pixels in [0, 1]; `deviation`: times their square roots, about twice as far."""


class GrayscaleOptions(AugmentationOptions):
    probability: ClosedFraction = 0.1


class RandAugmentOptions(AugmentationOptions):
    operations: Count = 2
    """Applied to each image, one after the other."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class MixupOptions(AugmentationOptions):
    alpha: Positive = 0.2
    """The share of an image is distributed as Beta(alpha, alpha)."""


class CutmixOptions(AugmentationOptions):
    alpha: Positive = 1.0
    """The share of the pixels left is distributed as Beta(alpha, alpha)."""


_AT = "kpipe.data.augmentations."

AUGMENTATIONS = {
    "random_crop": AugmentationRow(
        f"{_AT}crops:random_crop", RandomCropOptions, "image_size of stored_size, anywhere", is_crop=True
    ),
    "center_crop": AugmentationRow(
        f"{_AT}crops:center_crop", AugmentationOptions, "the center, as in evaluation", is_crop=True
    ),
    "random_resized_crop": AugmentationRow(
        f"{_AT}crops:random_resized_crop",
        RandomResizedCropOptions,
        "a crop of random area and aspect",
        is_crop=True,
        reads_whole_image=True,
    ),
    "scale_jitter": AugmentationRow(
        f"{_AT}crops:scale_jitter",
        ScaleJitterOptions,
        "scale at random, then crop",
        is_crop=True,
        reads_whole_image=True,
    ),
    "pad_crop": AugmentationRow(
        f"{_AT}geometric:pad_crop", PadCropOptions, "pad with zeros, crop at random to the old size"
    ),
    "translate": AugmentationRow(
        f"{_AT}geometric:translate", TranslateOptions, "shift by up to a fraction of the image"
    ),
    "flip_horizontal": AugmentationRow(
        f"{_AT}geometric:flip_horizontal", AugmentationOptions, "mirror every second image"
    ),
    "flip_vertical": AugmentationRow(
        f"{_AT}geometric:flip_vertical", AugmentationOptions, "mirror every second image, top and bottom"
    ),
    "rotate": AugmentationRow(f"{_AT}geometric:rotate", RotateOptions, "rotate about the center, bilinear"),
    "cutout": AugmentationRow(f"{_AT}geometric:cutout", CutoutOptions, "cover a square, DeVries and Taylor 2017"),
    "color_jitter": AugmentationRow(
        f"{_AT}color:color_jitter", ColorJitterOptions, "brightness, contrast, saturation, hue", channels=(1, 3)
    ),
    "pca_color": AugmentationRow(
        f"{_AT}color:pca_color", PcaColorOptions, "shift along ImageNet's colors, as AlexNet did", channels=(3,)
    ),
    "grayscale": AugmentationRow(
        f"{_AT}color:grayscale", GrayscaleOptions, "the luminance in all channels", channels=(1, 3)
    ),
    "rand_augment": AugmentationRow(
        f"{_AT}rand_augment:rand_augment",
        RandAugmentOptions,
        "operations drawn from 14, Cubuk et al. 2020",
        channels=(1, 3),
    ),
    "mixup": AugmentationRow(f"{_AT}mix:mixup", MixupOptions, "add two images and their labels, Zhang et al. 2018"),
    "cutmix": AugmentationRow(f"{_AT}mix:cutmix", CutmixOptions, "a rectangle of another image, Yun et al. 2019"),
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
