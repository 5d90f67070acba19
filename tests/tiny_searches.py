"""What tests of searches have in common: keys, tables, and a score that needs no training."""

import csv
import math

PEAK, NAME = "training.learning_rate.peak", "training.optimizer.name"
PEAKS = f"search.space.{PEAK}"


def searches_of(logs, name="tiny"):
    """Return the folders of an experiment's searches, the oldest first."""
    return sorted(path for path in (logs.parent / f"{logs.name}_searches" / name).iterdir() if path.is_dir())


def rows_of(path, file="trials.csv"):
    with open(path / file, newline="") as lines:
        return list(csv.DictReader(lines))


def score(experiment):
    """Best at a peak of 0.01; the seed shifts it a little."""
    return round(1 - abs(math.log10(experiment.training.learning_rate.peak) + 2) / 10 - experiment.seed / 1000, 6)
