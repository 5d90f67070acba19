"""`kpipe explain`: pictures of what a trained network has learned, and why it says what it says of an image.

The mathematics stands in `kpipe.explaining`, the drawing in `kpipe.figures.explanations`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_image

from kpipe import data
from kpipe.assembly import load_splits, make_form
from kpipe.caller import about_an_experiment, for_caller
from kpipe.catalog.explanations import EXPLANATIONS
from kpipe.console import Screen, counted
from kpipe.data.image_files import list_unreadable, why_unreadable
from kpipe.data.images import decode_to_form
from kpipe.data.reading import translate_reading_errors
from kpipe.errors import ConfigError, DataError, did_you_mean
from kpipe.evaluation.metrics import check_finite, compute_probabilities
from kpipe.explaining.class_models import find_training_mean, maximize_class
from kpipe.explaining.deconvnet import build_deconvnet, deconvolve
from kpipe.explaining.feature_maps import (
    Strongest,
    choose_depths,
    compute_feature_maps,
    find_layer,
    find_strongest,
    first_filters,
    has_feature_maps,
    last_map,
)
from kpipe.explaining.gradients import grad_cam, saliency
from kpipe.explaining.heat_map import compute_heat_map
from kpipe.explaining.invariance import AMOUNTS, measure_invariance
from kpipe.explaining.kernels import KERNELS, convolve
from kpipe.explaining.occlusion import default_side, occlude, positions_of
from kpipe.explaining.receptive_fields import find_field, find_receptive_fields
from kpipe.figures import explanations as drawing
from kpipe.figures.labels import label
from kpipe.figures.style import save_figure
from kpipe.files import check_output_folder, expand_path, translate_write_errors
from kpipe.layout import find_images
from kpipe.models.geometry import LayerGeometry, count_macs, measure
from kpipe.names import path_shown
from kpipe.runs.tensorboard import read_figure
from kpipe.trained import Trained, check_takes_files, load_trained

SHOWN = 3  # images that are explained one by one
MOST_SEARCHED = 1_000  # images among which the strongest activations are looked for
_MAPS = 6  # feature maps of the deconvolutional network
_CLASSES = 4  # classes whose model is drawn; half as many of a large network
_MACS = 3e12  # most multiplications for the search, and forward for class models: half a minute each of two cores
_BATCH = 16  # images that a network sees at a time: what VGG-16 holds of them stays below 1 GB
_STEPS = 100  # of a class model, at most
_FEWEST_STEPS = 40
_STEP_SIZE = 2.0  # of 100 steps
_L2 = 150  # its regularization, over the number of values of an image
_FILTERED = 8  # images that fixed kernels are applied to
_LARGEST = 3  # most times the side of the network, of an image whose heat map is drawn
_KERNEL_SIDE = 256  # pixels a side of these
_UNITS = {"shift": "shift (pixels)", "scale": "scale (factor)", "rotation": "rotation (degrees)"}


@dataclass(frozen=True)
class Explanation:
    """One figure."""

    kind: str
    """Its name in EXPLANATIONS, or `kernels`."""
    path: Path
    """The PNG file."""


@dataclass(eq=False)
class _Subject:
    """What is explained."""

    trained: Trained
    images: np.ndarray
    """uint8 [n, H, W, C], 0..255, as the network sees them."""
    names: list[str]
    """What each image is called."""
    labels: np.ndarray
    """The class that is explained for each image, int [n]."""
    layer: str | None
    seed: int
    screen: Screen
    split: data.Split | None
    """Where the strongest activations are looked for; None: among the images of the user, which are `searched`."""
    searched: np.ndarray
    """Up to MOST_SEARCHED images of the user, uint8 [m, H, W, C]; the first of them are `images`."""
    files: list[str]
    """Paths of `searched`."""
    unreadable: list[tuple[str, str]]
    """(path, why) of the files of the user that cannot be read."""
    caption: str

    @property
    def is_one_hot(self) -> bool:
        """Whether one channel of each pixel is 255 and the others are 0, as in boards and texts."""
        is_on = self.images == 255
        return bool((is_on | (self.images == 0)).all() and (is_on.sum(-1) == 1).all() and self.images.shape[-1] > 1)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.trained.class_names


@about_an_experiment()
def explain(
    run: str | Path,
    images: str | Path | Iterable[str | Path] = (),
    *,
    kinds: Sequence[str] = (),
    layer: str | None = None,
    class_name: str | None = None,
    weights: str = "best",
    image_size: int | None = None,
    resize: str | None = None,
    output: str | Path | None = None,
    screen: Screen | None = None,
) -> list[Explanation]:
    """Draw what a trained network has learned, and why it says what it says of images.

    Args:
        run: the directory of a finished run, one of its model files, or a .keras file with a classes.txt beside it.
        images: image files and folders of images. Default: some of the held-out split, drawn by the seed.
        kinds: names of `kpipe.catalog.explanations.EXPLANATIONS`; default: all.
        layer: the layer whose feature maps `deconvnet` and Grad-CAM look at; default: the last one.
        class_name: the class that is explained; default: the one that the network predicts for each image.
        weights, image_size, resize: as in `load_trained`.
        output: folder to write. Default: `explain` in the run, or beside the model file.
        screen: shows the progress; default: standard output.

    Returns:
        The figures, in the order of EXPLANATIONS. TensorBoard has them as well. A file that cannot be read is left out,
        with a note.

    Raises:
        ConfigError: as `load_trained`; an unknown kind, layer or class; a network that takes no images.
        DataError: as `load_trained`; not one of the images can be read.
        EnvironmentFault: the folder cannot be written.
    """
    screen, explanations = screen or Screen(), []
    choices = {"kinds": kinds, "layer": layer, "class_name": class_name, "output": output}
    how = {"weights": weights, "image_size": image_size, "resize": resize}
    unreadable, _ = _explain(run, images, explanations.append, **choices, **how, screen=screen)
    for path, why in unreadable:
        screen.line(f"note: {path_shown(path)}: cannot be read ({why}), so it is left out")
    return explanations


@about_an_experiment()
def print_explanations(
    run: str | Path, images: Iterable[str | Path], write: Callable[[Explanation], None], **options: Any
) -> None:
    """Draw as `explain`, and write each figure's name when it is drawn.

    Args:
        run, images, options: as for `explain`.
        write: takes the figures one after the other.

    Raises:
        DataError: files cannot be read. The figures of all others are drawn.
    """
    unreadable, total = _explain(run, images, write, **{"screen": Screen(), **options})
    if unreadable:
        raise DataError(list_unreadable(unreadable, total))


def _explain(
    run: str | Path,
    images: str | Path | Iterable[str | Path],
    write: Callable[[Explanation], None],
    *,
    kinds: Sequence[str],
    layer: str | None,
    class_name: str | None,
    output: str | Path | None,
    screen: Screen,
    **how_loaded: Any,
) -> tuple[list[tuple[str, str]], int]:
    """Draw, and return (path, why) of files that cannot be read, and how many were to be read."""
    if unknown := [kind for kind in kinds if kind not in EXPLANATIONS]:
        names = did_you_mean(unknown[0], EXPLANATIONS)
        raise ConfigError(f"{for_caller('--kind', 'kinds')}: expected known names, got {unknown[0]!r}{names}")
    paths = [images] if isinstance(images, str | Path) else list(images)
    files = find_images([os.fspath(path) for path in paths]) if paths else []
    trained = load_trained(run, **how_loaded)
    if files:
        check_takes_files(trained, "Give no files, so that images of its own data are explained")
    if layer is not None:
        find_layer(trained.model, layer)
    if class_name is not None and class_name not in trained.class_names:
        known = did_you_mean(class_name, trained.class_names)
        where = for_caller("--class", "class_name")
        raise ConfigError(f"{where}: expected a class of the network, got {class_name!r}{known}")
    default = trained.file.parent / "explain"
    folder = check_output_folder(default if output is None else expand_path(str(output), "output"))
    subject = _make_subject(trained, files, layer, class_name, screen)
    with translate_write_errors(folder), _tensorboard(folder) as show:
        for kind in [kind for kind in EXPLANATIONS if kind in kinds or not kinds]:
            try:
                for name, figure in _DRAW[kind](subject):
                    path = folder / f"{name}.png"
                    save_figure(figure, path)
                    show(name, path)
                    write(Explanation(kind, path))
            except ConfigError as error:
                if kinds:
                    raise ConfigError(f"{kind}: {error}") from None
                screen.line(f"note: {kind} is skipped: {error}")
    return subject.unreadable, len(subject.files) + len(subject.unreadable)


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Callable[[str, Path], None]]:
    """Give a function that shows a PNG file in TensorBoard, in place of what an earlier call has shown."""
    for earlier in (folder / "tensorboard").glob("events.out.*"):
        earlier.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with closing(tf.summary.create_file_writer(str(folder / "tensorboard"))) as writer, writer.as_default(step=0):
        yield lambda name, file: tf.summary.image(f"explain/{name}", read_figure(file))


def print_kernels(
    images: Sequence[str | Path],
    write: Callable[[Explanation], None],
    *,
    output: str | Path | None = None,
    screen: Screen | None = None,
) -> None:
    """Draw the responses of images to fixed kernels: blur, sharpen, edges, and the detector of a tail.

    Args:
        images: image files and folders; the first that can be read are drawn. Default: a photograph and a digit that
            come with scikit-learn.
        write: takes the figure when it is drawn.
        output: folder to write. Default: the working directory.
        screen: shows notes; default: standard output.

    Raises:
        DataError: files cannot be read. The figure of the others is drawn.
        EnvironmentFault: the folder cannot be written.
    """
    folder = check_output_folder(expand_path(str(output or "."), "output"))
    files = find_images([os.fspath(path) for path in images])
    unreadable: list[tuple[str, str]] = []
    if files:
        some, _, unreadable = _read(files[:_FILTERED], data.Form(_KERNEL_SIDE, channels=3), _KERNEL_SIDE)
        pictures = list(some)
        if len(files) > _FILTERED:
            note = f"note: of {counted(len(files), 'image')}, the first {_FILTERED} are drawn"
            (screen or Screen()).line(note)
    else:
        pictures = _own_pictures()
    rows = []
    for image in pictures:
        row = [(image, "image")]
        for name, kernel in KERNELS.items():
            response = convolve(image, kernel)
            if name not in ("blur", "sharpen"):  # responses of both signs, or far above the pixels
                response = np.abs(response).mean(-1, keepdims=True)
                response = 255 * response / max(float(np.percentile(response, 99.5)), 1e-6)
            row.append((response, name))
        rows.append(row)
    figure = drawing.draw_pictures(rows, [""] * len(rows), title="Fixed kernels")
    path = folder / "kernels.png"
    with translate_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path)
    write(Explanation("kernels", path))
    if unreadable:
        raise DataError(list_unreadable(unreadable, min(len(files), _FILTERED)))


def _own_pictures() -> list[np.ndarray]:
    digits = load_digits().images
    digit = np.kron(digits[7] * 255 / 16, np.ones((2, 2)))
    return [load_sample_image("flower.jpg")[60:360, 120:520], digit[..., None].astype(np.uint8)]


# --- what is explained ----------------------------------------------------------------------------------------------


def _make_subject(
    trained: Trained, files: Sequence[str], layer: str | None, class_name: str | None, screen: Screen
) -> _Subject:
    """Return the images, and the class that is explained for each."""
    seed = trained.experiment.seed if trained.experiment else 0
    split = None if files else _load_split(trained, screen)
    unreadable: list[tuple[str, str]] = []
    if files:
        size, _, channels = trained.image_shape
        form = make_form(trained.data)
        # The first are explained one by one; the strongest activations are looked for among the others, too.
        places = {*range(min(SHOWN, len(files))), *np.linspace(0, len(files) - 1, MOST_SEARCHED).astype(int).tolist()}
        files = [files[place] for place in sorted(places)]
        images, files, unreadable = _read(files, replace(form, size=form.size or size, channels=channels), size)
        names = [Path(file).name for file in files]
    else:
        images, names = _draw_at_random(trained, split, seed)
    searched, images = images, images[:SHOWN]
    if len(searched) > len(images):
        screen.line(f"note: of {counted(len(searched), 'image')}, the first {len(images)} are explained one by one")
    probabilities = compute_probabilities(trained.model.predict(images, batch_size=_BATCH, verbose=0))
    check_finite(probabilities)
    if class_name is None:
        labels = probabilities.argmax(1)
    else:
        labels = np.full(len(images), trained.class_names.index(class_name))
    shown = [
        f"{label(name, 30)}\n{label(trained.class_names[each], 20)} ({row[each]:.0%})"
        for name, each, row in zip(names, labels, probabilities, strict=False)
    ]
    experiment = f"{trained.experiment.name} · " if trained.experiment else ""
    caption = label(f"{experiment}{trained.file.resolve().parent.name} · {trained.file.name}", 100)
    return _Subject(
        trained, images, shown, labels, layer, seed, screen, split, searched, list(files), unreadable, caption
    )


def _load_split(trained: Trained, screen: Screen) -> data.Split:
    """Return the held-out split of the run."""
    if trained.run is None:
        raise ConfigError(
            f"images: expected image files or folders for {path_shown(trained.file)}, which has no data of its own"
        )
    splits = load_splits(trained.data, ahead=False, progress=screen.progress)
    return splits.by_name[splits.held_out or "train"]


def _read(files: Sequence[str], form: data.Form, size: int) -> tuple[np.ndarray, list[str], list[tuple[str, str]]]:
    """Return the center of image files in their form, uint8 [n, size, size, C], their paths, and what went wrong.

    Returns:
        Images and paths of those that can be read; (path, why) of the others.

    Raises:
        DataError: not one can be read.
    """
    split = data.unlabeled_files(files, form)
    found: list[np.ndarray] = []
    read: list[int] = []
    for numbers, images in data.iterate_readable(split, _BATCH, size, "reading"):
        read += numbers.tolist()
        found.append(images)
    readable = set(read)
    broken = [(file, why_unreadable(file)) for number, file in enumerate(files) if number not in readable]
    if not found:
        raise DataError(list_unreadable(broken, len(files)))
    return np.concatenate(found), [files[number] for number in read], broken


def _draw_at_random(trained: Trained, split: data.Split, seed: int) -> tuple[np.ndarray, list[str]]:
    """Return some images of a split as the network sees them, and their names."""
    numbers = split.readable_numbers()
    chosen = np.sort(np.random.default_rng(seed).choice(numbers, min(SHOWN, len(numbers)), replace=False))
    images = next(iter(_batches(trained, split, chosen, len(chosen))))
    names = split.name_images(np.searchsorted(numbers, chosen))
    return images, [Path(name).name if split.unreadable.are_files else f"image {name}" for name in names]


def _batches(trained: Trained, split: data.Split, numbers: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield images of a split as the network sees them, uint8 [b, H, W, C]."""
    height, width, _ = trained.image_shape
    with translate_reading_errors([split]):
        for images in split.evaluation_batches(numbers, batch_size, lambda images, labels: images):
            top, left = ((side - seen) // 2 for side, seen in zip(images.shape[1:3], (height, width), strict=True))
            yield images.numpy()[:, top : top + height, left : left + width]


# --- figures --------------------------------------------------------------------------------------------------------

Figures = Iterator[tuple[str, Figure]]


def _draw_filters(subject: _Subject) -> Figures:
    yield "filters", drawing.draw_filters(first_filters(subject.trained.model), caption=subject.caption)


def _draw_feature_maps(subject: _Subject) -> Figures:
    model = subject.trained.model
    depths = choose_depths(model)
    found = compute_feature_maps(model, subject.images, list(depths.values()))
    for place, name in enumerate(subject.names):
        maps = {f"{depth}: {layer}": found[layer][place] for depth, layer in depths.items()}
        title = "Feature maps by depth, those that the image excites most"
        caption = f"{label(name.replace(chr(10), ': '), 60)} · {subject.caption}"
        yield (
            f"feature_maps_{place + 1}",
            drawing.draw_feature_maps(subject.images[place], maps, title=title, caption=caption),
        )


def _draw_deconvnet(subject: _Subject) -> Figures:
    trained, model = subject.trained, subject.trained.model
    layers = [subject.layer] if subject.layer else list(choose_depths(model).values())[1:] or [last_map(model)]
    fields = find_receptive_fields(model)
    rows = {row.name: row for row in measure(model)}
    found, searched = _search(subject, _active_maps(model, subject.images, layers))
    for layer, strongest in found.items():
        projections = _project(subject, strongest, rows[layer])
        sides = fields[layer][2:] if layer in fields else trained.image_shape[:2]
        cut = _cut_out(rows[layer], strongest, sides, projections, strongest.images)
        title = f"What excites feature maps of {layer} most: projections and the images"
        caption = f"the strongest activations among {searched} · {subject.caption}"
        yield f"deconvnet_{layer}", drawing.draw_projections(strongest.maps, *cut, title=title, caption=caption)


def _active_maps(model, images: np.ndarray, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Return numbers of feature maps that some images excite, spread over those of a layer: int [M] by its name."""
    numbers = {}
    for layer, maps in compute_feature_maps(model, images, layers).items():
        largest = maps.max((0, 1, 2))
        active = np.flatnonzero(largest > 0)
        active = active if len(active) else np.arange(len(largest))
        numbers[layer] = active[np.unique(np.linspace(0, len(active) - 1, _MAPS).astype(int))]
    return numbers


def _search(subject: _Subject, maps: dict[str, np.ndarray]) -> tuple[dict[str, Strongest], str]:
    """Return the strongest activations by the name of the layer, and among which images they were looked for."""
    trained, split = subject.trained, subject.split
    most = _most_searched(trained.model)
    if split is None:
        images = subject.searched[np.unique(np.linspace(0, len(subject.searched) - 1, most).astype(int))]
        total, batches = len(images), (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    else:
        numbers = split.readable_numbers()
        if len(numbers) > most:
            numbers = np.sort(np.random.default_rng(subject.seed).choice(numbers, most, replace=False))
        total, batches = len(numbers), _batches(trained, split, numbers, _BATCH)
    with subject.screen.progress("looking for what excites feature maps", total) as advance:
        return find_strongest(trained.model, batches, maps, advance=advance), counted(total, "image")


def _most_searched(model) -> int:
    """Return among how many images the strongest activations are looked for: fewer for a large network."""
    return int(np.clip(_affordable(model), 9, MOST_SEARCHED))


def _affordable(model) -> int:
    """Return how many images a network may see in a search or a climb."""
    return int(_MACS // max(1, count_macs(measure(model))))


def _project(subject: _Subject, strongest: Strongest, geometry: LayerGeometry) -> np.ndarray:
    """Return the projections of the strongest activations, float32 [M, n, H, W, C]."""
    network = build_deconvnet(subject.trained.model, geometry.name)
    shape = strongest.images.shape
    images, positions = strongest.images.reshape(-1, *shape[2:]), strongest.positions.reshape(-1, 2)
    with subject.screen.progress(f"projecting {geometry.name}", len(images)) as advance:
        maps = np.repeat(strongest.maps, shape[1])
        found = deconvolve(network, images, maps, positions, geometry=geometry, advance=advance)
    return found.reshape(shape)


def _cut_out(row: LayerGeometry, strongest: Strongest, sides: Sequence[int], *stacks: np.ndarray) -> list[np.ndarray]:
    """Cut what the strongest activations see out of images [M, n, H, W, C]; sides: height and width of the cut."""
    height, width = stacks[0].shape[2:4]
    cut_height, cut_width = min(sides[0], height), min(sides[1], width)
    cut = [np.empty((*stack.shape[:2], cut_height, cut_width, stack.shape[-1]), stack.dtype) for stack in stacks]
    for place in np.ndindex(strongest.positions.shape[:2]):
        field = find_field(row, strongest.positions[place]) if row.receptive_field else (0, 0, height, width)
        middle = [field[axis] + field[axis + 2] // 2 for axis in (0, 1)]
        top = int(np.clip(middle[0] - cut_height // 2, 0, height - cut_height))
        left = int(np.clip(middle[1] - cut_width // 2, 0, width - cut_width))
        for part, stack in zip(cut, stacks, strict=True):
            part[place] = stack[place][top : top + cut_height, left : left + cut_width]
    return cut


def _draw_saliency(subject: _Subject) -> Figures:
    model = subject.trained.model
    columns = [("saliency", np.sqrt(saliency(model, subject.images, subject.labels)))]
    if has_feature_maps(model):
        layer = subject.layer or last_map(model)
        columns.append((f"Grad-CAM, {layer}", grad_cam(model, subject.images, subject.labels, layer)))
    rows = [
        (image, name, [(heading, heats[place]) for heading, heats in columns])
        for place, (image, name) in enumerate(zip(subject.images, subject.names, strict=True))
    ]
    yield "saliency", drawing.draw_heat(rows, title="What the class depends on", caption=subject.caption)


def _draw_occlusion(subject: _Subject) -> Figures:
    model, rows = subject.trained.model, []
    height, width = subject.images.shape[1:3]
    side = default_side(subject.images[0])
    stride = max(1, side // 2)
    steps = len(positions_of(height, side, stride)) * len(positions_of(width, side, stride))
    with subject.screen.progress("covering parts of the images", steps * len(subject.images)) as advance:
        for image, name, number in zip(subject.images, subject.names, subject.labels, strict=True):
            # Gray would be a bit of each stone, or of each character; 0 is none of them.
            options = {"side": side, "stride": stride, "gray": 0.0 if subject.is_one_hot else 127.5}
            options |= {"batch_size": _BATCH, "advance": advance}
            found = occlude(model, image, int(number), **options)
            drop = {"limits": (0.0, 1.0), "extent": found.extent}
            heats = [("drop of the probability", found.whole - found.probabilities, drop)]
            if found.activations is not None:
                lost = (found.whole_activation - found.activations) / max(abs(found.whole_activation), 1e-12)
                heats.append(("drop of the top feature map", lost, drop))
            others = (found.predictions != number).astype(np.float32)
            text = _describe_others(found.predictions[found.predictions != number], subject.class_names)
            heats.append(("another class wins", others, {**drop, "smooth": False, "text": text}))
            rows.append((image, name, heats))
    title = f"What {'an empty' if subject.is_one_hot else 'a gray'} square of {side}x{side} pixels takes away"
    yield "occlusion", drawing.draw_heat(rows, title=title, caption=subject.caption)


def _describe_others(predictions: np.ndarray, class_names: Sequence[str]) -> str:
    """Return which class it is most often, of predictions int [n]."""
    if not len(predictions):
        return "none"
    counts = np.bincount(predictions)
    return f"{'most often ' if np.count_nonzero(counts) > 1 else ''}{label(class_names[counts.argmax()], 18)}"


def _draw_class_models(subject: _Subject) -> Figures:
    trained = subject.trained
    labels = list(dict.fromkeys(int(each) for each in subject.labels))
    labels += [each for each in range(len(trained.class_names)) if each not in labels]
    affordable = _affordable(trained.model) // 2  # there are two rows
    labels = labels[: _CLASSES if affordable >= _CLASSES * _STEPS else _CLASSES // 2]
    steps = int(np.clip(affordable // len(labels), min(_FEWEST_STEPS, _STEPS), _STEPS))
    rows: list[list[tuple[np.ndarray, str]]] = []
    mean = find_training_mean(trained.model)
    options = {"mean": 127.5 if mean is None else mean, "steps": steps, "step_size": _STEP_SIZE * _STEPS / steps}
    with subject.screen.progress("climbing to class models", 2 * steps * len(labels)) as advance:
        for l2 in (_L2 / np.prod(trained.image_shape), 0.0):
            found = [maximize_class(trained.model, each, l2=l2, **options, advance=advance) for each in labels]
            rows.append(
                [
                    (each.image, f"{label(trained.class_names[number], 16)}, logit {each.score:.1f}")
                    for number, each in zip(labels, found, strict=True)
                ]
            )
    title = "Images that the network scores highest"
    headings = ["with L2", "without: fooling"]
    yield "class_models", drawing.draw_pictures(rows, headings, title=title, caption=subject.caption)


def _draw_invariance(subject: _Subject) -> Figures:
    model, image, number = subject.trained.model, subject.images[0], int(subject.labels[0])
    if subject.is_one_hot:
        raise ConfigError(
            "expected images whose pixels can be interpolated, got boards or texts, in which one channel of each pixel "
            "is on"
        )
    curves, examples = {}, {}
    # Time and frequency of a spectrogram, which is not square, are no directions that a rotation could mix.
    for change in AMOUNTS if image.shape[0] == image.shape[1] else ["shift"]:
        found = measure_invariance(model, image, number, change, batch_size=_BATCH)
        curves[_UNITS[change]] = (found.amounts, found.low, found.high, found.probabilities)
        examples[_UNITS[change]] = found.images[np.linspace(0, len(found.images) - 1, 4).astype(int)]
    yield (
        "invariance",
        drawing.draw_invariance(
            curves,
            examples,
            class_name=subject.class_names[number],
            title="How far the features move while the image is changed",
            caption=f"{label(subject.names[0].replace(chr(10), ': '), 60)} · {subject.caption}",
        ),
    )


def _draw_receptive_fields(subject: _Subject) -> Figures:
    boxes = find_receptive_fields(subject.trained.model)
    title = "What the middle position of each layer sees"
    yield (
        "receptive_fields",
        drawing.draw_receptive_fields(subject.images[0], boxes, title=title, caption=subject.caption),
    )


def _draw_heat_map(subject: _Subject) -> Figures:
    """Draw where the classes are in a larger image.

    This is the first image of the user in its own size; else several images side by side, or one at twice its size.
    Boards side by side are no board.
    """
    images = subject.images.astype(np.float32)
    labels = list(dict.fromkeys(int(each) for each in subject.labels))
    if subject.is_one_hot and (images.shape[2] > 1 or len(images) == 1):
        raise ConfigError("expected images of which a larger one can be made, got boards, or a single text")
    if (larger := _read_larger(subject)) is not None:
        labels = labels[:1]
    elif len(images) > 1:
        # Texts, one pixel wide, follow one another.
        larger = np.concatenate(list(images), axis=0 if images.shape[2] == 1 else 1)
    else:
        larger = tf.image.resize(images[0], 2 * np.array(images.shape[1:3])).numpy()
    maps = compute_heat_map(subject.trained.model, larger, labels)
    rows = [
        (larger, label(subject.class_names[each], 34), [("probability", maps[..., place])])
        for place, each in enumerate(labels)
    ]
    height, width = larger.shape[:2]
    title = f"Where the classes are in a larger image, {height}x{width}"
    yield "heat_map", drawing.draw_heat(rows, title=title, caption=subject.caption, limits=(0, 1))


def _read_larger(subject: _Subject) -> np.ndarray | None:
    """Return the first image file, [H, W, C], 0..255, if it is larger than what the network sees.

    It is scaled down, and its middle cut out, to _LARGEST times the side of the network at most.
    """
    if not subject.files:
        return None
    *sides, channels = subject.trained.image_shape
    form = replace(make_form(subject.trained.data), size=None, channels=channels)
    image = decode_to_form(tf.io.read_file(subject.files[0]), form)
    own, seen = np.array(image.shape[:2]), np.array(sides)
    if (own < seen).any() or (own == seen).all():
        return None
    most = _LARGEST * seen
    factor = max((seen / own).max(), min(1.0, (most / own).min()))
    if factor < 1:
        image = tf.image.resize(image, np.round(own * factor).astype(int), antialias=True)
    top, left = np.maximum(0, (np.array(image.shape[:2]) - most) // 2)
    return image.numpy()[top : top + most[0], left : left + most[1]].astype(np.float32)


_DRAW: dict[str, Callable[[_Subject], Figures]] = {
    "filters": _draw_filters,
    "feature_maps": _draw_feature_maps,
    "deconvnet": _draw_deconvnet,
    "saliency": _draw_saliency,
    "occlusion": _draw_occlusion,
    "class_models": _draw_class_models,
    "invariance": _draw_invariance,
    "receptive_fields": _draw_receptive_fields,
    "heat_map": _draw_heat_map,
}
