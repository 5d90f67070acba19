"""The layers that take the raw images: a model is given 0..255 and normalizes them itself.

All of them compute in float32 whatever the global dtype policy is: bfloat16 keeps eight bits of a number, and raw
values rounded to it before the mean is subtracted lose detail that no later layer can bring back.

Legend of the shapes: B batch, H height, W width, C channels, D = H x W x C.
"""

import functools
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from kpipe.catalog.data import whitening_conflict
from kpipe.errors import ConfigError
from kpipe.files import replacing
from kpipe.models.layers import InputShape, check_known_size

STANDARDIZE = "standardize"
"""Name of the layer that treats each pixel alike, in training and in a saved network."""

Preprocessing = Callable[[Any], Any]
"""What a network's builder takes: a layer, or a function of several, to which the raw images go."""


@keras.saving.register_keras_serializable(package="kpipe")
class Standardize(keras.layers.Layer):
    """`(images - mean) / std`. The layer has no weights.

    Args:
        mean: one number, or one per channel, in units of 0..255.
        std: the same, above 0.
        dtype: of the arithmetic and of the result; leave it.

    Input: numbers of any dtype, [B, H, W, C], 0..255. Output: float32 [B, H, W, C].

    Raises:
        ConfigError: a std that is not above 0; once C is known, a mean or std of another length.
    """

    def __init__(self, mean=0.0, std=255.0, *, dtype="float32", **options):
        super().__init__(dtype=dtype, **options)
        self.mean = np.asarray(mean, "float64").tolist()
        self.std = np.asarray(std, "float64").tolist()
        if not np.all(np.asarray(self.std) > 0):
            raise ConfigError(f"{self.name}: expected a std above 0, got {self.std}.")

    def build(self, input_shape):
        height, width, channels = input_shape[1:]
        for what, values in (("mean", self.mean), ("std", self.std)):
            if np.shape(values) not in ((), (1,), (channels,)):
                expected = "1 value" if channels == 1 else f"1 or {channels} values"
                raise ConfigError(
                    f"{self.name}: expected {expected} of {what}, got {np.size(values)}: "
                    "one for each channel of the images."
                )
        known = height is not None and width is not None
        self._constant_shape = (1, height, width, channels) if known else (1, 1, 1, channels)

    @functools.cached_property
    def _constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std, float32 [1, H, W, C] where H and W are known, else [1, 1, 1, C]; made when they are first used.

        On a CPU, broadcasting over a last axis of three is slow; tiled constants cost little.
        """
        values = (np.asarray(each, "float32") for each in (self.mean, self.std))
        mean, std = (np.ascontiguousarray(np.broadcast_to(each, self._constant_shape)) for each in values)
        return mean, std

    def call(self, images):
        mean, std = self._constants
        return (ops.cast(images, self.compute_dtype) - mean) / std

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable(package="kpipe")
class SubtractMeanImage(keras.layers.Layer):
    """`images - mean image`, per pixel and channel, as AlexNet and ZFNet prepare their input.

    A. Krizhevsky, I. Sutskever, G. Hinton, NIPS 2012, section 2. The mean image is a weight that is not trained:
    float32 [H, W, C], in units of 0..255.

    Args:
        mean_initializer: the mean image at first: what `add_weight` takes. It is not part of the layer's config.
        dtype: of the arithmetic and of the result; leave it.

    Input: numbers of any dtype, [B, H, W, C], 0..255, H and W known. Output: float32 [B, H, W, C].

    Raises:
        ConfigError: H or W is unknown.
    """

    def __init__(self, *, mean_initializer="zeros", dtype="float32", **options):
        super().__init__(dtype=dtype, **options)
        self.mean_initializer = mean_initializer

    def build(self, input_shape):
        check_known_size(self.name, input_shape[1:])
        shape, start = input_shape[1:], self.mean_initializer
        self.mean = self.add_weight(shape=shape, initializer=start, trainable=False, name="mean")

    def call(self, images):
        return ops.cast(images, self.compute_dtype) - self.mean

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        # The config that Keras writes by itself leaves out the name where `__init__` has no parameter called so.
        return super().get_config()


@keras.saving.register_keras_serializable(package="kpipe")
class Whiten(keras.layers.Layer):
    """`(pixels - mean) @ matrix`, with each image as one row of D pixels: PCA, PCA whitening or ZCA.

    With the eigenvectors U and eigenvalues l of the pixels' covariance, the matrix is U for PCA, U / sqrt(l + e) for
    PCA whitening, and U / sqrt(l + e) @ U.T for ZCA, where a small e keeps noise from being blown up. Mean and matrix
    are weights that are not trained; mean: float32 [D], in units of 0..255; matrix: float32 [D, components].

    Args:
        components: how many columns the matrix has; None: D, and the result has the shape of an image.
        mean_initializer, matrix_initializer: the weights at first: what `add_weight` takes. They are not part of the
            layer's config.
        dtype: of the arithmetic and of the result; leave it.

    Input: numbers of any dtype, [B, H, W, C], 0..255, D at most 4,096. Output: float32 [B, H, W, C], or
    [B, 1, 1, components].

    Raises:
        ConfigError: H or W is unknown, more than 4,096 dimensions, or more components than dimensions.
    """

    def __init__(
        self,
        components: int | None = None,
        *,
        mean_initializer="zeros",
        matrix_initializer="identity",
        dtype="float32",
        **options,
    ):
        super().__init__(dtype=dtype, **options)
        self.components = components
        self.mean_initializer, self.matrix_initializer = mean_initializer, matrix_initializer

    def build(self, input_shape):
        check_whitening(self.name, input_shape[1:], self.components)
        dimensions = math.prod(input_shape[1:])
        components = dimensions if self.components is None else self.components
        options = {"initializer": self.mean_initializer, "trainable": False, "name": "mean"}
        self.mean = self.add_weight(shape=(dimensions,), **options)
        options = {"initializer": self.matrix_initializer, "trainable": False, "name": "matrix"}
        self.matrix = self.add_weight(shape=(dimensions, components), **options)

    def call(self, images):
        rows = ops.reshape(ops.cast(images, self.compute_dtype), (-1, self.mean.shape[0]))
        whitened = ops.matmul(rows - self.mean, self.matrix)
        return ops.reshape(whitened, (-1, *self.compute_output_shape(images.shape)[1:]))

    def compute_output_shape(self, input_shape):
        return input_shape if self.components is None else (input_shape[0], 1, 1, self.components)

    def get_config(self):
        return {**super().get_config(), "components": self.components}


def check_whitening(where: str, input_shape: InputShape, components: int | None = None) -> None:
    """Check that images (H, W, C) can be whitened.

    Raises:
        ConfigError: too many values or components, or H or W is unknown.
    """
    check_known_size(where, input_shape)
    if message := whitening_conflict(input_shape, components):
        raise ConfigError(f"{where}: {message}.")


# --- which of them, and with what -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Normalization:
    """How raw images are normalized, with constants in units of 0..255.

    | kind         | result                                   | mean        | std         | matrix |
    |--------------|------------------------------------------|-------------|-------------|--------|
    | `affine`     | (images - mean) / std                    | one, or [C] | one, or [C] |        |
    | `caffe`      | the same of the channels, the last first | one, or [C] | one, or [C] |        |
    | `mean_image` | images - mean                            | [H, W, C]   |             |        |
    | `whiten`     | (pixels - mean) @ matrix, see `Whiten`   | [D]         |             | [D, k] |
    """

    kind: str
    mean: np.ndarray | list[float] | float
    std: np.ndarray | list[float] | float = 1.0
    matrix: np.ndarray | None = None

    @property
    def per_channel(self) -> bool:
        """Whether it applies to images of any size."""
        return self.kind in ("affine", "caffe")

    def fits(self, input_shape: InputShape) -> bool:
        """Whether the kind is known and the constants are finite and fit images (H, W, C)."""
        height, width, channels = input_shape
        one_or_each = ((), (1,), (channels,))
        shapes = {
            "affine": one_or_each,
            "caffe": one_or_each,
            "mean_image": ((height, width, channels),),
            "whiten": ((height * width * channels,),),
        }
        arrays = [self.mean, self.std] + ([] if self.matrix is None else [self.matrix])
        return (
            np.shape(self.mean) in shapes.get(self.kind, ())
            and np.shape(self.std) in one_or_each
            and (self.kind == "whiten") == (self.matrix is not None)
            and (self.matrix is None or self.matrix.shape[:-1] == np.shape(self.mean))
            and all(np.isfinite(array).all() for array in arrays)
        )

    def equals(self, other: "Normalization") -> bool:
        """Whether both do the same to every image, up to the rounding of float32."""
        return self.kind == other.kind and all(
            _are_close(getattr(self, name), getattr(other, name)) for name in ("mean", "std", "matrix")
        )


def _are_close(first: np.ndarray | list[float] | float | None, second: np.ndarray | list[float] | float | None) -> bool:
    """Return whether constants agree; one number agrees with the same number for each channel."""
    if first is None or second is None:
        return first is second
    sizes = {np.size(first), np.size(second)}
    return len(sizes - {1}) <= 1 and np.allclose(np.ravel(first), np.ravel(second), rtol=1e-6, atol=1e-6)


NAMED = {
    "none": Normalization("affine", 0.0),
    "unit": Normalization("affine", 0.0, 255.0),
    # torchvision's constants of ImageNet, which are in units of 0..1.
    "imagenet": Normalization(
        "affine", [255 * mean for mean in (0.485, 0.456, 0.406)], [255 * std for std in (0.229, 0.224, 0.225)]
    ),
    # Blue first, as in the networks that the authors of VGG and GoogLeNet published.
    "caffe": Normalization("caffe", [103.939, 116.779, 123.68]),
}
"""Normalizations whose constants do not depend on the training images. The last two are for three channels."""


def make_neutral(kind: str, shape: tuple[int, int, int], components: int | None = None) -> Normalization:
    """Return what stands for a normalization whose constants have not been measured.

    Args:
        kind: the name in `data.normalize`, or `pca`.
        shape: (H, W, C).
        components: of a projection; None: all.
    """
    if kind == "mean_image":
        return Normalization("mean_image", np.broadcast_to(np.float32(0), shape))
    if kind in ("pca", "pca_whiten", "zca"):
        dimensions = math.prod(shape)
        matrix = np.eye(dimensions, components, dtype=np.float32)
        return Normalization("whiten", np.zeros(dimensions, np.float32), matrix=matrix)
    return NAMED["unit"]


def make_preprocessing(normalization: Normalization, *, portable: bool = False) -> Preprocessing:
    """Return what a network's builder takes as `preprocessing`.

    Args:
        normalization: the kind and its constants.
        portable: use plain Keras layers where each pixel is treated alike; kpipe's own are faster.
    """
    if normalization.kind == "mean_image":
        return SubtractMeanImage(mean_initializer=_starting_with(normalization.mean), name="mean_image")
    if normalization.kind == "whiten":
        dimensions, components = normalization.matrix.shape
        return Whiten(
            None if components == dimensions else components,
            mean_initializer=_starting_with(normalization.mean),
            matrix_initializer=_starting_with(normalization.matrix),
            name="whiten",
        )
    scale = _scale(normalization, portable)
    if normalization.kind == "caffe":
        # An operation of Keras, not a layer: it has no name to keep, and it is loaded without kpipe.
        return lambda images: scale(ops.flip(images, axis=-1))
    return scale


def _scale(normalization: Normalization, portable: bool) -> keras.layers.Layer:
    make = make_rescaling if portable else Standardize
    return make(normalization.mean, normalization.std, name=STANDARDIZE)


def make_rescaling(mean, std, name: str) -> keras.layers.Layer:
    """Return a layer of Keras that computes `(images - mean) / std` in float32.

    `keras.layers.Normalization` says the same, but in ONNX its constants become further inputs of the network.

    Args:
        mean: one number, or one per channel, in units of 0..255.
        std: the same, above 0.
        name: of the layer.
    """
    mean, std = (np.asarray(each, "float64") for each in (mean, std))
    return keras.layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name=name)


def is_preprocessing(layer: object) -> bool:
    """Return whether a layer normalizes raw images: one of kpipe's, or what `save_portable` writes in its place."""
    own = (Standardize, SubtractMeanImage, Whiten)
    return isinstance(layer, (*own, keras.layers.Normalization, keras.layers.Rescaling))


def flips_channels(operation: object) -> bool:
    """Return whether an operation of a network brings blue first, as the normalization `caffe` does."""
    return type(operation).__name__ == "Flip" and operation.axis in (-1, 3)


def _starting_with(constant: np.ndarray) -> Callable[..., Any]:
    """Return an initializer of a weight that has this value."""
    return lambda shape, dtype=None: ops.convert_to_tensor(constant, dtype)


def save_normalization(path: Path, normalization: Normalization) -> None:
    """Write a file that `load_normalization` reads; it is never seen half-written.

    Raises:
        OSError: it cannot be written.
    """
    arrays = {name: value for name, value in vars(normalization).items() if value is not None}
    # An open file, because np.savez adds .npz to a path that ends otherwise.
    with replacing(path) as beside, open(beside, "wb") as file:
        np.savez(file, **arrays)


def load_normalization(path: Path, input_shape: InputShape) -> Normalization | None:
    """Read what `save_normalization` wrote; None where it is missing, damaged, or not for images (H, W, C)."""
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        kept = Normalization(str(arrays["kind"]), arrays["mean"], arrays["std"], arrays.get("matrix"))
        return kept if kept.fits(input_shape) else None
    # A zip archive that asks, damaged, for an unknown compression or a password is a RuntimeError.
    except (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile):
        return None


def scale_to_unit() -> keras.layers.Layer:
    """Return the preprocessing where none is given: raw 0..255 to 0..1."""
    return keras.layers.Rescaling(1 / 255, dtype="float32", name="scale")
