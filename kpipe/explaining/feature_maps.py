"""What the layers of a network compute: filters, feature maps, and the images that excite them most.

N images, B batch, H height, W width, C channels, F filters or feature maps of a layer, h and w their height and width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kpipe.caller import option
from kpipe.errors import ConfigError, did_you_mean
from kpipe.models.layers import Maxout, ScaledTanh
from kpipe.models.structure import find_nodes, find_trunk

_ELEMENTWISE = (
    keras.layers.BatchNormalization,
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    Maxout,
    ScaledTanh,
)
"""Layers that belong to the convolution before them."""


def list_stages(model: keras.Model) -> list[str]:
    """Return the names of the layers with the feature maps of a network, from low to high.

    These are its convolutions, each after its normalization and activation, and GoogLeNet's inception blocks.

    Raises:
        ConfigError: the network has no convolution.
    """
    stages = _find_stages(model)
    if not stages:
        raise ConfigError(f"expected a network with convolutions, got {model.name} without any")
    return stages


def _find_stages(model: keras.Model) -> list[str]:
    trunk, stages, is_open = find_trunk(model), [], False
    for node in find_nodes(model.inputs, model.outputs[:1]):
        if id(node) not in trunk:
            continue
        layer, maps = node.operation, len(node.outputs[0].shape) == 4
        begins = len(getattr(layer, "kernel_size", ())) == 2 or isinstance(layer, keras.layers.Concatenate)
        if maps and begins:
            stages.append(layer.name)
        elif maps and is_open and isinstance(layer, _ELEMENTWISE):
            stages[-1] = layer.name
        is_open = maps and (begins or (is_open and isinstance(layer, _ELEMENTWISE)))
    return stages


def last_map(model: keras.Model) -> str:
    """Return the name of the last layer whose feature maps still have several positions, else of the last one."""
    stages = list_stages(model)
    several = [name for name in stages if np.prod([side or 2 for side in model.get_layer(name).output.shape[1:3]]) > 1]
    return (several or stages)[-1]


def choose_depths(model: keras.Model) -> dict[str, str]:
    """Return a layer of low, middle and high depth each, as `list_stages` names them; fewer of a small network."""
    stages = list_stages(model)
    stages = stages[: stages.index(last_map(model)) + 1]
    places = {"low": 0, "middle": (len(stages) - 1) // 2, "high": len(stages) - 1}
    found: dict[str, str] = {}
    for depth, place in places.items():
        if stages[place] not in found.values():
            found[depth] = stages[place]
    return found


def has_feature_maps(model: keras.Model) -> bool:
    """Return whether a network has a convolution, or another layer that `list_stages` names."""
    return bool(_find_stages(model))


def find_layer(model: keras.Model, name: str) -> keras.Layer:
    """Return the layer of a network that has feature maps under this name.

    Raises:
        ConfigError: there is no such layer, or its output is no feature map.
    """
    # Those of an auxiliary head have no influence on the logits.
    nodes = find_nodes(model.inputs, model.outputs[:1])
    layers = {node.operation.name: node.operation for node in nodes if node.input_tensors}
    if name not in layers:
        stages = did_you_mean(name, list_stages(model))
        raise ConfigError(f"{option('layer')}: expected a layer of the network, got {name!r}{stages}")
    if len(layers[name].output.shape) != 4:
        shape = layers[name].output.shape
        raise ConfigError(
            f"{option('layer')}: expected one with feature maps [B, H, W, F], got {name}, whose output is {shape}"
        )
    return layers[name]


def has_filters(model: keras.Model) -> bool:
    """Return whether a network has a convolution, whose filters `first_filters` returns."""
    return any(_filters_of(layer) is not None for layer in model.layers)


def first_filters(model: keras.Model) -> np.ndarray:
    """Return the filters of the first convolution, float32 [h, w, C, F].

    Raises:
        ConfigError: the network has no convolution.
    """
    for layer in model.layers:
        if (kernel := _filters_of(layer)) is not None:
            return to_numpy(kernel)
    raise ConfigError(f"expected a network with convolutions, got {model.name} without any")


def _filters_of(layer: keras.Layer):
    kernel = getattr(layer, "kernel", None)
    return kernel if kernel is not None and len(kernel.shape) == 4 else None


def compute_feature_maps(model: keras.Model, images: np.ndarray, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the feature maps of some layers, float32 [B, h, w, F] by the name of the layer.

    Args:
        model: the network.
        images: [B, H, W, C], 0..255.
        layers: names, see `list_stages`.

    Raises:
        ConfigError: there is no such layer.
    """
    outputs = {name: find_layer(model, name).output for name in layers}
    found = keras.Model(model.inputs[0], outputs)(images, training=False)
    return {name: to_numpy(maps) for name, maps in found.items()}


def find_active_maps(model: keras.Model, images: np.ndarray, layers: Sequence[str], most: int) -> dict[str, np.ndarray]:
    """Return numbers of feature maps that some images excite, spread over those of a layer.

    Args:
        model, images, layers: as for `compute_feature_maps`.
        most: M, feature maps of a layer at most.

    Returns:
        int [M] by the name of the layer. Of a layer without any such map, numbers of others.
    """
    numbers = {}
    for layer, maps in compute_feature_maps(model, images, layers).items():
        largest = maps.max((0, 1, 2))
        active = np.flatnonzero(largest > 0)
        active = active if len(active) else np.arange(len(largest))
        numbers[layer] = active[np.unique(np.linspace(0, len(active) - 1, most).astype(int))]
    return numbers


@dataclass(frozen=True)
class Strongest:
    """The images that excite feature maps most: M maps, n images for each, the strongest first."""

    maps: np.ndarray
    """Numbers of the feature maps, int [M]."""
    images: np.ndarray
    """The images, uint8 or float32 [M, n, H, W, C]."""
    numbers: np.ndarray
    """Their numbers in the order in which they came, int [M, n]."""
    positions: np.ndarray
    """(row, column) of the largest activation in the feature map, int [M, n, 2]."""
    values: np.ndarray
    """The largest activations, float32 [M, n]."""


def find_strongest(
    model: keras.Model,
    batches: Iterable[np.ndarray],
    maps: Mapping[str, Sequence[int]],
    *,
    most: int = 9,
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, Strongest]:
    """Find the images in which feature maps have their largest activations. Zeiler and Fergus 2014, section 4.1.

    No more than `most` images of each map are held. The network sees each image once.

    Args:
        model: the network.
        batches: images [B, H, W, C], 0..255.
        maps: numbers of feature maps, 0..F - 1, by the name of the layer, see `list_stages`.
        most: n, as many as there are images at most.
        advance: called with the number of images just seen.

    Returns:
        The images by the name of the layer.

    Raises:
        ConfigError: there is no such layer or map.
    """
    outputs = {}
    for layer, numbers in maps.items():
        output = find_layer(model, layer).output
        if wrong := [number for number in numbers if not 0 <= number < output.shape[-1]]:
            raise ConfigError(f"maps: expected numbers of 0 to {output.shape[-1] - 1}, got {wrong[0]}")
        outputs[layer] = keras.ops.take(output, list(numbers), axis=-1)
    compute = tf.function(keras.Model(model.inputs[0], outputs), reduce_retracing=True)
    best: dict[str, Strongest] = {}
    seen = 0
    for images in batches:
        images = np.asarray(images)
        for layer, activations in compute(images, training=False).items():  # [B, h, w, M]
            best[layer] = _keep(best.get(layer), to_numpy(activations), images, seen, np.asarray(maps[layer]), most)
        seen += len(images)
        advance(len(images))
    if not seen:
        raise ConfigError("images: expected at least one, got none")
    return {layer: best[layer] for layer in maps}


def _keep(
    best: Strongest | None, activations: np.ndarray, images: np.ndarray, seen: int, maps: np.ndarray, most: int
) -> Strongest:
    """Return the strongest images of those that were kept and of a batch. Of equal ones, the earlier is kept."""
    batch, height, width, count = activations.shape
    flat = activations.reshape(batch, height * width, count)
    places, values = flat.argmax(1).T, flat.max(1).T  # [M, B]
    numbers = np.broadcast_to(np.arange(seen, seen + batch), (count, batch))
    positions = np.stack([places // width, places % width], axis=-1)
    kept_images: list[list[np.ndarray]] = [list(row) for row in best.images] if best else [[] for _ in maps]
    if best:
        values, numbers = np.hstack([best.values, values]), np.hstack([best.numbers, numbers])
        positions = np.hstack([best.positions, positions])
    order = np.argsort(-values, axis=1, kind="stable")[:, :most]
    pick = [
        [row[place] if place < len(row) else images[place - len(row)] for place in places]
        for row, places in zip(kept_images, order, strict=True)
    ]
    return Strongest(
        maps,
        np.array(pick),
        np.take_along_axis(numbers, order, 1),
        np.take_along_axis(positions, order[..., None], 1),
        np.take_along_axis(values, order, 1),
    )


def to_numpy(tensor) -> np.ndarray:
    """Return a tensor of any precision as float32."""
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))
