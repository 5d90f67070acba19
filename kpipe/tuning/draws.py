"""Draws that cover a space: each value of a choice as often as the others, and each range evenly.

Independent draws leave gaps: of three optimizers, one is missing from six draws in a quarter of all searches. Here each
draw takes what the draws before it have taken least. So the draws cover the space however many there are, and more of
them continue where the first ended. (A Latin hypercube has to know their number, and a Sobol sequence has neither
choices of three values nor dimensions that exist only with some values of another.)
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from kpipe.config.space import Dimension, combinations, holds

_MOST_COMBINATIONS = 10_000  # that are listed to find those that are left
_ALIKE = 4  # times as much an earlier draw counts for each dimension in which it is like this one


def draw(
    dimensions: Sequence[Dimension], earlier: Sequence[Mapping[str, float]], generator: np.random.Generator
) -> dict[str, float] | None:
    """Draw a combination that has not been drawn; None where nothing is left.

    Of n draws, each of the k values of a choice gets at least floor(n / k), or seldom one less where that would repeat
    a combination. Of 2, 4, 8, ... draws, each half, quarter, eighth, ... of a range gets one. A dimension with a
    condition counts the draws that meet it. What these rules leave open separates draws that are alike in other
    dimensions: of two draws with the same optimizer, one gets a small learning rate and one a large one.

    Args:
        dimensions: those of the searched space, each after those that it depends on.
        earlier: codes of the draws so far, by name of their dimension.
        generator: decides between what is equally good.
    """
    codes = _draw(dimensions, earlier, generator)
    if codes not in earlier:
        return codes
    left = _combinations_left(dimensions, earlier)
    return _draw(dimensions, earlier, generator, left) if left else None


def _draw(
    dimensions: Sequence[Dimension],
    earlier: Sequence[Mapping[str, float]],
    generator: np.random.Generator,
    left: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Draw one dimension after the other. `left`: combinations of the finite ones, of which one must come out."""
    codes: dict[str, float] = {}
    weights = np.ones(len(earlier))
    for dimension in dimensions:
        if not holds(dimension, codes):
            continue
        name = dimension.name
        sharing = np.array([name in each for each in earlier], bool)
        taken = np.array([dimension.position(each[name]) for each in earlier if name in each])
        cuts = _cuts(dimension, len(taken))
        if not dimension.is_finite:
            inside = (np.arange(cuts[-1]) + generator.random(cuts[-1])) / cuts[-1]  # a number in each of its parts
            options = [dimension.code_at(position) for position in inside.tolist()]
        elif left is None:
            options = dimension.codes
        else:
            options = sorted({each[name] for each in left})
        positions = np.array([dimension.position(code) for code in options])
        chosen = _least_crowded(positions, taken, weights[sharing], cuts, generator)
        codes[name] = options[chosen]
        if left is not None and dimension.is_finite:
            left = [each for each in left if each.get(name) == codes[name]]
        alike = _parts(taken, cuts[0]) == _parts(positions[chosen], cuts[0])
        weights[sharing] *= np.where(alike, _ALIKE, 1)
    return codes


def _cuts(dimension: Dimension, drawn: int) -> list[int]:
    """Return into how many parts a dimension is cut, coarse to fine; the last are more than the draws so far."""
    most = len(dimension.codes) if dimension.is_finite else math.inf
    cuts = [most if dimension.kind == "choice" else min(2, most)]
    while cuts[-1] <= drawn and cuts[-1] < most:
        cuts.append(min(2 * cuts[-1], most))
    return cuts


def _parts(positions: np.ndarray, cut: int) -> np.ndarray:
    """Return in which part each position lies, where a dimension is cut into so many."""
    return np.minimum(positions * cut, cut - 1).astype(int)


def _least_crowded(
    positions: np.ndarray, taken: np.ndarray, weights: np.ndarray, cuts: Sequence[int], generator: np.random.Generator
) -> int:
    """Return the index of the position with the fewest draws in its finest part, then by weight in the coarser ones."""

    def crowd(cut: int, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(_parts(taken, cut), weights, minlength=cut)[_parts(positions, cut)]

    order = [crowd(cuts[-1]), *(crowd(cut, weights) for cut in cuts), generator.random(len(positions))]
    return int(np.lexsort(order[::-1])[0])  # which sorts by the last of its keys first


def _combinations_left(dimensions: Sequence[Dimension], earlier: Sequence[Mapping[str, float]]) -> list[dict[str, int]]:
    """Return combinations of the finite dimensions that can still be drawn, those of the least drawn values alone.

    They are new, or a number of a range beside them can be.
    """
    finite = [each for each in dimensions if each.is_finite]
    ranges = [each for each in dimensions if not each.is_finite]
    left = [
        codes
        for codes in itertools.islice(combinations(finite), _MOST_COMBINATIONS)
        if codes not in earlier or any(holds(each, codes) for each in ranges)
    ]
    drawn = Counter(item for codes in earlier for item in codes.items())
    fewest: dict[str, int] = {}
    for name, code in (item for codes in left for item in codes.items()):
        fewest[name] = min(drawn[name, code], fewest.get(name, len(earlier)))
    excess = [sum(drawn[name, code] - fewest[name] for name, code in codes.items()) for codes in left]
    least = min(excess, default=0)
    return [codes for codes, more in zip(left, excess, strict=True) if more == least]
