"""The four kinds of made-up data: each says what it claims, is the same in every run, and can be learned."""

import numpy as np
import pytest

from kpipe.data.images import Form
from kpipe.data.loading import find_source, load_dataset
from kpipe.data.sources.synthetic import ALPHABET, KINDS
from kpipe.errors import ConfigError


def made(kind, images=200, image_size=None):
    source = find_source("synthetic", Form(image_size), kind=kind, images=images)
    return source.splits["train"], source.class_names


@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 2), (32, 3, 10), (9, 4, 30)])
def test_synthetic_has_what_was_asked_for(size, channels, classes):
    options = {"image_size": size, "channels": channels, "classes": classes, "images": 300}
    splits = load_dataset("synthetic", **options)
    assert splits.train.images.shape == (216, size, size, channels)
    assert [len(splits.validation), len(splits.test)] == [24, 60]
    assert len(splits.class_names) == classes
    assert min(np.bincount(splits.train.labels, minlength=classes)) >= 6
    assert np.array_equal(splits.test.images, load_dataset("synthetic", **options).test.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_synthetic_can_be_learned(channels):
    # A linear classifier cannot detect stripes of random phase, so this is a lower bound for a network.
    from sklearn.linear_model import RidgeClassifier

    splits = load_dataset("synthetic", image_size=16, channels=channels, classes=4)
    train, test = (split.images.reshape(len(split), -1) / 255 for split in (splits.train, splits.test))
    classifier = RidgeClassifier(100.0).fit(train, splits.train.labels)
    assert classifier.score(test, splits.test.labels) > 0.6


def test_synthetic_needs_an_image_for_each_class():
    with pytest.raises(ConfigError, match=r"images: expected at least 10, one a class, got 9"):
        load_dataset("synthetic", images=9)


@pytest.mark.parametrize(
    ("kind", "size", "shape", "classes"),
    [
        ("images", None, (32, 32, 3), 10),
        ("board", None, (19, 19, 3), 361),
        ("board", 9, (9, 9, 3), 81),
        ("spectrogram", None, (40, 80, 1), 10),
        ("spectrogram", 20, (20, 40, 1), 10),
        ("text", None, (128, 1, 27), 10),
        ("text", 30, (30, 1, 27), 10),
    ],
)
def test_shapes_and_classes(kind, size, shape, classes):
    split, names = made(kind, image_size=size)
    assert split.images.shape == (200, *shape)
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert len(names) == len(set(names)) == classes
    each = np.bincount(split.labels, minlength=classes)
    assert each.max() - each.min() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_in_every_run(kind):
    np.random.seed(1)  # a global seed has no effect
    first, _ = made(kind)
    np.random.seed(2)
    again, _ = made(kind)
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)


# --- board --------------------------------------------------------------------------------------------------


def neighbors(point, size):
    row, column = point
    near = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [(r, c) for r, c in near if 0 <= r < size and 0 <= c < size]


def groups(stones):
    """Return (color, points, liberties) of each group, by flood fill."""
    size, left, found = len(stones), {tuple(p) for p in np.argwhere(stones)}, []
    while left:
        group, edge, liberties = set(), [left.pop()], set()
        while edge:
            point = edge.pop()
            group.add(point)
            for near in neighbors(point, size):
                if not stones[near]:
                    liberties.add(near)
                elif stones[near] == stones[point] and near in left:
                    left.remove(near)
                    edge.append(near)
        found.append((stones[point], group, liberties))
    return found


@pytest.mark.parametrize("size", [5, 9, 19])
def test_the_answer_is_the_one_capture_of_a_legal_position(size):
    split, names = made("board", images=60, image_size=size)
    assert set(np.unique(split.images)) == {0, 255}
    assert (split.images.sum(-1, dtype=int) == 255).all()
    for image, label in zip(split.images, split.labels, strict=True):
        own, opponent = 1, 2
        found = groups(image[..., 0] // 255 * own + image[..., 1] // 255 * opponent)
        assert all(liberties for _, _, liberties in found)
        [(_, stones, [answer])] = [g for g in found if g[0] == opponent and len(g[2]) == 1]
        assert len(stones) == 1
        assert answer == divmod(label, size)


def test_points_are_named_as_on_a_board():
    _, names = made("board")
    assert (names[0], names[8], names[18], names[-19], names[-1]) == ("A19", "J19", "T19", "A1", "T1")


def test_boards_are_of_many_games():
    split, _ = made("board", images=722)
    assert set(split.labels) == set(range(361))
    fraction = (split.images[..., 2] == 0).mean((1, 2))
    assert fraction.min() < 0.3 < 0.5 < fraction.max()


# --- spectrogram and text -----------------------------------------------------------------------------------


def test_texts_are_one_hot_words():
    split, _ = made("text")
    assert (split.images.sum(axis=(2, 3), dtype=int) == 255).all()
    texts = ["".join(ALPHABET[code] for code in image[:, 0].argmax(-1)) for image in split.images]
    words = [word for text in texts for word in text.split()[1:-1]]
    assert {len(word) for word in words} == {4, 6}
    # Some words belong to one topic, others to all.
    topics = {}
    for text, label in zip(texts, split.labels, strict=True):
        for word in text.split()[1:-1]:
            topics.setdefault(word, set()).add(int(label))
    assert sum(len(found) == 1 for found in topics.values()) > 50
    assert sum(len(found) > 7 for found in topics.values()) > 30


def test_a_word_is_heard_at_any_time():
    split, _ = made("spectrogram", images=2000)
    loudest = split.images[split.labels == 0][..., 0].astype(float).max(1).argmax(-1)  # the frame, for one class
    assert loudest.min() < 25 < 55 < loudest.max()


def features(kind, images):
    """Return features that do not depend on place: pairs of letters, or a word's loudest pitches in order."""
    if kind == "text":
        pairs = images[:, :-1, 0, :, None] // 255 * (images[:, 1:, 0, None, :] // 255)
        return pairs.sum(axis=1, dtype=float).reshape(len(images), -1)
    bands = images[..., 0].astype(float) - 150
    energy = np.maximum(bands, 0)
    return np.concatenate([energy.mean(2), (energy[:, :, :-4] * energy[:, ::-1, 4:]).mean(2) / 100], axis=1)


@pytest.mark.parametrize(("kind", "least"), [("text", 0.8), ("spectrogram", 0.4)])
def test_text_and_speech_can_be_learned(kind, least):
    # By a linear classifier, and without regard to place: a lower bound for a network. Chance is 0.1.
    from sklearn.linear_model import RidgeClassifier

    splits = load_dataset("synthetic", kind=kind, images=1500)
    train, test = (features(kind, split.images) for split in (splits.train, splits.test))
    assert RidgeClassifier(10.0).fit(train, splits.train.labels).score(test, splits.test.labels) > least


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "text", "channels": 3},
            "channels: expected none with kind: text, whose planes are fixed, got 3",
        ),
        ({"kind": "board", "classes": 9}, "synthetic.classes: a board has one class for each point; leave it out"),
        ({"kind": "board", "image_size": 26}, "image_size: expected 2 to 25 with kind: board, got 26"),
        (
            {"kind": "spectrogram", "classes": 1000, "images": 2000},
            "classes: expected at most 648 with kind: spectrogram, got 1000",
        ),
        ({"kind": "text", "images": 9}, "images: expected at least 10, one a class, got 9"),
    ],
)
def test_arguments_that_a_kind_does_not_have(options, message):
    with pytest.raises(ConfigError) as caught:
        load_dataset("synthetic", **options)
    assert str(caught.value).startswith(message)
