"""Mistakes in the syntax of an experiment file: the line of the mistake, and what to do about it."""

from pathlib import Path

import pytest

from kpipe.config.loading import load_experiment
from kpipe.config.syntax import find_mistake
from kpipe.errors import ConfigError

SHIPPED = sorted(Path(__file__).parents[2].joinpath("experiments").rglob("*.yaml"))
GOOD = """\
data:
  source: digits
  image_size: 32
  augment: [flip_horizontal]
model:
  name: lenet5
training:
  optimizer: {name: sgd, momentum: 0.9}
  learning_rate:
    schedule: cosine
    peak: 1e-3
"""
VALUE = "has a value, so nothing can stand below it"

# What is replaced in GOOD, by what, and the message after its line.
INDENTATION = [
    (
        "  image_size",
        "   image_size",
        f"3: expected 2 spaces before image_size, as before source in line 2, got 3: source {VALUE}",
    ),
    ("  image_size", " image_size", "3: expected 0 or 2 spaces before image_size, as the lines above"),
    ("  source", "    source", "3: expected 0 or 4 spaces before image_size, as the lines above have"),
    ("model:", " model:", "5: expected 0 or 2 spaces before model, as the lines above have, got 1"),
    (
        "    peak",
        "     peak",
        "11: expected 4 spaces before peak, as before schedule in line 10, got 5",
    ),
    (
        "    peak",
        "   peak",
        "11: expected 0, 2 or 4 spaces before peak, as the lines above have, got 3",
    ),
    (
        "training:",
        "training: 5",
        f"8: expected no spaces before optimizer, as before training in line 7, got 2: training {VALUE}",
    ),
    (
        "  name: lenet5",
        "  name: lenet5\n    variant: modern",
        f"7: expected 2 spaces before variant, as before name in line 6, got 4: name {VALUE}",
    ),
    (
        "augment: [flip_horizontal]",
        "augment:\n    - pad_crop: {}\n      - rotate",
        "6: expected a key and a colon, as in line 5, got a list item. Items of one list stand equally",
    ),
    (
        "[flip_horizontal]",
        "\n    - pad_crop: {}\n        rotate: {}",
        "6: expected 6 spaces before rotate, as before pad_crop in line 5, got 8: pad_crop has a value, so nothing can",
    ),
    (
        "[flip_horizontal]",
        "\n    - pad_crop\n      rotate: {}",
        "6: expected 4 spaces before rotate, as before the list item in line 5, got 6: the list item has a value, so",
    ),
    (
        "[flip_horizontal]",
        "\n    - rotate\n  - translate",
        "6: expected a key and a colon, as in line 4",
    ),
    (
        "[flip_horizontal]",
        "\n    - rotate\n    batch_size: 3",
        "6: expected a list item, as in line 5, got the key batch_size. It belongs further to the left",
    ),
]
LINES = [
    ("  image_size", "\timage_size", "3: expected only spaces before 'image_size: 32', got a tab"),
    ("  image_size", "  \timage_size", "3: expected only spaces before 'image_size: 32', got a tab"),
    ("  image_size", "\t# x\n  image_size", "3: expected only spaces before '# x', got a tab"),
    ("size: 32", "size:\t32", r"3: expected only spaces between words, got a tab: 'image_size:\t32'"),
    (
        "size: 32",
        "size 32",
        "3: expected a colon after image_size, image_size: 32, got 'image_size 32'",
    ),
    ("source: d", "source d", "2: expected a colon after source, source: digits, got 'source digits'"),
    ("model:", "model", "5: expected a colon after model, model:, got 'model'"),
    ("peak: 1e-3", "peak 1e-3", "11: expected a colon after peak, peak: 1e-3, got 'peak 1e-3'"),
    (
        "size: 32",
        "size = 32",
        "3: expected a colon after image_size, image_size: 32, got 'image_size =",
    ),
    (
        "size: 32",
        "size:32",
        "3: expected a space after the colon, image_size: 32, got 'image_size:32'",
    ),
    ("peak: 1e-3", "peak:1e-3", "11: expected a space after the colon, peak: 1e-3, got 'peak:1e-3'"),
    ("model:", "// x\nmodel:", "5: expected # before a comment, got '// x'"),
    ("model:", "}\nmodel:", "5: expected a key, a colon and a value, got '}'"),
    ("32\n", "32\n  -rotate\n", "4: expected a space after the dash, got '-rotate'"),
    ("model:", "<<<<<<< HEAD\nmodel:", "5: expected an experiment, got a mark of a merge conflict"),
    (
        "1e-3\n",
        "1e-3\n---\na: 1\n",
        "12: expected one experiment in a file, got the beginning of another",
    ),
]
VALUES = [
    ("0.9}", "0.9", "8: expected a } that closes the { of this line"),
    ("[flip_horizontal]", "[rotate", "4: expected a ] that closes the [ of this line"),
    ("0.9}", "0.9}}", "8: expected the end of the line after }, got '}'"),
    ("0.9}", "0.9]", "8: expected } for the {, got ]"),
    ("0.9}", "0.9\n    ]", "9: expected } for the { of line 8, got ]"),
    ("digits", "]", "2: expected a value, got ], which closes nothing"),
    ("sgd, mom", "sgd mom", "8: expected a comma before momentum"),
    ("sgd, mom", "sgd,, mom", "8: expected something before the comma, got ', momentum: 0.9}'"),
    ("[flip", "[pad_crop {padding: 2}, flip", "4: expected a colon or a comma before '{padding: 2}, "),
    ("digits", "'digits", "2: expected a closing ' in this line, got \"'digits\""),
    ("digits", '"digits', "2: expected a closing \" in this line, got '\"digits'"),
    ("sgd,", "'sgd,", "8: expected a closing ' in this line, got \"'sgd, momentum: 0.9}\""),
    ("digits", "'digits' x", "2: expected the end of the line after the closing quotation mark, got 'x'"),
    ("digits", '"C:\\data"', "2: expected single quotation marks around text with a backslash, got"),
    ("digits", "folder: x", "2: expected quotation marks around a value with a colon, or one key a li"),
    ("digits", "@x", "2: expected quotation marks around what begins with @, got '@x'"),
    ("sgd", "%x", "8: expected quotation marks around what begins with %, got '%x, momentum: 0.9}'"),
    ("[flip_horizontal]", "|\n  text", "5: expected a colon after text, text:, got 'text'"),
    ("digits", "!<x", "2: while parsing a tag expected '>', but found '\\n'"),  # PyYAML's words
]  # fmt: skip


# What PyYAML reads otherwise than it is meant.
ACCEPTED = [
    (
        "augment: [flip_horizontal]",
        "augment:\n    - translate\n      - rotate",
        "6: data.augment.0: expected a value in one line, got 'translate - rotate' from line 5 to here",
    ),
    (
        "momentum: 0",
        "momentum:0",
        "8: training.optimizer.momentum: expected a colon and a space between key and value, got",
    ),
    (
        "momentum: 0",
        "momentum 0",
        "8: training.optimizer.momentum: expected a colon and a space between key and value, got",
    ),
    (
        "model:",
        "search:{seed: 5}\nmodel:",
        "5: search: expected a colon and a space after search, got 'search:{seed: 5}'",
    ),
    (
        "model:",
        "search={seed: 5}\nmodel:",
        "5: search: expected a colon and a space after search, got 'search={seed: 5}'",
    ),
]


@pytest.fixture
def mistake(tmp_path):
    """Return what is said of GOOD with a replacement, without the file's name."""

    def mistake(old, new):
        assert old in GOOD
        path = tmp_path / "exp.yaml"
        path.write_text(GOOD.replace(old, new, 1))
        with pytest.raises(ConfigError) as caught:
            load_experiment(path)
        return str(caught.value).removeprefix(f"{path}:")

    return mistake


@pytest.mark.parametrize(("old", "new", "message"), INDENTATION + LINES + VALUES)
def test_a_mistake_is_named_in_its_line(mistake, old, new, message):
    line, _, what = message.partition(": ")
    assert mistake(old, new).startswith(f"{line}: not valid YAML: {what}")


@pytest.mark.parametrize(("old", "new", "message"), ACCEPTED)
def test_what_runs_together_is_a_mistake_too(mistake, old, new, message):
    assert mistake(old, new).startswith(message)


def test_lines_may_end_as_on_windows(tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_bytes(GOOD.replace("  image_size", "   image_size").replace("\n", "\r\n").encode())
    with pytest.raises(ConfigError, match=r":3: not valid YAML: expected 2 spaces before image_size"):
        load_experiment(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_nothing_is_found_in_a_good_file(path):
    assert find_mistake(path.read_text()) is None


def test_lines_that_are_right_are_not_accused():
    quoted = 'name: "two\n  lines"\n'
    for before in (quoted, "%YAML 1.2\n---\n", "a: &x\n  b: 1\n", "? a\n: 1\n"):
        assert find_mistake(before + "source: {digits\nseed: 1\n") is None


@pytest.mark.parametrize("dashes", ["- " * 40_000, "[" * 90_000, "a: " * 30_000, "'" * 90_001, "{a: " * 20_000])
def test_a_hostile_line_ends_the_reading(dashes):
    assert find_mistake(dashes) is None or find_mistake(dashes)[0] == 1
    assert find_mistake("a: &b [\n" + dashes) is None
