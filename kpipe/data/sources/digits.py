"""A source of the handwritten digits that come with scikit-learn.

N images, H height, W width, C channels.
"""

import numpy as np

from kpipe.caller import setting
from kpipe.data.arrays import ArraySplit, fit_images
from kpipe.data.pixels import check_memory
from kpipe.data.sources.request import SourceRequest, check_channels
from kpipe.data.splits import Source


def read_digits(request: SourceRequest) -> Source:
    """Return the 1,797 handwritten digits of scikit-learn: 8x8, gray, 10 classes. Values 0..16 become 0..255.

    Raises:
        DataError: gray cannot be converted to this number of channels.
    """
    from sklearn.datasets import load_digits

    check_channels(1, request.form.channels, "digits")
    digits = load_digits()
    if size := request.form.size:
        shape = (len(digits.images), size, size, request.form.channels or 1)
        check_memory(shape, "digits", f"Take a smaller {setting('image_size')}")
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    train = ArraySplit(fit_images(images, request.form), digits.target.astype(np.int32))
    return Source({"train": train}, tuple(map(str, digits.target_names)))
