"""The layers that see the raw images first: a model takes 0..255 and normalises them itself.

All of them compute in float32 whatever the global dtype policy is: bfloat16 keeps eight bits of a number, and raw
values rounded to it before the mean is taken off lose detail that no later layer can bring back.

Legend of the shapes: B batch, H height, W width, C channels, D = H x W x C.
"""

import math

import keras
import numpy as np
from keras import ops

from kpipe.errors import ConfigError
from kpipe.models.layers import InputShape, check_known_size

MOST_DIMENSIONS = 4096
"""The largest D that is whitened: its matrix is D x D."""


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
        self._mean_constant = self._constant("mean", self.mean, input_shape)
        self._std_constant = self._constant("std", self.std, input_shape)

    def _constant(self, what: str, values: float | list[float], input_shape: InputShape) -> np.ndarray:
        """float32 [1, H, W, C] where H and W are known, else [1, 1, 1, C].

        On a CPU, broadcasting over a last axis of three is slow; tiled constants cost little.
        """
        height, width, channels = input_shape[1:]
        if np.shape(values) not in ((), (1,), (channels,)):
            raise ConfigError(
                f"{self.name}: expected 1 or {channels} values of {what}, got {np.size(values)}: "
                "one for each channel of the images."
            )
        known = height is not None and width is not None
        shape = (1, height, width, channels) if known else (1, 1, 1, channels)
        return np.ascontiguousarray(np.broadcast_to(np.asarray(values, "float32"), shape))

    def call(self, images):
        images = ops.cast(images, self.compute_dtype)
        return (images - self._mean_constant) / self._std_constant

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable(package="kpipe")
class SubtractMeanImage(keras.layers.Layer):
    """`images - mean image`, per pixel and channel, as AlexNet and ZFNet prepare their input.

    A. Krizhevsky, I. Sutskever, G. Hinton, NIPS 2012, section 2. The mean image is a weight that is not trained,
    zero until `set_weights([mean])`; mean: float32 [H, W, C], in units of 0..255.

    Input: numbers of any dtype, [B, H, W, C], 0..255, H and W known. Output: float32 [B, H, W, C].

    Raises:
        ConfigError: H or W is unknown.
    """

    def __init__(self, *, dtype="float32", **options):
        super().__init__(dtype=dtype, **options)

    def build(self, input_shape):
        check_known_size(self.name, input_shape[1:])
        self.mean = self.add_weight(shape=input_shape[1:], initializer="zeros", trainable=False, name="mean")

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

    With the eigenvectors U and eigenvalues l of the pixels' covariance, the matrix is U for PCA, U / sqrt(l) for PCA
    whitening, and U / sqrt(l) @ U.T for ZCA. Mean and matrix are weights that are not trained, zero and identity
    until `set_weights([mean, matrix])`; mean: float32 [D], in units of 0..255; matrix: float32 [D, components].

    Args:
        components: how many columns the matrix has; None: D, and the result has the shape of an image.
        dtype: of the arithmetic and of the result; leave it.

    Input: numbers of any dtype, [B, H, W, C], 0..255, D at most 4,096. Output: float32 [B, H, W, C], or
    [B, 1, 1, components].

    Raises:
        ConfigError: H or W is unknown, more than 4,096 dimensions, or more components than dimensions.
    """

    def __init__(self, components: int | None = None, *, dtype="float32", **options):
        super().__init__(dtype=dtype, **options)
        self.components = components

    def build(self, input_shape):
        check_known_size(self.name, input_shape[1:])
        dimensions = math.prod(input_shape[1:])
        if dimensions > MOST_DIMENSIONS:
            size = "x".join(str(side) for side in input_shape[1:])
            raise ConfigError(
                f"{self.name}: expected images of at most {MOST_DIMENSIONS:,} numbers to whiten, got {size} = "
                f"{dimensions:,}. Take smaller images, or a normalisation per channel."
            )
        components = dimensions if self.components is None else self.components
        if not 1 <= components <= dimensions:
            raise ConfigError(f"{self.name}: expected 1 to {dimensions:,} components, got {components:,}.")
        self.mean = self.add_weight(shape=(dimensions,), initializer="zeros", trainable=False, name="mean")
        shape = (dimensions, components)
        self.matrix = self.add_weight(shape=shape, initializer="identity", trainable=False, name="matrix")

    def call(self, images):
        rows = ops.reshape(ops.cast(images, self.compute_dtype), (-1, self.mean.shape[0]))
        whitened = ops.matmul(rows - self.mean, self.matrix)
        return ops.reshape(whitened, (-1, *self.compute_output_shape(images.shape)[1:]))

    def compute_output_shape(self, input_shape):
        return input_shape if self.components is None else (input_shape[0], 1, 1, self.components)

    def get_config(self):
        return {**super().get_config(), "components": self.components}


def scale_to_unit() -> keras.layers.Layer:
    """The preprocessing where none is given: raw 0..255 to 0..1."""
    return keras.layers.Rescaling(1 / 255, dtype="float32", name="scale")
