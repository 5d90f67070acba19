"""Every table of names, and the keys of an experiment that take them."""

from kpipe.catalog.data import AUGMENTATIONS, NORMALIZATIONS, SOURCES
from kpipe.catalog.networks import MODELS
from kpipe.catalog.rows import Row
from kpipe.catalog.search import SEARCH_METHODS
from kpipe.catalog.training import LOSSES, OPTIMIZERS, SCHEDULES

TABLES: dict[str, dict[str, Row]] = {
    "models": MODELS,
    "sources": SOURCES,
    "normalizations": NORMALIZATIONS,
    "augmentations": AUGMENTATIONS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "losses": LOSSES,
    "search_methods": SEARCH_METHODS,
}

KINDS: dict[tuple[str, ...], dict[str, Row]] = {
    ("model", "name"): MODELS,
    ("training", "optimizer", "name"): OPTIMIZERS,
    ("training", "learning_rate", "schedule"): SCHEDULES,
    ("training", "loss", "name"): LOSSES,
    ("search", "method"): SEARCH_METHODS,
}
"""Keys that say what kind their section is, and the kinds."""
