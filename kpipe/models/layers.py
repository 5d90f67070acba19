"""What the networks share: the normalisation inside the model, and the checks of a builder's arguments.

Legend of the shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from kpipe.errors import ConfigError
from kpipe.tables import MODELS

InputShape = Sequence[int | None]


@keras.saving.register_keras_serializable(package="kpipe")
class Standardize(keras.layers.Layer):
    """`(images - mean) / std`, in float32 whatever the global dtype policy is.

    bfloat16 keeps eight bits of a number: raw values rounded to it before the mean is taken off lose detail
    that no later layer can bring back. The layer has no weights.

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


def scale_to_unit() -> keras.layers.Layer:
    """The preprocessing where none is given: raw 0..255 to 0..1, in float32 whatever the global policy is."""
    return keras.layers.Rescaling(1 / 255, dtype="float32", name="scale")


def make_logits(classes: int) -> keras.layers.Layer:
    """The last layer of every network: float32 [B, K] without softmax, also under mixed precision."""
    return keras.layers.Dense(classes, dtype="float32", name="logits")


def check_arguments(network: str, input_shape: InputShape, classes: int, *, fixed_size: bool) -> None:
    """Raises ConfigError where `network`, a name of `kpipe.tables.MODELS`, cannot take this input and K.

    `fixed_size` says that H and W must be known, because the network ends in dense layers over positions.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or not shape[2]:
        raise ConfigError(f"{network}: expected an input_shape (height, width, channels), got {shape}.")
    if fixed_size and None in shape:
        raise ConfigError(f"{network}: expected a known height and width before dense layers, got {shape}.")
    smallest = MODELS[network].smallest_size
    if any(side is not None and side < smallest for side in shape[:2]):
        size = f"{shape[0]}x{shape[1]}"
        raise ConfigError(f"{network}: expected an input of at least {smallest}x{smallest} pixels, got {size}.")
    if classes < 1:
        raise ConfigError(f"{network}: expected at least 1 class, got {classes}.")


def check_choice(network: str, option: str, value: str, known: Iterable[str]) -> None:
    """Raises ConfigError where an option of `network` is none of the known names."""
    known = list(known)
    if value not in known:
        names = " or ".join(repr(name) for name in known)
        raise ConfigError(f"{network}: expected {option} {names}, got {value!r}.")
