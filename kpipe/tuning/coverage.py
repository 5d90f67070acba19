"""What a search has tried of each key."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from kpipe.config.space import Dimension, count_combinations
from kpipe.figures import SearchedKey
from kpipe.tuning.records import Record, show_value


def count_rare_values(dimensions: Sequence[Dimension], records: Iterable[Record]) -> dict[tuple[str, str], int]:
    """Count the trials of those values of choices that at most one trial has had.

    Args:
        dimensions: those of the searched space. Ranges of numbers are left out.
        records: those of the trials that have ended.

    Returns:
        0 or 1 by (dotted key, value as it is shown). Empty where every combination has been tried.
    """
    begun = [record for record in records if record.parent is None]  # the others try what their parents have tried
    if count_combinations(dimensions, len(begun) + 1) == len(begun):
        return {}
    tried = Counter((key, show_value(value)) for record in begun for key, value in record.values.items())
    choices = [(each.key, show_value(value)) for each in dimensions for value in each.values]
    return {choice: tried[choice] for choice in choices if tried[choice] < 2}


def searched_keys(
    dimensions: Sequence[Dimension], records: Sequence[Record], names: Mapping[str, str]
) -> list[SearchedKey]:
    """Return each key with the values that trials have had, for a figure.

    Args:
        dimensions: those of the searched space.
        records: those of the trials.
        names: the keys, as the figure shows them.
    """
    found = []
    for key in dict.fromkeys(each.key for each in dimensions):
        cases = [each for each in dimensions if each.key == key]
        had = [record.values[key] for record in records if key in record.values]
        if any(case.kind != "choice" for case in cases) and all(isinstance(value, int | float) for value in had):
            values = [record.values.get(key) for record in records]
            found.append(SearchedKey(names[key], values, is_log=any(case.kind == "log" for case in cases)))
        else:
            values = [show_value(record.values[key]) if key in record.values else None for record in records]
            choices = dict.fromkeys(map(show_value, [*(value for case in cases for value in case.values), *had]))
            found.append(SearchedKey(names[key], values, list(choices)))
    return found
