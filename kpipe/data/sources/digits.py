"""What a reader of a source returns, the embedded digits, and what readers share.

N images, H height, W width, C channels.
"""

import numpy as np
import tensorflow as tf

from kpipe.data.images import Form, to_form
from kpipe.data.sources.forms import check_channels
from kpipe.data.splits import Part, Source


def read_digits(form: Form) -> Source:
    """The 1,797 handwritten digits of scikit-learn: 8x8, grey, 10 classes. Values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    check_channels(1, form.channels, "digits")
    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    part = Part(_in_form(images, form), digits.target.astype(np.int32))
    return Source({"train": part}, tuple(map(str, digits.target_names)))


def _in_form(images: np.ndarray, form: Form) -> np.ndarray:
    fitted = tf.data.Dataset.from_tensor_slices(images).map(
        lambda image: to_form(image, form), num_parallel_calls=tf.data.AUTOTUNE
    )
    return np.concatenate(list(fitted.batch(256).as_numpy_iterator()))
