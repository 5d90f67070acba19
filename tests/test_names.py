"""Names of files and classes on a screen, in a shell, and as a line of a file."""

import json
import os
import subprocess

import pytest

from kpipe.names import as_line, printable, quoted, shell_quoted, short_endings, shorten, shown

PLAIN = ["cat", "it's", "a b", "🐱 кошка", "كلب", "犬", "$x^2$", "[bold]x", ":cat:", "-cat", "a,b", "c:d", "%d{task}"]
HOSTILE = {
    "a\nb": r"a\nb",
    "a\tb\r": r"a\tb\r",
    "\x1b[31mred\x07": r"\x1b[31mred\x07",
    "a\u202eb\u2066": r"a\u202eb\u2066",
    "a\u2028b\x85": r"a\u2028b\u0085",
    "a\xa0b": r"a\u00a0b",
    "caf\udce9": r"caf\xe9",
    "\ud800": r"\ud800",
}
"""Names, and how they are shown."""


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_stays_as_it_is(name):
    assert printable(name) == shown(name) == as_line(name) == name
    assert quoted(name) == (f'"{name}"' if "'" in name else f"'{name}'")


@pytest.mark.parametrize(("name", "escaped"), HOSTILE.items(), ids=HOSTILE.values())
def test_a_hostile_name_is_escaped(name, escaped):
    assert printable(name) == escaped
    assert quoted(name) == f"'{escaped}'"
    assert printable(escaped) == escaped  # at a second door it is not escaped again
    line = as_line(name)
    assert line.isascii() and "\n" not in line
    assert json.loads(line) == name


def test_a_line_that_is_no_json_string_does_not_look_like_one():
    assert json.loads(as_line('"a"')) == '"a"'


def test_long_names_are_shortened_and_paths_by_their_parts():
    long = "begin" + "x" * 240 + "end"
    assert quoted(long).startswith("'beginxxx") and quoted(long).endswith("xxend'")
    assert len(quoted(long)) == 62
    path = f"/photos/{'folder/' * 20}{long}/0.png"
    assert shown(path) == path.replace(long, quoted(long)[1:-1])
    assert shorten("abcdefgh", 5) == "ab…gh"


@pytest.mark.parametrize("argument", [*PLAIN, *HOSTILE, "back\\slash\n'quote'"])
def test_an_argument_can_be_pasted_into_a_shell(argument):
    if argument == "\ud800":  # no argument of a command can be this
        return
    pasted = shell_quoted(argument)
    assert pasted.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {pasted}"], capture_output=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout == os.fsencode(argument)


def test_keys_are_named_by_their_shortest_unique_end_of_two_words():
    keys = ["seed", "training.epochs", "training.log_every.epochs", "checkpoint.every.epochs", "a.every.epochs"]
    assert short_endings(keys) == {
        "seed": "seed",
        "training.epochs": "training.epochs",
        "training.log_every.epochs": "log_every.epochs",
        "checkpoint.every.epochs": "checkpoint.every.epochs",
        "a.every.epochs": "a.every.epochs",
    }
