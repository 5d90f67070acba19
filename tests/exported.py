"""What tests of exports have in common: formats whose packages may be missing."""

from importlib.util import find_spec

import pytest

from kpipe.catalog.formats import FORMATS


def needs(name):
    """Return the name of a format as a parameter of a test, which is skipped where its packages are missing."""
    missing = [module for module in FORMATS[name].modules if find_spec(module) is None]
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"{name} needs {', '.join(missing)}"))
