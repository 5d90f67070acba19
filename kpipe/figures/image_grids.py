"""Grids of images with captions: predictions, mistakes, augmented views.

N images, H height, W width, C channels, K classes, L length of a sequence.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from kpipe.figures.labels import count_columns, distinct_labels, fit, isolated, label, path_labels
from kpipe.figures.style import INK, RED, add_caption, add_title, make_layout, show_image, to_rgb

UNKNOWN = -1
"""Label of an image whose true class is not known."""

_MOST_COLUMNS = 5
_TILE, _LARGEST_TILE = 64, 200  # pixels a side of an image among others
_WIDTH, _HEIGHT = 2.4, 2.7  # inches of an image with its texts
_TEXT, _FILE = 8, 7  # points, of classes and files
_LINE = 0.14  # inches
_SHORT = 16  # columns of a name that leaves room for "predicted" and a probability on its line


def tile_images(images: np.ndarray, most: int = 25) -> np.ndarray:
    """Return images side by side, in about as many rows as columns.

    Args:
        images: uint8 or float32 [N, H, W, C], 0..255, N at least 1. Channels are shown as by `draw_predictions`.
        most: how many are shown, the first ones.

    Returns:
        uint8 [h, w, 3]; small images are enlarged to about 64 pixels, and large ones reduced to at most 200.
    """
    tiles = [to_rgb(np.clip(np.round(image), 0, 255).astype(np.uint8)) for image in images[:most]]
    largest = max(tiles[0].shape[:2])
    tiles = [np.asarray(Image.fromarray(tile).reduce(-(-largest // _LARGEST_TILE))) for tile in tiles]
    factor = max(1, _TILE // max(tiles[0].shape[:2]))
    tiles = [np.pad(tile.repeat(factor, 0).repeat(factor, 1), ((1, 1), (1, 1), (0, 0))) for tile in tiles]
    columns = math.ceil(math.sqrt(len(tiles)))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)])


def draw_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
    files: Sequence[str] = (),
    caption: str = "",
    most: int = 25,
) -> Figure:
    """Draw a grid of images with their true and predicted classes. A wrong one has a red frame and a cross.

    Args:
        images: uint8 [N, H, W, C], 0..255. One channel is drawn gray, and of more than three channels the first
            three. A sequence [L, 1, C] is drawn as the gray image [L, C].
        labels: int [N], 0..K-1, the true classes, or UNKNOWN.
        predictions: int [N], 0..K-1.
        probabilities: float [N], 0..1, of the predicted class.
        class_names: K names; long ones are shortened.
        title: of the whole figure.
        files: N paths in the folder of the data, which stand below the images; none of them where it is empty.
        caption: the line below the figure.
        most: how many images are drawn, the first ones. Without any image the figure is a line, its title.

    Raises:
        ValueError: the arrays differ in length, or a label or prediction is not in 0..K-1.
    """
    labels = np.asarray(labels)
    is_known = labels != UNKNOWN
    _check_classes(class_names, labels=np.where(is_known, labels, 0), predictions=predictions)
    if not len(images) == len(labels) == len(probabilities):
        raise ValueError(
            f"draw_predictions: expected as many images and probabilities as labels ({len(labels)}), "
            f"got {len(images)} images and {len(probabilities)} probabilities."
        )
    drawn = min(most, len(images))
    names = _name_classes(class_names, labels[:drawn], predictions[:drawn])
    line_break = any(count_columns(name) > _SHORT for name in names.values())
    rows = math.ceil(drawn / max(_MOST_COLUMNS, math.ceil(math.sqrt(drawn))))
    columns = math.ceil(drawn / max(1, rows))
    # Title and caption need some room, even around a single image or none.
    height = max(2.1, (_HEIGHT + _LINE * (line_break + (len(files) > 0))) * rows + 0.9)
    figure = Figure(figsize=(max(6, _WIDTH * columns), height), layout=make_layout())
    if drawn:
        add_title(figure, title)
    else:
        figure.text(0.5, 0.5, title, ha="center", va="center", fontsize=12, color=INK, parse_math=False)
    add_caption(figure, caption)
    files = path_labels(files[:drawn], fit(_WIDTH, _FILE))
    for index in range(drawn):
        axes = figure.add_subplot(rows, columns, index + 1)
        wrong = is_known[index] and labels[index] != predictions[index]
        show_image(axes, images[index], framed=wrong)
        predicted, probability = names[predictions[index]], f"({probabilities[index]:.0%})"
        text = f"predicted {probability}:\n{predicted}" if line_break else f"predicted: {predicted} {probability}"
        text = f"✗ {text}" if wrong else text
        text = f"true: {names[labels[index]]}\n{text}" if is_known[index] else text
        axes.set_title(text, fontsize=_TEXT, color=RED if wrong else INK, parse_math=False)
        if files:
            axes.set_xlabel(files[index], fontsize=_FILE, color=INK, parse_math=False)
    return figure


def _name_classes(class_names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[int, str]:
    """Return the names of the classes that are drawn, by their numbers: of thousands, a few."""
    classes = sorted({*map(int, labels), *map(int, predictions)} - {UNKNOWN})
    most = fit(_WIDTH, _TEXT) - len("true: ")
    names = distinct_labels([class_names[number] for number in classes], most)
    return dict(zip(classes, map(isolated, names), strict=True))


def _check_classes(class_names: Sequence[str], *, labels: np.ndarray, predictions: np.ndarray) -> None:
    """Raise ValueError if labels and predictions differ in length, or one is not in 0..K-1."""
    if len(labels) != len(predictions):
        raise ValueError(
            f"draw_predictions: expected as many predictions as labels, got {len(predictions)} and {len(labels)}."
        )
    for name, classes in (("labels", labels), ("predictions", predictions)):
        if len(classes) and not 0 <= np.min(classes) <= np.max(classes) < len(class_names):
            raise ValueError(
                f"draw_predictions: expected {name} in 0..{len(class_names) - 1}, "
                f"got {np.min(classes)}..{np.max(classes)}."
            )


def draw_image_grid(rows: Sequence[Sequence[tuple[np.ndarray, str]]], headings: Sequence[str], *, title: str) -> Figure:
    """Draw rows of images, each with a caption below it.

    Args:
        rows: each as many (image uint8 [H, W, C] or float32 of 0..255, caption) as there are headings; images may
            differ in size, and are drawn equally large.
        headings: of the columns.
        title: of the whole figure.

    Raises:
        ValueError: a row has another length than `headings`.
    """
    if any(len(row) != len(headings) for row in rows):
        lengths = sorted({len(row) for row in rows})
        raise ValueError(f"draw_image_grid: expected {len(headings)} images in each row, got {lengths}.")
    figure = Figure(figsize=(1.9 * len(headings), 2.1 * len(rows) + 0.6), layout=make_layout())
    add_title(figure, label(title, 20 * len(headings)))
    captions = distinct_labels([caption for row in rows for _, caption in row], 30)
    for place, axes in enumerate(figure.subplots(len(rows), len(headings), squeeze=False).flat):
        row, column = divmod(place, len(headings))
        image, _ = rows[row][column]
        show_image(axes, np.clip(np.round(image), 0, 255).astype(np.uint8), framed=False)
        if not row:
            axes.set_title(headings[column], fontsize=9, color=INK, parse_math=False)
        axes.set_xlabel(captions[place], fontsize=7.5, color=INK, parse_math=False)
    return figure
