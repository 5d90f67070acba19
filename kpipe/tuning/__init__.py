"""Which values of an experiment's keys train best. `tuner` is the page to read first.

Nothing is imported here: `kpipe results` reads the records of searches without TensorFlow.
"""
