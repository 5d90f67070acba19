"""Division of labeled images in which each class keeps its fraction."""

import math
from collections.abc import Mapping

import numpy as np

SPLIT_SEED = 0  # the same for all runs, whatever their seed, so that results stay comparable


def divide_by_class(labels: np.ndarray, fractions: Mapping[str, float]) -> tuple[dict[str, np.ndarray], list[int]]:
    """Cut named fractions off, one after the other, shuffled and stratified, the same way each time.

    Args:
        labels: int32 [N].
        fractions: name -> fraction of what those before it have left, rounded up.

    Returns:
        The numbers of the images of each name, int64 [n], and of "train", which is the rest; the classes with too few
        images to be divided, which go whole to train.
    """
    counts = np.bincount(labels)
    small = np.flatnonzero((counts > 0) & (counts <= len(fractions)))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    rest, chosen = order[~np.isin(labels[order], small)], {}
    for reserve, (name, fraction) in zip(range(len(fractions), 0, -1), fractions.items(), strict=True):
        taken = _stratify(labels[rest], count_of(fraction, len(rest)), reserve)
        chosen[name], rest = rest[taken], rest[~taken]
    cut = np.concatenate(list(chosen.values()))
    return {**chosen, "train": order[~np.isin(order, cut)]}, small.tolist()


def count_of(fraction: float, images: int) -> int:
    """Return how many images a fraction is, rounded up."""
    # Rounded first: 0.07 * 100 is a little more than 7.
    return math.ceil(round(fraction * images, 6))


def _stratify(labels: np.ndarray, size: int, reserve: int) -> np.ndarray:
    """Return a mask of `size` labels in which classes keep their fractions. Each leaves out `reserve` images."""
    counts = np.bincount(labels)
    quota = size * counts / max(1, len(labels))
    take = np.floor(quota).astype(int)
    take[np.argsort(take - quota, kind="stable")[: size - take.sum()]] += 1
    take = np.minimum(take, np.maximum(counts - reserve, 0))
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), int)
    rank[by_class] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
    return rank < take[labels]
