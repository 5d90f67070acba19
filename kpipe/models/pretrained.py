"""Starting a network from weights that were trained before, by kpipe or by others.

`load_pretrained` reads a file and names what it holds by the layers of kpipe's networks, in Keras's layout.
`initialize_from` puts that into a model. Between the two, every array of the file is used, left out by a rule that is
stated, or an error.

| source                     | names of its layers            | how its images were normalized                       |
|----------------------------|--------------------------------|------------------------------------------------------|
| run directory, .keras      | kpipe's, or Keras's own VGG's  | as the model does; Keras's own VGG: `caffe`          |
| .weights.h5, .h5           | kpipe's, or Keras's own VGG's  | not known; Keras's own VGG: `caffe`                  |
| `imagenet`                 | Keras's own VGG's              | `caffe`                                              |
| .pth, .pt, .safetensors    | torchvision's                  | `imagenet`; GoogLeNet: mean and std of 127.5         |
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.catalog.networks import find_network
from kpipe.catalog.weights import IMAGENET, STATE_DICTS, check_weights_file, unusable
from kpipe.console import counted
from kpipe.errors import some
from kpipe.models.keras_files import describe_download, download, is_downloaded, name_layers, read_h5, read_model
from kpipe.models.preprocessing import Normalization, is_preprocessing
from kpipe.models.state_dicts import name_tensors, read_tensors
from kpipe.models.structure import features_and_head, find_nodes
from kpipe.models.vgg import COPIED
from kpipe.models.weight_files import OTHER_HEAD, Arrays

_NET_A = "a deeper net takes the first convolutions and the dense layers of net A only"
_SAME_OPTIONS = "Give the model the options with which the weights were trained"
_NO_AUXILIARY_HEADS = "the network has no auxiliary heads"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights by the names of kpipe's layers."""

    source: str
    """What they were read from."""
    sha256: str | None
    """Digest of the file; None: it is not downloaded yet, and the arrays have no more than their shapes."""
    kind: str
    """Whose they are, in words: `torchvision's vgg16`."""
    network: str
    """Network that they are of: `vgg11` where a deeper VGG network starts from net A."""
    layers: dict[str, Arrays]
    """Layer -> float32 arrays, as `layer.get_weights()` returns them."""
    normalization: Normalization | None
    """How the images of their training were normalized; None: not known."""
    class_names: tuple[str, ...] | None
    """In the order of the logits; None: not known."""
    left_out: dict[str, str]
    """Layer or tensor of the file that is not in `layers` -> why, in words."""

    @property
    def is_state_dict(self) -> bool:
        """Whether only its names say whose weights these are."""
        return Path(self.source).suffix in STATE_DICTS


@dataclass(frozen=True)
class Reuse:
    """What a model takes from weights. Layers without weights, and the preprocessing, count for neither."""

    kind: str
    """Whose weights they are, in words."""
    sha256: str | None
    """Digest of the file; None: it is not downloaded yet."""
    reused: tuple[str, ...]
    """Layers that take the weights of the file, in the order of `model.layers`."""
    new: tuple[str, ...]
    """Layers that keep their initial weights."""
    left_out: dict[str, str]
    """Layer or tensor of the file that is not used -> why, in words."""

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Reuse | None":
        """Return the reuse of which a JSON file holds the fields; None where it does not hold all of them."""
        names = [field.name for field in fields(cls)]
        if not record.keys() >= set(names):
            return None
        lists = {name: tuple(record[name]) for name in ("reused", "new")}
        return cls(**{name: record[name] for name in names} | lists)


def load_pretrained(
    source: str,
    network: str,
    options: dict[str, Any],
    *,
    image_size: int | None = None,
    only_shapes: bool = False,
) -> Pretrained:
    """Read weights for a network.

    Args:
        source: value of `model.init_from`, as `kpipe.catalog.weights.absolute_weights` returns it.
        network: a name in `kpipe.catalog.networks.MODELS`.
        options: of the network.
        image_size: side of the images in pixels; None: not known.
        only_shapes: for a plan. Nothing is downloaded; of `imagenet`, what is known without the file is returned.

    Raises:
        ConfigError: the file is missing, damaged or of another network, or a value in it is not finite; `imagenet`
            cannot be downloaded.
    """
    if source == IMAGENET and only_shapes and not is_downloaded(network, options, image_size):
        return Pretrained(source, None, **describe_download(network, options, image_size)._asdict())
    check_weights_file(source)
    find_network(network)  # of the user's own: its layers are known to Keras when its code has run
    path = download(network, options, image_size) if source == IMAGENET else Path(source)
    path = path / "model.keras" if path.is_dir() else path
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if path.suffix in STATE_DICTS:
        found = name_tensors(source, read_tensors(path), network, options)
    else:
        found = name_layers(source, read_model(path) if path.suffix == ".keras" else read_h5(path), network)
    layers = {name: [_as_float32(source, name, each) for each in arrays] for name, arrays in found.layers.items()}
    left_out = dict(found.left_out)
    if found.network != network:
        others = [name for name in layers if name.replace("bn", "conv") not in COPIED]
        left_out |= {name: _NET_A for name in others}
        layers = {name: arrays for name, arrays in layers.items() if name not in others}
    return Pretrained(source, sha256, **found._replace(layers=layers, left_out=left_out)._asdict())


def initialize_from(
    model: keras.Model,
    pretrained: Pretrained,
    network: str,
    options: dict[str, Any],
    class_names: Sequence[str] | None = None,
) -> Reuse:
    """Assign to a model the weights that `find_reuse` finds for it. After an error, nothing is assigned.

    Args, Returns, Raises: as for `find_reuse`.
    """
    reuse = find_reuse(model, pretrained, network, options, class_names)
    for name in reuse.reused:
        model.get_layer(name).set_weights(pretrained.layers[name])
    return reuse


def find_reuse(
    model: keras.Model,
    pretrained: Pretrained,
    network: str,
    options: dict[str, Any],
    class_names: Sequence[str] | None = None,
) -> Reuse:
    """Return which layers of a model take their weights from these. The model's own need no values yet.

    All features are reused. A classifier is reused up to its first layer of another shape; that layer and all after it
    are new. The whole classifier is new where the file's has other layers, and its last layer is new where the file's
    classes are known to be others.

    Args:
        model: built by `build_model`.
        pretrained: as `load_pretrained` returned it for this network and these options.
        network: of the model, a name in `kpipe.catalog.networks.MODELS`.
        options: of the network.
        class_names: in the order of the model's logits; None: not known.

    Raises:
        ConfigError: the features of the network and those of the file differ.
    """
    divided = features_and_head(model, network, options)
    ours = {layer.name: layer for layer in model.layers if layer.weights and not is_preprocessing(layer)}
    left_out = pretrained.left_out | _leave_out(pretrained, ours, network)
    reused = set()
    for layer in divided.features:
        if layer.name in ours and (layer.name in pretrained.layers or pretrained.network == network):
            _check_feature(layer, pretrained, is_first=not reused)
            reused.add(layer.name)
    known = pretrained.class_names is not None and class_names is not None
    has_other_classes = known and list(pretrained.class_names) != list(class_names)
    for branch in _list_branches(model, [layer for layer in divided.head if layer.name in ours]):
        is_other = OTHER_HEAD in left_out.values() and not _is_auxiliary(branch[0].name)
        for name, why in _match_branch(branch, pretrained.layers, OTHER_HEAD if is_other else "", has_other_classes):
            if not why:
                reused.add(name)
            elif name in pretrained.layers:
                left_out[name] = why
    new = tuple(name for name in ours if name not in reused)
    taken = tuple(name for name in ours if name in reused)
    return Reuse(pretrained.kind, pretrained.sha256, taken, new, left_out)


def _leave_out(pretrained: Pretrained, ours: dict[str, keras.Layer], network: str) -> dict[str, str]:
    """Return the layers of the file that the network lacks, and why each may be left out."""
    others = {name: arrays for name, arrays in pretrained.layers.items() if name not in ours}
    dense = {name for name, arrays in others.items() if any(array.ndim == 2 for array in arrays)}
    if strangers := [name for name in others if name not in dense and not _is_auxiliary(name)]:
        raise unusable(
            pretrained.source,
            f"expected only layers that {network} has with these options, got {some(strangers)} too. {_SAME_OPTIONS}",
        )
    return {name: _NO_AUXILIARY_HEADS if _is_auxiliary(name) else OTHER_HEAD for name in others}


def _check_feature(layer: keras.Layer, pretrained: Pretrained, *, is_first: bool) -> None:
    """Raise ConfigError where the file has no weights for a layer of the features, or has them in another shape."""
    expected, theirs = _shapes(layer.weights), _shapes(pretrained.layers.get(layer.name, []))
    if theirs == expected:
        return
    remedy = _SAME_OPTIONS
    if is_first and theirs and len(theirs[0]) == 4:
        (*ours, channels, filters), (*kernel, their_channels, their_filters) = expected[0], theirs[0]
        if ours == kernel and filters == their_filters and channels != their_channels:
            remedy = f"They are for images of {counted(their_channels, 'channel')}: set data.channels={their_channels}"
    got = f"them of shape {_describe(theirs)}" if theirs else "none"
    raise unusable(
        pretrained.source,
        f"expected weights of the layer {layer.name} of shape {_describe(expected)}, got {got}. {remedy}",
    )


def _match_branch(
    branch: Sequence[keras.Layer], layers: dict[str, Arrays], why: str, has_other_classes: bool
) -> Iterator[tuple[str, str]]:
    """Yield each layer of a classifier and why it is new, an empty text where it is reused.

    Args:
        branch: the layers with weights, from the first to the logits.
        layers: of the file.
        why: why all of them are new, if they are.
        has_other_classes: whether the file's classes are known to be others.
    """
    for layer in branch:
        expected, theirs = _shapes(layer.weights), _shapes(layers.get(layer.name, []))
        if why:
            yield layer.name, why
            continue
        if theirs != expected:
            yield layer.name, f"its shape is {_describe(theirs)}, the network needs {_describe(expected)}"
            why = f"it follows {layer.name}, which is new"
        elif layer is branch[-1] and has_other_classes:
            yield layer.name, "it tells other classes apart"
        else:
            yield layer.name, ""


def _list_branches(model: keras.Model, head: Sequence[keras.Layer]) -> list[list[keras.Layer]]:
    """Return the layers of the head that each output of the model is computed from, in their order."""
    branches = []
    for output in model.outputs:
        operations = [node.operation for node in find_nodes(model.inputs, [output])]
        branches.append([operation for operation in operations if operation in head])
    return branches


def _is_auxiliary(layer: str) -> bool:
    return layer.startswith("auxiliary_")


def _shapes(weights: Iterable[Any]) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in weights]


def _describe(shapes: Sequence[tuple[int, ...]]) -> str:
    """Return the shape of a layer's kernel, or of all its weights where none of them is a kernel."""
    kernels = [shape for shape in shapes if len(shape) > 1] or shapes[:1]
    return " and ".join("x".join(map(str, shape)) for shape in kernels) or "none"


def _as_float32(source: str, layer: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise unusable(source, f"{layer}: expected floating-point weights, got {array.dtype}")
    array = np.ascontiguousarray(array, dtype="float32")
    if wrong := array.size - np.count_nonzero(np.isfinite(array)):
        raise unusable(
            source,
            f"{layer}: expected finite weights, got {wrong:,} of {array.size:,} that are infinite or not a number. "
            "Take weights from before that training diverged",
        )
    return array
