"""What was probably meant by a key or a value at the wrong place."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from kpipe.catalog.rows import OneOf, Row, Section
from kpipe.catalog.tables import KINDS
from kpipe.config.document import Keys, dotted, one_line, parse_scalar
from kpipe.config.overrides import sections_at, split_keys
from kpipe.config.schema import Resolved
from kpipe.errors import nearest_name
from kpipe.names import shell_quoted

_SHORT_FOR = {"lr": "learning_rate"}
_LONGEST_VALUE = 60  # characters of a value that a message repeats


def as_section(keys: Keys, value: Any, *, in_file: bool) -> str | None:
    """Return how to write a value that was given in the place of a section: `training.optimizer.name=sgd`.

    Args:
        keys: path of the section.
        value: what was given.
        in_file: whether it stands in the file, where the section is written as a mapping.

    Returns:
        None where the value fits neither the kind nor the first key of the section.
    """
    key, kinds = _main_key(keys, value), _kinds_at(keys)
    if key:
        return section_with(keys, key, value, in_file=in_file)
    if kinds and isinstance(value, str):
        [(key, known)] = kinds.items()
        return f"{section_with(keys, key, 'NAME', in_file=in_file)} (known: {', '.join(known)})"
    return None


def as_list(keys: Keys, value: Any, *, in_file: bool) -> str:
    """Return how to write a value that was given in the place of a list of such values."""
    return f"{keys[-1]}: {one_line([value])}" if in_file else _as_override(keys, [value])


def full_key(keys: Keys, known: Iterable[str], value: Any = None, *, in_file: bool = True) -> str | None:
    """Return the key of another section that an unknown one was meant for: `training.epochs` for `epochs`.

    Args:
        keys: path of the unknown key.
        known: keys that may stand at its place.
        value: what was given for it. `learning_rate=0.1` means `training.learning_rate.peak=0.1`.
        in_file: whether it stands in the file. Otherwise the value belongs to the answer, as in an override.

    Returns:
        None where no other key or more than one ends with this word. At the top, a word that is near to that of a key
        counts too, unless it is near to a known key.
    """
    word, places = str(keys[-1]).lower(), _places()
    found = places.get(_SHORT_FOR.get(word, word))
    if not found and len(keys) == 1 and not nearest_name(word, known) and (nearest := nearest_name(word, places)):
        found = places[nearest]
    if not found or found == keys:
        return None
    while isinstance(value, dict) and len(value) == 1:  # optimizer.name=adam
        [(key, value)] = value.items()
        found = (*found, key)
    key = _main_key(found, value)
    found = (*found, key) if key else found
    return dotted(found) if in_file or isinstance(value, dict) else _as_override(found, value)


def override_for_option(option: str, value: str | None) -> str | None:
    """Return the override that somebody meant by an option: `training.epochs=5` for `--epochs 5`.

    Args:
        option: with its dashes.
        value: what follows it; None: nothing.

    Returns:
        None where the option is like no key.
    """
    keys = split_keys(option.lstrip("-").replace("-", "_"))
    given = "VALUE" if value is None else parse_scalar(value)
    is_whole = keys in set(_paths(()))  # --training.epochs=5
    return _as_override(keys, given) if is_whole else full_key(keys, (), given, in_file=False)


def section_with(keys: Keys, key: str, value: Any, *, in_file: bool) -> str:
    """Return how to write a section with one key: `training.log_every.steps=10`."""
    return f"{keys[-1]}: {one_line({key: value})}" if in_file else _as_override((*keys, key), value)


def _as_override(keys: Keys, value: Any) -> str:
    text = one_line(value)
    return shell_quoted(f"{dotted(keys)}={text if len(text) <= _LONGEST_VALUE else '...'}")


def _kinds_at(keys: Keys) -> dict[str, Mapping[str, Row]]:
    """Return the key that says the kind of a section with all kinds; empty: the section has none."""
    return {key: table for (*above, key), table in KINDS.items() if tuple(above) == keys}


def _main_key(keys: Keys, value: Any) -> str | None:
    """Return the key in a section that takes a value given in the section's place: its kind, or else its first key."""
    if not isinstance(value, str | int | float):
        return None
    sections = [section for section in sections_at(keys) if not issubclass(section, OneOf)]
    kinds = _kinds_at(keys)
    first = [key for section in sections for key in [key for key in section.model_fields if key not in kinds][:1]]
    return next((key for key in (*kinds, *first) if any(_takes(section, key, value) for section in sections)), None)


def _takes(section: type[Section], key: str, value: Any) -> bool:
    if key not in section.model_fields:
        return False
    try:
        section.model_validate({key: value})
    except ValidationError as error:
        return all(details["loc"][0] != key for details in error.errors())
    return True


@functools.cache
def _places() -> dict[str, Keys]:
    """Return the path of each key whose word no other has. One of a search counts where nothing else has its word."""
    found: dict[str, Keys] = {}
    for of_search in (True, False):
        paths = [keys for keys in set(_paths(())) if (keys[0] == "search") == of_search]
        frequency = Counter(keys[-1] for keys in paths)
        found |= {keys[-1]: keys for keys in paths if frequency[keys[-1]] == 1}
    return found


def _paths(above: Keys) -> Iterator[Keys]:
    """Yield the paths of the keys that users write, but not those in lists, of a searched space, and units of time."""
    for section in sections_at(above):
        for key in () if issubclass(section, OneOf) or section is Resolved else section.model_fields:
            yield (*above, key)
            if above != ("search",):
                yield from _paths((*above, key))
