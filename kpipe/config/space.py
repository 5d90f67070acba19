"""The search space of an experiment: `search.space` as a list of dimensions, and its mistakes.

Nothing here knows the engine of the search. A dimension is one key, or one case of a key whose values depend on
those of another.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kpipe.catalog.search import SPACES, SearchOptions, Values
from kpipe.catalog.wording import show
from kpipe.errors import did_you_mean

NOT_SEARCHED = ("name", "logs", "chosen", "search", "logging")
NOT_SEARCHED += (
    "training.deterministic",
    "training.xla",
    "training.monitor",
    "training.when_stuck",
    "training.profile",
    "training.distribution",
)
"""Keys, with all below them, that do not change the training or that a search sets itself."""
_DIGITS = 6  # of a sampled number, so that it can be read, and is the same number when it is typed again
_LARGEST_GRID = 100_000  # combinations, where search.trials is not given
_MOST_CHECKED = 500  # combinations checked by the schema before the first step


@dataclass(frozen=True)
class Dimension:
    """One key of the space, or one case of it.

    Attributes:
        name: the key, followed by #2 and so on from the second case on.
        key: the dotted key of the experiment.
        kind: choice, uniform, log or int.
        values: values of a choice, in the order of the file.
        low, high: ends of the other kinds, both included.
        step: distance of the numbers of int.
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
        """Codes of the values of a finite dimension: the indices of a choice, the numbers of an int."""
        return range(len(self.values)) if self.kind == "choice" else range(int(self.low), int(self.high) + 1, self.step)

    def position(self, code: float) -> float:
        """Return where a code lies between the ends of its dimension, from 0 to 1; on a log scale for `log`."""
        if self.is_finite:
            return (self.codes.index(code) + 0.5) / len(self.codes)
        if self.kind == "log":
            return math.log(code / self.low) / math.log(self.high / self.low)
        return (code - self.low) / (self.high - self.low)

    def code_at(self, position: float) -> float:
        """Return the code at a position; the opposite of `position`."""
        if self.is_finite:
            return self.codes[min(int(position * len(self.codes)), len(self.codes) - 1)]
        if self.kind == "log":
            return self.low * (self.high / self.low) ** position
        return self.low + position * (self.high - self.low)

    def decode(self, code: float) -> Any:
        """Return the value of a code or of a sampled number."""
        if self.kind == "choice":
            return self.values[int(code)]
        return int(code) if self.kind == "int" else float(f"{code:.{_DIGITS}g}")


def make_dimensions(search: SearchOptions) -> list[Dimension]:
    """Return the dimensions of a space without mistakes, in its order, but each after those that it depends on."""
    space = _space(search)
    waiting = [_dimension(name, key, case, space) for key, spec in space.items() for name, case in _cases(key, spec)]
    found: list[Dimension] = []
    while waiting:
        names = {each.name for each in found}
        following = next(each for each in waiting if names.issuperset(each.when))
        waiting.remove(following)
        found.append(following)
    return found


def keys_of(search: SearchOptions) -> list[str]:
    """Return the dotted keys of a space, in its order."""
    return list(_space(search))


def decode(dimensions: Sequence[Dimension], codes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert codes, by name of their dimension, to overrides by dotted key. Other names are ignored."""
    return {each.key: each.decode(codes[each.name]) for each in dimensions if each.name in codes}


def combinations(dimensions: Sequence[Dimension]) -> Iterator[dict[str, int]]:
    """Yield every combination of codes of finite dimensions, the last dimension changing fastest."""

    def further(place: int, codes: dict[str, int]) -> Iterator[dict[str, int]]:
        if place == len(dimensions):
            yield codes
        elif not holds(each := dimensions[place], codes):
            yield from further(place + 1, codes)
        else:
            for code in each.codes:
                yield from further(place + 1, codes | {each.name: code})

    yield from further(0, {})


def count_combinations(dimensions: Sequence[Dimension], most: int | None = None) -> int | None:
    """Count the combinations up to `most`; None: a dimension is not finite."""
    if not all(each.is_finite for each in dimensions):
        return None
    return sum(1 for _ in itertools.islice(combinations(dimensions), most))


def holds(dimension: Dimension, codes: Mapping[str, int]) -> bool:
    """Return whether a dimension is searched, given the codes of those that it depends on."""
    return all(codes.get(name) in allowed for name, allowed in dimension.when.items())


@dataclass(frozen=True)
class Tried:
    """Result of checking values that a search may try.

    Attributes:
        mistake: None where an experiment may have them, else the message.
        dropped: dotted keys of the file that do not apply with them.
    """

    mistake: str | None = None
    dropped: tuple[str, ...] = ()


def space_mistakes(search: SearchOptions, wrong_key: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the keys of the space, as (dotted key, message).

    Args:
        search: the section `search`.
        wrong_key: returns None for a dotted key that an experiment may have, else the message.
    """
    space = _space(search)
    if not space:
        yield "", f"expected at least one key of the experiment, or {' or '.join(SPACES)}"
    elif isinstance(search.space, str) and search.method == "grid":
        yield "", f"{search.space} has ranges of numbers, a grid needs lists of values; give a space of your own"
    elif search.method == "hyperband" and "training.epochs" in space:
        yield "training.epochs", "hyperband itself decides how long a trial trains"
    else:
        for key, spec in space.items():
            for message in _mistakes_of_key(key, spec, search, wrong_key):
                yield key, message


def try_values(
    search: SearchOptions, try_: Callable[[Mapping[str, Any]], Tried]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Check combinations of the space by the schema: all, with both ends of ranges, or 500 where there are more.

    Args:
        search: a section whose keys have no mistakes.
        try_: checks overrides by dotted key.

    Returns:
        What is wrong, as (dotted key, message), and notes for the user.
    """
    dimensions = make_dimensions(search)
    if search.method == "grid" and search.trials is None:
        if count_combinations(dimensions, _LARGEST_GRID) == _LARGEST_GRID:
            few = f"expected a grid of fewer than {_LARGEST_GRID:,} combinations, or search.trials, how many to try"
            return [("", few)], []
    wrong: dict[str, str] = {}
    dropped: dict[str, None] = {}
    for values in _samples(dimensions):
        tried = try_(values)
        dropped |= dict.fromkeys(tried.dropped)
        if tried.mistake is None:
            continue
        key = next((key for key in values if tried.mistake.startswith(f"{key}:")), next(iter(values)))
        others = [other for other in values if other != key and other in tried.mistake.partition(": ")[2]]
        shown = others or list(values)
        combination = ", ".join(f"{name}: {show(values[name])}" for name in values if name in shown or name == key)
        is_unknown = "unknown key" in tried.mistake
        cure = "; if it belongs to some values of another key, say so with when" if is_unknown else ""
        wrong.setdefault(key, f"cannot be tried with {{{combination}}}: {tried.mistake}{cure}")
    notes = [f"trials with another kind leave out what the file says of {', '.join(dropped)}"] if dropped else []
    return list(wrong.items()), notes + list(_not_covered(search))


def _not_covered(search: SearchOptions) -> Iterator[str]:
    """Yield notes about keys with several cases: values of another key that no case covers."""
    space = _space(search)
    for key, spec in space.items():
        for other in dict.fromkeys(other for case in spec.cases or () for other in case.when or {}):
            choices = space[other].choice
            covered = [value for case in spec.cases for value in _listed((case.when or {}).get(other, choices))]
            if left := [value for value in choices if not _is_in(value, covered)]:
                yield f"{key} has no case for {other}: {', '.join(map(show, left))}; there it stays as in the file"


def _space(search: SearchOptions) -> dict[str, Values]:
    if isinstance(search.space, str):
        return {key: Values.model_validate(values) for key, values in SPACES[search.space].items()}
    return search.space


def _cases(key: str, spec: Values) -> list[tuple[str, Values]]:
    """Return each case of a key, with a name of its own: the engine keeps one value for each name."""
    cases = spec.cases or [spec]
    return [(key if number == 1 else f"{key}#{number}", case) for number, case in enumerate(cases, 1)]


def _dimension(name: str, key: str, values: Values, space: dict[str, Values]) -> Dimension:
    when = {
        other: tuple(index for index, value in enumerate(space[other].choice) if _is_in(value, _listed(wanted)))
        for other, wanted in (values.when or {}).items()
    }
    if values.kind == "choice":
        return Dimension(name, key, "choice", tuple(values.choice), when=when)
    low, high = getattr(values, values.kind)
    return Dimension(name, key, values.kind, low=low, high=high, step=values.step or 1, when=when)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_in(value: Any, values: Sequence[Any]) -> bool:
    """Return whether a value is among others. In Python, True == 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def _mistakes_of_key(
    key: str, spec: Values, search: SearchOptions, wrong_key: Callable[[str], str | None]
) -> Iterator[str]:
    space = _space(search)
    if (message := wrong_key(key)) is not None:
        yield message
        return
    if above := next((other for other in space if key.startswith(f"{other}.")), None):
        yield f"lies in {above}, which is a key of the space too; leave one of them out"
        return
    if any(key == each or key.startswith(f"{each}.") for each in NOT_SEARCHED):
        yield "cannot be searched"
        return
    if key == "seed" and search.method != "grid":
        yield "belongs to method: grid; executions_per_trial repeats a trial with other seeds"
        return
    if key == "seed" and search.executions_per_trial > 1:
        yield "each seed is a trial of its own; leave out executions_per_trial"
        return
    if spec.cases and spec.when:
        yield "expected when in each case, got one beside cases"
        return
    for _, case in _cases(key, spec):
        yield from _mistakes_of_values(case, search)
        for other, wanted in (case.when or {}).items():
            choices = space[other].choice if other in space and other != key else None
            if choices is None or space[other].when:
                plain = [name for name, each in space.items() if each.choice and not each.when and name != key]
                yield f"when: expected a key of the space that is a list, got {show(other)}{did_you_mean(other, plain)}"
            elif strange := [value for value in _listed(wanted) if not _is_in(value, choices)]:
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
        repeated = [value for i, value in enumerate(values.choice) if _is_in(value, values.choice[:i])]
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
        if all(not a or not b or any(_is_in(value, b) for value in a) for a, b in zip(*wanted, strict=True)):
            yield f"expected cases that exclude each other by when, got two that fit at once, {i} and {j}"


def _samples(dimensions: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Yield overrides to check: all combinations, with both ends of ranges, where there are not too many."""
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


def _draw(dimensions: Sequence[Dimension], generator: random.Random) -> dict[str, int]:
    codes: dict[str, int] = {}
    for each in dimensions:
        if holds(each, codes):
            codes[each.name] = generator.choice(each.codes)
    return codes
