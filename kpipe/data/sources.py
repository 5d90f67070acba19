"""Where images come from. Each reader returns the parts that its source has, in memory as uint8.

Resize rule, the same for all sources: the shorter side is scaled to `image_size` (bilinear, with antialiasing
where the image shrinks), then the centre is cropped to a square. Channels: 1 from colour is the luminance, 3
from grey are copies.

N images, H height, W width, C channels, S image size.
"""

import contextlib
import difflib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kpipe.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
PART_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
MOST_PIXELS = (2**29 - 1) // 3  # 178,956,970: Pillow's limit, and TensorFlow's decoders end at 2**29 bytes
SHOWN = 5  # names in a message before it says how many more there are


_FORMATS = "JPEG, PNG, GIF or BMP"


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """One part of a set: images uint8 [N, H, W, C], 0..255; labels int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Part({len(self)} images of {'x'.join(str(side) for side in self.images.shape[1:])})"


@dataclass(frozen=True, eq=False)
class Splits:
    """A whole set. A part that does not exist is None; `notes` are lines for the user."""

    train: Part
    validation: Part | None
    test: Part | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found: `parts` has "train" and perhaps "validation" and "test"."""

    parts: dict[str, Part]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


# --- embedded -----------------------------------------------------------------------------------------------


def read_digits(*, image_size: int | None = None, channels: int | None = None) -> Source:
    """The 1,797 handwritten digits of scikit-learn: 8x8, grey, 10 classes. Values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    _check_channels(1, channels, "digits")
    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    examples = tf.data.Dataset.from_tensor_slices((images, digits.target.astype(np.int32)))
    part = _collect(examples, len(images), image_size, channels, "digits")
    return Source({"train": part}, tuple(map(str, digits.target_names)))


# --- folder -------------------------------------------------------------------------------------------------


def read_folder(path: str, *, image_size: int | None = None, channels: int | None = None) -> Source:
    """A folder with one folder of images a class, or with such folders in train/, validation/ (val/), test/.

    Args:
        path: the folder; `~` is the home folder.
        channels: default 3.

    Returns:
        Classes in the order of their names. Hidden files are ignored, other files with a note. A class and an image
        may be links; a link inside a class to a folder is ignored with a note.

    Raises:
        DataError: no folder, no images, one class, a class that train lacks, a file that cannot be decoded or that
            declares more than MOST_PIXELS.
    """
    where, root = f"folder:{path}", Path(path).expanduser()
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(f"{where}: expected a folder of images, got {got}. Check the path after folder:")
    _check_channels(3, channels, where)
    strays = _Strays()
    try:
        files = {part: _list_classes(folder, strays) for part, folder in _part_folders(root, where, strays).items()}
    except OSError as error:
        raise DataError(f"{where}: {error.filename} cannot be read ({error.strerror})") from None
    class_names = _check_classes(files, where)
    _check_sizes(files, image_size, where)
    parts = {part: _decode_files(classes, class_names, image_size, channels, where) for part, classes in files.items()}
    return Source(parts, class_names, strays.lines(root))


class _Strays:
    """What lies in the folder and is no part of the set."""

    def __init__(self):
        self.files: list[Path] = []
        self.folders: list[Path] = []
        self.links: list[Path] = []

    def lines(self, root: Path) -> tuple[str, ...]:
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
            + _some([str(path.relative_to(root)) for path in paths])
            for paths, one, many in kinds
            if paths
        )


def _part_folders(root: Path, where: str, strays: _Strays) -> dict[str, Path]:
    """Part name to folder; a root without train/ is one pool, called train."""
    folders, files = _visible(root)
    named = [folder for folder in folders if folder.name.lower() in PART_FOLDERS]
    if not any(folder.name.lower() == "train" for folder in named):
        if named and len(named) == len(folders):
            got = _some([folder.name for folder in named])
            raise DataError(f"{where}: expected a train folder, got {got}. Add train/")
        return {"train": root}
    parts: dict[str, Path] = {}
    for folder in named:
        part = PART_FOLDERS[folder.name.lower()]
        if part in parts:
            raise DataError(
                f"{where}: expected one {part} folder, got {parts[part].name} and {folder.name}. Keep one of them"
            )
        parts[part] = folder
    strays.files += files
    strays.folders += [folder for folder in folders if folder not in named]
    return parts


def _list_classes(folder: Path, strays: _Strays) -> dict[str, list[Path]]:
    """Class name to its image files, both sorted. Folders inside a class folder belong to the class."""
    folders, files = _visible(folder)
    strays.files += files
    classes = {}
    for class_folder in folders:
        # A link to a folder around it is no class: it would hold the images of all the others.
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
    """The folders and the files right in `folder`, sorted, without hidden ones."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [entry for entry in entries if entry.is_dir()], [entry for entry in entries if not entry.is_dir()]


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files at any depth, sorted, and the links to folders, which are not followed: they may lead in a circle."""
    found, links = [], []
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [path for name in folders if (path := Path(place, name)).is_symlink()]
        found += [Path(place, name) for name in files if not name.startswith(".")]
    return sorted(found), sorted(links)


def _raise(error: OSError):
    raise error


def _is_image(path: Path) -> bool:
    """By its name. A pipe is none, it would be waited for without end; a broken link is one, decoding names it."""
    return path.suffix.lower() in IMAGE_ENDINGS and (os.path.isfile(path) or not os.path.exists(path))


def _check_classes(files: dict[str, dict[str, list[Path]]], where: str) -> tuple[str, ...]:
    """The class names of train, sorted, once every part is known to be usable."""
    for part, classes in files.items():
        if not classes:
            part_of = "" if len(files) == 1 else f" in {part}/"
            raise DataError(
                f"{where}: expected one folder of images a class{part_of}, got no images. "
                f"Put images ({', '.join(IMAGE_ENDINGS)}) into class folders"
            )
    class_names = tuple(sorted(files["train"]))
    if len(class_names) < 2:
        raise DataError(
            f"{where}: expected at least two classes, got one, {class_names[0]}. Add a folder for each other class"
        )
    for part, classes in files.items():
        unknown = sorted(set(classes) - set(class_names))
        if unknown:
            raise DataError(
                f"{where}: expected in {part}/ the classes of train/ only, got {_some(unknown)}. "
                f"Add images of it to train/ or remove it from {part}/"
            )
    return class_names


def _check_sizes(files: dict[str, dict[str, list[Path]]], image_size: int | None, where: str) -> None:
    """Refuses files of a few kB that would fill the memory, before the first image is decoded."""
    paths = [path for classes in files.values() for found in classes.values() for path in found]
    large = [str(path) for path in paths if _is_too_large(_declared_size(path), image_size)]
    if large:
        declare, them = ("file that declares", "it") if len(large) == 1 else ("files that declare", "them")
        raise DataError(
            f"{where}: expected images of at most {MOST_PIXELS:,} pixels, frames and scaling included, got "
            f"{len(large)} {declare} more: {_some(large)}. Replace or remove {them}"
        )


def _is_too_large(size: tuple[int, int, int] | None, image_size: int | None) -> bool:
    if size is None:
        return False
    frames, height, width = size  # TensorFlow decodes all frames of a GIF to return the first one
    shorter = max(1, min(height, width))
    # The shorter side becomes image_size: a strip of one row grows by image_size in both directions.
    scale = max(1.0, (image_size or 1) / shorter)
    return max(frames * height * width, height * width * scale**2) > MOST_PIXELS


def _declared_size(path: Path) -> tuple[int, int, int] | None:
    """Frames, height and width, from the header; None where it is damaged, which decoding reports."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of the limit
            with Image.open(path, formats=("JPEG", "PNG", "GIF", "BMP")) as image:
                return getattr(image, "n_frames", 1), image.height, image.width
    except Image.DecompressionBombError:
        return 1, MOST_PIXELS, MOST_PIXELS
    except Exception:  # of many kinds, as files are damaged in many ways
        return None


def _decode_files(classes, class_names, image_size, channels, where: str) -> Part:
    """Decodes all files of one part, in parallel, straight to their final size."""
    paths = [path for name in class_names for path in classes.get(name, ())]
    labels = [label for label, name in enumerate(class_names) for _ in classes.get(name, ())]
    # File names are bytes: they need not be valid text.
    encoded = tf.constant([os.fsencode(path) for path in paths])
    examples = tf.data.Dataset.from_tensor_slices((encoded, tf.constant(labels, tf.int32)))
    try:
        return _collect(examples, len(paths), image_size, channels, where, decode=_decode)
    except tf.errors.OpError as error:
        broken = _broken_files(encoded, paths)
        if not broken:
            raise
        files, them = ("file", "it") if len(broken) == 1 else ("files", "them")
        raise DataError(
            f"{where}: expected images, got {len(broken)} {files} that cannot be decoded: {_some(broken)}. "
            f"Replace or remove {them}"
        ) from error


def _decode(path: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _broken_files(encoded: tf.Tensor, paths: list[Path]) -> list[str]:
    """TensorFlow's error does not name the file, so a second pass looks which indices never arrive."""
    files = tf.data.Dataset.from_tensor_slices(encoded).enumerate()
    sizes = files.map(lambda i, path: (i, tf.size(_decode(path))), num_parallel_calls=tf.data.AUTOTUNE)
    readable = {int(i) for i, _ in sizes.ignore_errors().as_numpy_iterator()}
    return [str(path) for i, path in enumerate(paths) if i not in readable]


# --- TensorFlow Datasets ------------------------------------------------------------------------------------


def read_tfds(
    name: str, *, image_size: int | None = None, channels: int | None = None, download: bool = True
) -> Source:
    """An image classification set of TensorFlow Datasets, prepared beforehand or downloaded now.

    Args:
        name: `<name>` or `<name>/<config>`.
        download: False takes what is prepared, or raises.

    Returns:
        The parts train, validation and test as far as the set has them with labels.

    Raises:
        DataError: unknown name, not an image classification, or neither prepared nor to be downloaded.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    where = f"tfds:{name}"
    builder = _tfds_builder(name, where)
    image_key, label_key = _tfds_keys(builder, where)
    _check_channels(builder.info.features[image_key].shape[-1], channels, where)
    if not download and not builder.is_prepared():
        raise DataError(f"{where}: is not prepared in {builder.data_path}; a run would download it")
    _tfds_prepare(builder, name, where)
    parts, notes = {}, []
    for split in builder.info.splits:
        if split not in PART_FOLDERS:
            notes.append(f"ignored the split {split}")
            continue
        part = _tfds_part(builder, split, image_size, channels, where)
        if (part.labels < 0).all():
            notes.append(f"ignored the split {split}, which has no labels")
        else:
            parts[PART_FOLDERS[split]] = part
    if "train" not in parts:
        raise DataError(f"{where}: expected a split called train, got {_some(list(builder.info.splits))}")
    return Source(parts, tuple(builder.info.features[label_key].names), tuple(notes))


def _tfds_part(builder, split: str, image_size: int | None, channels: int | None, where: str) -> Part:
    """One split in memory; its labels are -1 where the set keeps them secret."""
    image_key, label_key = builder.info.supervised_keys
    count = builder.info.splits[split].num_examples
    examples = builder.as_dataset(split=split).map(lambda example: (example[image_key], example[label_key]))
    try:
        return _collect(examples, count, image_size, channels, where)
    except tf.errors.OpError as error:  # cut or damaged files; lost records are noticed by their count
        raise DataError(
            f"{where}: expected {count} images in {split}, got files that cannot be read "
            f"({_first_line(error)}). Remove {builder.data_path} and prepare the set again"
        ) from error


def _tfds_builder(name: str, where: str):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        nearest = difflib.get_close_matches(name.partition("/")[0], known, n=1)
        hint = f", did you mean '{nearest[0]}'?" if nearest else ""
    except ValueError:
        hint = ", which has no such config or version"
    # Outside the handlers, whose errors print a screenful of names.
    raise DataError(f"{where}: expected a set of https://www.tensorflow.org/datasets/catalog, got '{name}'{hint}")


def _tfds_keys(builder, where: str) -> tuple[str, str]:
    """The names of the image and of the label."""
    import tensorflow_datasets as tfds

    keys, features = builder.info.supervised_keys, builder.info.features
    if keys and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (features[key] for key in keys)
        is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
        if is_image and isinstance(label, tfds.features.ClassLabel):
            return keys
    raise DataError(
        f"{where}: expected an image classification (an 8-bit image and a class label), "
        f"got supervised keys {keys}. Choose another set"
    )


def _tfds_prepare(builder, name: str, where: str) -> None:
    if builder.is_prepared():
        return
    try:
        with _no_retries():
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it downloads
                builder.download_and_prepare()
    except Exception as error:  # any download, disk or format error: the remedy is the same
        raise DataError(
            f"{where}: expected it prepared in {builder.data_path}, got nothing there, "
            f"and it could not be downloaded ({_first_line(error)}). "
            "Set TFDS_DATA_DIR to the folder that has it, or prepare it on a machine with a network "
            f'(python -c "import tensorflow_datasets as tfds; tfds.load({name!r})") and copy it there, '
            "or use data.source=digits or data.source=synthetic"
        ) from error


@contextmanager
def _no_retries() -> Iterator[None]:
    """Without a network the downloader would try for minutes."""
    from tensorflow_datasets.core.download import downloader

    retries = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = 0
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries


# --- shared -------------------------------------------------------------------------------------------------


def _collect(
    examples: tf.data.Dataset,
    count: int,
    image_size: int | None,
    channels: int | None,
    where: str,
    decode: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> Part:
    """Brings all (image uint8 [h, w, c], label) to one shape and into memory, in their order."""
    fitted = examples.map(
        lambda image, label: (_fit(decode(image), image_size, channels), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    # Unknown sizes come one by one: in a batch, different ones would be TensorFlow's error, not ours.
    batches = fitted.batch(256 if fitted.element_spec[0].shape.is_fully_defined() else 1).prefetch(2)
    images, labels, seen = None, np.empty(count, np.int32), 0
    for batch, batch_labels in batches.as_numpy_iterator():
        if images is None:
            images = np.empty((count, *batch.shape[1:]), np.uint8)
        if batch.shape[1:] != images.shape[1:]:
            raise DataError(
                f"{where}: expected images of one size, got {_size(images)} and {_size(batch)}. Set data.image_size"
            )
        images[seen : seen + len(batch)], labels[seen : seen + len(batch)] = batch, batch_labels
        seen += len(batch)
    return Part(images, labels)


def _fit(image: tf.Tensor, image_size: int | None, channels: int | None) -> tf.Tensor:
    """The resize and channel rules of this module: uint8 [h, w, c] -> uint8 [S, S, C]."""
    if channels not in (None, image.shape[-1]):
        image = tf.image.rgb_to_grayscale(image) if channels == 1 else tf.image.grayscale_to_rgb(image)
    if image_size is None or image.shape[:2] == (image_size, image_size):
        return image
    height, width = tf.unstack(tf.shape(image)[:2])
    shorter = tf.minimum(height, width)
    sides = tf.cast(tf.round(tf.stack([height, width]) * image_size / shorter), tf.int32)
    resized = tf.image.resize(image, sides, method="bilinear", antialias=True)
    top, left = tf.unstack((sides - image_size) // 2)
    cropped = resized[top : top + image_size, left : left + image_size]
    cropped = tf.ensure_shape(cropped, [image_size, image_size, image.shape[-1]])
    return tf.cast(tf.clip_by_value(tf.round(cropped), 0, 255), tf.uint8)


def _check_channels(present: int, channels: int | None, where: str) -> None:
    possible = (1, 3) if present in (1, 3) else (present,)
    if channels not in (None, *possible):
        known = " or ".join(map(str, possible))
        raise DataError(f"{where}: expected {known} for data.channels, got {channels}. Leave it out")


def _size(images: np.ndarray) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__
