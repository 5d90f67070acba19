"""The messages about overrides, as the command line shows them. `tests/test_api.py` has those in Python."""

import pytest

from kpipe.caller import on_command_line


@pytest.fixture(autouse=True)
def _on_command_line():
    with on_command_line():
        yield
