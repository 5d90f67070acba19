"""Messages about wrong values: Pydantic's errors in the words of an experiment file."""

from typing import Any

from kpipe.errors import did_you_mean
from kpipe.names import in_quotes

_EXPECTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "string_type": "text", "list_type": "a list",
    "tuple_type": "a list", "finite_number": "a finite number", "model_type": "a section",
    "model_attributes_type": "a section", "dict_type": "a mapping",
}  # fmt: skip
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"), "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"), "less_than": ("less than", "lt"),
}  # fmt: skip


def show(value: Any) -> str:
    """Return a value as a message shows it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping" if len(str(value)) > 60 else str(value)
    text = in_quotes(value) if isinstance(value, str) else str(value).replace("True", "true").replace("False", "false")
    return text if len(text) <= 60 else text[:57] + "..."


def describe_error(details: dict[str, Any]) -> str:
    """Return the message for one entry of `pydantic.ValidationError.errors()`, all kinds but an unknown key."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    got = f", got {show(value)}"
    if kind == "missing":
        return "is required"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}{got}"
    if kind in ("too_short", "too_long"):
        word, key = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        return f"expected {word} {context[key]} {'entry' if context[key] == 1 else 'entries'}{got}"
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        bound = f"{context[key]:,}" if isinstance(context[key], int) else f"{context[key]:g}"
        return f"expected {word} {bound}{got}"
    if kind == "literal_error":
        names = [name.strip("'") for name in context["expected"].replace(" or ", ", ").split(", ")]
        names = [{"True": "true", "False": "false"}.get(name, name) for name in names]
        nearest = did_you_mean(value, names) if isinstance(value, str) else ""
        return f"expected one of {', '.join(names)}{got}" + (nearest if "did you" in nearest else "")
    if kind == "union_tag_invalid":
        names = [name.strip("'") for name in context["expected_tags"].split(", ")]
        name = value.get(context["discriminator"].strip("'"), "") if isinstance(value, dict) else context["tag"]
        if str(name).endswith(".py"):
            return f"expected the name of a function in the file too, got {show(name)}. Write {name}:FUNCTION"
        return f"unknown name {show(name)}" + did_you_mean(name, names)
    if kind == "union_tag_not_found":
        return f"expected a key {context['discriminator'].strip(chr(39))}{got}"
    if kind == "source":
        return details["msg"]
    if kind == "string_pattern_mismatch":
        return f"expected letters, digits, spaces and . , _ + - = @ ( ) only, and a letter or a digit at the start{got}"
    if kind == "string_unicode":
        return f"expected text in UTF-8{got}"
    if kind == "string_too_long":
        return f"expected at most {context['max_length']} characters{got}"
    return f"{details['msg']}{got}"
