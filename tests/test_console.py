"""The screen of a run: what it shows of names that anyone may have given."""

import io
import os
import pty
import re
import time

import pytest
from rich.console import Console

from kpipe.console import Screen, counted, describe_count, describe_size, describe_time, screen_on_standard_error
from kpipe.errors import DataError
from kpipe.streams import hold_back_libraries
from kpipe.training_screen import training_screen

HOSTILE = "[bold]x[/nothing] :cat: a\nb\x1b[2J\u202e caf\udce9"
SHOWN = r"[bold]x[/nothing] :cat: a\nb\x1b[2J\u202e caf\xe9"


@pytest.fixture
def screen():
    return Screen(Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None))


def test_a_number_stands_with_its_noun():
    counts = [counted(1, "class"), counted(1_000, "class"), counted(1, "epoch"), counted(0, "epoch"), describe_size(1)]
    assert counts == ["1 class", "1,000 classes", "1 epoch", "0 epochs", "1 byte"]


@pytest.mark.parametrize(
    ("number", "said"),
    [(999, "999 bytes"), (999_400, "999 kB"), (999_600, "1 MB"), (1_234_567, "1.23 MB"), (10**12, "1,000 GB")],
)
def test_sizes_have_three_digits(number, said):
    assert describe_size(number) == said


@pytest.mark.parametrize(("number", "said"), [(999, "999"), (999_600, "1 M"), (10**12, "1 T"), (10**16, "10,000 T")])
def test_counts_have_three_digits(number, said):
    assert describe_count(number) == said


def test_the_log_is_not_broken_where_the_terminal_is_narrow(tmp_path):
    screen = Screen(Console(file=io.StringIO(), force_terminal=True, width=30, color_system=None))
    words = "word " * 20
    with screen.logging_to(tmp_path / "console.log"):
        screen.header("title", {"data": words})
    assert len(screen.console.file.getvalue().splitlines()) > 4
    assert len((tmp_path / "console.log").read_text().splitlines()) == 2


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


def test_a_progress_bar_shows_the_speed(monkeypatch):
    screen = Screen(Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None))
    with screen.progress("listing", 1000) as advance:
        for _ in range(3):
            advance(100)
            time.sleep(0.06)  # between two frames
    assert re.search(r"listing .* [\d,]+ images/s", screen.console.file.getvalue())


def test_bars_on_standard_error_show_although_libraries_are_held_back():
    terminal, child = pty.openpty()
    before = os.dup(2)
    os.dup2(child, 2)
    try:
        with screen_on_standard_error() as screen, hold_back_libraries(), screen.progress("predicting", 2) as advance:
            advance(2)
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(child)
    shown = b""
    while b"predicting" not in shown:  # at the end of all, reading is an error
        shown += os.read(terminal, 10_000)
    os.close(terminal)


def test_without_a_terminal_there_is_nothing_on_standard_error(capfd, monkeypatch):
    monkeypatch.setattr("kpipe.console.LONG", -1)
    with screen_on_standard_error() as screen, screen.progress("predicting", 2) as advance:
        advance(2)
    assert capfd.readouterr() == ("", "")


METRICS = {"loss": 0.5, "accuracy": 0.75, "learning_rate": 0.001}


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the clock that a screen reads, to be set."""
    now = [0.0]
    monkeypatch.setattr("kpipe.training_screen.time.monotonic", lambda: now[0])
    return now


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_training_on_a_terminal_of_80_columns(clock):
    """Two bars that are gone at the end, and a row for each epoch under the names of its columns."""
    stream = io.StringIO()
    screen = Screen(Console(file=stream, force_terminal=True, width=80, highlight=False, color_system=None))
    with training_screen(screen, epochs=300, steps_per_epoch=10) as shown:
        shown.activity("compiling")
        shown._refresh()
        shown.begin()
        clock[0] = 100.0  # a first chunk of one step, which fills buffers
        shown.step(1, METRICS | {"images_per_second": 1.0})
        clock[0] = 103.5
        shown.step(8, METRICS | {"images_per_second": 12345.6})
        shown.log_line({"step": 8, "epoch": 1, "images_per_second": 1.0, **METRICS})
        shown._refresh()
        clock[0] = 104.5
        shown.activity("validating")
        shown._refresh()
        validation = {"val_loss": 0.25, "val_accuracy": 0.875}
        shown.epoch(1, 10, METRICS | validation, best=True)
        clock[0] = 109.5
        shown.epoch(2, 20, METRICS | validation, best=False)
    lines = [line.rstrip() for line in plain(stream.getvalue()).replace("\r", "\n").splitlines()]
    [names] = [line for line in lines if "val_loss" in line]
    rows = [line for line in lines if line.startswith(("  1/300", "  2/300"))]
    assert names.split() == ["epoch", "loss", "acc", "val_loss", "val_acc", "lr", "time", "left"]
    assert [row.split() for row in rows] == [
        ["1/300", "0.5000", "0.7500", "0.2500", "0.8750", "0.001", "1:44", "24:55", "best"],
        ["2/300", "0.5000", "0.7500", "0.2500", "0.8750", "0.001", "5.0", "s", "24:50"],
    ]
    for name, end in (("loss", "0.5000"), ("lr", "0.001"), ("left", "24:55")):
        assert names.index(name) + len(name) == rows[0].index(end) + len(end)
    assert any(line.startswith("compiling") for line in lines)
    assert any(line.startswith("epoch 1/300") and "80% 1.0 s left loss 0.5000  acc 0.7500" in line for line in lines)
    assert any(
        line.startswith("run") and "0% 24:56 left" in line and "lr 0.001  12,346 images/s" in line for line in lines
    )
    assert any(line.startswith("validating") and "loss" not in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert not any(line.startswith("step 8") for line in lines)


def test_top_5_accuracy_has_a_column_and_80_columns_are_enough(clock):
    """The widest row: of the two kinds of top-5 accuracy, that of the validation."""
    stream = io.StringIO()
    screen = Screen(Console(file=stream, force_terminal=True, width=80, highlight=False, color_system=None))
    metrics = METRICS | {"top5": 0.9, "learning_rate": 1.23e-05}
    validation = {"val_loss": 0.25, "val_accuracy": 0.875, "val_top5": 0.95}
    with training_screen(screen, epochs=300, steps_per_epoch=10) as shown:
        clock[0] = 7384.0
        shown.epoch(1, 10, metrics | validation, best=True)
    lines = plain(stream.getvalue()).replace("\r", "\n").splitlines()
    [names] = [line for line in lines if "val_loss" in line]
    [row] = [line for line in lines if line.startswith("  1/300")]
    assert names.split() == ["epoch", "loss", "acc", "val_loss", "val_acc", "val_top5", "lr", "time", "left"]
    assert row.split()[1:8] == ["0.5000", "0.7500", "0.2500", "0.8750", "0.9500", "1.23e-05", "2:03:04"]
    assert max(len(names) + len("  best"), len(row)) <= 80


def test_the_last_table_has_top_5_accuracy_where_it_was_measured():
    numbers = {"images": 1000, "loss": 0.5, "accuracy": 0.75}
    for top5, said in (({}, "accuracy 75.00 %"), ({"top5": 0.9}, "accuracy 75.00 %, top5 90.00 %")):
        screen = Screen(Console(file=io.StringIO(), width=80))
        logged = []
        screen.log = logged.append
        screen.result({"test": numbers | top5})
        assert logged == [f"test: 1,000 images, loss 0.5000, {said}"]
        assert ("top5" in screen.console.file.getvalue()) == ("90.00 %" in screen.console.file.getvalue()) == bool(top5)


def test_a_budget_bounds_the_time_that_is_left(clock):
    stream = io.StringIO()
    screen = Screen(Console(file=stream, width=200))
    with training_screen(screen, epochs=300, steps_per_epoch=10) as shown:
        shown.begin(seconds_left=60.0)
        shown.step(0, METRICS)
        clock[0] = 4.0
        shown.log_line({"step": 8, "epoch": 1, "images_per_second": 16.0, **METRICS})
    line = "step 8  epoch 1/300  loss 0.5000  acc 0.7500  lr 0.001  16 images/s  epoch 1.0 s left  run 56 s left\n"
    assert stream.getvalue() == line


def test_before_layers_thaw_the_end_is_not_known(clock):
    stream = io.StringIO()
    screen = Screen(Console(file=stream, width=200))
    with training_screen(screen, epochs=3, steps_per_epoch=10, last_thaw=12) as shown:
        for step, seconds in ((1, 1.0), (8, 4.5), (12, 6.5), (13, 20.0), (14, 30.0)):
            clock[0] = seconds
            shown.step(step, METRICS)
            shown.log_line({"step": step, "epoch": 1, "images_per_second": 16.0, **METRICS})
            if step == 12:
                shown.thaw(step, ["conv1", "conv2"])
    assert [line.rpartition("16 images/s")[2] for line in stream.getvalue().splitlines()] == [
        "",
        "  epoch 1.0 s left",
        "  epoch 4.0 s left",
        "step 12: conv1, conv2 are trained from here on",
        "",
        "  epoch 1:00 left  run 2:40 left",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.9, "59 s"),
        (60, "1:00"),
        (3599.6, "1:00:00"),
        (7384, "2:03:04"),
    ],
)
def test_times_are_said_as_a_clock_shows_them(seconds, said):
    assert describe_time(seconds) == said


def test_prose_is_broken_between_words_on_a_terminal_alone():
    def shown(is_terminal):
        screen = Screen(Console(file=io.StringIO(), force_terminal=is_terminal, width=30, color_system=None))
        screen.prose("  note: a long-winded remark, and a/path/that/is/longer/than/the/screen", indent=8)
        return screen.console.file.getvalue().splitlines()

    assert shown(True) == [
        "  note: a long-winded remark,",
        "        and",
        "        a/path/that/is/longer/than/the/screen",
    ]
    assert shown(False) == ["  note: a long-winded remark, and a/path/that/is/longer/than/the/screen"]


def test_a_log_that_cannot_be_written_ends_nothing_and_hides_no_error():
    screen = Screen(Console(file=io.StringIO(), width=80))
    with screen.logging_to("/dev/full"):
        screen.line("shown")
    assert screen.console.file.getvalue() == "shown\n"
    with pytest.raises(DataError, match="no images"), screen.logging_to("/dev/full"):
        raise DataError("no images")
