"""Messages about the mistakes in an experiment, and its values with where they came from."""

from collections.abc import Iterator
from typing import Any

from kpipe.catalog.rows import Section
from kpipe.catalog.wording import describe_error, show
from kpipe.config.document import COMMAND_LINE, Document, Keys, Problem, keys_of_error, one_line
from kpipe.config.overrides import sections_at
from kpipe.config.remedies import as_list, as_section, full_key, section_with
from kpipe.errors import did_you_mean, nearest_name
from kpipe.names import in_quotes


def by_line(problem: Problem) -> tuple[bool, int]:
    """Return the sorting key by which mistakes stand in the order of the file, those of the command line last."""
    line = problem.where.rpartition(":")[2]
    return problem.where == COMMAND_LINE, int(line) if line.isdigit() else 0


def origin_of(document: Document, keys: Keys) -> str:
    """Return where the value at `keys` stands, a value below it that an override gave, or the section above it."""
    below = [origin for k, origin in document.origins.items() if len(k) > len(keys) and k[: len(keys)] == keys]
    # In a file, every section above a value has a line of its own. The kind of a search's values is given below it.
    if below and keys not in document.origins or keys[:2] == ("search", "space") and COMMAND_LINE in below:
        return COMMAND_LINE
    while keys and keys not in document.origins:
        keys = keys[:-1]
    return document.origins.get(keys, f"{document.name}:1")


def problem_of(document: Document, details: dict[str, Any]) -> Problem:
    """Convert one entry of `pydantic.ValidationError.errors()`."""
    keys = keys_of_error(document.data, details)
    where = origin_of(document, keys)
    message = _describe(keys, details, in_file=where != COMMAND_LINE)
    if keys == ("name",) and keys not in document.origins:
        message += ", the name of the file. Set another with name: NAME in the file, or name=NAME on the command line"
    return Problem(where, keys, message)


def _describe(keys: Keys, details: dict[str, Any], *, in_file: bool) -> str:
    kind, value, written = details["type"], details["input"], None
    if kind == "extra_forbidden":
        return _describe_unknown(keys, details, in_file=in_file)
    if kind in ("model_type", "model_attributes_type"):
        written = as_section(keys, value, in_file=in_file)
    elif kind == "one_of" and isinstance(value, int | float):
        written = section_with(keys, details["ctx"]["names"].split(", ")[0], value, in_file=in_file)
    elif kind == "list_type" and isinstance(value, str | int | float):
        written = as_list(keys, value, in_file=in_file)
    return describe_error(details) + (f". Write {written}" if written else "")


def misspelt_key(document: Document, details: dict[str, Any]) -> tuple[Keys, str] | None:
    """Return the path of an unknown key and the known key that was meant in its place; None where there is none."""
    if details["type"] != "extra_forbidden":
        return None
    keys = keys_of_error(document.data, details)
    known = _known_keys(keys, details)
    nearest = nearest_name(keys[-1], known)
    return (keys, nearest) if nearest and not _is_bare(keys, details) and not full_key(keys, known) else None


def _describe_unknown(keys: Keys, details: dict[str, Any], *, in_file: bool) -> str:
    known, key = _known_keys(keys, details), details["loc"][-1]
    for section in _sections_around(keys, details):
        if key in section.left_out:
            return section.left_out[key]
    if _is_bare(keys, details):
        return f"unknown {show(key)}{did_you_mean(key, known)}"
    elsewhere = full_key(keys, known, details["input"], in_file=in_file)
    if elsewhere:
        return f"unknown key, did you mean {in_quotes(elsewhere) if in_file else elsewhere}?"
    return f"unknown key{did_you_mean(key, known)}"


def _is_bare(keys: Keys, details: dict[str, Any]) -> bool:
    """Return whether an unknown augmentation was written as a name alone: no key of that name stands in the file."""
    return keys[-1] != details["loc"][-1]


def _known_keys(keys: Keys, details: dict[str, Any]) -> list[str]:
    """Return the keys that may stand where an unknown one does."""
    return sorted({name for section in _sections_around(keys, details) for name in section.model_fields})


def _sections_around(keys: Keys, details: dict[str, Any]) -> set[type[Section]]:
    """Return the sections that an unknown key may stand in; of a union only the member that was given."""
    sections = sections_at(keys if _is_bare(keys, details) else keys[:-1])
    # The class of a member has the name that stands in the location.
    return {section for section in sections if section.__name__ in details["loc"]} or sections


def annotated_lines(value: Any, keys: Keys, origins: dict[Keys, str]) -> Iterator[tuple[str, str]]:
    """Yield each line of the value as YAML, and where it came from."""
    for key, child in value.items():
        here = (*keys, key)
        indent = "  " * len(keys)
        if isinstance(child, dict) and child:
            yield f"{indent}{key}:", ""
            yield from annotated_lines(child, here, origins)
            continue
        # A bare list of the search's space stands under `choice` here.
        is_choice = keys[:2] == ("search", "space") and key == "choice"
        yield f"{indent}{key}: {one_line(child)}", origins.get(here) or (is_choice and origins.get(keys)) or "default"
