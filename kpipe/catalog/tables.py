"""Every table of names, for `kpipe list` and the tests."""

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
