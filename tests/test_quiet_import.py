"""Standard error while kpipe imports TensorFlow: nothing of a notebook's output is not the user's."""

import os
import subprocess
import sys

import pytest

from kpipe.quiet_import import LOG_LEVEL

CHATTER = """\
import os
os.write(2, b"from native code\\n")
level = os.environ["TF_CPP_MIN_LOG_LEVEL"]
"""


def run(code, folder=None, **environment):
    """Run Python in a new process; return standard output and error."""
    inherited = {name: value for name, value in os.environ.items() if name != LOG_LEVEL}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=inherited | environment, cwd=folder, capture_output=True, text=True)
    return done.stdout, done.stderr


@pytest.fixture
def chatty(tmp_path):
    """A folder in which TensorFlow is a module that writes to descriptor 2."""
    (tmp_path / "tensorflow.py").write_text(CHATTER)
    return tmp_path


@pytest.mark.slow
def test_networks_and_data_are_quiet():
    code = 'from kpipe.models import lenet5; from kpipe.data import load_dataset; load_dataset("digits")'
    assert run(code) == ("", "")


def test_whoever_imports_tensorflow_first_it_is_quiet(chatty):
    out, err = run("import kpipe, tensorflow; print(tensorflow.level)", chatty)
    assert out.strip() in ("2", "3")
    assert err == ""


def test_a_level_that_is_set_is_obeyed(chatty):
    code = "import kpipe, tensorflow; print(tensorflow.level)"
    assert run(code, chatty, TF_CPP_MIN_LOG_LEVEL="1") == ("1\n", "from native code\n")


def test_what_was_said_before_an_import_failed_is_shown(chatty):
    (chatty / "tensorflow.py").write_text(CHATTER + "raise ImportError('a library is missing')")
    _, err = run("import kpipe, tensorflow", chatty)
    assert err.startswith("from native code\n")
    assert "ImportError: a library is missing" in err


def test_without_standard_error_the_import_works(chatty):
    out, _ = run("import os, sys; os.close(2); sys.stderr = None\nimport kpipe, tensorflow; print('done')", chatty)
    assert out == "done\n"


def test_a_faulthandler_of_the_user_stays(chatty):
    code = "import faulthandler; {}; import kpipe, tensorflow; print(faulthandler.is_enabled())"
    assert run(code.format("faulthandler.enable()"), chatty) == ("True\n", "")
    assert run(code.format("pass"), chatty) == ("False\n", "")
