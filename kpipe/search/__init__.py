"""`kpipe search`: which values of an experiment's keys train best. `tuner` is the page to read first."""

from kpipe.search.tuner import SearchResult, run_search

__all__ = ["SearchResult", "run_search"]
