"""Saving a network so that anyone can load it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from kpipe.catalog.networks import find_network
from kpipe.catalog.rows import check_options
from kpipe.errors import EnvironmentFault
from kpipe.files import replacing
from kpipe.models.building import build_network
from kpipe.models.keras_files import mean_and_std
from kpipe.models.layers import InputShape
from kpipe.models.preprocessing import Normalization, make_preprocessing, make_rescaling


def save_portable(
    model: keras.Model,
    path: str | Path,
    *,
    name: str,
    options: dict,
    input_shape: InputShape,
    classes: int,
    normalization: Normalization,
) -> None:
    """Write a .keras file in float32, of plain Keras layers wherever the network allows.

    LeNet-5, VGG and the others without layers of kpipe's own load where kpipe is not installed, unless the images are
    whitened or a mean image is subtracted. What only training needs, such as auxiliary heads and constraints of
    kernels, is left out. A network that ends in a global average is written for images of any size, if its first layer
    takes them.

    A file that is there already is replaced in one step: it is never seen half-written, and it survives a full disk.

    Args:
        model: built by `build_model` from the arguments below, under any dtype policy.
        path: of the file.
        name, options, input_shape, classes, normalization: as for `build_model`.

    Raises:
        ConfigError: as `build_model`.
        OSError: the file cannot be written.
    """
    section = find_network(name).options
    kept = {option: value for option, value in options.items() if option not in section.training_only}
    if check_options(name, section, **kept).any_size and normalization.per_channel:
        input_shape = (None, None, input_shape[-1])
    with _float32():
        portable = build_network(name, kept, input_shape, classes, make_preprocessing(normalization, portable=True))
    for layer in portable.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
        if getattr(layer, "kernel_constraint", None):
            layer.kernel_constraint = None  # of use in training alone, and ZFNet's is a class of kpipe's
    with replacing(Path(path)) as beside:
        portable.save(beside)


def load_portable_weights(model: keras.Model, path: str | Path) -> None:
    """Load the weights that `save_portable` wrote into a model that was built in the same way.

    Layers that only training needs keep theirs.

    Raises:
        EnvironmentFault: the file cannot be read.
    """
    try:
        portable = keras.models.load_model(path, compile=False)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"{path}: the best weights so far cannot be read ({error}); remove the file and give the same command again"
        ) from None
    copy_weights(portable, model)


def copy_weights(portable: keras.Model, model: keras.Model) -> None:
    """Copy the weights of a model that `save_portable` wrote into one that was built in the same way."""
    for layer in portable.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())


def make_exportable(model: keras.Model, input_shape: InputShape) -> keras.Model:
    """Return a copy of a loaded model for images (H, W, C), in layers that every format of other runtimes has.

    It is not compiled. The constants of a `Normalization`, which files of kpipe once had and others have, become those
    of a `Rescaling`.

    Args:
        model: one input, float32 [B, H, W, C].
        input_shape: (H, W, C); H and W are None where any size is to be taken.
    """
    with_weights: list[tuple[keras.Layer, keras.Layer]] = []

    def copy(layer: keras.Layer) -> keras.Layer:
        if _normalizes_channels(layer):
            return make_rescaling(*mean_and_std(layer), layer.name)
        made = layer.__class__.from_config(layer.get_config())
        if getattr(layer, "weights", None):  # an operation has none
            with_weights.append((layer, made))
        return made

    images = keras.Input(input_shape, name="images")
    copied = keras.models.clone_model(model, input_tensors=images, clone_function=copy, recursive=True)
    for layer, made in with_weights:
        made.set_weights(layer.get_weights())
    # Keras clones the loss and the metrics too, which may be kpipe's. A file with them does not load elsewhere.
    return keras.Model(copied.inputs[0], copied.outputs[0], name=copied.name)


def _normalizes_channels(layer: keras.Layer) -> bool:
    is_plain = isinstance(layer, keras.layers.Normalization) and not layer.invert
    return is_plain and layer.axis in ((), (-1,), (3,))


@contextmanager
def _float32() -> Iterator[None]:
    """Let layers that are made inside compute in float32; a layer takes its dtype policy when it is made."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
