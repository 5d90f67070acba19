"""Building a network by its name, if need be without the memory that its weights take."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend.common import global_state  # Keras has no public way to number layers anew

from kpipe.catalog.networks import OwnModelRow, find_network
from kpipe.catalog.own_code import running
from kpipe.catalog.rows import check_options
from kpipe.errors import ConfigError
from kpipe.models.layers import InputShape
from kpipe.models.preprocessing import NAMED, Normalization, Preprocessing, make_preprocessing
from kpipe.models.structure import find_squashing

_NUMBERS = "object_name_uids"


def build_model(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    input_shape: InputShape,
    classes: int,
    normalization: Normalization = NAMED["unit"],
) -> keras.Model:
    """Build the network called `name`: raw images float32 [B, H, W, C], 0..255, to logits float32 [B, K].

    Args:
        name: a name in `kpipe.catalog.networks.MODELS`.
        options: options of the network, such as {"batch_norm": True}; see `kpipe list models vgg16`.
        input_shape: (H, W, C).
        classes: K.
        normalization: how the first layer normalizes the raw images, and its constants.

    Raises:
        ConfigError: an unknown name, or arguments from which this network cannot be built.
    """
    return build_network(name, options or {}, input_shape, classes, make_preprocessing(normalization))


@contextmanager
def deferred_initialization() -> Iterator[None]:
    """Build networks and optimizers inside the `with` whose variables have a shape and a dtype, but no value yet.

    They take no memory and compute nothing. End with `initialize_variables` or `discard_variables`.
    """
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    except BaseException:
        discard_variables()
        raise


def initialize_variables() -> None:
    """Initialize the variables made under `deferred_initialization`, as they would have been at once."""
    with keras.StatelessScope():
        pass  # Keras 3.15 does it where the outermost such scope ends, and has no public function for it


def discard_variables() -> None:
    """Keep Keras from initializing, later, the variables made under `deferred_initialization`.

    Keras counts the names of layers from 1 again, and draws its own seed anew. The dtype policy stays.
    """
    policy = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)


def build_network(
    name: str, options: Mapping[str, Any], input_shape: InputShape, classes: int, preprocessing: Preprocessing
) -> keras.Model:
    """Build the network called `name` with this layer for the raw images; otherwise as `build_model`."""
    row = find_network(name)
    if isinstance(row, OwnModelRow):
        return _build_own(row, options, input_shape, classes, preprocessing)
    check_options(name, row.options, **options)
    return row.load()(input_shape, classes, preprocessing=preprocessing, **options)


@contextmanager
def _numbering_layers_anew() -> Iterator[None]:
    """Let Keras number layers without a name as in a new process.

    It numbers them over the whole process, and a checkpoint knows its variables by these names.
    """
    numbers = global_state.get_global_attribute(_NUMBERS)
    global_state.set_global_attribute(_NUMBERS, defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(_NUMBERS, numbers)


def _build_own(
    row: OwnModelRow, options: Mapping[str, Any], input_shape: InputShape, classes: int, preprocessing: Preprocessing
) -> keras.Model:
    """Build a network of the user's own, and check what comes out of it."""
    checked = check_options("model", row.options, **options)
    where = f"model.name: {row.target}"
    with running(row.target, f"{where}: expected a network, got"), _numbering_layers_anew():
        model = row.function(input_shape=input_shape, classes=classes, preprocessing=preprocessing, **dict(checked))
    _check_form(where, model, input_shape, classes)
    with _numbering_layers_anew():
        _check_layers_load(where, model)
    return model


def _check_form(where: str, model: Any, input_shape: InputShape, classes: int) -> None:
    """Raise ConfigError unless this is a functional model of raw images to logits."""
    if not isinstance(model, keras.Model):
        raise ConfigError(f"{where}: expected a keras.Model, got {type(model).__name__}")
    if not _is_functional(model):
        raise ConfigError(
            f"{where}: expected a model with the inputs and outputs that it was made of, keras.Model(images, logits), "
            f"got {type(model).__name__}"
        )
    shapes = [tuple(each.shape) for each in model.inputs]
    if shapes != [(None, *input_shape)]:
        raise ConfigError(f"{where}: expected one input of images, {(None, *input_shape)}, got {_listed(shapes)}")
    shapes = [tuple(each.shape) for each in model.outputs]
    if shapes != [(None, classes)]:
        raise ConfigError(
            f"{where}: expected one output of {classes} logits for each image, (None, {classes}), got {_listed(shapes)}"
        )
    if model.outputs[0].dtype != "float32":
        raise ConfigError(
            f'{where}: expected logits in float32, got {model.outputs[0].dtype}. Give the last layer dtype="float32"'
        )
    last, squashing = find_squashing(model)
    if squashing:
        raise ConfigError(
            f"{where}: expected logits, got a network that ends in {squashing} (layer {last.name}). Leave the "
            "activation out: the loss and the metrics compute it"
        )


def _is_functional(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.Model) and bool(getattr(layer, "outputs", None))


def _list_saved_layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    """Yield the layers of a model and of the models in it, each of which a file holds by itself."""
    if _is_functional(layer) and type(layer).__module__.startswith("keras."):
        for inner in layer.layers:
            yield from _list_saved_layers(inner)
    else:
        yield layer


def _listed(shapes: Sequence[tuple]) -> str:
    return ", ".join(map(str, shapes))


def _check_layers_load(where: str, model: keras.Model) -> None:
    """Raise ConfigError for a layer that Keras could not load from a file, before hours of training have gone into it.

    A layer is made anew from its configuration, and not built: that takes no memory.
    """
    for layer in _list_saved_layers(model):
        problem = f"{where}: expected layers that Keras can load from a file, got {type(layer).__name__} '{layer.name}'"
        if isinstance(layer, keras.layers.Lambda):
            raise ConfigError(f"{problem}, whose code is not run. Make a class of it, a keras.Layer")
        try:
            with warnings.catch_warnings(action="ignore"):  # what they say raises an error at once
                config = keras.saving.serialize_keras_object(layer)
                keras.saving.deserialize_keras_object({**config, "build_config": None})
        except Exception as error:  # whatever the user's layer raises
            raise ConfigError(
                f"{problem}. Write @keras.saving.register_keras_serializable() before classes and functions of your "
                "own, let get_config() return what a class is made with, and use no lambda"
            ) from error
        if config["config"].get("name") != layer.name:  # by which its weights are found
            raise ConfigError(
                f"{problem}, whose name would be lost. Give its class a get_config() that returns "
                "{**super().get_config(), ...} with what the class is made with"
            )
