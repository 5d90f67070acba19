"""YAML as people expect it: every value knows its line, equal keys are mistakes, `1e-3` is a number.

PyYAML's parser is used down to its node tree; the scalars are read by YAML 1.2's core schema instead of PyYAML's
1.1, in which `1e-3` is a string, `on` a boolean and `010` eight. Nothing is ever constructed from a tag.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kpipe.caller import for_caller
from kpipe.catalog.wording import show
from kpipe.config.syntax import find_mistake
from kpipe.errors import ConfigError, did_you_mean
from kpipe.files import LARGEST_CONFIG, to_yaml
from kpipe.names import printable, quoted, shell_quoted

Keys = tuple[str | int, ...]

_NULL = re.compile(r"(~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of a surrogate pair; the others stand for a byte of a file's name
_RUN_TOGETHER = re.compile(r"(\w+)[:=\s]\s*\S")  # a key with its value
_BEFORE_BRACKET = re.compile(r"(\w+)[:=]\s*[\[{]")
_SPECIAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str int float bool null map seq timestamp value".split())}
DEEPEST = 20
"""Most levels of nesting that are accepted."""


COMMAND_LINE = "command line"
"""Where a value comes from that overrides the file's."""


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands (`file:line` or `command line`), its key, and what is wrong."""

    where: str
    keys: Keys
    message: str

    def __str__(self) -> str:
        where = for_caller(COMMAND_LINE, "overrides") if self.where == COMMAND_LINE else self.where
        return ": ".join(text for text in (where, dotted(self.keys), self.message) if text)


@dataclass
class Document:
    """The plain data of a YAML file, the line of each value, and the mistakes found while parsing."""

    data: Any
    name: str
    origins: dict[Keys, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def dotted(keys: Keys) -> str:
    """Return `("data", "augment", 0)` as `data.augment.0`, printable."""
    return printable(".".join(map(str, keys)))


def one_line(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = to_yaml(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def keys_of_error(data: Any, details: dict[str, Any]) -> Keys:
    """Return the path in `data` of one entry of `pydantic.ValidationError.errors()`.

    The location that Pydantic gives also names the members of unions, which no file has.
    """
    location, keys = details["loc"], []
    for depth, key in enumerate(location):
        if isinstance(data, dict) and (key in data or depth == len(location) - 1):
            data = data.get(key)  # the last may be a required key that is missing
        elif isinstance(data, list) and isinstance(key, int):
            data = data[key]
        else:
            continue
        keys.append(key)
    if details["type"] == "union_tag_invalid":
        keys.append(details["ctx"]["discriminator"].strip("'"))
    return tuple(keys)


def parse_scalar(text: str) -> None | bool | int | float | str:
    """Convert a plain (unquoted) scalar by YAML 1.2's core schema."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text) if len(text) < 40 else float(text)
    if _FLOAT.match(text):
        return float(text)
    if text.lower() in _SPECIAL:
        return float(_SPECIAL[text.lower()])
    return text


def _as_run(path: Path) -> str:
    """Return what to write for a run directory that was given in the place of a file."""
    config = path / "config.yaml"
    if not config.is_file():
        return ""
    resume, repeat = (shell_quoted(str(each)) for each in (path, config))
    return f". kpipe run --resume {resume} resumes this run; kpipe run {repeat} repeats it"


def read_document(path: Path) -> Document:
    """Read a YAML file whose root is a mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or its root is not a mapping.
    """
    name = printable(str(path))
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            raw = file.read(LARGEST_CONFIG + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name}: expected an experiment file, found nothing there{_near(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: expected an experiment file, got a folder{_as_run(path)}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    if len(raw) > LARGEST_CONFIG:
        raise ConfigError(f"{name}: expected an experiment of a page, got {max(size, len(raw)):,} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: expected UTF-8 text, got byte 0x{raw[error.start]:02x}") from None
    document = parse_document(text, name)
    if not isinstance(document.data, dict):
        raise ConfigError(f"{name}:1: expected a mapping such as 'model: {{name: lenet5}}', got {show(document.data)}")
    return document


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text. `name` stands before line numbers in messages; `read_document` says what is raised."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except _TooDeep as error:
        raise ConfigError(f"{name}:{error.line}: expected at most {DEEPEST} levels of nesting") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError("{}:{}: not valid YAML: {}".format(name, *_explain(error, text))) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {str(error).splitlines()[0]}") from None
    document = Document(None, name)
    if root is not None:
        document.data = _convert(root, (), document, set())
    return document


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Return the line of a mistake in the syntax, and what is wrong there; at worst in PyYAML's words."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    is_quote = error.context == "while scanning a quoted scalar"
    found = find_mistake(text, error.context_mark.line + 1 if is_quote else None)
    if found and found[0] <= line:  # PyYAML goes on as far as it can
        return found
    return line, " ".join(part for part in (error.context, error.problem) if part)


class _TooDeep(Exception):
    def __init__(self, line: int):
        self.line = line


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, which stops where the nesting is too deep: the time it takes grows with the square of it."""

    depth = 0

    def compose_node(self, parent, index):
        if self.depth > DEEPEST:
            raise _TooDeep(self.peek_event().start_mark.line + 1)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _convert(node: yaml.Node, keys: Keys, document: Document, seen: set[int]) -> Any:
    line = node.start_mark.line + 1
    document.origins.setdefault(keys, f"{document.name}:{line}")

    def problem(message: str, at: Keys = keys, line: int = line) -> None:
        document.problems.append(Problem(f"{document.name}:{line}", at, message))

    # A shared node is an alias: a few lines of them expand to gigabytes.
    if id(node) in seen:
        return problem("aliases (*name) are not accepted; write the value out")
    seen.add(id(node))
    if node.tag not in _PLAIN_TAGS:
        return problem(f"tags are not accepted, got {node.tag.replace('tag:yaml.org,2002:', '!!')}")
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:
            return problem(f"expected text without NUL, got {show(node.value)}")
        if _HALF.search(node.value):
            return problem(f"expected text, got {show(node.value)}, where an escape is half a character")
        last = node.end_mark.line + 1
        if not node.style and last > line:
            return problem(f"expected a value in one line, got {show(node.value)} from line {line} to here", line=last)
        return node.value if node.style else parse_scalar(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_convert(child, (*keys, i), document, seen) for i, child in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, key_line = key_node.value, key_node.start_mark.line + 1
        value = value_node.value if isinstance(value_node, yaml.ScalarNode) else None
        if key_node.tag == "tag:yaml.org,2002:merge":
            problem("merge keys (<<) are not accepted; write the values out", line=key_line)
        elif not isinstance(key_node, yaml.ScalarNode):
            problem("expected a name as key, got a list or mapping", line=key_line)
        elif not key.isprintable():
            problem(f"expected a name as key, got {show(key)}", line=key_line)
        elif (found := _RUN_TOGETHER.search(key)) and value == "":
            message = f"expected a colon and a space between key and value, got {show(key)}"
            problem(message, at=(*keys, found[1]), line=key_line)
        elif (found := _BEFORE_BRACKET.match(key)) and value is not None:
            message = f"expected a colon and a space after {found[1]}, got {show(f'{key}: {value}')}"
            problem(message, at=(*keys, found[1]), line=key_line)
        elif key in mapping:
            first = document.origins[(*keys, key)].rpartition(":")[2]
            problem(f"stands twice, first in line {first}", at=(*keys, key), line=key_line)
        else:
            # The line of the key: a value may start lines below it.
            document.origins[(*keys, key)] = f"{document.name}:{key_line}"
            mapping[key] = _convert(value_node, (*keys, key), document, seen)
    return mapping


def nearest_experiment(path: Path) -> Path | None:
    """Return the file that is meant by a path without its ending, or by the name of a file in `experiments`."""
    name = path.name if path.suffix in (".yaml", ".yml") else f"{path.name}.yaml"
    known = [path.with_name(name)]
    if path.parent == Path():
        known += sorted(each for each in Path("experiments").rglob("*.y*ml") if each.name == name)
    return next(filter(Path.is_file, known), None)


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {quoted(str(path.parent))}"
    if nearest := nearest_experiment(path):
        return f", did you mean {quoted(str(nearest))}?"
    return did_you_mean(printable(path.name), (printable(p.name) for p in sorted(path.parent.glob("*.y*ml"))))
