"""What an export is given is checked first: formats, their packages, and the folder."""

import os

import pytest

from kpipe.errors import ConfigError
from kpipe.exporting.arguments import check_arguments


@pytest.fixture
def network(tmp_path):
    """A model file, which is not opened here."""
    (tmp_path / "a_file").touch()
    (tmp_path / "taken" / "keras").mkdir(parents=True)
    (tmp_path / "taken" / "keras" / "mine.txt").touch()
    return tmp_path / "net.keras"


def test_each_format_is_written_once_beside_the_network(network, tmp_path):
    assert check_arguments(network, ["keras", "saved_model", "keras"], None, int8=False) == (
        tmp_path / "export",
        {"keras": "keras", "saved_model": "saved_model"},
    )
    assert check_arguments(network, "keras", tmp_path / "to", int8=False) == (tmp_path / "to", {"keras": "keras"})


def test_other_weights_of_a_run_get_a_folder_of_their_own(tmp_path):
    for file, name in {"model.keras": "keras", "model_averaged.keras": "keras_averaged"}.items():
        assert check_arguments(tmp_path / file, "keras", None, int8=False) == (tmp_path / "export", {"keras": name})


@pytest.mark.parametrize(
    ("to", "output", "int8", "message"),
    [
        ("onx", None, False, "to: expected one of keras, saved_model, onnx, litert, got 'onx', did you mean 'onnx'?"),
        ([], None, False, "to: expected one or more of keras, saved_model, onnx, litert, got none"),
        ("keras", None, True, "int8: expected the format litert, which alone is quantized, got keras"),
        ("keras", "a_file", False, "output: expected a folder, got {0}/a_file, and {0}/a_file is a file"),
        (
            "keras",
            "taken",
            False,
            "output: expected an empty folder or an earlier export to replace, got {0}/taken/keras, which is neither. "
            "Move it, or give another output folder",
        ),
        (
            "keras",
            os.fsdecode(b"\xff"),
            False,
            "output: expected a folder whose path is UTF-8, which the runtimes need, got {0}/\\xff. Give another "
            "output folder",
        ),
    ],
)
def test_mistakes(network, tmp_path, to, output, int8, message):
    with pytest.raises(ConfigError) as caught:
        check_arguments(network, to, output and tmp_path / output, int8)
    assert str(caught.value) == message.format(tmp_path)


def test_a_folder_that_may_not_be_written(network, tmp_path, monkeypatch):
    monkeypatch.setattr("kpipe.files.os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=f"^output: expected a folder in which you may write, got {tmp_path}/export$"):
        check_arguments(network, "keras", None, int8=False)


def test_what_must_be_installed_is_said(network, monkeypatch):
    monkeypatch.setattr("kpipe.exporting.arguments.find_spec", lambda module: None)
    said = (
        r"^to: onnx needs onnx, tf2onnx, onnxruntime, which cannot be imported. Install with: pip install -e "
        r'"\.\[export\]"$'
    )
    with pytest.raises(ConfigError, match=said):
        check_arguments(network, "onnx", None, int8=False)
