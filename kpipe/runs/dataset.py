"""What decides the meaning of a run's numbers: the names of its classes in order, and which images they hold."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from kpipe.caller import flag
from kpipe.catalog.wording import show
from kpipe.console import counted
from kpipe.errors import SHOWN, DataError
from kpipe.files import read_json, read_names, write_json, write_names
from kpipe.names import path_shown
from kpipe.runs.directory import Run

RECORD, NAMES, UNREADABLE = "data.json", "classes.txt", "unreadable.txt"

Content = tuple[int, str]
"""Number of images, and a digest of their names."""

NOTHING: Content = (0, "")


class Described(Protocol):
    """A data set that says what it holds."""

    class_names: Sequence[str]
    """In the order of the logits."""
    contents: Mapping[str, Mapping[str, Content]]
    """Split -> class -> content."""

    def unreadable_names(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the files that could not be read, by split."""


class Record(BaseModel):
    """What is written into data.json."""

    classes: list[Any]  # names that are not UTF-8 are no text to pydantic
    splits: dict[str, dict[Any, Content]]


def record_data(run: Run, data: Described) -> None:
    """Write classes.txt and data.json; a resumed run compares them instead.

    Args:
        run: the run directory.
        data: of the experiment.

    Raises:
        DataError: the data are not those that the run began with.
    """
    now = Record(classes=data.class_names, splits=data.contents)
    then = _read_record(run, now) if run.resumed else now
    _refuse_differences(then, now, run.path, "run")
    run.write_json(RECORD, now.model_dump())
    write_names(run.path / NAMES, now.classes)


def record_search_data(file: Path, data: Described) -> None:
    """Write what the trials of a search are trained on; where the file exists, compare instead.

    Args:
        file: in the folder of the search, one for each way in which its trials read data.
        data: what its trials are trained on.

    Raises:
        DataError: the data are not those that the search began with.
    """
    now = Record(classes=data.class_names, splits=data.contents)
    with FileLock(file.with_name(f".{file.stem}.lock")):  # several workers begin at once
        try:
            then = Record.model_validate(read_json(file))
        except ValidationError:  # there is none yet, or it is damaged
            then = now
        _refuse_differences(then, now, file.parent, "search")
        write_json(file, now.model_dump())


def read_recorded_classes(run: Run) -> list[Any] | None:
    """Return the names of the classes in the order of the logits; None where data.json is gone or damaged."""
    try:
        return Record.model_validate(run.read_json(RECORD)).classes
    except ValidationError:
        return None


def describe_changes(run: Run, data: Described) -> list[str]:
    """Return in words how the data differ from those that a run began with."""
    now = Record(classes=data.class_names, splits=data.contents)
    return list(_differences(_read_record(run, now), now))


def _refuse_differences(then: Record, now: Record, path: Path, noun: str) -> None:
    differences = list(_differences(then, now))
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise DataError(
            f"{path_shown(path)}: the data are not those that the {noun} began with: "
            f"{'; '.join(differences[:SHOWN])}{more}. Restore them, or start another {noun} with {flag('new')}"
        )


def record_unreadable(run: Run, data: Described) -> None:
    """Write the names of the files that could not be read, if there are any."""
    if names := data.unreadable_names():
        write_names(run.path / UNREADABLE, [name for found in names.values() for name in found])


def _read_record(run: Run, now: Record) -> Record:
    """Return what the run wrote. Where data.json is gone or damaged, classes.txt has the names at least."""
    try:
        return Record.model_validate(run.read_json(RECORD))
    except ValidationError:
        return Record(classes=read_names(run.path / NAMES) or now.classes, splits=now.splits)


def _differences(then: Record, now: Record) -> Iterator[str]:
    """Yield what differs, in words."""
    if then.classes != now.classes:
        yield from _class_differences(then, now)
        return
    for split in dict.fromkeys([*then.splits, *now.splits]):
        before, after = (each.splits.get(split) for each in (then, now))
        if before is None or after is None:
            yield f"the {split} split is {'new' if before is None else 'gone'}"
        else:
            has_splits = {*then.splits, *now.splits} != {"train"}  # those that kpipe makes are not recorded
            yield from _image_differences(split if has_splits else "", before, after)


def _class_differences(then: Record, now: Record) -> Iterator[str]:
    gone = [name for name in then.classes if name not in now.classes]
    new = [name for name in now.classes if name not in then.classes]
    images, their_images = now.splits.get("train", {}), then.splits.get("train", {})
    for name in gone:
        renamed = [other for other in new if images.get(other, 0) == their_images.get(name)]
        if len(renamed) == 1:
            new.remove(renamed[0])
            yield f"class {show(name)} is now called {show(renamed[0])}"
        else:
            yield f"class {show(name)} is gone"
    for name in new:
        yield f"class {show(name)} is new"
    if not gone and not new:
        yield f"the order of the classes was {show(then.classes)}, is {show(now.classes)}"
    if len(then.classes) != len(now.classes):
        yield f"{counted(len(then.classes), 'class')} then, {len(now.classes):,} now"


def _image_differences(split: str, before: dict[str, Content], after: dict[str, Content]) -> Iterator[str]:
    images, place = (f"{split} images", f"{split}: ") if split else ("images", "")
    changed = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    for name in changed:
        of_class = f" of class {show(name)}" if name else ""
        (count, digest), (new_count, new_digest) = before.get(name, NOTHING), after.get(name, NOTHING)
        swapped = [other for other in changed if other != name and digest and digest == after.get(other, NOTHING)[1]]
        if swapped:
            yield f"the {images}{of_class} are now in class {show(swapped[0])}"
        elif count != new_count:
            yield f"{place}{counted(count, 'image')}{of_class} then, {new_count:,} now"
        elif digest != new_digest:
            yield f"the {images}{of_class} have changed (names or sizes)"
