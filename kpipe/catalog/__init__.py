"""Every name that an experiment file may use, and its options: one table a kind, one module a subject.

Nothing registers itself, and nothing here imports what a row names. `rows` is the page to read first.
"""
