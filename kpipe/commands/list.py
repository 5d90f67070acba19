"""`kpipe list`: the names that an experiment may use, and their options. TensorFlow is not imported.

The options are described from their JSON schema, which `--json` prints as it is.
"""

from collections.abc import Iterator
from typing import Any

from kpipe.catalog.data import SOURCES
from kpipe.catalog.rows import Row
from kpipe.catalog.tables import KINDS, TABLES
from kpipe.console import Screen
from kpipe.errors import ConfigError, did_you_mean
from kpipe.names import in_quotes

_INDENT = 4
_EXAMPLE_OPTIONS = 2  # in the example of a name
_BOUNDS = {
    "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
}  # fmt: skip


def describe_names(section: str | None = None, name: str | None = None) -> dict[str, Any]:
    """Return what `kpipe list --json` prints.

    Args:
        section: one of `TABLES`; None: all of them.
        name: one of its names; None: all of them.

    Returns:
        Section -> name -> `summary`, `paper` (or null), `example` (a line of YAML) and `options`, a JSON schema whose
        `properties` are the options.

    Raises:
        ConfigError: there is no such section, or no such name in it.
    """
    return {
        each: {name: _describe(each, name, row) for name, row in rows.items()}
        for each, rows in _choose(section, name).items()
    }


def show_names(section: str | None = None, name: str | None = None, screen: Screen | None = None) -> None:
    """Print the names of all sections or of one, each with its options in short, or one name in full.

    Raises:
        ConfigError: as `describe_names`.
    """
    screen = screen or Screen()
    chosen = _choose(section, name)
    if name is not None:
        _show_in_full(section, name, chosen[section][name], screen)
        return
    screen.prose("Each option is followed by its values or its type, and by its default. To see one name in full:")
    screen.line("  kpipe list models vgg16")
    for each, rows in chosen.items():
        screen.line("")
        screen.line(each, style="bold")
        for row_name, row in rows.items():
            screen.prose(f"  {row_name}: {row.summary}", indent=_INDENT)
            _show_in_short(row, screen)


def _choose(section: str | None, name: str | None) -> dict[str, dict[str, Row]]:
    """Return the tables, or one of them, or one row of one table."""
    if section is None:
        return TABLES
    if section not in TABLES:
        homes = [each for each, rows in TABLES.items() if section in rows]
        advice = f". Write kpipe list {homes[0]} {section}" if homes else did_you_mean(section, TABLES)
        raise ConfigError(f"list: expected a section, got {in_quotes(section)}{advice}")
    rows = TABLES[section]
    if name is None:
        return {section: rows}
    if name not in rows:
        raise ConfigError(f"list {section}: expected a name, got {in_quotes(name)}{did_you_mean(name, rows)}")
    return {section: {name: rows[name]}}


def _describe(section: str, name: str, row: Row) -> dict[str, Any]:
    return {
        "summary": row.summary,
        "paper": row.paper,
        "example": _example(section, name, row),
        "options": row.options.model_json_schema(),
    }


# --- on the screen --------------------------------------------------------------------------------------------------


def _show_in_short(row: Row, screen: Screen) -> None:
    """Print the options of a row, as many on each line as fit."""
    schema = row.options.model_json_schema()
    options = [f"{name}: {_type(option, schema)}{_default(option)}" for name, option in schema["properties"].items()]
    width = screen.console.width if screen.console.is_terminal else None
    line = ""
    for option in options:
        if line and width and _INDENT + len(f"{line}, {option}") > width:
            screen.prose(" " * _INDENT + f"{line},", indent=2 * _INDENT)
            line = ""
        line += f", {option}" if line else option
    if line:
        screen.prose(" " * _INDENT + line, indent=2 * _INDENT)


def _show_in_full(section: str, name: str, row: Row, screen: Screen) -> None:
    screen.line(name, style="bold")
    screen.prose(row.summary)
    if row.paper:
        screen.prose(row.paper)
    schema = row.options.model_json_schema()
    if schema["properties"]:
        screen.line("")
    _show_options(schema, schema, screen, indent=2)
    screen.line("")
    screen.line("In an experiment:")
    screen.line(f"  {_example(section, name, row)}")


def _show_options(section: dict[str, Any], schema: dict[str, Any], screen: Screen, *, indent: int) -> None:
    """Print the options of a section, and below each one its own.

    Args:
        section: a schema with properties.
        schema: the schema around it, which has the definitions.
        screen: where to print.
        indent: spaces in front of each name.
    """
    for name, option in section["properties"].items():
        bounds = ", ".join(f"{word} {_value(number)}" for word, number in _find_bounds(option, schema))
        kind = _type(option, schema) + (f" ({bounds})" if bounds else "")
        default = "" if section.get("maxProperties") == 1 else _default(option)  # of several keys, one is given
        screen.prose(f"{' ' * indent}{name}: {kind}{default}", indent=indent + 4)
        if text := option.get("description"):
            screen.prose(" " * (indent + 4) + " ".join(text.split()), indent=indent + 4)
        for below in _kinds(option, schema):
            if "properties" in below:
                _show_options(below, schema, screen, indent=indent + 4)


def _kinds(option: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schemas of the kinds of values that an option takes, null left out."""
    for kind in option.get("anyOf") or option.get("oneOf") or [option]:
        if "$ref" in kind:
            kind = schema["$defs"][kind["$ref"].rpartition("/")[2]]
        if kind.get("type") != "null":
            yield kind


def _find_bounds(option: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for kind in _kinds(option, schema):
        numbers = kind.get("items", kind)
        yield from ((word, numbers[key]) for key, word in _BOUNDS.items() if key in numbers)


def _type(option: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the values of an option, or their type."""
    return " or ".join(_name_kind(kind) for kind in _kinds(option, schema))


def _name_kind(kind: dict[str, Any]) -> str:
    if "const" in kind or "enum" in kind:
        return "|".join(map(_value, kind.get("enum", [kind.get("const")])))
    if "properties" in kind:
        is_one_of = kind.get("maxProperties") == 1
        return "{" + ("|" if is_one_of else ", ").join(kind["properties"]) + "}"
    if kind["type"] == "array":
        number = f"{kind['maxItems']} " if "maxItems" in kind else ""
        return f"list of {number}{kind['items']['type']}s"
    return {"boolean": "true|false", "string": "text", "object": "mapping"}.get(kind["type"], kind["type"])


def _default(option: dict[str, Any]) -> str:
    """Return ` = 0.9`; ` = none` where the option is off, and ` (required)` where it must be given."""
    return f" = {_value(option['default'])}" if "default" in option else " (required)"


def _value(value: Any) -> str:
    """Return a value on one line, as YAML writes it, but `none` for null."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_value(each)}' for key, each in value.items())}}}"
    return str(value)


# --- an example -----------------------------------------------------------------------------------------------------


def _example(section: str, name: str, row: Row) -> str:
    """Return a line of an experiment file that uses a name, with the first of its options."""
    given = {}
    for option, schema in row.options.model_json_schema()["properties"].items():
        value = schema.get("examples", [schema.get("default")])[0]
        if value is not None and len(given) < _EXAMPLE_OPTIONS:
            given[option] = value
    if section == "normalizations":
        form = {"mean_std": given, "pca": {"pca": given}}.get(name, name)
        return f"data: {{normalize: {_value(form)}}}"
    if section == "sources":
        source = f"{name}:{SOURCES[name].example}" if SOURCES[name].argument else name
        size = {"image_size": 64} if SOURCES[name].needs_size else {}
        return f"data: {_value({'source': source, **size, **({name: given} if given else {})})}"
    if section == "augmentations":
        return f"data: {{augment: [{_value({name: given} if given else name)}]}}"
    [(*above, kind)] = [keys for keys, rows in KINDS.items() if rows is TABLES[section]]
    form = {kind: name, **given}
    for key in reversed(above):
        form = {key: form}
    return _value(form)[1:-1]
