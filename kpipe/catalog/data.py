"""Sources of images and augmentations by name, and their options."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kpipe.catalog import papers
from kpipe.catalog.own_code import absolute_name, is_own
from kpipe.catalog.rows import (
    ClosedFraction,
    Count,
    Fraction,
    NoOptions,
    Positive,
    Row,
    Section,
    import_target,
    whole_number,
)
from kpipe.catalog.wording import show
from kpipe.console import counted
from kpipe.errors import ConfigError, did_you_mean, nearest_name
from kpipe.files import expand_path
from kpipe.names import printable

MOST_WHITENED = 4096
"""The most values of an image that can be whitened: the matrix has as many rows and columns."""

_COLORS = {"white": (255, 255, 255), "black": (0, 0, 0)}
_CROPS = "kpipe.data.augmentations.crops:"
_GEOMETRIC = "kpipe.data.augmentations.geometric:"
_COLOR = "kpipe.data.augmentations.color:"
_MIX = "kpipe.data.augmentations.mix:"


def whitening_conflict(shape: Sequence[int | None], components: int | None = None) -> str | None:
    """Return why images (H, W, C) cannot be whitened; None where they can, or where the shape is not known."""
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


@dataclass(frozen=True)
class NativeImages:
    """A source's images where the experiment does not change them; None: known only once the data is read."""

    size: int | None = None
    """Height in pixels: points of a board, frequency bands of a spectrogram, characters of a text."""
    channels: int | None = None
    has_fixed_channels: bool = False
    """Whether `data.channels` cannot be given."""
    is_square: bool = True


LOADING = (
    "source", "form", "image_size", "stored_size", "resize", "channels", "background", "cache", "cache_gigabytes",
    "whole_images", "on_error", "skip_limit", "validation", "test", "download", "ahead", "check", "progress",
)  # fmt: skip
"""Arguments of `load_dataset` and `find_source`, which no option of a source can be called."""


class SourceOptions(Section):
    """Options of a source."""

    @property
    def native(self) -> NativeImages:
        return NativeImages()


class DigitsOptions(SourceOptions):
    @property
    def native(self) -> NativeImages:
        return NativeImages(size=8, channels=1)


class FolderOptions(SourceOptions):
    @property
    def native(self) -> NativeImages:
        return NativeImages(channels=3)


class PythonOptions(SourceOptions):
    """Options of a source of the user's own: parameters of its function."""

    model_config = ConfigDict(extra="allow")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        for option in self.model_extra:
            if option in LOADING:
                yield option, "expected another name, as load_dataset has this argument. Rename the parameter"


class SyntheticOptions(SourceOptions):
    kind: Literal["images", "board", "spectrogram", "text"] = "images"
    """What the images show: stripes, positions of Go, spoken words, or one-hot characters."""
    classes: whole_number(ge=2) | None = None
    """Number of classes. Default: 10. A board has one class for each point instead."""
    images: Count = 2000
    """Number of images in all splits together."""

    @property
    def native(self) -> NativeImages:
        return _SYNTHETIC[self.kind]

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.kind == "board" and self.classes is not None:
            yield "classes", "a board has one class for each point; leave it out"


_SYNTHETIC = {
    "images": NativeImages(size=32, channels=3),
    "board": NativeImages(size=19, channels=3, has_fixed_channels=True),
    "spectrogram": NativeImages(size=40, channels=1, has_fixed_channels=True, is_square=False),
    "text": NativeImages(size=128, channels=27, has_fixed_channels=True, is_square=False),
}


@dataclass(frozen=True)
class SourceRow(Row):
    argument: str | None = None
    """What stands after the colon (`folder:<path>`), or None."""
    example: str | None = None
    """What may stand there, for `kpipe list`."""
    needs_size: bool = False
    """Whether `data.image_size` must be given."""
    channels: tuple[int, ...] | None = (1, 3)
    """Values that `data.channels` may have; None: any."""
    is_embedded: bool = False
    """Whether the images come with kpipe. Such a source has no splits of its own."""
    is_resized: bool = True
    """Whether the images have a size of their own, from which they are resized to `data.image_size`."""
    is_path: bool = False
    """Whether what stands after the colon is a path."""
    is_code: bool = False
    """Whether what stands after the colon is a function of the user's own."""
    check: str | None = None
    """What finds mistakes in a moment, without TensorFlow: `module:function`, called with what stands after the
    colon."""


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
        "procedural images that can be learned (embedded)",
        channels=None,
        is_embedded=True,
        is_resized=False,
    ),
    "folder": SourceRow(
        "kpipe.data.sources.folder:read_folder",
        FolderOptions,
        "a folder of images, one folder for each class",
        argument="path",
        example="photographs",
        needs_size=True,
        is_path=True,
        check="kpipe.layout:find_layout",
    ),
    "tfds": SourceRow(
        "kpipe.data.sources.tfds:read_tfds",
        SourceOptions,
        "an image classification set of TensorFlow Datasets",
        argument="name",
        example="cifar10",
    ),
    "python": SourceRow(
        "kpipe.data.sources.python:read_python",
        PythonOptions,
        "images from a function of your own",
        argument="FILE.py:function",
        example="my_data.py:read",
        channels=None,
        is_code=True,
    ),
}


def parse_source(source: str) -> tuple[SourceRow, str]:
    """Split `folder:photos` into its row and the absolute path of `photos`.

    Raises:
        ConfigError: the source is unknown, what stands after its colon is missing or too much, or it is no path.
    """
    name, colon, argument = str(source).partition(":")
    if name not in SOURCES:
        raise ConfigError(f"unknown source {show(name)}{_meant_source(str(source))}")
    row = SOURCES[name]
    if row.argument and not argument:
        raise ConfigError(f"expected {name}:<{row.argument}>, got {show(source)}")
    if colon and not row.argument:
        raise ConfigError(f"expected '{name}' alone, got {show(source)}")
    if row.is_code:
        if not is_own(argument):
            raise ConfigError(f"expected {name}:<{row.argument}> or {name}:<module:function>, got {show(source)}")
        return row, absolute_name(argument)
    return row, str(expand_path(argument)) if row.is_path else argument


def _meant_source(source: str) -> str:
    """Return the end of the message about an unknown source: what was probably meant, or the sources."""
    name, colon, _ = source.partition(":")
    if nearest_name(name, SOURCES):
        return did_you_mean(name, SOURCES)
    if source.startswith(("/", "./", "../", "~")) or source and os.path.isdir(source):
        return f". Write {printable(f'folder:{source}')}"
    known = ", ".join(f"{kind}:<{row.argument}>" if row.argument else kind for kind, row in SOURCES.items())
    is_name = not colon and re.fullmatch(r"\w+(/[\w.-]+)?", source)
    hint = f". A set of TensorFlow Datasets is written tfds:{source}" if is_name and len(source) < 60 else ""
    return f" (known: {known}){hint}"


def absolute_source(source: str) -> str:
    """Return the source with its path made absolute: a run must find its data from any working directory.

    Raises:
        ConfigError: as `parse_source`.
    """
    row, argument = parse_source(source)
    return f"{source.partition(':')[0]}:{argument}" if row.is_path or row.is_code else source


def parse_background(background: str | Sequence[int]) -> tuple[int, int, int]:
    """Return the color that transparent pixels show: red, green and blue, 0..255.

    Raises:
        ConfigError: it is neither `white`, `black` nor three such numbers.
    """
    if isinstance(background, str) and background in _COLORS:
        return _COLORS[background]
    is_color = isinstance(background, list | tuple) and len(background) == 3
    if is_color and all(type(value) is int and 0 <= value <= 255 for value in background):
        return tuple(background)
    raise ConfigError(f"expected white, black or [red, green, blue] of 0 to 255, got {show(background)}")


def check_source(source: str) -> None:
    """Raise DataError for what is wrong with a source at first sight, without TensorFlow and without opening images."""
    row, argument = parse_source(source)
    if row.check:
        import_target(row.check)(argument)


# --- normalizations -------------------------------------------------------------------------------------------------


class MeanStd(Section):
    """Given mean and standard deviation: one value for all channels, or one for each. Pixels are in [0, 255]."""

    mean: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, examples=[[125.3, 123.0, 113.9]])
    ]
    """What is subtracted."""
    std: Annotated[list[Positive], Field(min_length=1, examples=[[63.0, 62.1, 66.7]])]
    """What the rest is divided by."""

    def conflicts_with(self, channels: int | None) -> Iterator[str]:
        """Yield what cannot work with images of so many channels; None: not known."""
        if len(self.mean) != len(self.std):
            yield f"expected as many values of std as of mean, got {len(self.std)} and {len(self.mean)}"
        elif channels and len(self.mean) not in (1, channels):
            expected = "1 mean" if channels == 1 else f"1 or {channels} means"
            yield f"expected {expected} for images of {counted(channels, 'channel')}, got {len(self.mean)}"


class PCAOptions(Section):
    components: Annotated[Count, Field(examples=[50])]
    """Number of principal components that the network sees."""


class Projection(Section):
    """Projection onto the first principal components, for the network `mlp`. The result is not whitened."""

    pca: PCAOptions


_PREPROCESSING = "kpipe.models.preprocessing:"

NORMALIZATIONS = {
    "auto": Row(
        _PREPROCESSING + "Standardize",
        NoOptions,
        "what the weights of model.init_from were trained with; without them, standardize (the default)",
    ),
    "none": Row(_PREPROCESSING + "Standardize", NoOptions, "keep pixels in [0, 255]"),
    "unit": Row(_PREPROCESSING + "Standardize", NoOptions, "scale pixels to [0, 1]"),
    "mean": Row(
        _PREPROCESSING + "Standardize", NoOptions, "subtract the mean of each channel, as VGG did", paper=papers.VGG
    ),
    "mean_image": Row(
        _PREPROCESSING + "SubtractMeanImage",
        NoOptions,
        "subtract the mean of each pixel, as AlexNet did",
        paper=papers.ALEXNET,
    ),
    "standardize": Row(_PREPROCESSING + "Standardize", NoOptions, "give each channel mean 0 and standard deviation 1"),
    "pca_whiten": Row(
        _PREPROCESSING + "Whiten", NoOptions, "decorrelate all values of an image, along its principal components"
    ),
    "zca": Row(
        _PREPROCESSING + "Whiten",
        NoOptions,
        "decorrelate all values, as near to the image as it can be",
        paper=papers.ZCA,
    ),
    "imagenet": Row(
        _PREPROCESSING + "Standardize", NoOptions, "subtract ImageNet's mean, divide by its standard deviation"
    ),
    "caffe": Row(
        _PREPROCESSING + "Standardize",
        NoOptions,
        "blue first, and subtract ImageNet's mean, as published weights expect",
    ),
    "mean_std": Row(_PREPROCESSING + "Standardize", MeanStd, "constants of your own, written {mean: [..], std: [..]}"),
    "pca": Row(
        _PREPROCESSING + "Whiten",
        PCAOptions,
        "first principal components for the mlp, written {pca: {components: k}}",
    ),
}
"""Values of `data.normalize`. What a name needs is measured on the training split, but for `imagenet` and `caffe`."""


# --- augmentations --------------------------------------------------------------------------------------------------


def _range(most: float | None = None) -> Any:
    """Return the type of [smallest, largest], both above 0 and at most `most`."""
    number = Annotated[float, Field(gt=0, le=most, allow_inf_nan=False)]
    return Annotated[list[number], Field(min_length=2, max_length=2)]


PixelValue = whole_number(ge=0, le=255)


@dataclass(frozen=True)
class ImageFacts:
    """What is known about the images of a dataset before they are read; None: not yet known."""

    size: int | None = None
    """Side of what the network sees, in pixels; the height of images that are not square."""
    stored_size: int | None = None
    """Side at which images are kept, in pixels, where that differs."""
    channels: int | None = None
    is_square: bool = True

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield combinations that cannot work, as (key of the section `data`, message)."""
        sizes = {"image_size": self.size, "stored_size": self.stored_size}
        given = {key: value for key, value in sizes.items() if value is not None}
        if wrong := [key for key, value in given.items() if not isinstance(value, int)]:
            yield from ((key, f"expected a whole number of pixels, got {given[key]!r}") for key in wrong)
            return
        for key, value in given.items():
            if value < 1:
                yield key, f"expected at least 1, got {value}"
        if self.stored_size and (self.size is None or self.stored_size < self.size):
            least = self.size or "which is missing"
            yield "stored_size", f"expected at least data.image_size, {least}, got {self.stored_size}"
        if self.stored_size and not self.is_square:
            yield "stored_size", "needs square images"


class AugmentationOptions(Section):
    """Options of an augmentation."""

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        """Yield what cannot work with images of this size."""
        return iter(())


class RandomCropOptions(AugmentationOptions):
    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        if images.size and (images.stored_size or images.size) <= images.size:
            got = images.stored_size or "none"
            yield f"random_crop needs a data.stored_size above data.image_size, {images.size}, got {got}"


class RandomResizedCropOptions(AugmentationOptions):
    area: _range(most=1.0) = [0.08, 1.0]
    """Smallest and largest fraction of the image's area that a crop has."""
    aspect: _range() = [3 / 4, 4 / 3]
    """Smallest and largest aspect ratio (width / height) of a crop."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        for name, pair in (("area", self.area), ("aspect", self.aspect)):
            if pair[0] > pair[1]:
                yield name, f"expected [smallest, largest], got {pair}"


class ScaleJitterOptions(AugmentationOptions):
    low: Count = 256
    """Smallest length of the image's shorter side, in pixels."""
    high: Count = 512
    """Largest length of the image's shorter side, in pixels."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.low > self.high:
            yield "low", f"expected at most high, {self.high}, got {self.low}"

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        if images.size and self.low < images.size:
            yield f"expected low of at least data.image_size, {images.size}, got {self.low}"


class PadCropOptions(AugmentationOptions):
    padding: Count = 4
    """Pixels added on each side before the crop."""

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        if "padding" in self.model_fields_set and images.size and self.padding >= images.size:
            yield f"expected padding below data.image_size, {images.size}, got {self.padding}"


class TranslateOptions(AugmentationOptions):
    height: Fraction = 0.1
    """Largest shift up or down, as a fraction of the height."""
    width: Fraction = 0.1
    """Largest shift to the left or right, as a fraction of the width."""


class RotateOptions(AugmentationOptions):
    degrees: Annotated[float, Field(gt=0, le=180)] = 15.0
    """Largest angle in either direction."""
    fill: PixelValue = 0
    """Value of the pixels from outside the image."""


class CutoutOptions(AugmentationOptions):
    size: Count = 16
    """Side of the square, in pixels."""
    fill: PixelValue = 0
    """Value of the covered pixels."""

    def conflicts_with(self, images: ImageFacts) -> Iterator[str]:
        # The default may cover a small image: only a size that somebody has given is a mistake.
        if "size" in self.model_fields_set and images.size and self.size >= images.size:
            yield f"expected size below data.image_size, {images.size}, got {self.size}"


class ColorJitterOptions(AugmentationOptions):
    brightness: ClosedFraction = 0.4
    """Largest change of the brightness: its factor is drawn from [1 - x, 1 + x]. 0 leaves the operation out."""
    contrast: ClosedFraction = 0.4
    """Largest change of the contrast."""
    saturation: ClosedFraction = 0.4
    """Largest change of the saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of the hue, in turns of the color wheel."""


class PcaColorOptions(AugmentationOptions):
    deviation: Positive = 0.1
    """Standard deviation of the random factor for each principal component."""
    scale: Literal["paper", "deviation"] = "paper"
    """What the factors are multiplied with. `paper`: the eigenvalues of pixels in [0, 1]. `deviation`: their square
    roots, which shifts the colors about twice as far."""


class GrayscaleOptions(AugmentationOptions):
    probability: ClosedFraction = 0.1
    """Probability that an image is converted."""


class RandAugmentOptions(AugmentationOptions):
    operations: Count = 2
    """Number of operations applied to each image, one after the other."""
    magnitude: whole_number(ge=0, le=30) = 9
    """Strength of the operations, from 0 to 30."""


class MixupOptions(AugmentationOptions):
    alpha: Positive = 0.2
    """The fraction of the first image is drawn from Beta(alpha, alpha)."""


class CutmixOptions(AugmentationOptions):
    alpha: Positive = 1.0
    """The fraction of the pixels that an image keeps is drawn from Beta(alpha, alpha)."""


@dataclass(frozen=True)
class AugmentationRow(Row):
    channels: tuple[int, ...] | None = None
    """Channels that an image may have; None: any number."""
    is_crop: bool = False
    """Whether it chooses the crop that the network sees. Such an augmentation comes first."""
    reads_whole_image: bool = False
    """Whether it reads the image as it is in its file."""

    def conflicts_with(self, name: str, options: AugmentationOptions, images: ImageFacts, place: int) -> Iterator[str]:
        """Yield what cannot work about this entry of `data.augment`.

        Args:
            name: name of the row.
            options: options of the entry.
            images: the images, as far as they are known.
            place: index of the entry in the list.
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


AUGMENTATIONS = {
    "random_crop": AugmentationRow(
        _CROPS + "random_crop",
        RandomCropOptions,
        "crop image_size out of stored_size at random",
        is_crop=True,
    ),
    "center_crop": AugmentationRow(
        _CROPS + "center_crop",
        AugmentationOptions,
        "crop the center, as in evaluation",
        is_crop=True,
    ),
    "random_resized_crop": AugmentationRow(
        _CROPS + "random_resized_crop",
        RandomResizedCropOptions,
        "crop a random area and aspect ratio, then resize",
        is_crop=True,
        reads_whole_image=True,
        paper=papers.GOOGLENET,
    ),
    "scale_jitter": AugmentationRow(
        _CROPS + "scale_jitter",
        ScaleJitterOptions,
        "resize at random, then crop",
        is_crop=True,
        reads_whole_image=True,
        paper=papers.VGG,
    ),
    "pad_crop": AugmentationRow(_GEOMETRIC + "pad_crop", PadCropOptions, "pad with zeros, then crop at random"),
    "translate": AugmentationRow(_GEOMETRIC + "translate", TranslateOptions, "shift by a fraction of the image"),
    "flip_horizontal": AugmentationRow(
        _GEOMETRIC + "flip_horizontal", AugmentationOptions, "mirror left and right, half of the images"
    ),
    "flip_vertical": AugmentationRow(
        _GEOMETRIC + "flip_vertical", AugmentationOptions, "mirror top and bottom, half of the images"
    ),
    "rotate": AugmentationRow(_GEOMETRIC + "rotate", RotateOptions, "rotate about the center, bilinear"),
    "cutout": AugmentationRow(
        _GEOMETRIC + "cutout", CutoutOptions, "cover a square, DeVries and Taylor 2017", paper=papers.CUTOUT
    ),
    "color_jitter": AugmentationRow(
        _COLOR + "color_jitter", ColorJitterOptions, "brightness, contrast, saturation, hue", channels=(1, 3)
    ),
    "pca_color": AugmentationRow(
        _COLOR + "pca_color",
        PcaColorOptions,
        "shift along ImageNet's colors, as AlexNet did",
        channels=(3,),
        paper=papers.ALEXNET,
    ),
    "grayscale": AugmentationRow(
        _COLOR + "grayscale", GrayscaleOptions, "the luminance in all channels", channels=(1, 3)
    ),
    "rand_augment": AugmentationRow(
        "kpipe.data.augmentations.rand_augment:rand_augment",
        RandAugmentOptions,
        "operations drawn from 14, Cubuk et al. 2020",
        channels=(1, 3),
        paper=papers.RAND_AUGMENT,
    ),
    "mixup": AugmentationRow(
        _MIX + "mixup", MixupOptions, "blend two images and their labels, Zhang et al. 2018", paper=papers.MIXUP
    ),
    "cutmix": AugmentationRow(
        _MIX + "cutmix", CutmixOptions, "paste a rectangle of another image, Yun et al. 2019", paper=papers.CUTMIX
    ),
}
