"""What a network says of image files, and of the images of a split that are worth a look.

B batch, n images, H height, W width, C channels, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kpipe.data.splits import Split
from kpipe.evaluation.metrics import Outcomes, compute_probabilities, concatenate, score_batch
from kpipe.evaluation.thresholds import Thresholds

_MOST_CURVES = 20  # classes
NUM_EXAMPLES = 25
"""Images of a figure, and mistakes that an evaluation lists."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image file."""

    file: str
    """The path as it was given or found."""
    classes: tuple[str, ...] = ()
    """Names of the most probable classes, the most probable first; none where the file cannot be read."""
    probabilities: tuple[float, ...] = ()
    """Probabilities of these classes, 0..1."""
    problem: str | None = None
    """Why the file cannot be read; None: it was read."""


@dataclass(frozen=True)
class Examples:
    """A few images and what the network says of them."""

    images: np.ndarray
    """uint8 [n, H, W, C], 0..255"""
    labels: np.ndarray
    """int64 [n]"""
    predictions: np.ndarray
    """int64 [n]"""
    probabilities: np.ndarray
    """Probability of the predicted class, float64 [n]."""

    def select(self, rows) -> "Examples":
        """Return some of the rows: a slice, a mask or indices."""
        return Examples(*(column[rows] for column in vars(self).values()))


class Predictions:
    """Predicted classes of a split, gathered batch by batch, and a few of its images.

    No more than `num_examples` images of a kind are kept: the split may be larger than the memory.

    Args:
        seed: of the images that are drawn at random. The same seed draws the same ones, whatever the batch size.
        num_examples: how many of the images drawn at random and of the mistakes are kept.

    Attributes:
        split: name of the split.
        files: paths in the folder of the data of the images in `mistakes`; empty where they have none.
    """

    def __init__(self, split: str, *, seed: int, num_examples: int = NUM_EXAMPLES):
        self.split = split
        self.files: Sequence[str] = ()
        self._batches: list[Outcomes] = []
        self._generator = np.random.default_rng(seed)
        self._sample, self._mistakes = _Smallest(num_examples), _Smallest(num_examples)
        self._thresholds: Thresholds | None = None

    def add(self, images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
        """Take in a batch.

        Args:
            images: uint8 [B, H, W, C], 0..255.
            labels: int [B].
            logits: float [B, K].
        """
        probabilities = compute_probabilities(logits)
        outcomes = score_batch(probabilities, labels)
        self._batches.append(outcomes)
        if probabilities.shape[1] <= _MOST_CURVES:
            self._thresholds = self._thresholds or Thresholds(probabilities.shape[1])
            self._thresholds.add(probabilities, outcomes.labels)
        examples = Examples(images, outcomes.labels, outcomes.predictions, outcomes.confidences)
        self._sample.add(examples, self._generator.random(len(outcomes)))
        self._mistakes.add(examples.select(outcomes.mistakes), -outcomes.confidences[outcomes.mistakes])

    def name_files(self, split: Split) -> None:
        """Note the names of the mistakes, of a split that has been seen whole and has files."""
        if split.unreadable.are_files:
            self.files = split.name_images(self.outcomes.mistakes[: len(self.mistakes.labels)], in_set=True)

    def precision_recall(self, class_names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """Return the counts of `Thresholds` by the name of the class; of more than 20 classes none."""
        found = self._thresholds
        return {name: found.counts(number) for number, name in enumerate(class_names)} if found else {}

    @property
    def outcomes(self) -> Outcomes:
        """Outcomes of all images, in their order."""
        return concatenate(self._batches)

    @property
    def sample(self) -> Examples:
        """Images drawn at random."""
        return self._sample.examples

    @property
    def mistakes(self) -> Examples:
        """The most confident mistakes, the most confident first."""
        return self._mistakes.examples


class _Smallest:
    """Keeps the examples with the smallest keys, in the order of their keys.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int):
        self.examples: Examples | None = None
        self._most = most
        self._keys = np.empty(0)

    def add(self, examples: Examples, keys: np.ndarray) -> None:
        """Keep of these examples, float [n] keys beside them, and of those before the ones with the smallest keys."""
        examples = concatenate([self.examples, examples]) if self.examples else examples
        keys = np.concatenate([self._keys, keys])
        rows = np.argsort(keys, kind="stable")[: self._most]
        self.examples, self._keys = examples.select(rows), keys[rows]
