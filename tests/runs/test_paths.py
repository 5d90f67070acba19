"""Every door for a path expands it in the same way, and says before any work what it cannot expand."""

from pathlib import Path

import pytest

# How the text is given, what begins a message about it, and the exit code for an empty file in its place.
DOORS = {
    "EXPERIMENT": (["run", "{text}"], {}, "EXPERIMENT.yaml", 2),
    "logs in the file": (["run", "{logs}"], {}, "{logs}:5: logs", 5),
    "logs given": (["run", "{tiny}", "logs={text}"], {}, "command line: logs", 5),
    "logs of a search": (["search", "{tiny}", "logs={text}"], {}, "command line: logs", 5),
    "KPIPE_LOGS": (["run", "{tiny}"], {"KPIPE_LOGS": "{text}"}, "KPIPE_LOGS", 5),
    "--resume": (["run", "--resume", "{text}"], {}, "--resume", 2),
    "--output": (["data", "show", "{tiny}", "--output", "{text}"], {}, "--output", 2),
    "KPIPE_CACHE": (["run", "{tiny}", "data.cache=disk"], {"KPIPE_CACHE": "{text}"}, "KPIPE_CACHE", None),
}


@pytest.fixture(params=DOORS)
def door(request, kpipe, experiment, tmp_path, monkeypatch):
    """Give a text at the door; return (exit code, output, errors), and what should begin a message about it."""
    arguments, environment, where, code = DOORS[request.param]

    def door(text):
        (tmp_path / "logs.yaml").write_text(Path(experiment).read_text() + f"\nlogs: {text}\n")
        names = {"text": text, "tiny": experiment, "logs": tmp_path / "logs.yaml"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(**names))
        return kpipe(*(argument.format(**names) for argument in arguments)), where.format(**names)

    door.code_of_an_empty_file = code
    return door


# tests/data/test_cache.py keeps images in the other one.
@pytest.mark.parametrize("door", [name for name, (*_, code) in DOORS.items() if code], indirect=True)
def test_a_path_is_expanded(door, tmp_path, monkeypatch):
    for name in ("HOME", "PLACE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("file", "file_searches"):  # searches lie beside the folder of runs
        (tmp_path / name).write_text("")
    for text in ("~/file", "$PLACE/file", "file"):
        (code, _, err), where = door(text)
        shown = text if (text, where) == ("file", "EXPERIMENT.yaml") else str(tmp_path / "file")
        assert (code, shown in err) == (door.code_of_an_empty_file, True), err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~nobody-here/r", "expected a user of this machine after ~, got '~nobody-here/r'. "),
        ("$NOWHERE/r", "expected a value of the variable NOWHERE for '$NOWHERE/r', got none. "),
    ],
)
def test_what_cannot_be_expanded_is_said(door, text, message):
    (code, out, err), where = door(text)
    assert (code, out) == (2, "")
    assert err.startswith(f"{where}: {message}")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(["run", ""], "EXPERIMENT.yaml"), (["run", "--resume", ""], "--resume")],
)
def test_an_empty_path_is_none(kpipe, arguments, where):
    assert kpipe(*arguments)[0::2] == (2, f"{where}: expected a path, got nothing\n")


def test_a_user_without_a_home_directory(door, no_home):
    (code, out, err), where = door("~/r")
    assert (code, out) == (2, "")
    assert err.startswith(f"{where}: expected a home directory for '~/r', got none. ")


def test_the_cache_needs_a_home_directory_unless_it_is_set(kpipe, experiment, no_home, monkeypatch):
    monkeypatch.delenv("KPIPE_CACHE", raising=False)
    code, _, err = kpipe("run", experiment, "data.cache=disk")
    said = "KPIPE_CACHE: expected a home directory for '~/.cache/kpipe', got none. Set HOME, or write the path out\n"
    assert (code, err) == (2, said)


def test_a_line_break_in_a_path_breaks_no_message(kpipe, experiment, tmp_path):
    (tmp_path / "a\nb").touch()
    for arguments in (["--resume", f"{tmp_path}/a\nb"], [experiment, f"logs={tmp_path}/a\nb/c"]):
        code, _, err = kpipe("run", *arguments)
        assert code in (2, 5) and err.count("\n") == 1 and err.startswith(f"{tmp_path}/a\\nb")
