"""Weights that a network starts from: the values of `model.init_from`, and what is wrong with one at first sight."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kpipe.catalog.networks import NetworkOptions
from kpipe.catalog.wording import show
from kpipe.errors import ConfigError
from kpipe.files import expand_path, nearest_file
from kpipe.names import from_here, path_shown, shell_quoted

IMAGENET = "imagenet"
"""Keras's own weights, downloaded by Keras. A folder of this name is written `./imagenet`."""

_KEY = "model.init_from: "

_HDF5, _ZIP, _PICKLE = b"\x89HDF", b"PK", b"\x80"
_FILES = {
    ".keras": ("a Keras model (.keras)", (_ZIP,)),
    ".h5": ("Keras weights (.weights.h5)", (_HDF5,)),
    ".pth": ("a PyTorch state dict (.pth)", (_ZIP, _PICKLE)),
    ".pt": ("a PyTorch state dict (.pt)", (_ZIP, _PICKLE)),
    ".safetensors": ("tensors (.safetensors)", ()),
}
"""Ending of a file -> what it holds, and what its content begins with."""

STATE_DICTS = (".pth", ".pt", ".safetensors")

# The options with which a network has the layers of the published one. Keras's files hold VGG-16 and VGG-19 alone.
_KERAS: dict[str, dict[str, Any]] = {"vgg16": {"batch_norm": False}, "vgg19": {"batch_norm": False}}
_TORCHVISION: dict[str, dict[str, Any]] = {
    "alexnet": {"variant": "one_weird_trick"},
    "googlenet": {"variant": "batch_norm"},
    "vgg11": {"lrn": False},
    "vgg13": {},
    "vgg16": {},
    "vgg16_c": {},  # not published, but it may start from net A
    "vgg19": {},
}


def absolute_weights(text: str) -> str:
    """Return the value of `model.init_from` with its path made absolute: a run finds it from any working directory.

    Raises:
        ConfigError: as `expand_path`.
    """
    return text if text == IMAGENET else str(expand_path(text))


def init_from_conflicts(source: str, network: str, options: NetworkOptions) -> Iterator[str]:
    """Yield why a network cannot start from these weights, as far as that is known before they are read.

    Args:
        source: the value of `model.init_from`.
        network: a name in `kpipe.catalog.networks.MODELS`.
        options: of the network.
    """
    if source == IMAGENET:
        what, published = "imagenet holds weights", _KERAS
    elif Path(source).suffix in STATE_DICTS:
        what, published = "PyTorch's weights are read", _TORCHVISION
    else:
        return
    if network not in published:
        names = ", ".join(name for name in published if name != "vgg16_c")
        yield f"{what} for {names}, got the network {network!r}. Give a run directory or a Keras file of it"
        return
    for option, needed in {"activation": "relu", **published[network]}.items():
        value = getattr(options, option, needed)
        if value != needed:
            yield f"{what} for {network} with {option}: {_plain(needed)}, got {_plain(value)}"


def check_weights_file(source: str, where: str = _KEY) -> None:
    """Check at first sight what `model.init_from` names, without reading it as a whole.

    Args:
        source: as `absolute_weights` returns it.
        where: what named it; a message begins with it.

    Raises:
        ConfigError: it is not there, cannot be read, or is of another kind than its name says; a run that never
            finished.
    """
    if source == IMAGENET:
        return
    path = Path(source)
    try:
        if path.is_dir():
            _check_run(path)
            path /= "model.keras"
        with open(path, "rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise unusable(
            source, f"expected weights, got no such file or directory{nearest_file(path, IMAGENET)}", where
        ) from None
    except OSError as error:
        raise unusable(source, f"expected a file that can be read, got '{error.strerror}'", where) from None
    if path.suffix not in _FILES:
        raise unusable(source, f"expected imagenet, a run directory or a file ending in {', '.join(_FILES)}", where)
    what, beginnings = _FILES[path.suffix]
    if problem := _describe_other(start, beginnings):
        raise unusable(str(path), f"expected {what}, got {problem}", where)


def unusable(source: str, problem: str, where: str = _KEY) -> ConfigError:
    """Return the error about a file of weights.

    Args:
        source: the file.
        problem: a sentence without its full stop.
        where: what named the file; the message begins with it.
    """
    return ConfigError(f"{where}{path_shown(source)}: {problem}{'' if problem.endswith('?') else '.'}")


def _check_run(folder: Path) -> None:
    if (folder / "model.keras").exists():
        return
    if (folder / "config.yaml").exists():
        command = f"kpipe finish {shell_quoted(from_here(folder))}"
        raise unusable(
            str(folder),
            "expected a finished run, got one that never finished and therefore has no model.keras. "
            f"`{command}` finishes it as it stands",
        )
    runs = sorted(found.parent for found in folder.glob("*/model.keras"))
    newest = f". The newest run in it is {path_shown(runs[-1])}" if runs else ""
    raise unusable(str(folder), f"expected a run directory with a model.keras, got a folder without it{newest}")


def _describe_other(start: bytes, beginnings: tuple[bytes, ...]) -> str | None:
    """Return what a file is instead of weights, and what to do; None where it may be weights."""
    if not start:
        return "an empty file. Download or copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "the pointer that Git LFS keeps in its place. `git lfs pull` fetches the file itself"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page. Download the file itself, not the page that shows it"
    if beginnings and not start.startswith(beginnings):
        return "a file of another kind. Check its name, or download it again"
    return None


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else show(value)
