"""Weights in Keras's own files: .keras, .weights.h5, and the older .h5 of keras.applications."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np

from kpipe.catalog.networks import MODELS
from kpipe.catalog.weights import IMAGENET, unusable
from kpipe.errors import first_line, some
from kpipe.files import expand_path, read_names
from kpipe.models.preprocessing import (
    NAMED,
    Normalization,
    Standardize,
    SubtractMeanImage,
    Whiten,
    is_preprocessing,
)
from kpipe.models.structure import find_nodes
from kpipe.models.vgg import FILTERS, STAGES, list_places
from kpipe.models.weight_files import Arrays, NamedWeights, translate_damage


class KerasFile(NamedTuple):
    """What a file of Keras holds, by the names of its own layers."""

    layers: dict[str, Arrays]
    left_out: dict[str, str]
    name: str | None = None
    """Of the model."""
    normalization: Normalization | None = None
    has_preprocessing: bool = False
    class_names: tuple[str, ...] | None = None


_PREPROCESSING = "it belongs to the preprocessing, which the network has already"
_APPLICATIONS = {"vgg16": "VGG16", "vgg19": "VGG19"}
_APPLICATIONS_HEAD = {"fc1": "fc6", "fc2": "fc7", "predictions": "logits"}


def name_layers(source: str, file: KerasFile, network: str) -> NamedWeights:
    """Name the layers of a Keras file as kpipe does, whether they have its names or those of keras.applications.

    Raises:
        ConfigError: they are those of another network.
    """
    names = {name: re.sub(r"^block(\d)_conv(\d)$", r"conv\1_\2", name) for name in file.layers}
    is_published = any(ours != theirs for theirs, ours in names.items())
    convolutions = {ours for ours in names.values() if re.fullmatch(r"conv\d_\d", ours)}
    candidates = _APPLICATIONS if is_published else STAGES
    alike = [each for each in candidates if convolutions == {f"conv{place}" for place in list_places(each)}]
    if not is_published:
        alike = [file.name] if file.name in MODELS else alike
        found = _choose_network(source, network, alike or [network])
        return NamedWeights(f"kpipe's {found}", found, file.layers, file.normalization, file.class_names, file.left_out)
    if not alike:
        raise unusable(
            source,
            "expected the convolutions of keras.applications' VGG16 or VGG19, got others of such names: "
            f"{some([theirs for theirs, ours in names.items() if ours in convolutions])}",
        )
    found = _choose_network(source, network, alike)
    layers = {_APPLICATIONS_HEAD.get(ours, ours): file.layers[theirs] for theirs, ours in names.items()}
    normalization = file.normalization if file.has_preprocessing else NAMED["caffe"]
    kind = f"keras.applications' {_APPLICATIONS[found]}"
    return NamedWeights(kind, found, layers, normalization, file.class_names, file.left_out)


def _choose_network(source: str, network: str, alike: list[str]) -> str:
    """Return the network that weights are of; if none of those that they may be of fits, raise ConfigError."""
    fitting = [network, "vgg11"] if network in STAGES else [network]  # a deeper net may start from net A
    for found in fitting:
        if found in alike:
            return found
    raise unusable(
        source,
        f"expected weights of {network}, got those of {alike[0]}. Choose the network {alike[0]}, or give weights of "
        f"{network}",
    )


def load_keras_file(path: Path, where: str = "") -> keras.Model:
    """Load a .keras file, and run no code that is in it.

    Args:
        path: the file.
        where: what named it, as for `unusable`.

    Raises:
        ConfigError: the file is damaged, or has layers that are neither Keras's nor kpipe's.
    """
    with translate_damage(path, where):
        try:
            return keras.models.load_model(path, compile=False, safe_mode=True)
        except (ValueError, TypeError) as error:
            _refuse_code(path, error, where)
            raise


def read_model(path: Path) -> KerasFile:
    model = load_keras_file(path, "model.init_from: ")
    with translate_damage(path):
        layers, left_out = {}, {}
        for layer in list_leaves(model):
            if is_preprocessing(layer):
                left_out |= {layer.name: _PREPROCESSING} if layer.weights else {}
            elif layer.weights:
                _add(path, layers, layer.name, layer.get_weights())
        normalization, has_preprocessing = find_normalization(model)
        names = tuple(read_names(path.parent / "classes.txt"))
        class_names = names if len(names) == model.outputs[0].shape[-1] else None
        return KerasFile(layers, left_out, model.name, normalization, has_preprocessing, class_names)


def _refuse_code(path: Path, error: Exception, where: str) -> None:
    """Raise ConfigError where Keras would need code that is not its own to load a model."""
    unknown = re.search(r"Could not locate (?:class|function) '(\w+)'", str(error))
    if unknown or "`Lambda`" in str(error):
        what = f"'{unknown[1]}', which Keras does not know" if unknown else "a Lambda layer, whose code is not run"
        raise unusable(
            str(path),
            f"expected layers of Keras and kpipe, got {what}. Where it was trained, save the weights alone with "
            "model.save_weights('model.weights.h5'), and give that file",
            where,
        ) from None


def list_leaves(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a model, and of the models in it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from list_leaves(layer)
        else:
            yield layer


def find_normalization(model: keras.Model) -> tuple[Normalization | None, bool]:
    """Return what a model does to the raw images before its first layer with weights, and whether it does anything.

    The normalization is None where it is not one that kpipe knows.
    """
    steps = []
    for node in find_nodes(model.inputs, model.outputs):
        layer = node.operation
        if isinstance(layer, keras.Layer) and layer.weights and not is_preprocessing(layer):
            break
        if not isinstance(layer, keras.layers.InputLayer | keras.layers.ZeroPadding2D | keras.layers.Flatten):
            steps.append(layer)
    if not steps:  # unless it is in a model within the model
        is_inside = any(map(is_preprocessing, list_leaves(model)))
        return (None, True) if is_inside else (NAMED["none"], False)
    flips = type(steps[0]).__name__ == "Flip" and steps[0].axis == -1
    [layer, *others] = steps[1:] if flips and steps[1:] else steps
    if others or not is_preprocessing(layer):
        return None, True
    if isinstance(layer, SubtractMeanImage):
        return Normalization("mean_image", layer.get_weights()[0]), True
    if isinstance(layer, Whiten):
        mean, matrix = layer.get_weights()
        return Normalization("whiten", mean, matrix=matrix), True
    return Normalization("caffe" if flips else "affine", *mean_and_std(layer)), True


def mean_and_std(layer: keras.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return the constants of a layer that computes `(images - mean) / std`."""
    if isinstance(layer, Standardize):
        return np.asarray(layer.mean), np.asarray(layer.std)
    if isinstance(layer, keras.layers.Rescaling):
        scale = np.asarray(layer.scale, "float64")
        return -np.asarray(layer.offset) / scale, 1 / scale
    mean, variance = layer.input_mean, layer.input_variance
    if mean is None:  # adapted to images, and kept as weights
        mean, variance = layer.get_weights()[:2]
    return np.ravel(mean), np.maximum(np.sqrt(np.ravel(variance)), keras.config.epsilon())  # as Keras, of no variance


def read_h5(path: Path) -> KerasFile:
    """Read a .weights.h5 file, or one in the older format, as keras.applications publishes them."""
    with translate_damage(path), h5py.File(path) as file:
        group = file["model_weights"] if "model_weights" in file else file
        if "layer_names" in group.attrs:
            return _read_older_h5(path, group)
        groups: dict[str, h5py.Group] = {}
        file.visititems(lambda name, found: groups.update({name: found}) if name.endswith("/vars") else None)
        layers, left_out = {}, {}
        for place, found in groups.items():
            arrays = [_read_array(found[name]) for name in sorted(found, key=int)]
            holder = place.split("/")[-2]
            if not arrays:
                continue
            if not place.startswith("layers/"):
                left_out[place] = "it is the state of the training"
            elif re.sub(r"_\d+$", "", holder) in ("normalization", "subtract_mean_image", "whiten"):
                left_out[found.attrs["name"]] = _PREPROCESSING
            elif "name" in found.attrs:
                _add(path, layers, found.attrs["name"], arrays)
            else:
                raise unusable(
                    str(path),
                    f"expected the names of the layers, got weights of '{holder}' without a name: older versions of "
                    f"Keras wrote none. Save the weights again with Keras {keras.__version__}",
                )
        return KerasFile(layers, left_out)


def _read_older_h5(path: Path, group: h5py.Group) -> KerasFile:
    layers: dict[str, Arrays] = {}
    for layer in map(_as_text, group.attrs["layer_names"]):
        names = list(map(_as_text, group[layer].attrs["weight_names"]))
        if names:
            _add(path, layers, layer, [np.asarray(group[layer][name]) for name in names])
    return KerasFile(layers, {})


def _as_text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _read_array(dataset: h5py.Dataset) -> np.ndarray:
    array = np.asarray(dataset)
    return array.view("bfloat16") if dataset.attrs.get("dtype") == "bfloat16" else array  # to HDF5 it is two raw bytes


def _add(path: Path, layers: dict[str, Arrays], name: str, arrays: Arrays) -> None:
    if name in layers:
        raise unusable(str(path), f"expected layers with names of their own, got two called '{name}'")
    layers[name] = arrays


_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
_DIGESTS = {
    "vgg16_weights_tf_dim_ordering_tf_kernels.h5": "64373286793e3c8b2b4e3219cbf3544b",
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5": "6d6bbae143d832006294945121d1f1fc",
    "vgg19_weights_tf_dim_ordering_tf_kernels.h5": "cbe5617147190e668d6c5d5026f83318",
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5": "253f8cb515780f3b799900260a226db6",
}
"""MD5 of the files that keras.applications downloads."""
_PATIENCE = 10  # seconds without an answer


class _Published(NamedTuple):
    """A file of keras.applications, and where Keras keeps it."""

    name: str
    url: str
    home: Path
    has_dense_layers: bool


def _published_file(network: str, options: dict[str, Any], image_size: int | None) -> _Published:
    """Return the file for a network. That with the dense layers is nine times as large, and only for such a head."""
    has_dense_layers = options.get("head", "fc") == "fc" and options.get("width", 4096) == 4096
    has_dense_layers = has_dense_layers and image_size in (None, 224)
    name = f"{network}_weights_tf_dim_ordering_tf_kernels{'' if has_dense_layers else '_notop'}.h5"
    home = expand_path(os.environ.get("KERAS_HOME") or "~/.keras", "KERAS_HOME")
    return _Published(name, f"{_URL}/{network}/{name}", home, has_dense_layers)


def is_downloaded(network: str, options: dict[str, Any], image_size: int | None) -> bool:
    """Return whether Keras has downloaded its weights of a VGG network before."""
    file = _published_file(network, options, image_size)
    return (file.home / "models" / file.name).exists()


def describe_download(network: str, options: dict[str, Any], image_size: int | None) -> NamedWeights:
    """Return what `download` would give: zeros of the right shapes, which take no memory."""
    channels, shapes = 3, {}
    for stage, (kernels, filters) in enumerate(zip(STAGES[network], FILTERS, strict=True), start=1):
        for number, kernel in enumerate(kernels, start=1):
            shapes[f"conv{stage}_{number}"] = [(kernel, kernel, channels, filters), (filters,)]
            channels = filters
    if _published_file(network, options, image_size).has_dense_layers:
        dense = {"fc6": (7 * 7 * channels, 4096), "fc7": (4096, 4096), "logits": (4096, 1000)}
        shapes |= {name: [(inputs, units), (units,)] for name, (inputs, units) in dense.items()}
    layers = {name: [np.broadcast_to(np.float32(0), shape) for shape in those] for name, those in shapes.items()}
    kind = f"keras.applications' {_APPLICATIONS[network]}"
    return NamedWeights(kind, network, layers, NAMED["caffe"], None, {})


def download(network: str, options: dict[str, Any], image_size: int | None) -> Path:
    """Return the file with Keras's weights of a VGG network, downloaded where it is not in Keras's cache.

    Args:
        network: vgg16 or vgg19.
        options: of the network.
        image_size: side of the images in pixels; None: not known. The dense layers fit 224 pixels alone.

    Raises:
        ConfigError: it cannot be downloaded.
    """
    name, url, home, _ = _published_file(network, options, image_size)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)  # Keras has none: where packets are dropped, it would wait for minutes
    try:
        home.mkdir(parents=True, exist_ok=True)
        return Path(keras.utils.get_file(name, url, file_hash=_DIGESTS[name], cache_subdir="models", cache_dir=home))
    except Exception as error:  # Keras raises Exception itself
        reason = first_line(str(error).rpartition(" -- ")[2])
        raise unusable(
            IMAGENET,
            f"expected {name} in {home / 'models'} or a connection to download it, got '{reason}'. Download "
            f"{url} where there is a connection, and put the file there",
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
