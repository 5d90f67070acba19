"""Data: from a source's name to batches.

`load_dataset` reads a source into memory and splits it; `make_pipeline` and `make_evaluation_pipeline` turn a
part into batches.
"""

import math

import numpy as np
from pydantic import ValidationError

from kpipe.data.augment import Augmentation, flip_horizontal, pad_crop, translate
from kpipe.data.pipeline import count_steps_per_epoch, make_evaluation_pipeline, make_pipeline
from kpipe.data.sources import Part, Source, Splits
from kpipe.data.statistics import WHITENINGS, channel_statistics, mean_image, whitening
from kpipe.errors import ConfigError
from kpipe.tables import SOURCES, parse_source, resolve

__all__ = [
    "WHITENINGS",
    "Augmentation",
    "Part",
    "Splits",
    "channel_statistics",
    "count_steps_per_epoch",
    "flip_horizontal",
    "load_dataset",
    "make_evaluation_pipeline",
    "make_pipeline",
    "mean_image",
    "pad_crop",
    "translate",
    "whitening",
]

SPLIT_SEED = 0  # one split for all runs, whatever their seed: results stay comparable


def load_dataset(
    source: str = "digits",
    *,
    image_size: int | None = None,
    channels: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    download: bool = True,
    **options,
) -> Splits:
    """Reads a source into memory: images uint8 [N, H, W, C], 0..255, labels int32 [N].

    Parts that the source has are kept. A source without parts is split, stratified and shuffled, the same way
    each time; where only the validation part is missing, it is carved out of train. A class with fewer images
    than parts goes whole to train.

    Args:
        source: `digits`, `synthetic`, `folder:<path>` or `tfds:<name>`.
        image_size: the shorter side is scaled to it and the centre cropped; None: as the images are.
        channels: 1 or 3; None: as the source is.
        validation: share of what the test part leaves, rounded up; 0 leaves the part out.
        test: share of all images, rounded up; 0 leaves the part out.
        download: whether a set of TensorFlow Datasets that is not prepared may be downloaded.
        options: the options of the source's row in `kpipe.tables.SOURCES`.

    Raises:
        ConfigError: an unknown source, or an argument out of range.
        DataError: the data are not there or cannot be used.
    """
    row, argument = parse_source(source)
    arguments = [argument] if row.argument else []
    _check_arguments(image_size, channels, {"validation": validation, "test": test})
    try:
        options = row.options(**options).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if row is SOURCES["tfds"]:
        options["download"] = download
    found = resolve(row)(*arguments, image_size=image_size, channels=channels, **options)
    return _split(found, validation, test)


def _check_arguments(image_size: int | None, channels: int | None, shares: dict[str, float]) -> None:
    for name, value in (("image_size", image_size), ("channels", channels)):
        if value is not None and value < 1:
            raise ConfigError(f"data.{name}: expected at least 1, got {value}")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ConfigError(f"data.split.{name}: expected a share of at least 0 and below 1, got {share}")


def _split(source: Source, validation: float, test: float) -> Splits:
    parts, notes = dict(source.parts), list(source.notes)
    if set(parts) == {"train"}:
        shares = {"test": test, "validation": validation}
    else:
        shares = {"validation": validation} if "validation" not in parts else {}
    if "test" not in parts and "test" not in shares:
        notes.append("there is no test part: the set has a validation part, but none for the test")
    shares = {name: share for name, share in shares.items() if share > 0}
    if shares:
        carved, small = _carve(parts["train"], shares)
        parts |= carved
        if small:
            notes.append(_small_note([source.class_names[k] for k in small]))
    for name in shares:
        if name not in parts:
            notes.append(f"there is no {name} part: too few images to split")
    others = parts.get("validation"), parts.get("test")
    return Splits(parts["train"], *others, source.class_names, tuple(notes))


def _carve(part: Part, shares: dict[str, float]) -> tuple[dict[str, Part], list[int]]:
    """Cuts `shares` out of a part, one after the other; also returns the classes too small to be split."""
    counts = np.bincount(part.labels)
    small = np.flatnonzero((counts > 0) & (counts <= len(shares)))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(part))
    rest, chosen = order[~np.isin(part.labels[order], small)], {}
    for reserve, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
        # Rounded first: 0.07 * 100 is a little more than 7.
        size = math.ceil(round(share * len(rest), 6))
        taken = _stratified(part.labels[rest], size, reserve)
        chosen[name], rest = rest[taken], rest[~taken]
    cut = np.concatenate(list(chosen.values()))
    chosen["train"] = order[~np.isin(order, cut)]
    parts = {name: Part(part.images[i], part.labels[i]) for name, i in chosen.items() if len(i)}
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


def _small_note(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"too few images to split, all of them in train: {shown}"
