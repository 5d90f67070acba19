"""Formats in which a trained network is exported: what each needs, and the lines of Python that use it."""

from typing import NamedTuple

CARD, PAGE = "model_card.json", "MODEL_CARD.md"
"""Files beside each export. The first marks the folder as one."""
IMAGES, LOGITS = "images", "logits"
"""Names of a network's input and output in each format that names them."""


class Format(NamedTuple):
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

    def code(self, path: str, needs: str = "") -> list[str]:
        """Return the lines of Python that load the file and compute the logits of `images`.

        Args:
            path: of the file.
            needs: line of Python that imports what the file needs besides the runtime; may be empty.
        """
        imports = [needs, self.imports] if needs else [self.imports]
        return [*imports, f"network = {self.load.format(path=repr(path))}", f"logits = {self.call}"]


FORMATS = {
    "keras": Format(
        "model.keras", "keras", "import keras", "keras.saving.load_model({path})", "network(images, training=False)"
    ),
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
NEEDS_KPIPE = "import kpipe.models"
"""Line of Python without which Keras does not find the layers that are kpipe's own."""
