"""The one `tf.distribute` strategy of the process."""

import functools

import tensorflow as tf


@functools.cache
def make_strategy() -> tf.distribute.Strategy:
    """The strategy of this process, always the same object: one device.

    A second strategy object would break every later collective operation of the process.
    """
    return tf.distribute.get_strategy()
