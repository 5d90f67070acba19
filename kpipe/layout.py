"""Layout of a folder of images: which of its folders are splits, and which are classes. No image is opened.

The structure decides, and names only where it leaves a choice. A folder that holds images itself is a class. Folders
that all hold the same folders are splits, and their names must say which is which.
"""

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kpipe.errors import SHOWN, DataError, some
from kpipe.names import shell_quoted, shown

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm"),
)
"""Endings of the files that are read as images, in lower case."""

OWN_PICTURE = "_data.png"
"""End of the name of what `kpipe data show` draws, unless another name is given."""

OWN_MARK = b"kpipe"
"""What stands in the first bytes of each PNG file that kpipe draws: the name of the software."""

_OTHER_IMAGES = (
    *(".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".xcf", ".dng", ".cr2", ".nef", ".arw", ".raw", ".dcm", ".dib"),
    *(".ico", ".pcx", ".tga", ".exr", ".hdr", ".nii", ".nii.gz", ".mat", ".npy", ".npz", ".fits", ""),
)
"""Endings of files that may be images and are not read."""

_DOCUMENTS = ("readme", "license", "licence", "copying", "authors", "changelog", "makefile")
"""Names of files without an ending that are no images."""

_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__")

_LOGS = ("tensorboard_logs", "tensorboard_logs_searches")

_ROLES = {
    "train": ("train", "training", "trainset", "trainval"),
    "validation": ("validation", "validate", "val", "valid", "dev", "development", "valset"),
    "test": ("test", "testing", "testset"),
    "eval": ("eval", "evaluation"),
}
_ROLE_OF = {word: role for role, words in _ROLES.items() for word in words}
_NO_CLASSES = ("image", "images", "img", "mask", "masks", "label", "labels", "annotations", "groundtruth", "trimaps")
_PUT_IMAGES = "Put images (.jpg, .png and others, see the README) into class folders"
_PLAIN_WORDS = {"set", "data", "dataset", "split", "image", "images", "img", "imgs", "folder", "photos"}
_BESIDE = {
    *("asset", "assets", "demo", "doc", "docs", "example", "examples", "figure", "figures", "media", "notebooks"),
    *("output", "outputs", "pics", "pictures", "plots", "report", "result", "results", "sample", "samples"),
    *("screenshots", "static"),
}
"""Words in the names of folders that often lie beside a data set."""


@dataclass(frozen=True)
class Layout:
    """Folders of the classes of each split, and what lies beside them.

    Attributes:
        splits: split ("train", "validation" or "test") -> class name -> its folder, sorted by class name.
        files: files beside the folders of the classes.
        folders: folders that are neither splits nor classes.
        unlabeled: folders named like splits, whose images lie in no class.
        copies: folders that hold the folders beside them once more.
        groups: classes that hold folders of images instead of images.
    """

    splits: dict[str, dict[str, Path]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    unlabeled: list[Path] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    groups: list[Path] = field(default_factory=list)


def find_layout(root: str | Path) -> Layout:
    """Find the splits and the classes in a folder.

    Wrappers such as `pets/pets` are entered. Hidden folders, those of operating systems, and kpipe's own runs are left
    out. A class may hold folders of images. Class names are compared in Unicode's form NFC, without spaces around them.

    Raises:
        DataError: there is no folder, it cannot be read, it has no images or only one class; it is not clear which
            folders are splits; a split has classes that train lacks; or a class has only files of other kinds.
    """
    where, root, layout = shown(f"folder:{root}"), Path(root), Layout()
    try:
        if not root.is_dir():
            got = "a file" if os.path.lexists(root) else "nothing there"
            raise DataError(f"{where}: expected a folder of images, got {got}. Check the path after folder:")
        level = _enter_wrappers(_Folder(root), where, layout)
        splits = _find_splits(level, where, layout)
        for split, folder in splits.items():
            layout.splits[split] = _find_classes(_enter_wrappers(folder, where, layout), where, layout)
    except OSError as error:
        place = shown(os.fsdecode(error.filename or root))
        raise DataError(f"{where}: {place} cannot be read ({error.strerror})") from None
    _check_classes(layout.splits, {split: folder.path.name for split, folder in splits.items()}, where)
    return layout


def find_images(paths: Iterable[str]) -> list[str]:
    """Return the image files that are meant: a file whatever its name is, and all images of a folder.

    The images of a folder are those that a source `folder:` would read, in the order of their names, in which 10 comes
    after 9. Those of the folders below it follow. A file that is not there is returned like any other.

    Raises:
        DataError: a folder has no images or cannot be read, or a path leads to a pipe or a device.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isfile(path) or not os.path.exists(path):
            found.append(path)
            continue
        if not os.path.isdir(path):  # reading a pipe may never end
            raise DataError(f"{shown(path)}: expected an image file or a folder, got a pipe or a device")
        try:
            images = list(_images_below(path, ()))
        except OSError as error:
            raise DataError(f"{shown(os.fsdecode(error.filename))}: cannot be read ({error.strerror})") from None
        if not images:
            raise DataError(
                f"{shown(path)}: expected a folder with images (.jpg, .png and others, see the README), got none in it "
                "and in the folders below it"
            )
        found += images
    return found


def _images_below(folder: str, around: tuple[str, ...]) -> Iterator[str]:
    """Yield the images in a folder, then those in the folders below it.

    Args:
        folder: the folder.
        around: real paths of the folders that lead here, so that links in a circle end.
    """
    around = (*around, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        sorted_entries = sorted(entries, key=lambda entry: _natural_order(entry.name))
    yield from (entry.path for entry in sorted_entries if is_image(entry))
    for entry in sorted_entries:
        if is_folder(entry) and not is_left_out(entry.path) and os.path.realpath(entry.path) not in around:
            yield from _images_below(entry.path, around)


def _natural_order(name: str) -> list[str | int]:
    """Return a key by which `image9` comes before `image10`."""
    parts = re.split("([0-9]+)", name)  # the numbers stand at the odd places
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def has_image_name(name: str) -> bool:
    """Return whether a file of this name is read as an image."""
    return name.lower().endswith(ENDINGS)


def is_image(entry: os.DirEntry) -> bool:
    """Return whether an entry of a folder is an image, by its name, without asking the file system again.

    A pipe is none, since reading it would never end. A broken link is one, so that decoding names it.
    """
    name = os.fsdecode(entry.name)
    if name.startswith(".") or not has_image_name(name):
        return False
    if name.endswith(OWN_PICTURE) and is_own_picture(os.fsdecode(entry.path)):
        return False
    return entry.is_symlink() or entry.is_file(follow_symlinks=False)


def is_own_picture(path: str) -> bool:
    """Return whether a file is what `kpipe data show` has drawn: by its name, and then by what is written in it."""
    if not path.endswith(OWN_PICTURE) or not os.path.isfile(path):  # opening a pipe would never end
        return False
    try:
        with open(path, "rb") as file:
            return OWN_MARK in file.read(256)
    except OSError:  # reported where it is read
        return False


def is_hidden(entry: os.DirEntry) -> bool:
    """Return whether an entry of a folder is hidden."""
    return os.fsencode(entry.name).startswith(b".")


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry of a folder is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def normalize_name(name: str) -> str:
    """Return the name of a class as it is compared: in Unicode's form NFC, without spaces around it."""
    return unicodedata.normalize("NFC", name.strip() or name)


def is_left_out(folder: str) -> bool:
    """Return whether a folder is hidden, belongs to an operating system, or holds runs of kpipe."""
    name = os.path.basename(folder)
    return name.startswith(".") or name in (*_SYSTEM_FOLDERS, *_LOGS) or _is_run(folder)


def _is_run(folder: str) -> bool:
    """Return whether a folder is a run or a search of kpipe."""
    kinds = (("config.yaml", "environment.json"), ("search.yaml", "trials"))
    return any(all(os.path.exists(os.path.join(folder, name)) for name in kind) for kind in kinds)


class _Folder:
    """A folder, read no further than it is asked for.

    Args:
        path: the folder.
        around: real paths of the folders that lead here, so that links in a circle are noticed.
    """

    def __init__(self, path: Path, around: tuple[str, ...] = ()):
        self.path, self.name = path, normalize_name(path.name)
        self._around = (*around, os.path.realpath(path))

    @cached_property
    def has_images(self) -> bool:
        """Whether images lie directly in it."""
        with os.scandir(self.path) as entries:
            return any(map(is_image, entries))

    @cached_property
    def folders(self) -> list["_Folder"]:
        """Folders in it with images at any depth, sorted by name."""
        return [
            folder for folder in self._all_folders if not folder.is_circle and (folder.has_images or folder.folders)
        ]

    @cached_property
    def other_folders(self) -> list["_Folder"]:
        """Folders in it without images."""
        found = set(self.folders)
        return [folder for folder in self._all_folders if folder not in found]

    @cached_property
    def files(self) -> list[Path]:
        """Files directly in it, without hidden ones and what `kpipe data show` has drawn."""
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries if not (is_hidden(entry) or is_folder(entry))]
        return [self.path / name for name in sorted(names) if not is_own_picture(str(self.path / name))]

    @cached_property
    def _all_folders(self) -> list["_Folder"]:
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries if is_folder(entry) and not is_left_out(entry.path)]
        return sorted((_Folder(self.path / name, self._around) for name in names), key=lambda folder: folder.name)

    @cached_property
    def is_circle(self) -> bool:
        """Whether it is a link to a folder around it, which would hold the images of all."""
        *around, here = self._around
        return any(os.path.commonpath([here, each]) == here for each in around)


def _enter_wrappers(folder: _Folder, where: str, layout: Layout) -> _Folder:
    """Return the folder itself, or the first below it that is not just a wrapper around another folder."""
    *wrappers, inner = _unwrap(folder)
    for wrapper in wrappers:
        _note_others(wrapper, where, layout)
    return inner


def _unwrap(folder: _Folder) -> list[_Folder]:
    """Return the folder and the chain of folders below it, each the only one in the one before."""
    chain = [folder]
    while len(folder.folders) == 1:
        [inner] = folder.folders
        if _empty_splits(folder):
            break  # it may be train
        if inner.has_images and len(inner.folders) < 2:
            break  # a class
        folder = inner
        chain.append(folder)
    return chain


def _note_others(folder: _Folder, where: str, layout: Layout) -> None:
    links = [path for path in folder.files if not path.suffix and path.is_symlink()]
    broken = [path.name for path in links if not os.path.lexists(path.parent / path.readlink())]
    if broken:
        raise DataError(
            f"{where}: expected folders in {shown(str(folder.path))}, got links to nothing: {some(broken)}. Mend or "
            "remove them"
        )
    layout.files.extend(folder.files)
    layout.folders.extend(other.path for other in folder.other_folders)


class _Candidate:
    """A folder that may be a split or a class."""

    def __init__(self, folder: _Folder, role: str | None):
        self.folder, self.role, self.name = folder, role, folder.path.name

    @cached_property
    def inner(self) -> _Folder:
        return _unwrap(self.folder)[-1]

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes that it would have as a split; none where it can be no split."""
        if self.folder.has_images and not self.role:
            return []
        is_flat = [folder.name for folder in self.inner.folders] == [self.folder.name]  # seg_pred/seg_pred/*.jpg
        return [] if is_flat else [folder.name for folder in self.inner.folders]

    @property
    def is_empty(self) -> bool:
        return not (self.folder.folders or self.folder.has_images)


def _find_splits(level: _Folder, where: str, layout: Layout) -> dict[str, _Folder]:
    """Return split -> folder. Where the folders are classes, the level itself is train."""
    folders = [*level.folders, *_empty_splits(level)]
    candidates = [_Candidate(folder, role) for folder, role in zip(folders, _roles(folders), strict=True)]
    roles = {each.folder.name for each in candidates if each.role}
    copies = [each for each in candidates if not each.role and len(roles.intersection(each.classes)) > 1]
    layout.copies.extend(each.folder.path for each in copies)
    candidates = [each for each in candidates if each not in copies]
    _refuse_splits_below(candidates, where)
    named = [each for each in candidates if each.role]
    splits = [each for each in candidates if each.classes]
    training = [each for each in splits if each.role == "train"]
    others = [each for each in candidates if not each.role]
    if training and not any(_may_be_split(each, training[0], is_only=len(named) == 1) for each in others):
        _note_others(level, where, layout)
        layout.folders.extend(each.folder.path for each in others)
        return _take_splits(named, training[0].classes, where, layout)
    if training or _hold_the_same(splits):
        raise DataError(f"{where}: {_describe_choice(candidates)}")
    _refuse_unclear_roles(candidates, named, splits, where)
    return {"train": level}


def _may_be_split(other: _Candidate, train: _Candidate, *, is_only: bool) -> bool:
    """Return whether a folder of another name may be a split beside train, or a class beside a class called train.

    Args:
        other, train: two of the folders.
        is_only: no other folder than train is named like a split.
    """
    return _hold_the_same([train, other]) or is_only and (other.folder.has_images or len(other.classes) > 1)


def _empty_splits(folder: _Folder) -> list[_Folder]:
    """Return folders without any content that are named like splits."""
    roles = zip(folder.other_folders, _roles(folder.other_folders), strict=True)
    return [each for each, role in roles if role and not each.is_circle and not any(each.path.iterdir())]


def _take_splits(named: Sequence[_Candidate], classes: Sequence[str], where: str, layout: Layout) -> dict[str, _Folder]:
    """Return split -> folder of those that have classes; `classes` are those of train."""
    has_validation = any(each.role == "validation" for each in named)
    found: dict[str, _Folder] = {}
    for each in named:
        split = ("test" if has_validation else "validation") if each.role == "eval" else each.role
        if each.is_empty:
            raise DataError(
                f"{where}: expected one folder per class in {shown(each.name)}/, got an empty folder. {_PUT_IMAGES}"
            )
        if not each.classes or (len(each.classes) == 1 and each.classes[0] not in classes):  # val/images/*.jpg
            layout.unlabeled.append(each.folder.path)
            continue
        if split in found:
            both = some([found[split].path.name, each.name])
            raise DataError(f"{where}: expected one {split} folder, got {both}. Keep one of them")
        found[split] = each.folder
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _refuse_splits_below(candidates: Sequence[_Candidate], where: str) -> None:
    """Raise DataError where one of several folders holds train and another split: it is no class."""
    for each in candidates:
        if each.folder.has_images:
            continue  # a class, whose files need not be looked at
        below = each.inner.folders
        roles = [role for role in _roles(below) if role]
        is_set = "train" in roles and len(roles) > 1 and not any(folder.has_images for folder in below)
        if is_set and len(candidates) > 1:
            names = some([folder.path.name for folder in below])
            raise DataError(
                f"{where}: expected one folder per class, got {shown(each.name)}/ with the splits {names}. To train on "
                f"these, write {_as_source(each.inner)}"
            )


def _refuse_unclear_roles(
    candidates: Sequence[_Candidate], named: Sequence[_Candidate], splits: Sequence[_Candidate], where: str
) -> None:
    """Raise DataError where names say that folders are splits, and none of them is train with classes."""
    flat = [each for each in named if not each.classes and not each.is_empty]
    if len(candidates) == len(named) and (len(named) > 1 or flat):
        raise DataError(f"{where}: {_describe_missing(named, flat)}")
    sets = [each for each in splits if len(each.classes) > 1]
    others = [each for each in candidates if each not in sets]
    if len(sets) != 1 or not others:
        return
    is_wrapper = _words(sets[0].folder.name) <= _PLAIN_WORDS
    if is_wrapper or all(each in flat or _words(each.folder.name) & {*_BESIDE, *_NO_CLASSES} for each in others):
        raise DataError(  # data/{cat,dog} beside test/*.jpg or docs/*.png
            f"{where}: expected one folder per class, got {shown(sets[0].name)}/ with the folders "
            f"{some(sets[0].classes)}, and {some([each.name for each in others])} beside it. To train on "
            f"{shown(sets[0].name)}/, write {_as_source(sets[0].inner)}"
        )


def _roles(folders: Sequence[_Folder]) -> list[str | None]:
    """Return what the name of each folder says that it is: train, validation, test, eval, or None."""
    words = [_words(folder.name) for folder in folders]
    shared = set.intersection(*words) if len(words) > 1 else set()
    roles = [[_ROLE_OF.get(word) for word in each - shared - _PLAIN_WORDS] for each in words]
    return [found[0] if len(found) == 1 else None for found in roles]


def _words(name: str) -> set[str]:
    spaced = re.sub("([a-z])([A-Z])", r"\1 \2", name)  # TrainImages
    return set(re.split(r"[\W\d_]+", spaced.casefold())) - {""}


def _hold_the_same(splits: Sequence[_Candidate]) -> bool:
    """Return whether two folders share the names of folders in them, as splits share their classes."""
    owners: dict[str, list[int]] = {}
    for place, each in enumerate(splits):
        for name in each.classes:
            owners.setdefault(name, []).append(place)
    pairs = Counter(pair for places in owners.values() for pair in itertools.pairwise(places))
    return any(count >= 2 for count in pairs.values())


def _describe_choice(candidates: Sequence[_Candidate]) -> str:
    first = [f"{shown(each.name)}/ with {_described(each)}" for each in candidates[:SHOWN]]
    more = f" and {len(candidates) - SHOWN} more" if len(candidates) > SHOWN else ""
    one = next(each for each in candidates if each.classes)
    if all(_roles(one.inner.folders)):
        split = one.classes[0]
        return (
            f"expected class folders in split folders, got split folders in class folders: {'; '.join(first)}{more}. "
            f"Move them: {shown(f'{one.name}/{split}')} to {shown(f'{split}/{one.name}')}, and so on"
        )
    if all(name.casefold() in _NO_CLASSES for name in one.classes):
        return (
            f"expected images directly in one folder per class, got {'; '.join(first)}{more}. Move the images into "
            "the folders of their classes, and the others away"
        )
    return (
        "expected one folder per class, or such folders in train/, validation/ and test/; got "
        f"{'; '.join(first)}{more}. To train on one of them, write {_as_source(one.inner)}. If they are "
        "splits, rename them to train, validation and test, and move others away. If they are classes, put their "
        "images directly into them"
    )


def _as_source(folder: _Folder) -> str:
    return shell_quoted(f"data.source=folder:{folder.path}")


def _described(candidate: _Candidate) -> str:
    return f"the folders {some(candidate.classes)}" if candidate.classes else "images"


def _describe_missing(named: Sequence[_Candidate], flat: Sequence[_Candidate]) -> str:
    if flat and (len(flat) == len(named) or any(each.role == "train" for each in flat)):
        return (
            f"expected one folder per class in {some([each.name for each in flat])}, got images without classes. Sort "
            "them into one folder per class"
        )
    return f"expected a train folder, got {some([each.name for each in named])}. Add train/"


def _find_classes(folder: _Folder, where: str, layout: Layout) -> dict[str, Path]:
    """Return class name -> folder, sorted."""
    _note_others(folder, where, layout)
    for other in folder.other_folders:
        if not other.is_circle:
            _refuse_other_kinds(other, where)
    names = {each.name for each in folder.folders}
    classes: dict[str, Path] = {}
    for each in folder.folders:
        inner = [] if each.has_images else _unwrap(each)[-1].folders
        if len(names & {below.name for below in inner}) > 1:
            layout.copies.append(each.path)
            continue
        if len(inner) > 1:
            layout.groups.append(each.path)
        if each.name in classes:
            both = some([classes[each.name].name, each.path.name])
            raise DataError(
                f"{where}: expected class names that differ, got {both} in {shown(str(folder.path))}. Spaces around a "
                "name and its form in Unicode make no difference. Rename one of them"
            )
        classes[each.name] = each.path
    if classes and all(name.casefold() in _NO_CLASSES for name in classes):
        raise DataError(
            f"{where}: expected one folder per class, got only {some(list(classes))}. Sort the images into one folder "
            "per class"
        )
    return classes


def _refuse_other_kinds(folder: _Folder, where: str) -> None:
    """Raise DataError for a folder in the place of a class, most of whose files may be images that are not read."""
    names = list(_files_below(folder.path))
    endings = [_ending(name.lower()) for name in names if name.lower() not in _DOCUMENTS]
    unread = [ending or "without an ending" for ending in endings if ending in _OTHER_IMAGES]
    if 2 * len(unread) > len(names):
        kinds = "file of another kind" if len(unread) == 1 else "files of other kinds"
        raise DataError(
            f"{where}: expected images in {shown(str(folder.path))}, got {len(unread):,} {kinds} "
            f"({some(sorted(set(unread)), str)}). "
            f"Convert them to JPEG or PNG, or remove the folder"
        )


def _ending(name: str) -> str:
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def _files_below(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_left_out(os.path.join(place, name))]
        yield from (name for name in names if not name.startswith("."))


def _check_classes(splits: dict[str, dict[str, Path]], folders: dict[str, str], where: str) -> None:
    """Check the classes of each split, whose folders have these names."""
    known = set(splits["train"])
    if not known:
        raise DataError(f"{where}: expected one folder per class, got no images in folders. {_PUT_IMAGES}")
    if len(known) < 2:
        raise DataError(
            f"{where}: expected at least two classes, got one, {some(list(known))}. Add a folder for each other class"
        )
    for split, classes in splits.items():
        unknown = [name for name in classes if name not in known]
        if unknown:
            spelled = {name.casefold() for name in known}
            case = " Upper and lower case differ." if any(name.casefold() in spelled for name in unknown) else ""
            raise DataError(
                f"{where}: expected in {folders[split]}/ the classes of {folders['train']}/ only, got {some(unknown)}."
                f"{case} Add images of {'it' if len(unknown) == 1 else 'them'} to {folders['train']}/, or move "
                f"{'it' if len(unknown) == 1 else 'them'} out of {folders[split]}/"
            )
