"""Messages about the mistakes in an experiment, and its values with where they came from."""

import math
from collections.abc import Iterator
from typing import Any

from kpipe.catalog.wording import describe_error, show
from kpipe.config.document import Document, Keys, Problem, keys_of_error
from kpipe.config.overrides import WHERE, sections_at
from kpipe.errors import did_you_mean
from kpipe.files import to_yaml


def by_line(problem: Problem) -> tuple[bool, int]:
    """Return the sorting key by which mistakes stand in the order of the file, those of the command line last."""
    line = problem.where.rpartition(":")[2]
    return problem.where == WHERE, int(line) if line.isdigit() else 0


def origin_of(document: Document, keys: Keys) -> str:
    """Return where the value at `keys` stands, a value below it that an override gave, or the section above it."""
    below = [origin for k, origin in document.origins.items() if len(k) > len(keys) and k[: len(keys)] == keys]
    # In a file, every section above a value has a line of its own. The kind of a search's values is given below it.
    if below and keys not in document.origins or keys[:2] == ("search", "space") and WHERE in below:
        return WHERE
    while keys and keys not in document.origins:
        keys = keys[:-1]
    return document.origins.get(keys, f"{document.name}:1")


def problem_of(document: Document, details: dict[str, Any]) -> Problem:
    """Convert one entry of `pydantic.ValidationError.errors()`."""
    keys = keys_of_error(document.data, details)
    message = _describe(keys, details)
    if keys == ("name",) and keys not in document.origins:
        message += ", the name of the file. Set another with name: NAME in the file, or name=NAME on the command line"
    return Problem(origin_of(document, keys), keys, message)


def _describe(keys: Keys, details: dict[str, Any]) -> str:
    if details["type"] != "extra_forbidden":
        return describe_error(details)
    parent = keys[:-1] if keys[-1] == details["loc"][-1] else keys
    sections = sections_at(parent)
    # Of a union only the member that was given: its class has the name that stands in the location.
    sections = {section for section in sections if section.__name__ in details["loc"]} or sections
    known = {name for section in sections for name in section.model_fields}
    bare = parent == keys  # an augmentation written as a name alone: no key of that name stands in the file
    return f"unknown {show(details['loc'][-1]) if bare else 'key'}" + did_you_mean(details["loc"][-1], sorted(known))


def annotated_lines(value: Any, keys: Keys, origins: dict[Keys, str]) -> Iterator[tuple[str, str]]:
    """Yield each line of the value as YAML, and where it came from."""
    for key, child in value.items():
        here = (*keys, key)
        indent = "  " * len(keys)
        if isinstance(child, dict) and child:
            yield f"{indent}{key}:", ""
            yield from annotated_lines(child, here, origins)
            continue
        text = to_yaml(child, default_flow_style=True, width=math.inf)
        text = text.removesuffix("\n").removesuffix("\n...")
        # A bare list of the search's space stands under `choice` here.
        is_choice = keys[:2] == ("search", "space") and key == "choice"
        yield f"{indent}{key}: {text}", origins.get(here) or (is_choice and origins.get(keys)) or "default"
