"""`kpipe search`: which values of an experiment's keys train best.

The order of reading: `tuner` (the whole search), `trials` (how one trial is trained), `oracles` (what is tried next),
`records` (what is remembered), `report`, `workers`.
"""

from kpipe.search.tuner import SearchResult, run_search

__all__ = ["SearchResult", "run_search"]
