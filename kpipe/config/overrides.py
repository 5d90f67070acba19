"""Overrides: `training.optimizer.name=adam` on the command line, or a value that a search has sampled.

There is one rule. An override that changes the kind of a section (its `name` or `schedule`, or the one key of a
one-of mapping) replaces that section. Options that the new kind also has are kept; the others get its defaults.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from kpipe.catalog.data import SOURCES
from kpipe.catalog.rows import OneOf, Section
from kpipe.catalog.search import VALUE_KINDS
from kpipe.catalog.tables import KINDS
from kpipe.catalog.wording import show
from kpipe.config.document import (
    COMMAND_LINE,
    DEEPEST,
    Document,
    Keys,
    Problem,
    dotted,
    parse_document,
    parse_scalar,
)
from kpipe.config.rules import valid_part
from kpipe.config.schema import Experiment
from kpipe.errors import ConfigError
from kpipe.names import shorten

_SPACE = "search.space."


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[str]:
    """Write the overrides of a command line into the document's data.

    Args:
        document: changed in place: data, origins and problems.
        overrides: `key=value` each. A value is a YAML scalar or list; it is never evaluated.

    Returns:
        The dotted keys of the file that do not apply any more and were dropped.
    """
    given: dict[Keys, Any] = {}
    for text in overrides:
        try:
            keys, value = _parse(text)
        except ConfigError as error:
            document.problems.append(Problem(COMMAND_LINE, (), str(error)))
            continue
        given[keys] = value
    return override(document, given)


def override(document: Document, given: Mapping[Keys, Any]) -> list[str]:
    """Do the same as `apply_overrides` with values that need not be parsed."""
    for keys in given:
        _spell_out_choice(document.data, keys)
    before = {keys: _find(document.data, keys) for keys in given}
    for keys, value in given.items():
        _write(document, keys, value)
    dropped = [gone for keys in given for gone in _left_out(document, keys, before[keys], given)]
    dropped = list(dict.fromkeys(dropped))
    for keys in dropped:
        del _find(document.data, keys[:-1])[keys[-1]]
        _forget_origins(document, keys)
    return [dotted(keys) for keys in dropped]


def rename(document: Document, keys: Keys, name: str) -> None:
    """Give the value at `keys` to another key of its section. Where both are sections, that key's own values stay."""
    *above, old = keys
    section = _find(document.data, tuple(above))
    value, own = section.pop(old), section.get(name)
    if isinstance(value, dict) and isinstance(own, dict):
        section[name] = {**value, **own}
    else:
        section.setdefault(name, value)
    for place in [place for place in document.origins if place[: len(keys)] == keys]:
        document.origins.setdefault((*above, name, *place[len(keys) :]), document.origins.pop(place))


def sections_at(keys: Keys) -> set[type[Section]]:
    """Return the section classes that may stand at a path of keys, with all members of a union."""
    found: set[type[Section]] = {Experiment}
    for depth, key in enumerate(keys):
        if isinstance(key, int) or keys[:depth] == ("search", "space"):  # an entry of a list, a key of the space
            continue
        fields = [section.model_fields[key].annotation for section in found if key in section.model_fields]
        found = {section for annotation in fields for section in _sections_in(annotation)}
    return found


def _sections_in(annotation: Any) -> set[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation}
    return {section for argument in get_args(annotation) for section in _sections_in(argument)}


def _parse(text: str) -> tuple[Keys, Any]:
    left, equals, right = text.partition("=")
    keys = left.split(".")
    if not equals or not all(keys) or len(keys) > DEEPEST or not left.isprintable():
        raise ConfigError(f"expected an override key=value such as training.epochs=5, got {show(text)}")
    if right[:1] not in ("[", "{", "'", '"'):  # a plain scalar may hold a colon: folder:photos
        return split_keys(left), parse_scalar(right.strip())
    shown = shorten(left, 100)
    try:
        document = parse_document(right, COMMAND_LINE)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {str(error).removeprefix(f'{COMMAND_LINE}:1: ')}") from None
    if isinstance(document.data, dict):
        raise ConfigError(f"{shown}: expected a value or a list, got a mapping; name its keys: {shown}.<key>=...")
    if document.problems:
        raise ConfigError(f"{shown}: {document.problems[0].message}")
    return split_keys(left), document.data


def split_keys(text: str) -> Keys:
    """Return `data.augment.0` as a path of keys. What stands after `search.space.` is one key, dots included."""
    if text.startswith(_SPACE):
        key, _, last = text.removeprefix(_SPACE).rpartition(".")
        below = key and last in (*VALUE_KINDS, "step")
        return ("search", "space", *((key, last) if below else (text.removeprefix(_SPACE),)))
    return tuple(
        int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in text.split(".")
    )


def _find(data: Any, keys: Keys) -> Any:
    for key in keys:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def _write(document: Document, keys: Keys, value: Any) -> None:
    node = document.data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not isinstance(key, int) or key >= len(node):
                numbers = f"the number of an entry, 0 to {len(node) - 1}" if node else "no key: the list is empty"
                message = f"expected {numbers}, got {show(key)}"
                document.problems.append(Problem(COMMAND_LINE, keys[: depth + 1], message))
                return
        else:
            key = str(key)
            if not last and not isinstance(node.get(key), dict | list):
                node[key] = {}
        if last:
            node[key] = value
        elif not isinstance(node[key], dict | list):
            node[key] = {}
        node = node[key]
    _forget_origins(document, keys)
    document.origins[keys] = COMMAND_LINE


def _forget_origins(document: Document, keys: Keys) -> None:
    for origin in [k for k in document.origins if k[: len(keys)] == keys]:
        del document.origins[origin]


def _spell_out_choice(data: Any, keys: Keys) -> None:
    """Write the list of values at a key of the search's space as `{choice: [...]}`, where one kind is to replace it."""
    if _is_kind_of_values(keys[:-1], keys[-1]) and isinstance(values := _find(data, keys[:-1]), list):
        _find(data, keys[:-2])[keys[-2]] = {"choice": values}


def _is_kind_of_values(section: Keys, key: str | int) -> bool:
    return len(section) == 3 and section[:2] == ("search", "space") and key in VALUE_KINDS


def _left_out(document: Document, keys: Keys, before: Any, given: Mapping[Keys, Any]) -> list[Keys]:
    """Return the keys from the file that mean nothing beside the override at `keys`."""
    reached = {dotted(g[:n]) for g in given for n in range(1, len(g) + 1)}

    def from_file(section: Keys) -> list[Keys]:
        found = _find(document.data, section)
        children = [(*section, key) for key in found] if isinstance(found, dict) else []
        return [child for child in children if dotted(child) not in reached]

    value, parent = given[keys], keys[:-1]
    if keys in KINDS and value != before and isinstance(value, str) and value in KINDS[keys]:
        kept = KINDS[keys][value].options.model_fields
        meant = KINDS[keys][before].options.model_fields if before in KINDS[keys] else {}
        redefined = [name for name in kept if name in meant and kept[name].annotation != meant[name].annotation]
        gone = [child for child in from_file(parent) if child[-1] not in kept or child[-1] in redefined]
        return gone + [
            child for name in redefined for child in from_file((*parent, name)) if (*parent, name) not in gone
        ]
    if keys == ("data", "source"):
        kind = str(value).partition(":")[0]
        return [child for child in from_file(parent) if child[-1] in SOURCES and child[-1] != kind]
    inapplicable = _inapplicable_options(document.data, parent)
    found = [child for child in from_file(parent) if child[-1] in inapplicable]
    for depth in range(1, len(keys)):
        compatible = _compatible_keys(keys[:depth], keys[depth])
        found += [child for child in from_file(keys[:depth]) if compatible is not None and child[-1] not in compatible]
    return found


def _compatible_keys(section: Keys, key: str | int) -> set[str] | None:
    """Return the keys that may stand beside `key`, where the key decides what the section is; None: it does not.

    Of a one-of mapping no other key may. Of a union without a name, such as `data.normalize`, those of its member may.
    """
    if _is_kind_of_values(section, key):
        return {"when", "step"} if key == "int" else {"when"}
    members = sections_at(section)
    if any(issubclass(member, OneOf) for member in members):
        return set()
    fitting = [member for member in members if key in member.model_fields]
    if not 0 < len(fitting) < len(members) or any(kind[:-1] == section for kind in KINDS):
        return None
    return {name for member in fitting for name in member.model_fields}


def _inapplicable_options(data: Any, keys: Keys) -> set[str]:
    """Return the options in the section at `keys` that mean nothing beside the others there."""
    plain = _find(data, keys)
    if not isinstance(plain, dict):
        return set()
    kinds = {kind: table for (*section, kind), table in KINDS.items() if tuple(section) == keys}
    rows = [table.get(str(plain.get(kind))) for kind, table in kinds.items()]
    classes = [row.options for row in rows if row] if kinds else sections_at(keys)
    plain = {key: value for key, value in plain.items() if key not in kinds}
    sections = [valid_part(section, plain) for section in classes]
    return {option for section in sections if section for option, _ in section.inapplicable_options()}
