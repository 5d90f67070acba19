"""Networks as features and a head: which layers fine-tuning reuses, and which ones classify.

The features are everything that the head's first layer is computed from. That layer's name follows from the network
and its options (`NetworkOptions.first_head_layer`), so a model loaded from a file is divided like one just built.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kpipe.catalog.networks import find_network
from kpipe.catalog.rows import check_options
from kpipe.errors import ConfigError


@dataclass(frozen=True, eq=False)
class FeaturesAndHead:
    """The two parts of a network, each with its layers in the order of `model.layers`."""

    features: tuple[keras.Layer, ...]
    """Layers from the input on, the preprocessing included."""
    head: tuple[keras.Layer, ...]
    """All other layers: the classifier, and GoogLeNet's auxiliary classifiers where the model has them."""
    output: keras.KerasTensor
    """Output of the last feature layer; `keras.Model(model.input, output)` is the feature extractor."""


def features_and_head(model: keras.Model, network: str, options: dict[str, Any] | None = None) -> FeaturesAndHead:
    """Divide a network into its features and its head.

    Args:
        model: a network of this kind, just built or loaded from a file, under any name.
        network: a name in `kpipe.catalog.networks.MODELS`.
        options: the options that it was built with; None: the defaults.

    Raises:
        ConfigError: an unknown network, an option that it cannot have, or a model without the head's first layer.
    """
    first = check_options(network, find_network(network).options, **(options or {})).first_head_layer
    nodes = find_nodes(model.inputs, model.outputs)
    first = first or [node.operation.name for node in nodes if getattr(node.operation, "weights", None)][-1]
    uses = [node for node in nodes if node.operation.name == first]
    if not uses:
        raise ConfigError(
            f"features_and_head: expected a model with the layer '{first}', where the head of {network} begins with "
            f"these options, got '{model.name}' without it. Give the network and the options that it was built with."
        )
    inputs = uses[0].input_tensors
    computed = {id(node.operation) for node in find_nodes(model.inputs, inputs)}
    return FeaturesAndHead(
        features=tuple(layer for layer in model.layers if id(layer) in computed),
        head=tuple(layer for layer in model.layers if id(layer) not in computed),
        output=inputs[0],
    )


def last_fixed_output(model: keras.Model, fixed: Collection[str]) -> keras.KerasTensor | None:
    """Return the last tensor that depends on the image alone while some layers keep their weights; None: there is none.

    Everything else is computed from it, if the model has one output.

    Args:
        model: any network.
        fixed: names of the layers that keep their weights. Those without weights need not be named. A layer that draws
            random numbers, such as dropout, is never fixed.
    """
    trunk, found = find_trunk(model), None
    if len(model.outputs) > 1:
        return None
    for node in find_nodes(model.inputs, model.outputs):
        layer = node.operation
        if isinstance(layer, keras.Layer):
            draws = len(layer.variables) > len(layer.weights)  # the state of a random generator is no weight
            if draws or (layer.weights and layer.name not in fixed):
                break
        if id(node) in trunk and not isinstance(layer, keras.layers.InputLayer):
            found = node.outputs[0]
    return found


def find_nodes(inputs: Sequence[keras.KerasTensor], outputs: Sequence[keras.KerasTensor]) -> list[Any]:
    """Return every call of a layer between symbolic inputs and outputs, each after those it needs.

    `_keras_history` is Keras's own record of where a symbolic tensor comes from; there is no public one.
    """
    found: dict[int, Any] = {}

    def visit(tensor: keras.KerasTensor) -> None:
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if id(node) in found:
            return
        if not any(tensor is start for start in inputs):
            for needed in node.input_tensors:
                visit(needed)
        found[id(node)] = node

    for output in outputs:
        visit(output)
    return list(found.values())


def find_trunk(model: keras.Model) -> set[int]:
    """Return the `id` of each node (see `find_nodes`) that all data passes on its way to the model's first output.

    The other nodes stand in branches, which fork after a node of the trunk. A branch that ends in another output never
    comes back.
    """
    nodes = find_nodes(model.inputs, model.outputs[:1])
    place_of = {id(tensor): place for place, node in enumerate(nodes) for tensor in node.outputs}
    last_uses = list(range(len(nodes)))
    for place, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_uses[place_of[id(tensor)]] = place
    # Nothing passes a node by if no output of an earlier node is used after it.
    latest = [0, *itertools.accumulate(last_uses, max)]
    return {id(node) for place, node in enumerate(nodes) if latest[place] <= place}


def find_last_hidden(model: keras.Model) -> keras.KerasTensor | None:
    """Return what the layer with the logits is computed from, [B, units], if it comes from a hidden layer.

    None where the logits are computed from feature maps, which are at most averaged or flattened before.
    """
    trunk = find_trunk(model)
    nodes = [node for node in find_nodes(model.inputs, model.outputs[:1]) if id(node) in trunk]
    weighted = [node for node in nodes if getattr(node.operation, "weights", None)]
    if len(weighted) < 2 or any(len(node.outputs[0].shape) != 2 for node in weighted[-2:]):
        return None
    return weighted[-1].input_tensors[0]


def find_squashing(model: keras.Model) -> tuple[keras.Operation, str | None]:
    """Return the layer or operation that the output of a model comes from, and what it computes of logits.

    Returns:
        The last layer, also where it is in a model within the model; and `softmax` or `sigmoid`, None where the layer
        computes neither.
    """
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        return find_squashing(last)
    activation = getattr(last, "activation", None)
    name = getattr(activation, "__name__", "") if activation else type(last).__name__.lower()
    return last, name if name in ("softmax", "sigmoid") else None
