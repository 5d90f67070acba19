"""Train, validation and test from the splits of a source."""

import numpy as np

from kpipe.caller import setting
from kpipe.data.splits import Source, Split, Splits
from kpipe.errors import some

_TEST_FRACTION = 0.2


def split_source(source: Source, validation: float, test: float | None) -> Splits:
    """Keep the splits that a source has, and take those that it lacks from train.

    Args:
        source: splits that a reader found.
        validation: fraction of what the test split leaves, rounded up; 0 leaves the split out.
        test: fraction of all images, rounded up; 0 leaves the split out. None: a fifth where the source has no splits
            at all, and else no test split but the source's own.
    """
    splits, notes, fractions = dict(source.splits), list(source.notes), {}
    has_splits = len(splits) > 1
    if "test" in splits:
        if test is not None:
            notes.append(f"{setting('split.test')} is not used: the data has a test split of its own")
    elif test is None and has_splits:
        notes.append(
            f"there is no test split: the data has train and validation only. "
            f"{setting('split.test', 0.2)} takes one from the training split"
        )
    else:
        fractions["test"] = _TEST_FRACTION if test is None else test
    if "validation" not in splits:
        fractions["validation"] = validation
    fractions = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    for name in fractions if has_splits else ():
        notes.append(
            f"the {name} split is taken from the training split ({setting(f'split.{name}')}): the data has "
            "none of its own"
        )
    if fractions:
        divided, small, note = splits["train"].divide(fractions)
        splits |= divided
        notes += [note] if note else []
        if small:
            names = some([source.class_names[k] for k in small])
            notes.append(f"too few images to split, all of them in train: {names}")
    notes += [f"there is no {name} split: too few images to split" for name in fractions if name not in splits]
    held_out = splits.get("validation"), splits.get("test")
    return Splits(splits["train"], *held_out, source.class_names, tuple(notes), contents=source.contents)


def balanced_weights(split: Split, classes: int) -> np.ndarray:
    """Return weights with which all classes count equally: N / (k x images of the class), float32 [K].

    They are scikit-learn's `compute_class_weight("balanced")`: k is the number of classes that have images, and the
    mean weight of the readable images is 1. A class without images has weight 0.
    """
    counts = split.count_labels(classes)
    present = counts > 0
    weights = np.divide(counts.sum(), present.sum() * counts, out=np.zeros(classes), where=present)
    return weights.astype(np.float32)
