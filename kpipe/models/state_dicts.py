"""Weights of torchvision's networks, in the state dicts of PyTorch and in .safetensors files."""

import itertools
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kpipe.catalog.weights import unusable
from kpipe.errors import ConfigError, some
from kpipe.models.googlenet import BLOCKS, HEADED
from kpipe.models.preprocessing import NAMED, Normalization
from kpipe.models.vgg import STAGES
from kpipe.models.weight_files import OTHER_HEAD, Arrays, NamedWeights, translate_damage

Tensors = dict[str, np.ndarray]


class _Module(NamedTuple):
    """A module of torchvision and the layer that takes its tensors."""

    layer: str
    name: str
    tensors: dict[str, Callable[[np.ndarray], np.ndarray]]
    """Tensor -> what converts it to Keras's layout, in the order of the layer's weights."""


def _reflattened(weight: np.ndarray, channels: int) -> np.ndarray:
    """Convert the first dense layer after feature maps: PyTorch flattens channel by channel, Keras pixel by pixel."""
    outputs, inputs = weight.shape
    side = math.isqrt(inputs // channels)
    return weight.reshape(outputs, channels, side, side).transpose(2, 3, 1, 0).reshape(inputs, outputs)


def _check_vector(values: np.ndarray) -> np.ndarray:
    [_] = values.shape
    return values


_COUNTER = "it counts batches"
_KERNEL = {"weight": lambda weight: weight.transpose(2, 3, 1, 0)}
_CONVOLUTION = {**_KERNEL, "bias": _check_vector}
_DENSE = {"weight": lambda weight: weight.transpose(1, 0), "bias": _check_vector}
_BATCH_NORM = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), _check_vector)
_HEADS = ("classifier", "fc", "aux1", "aux2", "head", "pre_logits")
"""First words of the names of classifiers; the last two are timm's, whose other names are torchvision's."""

_PUBLISHED = [("alexnet", False), ("googlenet", True)] + [
    (network, batch_norm) for network in STAGES if network != "vgg16_c" for batch_norm in (False, True)
]
"""Networks of torchvision, and whether they have batch normalization."""

_TORCH_NORMALIZATIONS = {
    # Its pretrained GoogLeNet converts images that were normalized as ImageNet's to [-1, 1] (`transform_input`).
    "googlenet": Normalization("affine", [127.5] * 3, [127.5] * 3),
}
"""Normalizations that torchvision's networks were trained with, where it is not `imagenet`."""


def name_tensors(source: str, tensors: Tensors, network: str, options: dict[str, Any]) -> NamedWeights:
    """Convert a state dict in torchvision's names to the layers of kpipe."""
    counters = [name for name in tensors if name.rpartition(".")[2] == "num_batches_tracked"]
    stripped = list(_strip_prefixes({name: value for name, value in tensors.items() if name not in counters}))
    has_batch_norm = network == "googlenet" or options.get("batch_norm", False)
    wanted = [(network, has_batch_norm)] if network != "vgg16_c" else []
    wanted += [("vgg11", has_batch_norm)] if network in STAGES else []
    for prefix, named in stripped:
        for found, batch_norm in wanted:
            if _fits(named, found, batch_norm):
                layers, left_out = _convert(source, named, found, batch_norm)
                left_out |= dict.fromkeys(counters, _COUNTER)
                kind = f"torchvision's {_describe_published(found, batch_norm)}"
                kind += f", its names without '{prefix}'" if prefix else ""
                normalization = _TORCH_NORMALIZATIONS.get(found, NAMED["imagenet"])
                return NamedWeights(kind, found, layers, normalization, None, left_out)
    raise _describe_differences(source, stripped, network, *wanted[0])


def _list_modules(network: str, batch_norm: bool) -> tuple[list[_Module], list[_Module]]:
    """Return the modules of torchvision's features and of its classifier."""
    if network == "googlenet":
        return _list_googlenet_modules()
    if network == "alexnet":
        names = enumerate((0, 3, 6, 8, 10), start=1)
        features = [_Module(f"conv{number}", f"features.{place}", _CONVOLUTION) for number, place in names]
        return features, _list_dense_modules((1, 4, 6), channels=256)
    features, place = [], 0
    for stage, kernels in enumerate(STAGES[network], start=1):
        for number in range(1, len(kernels) + 1):
            features.append(_Module(f"conv{stage}_{number}", f"features.{place}", _CONVOLUTION))
            if batch_norm:
                features.append(_Module(f"bn{stage}_{number}", f"features.{place + 1}", _BATCH_NORM))
            place += 2 + batch_norm  # an activation follows
        place += 1  # the pooling
    return features, _list_dense_modules((0, 3, 6), channels=512)


def _list_dense_modules(places: tuple[int, int, int], channels: int) -> list[_Module]:
    kinds = {"fc6": {**_DENSE, "weight": partial(_reflattened, channels=channels)}, "fc7": _DENSE, "logits": _DENSE}
    return [
        _Module(layer, f"classifier.{place}", tensors)
        for place, (layer, tensors) in zip(places, kinds.items(), strict=True)
    ]


def _list_googlenet_modules() -> tuple[list[_Module], list[_Module]]:
    def convolution(layer: str, name: str) -> list[_Module]:
        return [_Module(layer, f"{name}.conv", _KERNEL), _Module(f"{layer}_bn", f"{name}.bn", _BATCH_NORM)]

    stem = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    features = [module for layer, name in stem.items() for module in convolution(layer, name)]
    branches = {
        "1x1": "branch1", "3x3_reduce": "branch2.0", "3x3": "branch2.1", "5x5_reduce": "branch3.0",
        "5x5": "branch3.1", "pool_1x1": "branch4.1",
    }  # fmt: skip
    for block in BLOCKS:
        for layer, name in branches.items():
            features += convolution(f"inception_{block}_{layer}", f"inception{block}.{name}")
    head = [_Module("logits", "fc", _DENSE)]
    for number, block in enumerate(HEADED, start=1):
        layer, name = f"auxiliary_{block}", f"aux{number}"
        head += convolution(f"{layer}_1x1", f"{name}.conv")
        head.append(_Module(f"{layer}_fc", f"{name}.fc1", {**_DENSE, "weight": partial(_reflattened, channels=128)}))
        head.append(_Module(f"{layer}_logits", f"{name}.fc2", _DENSE))
    return features, head


def _list_tensors(modules: Iterable[_Module]) -> list[str]:
    return [f"{module.name}.{tensor}" for module in modules for tensor in module.tensors]


def _strip_prefixes(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Yield tensors under their names, then without the first word that all names share, and so on.

    DataParallel, torch.compile and checkpoints of a larger object put `module.`, `_orig_mod.` or `model.` before them.
    """
    prefix = ""
    while True:
        yield prefix, tensors
        words = {name.partition(".")[0] for name in tensors}
        if len(words) != 1 or not all("." in name for name in tensors):
            return
        prefix += f"{words.pop()}."
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}


def _fits(tensors: Iterable[str], network: str, batch_norm: bool) -> bool:
    """Return whether tensors are the features of a network of torchvision, with any classifier or none."""
    features = set(_list_tensors(_list_modules(network, batch_norm)[0]))
    others = set(tensors) - features
    return features <= set(tensors) and all(name.partition(".")[0] in _HEADS for name in others)


def _convert(source: str, tensors: Tensors, network: str, batch_norm: bool) -> tuple[dict[str, Arrays], dict[str, str]]:
    """Return the layers, and the tensors of classifiers that torchvision's network has not."""
    features, head = _list_modules(network, batch_norm)
    layers = {}
    for module in [*features, *head]:
        names = {f"{module.name}.{tensor}": convert for tensor, convert in module.tensors.items()}
        missing = [name for name in names if name not in tensors]
        if len(missing) == len(names):
            continue
        if missing:
            raise unusable(source, f"expected all tensors of {module.name}, got none called {some(missing)}")
        layers[module.layer] = [_convert_tensor(source, name, tensors[name], names[name]) for name in names]
    unknown = set(tensors) - set(_list_tensors([*features, *head]))
    return layers, {name: OTHER_HEAD for name in sorted(unknown)}


def _convert_tensor(source: str, name: str, tensor: np.ndarray, convert: Callable) -> np.ndarray:
    try:
        return convert(tensor)
    except ValueError:
        shape = "x".join(map(str, tensor.shape)) or "a single number"
        raise unusable(source, f"{name}: expected a tensor with the axes of torchvision's, got {shape}") from None


def _describe_differences(
    source: str, stripped: Sequence[tuple[str, Tensors]], network: str, published: str, batch_norm: bool
) -> ConfigError:
    """Return the error for a state dict that does not fit: which network it is of, or which tensors differ.

    Args:
        source: of the state dict.
        stripped: what `_strip_prefixes` yields.
        network: that was wanted.
        published, batch_norm: the network of torchvision that would fit.
    """
    wanted = _describe_published(network, batch_norm)
    for _, named in stripped:
        for found in itertools.starmap(_describe_published, (each for each in _PUBLISHED if _fits(named, *each))):
            return unusable(
                source,
                f"expected weights of {wanted}, got those of {found}. Choose the network {found}, or give weights of "
                f"{wanted}",
            )
    features = _list_tensors(_list_modules(published, batch_norm)[0])
    prefix, named = max(stripped, key=lambda each: len(set(features) & set(each[1])))
    unknown = [prefix + name for name in named if name not in features and name.partition(".")[0] not in _HEADS]
    missing = [prefix + name for name in features if name not in named]
    problems = [f"{some(unknown, most=3)} that it has not"] if unknown else []
    problems += [f"no {some(missing, most=3)}"] if missing else []
    got = " and ".join(problems)
    if stripped[1:] and (prefix or not set(features) & set(named)):  # else 'features.' is no prefix
        got += f". All names begin with '{stripped[1][0]}', and without that they do not fit either"
    return unusable(source, f"expected the tensors of torchvision's {wanted} under its names, got {got}")


def _describe_published(network: str, batch_norm: bool) -> str:
    if network in STAGES:
        return f"{network} with batch_norm" if batch_norm else network
    return f"{network} with variant: {'batch_norm' if batch_norm else 'one_weird_trick'}"


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a state dict by their names.

    Raises:
        ConfigError: the file is damaged, is no state dict or wants to run code; PyTorch is needed and not installed.
    """
    with translate_damage(path):
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        return _read_pickle(path)


def _read_pickle(path: Path) -> Tensors:
    try:
        import torch
    except ImportError:
        raise unusable(
            str(path),
            "expected PyTorch to read this file with, got none. `pip install torch` installs it; a .safetensors file "
            "needs none",
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the version of the pickle
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise unusable(
                str(path),
                f"expected tensors alone, got a pickle that wants to run code{f' ({wanted[1]})' if wanted else ''}, "
                "which is never done. Where it was trained, save a state dict: torch.save(model.state_dict(), "
                "'weights.pth')",
            ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    is_state_dict = isinstance(loaded, dict) and all(isinstance(each, torch.Tensor) for each in loaded.values())
    if not is_state_dict or not loaded:
        is_other = isinstance(loaded, dict) and loaded
        got = f"a dictionary with {some(list(map(str, loaded)))}" if is_other else "something else"
        raise unusable(str(path), f"expected a state dict, names with their tensors, got {got}. Save it alone")
    tensors = {name: tensor.detach() for name, tensor in loaded.items()}
    # NumPy has no bfloat16 of its own.
    return {name: (each.float() if each.is_floating_point() else each).numpy() for name, each in tensors.items()}
