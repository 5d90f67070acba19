"""`kpipe explain`: pictures of what a trained network has learned, and why it says what it says of an image.

The mathematics stands in `kpipe.explaining`, the drawing in `kpipe.figures.explanations`.
"""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_image

from kpipe import data
from kpipe.assembly import load_splits, make_form
from kpipe.caller import about_an_experiment, for_caller
from kpipe.catalog.explanations import EXPLANATIONS, check_kinds
from kpipe.console import Screen, counted
from kpipe.data.image_files import list_unreadable
from kpipe.errors import ConfigError, DataError, did_you_mean
from kpipe.evaluation.metrics import check_finite, compute_probabilities
from kpipe.explaining.class_models import balance_l2, find_training_mean, maximize_classes
from kpipe.explaining.deconvnet import build_deconvnet, deconvolve
from kpipe.explaining.feature_maps import (
    Strongest,
    choose_depths,
    compute_feature_maps,
    find_active_maps,
    find_layer,
    find_strongest,
    first_filters,
    has_feature_maps,
    last_map,
)
from kpipe.explaining.gradients import grad_cam, saliency
from kpipe.explaining.heat_map import compute_heat_map
from kpipe.explaining.images import FileImages, SplitImages, read_larger
from kpipe.explaining.invariance import AMOUNTS, measure_invariance
from kpipe.explaining.kernels import KERNELS, convolve
from kpipe.explaining.occlusion import default_side, occlude, positions_of
from kpipe.explaining.receptive_fields import cut_out, find_receptive_fields
from kpipe.figures import explanations as drawing
from kpipe.figures.labels import isolated, label
from kpipe.figures.style import is_sequence, save_figure
from kpipe.files import check_output_folder, expand_path, translate_write_errors
from kpipe.layout import find_images
from kpipe.models.geometry import LayerGeometry, count_affordable, fix_image_size, measure
from kpipe.names import path_shown
from kpipe.runs.tensorboard import read_figure
from kpipe.trained import Trained, check_takes_files, load_trained, takes_photographs

SHOWN = 3  # images that are explained one by one
MOST_SEARCHED = 1_000  # images among which the strongest activations are looked for
_MAPS = 6  # feature maps of the deconvolutional network
_CLASSES = 4  # classes whose model is drawn; half as many of a large network
_MACS = 2e12  # most multiplications of the search, of occlusion and of class models: about 20 s of two cores each
_BATCH = 16  # images that a network sees at a time: what VGG-16 holds of them stays below 1 GB
_STEPS = 100  # of a class model, at most
_FEWEST_STEPS = 24
_STEP_SIZE = 2.0  # of 100 steps
_NOISE = 10.0  # of its start: standard deviation in units of 0..255
_DISTANCE = 20.0  # from its start, at which the regularization is as strong as the score
_LARGEST = 3  # most times the side of the network, of an image whose heat map is drawn
_FILTERED = 8  # images that fixed kernels are applied to
_KERNEL_SIDE = 256  # pixels a side of these images
_EVENTS = ".kpipe-explain"  # ends the names of its event files
_UNITS = {"shift": "shift (pixels)", "scale": "scale (factor)", "rotation": "rotation (degrees)"}
_NEED_NO_IMAGES = {"filters", "class_models"}
_ONE_HOT = "boards or texts, in which one channel of each pixel is on"


@dataclass(frozen=True)
class Explanation:
    """One figure."""

    kind: str
    """Its name in EXPLANATIONS, or `kernels`."""
    path: Path
    """The PNG file."""


@dataclass(eq=False)
class _Subject:
    """What is explained. Images are read when a kind asks for them."""

    trained: Trained
    """Its network takes images of one size."""
    files: Sequence[str]
    """Image files of the user; none: some of the held-out split are explained."""
    layer: str | None
    class_name: str | None
    progress: data.ProgressReporter
    note: Callable[[str], None]

    @cached_property
    def given(self) -> FileImages | SplitImages:
        """Where images come from."""
        trained = self.trained
        if self.files:
            size, _, channels = trained.image_shape
            form = make_form(trained.data)
            return FileImages(self.files, replace(form, size=form.size or size, channels=channels), size)
        splits = load_splits(trained.data, ahead=False, progress=self.progress)
        return SplitImages(splits.by_name[splits.held_out or "train"], trained.experiment.seed, trained.image_shape)

    @cached_property
    def _chosen(self) -> tuple[np.ndarray, list[str], np.ndarray | None]:
        if len(self.files) > SHOWN:
            self.note(f"of {counted(len(self.files), 'image')}, the first {SHOWN} are explained one by one")
        return self.given.choose(SHOWN)

    @property
    def images(self) -> np.ndarray:
        """uint8 [n, H, W, C], 0..255, as the network sees them."""
        return self._chosen[0]

    @property
    def paths(self) -> list[str]:
        """Paths of the files, or names."""
        return self._chosen[1]

    @cached_property
    def _probabilities(self) -> np.ndarray:
        found = compute_probabilities(self.model.predict(self.images, batch_size=_BATCH, verbose=0))
        check_finite(found)
        return found

    @property
    def labels(self) -> np.ndarray:
        """The class that is explained for each image, int [n]."""
        if self.class_name is None:
            return self._probabilities.argmax(1)
        return np.full(len(self.images), self.class_names.index(self.class_name))

    @property
    def names(self) -> list[str]:
        """What each image is called, and below it the class that is explained."""
        return [self._describe(place) for place in range(len(self.images))]

    def _describe(self, place: int) -> str:
        path, probabilities, truths = self.paths[place], self._probabilities[place], self._chosen[2]

        def class_of(number: int) -> str:
            return f"{isolated(label(self.class_names[number], 20))} ({probabilities[number]:.0%})"

        first = label(path if truths is not None else Path(path).name, 30)
        if truths is not None:
            first += f", true: {isolated(label(self.class_names[truths[place]], 20))}"
        explained, predicted = self.labels[place], probabilities.argmax()
        others = "" if explained == predicted else f", predicted: {class_of(predicted)}"
        return f"{first}\n{class_of(explained)}{others}"

    @property
    def is_one_hot(self) -> bool:
        """Whether one channel of each pixel is 255 and the others are 0, as in boards and texts."""
        is_on = self.images == 255
        return bool((is_on | (self.images == 0)).all() and (is_on.sum(-1) == 1).all() and self.images.shape[-1] > 1)

    @property
    def model(self) -> keras.Model:
        return self.trained.model

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.trained.class_names

    @property
    def caption(self) -> str:
        trained = self.trained
        experiment = f"{trained.experiment.name} · " if trained.experiment else ""
        return label(f"{experiment}{trained.file.resolve().parent.name} · {trained.file.name}", 100)


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
        images: image files and folders of images. Default: some of the held-out split, drawn by the seed. The kinds
            `filters` and `class_models` need none.
        kinds: names of `kpipe.catalog.explanations.EXPLANATIONS`; default: all.
        layer: the layer whose feature maps `deconvnet` and Grad-CAM look at; default: the last one.
        class_name: the class that is explained; default: the one that the network predicts for each image.
        weights, image_size, resize: as in `load_trained`.
        output: folder to write. Default: `explain` in the run, or beside the model file.
        screen: shows the progress and notes; default: standard output.

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

    def note(text: str) -> None:
        screen.line(f"note: {text}")

    unreadable, _ = _explain(run, images, explanations.append, note, screen.progress, **choices, **how)
    for path, why in unreadable:
        note(f"{path_shown(path)}: cannot be read ({why}), so it is left out")
    return explanations


@about_an_experiment()
def print_explanations(
    run: str | Path,
    images: Iterable[str | Path],
    write: Callable[[Explanation], None],
    note: Callable[[str], None],
    *,
    progress: data.ProgressReporter,
    **options: Any,
) -> None:
    """Draw as `explain`, and write each figure's name when it is drawn.

    Args:
        run, images, options: as for `explain`.
        write: takes the figures one after the other.
        note: takes lines for the user.
        progress: shows bars.

    Raises:
        DataError: files cannot be read. The figures of all others are drawn.
    """
    unreadable, total = _explain(run, images, write, note, progress, **options)
    if unreadable:
        raise DataError(list_unreadable(unreadable, total))


def _explain(
    run: str | Path,
    images: str | Path | Iterable[str | Path],
    write: Callable[[Explanation], None],
    note: Callable[[str], None],
    progress: data.ProgressReporter,
    *,
    kinds: Sequence[str],
    layer: str | None,
    class_name: str | None,
    output: str | Path | None,
    **how_loaded: Any,
) -> tuple[list[tuple[str, str]], int]:
    """Draw, and return (path, why) of files that cannot be read, and how many were to be read."""
    check_kinds(kinds)
    paths = [images] if isinstance(images, str | Path) else list(images)
    files = find_images([os.fspath(path) for path in paths]) if paths else []
    trained = load_trained(run, **how_loaded)
    needs_images = not _NEED_NO_IMAGES.issuperset(kinds or EXPLANATIONS)
    if files:
        check_takes_files(trained, "Give no files, so that images of its own data are explained")
    elif needs_images and trained.run is None:
        raise ConfigError(
            f"images: expected image files or folders for {path_shown(trained.file)}, which has no data of its own, "
            "got none. Give some"
        )
    if layer is not None:
        find_layer(trained.model, layer)
    if class_name is not None and class_name not in trained.class_names:
        known = did_you_mean(class_name, trained.class_names)
        where = for_caller("--class", "class_name")
        raise ConfigError(f"{where}: expected a class of the network, got {class_name!r}{known}")
    whole = check_output_folder(
        trained.file.parent / "explain" if output is None else expand_path(str(output), "output")
    )
    about = _name_subject(paths, class_name)
    folder = whole / about if output is None else whole
    for text in trained.notes:
        note(text)
    trained = replace(trained, model=fix_image_size(trained.model, trained.image_shape))
    subject = _Subject(trained, files, layer, class_name, progress, note)
    if needs_images:
        _ = subject.names  # what is wrong with images or weights is no fault of a kind
    show = partial(_show_in_tensorboard, whole / "tensorboard", about)
    with translate_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for kind in [kind for kind in EXPLANATIONS if kind in kinds or not kinds]:
            try:
                for name, figure in _DRAW[kind](subject):
                    path = folder / f"{name}.png"
                    save_figure(figure, path)
                    show(name, path)
                    write(Explanation(kind, path))
            except ConfigError as error:
                if kinds:
                    raise ConfigError(f"{kind}: {error}. Leave out {for_caller('--kind', 'the kind')} {kind}") from None
                note(f"{kind} is skipped: {error}")
    if not files:
        return [], 0
    return list(subject.given.unreadable.items()), len(subject.given.tried)


def _name_subject(paths: Sequence[str | Path], class_name: str | None) -> str:
    """Return the folder for figures of the user's images and class, so that those of others stay: `cat_dog`.

    Those of the held-out split lie in no folder of their own.
    """
    first = [Path(os.fspath(path)).resolve().stem for path in paths[:1]]
    return "_".join(re.sub(r"[^\w.-]+", "-", name) for name in [*first, *([class_name] if class_name else [])])


def _show_in_tensorboard(logs: Path, about: str, name: str, file: Path) -> None:
    """Show a PNG file in TensorBoard, in place of what an earlier call has shown under this name."""
    tag = "/".join(filter(None, ("explain", about, name)))
    suffix = f"{_EVENTS}.{tag.replace('/', '.')}"
    for earlier in logs.glob(f"events.out.*{glob.escape(suffix)}"):
        earlier.unlink()
    with closing(tf.summary.create_file_writer(str(logs), filename_suffix=suffix)) as writer:
        with writer.as_default(step=0):
            tf.summary.image(tag, read_figure(file))


def print_kernels(
    images: Sequence[str | Path],
    write: Callable[[Explanation], None],
    note: Callable[[str], None],
    *,
    output: str | Path | None = None,
) -> None:
    """Draw the responses of images to fixed kernels: blur, sharpen, edges, and the detector of a tail.

    Args:
        images: image files and folders; the first that can be read are drawn. Default: a photograph and a digit that
            come with scikit-learn.
        write: takes the figure when it is drawn.
        note: takes lines for the user.
        output: folder to write. Default: the working directory.

    Raises:
        DataError: files cannot be read. The figure of the others is drawn.
        EnvironmentFault: the folder cannot be written.
    """
    folder = check_output_folder(expand_path(str(output or "."), "output"))
    files = find_images([os.fspath(path) for path in images])
    given = FileImages(files, data.Form(_KERNEL_SIDE, channels=3), _KERNEL_SIDE)
    pictures = list(given.choose(_FILTERED)[0]) if files else _own_pictures()
    if len(files) > _FILTERED:
        note(f"of {counted(len(files), 'image')}, the first {_FILTERED} are drawn")
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
    if given.unreadable:
        raise DataError(list_unreadable(list(given.unreadable.items()), len(given.tried)))


def _own_pictures() -> list[np.ndarray]:
    digits = load_digits().images
    digit = np.kron(digits[7] * 255 / 16, np.ones((2, 2)))
    return [load_sample_image("flower.jpg")[60:360, 120:520], digit[..., None].astype(np.uint8)]


# --- figures --------------------------------------------------------------------------------------------------------

Figures = Iterator[tuple[str, Figure]]


def _draw_filters(subject: _Subject) -> Figures:
    yield "filters", drawing.draw_filters(first_filters(subject.model), caption=subject.caption)


def _draw_feature_maps(subject: _Subject) -> Figures:
    model = subject.model
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
    model = subject.model
    layers = [subject.layer] if subject.layer else list(choose_depths(model).values())[1:] or [last_map(model)]
    fields = find_receptive_fields(model)
    rows = {row.name: row for row in measure(model)}
    found, searched = _search(subject, find_active_maps(model, subject.images, layers, _MAPS))
    for layer, strongest in found.items():
        projections = _project(subject, strongest, rows[layer])
        sides = fields[layer][2:] if layer in fields else subject.images.shape[1:3]
        cut = cut_out(rows[layer], strongest.positions, sides, projections, strongest.images)
        title = f"What excites feature maps of {layer} most: projections and the images"
        caption = f"the strongest activations among {searched} · {subject.caption}"
        yield f"deconvnet_{layer}", drawing.draw_projections(strongest.maps, *cut, title=title, caption=caption)


def _search(subject: _Subject, maps: dict[str, np.ndarray]) -> tuple[dict[str, Strongest], str]:
    """Return the strongest activations by the name of the layer, and among which images they were looked for."""
    # Fewer for a large network.
    most = int(np.clip(count_affordable(subject.model, _MACS), 9, MOST_SEARCHED))
    total, batches = subject.given.search(most, _BATCH)
    if total < len(subject.files):
        note = f"{total:,} of {len(subject.files):,} images are read for deconvnet, spread evenly over all"
        subject.note(note)
    seen = 0
    with subject.progress("looking for what excites feature maps", total) as advance:

        def count(images: int) -> None:
            nonlocal seen
            seen += images
            advance(images)

        found = find_strongest(subject.model, batches, maps, advance=count)
    return found, counted(seen, "image")


def _project(subject: _Subject, strongest: Strongest, geometry: LayerGeometry) -> np.ndarray:
    """Return the projections of the strongest activations, float32 [M, n, H, W, C]."""
    network = build_deconvnet(subject.model, geometry.name)
    shape = strongest.images.shape
    images, positions = strongest.images.reshape(-1, *shape[2:]), strongest.positions.reshape(-1, 2)
    with subject.progress(f"projecting {geometry.name}", len(images)) as advance:
        maps = np.repeat(strongest.maps, shape[1])
        found = deconvolve(network, images, maps, positions, geometry=geometry, advance=advance)
    return found.reshape(shape)


def _draw_saliency(subject: _Subject) -> Figures:
    model = subject.model
    # Few pixels have most of it; the root shows the others, too.
    columns = [("saliency (square root)", np.sqrt(saliency(model, subject.images, subject.labels)))]
    if has_feature_maps(model):
        layer = subject.layer or last_map(model)
        columns.append((f"Grad-CAM, {layer}", grad_cam(model, subject.images, subject.labels, layer)))
    rows = [
        (image, name, [drawing.Heat(heading, heats[place]) for heading, heats in columns])
        for place, (image, name) in enumerate(zip(subject.images, subject.names, strict=True))
    ]
    yield "saliency", drawing.draw_heat(rows, title="What the class depends on", caption=subject.caption)


def _draw_occlusion(subject: _Subject) -> Figures:
    model, rows = subject.model, []
    height, width = subject.images.shape[1:3]
    side = default_side(subject.images[0])
    # Larger for a large network, but the squares still overlap.
    fewest = np.sqrt(count_affordable(model, _MACS) / len(subject.images))
    stride = max(1, side // 2, min(side - 1, int(np.ceil((max(height, width) - side) / max(1, fewest - 1)))))
    steps = len(positions_of(height, side, stride)) * len(positions_of(width, side, stride))
    with subject.progress("occluding", steps * len(subject.images)) as advance:
        for image, name, number in zip(subject.images, subject.names, subject.labels, strict=True):
            # Gray would be a bit of each stone, or of each character; 0 is none of them.
            options = {"side": side, "stride": stride, "gray": 0.0 if subject.is_one_hot else 127.5}
            options |= {"batch_size": _BATCH, "advance": advance}
            found = occlude(model, image, int(number), **options)
            look = {"limits": (0.0, 1.0), "extent": found.extent}
            heats = [drawing.Heat("drop of the probability", found.whole - found.probabilities, **look)]
            if found.activations is not None:
                lost = (found.whole_activation - found.activations) / max(abs(found.whole_activation), 1e-12)
                heats.append(drawing.Heat("drop of the top feature map", lost, **look))
            others = (found.predictions != number).astype(np.float32)
            text = _describe_others(found.predictions[found.predictions != number], subject.class_names)
            heats.append(drawing.Heat("another class wins", others, **look, smooth=False, text=text))
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
    model, trained = subject.model, subject.trained
    if not takes_photographs(trained) and trained.run and subject.is_one_hot:
        raise ConfigError("expected images whose pixels can be changed one by one, got " + _ONE_HOT)
    affordable = count_affordable(model, _MACS) // 4  # there are two rows, and each step goes forward and back
    labels = _choose_classes(subject, _CLASSES if affordable >= _CLASSES * _FEWEST_STEPS else _CLASSES // 2)
    steps = int(np.clip(affordable // len(labels), _FEWEST_STEPS, _STEPS))
    mean = find_training_mean(model)
    start = {"mean": 127.5 if mean is None else mean, "noise": _NOISE}
    l2 = balance_l2(model, labels, **start, distance=_DISTANCE)
    with subject.progress("maximizing scores", 2 * steps * len(labels)) as advance:
        found = maximize_classes(
            model,
            labels * 2,
            **start,
            l2=l2 + [0.0] * len(labels),
            steps=steps,
            step_size=_STEP_SIZE * _STEPS / steps,
            advance=advance,
        )
    pictures = [
        (each.image, f"{label(trained.class_names[number], 16)}, logit {each.score:.1f}")
        for number, each in zip(labels * 2, found, strict=True)
    ]
    rows = [pictures[: len(labels)], pictures[len(labels) :]]
    title = "Class models: images that raise the logit of a class"
    headings = ["with L2", "without L2"]
    yield "class_models", drawing.draw_pictures(rows, headings, title=title, caption=subject.caption)


def _choose_classes(subject: _Subject, most: int) -> list[int]:
    """Return the class of the user, those of the user's images, and then the first ones."""
    numbers = range(len(subject.class_names))
    if subject.class_name is not None:
        first = [subject.class_names.index(subject.class_name)]
    else:
        first = subject.labels.tolist() if subject.files else []
    return list(dict.fromkeys([*first, *numbers]))[:most]


def _draw_invariance(subject: _Subject) -> Figures:
    model, image, number = subject.model, subject.images[0], int(subject.labels[0])
    if subject.is_one_hot:
        raise ConfigError("expected images whose pixels can be interpolated, got " + _ONE_HOT)
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
    boxes = find_receptive_fields(subject.model)
    title = "Receptive fields of the middle position of each layer"
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
    if subject.is_one_hot and (not is_sequence(images) or len(images) == 1):
        raise ConfigError("expected images of which a larger one can be made, got boards, or a single text")
    larger = None
    if subject.files:
        larger = read_larger(subject.paths[0], subject.given.form, images.shape[1:3], _LARGEST)
    if larger is not None:
        labels = labels[:1]
    elif len(images) > 1:
        # Texts, one pixel wide, follow one another.
        larger = np.concatenate(list(images), axis=0 if is_sequence(images) else 1)
    else:
        larger = tf.image.resize(images[0], 2 * np.array(images.shape[1:3])).numpy()
    maps = compute_heat_map(subject.model, larger, labels)
    rows = [
        (larger, label(subject.class_names[each], 34), [drawing.Heat("probability", maps[..., place], limits=(0, 1))])
        for place, each in enumerate(labels)
    ]
    height, width = larger.shape[:2]
    title = f"Where the classes are in a larger image, {height}x{width}"
    yield "heat_map", drawing.draw_heat(rows, title=title, caption=subject.caption)


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
