"""kpipe trains the classic convolutional networks with Keras 3. Read `kpipe/experiment.py` first."""

__version__ = "0.1.0"
