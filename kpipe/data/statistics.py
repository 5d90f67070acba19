"""Mean and standard deviation of the training images, for the first layer of the model."""

import numpy as np

SMALLEST_STD = 1e-3  # a constant channel has no spread to divide by
CHUNK = 1024  # images a time, so that the wider integers need little memory


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, exact (integer sums), in units of 0..255.

    Args:
        images: uint8 [N, H, W, C], 0..255, N at least 1.

    Returns:
        Two lists of C floats. No standard deviation is below 1e-3.

    Raises:
        ValueError: `images` has another dtype or shape, or no image.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"channel_statistics: expected uint8 images [N, H, W, C], got {images.dtype} {list(images.shape)}"
        )
    channels = images.shape[-1]
    total = np.zeros(channels, np.int64)
    squares = np.zeros(channels, np.int64)
    for start in range(0, len(images), CHUNK):
        values = images[start : start + CHUNK].reshape(-1, channels).astype(np.int64)
        total += values.sum(axis=0)
        squares += (values * values).sum(axis=0)
    count = images.size // channels
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.tolist(), np.maximum(std, SMALLEST_STD).tolist()
