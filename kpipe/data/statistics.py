"""Statistics of the training images, for the first layer of the model.

Each function reads every batch once, so that the images need not be in memory together. All sums are sums of whole
numbers and exact: the result depends neither on how the images are cut into batches nor on their order.

b images of a batch, H height, W width, C channels, D = H x W x C values of an image.
"""

from collections.abc import Iterable, Iterator

import numpy as np

SMALLEST_STD = 1e-3  # a constant channel has no spread to divide by
NOISE_FRACTION = 1e-2
"""Fraction of the mean eigenvalue that is added to each eigenvalue before whitening divides by its root. Pixels that
never change have eigenvalues of zero. The small ones belong to noise, which the division would amplify to the size of
the image."""

WHITENINGS = ("pca", "pca_whiten", "zca")
Batches = Iterable[np.ndarray]


def measure_constants(
    batches: Batches, kind: str, components: int | None = None
) -> tuple[str, np.ndarray | list[float], np.ndarray | list[float] | float, np.ndarray | None]:
    """Measure what a normalization of the training images needs.

    Args:
        batches: as `channel_statistics`.
        kind: `mean`, `standardize`, `mean_image` or one of `WHITENINGS`.
        components: as `whitening`.

    Returns:
        (what is done, mean, std, matrix), as `kpipe.models.Normalization` takes them.
    """
    if kind == "mean_image":
        return "mean_image", mean_image(batches), 1.0, None
    if kind in WHITENINGS:
        mean, matrix = whitening(batches, kind, components)
        return "whiten", mean, 1.0, matrix
    mean, std = channel_statistics(batches)
    return "affine", mean, std if kind == "standardize" else 1.0, None


def channel_statistics(batches: Batches) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, in units of 0..255.

    Args:
        batches: images uint8 [b, H, W, C], 0..255; at least one image in all.

    Returns:
        Two lists of C floats. No standard deviation is below 1e-3.

    Raises:
        ValueError: images of another dtype or shape, or none.
    """
    count, total, squares = 0, np.int64(0), np.int64(0)
    for images in _checked(batches, "channel_statistics"):
        values = images.reshape(-1, images.shape[-1])
        count += len(values)
        total = total + values.sum(axis=0, dtype=np.int64)
        squares = squares + np.square(values, dtype=np.uint16).sum(axis=0, dtype=np.int64)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.tolist(), np.maximum(std, SMALLEST_STD).tolist()


def mean_image(batches: Batches) -> np.ndarray:
    """Return the mean of each pixel in each channel, float32 [H, W, C], in units of 0..255.

    Args and Raises: as `channel_statistics`.
    """
    count, total = 0, np.int64(0)
    for images in _checked(batches, "mean_image"):
        count += len(images)
        total = total + images.sum(axis=0, dtype=np.int64)
    return (total / count).astype(np.float32)


def whitening(batches: Batches, kind: str, components: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the constants with which `(pixels - mean) @ matrix` decorrelates the values of an image.

    With the eigenvectors U and eigenvalues l of the pixels' covariance (over N, not N - 1), the largest first, and e a
    hundredth of the mean eigenvalue, the matrix is

    - pca: U;
    - pca_whiten: U / sqrt(l + e);
    - zca: U / sqrt(l + e) @ U.T, which of all whitenings changes the images least.

    The largest entry of each eigenvector is positive, so that the same images have the same matrix everywhere.

    Args:
        batches: as `channel_statistics`, best of about a thousand images: each batch costs a pass over the D x D values
            of the covariance.
        kind: one of `WHITENINGS`.
        components: number of leading eigenvectors that `pca` and `pca_whiten` keep; None: all D.

    Returns:
        (mean float32 [D] in units of 0..255, matrix float32 [D, components]).

    Raises:
        ValueError: another kind; images of another dtype or shape, or none.
    """
    if kind not in WHITENINGS:
        raise ValueError(f"whitening: expected one of {', '.join(WHITENINGS)}, got {kind!r}")
    mean, covariance = _moments(batches)
    eigenvalues, vectors = _eigenvectors(covariance)
    matrix = vectors
    if kind != "pca":
        noise = max(NOISE_FRACTION * eigenvalues.mean(), SMALLEST_STD**2)
        matrix = vectors / np.sqrt(eigenvalues + noise)
    matrix = matrix @ vectors.T if kind == "zca" else matrix[:, :components]
    return mean.astype(np.float32), np.ascontiguousarray(matrix, np.float32)


def _moments(batches: Batches) -> tuple[np.ndarray, np.ndarray]:
    """Return mean [D] and covariance [D, D] of the pixels, float64."""
    count, total, products = 0, np.float64(0), np.empty(0)
    for images in _checked(batches, "whitening"):
        # In float64 every sum of products of bytes is exact. In float32 it is exact for 256 rows, and such small blocks
        # were slower for 32x32x3 (1.6 against 1.0 s for 8,192 images), since each adds D x D values.
        rows = images.reshape(len(images), -1).astype(np.float64)
        if not count:
            products = np.zeros((rows.shape[1], rows.shape[1]))
        count += len(rows)
        total = total + rows.sum(axis=0)
        products += rows.T @ rows
    mean = total / count
    return mean, products / count - np.outer(mean, mean)


def _eigenvectors(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues [D], at least zero, the largest first, and eigenvectors in the columns of [D, D]."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0), vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return eigenvalues, vectors * np.sign(largest)


def _checked(batches: Batches, where: str) -> Iterator[np.ndarray]:
    """Yield the batches that are not empty, after checking that they are images."""
    found = False
    for images in batches:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"{where}: expected uint8 images [b, H, W, C], got {images.dtype} {list(images.shape)}")
        if len(images):
            found = True
            yield images
    if not found:
        raise ValueError(f"{where}: expected at least one image, got none")
