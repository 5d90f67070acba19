"""Synthetic data, for trying a network without files or a network connection.

There are four kinds, one for each sort of input of the networks: stripes, Go positions, spoken words and texts. Each is
the same in every run.

N images, S image size, C channels, F frequency bands, T frames, L characters, K classes.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kpipe.caller import setting
from kpipe.catalog.data import SyntheticOptions
from kpipe.data.arrays import ArraySplit
from kpipe.data.pixels import check_memory
from kpipe.data.sources.request import SourceRequest
from kpipe.data.splits import Source
from kpipe.errors import ConfigError

Shape = tuple[int, int, int]  # height, width, channels of one image
CHUNK = 128  # images drawn at a time: what one step needs stays in the cache


def read_synthetic(request: SourceRequest, *, kind: str, classes: int | None, images: int) -> Source:
    """Draw procedural images, the same in every run. The classes differ in size by one image at most.

    | kind          | shape         | a class is                                                            |
    |---------------|---------------|-----------------------------------------------------------------------|
    | `images`      | [N, S, S, C]  | stripes of one direction, color and shading                           |
    | `board`       | [N, S, S, 3]  | a point, row by row: in this Go position it is the move that captures |
    | `spectrogram` | [N, F, T, 1]  | a word of two or three tones that rise, fall or stay; T is 2 F        |
    | `text`        | [N, L, 1, 27] | a topic: words of its own among words of all topics                   |

    Args:
        request: its form has S, F or L (None: the kind's own) and, for `images` alone, C (None: 3).
        kind, classes, images: see `kpipe.catalog.data.SyntheticOptions`.

    Returns:
        One split, train: images uint8, 0..255, labels int32.

    Raises:
        ConfigError: fewer images than classes (a board may have fewer), or an argument that the kind does not have.
    """
    channels = request.form.channels
    _check_arguments(kind, request.form.size, channels, classes)
    row, size = KINDS[kind], request.form.size or SyntheticOptions(kind=kind).native.size
    classes = size * size if kind == "board" else classes or 10
    if kind != "board" and images < classes:
        raise ConfigError(f"{setting('synthetic.images')}: expected at least {classes}, one a class, got {images}")
    height, width, depth = row.shape(size)
    shape = (images, height, width, channels or depth)
    check_memory(shape, "synthetic", f"Take a smaller {setting('image_size')} or fewer {setting('synthetic.images')}")
    pixels = np.empty(shape, np.uint8)
    random = np.random.default_rng(20)
    labels = random.permutation(np.arange(images, dtype=np.int32) % classes)
    for start in range(0, images, CHUNK):
        chunk = slice(start, start + CHUNK)
        pixels[chunk] = row.draw(labels[chunk], classes, pixels.shape[1:], random)
    return Source({"train": ArraySplit(pixels, labels)}, row.class_names(classes))


def _check_arguments(kind: str, image_size: int | None, channels: int | None, classes: int | None) -> None:
    if kind != "images" and channels is not None:
        raise ConfigError(
            f"{setting('channels')}: expected none with kind: {kind}, whose planes are fixed, got {channels}"
        )
    if kind == "board" and image_size is not None and not 2 <= image_size <= len(COLUMNS):
        raise ConfigError(f"{setting('image_size')}: expected 2 to {len(COLUMNS)} with kind: board, got {image_size}")
    if kind == "spectrogram" and classes is not None and classes > len(_words()):
        raise ConfigError(
            f"{setting('synthetic.classes')}: expected at most {len(_words())} with kind: spectrogram, got {classes}"
        )


def _numbered(name: str, classes: int) -> tuple[str, ...]:
    return tuple(f"{name}_{k:0{len(str(classes - 1))}}" for k in range(classes))


# --- images -------------------------------------------------------------------------------------------------


def _stripes(labels, classes: int, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Draw an image for each label, uint8 [N, S, S, C]. Phase, contrast and noise are random.

    The stripes' directions lie within a quarter turn, so that a mirrored image resembles no other class.
    """
    size, _, channels = shape
    labels = labels.astype(np.float32)[:, None, None]
    angle = labels * (np.pi / 2 / (classes - 1))
    cycles = 1.5 + 0.75 * (labels % 3)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    phase, contrast = random.random((2, len(labels), 1, 1), np.float32)
    wave = np.sin(2 * np.pi * (cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase))
    wave *= 30 + 40 * contrast
    tint = 35 * np.cos(2 * np.pi * (labels[..., None] / classes + np.arange(channels) / channels))
    ramp = 40 * np.cos(np.pi * (y + labels / classes))
    noise = random.integers(-30, 31, (len(labels), size, size, channels), np.int8)
    return np.clip(128 + (wave + ramp)[..., None] + tint + noise, 0, 255).astype(np.uint8)


# --- board --------------------------------------------------------------------------------------------------


EMPTY, OWN, OPPONENT = 0, 1, 2
COLUMNS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # as on a real board, where I is left out: it looks like 1
STONES = (0.2, 0.7)  # fraction of points that carry one, from an opening to an endgame


def _boards(labels, classes: int, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Draw a position for each label, uint8 [N, S, S, 3], 0 or 255: own stones, the opponent's stones, empty points.

    Each position is legal. On each, exactly one group of the opponent has one liberty: a single stone, whose liberty is
    the label. A move there captures it, and no other move captures anything.
    """
    stones = np.empty((len(labels), *shape[:2]), np.int8)
    missing = np.arange(len(labels))
    while len(missing):
        stones[missing], usable = _positions(labels[missing], shape[0], random)
        missing = missing[~usable]
    return np.stack([stones == OWN, stones == OPPONENT, stones == EMPTY], axis=-1).view(np.uint8) * np.uint8(255)


def _positions(labels, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw stones int8 [N, S, S], and return which positions can be used, bool [N]."""
    shape = (len(labels), size, size)
    label = np.zeros(shape, bool)
    label.reshape(len(labels), -1)[np.arange(len(labels)), labels] = True
    target = _one_of(_beside(label), random)
    guards = _beside(target) & ~label
    fraction, draw = random.uniform(*STONES, (len(labels), 1, 1)), random.random(shape)
    stones = np.select([draw < fraction / 2, draw < fraction], [OWN, OPPONENT], EMPTY).astype(np.int8)
    stones[label], stones[target], stones[guards] = EMPTY, OPPONENT, OWN
    # Removing stones gives liberties to others and takes none, so no weak group is left after one pass. It may remove
    # the guards themselves. Then the target has more than one liberty, and the position is drawn again.
    liberties = _count_liberties(stones)
    weak = (stones == OPPONENT) & (liberties < 2) & ~target | (stones == OWN) & (liberties == 0)
    stones[weak] = EMPTY
    return stones, ~(weak & guards).any(axis=(1, 2))


def _beside(points: np.ndarray) -> np.ndarray:
    """Return the neighbors of the points that are set: bool [N, S, S] to the same."""
    beside = np.zeros_like(points)
    for to, come in _directions():
        beside[to] |= points[come]
    return beside


def _one_of(points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Choose one of the points that are set, for each board: bool [N, S, S] to the same."""
    draw = (points * (1 - random.random(points.shape))).reshape(len(points), -1)  # above 0 where set
    chosen = np.zeros(draw.shape, bool)
    chosen[np.arange(len(draw)), draw.argmax(axis=1)] = True
    return chosen.reshape(points.shape)


def _directions() -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Return, for each of four directions, all points that have a neighbor there, and those neighbors."""
    every, low, high = slice(None), slice(None, -1), slice(1, None)
    pairs = [((every, low), (every, high)), ((every, every, low), (every, every, high))]
    return [pair for first, second in pairs for pair in ((first, second), (second, first))]


def _count_liberties(stones: np.ndarray) -> np.ndarray:
    """Count the liberties of each stone's group, int8 [N, S, S]: 0, 1, or 2 for more than one. Empty points have 1."""
    points = stones[0].size
    numbers = np.arange(points, dtype=np.int16).reshape(stones.shape[1:])
    lowest, highest = _lowest_liberty(stones, numbers), points - 1 - _lowest_liberty(stones, points - 1 - numbers)
    # Without a liberty the lowest is above all numbers and the highest below them.
    return (lowest <= highest).astype(np.int8) + (lowest < highest)


def _lowest_liberty(stones: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the lowest of the points' numbers int16 [S, S] among the liberties of each stone's group: int16 [N, S, S].

    Numbers flow from empty points to stones, and between stones of one color, until nothing changes.
    """
    nothing = np.iinfo(np.int16).max  # all bits set: a number beyond a wall becomes it, too
    lowest = np.where(stones == EMPTY, numbers, np.int16(nothing))
    flows = []
    for to, come in _directions():
        flowing = (stones[to] != EMPTY) & ((stones[come] == EMPTY) | (stones[come] == stones[to]))
        flows.append((lowest[to], lowest[come], np.where(flowing, 0, nothing).astype(np.int16)))
    while True:
        before = lowest.copy()
        for to, come, wall in flows:
            np.minimum(to, come | wall, out=to)
        if np.array_equal(lowest, before):
            return lowest


def _point_names(classes: int) -> tuple[str, ...]:
    """Return Go's coordinates, row by row from the top. Rows are counted from the bottom."""
    size = math.isqrt(classes)
    return tuple(f"{column}{number}" for number in range(size, 0, -1) for column in COLUMNS[:size])


# --- spectrogram --------------------------------------------------------------------------------------------


MOVEMENTS = (-0.12, 0.0, 0.12)  # of a tone, from its start to its center and on to its end, in fractions of F
PITCHES = (0.25, 0.5, 0.75)  # of a tone's center, in fractions of F
PITCH_SHIFT = 0.06  # less than half the distance of two pitches: a voice does not make another word
WIDTH = 0.035  # of a tone, in fractions of F: a standard deviation
DURATION = (0.15, 0.25)  # of a tone with the gap after it, in fractions of T
VOICED = 0.8  # of that duration; the gap tells one long tone from two
LOUDNESS = (10.0, 24.0)  # of a tone above the noise, in dB
DECIBELS = (-20.0, 35.0)  # what 0 and 255 stand for


@functools.cache
def _words() -> np.ndarray:
    """Return all words, in a fixed random order: float32 [648, 3, 2], (pitch, movement) of each tone; NaN: no tone."""
    random = np.random.default_rng(20)
    tones = list(itertools.product(PITCHES, MOVEMENTS))
    short = [(*pair, (np.nan, np.nan)) for pair in itertools.permutations(tones, 2)]
    long = [three for three in itertools.product(tones, repeat=3) if three[0] != three[1] != three[2]]
    shuffled = np.concatenate([random.permutation(np.array(words, np.float32)) for words in (short, long)])
    # Short and long ones alternate while there are short ones, so that a few classes have both.
    return shuffled[np.argsort([*range(0, 2 * len(short), 2), *range(1, 2 * len(long), 2)])]


def _spectrograms(labels, classes: int, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Draw a word for each label, uint8 [N, F, T, 1]: the logarithm of the power, low frequencies first.

    Onset, tempo, loudness, pitch and noise are random, so that time and level say nothing about the class.
    """
    bands, frames, _ = shape
    loudness = random.uniform(*LOUDNESS, (len(labels), 1))
    pitch, loud = _tones(_words()[labels], frames, random)
    band = ((np.arange(bands, dtype=np.float32) + 0.5) / bands)[:, None]
    distance = (band - pitch[:, None]) / WIDTH
    power = (10 ** (loudness / 10) * loud)[:, None] * np.exp(-0.5 * distance * distance)
    # The power of noise of a steady level has an exponential distribution.
    power = (power + 1) * random.standard_exponential(power.shape, np.float32)
    low, high = DECIBELS
    scaled = (10 * np.log10(power + 1e-9) - low) * (255 / (high - low))
    return np.clip(scaled, 0, 255).astype(np.uint8)[..., None]


def _tones(words: np.ndarray, frames: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw when a word's tones are heard: pitch and power 0..1, float32 [N, T] each."""
    count = len(words)
    tones = (~np.isnan(words[..., 0])).sum(axis=1)[:, None]
    duration = random.uniform(*DURATION, (count, 1))
    onset = random.uniform(size=(count, 1)) * (1 - tones * duration)
    place = ((np.arange(frames) + 0.5) / frames - onset) / duration  # 1.5: at the center of the second tone
    number = np.clip(np.floor(place), 0, tones - 1).astype(int)
    within = (place - number) / VOICED
    heard = (within >= 0) & (within < 1)
    pitch, movement = np.moveaxis(np.take_along_axis(words, number[..., None], axis=1), -1, 0)
    pitch = pitch + movement * (2 * within - 1) + random.uniform(-PITCH_SHIFT, PITCH_SHIFT, (count, 1))
    return pitch.astype(np.float32), np.where(heard, np.sin(np.pi * within), 0).astype(np.float32)


# --- text ---------------------------------------------------------------------------------------------------


ALPHABET = "abcdefghijklmnopqrstuvwxyz "
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
SHORTEST_WORD, LONGEST_WORD = 4, 6  # characters: two or three syllables
SHARED_WORDS = 40
OWN_WORDS = 8  # of each class
OWN_SYLLABLES = 5  # which they are made of
OWN_FRACTION = 0.4  # of a text's words


@functools.cache
def _vocabulary(classes: int) -> tuple[list[str], ...]:
    """Return the words of each class, and last those that all classes share. No word occurs twice."""
    random, used = np.random.default_rng(20), set()
    shared = _new_words(SYLLABLES, SHARED_WORDS, used, random)
    own = (random.choice(SYLLABLES, OWN_SYLLABLES, replace=False) for _ in range(classes))
    return (*(_new_words(syllables, OWN_WORDS, used, random) for syllables in own), shared)


def _new_words(syllables, count: int, used: set[str], random: np.random.Generator) -> list[str]:
    """Draw `count` words of two or three different syllables that are not in `used`, and add them to it."""
    words = []
    while len(words) < count:
        word = "".join(random.choice(syllables, random.integers(2, 4), replace=False))
        if word not in used:
            used.add(word)
            words.append(word)
    return words


def _texts(labels, classes: int, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Draw a text for each label, one-hot uint8 [N, L, 1, 27], 0 or 255. The last channel is the space.

    A text is cut out of a longer one, so it may start and end within a word.
    """
    length, vocabulary, texts = shape[0], _vocabulary(classes), []
    shared = vocabulary[-1]
    words = (length + LONGEST_WORD) // (SHORTEST_WORD + 1) + 1
    for label in labels:
        own, picks, start = random.random(words) < OWN_FRACTION, random.random(words), random.integers(LONGEST_WORD + 1)
        lists = [vocabulary[label] if is_own else shared for is_own in own]
        text = " ".join(known[int(pick * len(known))] for known, pick in zip(lists, picks, strict=True))
        texts.append(text[start : start + length])
    codes = np.frombuffer("".join(texts).encode("ascii"), np.uint8).reshape(len(labels), length, 1)
    return (codes[..., None] == np.frombuffer(ALPHABET.encode("ascii"), np.uint8)).view(np.uint8) * np.uint8(255)


@dataclass(frozen=True)
class _Kind:
    shape: Callable[[int], Shape]
    """Shape of an image, from its size."""
    draw: Callable[[np.ndarray, int, Shape, np.random.Generator], np.ndarray]
    """(labels int32 [N], K, shape, random) -> uint8 [N, *shape], 0..255."""
    class_names: Callable[[int], tuple[str, ...]]
    """K -> names of the classes."""


KINDS = {
    "images": _Kind(lambda size: (size, size, 3), _stripes, functools.partial(_numbered, "class")),
    "board": _Kind(lambda size: (size, size, 3), _boards, _point_names),
    "spectrogram": _Kind(lambda size: (size, 2 * size, 1), _spectrograms, functools.partial(_numbered, "word")),
    "text": _Kind(lambda size: (size, 1, len(ALPHABET)), _texts, functools.partial(_numbered, "topic")),
}
