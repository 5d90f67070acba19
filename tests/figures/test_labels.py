"""Names and captions in the room that a figure has."""

import pytest

from kpipe.figures.labels import (
    count_columns,
    distinct_labels,
    isolated,
    label,
    path_labels,
    run_label,
    two_lines,
    wrap,
)

CAPTION = "quickstart · 2026-11-29_10-12-13 · test split, 360 images · weights of epoch 17"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("golden retriever", "golden retriever"),
        ("German short-haired pointer", "German sh…pointer"),
        ("Cardigan_Welsh_corgi", "Cardigan_…sh_corgi"),
        ("n02113186Cardiganwelshcorgi", "n02113186…lshcorgi"),
        ("Antidisestablishmentarianism of old", "Antidises…m of old"),
        ("price_$5_and_$10 or more", "price_$5_…or more"),
        ("golden retriever puppy_37", "golden re…puppy_37"),
        ("汉字很长的类别名称测试", "汉字很长…名称测试"),
        ("\u0e44\u0e17\u0e22" * 7, "\u0e44\u0e17\u0e22" * 3 + "…" + "\u0e17\u0e22" + "\u0e44\u0e17\u0e22" * 2),
        ("  ", "'  '"),
    ],
)
def test_a_long_name_keeps_its_beginning_and_its_end(name, shown):
    assert label(name, 18) == shown
    assert count_columns(shown) <= 18


def test_a_wide_name_takes_no_room_from_others():
    assert distinct_labels(["price_$5_and_$10", "猫" * 9], 18) == ["price_$5_and_$10", "猫" * 9]
    assert wrap("猫 and a dog", 1, 12) == "猫 and\na dog"


@pytest.mark.parametrize("most", [8, 20, 34])
@pytest.mark.parametrize(
    "names",
    [
        [f"class number {number} with a rather long name" for number in range(34)],
        [f"n02113186{'x' * 40}{number}{'y' * 40}" for number in range(34)],
        ["the same long beginning of a name", "the same long beginning of a name, and more", "the long name"],
        ["x" * 40, "x" * 41, "x" * 42],
        ["a b", "a  b", "a b (2)"],
        ["猫" * 30 + "犬" + "猫" * 30, "猫" * 61],
    ],
)
def test_shortened_names_stay_different(names, most):
    labels = distinct_labels(names, most)
    assert len(set(labels)) == len(names)
    assert max(map(len, labels)) <= most
    assert distinct_labels(names * 2, most) == labels * 2
    captions = two_lines(names, most)
    assert len(set(captions)) == len(names)
    assert all(len(line) <= most for text in captions for line in text.split("\n"))
    assert all(text.count("\n") <= 1 for text in captions)


def test_names_are_shortened_around_what_differs():
    names = [f"class number {number} with a rather long name" for number in (1, 12)]
    assert distinct_labels(names, 20) == ["class number 1…name", "class number 12…name"]
    assert distinct_labels([*names, "cat"], 12) == ["cla…1…name", "cla…12…name", "cat"]
    numbers = [f"class_number_{number:03d}_with_long_name" for number in (270, 64)]
    assert distinct_labels(numbers, 20) == ["class_number_270…ame", "class_number_064…ame"]
    assert distinct_labels(names[:1], 20) == [label(names[0], 20)] == ["class numb…long name"]


def test_captions_have_two_lines():
    assert two_lines(["cat.png\n93%", "cat"], 10) == ["cat.png\n93%", "cat"]
    assert two_lines(["the cat and a dog"], 10) == ["the cat\nand a dog"]


def test_lines_of_a_caption_are_about_equally_long():
    lines = wrap(CAPTION, 4, 8).split("\n")
    assert " ".join(lines) == CAPTION
    assert max(map(len, lines)) - min(map(len, lines)) < 25
    assert wrap("", 4, 8) == ""
    assert wrap("one\ntwo", 4, 8) == "one\ntwo"


def test_the_folders_of_a_path_are_cut_before_its_name():
    paths = ["cat/img_13_14.png", "golden retriever/img_13_14.png", f"{'x' * 40}/img_13_14.png"]
    assert path_labels(paths, 30) == [*paths[:2], f"{'x' * 8}…{'x' * 7}/img_13_14.png"]
    assert path_labels(paths, 20) == ["cat/img_13_14.png", "gol…er/img_13_14.png", "xxx…xx/img_13_14.png"]
    assert path_labels([f"{'x' * 40}/{'y' * 40}.png", "7"], 12) == ["yyyyyy…y.png", "7"]
    assert path_labels([f"{'x' * 20}/cat.png", f"{'y' * 20}/cat.png"], 11) == ["cat.png (1)", "cat.png (2)"]
    assert path_labels(["قط/1.png"], 30) == ["\u2068قط\u2069/1.png"]


def test_the_name_of_a_run_keeps_its_time():
    run = "2026-11-29_20-01-02_model.init_from=vgg16_imagenet_notop.keras,data.image_size=224"
    assert run_label(run) == "2026-11-29_20-01-02_model.init_from=vgg16_imagenet_notop.ke…"
    assert run_label(run[:19], "my experiment") == "my experiment · 2026-11-29_20-01-02"


def test_names_from_right_to_left_are_isolated():
    assert isolated("cat 1") == "cat 1"
    assert isolated("قط 1") == "\u2068قط 1\u2069"
