"""Files: paths as users write them, and files replaced in one step, whatever happens on the way."""

import getpass
import os
import pwd
import signal

import pytest

from kpipe.errors import ConfigError
from kpipe.files import expand_path, filling, read_yaml, replacing, write_text, write_yaml


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with replacing(path) as beside:
        assert (beside.parent, beside.suffix) == (tmp_path, ".keras")
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["model.keras"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_as_it_was(tmp_path, error):
    path = tmp_path / "model.keras"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as beside:
        beside.write_text("half")
        raise error
    with pytest.raises(error), replacing(path):
        raise error  # before there is anything to remove
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["model.keras"]


def test_what_a_kill_has_left_is_overwritten(tmp_path):
    (tmp_path / ".notes.part.txt").write_text("what a kill has left")
    write_text(tmp_path / "notes.txt", "new")
    assert (tmp_path / "notes.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_folder_is_filled_with_all_or_nothing(tmp_path):
    folder, names = tmp_path / "new" / "scores", ["a.txt", "b.txt", "c"]
    for number in range(2):
        with filling(folder, names) as part:
            assert part.parent == folder and not any(part.iterdir())
            (part / "c").mkdir()
            (part / "c" / str(number)).touch()
            (part / names[number]).touch()
        (folder / "mine.txt").touch()
        (folder / ".a.txt.part").mkdir()  # a kill has left it
        (folder / ".a.txt.part" / "c").touch()
    with pytest.raises(OSError), filling(folder, names) as part:
        (part / "a.txt").touch()
        raise OSError
    assert sorted(os.listdir(folder)) == ["b.txt", "c", "mine.txt"]
    assert os.listdir(folder / "c") == ["1"]
    with pytest.raises(OSError), filling(tmp_path / "other", names):
        raise OSError
    assert os.listdir(tmp_path) == ["new"]


def test_files_in_folders_are_replaced_and_what_lies_beside_them_stays(tmp_path):
    names = ["onnx/model.onnx", "onnx/card.json", "onnx/model_int8.onnx"]
    for written in (names, names[:2]):
        with filling(tmp_path, names) as part:
            (part / "onnx").mkdir()
            for name in written:
                (part / name).write_text(str(len(written)))
        (tmp_path / "onnx" / "mine").mkdir(exist_ok=True)
    assert sorted(os.listdir(tmp_path / "onnx")) == ["card.json", "mine", "model.onnx"]
    assert (tmp_path / "onnx" / "model.onnx").read_text() == "2"
    assert os.listdir(tmp_path) == ["onnx"]


def test_a_signal_waits_until_a_folder_is_filled(tmp_path, monkeypatch):
    def replace(old, new):
        signal.raise_signal(signal.SIGTERM)
        real(old, new)

    real = os.replace
    monkeypatch.setattr("kpipe.files.os.replace", replace)
    with pytest.raises(KeyboardInterrupt), filling(tmp_path, ["a", "b"]) as part:
        for name in ("a", "b"):
            (part / name).touch()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_path_is_expanded_as_by_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    monkeypatch.setenv("INDIRECT", "~/r")
    monkeypatch.chdir(tmp_path)
    user = getpass.getuser()
    for text, expected in {
        "~": tmp_path / "home",
        "~/r": tmp_path / "home" / "r",
        f"~{user}/r": os.path.join(pwd.getpwnam(user).pw_dir, "r"),
        "$PLACE/r": tmp_path / "place" / "r",
        "${PLACE}r/../x": tmp_path / "x",
        "$INDIRECT": tmp_path / "home" / "r",
        "r": tmp_path / "r",
        "./~nobody": tmp_path / "~nobody",
        "5$ each": tmp_path / "5$ each",
        "/r/": "/r",
    }.items():
        assert str(expand_path(text)) == str(expected)


def test_a_link_leads_where_the_system_goes(tmp_path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "x").touch()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    assert expand_path(f"{tmp_path}/link/../x").exists()
    assert expand_path(f"{tmp_path}/far/deep/../x") == tmp_path / "far" / "x"


def test_links_stay_links(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert expand_path(f"{tmp_path}/link/x") == tmp_path / "link" / "x"


def test_a_dollar_in_the_name_of_what_exists_stays(tmp_path):
    (tmp_path / "cost$usd").mkdir()
    assert expand_path(f"{tmp_path}/cost$usd") == tmp_path / "cost$usd"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a path, got nothing"),
        (
            "~nobody-here/r",
            "expected a user of this machine after ~, got '~nobody-here/r'. Write the path out, or write "
            "'./~nobody-here/r' if this is its name",
        ),
        ("/x/$NOWHERE", "expected a value of the variable NOWHERE for '/x/$NOWHERE', got none. Set it, or write the"),
        ("${EMPTY}/r", "expected a value of the variable EMPTY for '${EMPTY}/r', got none. Set it, or write the path "),
    ],
)
def test_a_path_that_cannot_be_expanded_is_a_mistake(monkeypatch, text, message):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigError) as raised:
        expand_path(text, "--output")
    assert str(raised.value).startswith(f"--output: {message}")
    with pytest.raises(ConfigError) as raised:
        expand_path(text)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_directory(monkeypatch, no_home, home):
    if home is not None:
        monkeypatch.setenv("HOME", home)
    message = "KPIPE_LOGS: expected a home directory for '~/r', got none. Set HOME, or write the path out"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        expand_path("~/r", "KPIPE_LOGS")


def test_a_relative_path_in_a_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    message = "logs: 'r' is relative to the current folder, which has been deleted. Change to another folder"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        expand_path("r", "logs")
    assert str(expand_path("/r")) == "/r"


def test_yaml_is_read_as_it_was_written(tmp_path):
    """Also a path that is not UTF-8, which libyaml does not read."""
    value = {"name": "1e3", "source": "folder:/a/caf\udce9\n", "peak": 1e-7, "augment": [], "clip": None}
    write_yaml(tmp_path / "config.yaml", value)
    assert read_yaml(tmp_path / "config.yaml") == value


@pytest.mark.parametrize("text", ["[" * 50_000, "a: " + "{a: " * 20_000, "a: &x 1\nb: *x\n", "a: [", "- 1\n", "\0"])
def test_yaml_that_kpipe_does_not_write_is_not_read(tmp_path, text):
    """Depth would overflow the stack of libyaml, and a few aliases expand to gigabytes."""
    (tmp_path / "config.yaml").write_text(text)
    assert read_yaml(tmp_path / "config.yaml") is None
