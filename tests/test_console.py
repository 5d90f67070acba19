"""The screen of a run: what it shows of names that anyone may have given."""

import io

import pytest
from rich.console import Console

from kpipe.console import Screen, counted, describe_size

HOSTILE = "[bold]x[/nothing] :cat: a\nb\x1b[2J\u202e caf\udce9"
SHOWN = r"[bold]x[/nothing] :cat: a\nb\x1b[2J\u202e caf\xe9"


@pytest.fixture
def screen():
    return Screen(Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None))


def test_a_number_stands_with_its_noun():
    counts = [counted(1, "class"), counted(1_000, "class"), counted(1, "epoch"), counted(0, "epoch"), describe_size(1)]
    assert counts == ["1 class", "1,000 classes", "1 epoch", "0 epochs", "1 byte"]


def test_a_line_is_printed_as_it_is(screen):
    screen.line(HOSTILE)
    screen.header(HOSTILE, {"data": HOSTILE}, [HOSTILE])
    expected = [SHOWN, SHOWN, f"  data       {SHOWN}", f"  note: {SHOWN}"]
    assert screen.console.file.getvalue().splitlines() == expected


def test_a_progress_bar_has_the_name_of_its_data(screen, monkeypatch):
    monkeypatch.setattr("kpipe.console.LONG", -1)
    with screen.progress(f"decoding {HOSTILE}{'x' * 100}", 10) as advance:
        advance(10)
    text = screen.console.file.getvalue()
    assert f"decoding {SHOWN[:15]}" in text
    assert text.endswith("xxxxx: 10 images in 0 s\n")
    assert HOSTILE[-5:] not in text
