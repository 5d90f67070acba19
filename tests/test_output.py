"""Standard output and error that fail: a closed terminal, a full disk, a reader that has gone, no stream at all."""

import fcntl
import io
import json
import os
import pty
import subprocess
import sys
from contextlib import contextmanager

import pytest
from tiny_runs import only_run, records_of

from kpipe import cli, load_experiment, train
from kpipe.console import Screen
from kpipe.runs.recorder import Recorder

NO_SPACE = "standard output cannot be written: No space left on device\n"
CLOSED = "standard output cannot be written: Bad file descriptor\n"


def shell(redirections, *arguments, **options):
    """Run `kpipe ARGUMENTS REDIRECTIONS` in a process of its own; return exit code and what is left of its errors."""
    script = f'exec "$0" -m kpipe "$@" {redirections}'
    command = ["sh", "-c", script, sys.executable, *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirections", "said"),
    [
        (">/dev/full", NO_SPACE),
        (">&-", CLOSED),
        (">/dev/full 2>/dev/full", ""),
        ("<&- >&- 2>&-", ""),
    ],
)
def test_what_was_to_be_printed_and_is_lost_is_said(redirections, said):
    assert shell(redirections, "list") == (5, said)


def test_a_reader_that_has_gone_is_no_mistake():
    reader, writer = os.pipe()
    os.close(reader)
    assert shell("", "list", stdout=writer) == (0, "")
    os.close(writer)


@pytest.mark.parametrize("redirections", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", [("run", "nowhere.yaml"), ("rum",)])
def test_a_mistake_keeps_its_exit_code_where_nobody_can_read_it(redirections, arguments):
    assert shell(redirections, *arguments) == (2, "")


def test_a_terminal_says_at_once_that_tensorflow_is_loaded_and_then_forgets_it():
    """TensorFlow takes seconds. A mistake that is found before it stands on a line of its own."""
    terminal, child = pty.openpty()
    done = subprocess.run([sys.executable, "-m", "kpipe", "run", "x.yaml"], stdout=child, stderr=child, cwd="/")
    os.close(child)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert done.returncode == 2
    assert shown.startswith(f"loading TensorFlow ...\r{' ' * 22}\rx.yaml: ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_does_not_block_loses_nothing(monkeypatch, unbuffered):
    """Another process may have set it so. The pipe holds a fraction of what is printed."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen([sys.executable, "-m", "kpipe", "schema"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    with open(reader) as printed:
        assert json.loads(printed.read())["title"] == "Experiment"
    assert process.communicate()[1] == b""
    assert process.returncode == 0


def full():
    return open("/dev/full", "w")


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


@pytest.fixture
def failing(monkeypatch):
    """Replace standard output and error by streams that fail."""
    streams = []

    def failing(make):
        for name in ("stdout", "stderr"):
            stream = make()
            streams.append(stream)
            monkeypatch.setattr(sys, name, stream)

    yield failing
    monkeypatch.undo()
    for stream in filter(None, streams):
        stream.close()  # nothing is left in it that could not be written


def no_stream():
    return None


@pytest.mark.parametrize("make", [full, closed_pipe])
def test_a_training_goes_on_in_silence(experiment, logs, failing, make):
    failing(make)
    assert cli.main(["run", experiment, "training.epochs=1"]) == 0
    assert json.loads((only_run(logs) / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("make", [full, pytest.param(no_stream, marks=pytest.mark.slow)])
def test_a_training_from_python_goes_on_in_silence(experiment, failing, make):
    failing(make)
    assert train(load_experiment(experiment, ["training.epochs=1"]).experiment).summary["status"] == "finished"


@pytest.mark.parametrize("verb", [("run",), ("search", "search.trials=1")])
def test_a_terminal_that_is_closed_ends_nothing(experiment, failing, monkeypatch, verb):
    """It is closed at the end of the first epoch, while a bar or a table is drawn again and again."""
    master, terminal = pty.openpty()
    end_epoch, drawn = Recorder.end_epoch, []

    def close_first(*arguments):
        if not drawn:
            drawn.append(os.read(master, 100_000))
            os.close(master)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(terminal, b"x")
        return end_epoch(*arguments)

    monkeypatch.setattr(Recorder, "end_epoch", close_first)
    failing(lambda: open(terminal, "w", closefd=False))
    assert cli.main([verb[0], experiment, *verb[1:], "training.epochs=2"]) == 0
    assert b"tiny" in drawn[0]
    os.close(terminal)


def test_what_ends_a_run_keeps_its_exit_code(experiment, logs, failing):
    failing(full)
    assert cli.main(["run", experiment, "data.batch_size=5000"]) == 2
    assert cli.main(["run", experiment, f"logs={experiment}"]) == 5
    assert cli.main(["plan", experiment]) == 5


@contextmanager
def closed_descriptors():
    held = [os.dup(number) for number in range(3)]
    os.closerange(0, 3)
    try:
        yield
    finally:
        for number, descriptor in enumerate(held):
            os.dup2(descriptor, number)
            os.close(descriptor)


def test_closed_descriptors_are_not_those_of_the_logs(experiment, logs, failing, monkeypatch):
    """Else what TensorFlow writes to standard error would stand in metrics.jsonl."""
    end_epoch = Recorder.end_epoch

    def say_something(*arguments):
        for number in (1, 2):
            os.write(number, b"from a library")
        return end_epoch(*arguments)

    monkeypatch.setattr(Recorder, "end_epoch", say_something)
    failing(no_stream)
    with closed_descriptors():
        code = cli.main(["run", experiment, "training.epochs=1"])
    assert code == 0
    assert records_of(only_run(logs))[-1]["split"] == "test"


def test_what_an_encoding_lacks_is_escaped(tmp_path, monkeypatch):
    with open(tmp_path / "out", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        Screen().line("K\u00e4fer")
        monkeypatch.undo()
    assert (tmp_path / "out").read_text() == "K\\xe4fer\n"


def test_streams_that_have_no_descriptor_are_left_alone(monkeypatch):
    for stream in (io.StringIO(), io.TextIOWrapper(io.BytesIO(), write_through=True)):
        monkeypatch.setattr(sys, "stdout", stream)
        Screen().line("text")
        stream.seek(0)
        assert stream.read() == "text\n"
        assert cli.main(["list", "--json"]) == 0
