"""Paths of many files in little memory: a table of folders, and all names in one string.

M files. A Python object for each path would take ten times as much.
"""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from kpipe.data.image_files import read_sides

HEADERS_AT_ONCE = 16  # most of the time is the disk's, above all where it is a network disk


class FileNames:
    """Paths of M files, by number.

    Args:
        folders: folders and the names of the files in them, which need not be valid text.
    """

    def __init__(self, folders: Iterable[tuple[bytes, Sequence[bytes]]]):
        prefixes, texts, counts, lengths = [], [], [], []
        for folder, names in folders:
            prefixes.append(os.path.join(folder, b""))
            texts.append(b"".join(names))
            counts.append(len(names))
            lengths.append(np.fromiter(map(len, names), np.int64, len(names)))
        self._folders, self._text = prefixes, b"".join(texts)
        self._folder_of = np.repeat(np.arange(len(prefixes), dtype=np.int32), counts)
        self._ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))

    def __len__(self) -> int:
        return len(self._folder_of)

    def __getitem__(self, number: int) -> bytes:
        """Return a path."""
        return self._folders[self._folder_of[number]] + self._text[self._ends[number] : self._ends[number + 1]]

    def in_graph(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return a function number int64 [] -> path string [], for a graph."""
        folders, folder_of, text, ends = self._tensors

        def path(number: tf.Tensor) -> tf.Tensor:
            begin, end = ends[number], ends[number + 1]
            return tf.strings.join([folders[folder_of[number]], tf.strings.substr(text, begin, end - begin)])

        return path

    def read_sides(self, numbers: np.ndarray) -> np.ndarray:
        """Return height and width of images, int64 [n] -> int32 [n, 2]. The header of a file is read only once.

        They are 1 and 1 for a header that cannot be read.
        """
        new = np.unique(numbers[self._sides[numbers, 0] == 0])
        if len(new):
            with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
                self._sides[new] = list(pool.map(_read_sides, map(self.__getitem__, new)))
        return self._sides[numbers]

    @functools.cached_property
    def _sides(self) -> np.ndarray:
        return np.zeros((len(self), 2), np.int32)

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, ...]:
        with tf.init_scope(), tf.device("CPU:0"):
            return tuple(map(tf.constant, (self._folders, self._folder_of, self._text, self._ends)))


def _read_sides(path: bytes) -> tuple[int, int]:
    try:
        return read_sides(os.fsdecode(path))
    except (OSError, ValueError):  # decoding reports it
        return 1, 1
