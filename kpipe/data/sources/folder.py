"""A folder of image files as a source. The files are listed, and none is opened yet.

N images.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kpipe.data.conversions import Conversions
from kpipe.data.file_names import FileNames
from kpipe.data.files import FileSplit
from kpipe.data.sources.request import SourceRequest, check_channels
from kpipe.data.splits import ClassContents, Source
from kpipe.data.unreadable import Unreadable
from kpipe.errors import DataError, some
from kpipe.layout import Layout, find_layout, has_image_name, is_folder, is_hidden, is_image, is_left_out
from kpipe.names import shown

DIGESTED_SIZES = 8
"""Number of files of a class whose sizes are part of its digest: classes with the same file names differ in them."""

Listed = list[tuple[bytes, list[bytes]]]
"""Folders, and the names of the images in them."""


def read_folder(request: SourceRequest) -> Source:
    """Find a folder with one folder of images for each class, or with such folders in train/, validation/ and test/.

    Args:
        request: its argument is the folder. Channels are 3 by default.

    Returns:
        Classes in the order of their names. Hidden files are ignored, other files too, with a note. A class or an image
        may be a link. A link to a folder inside a class is ignored with a note.

    Raises:
        DataError: as `find_layout`; or a folder cannot be read.
    """
    where, root = shown(f"folder:{request.argument}"), Path(request.argument)
    check_channels(3, request.form.channels, where)
    layout = find_layout(root)
    class_names = tuple(layout.splits["train"])
    strays = _NotInSet(layout)
    splits, contents = {}, {}
    with request.progress(f"listing {where}", None) as advance:
        for split, folders in layout.splits.items():
            listed = {name: _list_images(folder, strays, where, advance) for name, folder in folders.items()}
            contents[split] = _describe_classes(folders, listed)
            splits[split] = _make_split(listed, class_names, request, where)
    notes = (*strays.lines(root), *_missing_classes(layout))
    return Source(splits, class_names, notes, contents)


class _NotInSet:
    """Files and folders that do not belong to the set."""

    def __init__(self, layout: Layout):
        self.images = [path for path in layout.files if has_image_name(path.name)]
        self.files = [path for path in layout.files if not has_image_name(path.name)]
        self.folders, self.unlabeled, self.copies = layout.folders, layout.unlabeled, layout.copies
        self.groups = layout.groups
        self.links: list[Path] = []

    def lines(self, root: Path) -> tuple[str, ...]:
        """Return a line for the user for each kind that was found."""
        kinds = (
            (self.images, "image outside of the class folders", "images outside of the class folders"),
            (self.files, "file that is not an image", "files that are not images"),
            (self.folders, "folder that is not a class", "folders that are not classes"),
            (self.unlabeled, "folder of images without classes", "folders of images without classes"),
            (self.copies, "copy of the class folders", "copies of the class folders"),
            (self.links, "link to a folder inside a class", "links to folders inside classes"),
        )
        lines = [
            f"ignored {len(paths)} {one if len(paths) == 1 else many}: {_shown(paths, root)}"
            for paths, one, many in kinds
            if paths
        ]
        if self.groups:
            lines.append(f"classes of which all folders are taken together: {_shown(self.groups, root)}")
        return tuple(lines)


def _missing_classes(layout: Layout) -> Iterator[str]:
    """Yield a line for each split that lacks classes of train."""
    for split, folders in layout.splits.items():
        missing = [name for name in layout.splits["train"] if name not in folders]
        if missing:
            yield f"{split} has no images of {some(missing)}"


def _shown(paths: Sequence[Path], root: Path) -> str:
    return some(sorted(str(path.relative_to(root)) for path in paths))


def _list_images(folder: Path, strays: _NotInSet, where: str, advance: Callable[[int], None]) -> Listed:
    """Return the images of a class: those in its folder, then those in the folders below, sorted by name."""
    try:
        listed = list(_walk(os.fsencode(folder), strays, advance))
    except OSError as error:
        raise DataError(f"{where}: {shown(os.fsdecode(error.filename))} cannot be read ({error.strerror})") from None
    if not listed:
        raise DataError(
            f"{where}: expected images in {shown(str(folder))}, got only links to folders, which are not "
            "followed. Link the images or the class itself"
        )
    return listed


def _walk(folder: bytes, strays: _NotInSet, advance: Callable[[int], None]) -> Iterator[tuple[bytes, list[bytes]]]:
    names, below = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry):
                names.append(entry.name)
            elif is_hidden(entry):
                continue
            elif entry.is_dir(follow_symlinks=False):
                if not is_left_out(os.fsdecode(entry.path)):
                    below.append(entry.path)
            else:  # links to folders may lead in a circle
                kind = strays.links if is_folder(entry) else strays.files
                kind.append(Path(os.fsdecode(entry.path)))
    if names:
        names.sort()
        yield folder, names
        advance(len(names))
    for path in sorted(below):
        yield from _walk(path, strays, advance)


def _describe_classes(folders: dict[str, Path], listed: dict[str, Listed]) -> dict[str, ClassContents]:
    """Return the number of images of each class, and a digest of their names and of the sizes of some.

    Of classes which that does not tell apart, one file is opened, and its contents belong to the digest.
    """
    described = {name: _describe(folders[name], found) for name, found in listed.items()}
    frequency = Counter(described.values())
    return {
        name: contents if frequency[contents] == 1 else _describe(folders[name], listed[name], with_contents=True)
        for name, contents in described.items()
    }


def _describe(folder: Path, listed: Listed, *, with_contents: bool = False) -> ClassContents:
    root = os.fsencode(folder)
    digest = hashlib.sha256()
    for place, names in listed:
        digest.update(b"\0".join([os.path.relpath(place, root), *names, b""]))
    place, names = listed[0]
    for number in np.linspace(0, len(names) - 1, min(DIGESTED_SIZES, len(names))).astype(int):
        path = os.path.join(place, names[number])
        try:
            digest.update(b"%d," % os.stat(path).st_size)
            if with_contents and number == 0 and os.path.isfile(path):  # a link may lead to a pipe or a device
                digest.update(Path(os.fsdecode(path)).read_bytes())
        except OSError:  # reported where it is read
            digest.update(b"gone,")
    return sum(len(names) for _, names in listed), digest.hexdigest()[:16]


def _make_split(listed: dict[str, Listed], class_names: Sequence[str], request: SourceRequest, where: str) -> FileSplit:
    names = FileNames(place for name in class_names for place in listed.get(name, ()))
    counts = [sum(len(found) for _, found in listed.get(name, ())) for name in class_names]
    what = {"are_files": True, "folder": request.argument}
    unreadable = Unreadable(where, len(names), lambda number: os.fsdecode(names[number]), request.skip_limit, **what)
    labels, form = np.repeat(np.arange(len(class_names), dtype=np.int32), counts), request.form
    return FileSplit(
        names,
        rows=np.arange(len(names)),
        labels=labels,
        form=form,
        shape=(form.size, form.size, form.channels or 3),
        unreadable=unreadable,
        conversions=Conversions(form.background),
    )
