"""Facts about a network that need no run: sizes, parameters, multiplications, receptive fields, memory.

Receptive field and total stride are counted from the image on (Araujo, Norris, Sim, "Computing Receptive Fields of
Convolutional Neural Networks", Distill 2019): a kernel of k pixels and stride s turns a field r and a total stride j
into r + (k - 1) j and j s. Where branches meet, the largest field counts.

Legend of the shapes: B batch, H height, W width, C channels.
"""

import math
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import keras

from kpipe.errors import ConfigError
from kpipe.models.preprocessing import Whiten
from kpipe.models.structure import find_nodes, find_trunk

# The weights that are multiplied with the input at each position; biases and normalizations only add or scale.
_MULTIPLIED = ("kernel", "depthwise_kernel", "pointwise_kernel", "codes")
# Layers whose output is their input in another shape: it takes no memory of its own.
_VIEWS = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.InputLayer)
# Layers after which each value depends on the whole image.
_GLOBAL = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D, keras.layers.Flatten, Whiten)
_FLOAT32 = 4  # bytes

Pair = tuple[int, int]


@dataclass(frozen=True)
class _ReceptiveField:
    """Pixels of the image that one position of a tensor depends on, down and right."""

    size: Pair = (1, 1)
    total_stride: Pair = (1, 1)
    start: Pair = (0, 0)
    """(top, left) of the field of the position (0, 0)."""


@dataclass(frozen=True)
class LayerGeometry:
    """One layer of a network, or one use of it where it is used several times."""

    name: str
    type: str
    inputs: tuple[str, ...]
    """Names of the layers whose output it takes."""
    is_in_branch: bool
    """Whether data reaches the model's first output without passing it."""
    output: tuple[int, ...]
    """Shape without the batch: (H, W, C) or (units,)."""
    kernel: Pair | None
    """(height, width) of the kernel of a convolution or of the window of a pooling; None for other layers."""
    stride: Pair | None
    """(down, right) from one position of the kernel to the next, in positions of the layer's input; None as above."""
    padding: str | tuple[Pair, Pair] | None
    """`same` or `valid`; of a padding layer ((top, bottom), (left, right)); None for other layers."""
    groups: int | None
    """Groups of channels that a convolution keeps apart; None for other layers."""
    parameters: int
    """Number of weights, trained or not; 0 where the layer was counted before."""
    macs: int
    """Multiplications with a weight, for one image, each with its addition; biases are not counted."""
    receptive_field: Pair | None
    """(height, width) in pixels of what one position depends on, padding included. None where positions are gone, after
    a flattening or a global pooling, and after a layer of a kind that is not known here."""
    total_stride: Pair | None
    """(down, right) from one position to the next, in pixels of the image; None as for the receptive field."""
    receptive_start: Pair | None
    """(top, left) pixel of the receptive field of the position (0, 0); below 0 where padding is a part of the field."""
    memory: int
    """Bytes of the output for one image; 0 where it is the input in another shape."""


def measure(model: keras.Model) -> list[LayerGeometry]:
    """Return the layers of a functional or sequential model, branch by branch, auxiliary outputs last.

    Args:
        model: of images [B, H, W, C] with known H and W.

    Returns:
        One row for each layer but the input. The counts agree with the papers' where these are right.

    Raises:
        ConfigError: H or W is unknown, or the input is no image.
    """
    for tensor in model.inputs:
        if len(tensor.shape) != 4 or None in tensor.shape[1:]:
            raise ConfigError(f"measure: expected images of a known size [B, H, W, C], got {tuple(tensor.shape)}.")
    rows: list[LayerGeometry] = []
    fields: dict[int, _ReceptiveField | None] = {}
    counted: set[int] = set()
    trunk = find_trunk(model)
    for node in find_nodes(model.inputs, model.outputs):
        operation = node.operation
        field = _receptive_field(operation, [fields[id(tensor)] for tensor in node.input_tensors], node)
        fields |= {id(tensor): field for tensor in node.outputs}
        if not isinstance(operation, keras.layers.InputLayer):
            is_first = id(operation) not in counted
            rows.append(_row(operation, node, field, is_first=is_first, is_in_branch=id(node) not in trunk))
            counted.add(id(operation))
    return rows


def count_macs(rows: Sequence[LayerGeometry]) -> int:
    """Return the multiply-additions of one image in the forward pass."""
    return sum(row.macs for row in rows)


def count_affordable(model: keras.Model, macs: float) -> int:
    """Return how many images a network sees in the forward pass for so many multiply-additions."""
    return int(macs // max(1, count_macs(measure(model))))


def fix_image_size(model: keras.Model, image_shape: tuple[int, int, int]) -> keras.Model:
    """Return a copy of a network that takes images [B, H, W, C] of one size; the network itself if it already does.

    Args:
        model: functional or sequential, with one input.
        image_shape: (H, W, C).
    """
    if tuple(model.input_shape[1:]) == tuple(image_shape):
        return model
    copied = keras.models.clone_model(model, keras.Input(image_shape))
    copied.set_weights(model.get_weights())
    return copied


def count_training_flops(model: keras.Model, layers: Collection[str] | None = None) -> int:
    """Return the floating-point operations with weights in a training step, for one image.

    A multiplication and its addition are 2 operations. The forward pass does each once. The backward pass does it once
    for the gradient of the weights, if the layer is trained, and once for the gradient of its input, if a layer before
    it is trained. That is 3 x 2 x `count_macs` for a network that is trained as a whole, but for its first layer, for
    which it is 2 x 2: nobody needs the gradient of the images.

    Args:
        model: as for `measure`; which layers are trained says `trainable`.
        layers: names of those that are run; None: all.

    Raises:
        ConfigError: as for `measure`.
    """
    trained = {layer.name for layer in model.layers if layer.trainable_weights}
    total, depends_on_trained = 0, set()
    for row in measure(model):
        if layers is None or row.name in layers:
            needs = (row.name in trained, not depends_on_trained.isdisjoint(row.inputs))
            total += 2 * row.macs * (1 + sum(needs))
            if any(needs):
                depends_on_trained.add(row.name)
    return total


@dataclass(frozen=True)
class TrainingMemory:
    """Estimate of the memory that a training step needs at once, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Outputs of all layers, which the backward pass needs again, and twice the largest for gradients."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_training_memory(model: keras.Model, batch_size: int, optimizer_values: int) -> TrainingMemory:
    """Estimate from the shapes alone, without what the framework itself needs.

    Args:
        model: as for `measure`.
        batch_size: B.
        optimizer_values: how many numbers the optimizer keeps, over all weights.

    Raises:
        ConfigError: as for `measure`.
    """
    rows = measure(model)
    largest = max(row.memory for row in rows)
    return TrainingMemory(
        weights=_FLOAT32 * model.count_params(),
        gradients=_FLOAT32 * sum(math.prod(variable.shape) for variable in model.trainable_variables),
        optimizer=_FLOAT32 * optimizer_values,
        activations=batch_size * (sum(row.memory for row in rows) + 2 * largest),
    )


def fitting_batch_size(memory: TrainingMemory, batch_size: int, available: int) -> int:
    """Return the largest batch that should fit into `available` bytes; 0 where not even one image fits.

    Args:
        memory: the estimate for `batch_size`.
        batch_size: B.
        available: bytes; a fifth of them is left to the framework itself.
    """
    fixed = memory.total - memory.activations
    return max(0, int((0.8 * available - fixed) * batch_size / memory.activations))


def _row(operation, node, field: _ReceptiveField | None, *, is_first: bool, is_in_branch: bool) -> LayerGeometry:
    bytes_of_outputs = sum(math.prod(tensor.shape[1:]) * _bytes_of(tensor.dtype) for tensor in node.outputs)
    kernel = _kernel(operation)
    return LayerGeometry(
        name=operation.name,
        type=type(operation).__name__,
        inputs=tuple(tensor._keras_history.operation.name for tensor in node.input_tensors),
        is_in_branch=is_in_branch,
        output=tuple(node.outputs[0].shape[1:]),
        kernel=kernel,
        stride=kernel and tuple(operation.strides),
        padding=getattr(operation, "padding", None),
        groups=getattr(operation, "groups", None) if kernel else None,
        parameters=operation.count_params() if is_first and hasattr(operation, "count_params") else 0,
        macs=_macs(operation, node),
        receptive_field=field and field.size,
        total_stride=field and field.total_stride,
        receptive_start=field and field.start,
        memory=0 if isinstance(operation, _VIEWS) else bytes_of_outputs,
    )


def _bytes_of(dtype: str) -> int:
    """Return 2 for float16 and bfloat16, 4 for float32, 1 for bool."""
    return int(dtype.lstrip(string.ascii_lowercase) or 8) // 8


def _macs(operation, node) -> int:
    if isinstance(operation, keras.Model):
        return count_macs(measure(operation))
    if isinstance(operation, Whiten):
        return math.prod(operation.matrix.shape)
    multiplied = [getattr(operation, name, None) for name in _MULTIPLIED]
    weights = sum(math.prod(weight.shape) for weight in multiplied if weight is not None)
    # A transposed convolution multiplies at each position of its input.
    transposed = isinstance(operation, keras.layers.Conv2DTranspose)
    positions = (node.input_tensors if transposed else node.outputs)[0].shape[1:-1]
    return weights * math.prod(positions)


def _receptive_field(operation, inputs: list[_ReceptiveField | None], node) -> _ReceptiveField | None:
    """Return the receptive field of a layer's output from those of its inputs."""
    if not inputs:
        return _ReceptiveField()
    if None in inputs or isinstance(operation, _GLOBAL):
        return None
    # The field is the union over branches; their strides are equal, or they could not meet.
    start = tuple(min(field.start[axis] for field in inputs) for axis in (0, 1))
    size = tuple(max(field.start[axis] + field.size[axis] for field in inputs) - start[axis] for axis in (0, 1))
    stride = inputs[0].total_stride
    kernel = _kernel(operation)
    if kernel is None:
        same = node.outputs[0].shape[1:3] == node.input_tensors[0].shape[1:3]
        if isinstance(operation, keras.layers.ZeroPadding2D):
            before = [-pair[0] for pair in operation.padding]
        elif isinstance(operation, keras.layers.Cropping2D):
            before = [pair[0] for pair in operation.cropping]
        else:
            before = [0, 0] if same else None
        return before and _ReceptiveField(size, stride, _moved(start, before, stride))
    if isinstance(operation, keras.layers.Conv2DTranspose):
        return None
    dilation = getattr(operation, "dilation_rate", (1, 1))
    dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
    extent = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    before = [0, 0]
    if operation.padding == "same":
        sides = zip(
            node.outputs[0].shape[1:3], node.input_tensors[0].shape[1:3], operation.strides, extent, strict=True
        )
        missing = [(output - 1) * step + reach + 1 - side for output, side, step, reach in sides]
        before = [-(max(0, pixels) // 2) for pixels in missing]
    return _ReceptiveField(
        tuple(size[axis] + extent[axis] * stride[axis] for axis in (0, 1)),
        tuple(stride[axis] * operation.strides[axis] for axis in (0, 1)),
        _moved(start, before, stride),
    )


def _moved(start: Pair, positions: Sequence[int], stride: Pair) -> Pair:
    return tuple(start[axis] + positions[axis] * stride[axis] for axis in (0, 1))


def _kernel(operation) -> Pair | None:
    """Return the kernel size of a convolution or the window of a pooling; None for other layers."""
    kernel = getattr(operation, "kernel_size", None) or getattr(operation, "pool_size", None)
    return kernel and tuple(kernel)
