"""Writing a network: one function a format. Raw images [B, H, W, C], 0..255, go in; logits [B, K] come out.

B batch, H height, W width, C channels, K classes.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.catalog.formats import FORMATS, IMAGES, LOGITS
from kpipe.errors import ConfigError, OutOfMemory, first_line
from kpipe.files import cannot_write, refusal_in
from kpipe.models.keras_files import list_leaves


def write_keras(model: keras.Model, path: Path) -> None:
    """Write Keras's own format, which names the classes of the layers and does not hold their code."""
    classes = {type(layer) for layer in list_leaves(model)}
    if others := sorted(each.__name__ for each in classes if not each.__module__.startswith(("keras.", "kpipe."))):
        raise _cannot_hold("keras", "layers of Keras and kpipe", ", ".join(others))
    model.save(path)


def write_saved_model(model: keras.Model, path: Path) -> None:
    """Write the folder of a SavedModel, with the endpoints `serve` and `serving_default`."""
    named, images = _name_ends(model)
    archive = keras.export.ExportArchive()
    # The variables of the endpoint are saved with it. `Model.export` tracks the model too, which saves them twice.
    archive.add_endpoint("serve", lambda given: named(given, training=False), [images])
    archive.write_out(path, verbose=False)


def write_onnx(model: keras.Model, path: Path) -> dict[str, int]:
    """Write an ONNX graph and return its versions; the size of the images must be known.

    The weights are inputs while the graph is converted, and are put into it afterwards: of constants tf2onnx makes
    dozens of copies. VGG-16 takes 4 GB of memory so, and more than 22 GB otherwise.
    """
    import onnx  # both are of the extra `export`
    import tf2onnx

    trainable, others = model.trainable_variables, model.non_trainable_variables

    def serve(images, *weights):
        logits, _ = model.stateless_call(weights[: len(trainable)], weights[len(trainable) :], images, training=False)
        return {LOGITS: logits}

    weights = {each.path.replace("/", "."): each for each in (*trainable, *others)}
    specs = [tf.TensorSpec(each.shape, each.dtype, name) for name, each in weights.items()]
    images = tf.TensorSpec(model.input_shape, "float32", IMAGES)
    converted, _ = tf2onnx.convert.from_function(tf.function(serve), [images, *specs])
    graph = converted.graph
    # tf2onnx leaves an operation as it is where ONNX has none.
    _refuse("onnx", {node.op_type for node in graph.node if not onnx.defs.has(node.op_type, node.domain)})
    used = {name for node in graph.node for name in node.input}  # the state of a dropout is not
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(each), name) for name, each in weights.items() if name in used
    )
    for given in [given for given in graph.input if given.name in weights]:
        graph.input.remove(given)
    onnx.save(converted, path)
    [opset] = (each.version for each in converted.opset_import if each.domain in ("", "ai.onnx"))
    return {"ONNX opset": opset, "IR": converted.ir_version}


def write_litert(model: keras.Model, path: Path, calibration: Iterable[np.ndarray] | None = None) -> None:
    """Write a LiteRT file of LiteRT's own operations; the size of the images must be known.

    Args:
        model: the network.
        path: of the file.
        calibration: images, each float32 [1, H, W, C], whose activations give the ranges of int8. Weights and
            activations are then 8 bits wide wherever LiteRT can; input and output stay float32.
    """
    # Keras would let operations of TensorFlow stand, which the runtime of LiteRT does not have.
    options: dict[str, Any] = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if calibration is not None:
        options |= {"optimizations": [tf.lite.Optimize.DEFAULT]}
        options |= {"representative_dataset": lambda: ({IMAGES: image} for image in calibration)}
    try:
        named, images = _name_ends(model)
        named.export(path, format="litert", verbose=False, input_signature=[images], **options)
    except Exception as error:  # the converter's own
        if lacking := re.search(r"(?:Select|Custom) ops: (.+)", str(error)):
            _refuse("litert", set(lacking[1].split(", ")))
        raise


WRITERS: dict[str, Callable[[keras.Model, Path], dict[str, int] | None]] = {
    "keras": write_keras,
    "saved_model": write_saved_model,
    "onnx": write_onnx,
    "litert": write_litert,
}
"""By the names of `FORMATS`."""


def write_format(name: str, model: keras.Model, path: Path, **options: Any) -> dict[str, int] | None:
    """Write a network in a format, and return the versions that the file has of it, by name, where it has any.

    Args:
        name: of `FORMATS`.
        model: as `make_exportable` returns it.
        path: of the file or the folder.
        options: further arguments of the format's function.

    Raises:
        ConfigError: the format lacks something that the network has.
        EnvironmentFault: the disk refuses the file, or the memory is too small.
        OSError: it cannot be written for another reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the converters about themselves
            return WRITERS[name](model, path, **options)
    except ConfigError:
        raise
    except Exception as error:  # each converter has its own
        if code := refusal_in(error):
            raise cannot_write(path, code) from None
        if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
            raise OutOfMemory(
                f"{name}: expected enough memory to write the network in this format, got '{first_line(error)}'. "
                "Nothing was kept; try again where more is free"
            ) from None
        if isinstance(error, OSError):
            raise
        raise _cannot_hold(
            name, f"a network that {name} can hold", f"'{first_line(error)}' from its converter"
        ) from None


def _refuse(name: str, operations: set[str]) -> None:
    """Raise ConfigError for operations that a format does not have, if there are any."""
    if operations:
        raise _cannot_hold(name, f"operations that {name} has", ", ".join(sorted(operations)))


def _cannot_hold(name: str, expected: str, got: str) -> ConfigError:
    others = ", ".join(other for other in FORMATS if other != name)
    return ConfigError(f"to: expected {expected}, got {got}. Nothing was written; other formats are {others}")


def _name_ends(model: keras.Model) -> tuple[keras.Model, keras.InputSpec]:
    """Return a model whose structure names the output, from which converters take the name, and its named input."""
    named = keras.Model(model.inputs, {LOGITS: model.outputs[0]})
    return named, keras.InputSpec(shape=model.input_shape, dtype="float32", name=IMAGES)
