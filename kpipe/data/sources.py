"""What a reader of a source returns, the embedded digits, and what readers share.

N images, H height, W width, C channels.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from kpipe.data.images import Form, to_form
from kpipe.data.parts import AnyPart, Part
from kpipe.errors import DataError

PART_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found: `parts` has "train" and perhaps "validation" and "test"."""

    parts: dict[str, AnyPart]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Splits:
    """A whole set. A part that does not exist is None; `notes` are lines for the user."""

    train: AnyPart
    validation: AnyPart | None
    test: AnyPart | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    image_size: int | None = None
    """Pixels a side of what the network sees; None: images are as large as they are kept."""

    @property
    def parts(self) -> dict[str, AnyPart]:
        """Those that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what the network sees."""
        height, width, channels = self.train.shape
        return (self.image_size or height, self.image_size or width, channels)


def read_digits(form: Form) -> Source:
    """The 1,797 handwritten digits of scikit-learn: 8x8, grey, 10 classes. Values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    check_channels(1, form.channels, "digits")
    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    part = Part(_in_form(images, form), digits.target.astype(np.int32))
    return Source({"train": part}, tuple(map(str, digits.target_names)))


def check_channels(present: int, channels: int | None, where: str) -> None:
    """Refuses a number of channels that cannot be made of those that the images have."""
    possible = (1, 3) if present in (1, 3) else (present,)
    if channels not in (None, *possible):
        known = " or ".join(map(str, possible))
        raise DataError(f"{where}: expected {known} for data.channels, got {channels}. Leave it out")


def _in_form(images: np.ndarray, form: Form) -> np.ndarray:
    fitted = tf.data.Dataset.from_tensor_slices(images).map(
        lambda image: to_form(image, form), num_parallel_calls=tf.data.AUTOTUNE
    )
    return np.concatenate(list(fitted.batch(256).as_numpy_iterator()))
