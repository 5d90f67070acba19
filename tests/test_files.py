"""FileSplit: replaced in one step, whatever happens on the way."""

import os

import pytest

from kpipe.files import replacing, write_text


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
