"""How a network is trained: the loop, and what it uses (optimizer, schedule, precision, checkpoints).

Import from the modules themselves; `trainer` is the one to read first.
"""
