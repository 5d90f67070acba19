"""A folder of image files as a source. The files are listed and their headers read; no image is decoded yet.

N images.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kpipe.data.files import FileSplit
from kpipe.data.images import ENDINGS, Form, decode
from kpipe.data.sources.request import SPLIT_NAMES, SourceRequest, check_channels
from kpipe.data.splits import Source
from kpipe.data.unreadable import Unreadable
from kpipe.errors import DataError, some

MOST_PIXELS = (2**29 - 1) // 3  # 178,956,970: Pillow's limit, and TensorFlow's decoders end at 2**29 bytes

HEADERS_AT_ONCE = 16


def read_folder(request: SourceRequest) -> Source:
    """Find a folder with one folder of images for each class, or with such folders in train/, validation/ and test/.

    Args:
        request: its argument is the folder. `~` is the home folder. Channels are 3 by default.

    Returns:
        Classes in the order of their names. Hidden files are ignored, other files too, with a note. A class or an image
        may be a link. A link to a folder inside a class is ignored with a note.

    Raises:
        DataError: there is no folder, no images or only one class; train lacks a class; or files declare more than
            MOST_PIXELS.
    """
    where, root = f"folder:{request.argument}", Path(request.argument).expanduser()
    form, skip_limit = request.form, request.skip_limit
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(f"{where}: expected a folder of images, got {got}. Check the path after folder:")
    check_channels(3, form.channels, where)
    strays = _Strays()
    try:
        files = {name: _list_classes(folder, strays) for name, folder in _split_folders(root, where, strays).items()}
    except OSError as error:
        raise DataError(f"{where}: {error.filename} cannot be read ({error.strerror})") from None
    class_names = _check_classes(files, where)
    splits = {name: _make_split(classes, class_names, form, where, skip_limit) for name, classes in files.items()}
    if skip_limit is None:
        _refuse_large([name for split in splits.values() for name in split.unreadable.names()], where)
    return Source(splits, class_names, strays.lines(root))


class _Strays:
    """Files and folders that do not belong to the set."""

    def __init__(self):
        self.files: list[Path] = []
        self.folders: list[Path] = []
        self.links: list[Path] = []

    def lines(self, root: Path) -> tuple[str, ...]:
        """Return a line for the user for each kind that was found."""
        kinds = (
            (
                self.files,
                "file that is not a JPEG, PNG, GIF or BMP image",
                "files that are not JPEG, PNG, GIF or BMP images",
            ),
            (self.folders, "folder that is not a class", "folders that are not classes"),
            (self.links, "link to a folder inside a class", "links to folders inside classes"),
        )
        return tuple(
            f"ignored {len(paths)} {one if len(paths) == 1 else many}: "
            + some([str(path.relative_to(root)) for path in paths])
            for paths, one, many in kinds
            if paths
        )


def _split_folders(root: Path, where: str, strays: _Strays) -> dict[str, Path]:
    """Return split name -> folder. A root without train/ is a single split, train."""
    folders, files = _visible(root)
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if not any(folder.name.lower() == "train" for folder in named):
        if named and len(named) == len(folders):
            got = some([folder.name for folder in named])
            raise DataError(f"{where}: expected a train folder, got {got}. Add train/")
        return {"train": root}
    found: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in found:
            raise DataError(
                f"{where}: expected one {split} folder, got {found[split].name} and {folder.name}. Keep one of them"
            )
        found[split] = folder
    strays.files += files
    strays.folders += [folder for folder in folders if folder not in named]
    return found


def _list_classes(folder: Path, strays: _Strays) -> dict[str, list[Path]]:
    """Return class name -> image files, both sorted. Folders inside a class folder belong to the class."""
    folders, files = _visible(folder)
    strays.files += files
    classes = {}
    for class_folder in folders:
        # A link to a folder that contains it is no class: it would hold the images of all the others.
        is_around = folder.resolve().is_relative_to(class_folder.resolve())
        found, links = ([], []) if is_around else _files_below(class_folder)
        images = list(filter(_is_image, found))
        strays.files += sorted(set(found) - set(images))
        if images:
            strays.links += links
            classes[class_folder.name] = images
        else:
            strays.folders.append(class_folder)
    return classes


def _visible(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files directly in `folder`, sorted, without hidden ones."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [entry for entry in entries if entry.is_dir()], [entry for entry in entries if not entry.is_dir()]


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files at any depth, and the links to folders, which may lead in a circle and are not followed."""
    found, links = [], []
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [path for name in folders if (path := Path(place, name)).is_symlink()]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found), sorted(links)


def _raise(error: OSError):
    raise error


def _is_image(path: Path) -> bool:
    """Return whether a file is an image, by its name.

    A pipe is none, since reading it would never end. A broken link is one, so that decoding names it.
    """
    return path.suffix.lower() in ENDINGS and (os.path.isfile(path) or not os.path.exists(path))


def _check_classes(files: dict[str, dict[str, list[Path]]], where: str) -> tuple[str, ...]:
    """Return the class names of train, sorted, after checking every split."""
    for split, classes in files.items():
        if not classes:
            place = "" if len(files) == 1 else f" in {split}/"
            raise DataError(
                f"{where}: expected one folder of images a class{place}, got no images. "
                f"Put images ({', '.join(ENDINGS)}) into class folders"
            )
    class_names = tuple(sorted(files["train"]))
    if len(class_names) < 2:
        raise DataError(
            f"{where}: expected at least two classes, got one, {class_names[0]}. Add a folder for each other class"
        )
    for split, classes in files.items():
        unknown = sorted(set(classes) - set(class_names))
        if unknown:
            raise DataError(
                f"{where}: expected in {split}/ the classes of train/ only, got {some(unknown)}. "
                f"Add images of it to train/ or remove it from {split}/"
            )
    return class_names


def _make_split(
    classes: dict[str, list[Path]], class_names: tuple[str, ...], form: Form, where: str, skip_limit: float | None
) -> FileSplit:
    """Return a split. Files that would fill the memory are noted as unreadable before any file is decoded."""
    paths = [path for name in class_names for path in classes.get(name, ())]
    labels = [label for label, name in enumerate(class_names) for _ in classes.get(name, ())]
    # Most of the time is the disk's, above all where it is a network disk.
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        declared = list(pool.map(_declared_size, paths, chunksize=64))
    unreadable = Unreadable(where, len(paths), lambda number: str(paths[number]), skip_limit, are_files=True)
    unreadable.numbers = {i for i, size in enumerate(declared) if _is_too_large(size, form.size)}
    encoded = np.array([os.fsencode(path) for path in paths], object)
    encoded[list(unreadable.numbers)] = b""  # so that they are never opened
    sides = [size[1:] if size else _decoded_size(path) for path, size in zip(paths, declared, strict=True)]
    shape = (form.size, form.size, form.channels or 3)
    return FileSplit(encoded, np.array(labels, np.int32), np.array(sides, np.int32), form, shape, unreadable)


def _decoded_size(path: Path) -> tuple[int, int]:
    """Return the size of a file whose header Pillow does not understand. TensorFlow is less strict."""
    try:
        return tuple(decode(tf.io.read_file(os.fsencode(path))).shape[:2])
    except tf.errors.OpError:
        return 1, 1  # it cannot be read at all


def _refuse_large(names: list[str], where: str) -> None:
    if names:
        declare, them = ("file that declares", "it") if len(names) == 1 else ("files that declare", "them")
        raise DataError(
            f"{where}: expected images of at most {MOST_PIXELS:,} pixels, frames and scaling included, got "
            f"{len(names)} {declare} more: {some(names)}. Replace or remove {them}"
        )


def _is_too_large(size: tuple[int, int, int] | None, image_size: int | None) -> bool:
    if size is None:
        return False
    frames, height, width = size  # TensorFlow decodes all frames of a GIF to return the first one
    shorter = max(1, min(height, width))
    # The shorter side becomes image_size, so a strip of one row grows by image_size in both directions.
    scale = max(1.0, (image_size or 1) / shorter)
    return max(frames * height * width, height * width * scale**2) > MOST_PIXELS


def _declared_size(path: Path) -> tuple[int, int, int] | None:
    """Return frames, height and width from the header; None if it is damaged, which decoding reports."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of the limit
            with Image.open(path, formats=("JPEG", "PNG", "GIF", "BMP")) as image:
                return getattr(image, "n_frames", 1), image.height, image.width
    except Image.DecompressionBombError:
        return 1, MOST_PIXELS, MOST_PIXELS
    except Exception:  # of many kinds, as files are damaged in many ways
        return None
