"""The usual mistakes in the syntax of a YAML file, found line by line and said in plain words.

A parser stumbles where the text cannot go on, which is often a line after the mistake. This module reads the file as a
person does: a key, a colon, a value on each line, and the indentation says what belongs together. It is asked only
about a file that PyYAML has refused, so it need not know what people rarely write.
"""

import re
from dataclasses import dataclass
from typing import NoReturn

from kpipe.names import in_quotes, shorten

Mistake = tuple[int, str]
"""Line, counted from 1, and what is wrong there."""

_KEY = re.compile(r"""([\w.<>+-]+|"[^"]*"|'[^']*')[ ]*:(?=\s|$)""")
_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|(?:^|\s)#.*""")  # also comments
_CLOSING = {"[": "]", "{": "}"}
_FLOW_TOKEN = re.compile(r"""[\[\]{},'"]|:(?=[\s,\]}]|$)|(?<=\s)#""")
_ESCAPES = '0abt\tnvfre "\\/N_LPxuU'  # that may stand after a backslash in double quotes
_SPECIAL = "%@`*"  # that a value can begin with only in quotation marks
_SHOWN = 40  # characters of what stands in the file


def find_mistake(text: str, open_quote: int | None = None) -> Mistake | None:
    """Return the first mistake in a YAML file; None: none that is known here.

    Args:
        text: of the file.
        open_quote: the line of a quotation mark that is never closed. Other quoted text may end in a later line.
    """
    return _Reader(text.splitlines(), open_quote).find_mistake()


class _Found(Exception):
    """Ends the reading at a mistake, or where something begins that is not known here."""

    def __init__(self, mistake: Mistake | None):
        super().__init__(mistake)
        self.mistake = mistake


@dataclass
class _Level:
    """Keys or list items that stand equally far to the right.

    Attributes:
        indent: spaces before each of them.
        is_list: whether they are list items.
        line, name: the last of them.
        may_hold: whether the last has no value of its own, so that further lines may stand below it.
    """

    indent: int
    is_list: bool
    line: int
    name: str
    may_hold: bool = False


class _Reader:
    def __init__(self, lines: list[str], open_quote: int | None):
        self._lines, self._open_quote = lines, open_quote
        self._levels: list[_Level] = []
        self._number = 0  # of the line that is read
        self._indent = 0  # of that line
        self._open: list[tuple[str, int]] = []  # brackets that are not closed, and their lines
        self._colons = 0  # in the current entry between brackets
        self._text_below: int | None = None  # lines indented further than this are the text of a | or >

    def find_mistake(self) -> Mistake | None:
        try:
            for number, line in enumerate(self._lines, 1):
                self._number = number
                self._read_line(line)
            if self._open:
                self._fail_unclosed()
        except _Found as found:
            return found.mistake
        return None

    def _fail(self, message: str, line: int | None = None) -> NoReturn:
        raise _Found((line or self._number, message))

    def _fail_unclosed(self) -> NoReturn:
        bracket, line = self._open[-1]
        self._fail(f"expected a {_CLOSING[bracket]} that closes the {bracket} of this line", line)

    def _read_line(self, line: str) -> None:
        content = line.lstrip()
        margin = line[: len(line) - len(content)]
        if not content or content.startswith("#") and "\t" not in margin:
            return
        if self._open:
            if len(margin) <= self._indent and _KEY.match(content):
                self._fail_unclosed()
            self._read_flow(content)
            return
        if self._text_below is not None and len(margin) > self._text_below:
            return
        self._text_below = None
        if re.match(r"(<{7}|={7}|>{7})( |$)", line):
            self._fail(f"expected an experiment, got a mark of a merge conflict, {_show(line)}. Resolve the conflict")
        if set(margin) - {" "}:
            kind = "a tab" if "\t" in margin else "spaces of another kind"
            self._fail(f"expected only spaces before {_show(content)}, got {kind}")
        if "\t" in _QUOTED.sub("", content):
            self._fail(f"expected only spaces between words, got a tab: {_show(content)}")
        if line.startswith(("%", "? ", "...")):
            raise _Found(None)
        self._indent = len(margin)
        if content.rstrip() == "---":
            if self._levels:
                self._fail("expected one experiment in a file, got the beginning of another, ---")
            return
        self._read_content(content, self._indent)

    def _read_content(self, content: str, indent: int) -> None:
        """Read a key with its value, a list item, or a value alone, which begins at this column."""
        while re.match(r"-(\s|$)", content):
            self._enter(indent, "the list item", is_list=True)
            rest = content[1:].lstrip()
            if rest and not (rest.startswith(("#", "- ")) or _KEY.match(rest)):
                self._read_value(rest)
                return
            self._levels[-1].may_hold = True
            if not rest or rest.startswith("#"):
                return
            indent += len(content) - len(rest)
            content = rest
        found = _KEY.match(content)
        if not found:
            if not self._levels and content[0] in "[{":
                self._read_value(content)
                return
            self._fail_without_key(content)
        self._enter(indent, found[1], is_list=False)
        value = content[found.end() :].strip()
        if not value or value.startswith("#"):
            self._levels[-1].may_hold = True
        else:
            self._read_value(value)

    def _enter(self, indent: int, name: str, *, is_list: bool) -> None:
        """Find the level of a key or list item; fail where it stands at none."""
        levels = self._levels
        above = levels[-1] if levels else None
        # The items of a list may stand as far to the left as the key that it belongs to.
        begins = (
            above is None
            or above.may_hold
            and (indent > above.indent or is_list and indent == above.indent and not above.is_list)
        )
        if begins:
            levels.append(_Level(indent, is_list, self._number, name))
            return
        what = "this list item" if is_list else name
        if indent > above.indent:
            self._fail(
                f"expected {_spaces(above.indent)} before {what}, as before {above.name} in line {above.line}, got "
                f"{indent}: {above.name} has a value, so nothing can stand below it"
            )
        open_indents = sorted({level.indent for level in levels})
        while levels and (levels[-1].indent > indent or levels[-1].indent == indent and levels[-1].is_list != is_list):
            last = levels.pop()
        if not levels or levels[-1].indent != indent:
            if indent in open_indents:
                self._fail_kind(what, last, is_list)
            self._fail(f"expected {_spaces(*open_indents)} before {what}, as the lines above have, got {indent}")
        level = levels[-1]
        level.line, level.name, level.may_hold = self._number, name, False

    def _fail_kind(self, what: str, last: _Level, is_list: bool) -> NoReturn:
        if is_list:
            self._fail(
                f"expected a key and a colon, as in line {last.line}, got a list item. Items of one list stand equally "
                "far to the right"
            )
        self._fail(f"expected a list item, as in line {last.line}, got the key {what}. It belongs further to the left")

    def _fail_without_key(self, content: str) -> NoReturn:
        word = re.match(r"[\w.]*", content)[0]
        rest = content[len(word) :].strip()
        if content.startswith("//"):
            self._fail(f"expected # before a comment, got {_show(content)}")
        if not word:
            if re.match(r"-\S", content):
                self._fail(f"expected a space after the dash, got {_show(content)}")
            self._fail(f"expected a key, a colon and a value, got {_show(content)}")
        if rest.startswith(":"):
            self._fail(f"expected a space after the colon, {word}: {_cut(rest[1:])}, got {_show(content)}")
        value = f" {_cut(rest.lstrip('= '))}" if rest.lstrip("= ") else ""
        self._fail(f"expected a colon after {word}, {word}:{value}, got {_show(content)}")

    def _read_value(self, value: str) -> None:
        first = value[0]
        if first in "&!":
            raise _Found(None)
        if first in "\"'":
            self._expect_end(self._after_quotes(value), "the closing quotation mark")
        elif first in "[{":
            self._read_flow(value)
        elif first in "|>":
            self._text_below = self._indent
        elif first in "]}":
            self._fail(f"expected a value, got {first}, which closes nothing")
        elif first in _SPECIAL:
            self._fail_special(value)
        elif re.search(r":(\s|$)", value.partition(" #")[0]):
            self._fail(f"expected quotation marks around a value with a colon, or one key a line, got {_show(value)}")

    def _fail_special(self, value: str) -> NoReturn:
        self._fail(f"expected quotation marks around what begins with {value[0]}, got {_show(value)}")

    def _after_quotes(self, text: str) -> str:
        """Return what follows a quoted text."""
        if text[0] == "'":
            found = re.match(r"'(?:[^']|'')*'", text)
        else:
            found = re.match(r'"(?:[^"\\]|\\.)*"', text)
            wrong = re.search(r"(?<!\\)(?:\\\\)*\\([^\\])", found[0] if found else "")
            if wrong and wrong[1] not in _ESCAPES:
                self._fail(f"expected single quotation marks around text with a backslash, got {_show(found[0])}")
        if not found and self._number == self._open_quote:
            self._fail(f"expected a closing {text[0]} in this line, got {_show(text)}")
        if not found:
            raise _Found(None)
        return text[found.end() :]

    def _expect_end(self, rest: str, after: str) -> None:
        rest = rest.strip()
        if rest and not rest.startswith("#"):
            self._fail(f"expected the end of the line after {after}, got {_show(rest)}")

    def _read_flow(self, text: str) -> None:
        """Read a line of what stands between brackets."""
        place = 0
        while found := _FLOW_TOKEN.search(text, place):
            token, place = found[0], found.end()
            if token == "#":
                return
            if token in "\"'":
                before = text[: found.start()].rstrip()
                if not before or before[-1] in "[{,:":  # else it is an apostrophe
                    place = len(text) - len(self._after_quotes(text[found.start() :]))
            elif token in "[{":
                if text[: found.start()].rstrip()[-1:] not in "[{,:":  # also true of nothing
                    self._fail(f"expected a colon or a comma before {_show(text[found.start() :])}")
                self._open.append((token, self._number))
                self._colons = 0
            elif token in "]}":
                bracket, line = self._open.pop()
                if token != _CLOSING[bracket]:
                    opened = "" if line == self._number else f" of line {line}"
                    self._fail(f"expected {_CLOSING[bracket]} for the {bracket}{opened}, got {token}")
                self._colons = 1  # what was closed is a value
                if not self._open:
                    self._expect_end(text[place:], token)
                    return
            elif token == ",":
                if text[: found.start()].rstrip()[-1:] in tuple("[{,"):
                    self._fail(f"expected something before the comma, got {_show(text[found.start() :])}")
                self._colons = 0
            else:
                self._read_colon(text[: found.start()])
            if token in "[{,:" and re.match(rf"\s*[{_SPECIAL}|>]", text[place:]):
                self._fail_special(text[place:].strip())

    def _read_colon(self, before: str) -> None:
        self._colons += 1
        if self._colons > 1 and self._open[-1][0] == "{":
            word = re.split(r"[\s,\[\]{}]", before)[-1]
            self._fail(f"expected a comma before {word}")


def _spaces(*numbers: int) -> str:
    *others, last = numbers
    if not others:
        return "1 space" if last == 1 else f"{last or 'no'} spaces"
    return f"{', '.join(map(str, others))} or {last} spaces"


def _cut(text: str) -> str:
    return shorten(text.strip(), _SHOWN)


def _show(text: str) -> str:
    return in_quotes(_cut(text))
