"""Combinations of keys that cannot work, though each key alone can.

Options know their own rules: `conflicts` of a section, and `conflicts_with` of what it depends on. This module collects
them for an experiment file, where they are reported beside the mistakes of single keys. It also holds the rules that
concern several sections.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from kpipe.catalog.data import (
    AUGMENTATIONS,
    SOURCES,
    ImageFacts,
    SourceOptions,
    SourceRow,
    whitening_conflict,
)
from kpipe.catalog.networks import MODELS, ModelRow
from kpipe.catalog.rows import Duration, Section, TrainingLength, describe_length
from kpipe.catalog.training import PlateauOptions
from kpipe.catalog.weights import init_from_conflicts
from kpipe.catalog.wording import show
from kpipe.config.document import Keys, keys_of_error
from kpipe.config.schema import DataConfig, MeanStd, Projection, TrainingConfig

SectionType = TypeVar("SectionType", bound=Section)
Conflict = tuple[Keys, str]
"""A path of keys, and what is wrong there."""

_ONE_FOR_EACH_COLOR = ("imagenet", "caffe")


class _DataOfAnySource(DataConfig):
    source: str = ""
    """A source that is missing or unknown hides no other mistake."""


def conflicts(data: dict[str, Any]) -> list[Conflict]:
    """Return all combinations that cannot work in an experiment, given as plain data.

    A key with a mistake of its own counts as not given.
    """
    name = _get(data, "model", "name")
    network = MODELS.get(name) if isinstance(name, str) else None
    config = valid_part(_DataOfAnySource, data.get("data"))
    training = valid_part(TrainingConfig, data.get("training", {}))
    found: list[Conflict] = []
    if config:
        found += _data_conflicts(config, data["data"], name, network)
    if network and (options := valid_part(network.options, _without(data["model"], "name", "init_from"))):
        found += _below(options, "model")
        source = _get(data, "model", "init_from")
        if isinstance(source, str):
            found += [(("model", "init_from"), message) for message in init_from_conflicts(source, name, options)]
    if training:
        found += _training_conflicts(training)
    if training and config and config.batch_size % training.accumulate:
        message = f"expected a number that divides data.batch_size, {config.batch_size}, got {training.accumulate}"
        found.append((("training", "accumulate"), message))
    space = _get(data, "search", "space")
    is_searched = isinstance(space, dict) and "model.init_from" in space  # the trials say it
    if training and training.reused_layers and _get(data, "model", "init_from") is None and not is_searched:
        found.append((("training", "reused_layers"), "needs model.init_from, which says where weights come from"))
    if lacks_validation(data):
        need = "needs a validation split, data.split.validation is 0"
        if _get(data, "training", "early_stopping") is not None:
            found.append((("training", "early_stopping"), need))
        if training and isinstance(training.learning_rate, PlateauOptions):
            found.append((("training", "learning_rate", "schedule"), f"plateau {need}"))
    return found


def lacks_validation(data: dict[str, Any]) -> bool:
    """Return whether an experiment, given as plain data, is known to have no validation split."""
    config = valid_part(_DataOfAnySource, data.get("data"))
    row = _source_of(config)[0] if config else None
    return bool(row and row.is_embedded and config.split.validation == 0)


def valid_part(section: type[SectionType], plain: Any) -> SectionType | None:
    """Return the section without the keys that have a mistake; None where a required one is left out.

    Args:
        section: the class.
        plain: what the file says.
    """
    if not isinstance(plain, dict):
        return None
    plain = copy.deepcopy(plain)
    while True:
        try:
            return section.model_validate(plain)
        except ValidationError as error:
            mistakes = [keys_of_error(plain, details) for details in error.errors(include_url=False)]
        removable = {_removable(plain, keys) for keys in mistakes}
        if () in removable:
            return None
        for *above, key in removable:
            _get(plain, *above, default={}).pop(key, None)


def _removable(plain: dict[str, Any], keys: Keys) -> Keys:
    """Return the path of a mistake, or of the section or list around it where the mistake is a gap or an entry."""
    found: Any = plain
    for depth, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            return keys[:depth]
        found = found[key]
    return keys


def _data_conflicts(config: DataConfig, plain: dict, name: Any, network: ModelRow | None) -> Iterator[Conflict]:
    row, options = _source_of(config)
    if row:
        yield from _source_conflicts(config, row, options)
    yield from _below(config, "data")
    native = options.native
    pixels, channels = config.image_size or native.size, config.channels or native.channels
    if network and pixels:
        yield from _size_conflicts(config, pixels, name, network, is_square=native.is_square)
    images = ImageFacts(config.image_size, config.stored_size, channels, native.is_square)
    for key, message in images.conflicts():
        yield ("data", key), message
    yield from _augment_conflicts(plain.get("augment"), images)
    shape = (pixels, pixels, channels) if native.is_square else (None, None, channels)
    for message in normalize_conflicts(config.normalize, shape):
        yield ("data", "normalize"), message
    if isinstance(config.normalize, Projection) and network and not network.takes_vectors:
        takers = " or ".join(f"'{other}'" for other, row in MODELS.items() if row.takes_vectors)
        message = f"expected the network {takers} for pca, whose result is no longer an image, got {name!r}"
        yield ("data", "normalize"), message


def _source_conflicts(config: DataConfig, row: SourceRow, options: SourceOptions) -> Iterator[Conflict]:
    kind = config.source.partition(":")[0]
    if row.needs_size and config.image_size is None:
        yield ("data", "image_size"), f"is required with {kind}: photographs come in many sizes"
    for other in SOURCES:
        if other != kind and getattr(config, other, None) is not None:
            yield ("data", other), f"belongs to the source {other!r}, the source is {show(config.source)}"
    if row.channels and config.channels not in (None, *row.channels):
        yield ("data", "channels"), f"expected 1 (gray) or 3 (color), got {config.channels}"
    if options.native.has_fixed_channels and config.channels is not None:
        yield ("data", "channels"), f"is always {options.native.channels} for these images; leave it out"
    yield from _below(options, "data", kind)


def _size_conflicts(
    config: DataConfig, pixels: int, name: str, network: ModelRow, *, is_square: bool
) -> Iterator[Conflict]:
    least = max(network.smallest_size) if is_square else network.smallest_size[0]
    if pixels < least:
        native = f"the images of {show(config.source)} have {pixels}; set data.image_size"
        got = f"got {pixels}" if config.image_size else native
        yield ("data", "image_size"), f"{name} needs at least {least} pixels, {got}"


def _augment_conflicts(entries: Any, images: ImageFacts) -> Iterator[Conflict]:
    for place, entry in enumerate(entries if isinstance(entries, list) else []):
        name, plain = next(iter(entry.items()), (None, None)) if isinstance(entry, dict) else (entry, None)
        row = AUGMENTATIONS.get(name) if isinstance(name, str) else None
        options = row and valid_part(row.options, {} if plain is None else plain)
        if options is not None:
            for option, message in options.conflicts():
                yield ("data", "augment", place, name, option), message
            for message in row.conflicts_with(name, options, images, place):
                yield ("data", "augment", place), message


def normalize_conflicts(normalize: str | MeanStd | Projection, shape: Sequence[int | None]) -> Iterator[str]:
    """Yield what cannot work about `data.normalize`.

    Args:
        normalize: value of the key.
        shape: (H, W, C) of what the network sees; None for what is not known.
    """
    channels = shape[-1]
    if isinstance(normalize, MeanStd):
        yield from normalize.conflicts_with(channels)
    elif normalize in _ONE_FOR_EACH_COLOR and channels not in (None, 3):
        yield f"expected images of 3 channels for {normalize}, got {channels}"
    elif isinstance(normalize, Projection) or normalize in ("pca_whiten", "zca"):
        components = normalize.pca.components if isinstance(normalize, Projection) else None
        if message := whitening_conflict(shape, components):
            yield message


def _training_conflicts(training: TrainingConfig) -> Iterator[Conflict]:
    yield from _below(training.optimizer, "training", "optimizer")
    yield from _below(training.learning_rate, "training", "learning_rate")
    for option, message in training.learning_rate.conflicts_with(TrainingLength(training.epochs)):
        yield ("training", "learning_rate", option), message
    if training.loss:
        yield from _below(training.loss, "training", "loss")
    if training.xla == "on" and training.distribution != "none":
        yield (
            ("training", "xla"),
            f"XLA cannot compile a step that sums gradients over devices (distribution: {training.distribution}); "
            "leave it at auto",
        )
    frozen = {("reused_layers",): training.reused_layers, **{("layers", i): e for i, e in enumerate(training.layers)}}
    for keys, section in frozen.items():
        if section:
            yield from _below(section, "training", *keys)
            if isinstance(section.frozen, Duration) and (message := _never_thaws(section.frozen, training.epochs)):
                yield ("training", *keys, "frozen"), message


def _never_thaws(frozen: Duration, epochs: int) -> str | None:
    unit, length = frozen.chosen
    training = TrainingLength(epochs)
    if length < training.in_unit(unit):
        return None
    whole, given = training.describe(unit), describe_length(unit, length)
    return f"expected a length shorter than the training ({whole}), got {given}; `all` freezes layers for good"


def _below(section: Section, *keys: str | int) -> Iterator[Conflict]:
    for option, message in section.conflicts():
        yield (*keys, option), message


def _source_of(config: DataConfig) -> tuple[SourceRow | None, SourceOptions]:
    """Return the source's row, None where the source is unknown, and its options."""
    kind = config.source.partition(":")[0]
    row = SOURCES.get(kind)
    return (row, getattr(config, kind, None) or row.options()) if row else (None, SourceOptions())


def _get(data: Any, *keys: str | int, default: Any = None) -> Any:
    for key in keys:
        data = data.get(key, default) if isinstance(data, dict) else default
    return data


def _without(plain: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if name not in keys}
