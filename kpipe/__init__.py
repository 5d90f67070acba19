"""kpipe trains the classic convolutional networks with Keras 3. Read `kpipe/experiment.py` first."""

import importlib

from kpipe.quiet_import import quiet_tensorflow

__version__ = "0.1.0"

_PLACES = {
    "RunOptions": "kpipe.runs.options",
    "bench": "kpipe.commands.bench",
    "build_model": "kpipe.models",
    "evaluate": "kpipe.commands.evaluate",
    "explain": "kpipe.commands.explain",
    "export": "kpipe.commands.export",
    "load_dataset": "kpipe.data",
    "load_experiment": "kpipe.config",
    "load_trained": "kpipe.trained",
    "make_evaluation_pipeline": "kpipe.data",
    "make_pipeline": "kpipe.data",
    "predict": "kpipe.commands.predict",
    "search": "kpipe.tuning.tuner",
    "train": "kpipe.experiment",
}

_PACKAGES = ("data", "models")

__all__ = [*_PLACES, *_PACKAGES]

quiet_tensorflow()  # whose first lines come while it is imported


def __getattr__(name: str):
    # `import kpipe` costs nothing: TensorFlow is imported with the first name that needs it.
    if name in _PACKAGES:
        return importlib.import_module(f"kpipe.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'kpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
