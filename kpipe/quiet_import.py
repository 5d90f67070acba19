"""Holds back what TensorFlow writes about itself, which would stand between the results of a notebook."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

from kpipe.host import has_nvidia_driver
from kpipe.streams import hold_back_libraries

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def quiet_tensorflow() -> None:
    """Hold back what TensorFlow writes while it is imported, and afterwards whatever is no error.

    If TF_CPP_MIN_LOG_LEVEL is set, that level alone decides.
    """
    sys.meta_path.insert(0, _QuietFinder())


class _QuietFinder(MetaPathFinder):
    """Finds TensorFlow for Python's `import`, whoever imports it first: kpipe, Keras or the user.

    The log level alone would not do: TensorFlow 2.21 writes its first lines before it reads the level.
    """

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "tensorflow" and LOG_LEVEL not in os.environ else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_quietly(module):
            # Without a driver, TensorFlow calls it an error that it finds no GPU.
            os.environ[LOG_LEVEL] = "2" if has_nvidia_driver() else "3"
            with hold_back_libraries():
                execute(module)

        spec.loader.exec_module = execute_quietly
        return spec
