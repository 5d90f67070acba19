"""The next trial by a Gaussian process: the combination that promises the largest improvement.

The process predicts a mean and a standard deviation of the score everywhere. Expected improvement weighs both: it is
large where the mean is good, and where little is known (Jones, Schonlau and Welch 1998, "Efficient Global Optimization
of Expensive Black-Box Functions").

The process has parameters: in each key, how far apart two trials may be and still have similar scores, and how noisy
scores are. Few trials do not determine them. So the improvement is averaged over many guesses, each weighted by how
well it explains the scores (Snoek, Larochelle and Adams 2012, "Practical Bayesian Optimization of Machine Learning
Algorithms").
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist
from scipy.stats import norm, qmc
from threadpoolctl import threadpool_limits

from kpipe.config.space import Dimension, holds

_GUESSES = 64  # of length scales and noise
_AVERAGED = 16  # of these, the best, over which the improvement is averaged
_LENGTH, _LENGTH_OF_CHOICE = 0.3, 1.0  # medians of length scales; a range is 1 long, values of a choice are 1 apart
_LENGTH_SPREAD = 0.7  # standard deviation of their logarithms
_NOISE, _NOISE_SPREAD = 0.02, 1.5  # the same of the noise's variance, relative to that of the process
_JITTER = 1e-8  # added to the variance, for rounding

_ANYWHERE = 512  # candidates all over the space; a power of 2, as a Sobol sequence wants it
_BEST, _NEIGHBORS = 5, 20  # trials that have neighbors among the candidates; how many for each of the distances
_DISTANCES = (0.1, 0.03, 0.01)  # standard deviations, where a range is 1 long
_OTHER_VALUE = 0.1  # probability that a neighbor has another value of a choice


@threadpool_limits.wrap(limits=1)  # the matrices are so small that several threads only wait for each other
def suggest(
    dimensions: Sequence[Dimension],
    tried: Sequence[Mapping[str, float]],
    scores: Sequence[float | None],
    generator: np.random.Generator,
) -> dict[str, float] | None:
    """Return the combination to try next; None where no other one is found.

    Args:
        dimensions: those of the searched space, each after those that it depends on.
        tried: codes of the trials so far, by name of their dimension.
        scores: of these trials. Smaller is better, infinity is a failure, None a trial that is still running. At least
            one is finite.
        generator: draws candidates and guesses.
    """
    order = sorted(range(len(tried)), key=lambda n: scores[n] is None)  # running trials come last
    trials = [tried[n] for n in order]
    targets = _targets(np.array([scores[n] for n in order if scores[n] is not None]))
    best = [trials[n] for n in np.argsort(targets, kind="stable")[:_BEST]]
    candidates = [codes for codes in _candidates(dimensions, best, generator) if codes not in tried]
    if not candidates:
        return None
    among, across = _squares(dimensions, trials, trials), _squares(dimensions, trials, candidates)
    processes = [_Process(among, targets, *guess) for guess in _guesses(dimensions, generator)]
    likely = sorted(processes, key=lambda process: -process.log_likelihood)[:_AVERAGED]
    weights = [math.exp(process.log_likelihood - likely[0].log_likelihood) for process in likely]
    improvements = [process.expected_improvement(across) for process in likely]
    return candidates[int(np.argmax(np.average(improvements, axis=0, weights=weights)))]


def _targets(scores: np.ndarray) -> np.ndarray:
    """Return scores with mean 0 and standard deviation 1.

    None is worse than the median by more than the best is better, and failures are as bad. Otherwise one terrible score
    would make all others look alike.
    """
    finite = scores[np.isfinite(scores)]
    cut = np.minimum(scores, 2 * np.median(finite) - finite.min())
    return (cut - cut.mean()) / (cut.std() or 1)


def _candidates(
    dimensions: Sequence[Dimension], best: Sequence[Mapping[str, float]], generator: np.random.Generator
) -> list[dict[str, float]]:
    """Return combinations all over the space, and neighbors of the best trials."""
    positions = [qmc.Sobol(len(dimensions), rng=generator).random(_ANYWHERE)]
    shape = (_NEIGHBORS, len(dimensions))
    is_choice = np.array([dimension.kind == "choice" for dimension in dimensions])
    for codes, distance in itertools.product(best, _DISTANCES):
        center = [each.position(codes[each.name]) if each.name in codes else math.nan for each in dimensions]
        neighbors = np.clip(center + distance * generator.normal(size=shape) * ~is_choice, 0, 1)
        is_free = np.isnan(neighbors) | (is_choice & (generator.random(shape) < _OTHER_VALUE))
        positions.append(np.where(is_free, generator.random(shape), neighbors))
    return [_combination(dimensions, each) for each in np.concatenate(positions).tolist()]


def _combination(dimensions: Sequence[Dimension], positions: Sequence[float]) -> dict[str, float]:
    """Return the codes at these positions, of the dimensions whose conditions they meet."""
    codes: dict[str, float] = {}
    for dimension, position in zip(dimensions, positions, strict=True):
        if holds(dimension, codes):
            codes[dimension.name] = dimension.code_at(position)
    return codes


def _squares(
    dimensions: Sequence[Dimension], some: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]
) -> np.ndarray:
    """Return squared distances, [dimensions, some, others]; the two ends of a range and two choices are 1 apart."""
    return np.array([cdist(_columns(each, some), _columns(each, others), "sqeuclidean") for each in dimensions])


def _columns(dimension: Dimension, trials: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Return coordinates of trials, [trials, columns]: a position, or one column for each value of a choice.

    Where a dimension does not apply, all trials are the same. What separates them from the others is the choice on
    which the dimension depends.
    """
    codes = [trial.get(dimension.name) for trial in trials]
    if dimension.kind == "choice":
        return np.array([[code == value for value in dimension.codes] for code in codes]) / math.sqrt(2)
    return np.array([[0.5 if code is None else dimension.position(code)] for code in codes])


def _guesses(dimensions: Sequence[Dimension], generator: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """Return guesses of the length scale of each dimension and of the noise's variance, drawn from their priors."""
    positions = qmc.Sobol(len(dimensions) + 1, rng=generator).random(_GUESSES)
    deviations = norm.ppf(np.clip(positions, 0.001, 0.999))
    medians = [_LENGTH_OF_CHOICE if dimension.kind == "choice" else _LENGTH for dimension in dimensions]
    lengths = medians * np.exp(_LENGTH_SPREAD * deviations[:, :-1])
    return list(zip(lengths, _NOISE * np.exp(_NOISE_SPREAD * deviations[:, -1]), strict=True))


class _Process:
    """A Gaussian process with given length scales and noise.

    Args:
        among: squared distances between trials, [dimensions, trials, trials]. Trials that are running come last.
        targets: of the trials that have ended.
        lengths: length scale of each dimension.
        noise: variance of the noise, relative to that of the process.
    """

    def __init__(self, among: np.ndarray, targets: np.ndarray, lengths: np.ndarray, noise: float):
        self._lengths = lengths
        covariance = _matern(among, lengths)
        self._root = np.linalg.cholesky(covariance + (noise + _JITTER) * np.eye(len(covariance)))
        count = len(targets)
        ended = self._root[:count, :count]  # the root of their block
        self._whitened = solve_triangular(ended, targets, lower=True)
        # The variance of the process has the value that explains the targets best, drawn a little towards 1.
        self._variance = (self._whitened @ self._whitened + 1) / (count + 1)
        self.log_likelihood = -(count + 1) / 2 * math.log(self._variance) - np.log(np.diag(ended)).sum()
        residuals = (noise + _JITTER) * solve_triangular(ended, self._whitened, lower=True, trans=1)
        self._best = (targets - residuals).min()

    def expected_improvement(self, across: np.ndarray) -> np.ndarray:
        """Return by how much each candidate is better than the best mean, on average; a worse one counts 0.

        A running trial counts as if its score were the predicted one. That leaves the means as they are, and says that
        less will be learned next to it.

        Args:
            across: squared distances between trials and candidates, [dimensions, trials, candidates].
        """
        whitened = solve_triangular(self._root, _matern(across, self._lengths), lower=True)
        means = self._whitened @ whitened[: len(self._whitened)]
        stds = np.sqrt(self._variance * np.maximum(1 - (whitened**2).sum(axis=0), _JITTER))
        gains = (self._best - means) / stds
        return stds * (gains * norm.cdf(gains) + norm.pdf(gains))


def _matern(squares: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the Matern 5/2 covariance at squared distances, [dimensions, ...]."""
    distance = np.sqrt(5 * np.tensordot(lengths**-2.0, squares, 1))
    return (1 + distance + distance**2 / 3) * np.exp(-distance)
