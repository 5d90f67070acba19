"""From a YAML file and overrides to a checked `Experiment`; no import of TensorFlow or NumPy on the way."""

from kpipe.config.loading import Loaded, json_schema, load_experiment, load_network, load_search
from kpipe.config.schema import (
    DataConfig,
    Experiment,
    MeanStd,
    Projection,
    Resolved,
    TrainingConfig,
    options,
)

__all__ = [
    "Resolved",
    "DataConfig",
    "Experiment",
    "Loaded",
    "MeanStd",
    "Projection",
    "TrainingConfig",
    "json_schema",
    "load_experiment",
    "load_network",
    "load_search",
    "options",
]
