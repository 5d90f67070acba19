"""What a search may try: the `search.space` of an experiment as a list of dimensions, and its mistakes.

Nothing here knows the engine of the search. A dimension is one key, or one case of a key whose values depend on
those of another.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kpipe.config.document import show
from kpipe.errors import did_you_mean
from kpipe.tables import SPACES, SearchOptions, Values

NOT_SEARCHED = ("name", "logs", "chosen", "search", "training.deterministic", "training.monitor")
"""Keys, with all below them, that do not make another training or that a search sets itself."""
_DIGITS = 6  # of a sampled number: it can be read, typed again, and is the same after it was
_MOST_CHECKED = 500  # combinations that are tried on the schema before the first step


@dataclass(frozen=True)
class Dimension:
    """One key of the space, or one case of it.

    Attributes:
        name: the key, with #2 and so on behind it from the second case on.
        key: the dotted key of the experiment.
        kind: choice, uniform, log or int.
        values: of a choice, in the order of the file.
        low, high: the ends of the others, both included.
        step: between the numbers of int.
        when: name of another dimension -> the indices of its values with which this one is searched; all must hold.
    """

    name: str
    key: str
    kind: str
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: int = 1
    when: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        return self.kind in ("choice", "int")

    @property
    def codes(self) -> range:
        """What stands for the values of a finite dimension: the indices of a choice, the numbers of an int."""
        return range(len(self.values)) if self.kind == "choice" else range(int(self.low), int(self.high) + 1, self.step)

    def decode(self, code: float) -> Any:
        """The value that a code, or a sampled number, stands for."""
        if self.kind == "choice":
            return self.values[int(code)]
        return int(code) if self.kind == "int" else float(f"{code:.{_DIGITS}g}")


def make_dimensions(search: SearchOptions) -> list[Dimension]:
    """The dimensions of a space that `space_mistakes` has nothing to say about, those that others depend on first."""
    space = _space(search)
    found = [_dimension(name, key, case, space) for key, spec in space.items() for name, case in _cases(key, spec)]
    return sorted(found, key=lambda dimension: bool(dimension.when))


def decode(dimensions: list[Dimension], codes: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides, by dotted key, that codes by dimension's name stand for; other names are passed over."""
    return {each.key: each.decode(codes[each.name]) for each in dimensions if each.name in codes}


def combinations(dimensions: list[Dimension]) -> Iterator[dict[str, int]]:
    """Every combination of codes of finite dimensions, the last dimension changing fastest."""
    if not dimensions:
        yield {}
        return
    first = [each for each in dimensions if not each.when]
    for codes in itertools.product(*(each.codes for each in first)):
        chosen = dict(zip((each.name for each in first), codes, strict=True))
        rest = [each for each in dimensions if each.when and holds(each, chosen)]
        for more in itertools.product(*(each.codes for each in rest)):
            yield chosen | dict(zip((each.name for each in rest), more, strict=True))


def holds(dimension: Dimension, codes: Mapping[str, int]) -> bool:
    """Whether a dimension is searched beside these codes of those that it depends on."""
    return all(codes.get(name) in allowed for name, allowed in dimension.when.items())


def space_mistakes(search: SearchOptions, is_key, mistake_of) -> Iterator[tuple[str, str]]:
    """What is wrong with the space, as (dotted key, message).

    Args:
        search: the section.
        is_key: of a dotted key: None where an experiment may have it, else what to say.
        mistake_of: of overrides by dotted key: None where the experiment may have them, else what to say.
    """
    space, wrong = _space(search), False
    if not space:
        yield "", "expected at least one key of the experiment"
        return
    if isinstance(search.space, str) and search.method == "grid":
        yield "", f"{search.space} has ranges of numbers, a grid needs lists of values; give a space of your own"
        return
    for key, spec in space.items():
        for message in _mistakes_of_key(key, spec, search, is_key):
            wrong = True
            yield key, message
    if wrong:
        return
    dimensions = make_dimensions(search)
    if search.method == "hyperband" and any(each.key == "training.epochs" for each in dimensions):
        yield "training.epochs", "hyperband itself decides how long a trial trains"
        return
    reported = set()
    for values in _samples(dimensions):
        message = mistake_of(values)
        if message is None:
            continue
        key = next((key for key in values if key in message or message.startswith(key)), next(iter(values)))
        if key not in reported:
            reported.add(key)
            chosen = ", ".join(f"{name}: {show(value)}" for name, value in values.items())
            yield key, f"cannot be tried with {{{chosen}}}: {message}"


def _space(search: SearchOptions) -> dict[str, Values]:
    if isinstance(search.space, str):
        return {key: Values.model_validate(values) for key, values in SPACES[search.space].items()}
    return search.space


def _cases(key: str, spec: Values) -> list[tuple[str, Values]]:
    """Each case of a key, with a name of its own: under one name the engine would lose the value of the first."""
    cases = spec.cases or [spec]
    return [(key if number == 1 else f"{key}#{number}", case) for number, case in enumerate(cases, 1)]


def _dimension(name: str, key: str, values: Values, space: dict[str, Values]) -> Dimension:
    when = {
        other: tuple(index for index, value in enumerate(space[other].choice) if value in _listed(wanted))
        for other, wanted in (values.when or {}).items()
    }
    if values.kind == "choice":
        return Dimension(name, key, "choice", tuple(values.choice), when=when)
    low, high = getattr(values, values.kind)
    return Dimension(name, key, values.kind, low=low, high=high, step=values.step or 1, when=when)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _mistakes_of_key(key: str, spec: Values, search: SearchOptions, is_key) -> Iterator[str]:
    if (message := is_key(key)) is not None:
        yield message
        return
    if any(key == each or key.startswith(f"{each}.") for each in NOT_SEARCHED):
        yield "cannot be searched"
        return
    if key == "seed" and search.method != "grid":
        yield "belongs to method: grid; executions_per_trial repeats a trial with other seeds"
        return
    if spec.cases and spec.when:
        yield "expected when in each case, got one beside cases"
        return
    space = _space(search)
    for _, case in _cases(key, spec):
        yield from _mistakes_of_values(case, search)
        for other, wanted in (case.when or {}).items():
            choices = space[other].choice if other in space and other != key else None
            if choices is None or space[other].when:
                plain = [name for name, each in space.items() if each.choice and not each.when and name != key]
                yield f"when: expected a key of the space that is a list, got {show(other)}{did_you_mean(other, plain)}"
            elif strange := [value for value in _listed(wanted) if value not in choices]:
                yield f"when: expected values of {other}, {show(choices)}, got {show(strange[0])}"
    if spec.cases and not any(case.cases for case in spec.cases):
        yield from _overlaps(spec.cases)


def _mistakes_of_values(values: Values, search: SearchOptions) -> Iterator[str]:
    kind = values.kind
    if kind == "cases":
        yield "expected no cases inside a case"
        return
    if values.step is not None and kind != "int":
        yield f"step belongs to int, not to {kind}"
    if kind == "choice":
        repeated = [value for i, value in enumerate(values.choice) if value in values.choice[:i]]
        if repeated:
            yield f"expected each value once, got {show(repeated[0])} twice"
        return
    low, high = getattr(values, kind)
    if low >= high:
        yield f"expected [smallest, largest], got [{low:g}, {high:g}]"
    elif kind == "log" and low <= 0:
        yield f"log: expected numbers above 0, got {low:g}"
    elif search.method == "grid" and kind != "int":
        yield f"a grid needs a list of values, got {kind}"


def _overlaps(cases: list[Values]) -> Iterator[str]:
    for (i, first), (j, second) in itertools.combinations(enumerate(cases, 1), 2):
        keys = {*(first.when or {}), *(second.when or {})}
        wanted = [[_listed((case.when or {}).get(key, [])) for key in keys] for case in (first, second)]
        if all(not a or not b or any(value in b for value in a) for a, b in zip(*wanted, strict=True)):
            yield f"expected cases that exclude each other by when, got two that fit at once, {i} and {j}"


def _samples(dimensions: list[Dimension]) -> Iterator[dict[str, Any]]:
    """Overrides to be tried on the schema: all combinations, of ranges both ends, where they are not too many."""
    ends = [
        each
        if each.kind == "choice"
        else Dimension(each.name, each.key, "choice", (each.decode(each.low), each.decode(each.high)), when=each.when)
        for each in dimensions
    ]
    count = math.prod(len(each.values) for each in ends)
    if count <= _MOST_CHECKED:
        drawn = combinations(ends)
    else:
        generator = random.Random(0)
        drawn = (_draw(ends, generator) for _ in range(_MOST_CHECKED))
    for codes in drawn:
        yield decode(ends, codes)


def _draw(dimensions: list[Dimension], generator: random.Random) -> dict[str, int]:
    codes: dict[str, int] = {}
    for each in dimensions:
        if holds(each, codes):
            codes[each.name] = generator.choice(each.codes)
    return codes
