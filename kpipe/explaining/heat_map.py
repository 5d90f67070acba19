"""Where in a larger image a network sees a class: the fully convolutional form of a classifier, scaled up.

J. Long, E. Shelhamer, T. Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, section 3: dense
layers become convolutions, and a transposed convolution brings their scores to the size of the image. Its kernel is
that of a bilinear interpolation, where the paper's begins.

H height, W width, C channels, K classes, h and w positions of the network.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kpipe.errors import ConfigError
from kpipe.models.fully_convolutional import build_class_map
from kpipe.models.geometry import measure


def compute_heat_map(model: keras.Model, image: np.ndarray, labels: Sequence[int] | None = None) -> np.ndarray:
    """Return the probability of classes at each pixel of an image.

    Args:
        model: a network for images [B, I, J, C].
        image: [H, W, C], 0..255, H at least I and W at least J.
        labels: which classes, n of 0..K - 1; default: all, n = K.

    Returns:
        float32 [H, W, n]. Those of all classes sum to 1.

    Raises:
        ConfigError: the image is too small, or a layer of the network needs images of one size.
    """
    sides, least = image.shape[:2], model.input_shape[1:3]
    if any(side < (seen or 1) for side, seen in zip(sides, least, strict=True)):
        shown = " pixels, got ".join("x".join(map(str, each)) for each in (least, sides))
        raise ConfigError(f"image: expected at least {shown}. Scale it up, as the network has seen its images")
    logits = build_class_map(model)(image[None].astype(np.float32), training=False)
    probabilities = ops.softmax(ops.cast(logits, "float32"))
    network = keras.Model(model.inputs[0], model.outputs[0])  # without auxiliary heads
    stride = [row.total_stride for row in measure(network) if row.total_stride][-1]
    maps = ops.convert_to_numpy(probabilities)[0]
    return upsample(maps if labels is None else maps[..., list(labels)], stride, image.shape[:2])


def upsample(maps: np.ndarray, stride: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Scale maps up by a transposed convolution with a bilinear kernel, as large as an image.

    Args:
        maps: float32 [h, w, K].
        stride: pixels from one position to the next, down and right.
        size: (H, W) of the image, in whose middle the positions lie.

    Returns:
        float32 [H, W, K]. Beyond the outermost positions, these count.
    """
    kernel = np.outer(*(bilinear_kernel(each) for each in stride)).astype(np.float32)[..., None, None]
    planes = np.moveaxis(np.pad(maps, ((1, 1), (1, 1), (0, 0)), mode="edge"), -1, 0)[..., None]
    scaled = ops.conv_transpose(planes, kernel, strides=tuple(stride), padding="same")
    scaled = np.moveaxis(ops.convert_to_numpy(scaled)[..., 0], 0, -1)
    whole = scaled[stride[0] : -stride[0], stride[1] : -stride[1]]  # without the edges that were added
    missing = [max(0, size[axis] - whole.shape[axis]) for axis in (0, 1)]
    whole = np.pad(whole, [*((each // 2, each - each // 2) for each in missing), (0, 0)], mode="edge")
    top, left = ((whole.shape[axis] - size[axis]) // 2 for axis in (0, 1))
    return whole[top : top + size[0], left : left + size[1]]


def bilinear_kernel(stride: int) -> np.ndarray:
    """Return the kernel of a linear interpolation by a whole factor, float64 [k]."""
    size = 2 * stride - stride % 2
    center = stride - 1 if size % 2 else stride - 0.5
    return 1 - np.abs(np.arange(size) - center) / stride
