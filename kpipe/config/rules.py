"""Combinations of keys that cannot work, though each key alone can."""

from typing import Any

from kpipe.catalog.data import (
    AUGMENTATIONS,
    MOST_WHITENED,
    SOURCES,
    SYNTHETIC_CHANNELS,
    SYNTHETIC_SIZES,
    WindowRow,
    wrong_channels,
)
from kpipe.catalog.networks import MODELS
from kpipe.config.schema import DataConfig, TrainingConfig

DEPENDENT = {("data", "on_error"): ("skip", "skip_limit"), ("data", "cache"): ("auto", "cache_gigabytes")}
"""A key -> the value of it with which another key means something, and that key."""


def foreign_options(model: Any) -> list[tuple[str, str]]:
    """Options that mean nothing beside the others, as (option, what it belongs to): a width in a head without one.

    `model` is plain data. The resolved experiment of a run holds the defaults too: a default is never foreign.
    """
    name = model.get("name") if isinstance(model, dict) else None
    if not isinstance(name, str) or name not in MODELS:
        return []
    options = MODELS[name].options
    found = []
    for key, (chooser, values) in options.belongs.items():
        chosen = model.get(chooser, options.model_fields[chooser].default)
        if chosen not in values and key in model and model[key] not in (None, options.model_fields[key].default):
            found.append((key, f"the {chooser} {' or '.join(map(repr, values))}, the {chooser} is {chosen!r}"))
    return found


def impossible(data: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """Combinations that no single key shows, as (keys, message).

    Looks at the plain data, so that they are reported together with the mistakes of single keys; whatever has the
    wrong type there is passed over.
    """
    found: list[tuple[tuple[str, ...], str]] = []

    def get(*keys: str) -> Any:
        value: Any = data
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    source, size, model = get("data", "source"), get("data", "image_size"), get("model", "name")
    kind = source.partition(":")[0] if isinstance(source, str) else None
    row = SOURCES.get(kind)
    if row and row.needs_size and size is None:
        found.append((("data", "image_size"), f"is required with {kind}: photographs come in many sizes"))
    if get("data", "synthetic") is not None and kind != "synthetic":
        found.append((("data", "synthetic"), f"belongs to the source 'synthetic', the source is {source!r}"))
    shown = get("data", "synthetic", "kind") or "images"
    native = SYNTHETIC_SIZES.get(shown) if kind == "synthetic" and isinstance(shown, str) else row and row.native_size
    pixels = size if isinstance(size, int) else native
    smallest = MODELS[model].smallest_size if isinstance(model, str) and model in MODELS else (0, 0)
    # Spectrograms and texts are not square: their size is the height.
    least = smallest[0] if kind == "synthetic" and shown in ("spectrogram", "text") else max(smallest)
    if pixels and pixels < least:
        got = f"got {pixels}" if size is not None else f"the images of '{kind}' have {pixels}; set data.image_size"
        found.append((("data", "image_size"), f"{model} needs at least {least} pixels, {got}"))
    channels = get("data", "channels")
    if kind != "synthetic" and isinstance(channels, int) and channels not in (1, 3):
        found.append((("data", "channels"), f"expected 1 (grey) or 3 (colour), got {channels}"))
    if kind == "synthetic" and shown != "images" and channels is not None:
        found.append((("data", "channels"), f"belongs to kind: images, the kind is {shown!r}; leave it out"))
    if shown == "board" and get("data", "synthetic", "classes") is not None:
        found.append((("data", "synthetic", "classes"), "a board has one class a point; leave it out"))
    shape = _image_shape(kind, shown, pixels, channels)
    found += _input(data.get("data"), shape[1], square=kind != "synthetic" or shown in ("images", "board"))
    found += [(("model", key), f"belongs to {needed}") for key, needed in foreign_options(get("model"))]
    found += [
        (("data", "normalize"), message) for message in _normalize_problems(get("data", "normalize"), shape, model)
    ]
    if get("training", "optimizer", "nesterov") is True and not get("training", "optimizer", "momentum"):
        found.append((("training", "optimizer", "nesterov"), "needs a momentum above 0"))
    warmup, epochs = get("training", "learning_rate", "warmup", "epochs"), get("training", "epochs")
    epochs = TrainingConfig.model_fields["epochs"].default if epochs is None else epochs
    if isinstance(warmup, int | float) and isinstance(epochs, int) and warmup > epochs >= 1:
        keys = ("training", "learning_rate", "warmup")
        found.append((keys, f"{warmup:g} epochs of warm-up do not fit into {epochs} epochs of training"))
    shares = get("data", "split", "validation")
    if get("training", "early_stopping") is not None and shares == 0 and kind in ("digits", "synthetic"):
        found.append((("training", "early_stopping"), "needs a validation part, data.split.validation is 0"))
    return found


def _input(section: Any, channels: int | None, *, square: bool) -> list[tuple[tuple[str, ...], str]]:
    """What is impossible about the sizes of images, where they are kept, and their augmentations."""
    if not isinstance(section, dict):
        return []
    found, defaults = [], DataConfig.model_fields
    size, stored = (
        section[key] if isinstance(section.get(key), int) else None for key in ("image_size", "stored_size")
    )
    if stored and (size is None or stored < size):
        least = size or "which is missing"
        found.append((("data", "stored_size"), f"expected at least data.image_size, {least}, got {stored}"))
    if stored and not square:
        found.append((("data", "stored_size"), "needs square images"))
    for (_, chooser), (value, key) in DEPENDENT.items():
        chosen = section.get(chooser, defaults[chooser].default)
        if chosen != value and section.get(key, defaults[key].default) != defaults[key].default:
            found.append((("data", key), f"belongs to {chooser}: {value}, {chooser} is {chosen!r}"))
    entries = section.get("augment")
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        name, options = next(iter(entry.items()), (None, None)) if isinstance(entry, dict) else (entry, None)
        if not isinstance(name, str) or name not in AUGMENTATIONS or not isinstance(options, dict | None):
            continue
        messages = _pixels(name, options or {}, size)
        if isinstance(AUGMENTATIONS[name], WindowRow):
            messages = _window(name, options or {}, number, size, stored)
            messages += [] if square else [f"{name} needs square images"]
        messages += [wrong] if channels and (wrong := wrong_channels(name, channels)) else []
        found += [(("data", "augment", number), message) for message in messages]
    return found


def _pixels(name: str, options: dict[str, Any], size: int | None) -> list[str]:
    """Lengths that would leave nothing of the image."""
    key = {"cutout": "size", "pad_crop": "padding"}.get(name)
    pixels = options.get(key)
    if isinstance(pixels, int) and size and pixels >= size:
        return [f"expected {key} below data.image_size, {size}, got {pixels}"]
    return []


def _window(name: str, options: dict[str, Any], number: int, size: int | None, stored: int | None) -> list[str]:
    row = AUGMENTATIONS[name]
    found = [f"expected {name} as the first entry: it chooses what the others see"] if number else []
    if size is None:
        found.append(f"{name} needs data.image_size, the size of the window")
    elif name == "random_crop" and (stored or size) <= size:
        found.append(f"random_crop needs a data.stored_size above data.image_size, {size}, got {stored or 'none'}")
    if name == "scale_jitter":
        low, high = (options.get(key, getattr(row.options(), key)) for key in ("low", "high"))
        if isinstance(low, int) and isinstance(high, int) and low > high:
            found.append(f"expected low of at most high, {high}, got {low}")
        if isinstance(low, int) and size and low < size:
            found.append(f"expected low of at least data.image_size, {size}, got {low}")
    for key in ("area", "aspect"):
        pair = options.get(key)
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, int | float) for end in pair):
            if pair[0] > pair[1]:
                found.append(f"expected {key} as [smallest, largest], got {pair}")
    return found


def _image_shape(kind: str | None, shown: Any, pixels: Any, channels: Any) -> tuple[int | None, int | None]:
    """Pixels a side of square images, and channels, as far as they are known without the data."""
    row, square = SOURCES.get(kind), True
    native = row and row.native_channels
    if kind == "synthetic":
        native, square = SYNTHETIC_CHANNELS.get(str(shown)), shown in ("images", "board")
    return pixels if square else None, channels if isinstance(channels, int) else native


def _normalize_problems(normalize: Any, shape: tuple[int | None, int | None], model: Any) -> list[str]:
    """What is impossible about `data.normalize` with images of this shape in this network."""
    _, channels = shape
    if normalize in ("imagenet", "caffe") and channels not in (None, 3):
        return [f"expected images of 3 channels for {normalize}, got {channels}"]
    if normalize in ("pca_whiten", "zca"):
        return _too_large(normalize, shape)
    if not isinstance(normalize, dict):
        return []
    return _projection(normalize["pca"], shape, model) if "pca" in normalize else _constants(normalize, channels)


def _too_large(kind: str, shape: tuple[int | None, int | None], components: Any = None) -> list[str]:
    size, channels = shape
    if not size or not channels:
        return []
    numbers = size * size * channels
    images = f"{size}x{size}x{channels}"
    if numbers > MOST_WHITENED:
        return [
            f"expected images of at most {MOST_WHITENED:,} numbers for {kind}, got {images} = {numbers:,}; take a "
            "smaller data.image_size, or a normalisation per channel"
        ]
    if isinstance(components, int) and components > numbers:
        return [f"expected at most {numbers:,} components of images of {images}, got {components:,}"]
    return []


def _projection(pca: Any, shape: tuple[int | None, int | None], model: Any) -> list[str]:
    if isinstance(model, str) and model in MODELS and model != "mlp":
        return [f"expected the network 'mlp' for pca, whose result is no longer an image, got {model!r}"]
    return _too_large("pca", shape, pca.get("components") if isinstance(pca, dict) else None)


def _constants(normalize: dict[str, Any], channels: int | None) -> list[str]:
    mean, std = normalize.get("mean"), normalize.get("std")
    if not isinstance(mean, list) or not isinstance(std, list):
        return []
    if len(mean) != len(std):
        return [f"expected as many deviations as means, got {len(std)} and {len(mean)}"]
    if channels and len(mean) not in (1, channels):
        return [f"expected 1 or {channels} means for {channels} channels, got {len(mean)}"]
    return []
