"""Cuts a set into train, validation and test where it has no such splits of its own."""

import math

import numpy as np

from kpipe.data.reading import read_encoded
from kpipe.data.splits import (
    AnyPart,
    Files,
    Part,
    Records,
    Source,
    Splits,
    readable_numbers,
)
from kpipe.errors import some

SPLIT_SEED = 0  # one split for all runs, whatever their seed: results stay comparable


def balanced_weights(part: AnyPart, classes: int) -> np.ndarray:
    """Weights by which each class counts as much as any other: N / (K x images of the class), float32 [K].

    The mean weight of the readable images is 1. A class without images has weight 0.
    """
    if isinstance(part, Records):
        labels = np.concatenate([found for _, found in read_encoded(part).batch(1024).as_numpy_iterator()])
    else:
        labels = part.labels[readable_numbers(part)]
    counts = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), classes * counts, out=np.zeros(classes), where=counts > 0)
    return weights.astype(np.float32)


def split_source(source: Source, validation: float, test: float) -> Splits:
    parts, notes = dict(source.parts), list(source.notes)
    if set(parts) == {"train"}:
        shares = {"test": test, "validation": validation}
    else:
        shares = {"validation": validation} if "validation" not in parts else {}
    if "test" not in parts and "test" not in shares:
        notes.append("there is no test part: the set has a validation part, but none for the test")
    shares = {name: share for name, share in shares.items() if share > 0}
    if shares and isinstance(parts["train"], Records):
        parts |= _cut(parts["train"], shares)
        notes.append(f"the {' and '.join(shares)} part is cut off the end of the stream, without a look at its classes")
    elif shares:
        carved, small = _carve(parts["train"], shares)
        parts |= carved
        if small:
            names = some([source.class_names[k] for k in small])
            notes.append(f"too few images to split, all of them in train: {names}")
    for name in shares:
        if name not in parts:
            notes.append(f"there is no {name} part: too few images to split")
    others = parts.get("validation"), parts.get("test")
    return Splits(parts["train"], *others, source.class_names, tuple(notes))


def _cut(stream: Records, shares: dict[str, float]) -> dict[str, Records]:
    """Cuts `shares` off the end of a stream, one after the other."""
    parts, stop = {}, len(stream)
    for name, share in shares.items():
        start = stop - _count_of(share, stop)
        if start < stop:
            parts[name], stop = stream.slice(start, stop), start
    return {"train": stream.slice(0, stop), **parts}


def _count_of(share: float, images: int) -> int:
    # Rounded first: 0.07 * 100 is a little more than 7.
    return math.ceil(round(share * images, 6))


def _carve(part: Part | Files, shares: dict[str, float]) -> tuple[dict[str, Part | Files], list[int]]:
    """Cuts `shares` out of a part, one after the other; also returns the classes too small to be split."""
    counts = np.bincount(part.labels)
    small = np.flatnonzero((counts > 0) & (counts <= len(shares)))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(part))
    rest, chosen = order[~np.isin(part.labels[order], small)], {}
    for reserve, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        taken = _stratified(part.labels[rest], _count_of(share, len(rest)), reserve)
        chosen[name], rest = rest[taken], rest[~taken]
    cut = np.concatenate(list(chosen.values()))
    chosen["train"] = order[~np.isin(order, cut)]
    parts = {name: part.subset(numbers) for name, numbers in chosen.items() if len(numbers)}
    return parts, small.tolist()


def _stratified(labels: np.ndarray, size: int, reserve: int) -> np.ndarray:
    """A mask of `size` labels in which classes keep their shares; each class leaves `reserve` behind."""
    counts = np.bincount(labels)
    quota = size * counts / max(1, len(labels))
    take = np.floor(quota).astype(int)
    take[np.argsort(take - quota, kind="stable")[: size - take.sum()]] += 1
    take = np.minimum(take, np.maximum(counts - reserve, 0))
    by_class = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), int)
    rank[by_class] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
    return rank < take[labels]
