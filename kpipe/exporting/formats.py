"""The formats, what each needs, and the line of Python that uses it. Nothing here imports TensorFlow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kpipe.catalog.wording import show
from kpipe.errors import ConfigError, did_you_mean
from kpipe.files import check_output_folder, expand_path
from kpipe.names import path_shown

CARD = "model_card.json"
IMAGES, LOGITS = "images", "logits"
"""Names of a network's input and output in each format that names them."""


@dataclass(frozen=True)
class Format:
    """A format and its runtime."""

    file: str
    """Name of the file, or of SavedModel's folder."""
    runtime: str
    """Package that computes the network, by its name on PyPI."""
    imports: str
    """Line of Python that imports the runtime."""
    load: str
    """Python that returns the network in the file `{path}`."""
    call: str
    """Python that returns the logits of `images`, float32 [B, H, W, C], from what was loaded as `network`."""
    modules: tuple[str, ...] = ()
    """What must be installed besides kpipe's own dependencies."""
    takes_any_size: bool = True
    """Whether the format keeps the size of the images open where the network does."""

    def code(self, path: str) -> list[str]:
        """Return the lines of Python that load the file and compute the logits of `images`."""
        return [f"network = {self.load.format(path=json.dumps(path))}", f"logits = {self.call}"]


FORMATS = {
    "keras": Format("model.keras", "keras", "import keras", "keras.saving.load_model({path})", "network(images)"),
    "saved_model": Format(
        "model",
        "tensorflow",
        "import tensorflow as tf",
        "tf.saved_model.load({path})",
        f'network.serve(images)["{LOGITS}"]',
    ),
    "onnx": Format(
        "model.onnx",
        "onnxruntime",
        "import onnxruntime",
        "onnxruntime.InferenceSession({path})",
        f'network.run(["{LOGITS}"], {{"{IMAGES}": images}})[0]',
        modules=("onnx", "tf2onnx", "onnxruntime"),
        takes_any_size=False,
    ),
    "litert": Format(
        "model.tflite",
        "ai-edge-litert",
        "from ai_edge_litert.interpreter import Interpreter",
        "Interpreter({path}).get_signature_runner()",
        f'network({IMAGES}=images)["{LOGITS}"]',
        modules=("ai_edge_litert",),
        takes_any_size=False,
    ),
}

INT8_FILE = "model_int8.tflite"


def check_arguments(
    trained: str | Path, to: str | Sequence[str], output: str | Path | None, int8: bool
) -> tuple[list[str], Path]:
    """Return the names of the formats, each once, and the folder to which each adds its own.

    Args:
        trained: the run directory or model file.
        to: one or several names of `FORMATS`.
        output: the folder; None: `export` in that of the network.
        int8: whether a quantized network is wanted too.

    Raises:
        ConfigError: an unknown format, one whose packages are not installed, or a folder that cannot be written.
    """
    names = list(dict.fromkeys([to] if isinstance(to, str) else to))
    if not names:
        raise ConfigError(f"to: expected one or more of {', '.join(FORMATS)}, got none")
    for name in names:
        if name not in FORMATS:
            raise ConfigError(
                f"to: expected one of {', '.join(FORMATS)}, got {show(name)}{did_you_mean(name, FORMATS)}"
            )
    if int8 and "litert" not in names:
        raise ConfigError(f"int8: expected the format litert, which alone is quantized, got {', '.join(names)}")
    for name in names:
        if missing := [module for module in FORMATS[name].modules if find_spec(module) is None]:
            raise ConfigError(
                f"to: {name} needs {', '.join(each.replace('_', '-') for each in missing)}, which cannot be imported. "
                'Install with: pip install -e ".[export]"'
            )
    if output is None:
        given = expand_path(str(trained))
        folder = (given if given.is_dir() else given.parent) / "export"
    else:
        folder = expand_path(str(output), "output")
    check_output_folder(folder)
    for path in (folder / name for name in names):
        if path.exists() and not (path / CARD).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise ConfigError(
                f"output: expected an empty folder or an earlier export to replace, got {path_shown(path)}, which is "
                "neither. Move it, or give another output folder"
            )
    return names, folder
