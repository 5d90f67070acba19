"""Figures of explanations: filters, feature maps, projections, heat over images, curves.

N images, H height, W width, C channels, F filters or feature maps, h and w their height and width, K classes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kpipe.figures.style import (
    BLUE,
    CAPTION,
    GREEN,
    INK,
    VERMILION,
    add_caption,
    label,
    make_layout,
    show_image,
    style_axes,
)

_INCH = 1.0  # of a small image
_MOST_FILTERS = 100
_HEAT = "magma"


def draw_filters(filters: np.ndarray, *, title: str, caption: str = "") -> Figure:
    """Draw the filters of a first convolution, each stretched to the whole range of gray or color.

    Args:
        filters: float [h, w, C, F]. Three channels are drawn in color, others as their mean in gray.
        title, caption: above and below.
    """
    shown = filters[..., :_MOST_FILTERS]
    columns = math.ceil(math.sqrt(shown.shape[-1] * 1.5))
    rows = math.ceil(shown.shape[-1] / columns)
    figure = _make_figure(columns * 0.7 * _INCH, rows * 0.7 * _INCH, title, caption)
    for place, axes in enumerate(np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).flat):
        axes.axis("off")
        if place < shown.shape[-1]:
            axes.imshow(_stretch(_to_picture(shown[..., place])), cmap="gray", interpolation="nearest")
    return figure


def draw_feature_maps(
    image: np.ndarray, maps: Mapping[str, np.ndarray], *, title: str, caption: str = "", most: int = 12
) -> Figure:
    """Draw an image and the feature maps that it excites most, a row for each layer.

    Args:
        image: [H, W, C], 0..255.
        maps: float [h, w, F] by the heading of the row, such as `low: conv1_1`.
        title, caption: above and below.
        most: feature maps in a row.
    """
    figure = _make_figure((most + 1) * _INCH, len(maps) * 1.2 * _INCH, title, caption)
    grid = figure.subplots(len(maps), most + 1, squeeze=False)
    for row, (heading, stack) in zip(grid, maps.items(), strict=True):
        _show(row[0], image)
        row[0].set_ylabel(label(heading, 24), fontsize=8, color=INK, parse_math=False)
        order = np.argsort(-stack.mean((0, 1)), kind="stable")[:most]
        for axes in row[1:]:
            axes.axis("off")
        for axes, number in zip(row[1:], order, strict=False):
            axes.imshow(stack[..., number], cmap=_HEAT, interpolation="nearest")
            axes.set_title(f"{number}", fontsize=7, color=CAPTION, pad=2)
    return figure


def draw_projections(
    maps: Sequence[int], projections: np.ndarray, patches: np.ndarray, *, title: str, caption: str = ""
) -> Figure:
    """Draw what has excited feature maps: for each, the projections of its strongest activations beside the patches.

    Args:
        maps: numbers of M feature maps.
        projections: float [M, n, h, w, C], of which 0 is drawn gray.
        patches: [M, n, h, w, C], 0..255, of the same places.
        title, caption: above and below.
    """
    side = math.ceil(math.sqrt(projections.shape[1]))
    columns = min(2, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = _make_figure(columns * side * 1.6 * _INCH, rows * (side * 0.8 * _INCH + 0.3), title, caption)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if place < len(maps):
            left = _tile(_around_gray(projections[place]), side)
            right = _tile(patches[place].astype(np.float32) / 255, side)
            gap = np.ones((left.shape[0], max(2, left.shape[1] // 30), left.shape[2]))
            axes.imshow(_to_picture(np.concatenate([left, gap, right], axis=1)), cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"feature map {maps[place]}", fontsize=8, color=INK, pad=3)
    return figure


def draw_heat(
    rows: Sequence[tuple[np.ndarray, str, Sequence[tuple[str, np.ndarray]]]],
    *,
    title: str,
    caption: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw images, and heat over each of them.

    Args:
        rows: (image [H, W, C] of 0..255, its caption, heats) each; a heat is (heading, float [h, w]) and is laid over
            the image. All rows have the same headings.
        title, caption: above and below.
        limits: the values of the darkest and the brightest heat; default: those of each heat.
    """
    columns = 1 + len(rows[0][2])
    wide = max(1.0, rows[0][0].shape[1] / rows[0][0].shape[0])
    figure = _make_figure(columns * 2.1 * wide * _INCH, len(rows) * 2.3 * _INCH, title, caption)
    for row, (image, text, heats) in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        _show(row[0], image)
        row[0].set_xlabel(label(text, 34), fontsize=8, color=INK, parse_math=False)
        height, width = image.shape[:2]
        for axes, (heading, heat) in zip(row[1:], heats, strict=True):
            axes.imshow(_to_gray(image), cmap="gray", vmin=0, vmax=255)
            smooth = "nearest" if heat.shape == (height, width) else "bilinear"
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            smallest, largest = limits or (None, None)
            axes.imshow(heat, cmap=_HEAT, alpha=0.6, extent=extent, interpolation=smooth, vmin=smallest, vmax=largest)
            axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            axes.spines[:].set_visible(False)
            if row is figure.axes or axes.get_subplotspec().is_first_row():
                axes.set_title(heading, fontsize=9, color=INK, parse_math=False)
    return figure


def draw_pictures(
    rows: Sequence[Sequence[tuple[np.ndarray, str]]], headings: Sequence[str], *, title: str, caption: str = ""
) -> Figure:
    """Draw rows of pictures, each with a line below it.

    Args:
        rows: (image [H, W, C] of 0..255, line) each.
        headings: of the rows.
        title, caption: above and below.
    """
    columns = max(map(len, rows))
    figure = _make_figure(columns * 1.7 * _INCH, len(rows) * 2.0 * _INCH, title, caption)
    for line, heading, row in zip(figure.subplots(len(rows), columns, squeeze=False), headings, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (image, text) in zip(line, row, strict=False):
            axes.axis("on")
            _show(axes, image)
            axes.set_xlabel(label(text, 26), fontsize=8, color=INK, parse_math=False)
        line[0].set_ylabel(heading, fontsize=9, color=INK, parse_math=False)
    return figure


def draw_invariance(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    examples: Mapping[str, np.ndarray],
    *,
    class_name: str,
    title: str,
    caption: str = "",
) -> Figure:
    """Draw how far features move, and how sure a network is, while an image is changed.

    Args:
        curves: (amounts, distances of the first layer, distances of the last, probabilities), each float [n], by the
            name of the change and its unit, such as `shift (pixels)`.
        examples: some of the changed images, [m, H, W, C] of 0..255, by the same names.
        class_name: of the probabilities.
        title, caption: above and below.
    """
    figure = _make_figure(11, len(curves) * 2.6, title, caption)
    grid = figure.subplots(len(curves), 4, squeeze=False)
    for row, (name, (amounts, low, high, probabilities)) in zip(grid, curves.items(), strict=True):
        show_image(row[0], _tile_row(examples[name]), framed=False)
        row[0].set_ylabel(name, fontsize=9, color=INK)
        for axes, values, heading, color in (
            (row[1], low, "first layer: distance", BLUE),
            (row[2], high, "last layer: distance", VERMILION),
            (row[3], probabilities, f"probability of {label(class_name, 18)}", GREEN),
        ):
            axes.plot(amounts, values, color=color, linewidth=1.8)
            style_axes(axes, title=heading, grid=True)
            axes.title.set_fontsize(9)
            axes.set_xlabel(name, fontsize=8, color=CAPTION)
            axes.set_ylim(0, 1.05 if axes is row[3] else None)
    return figure


def draw_receptive_fields(
    image: np.ndarray, boxes: Mapping[str, tuple[int, int, int, int]], *, title: str, caption: str = ""
) -> Figure:
    """Draw what the middle position of each layer sees of an image.

    Args:
        image: [H, W, C], 0..255.
        boxes: (top, left, height, width) in pixels by the name of the layer; parts may lie outside of the image.
        title, caption: above and below.
    """
    columns = min(6, len(boxes))
    rows = math.ceil(len(boxes) / columns)
    figure = _make_figure(columns * 1.7 * _INCH, rows * 2.0 * _INCH, title, caption)
    for axes in (grid := list(figure.subplots(rows, columns, squeeze=False).flat)):
        axes.axis("off")
    for axes, (name, (top, left, height, width)) in zip(grid, boxes.items(), strict=False):
        axes.axis("on")
        _show(axes, image)
        box = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=VERMILION, linewidth=1.8)
        axes.add_patch(box)
        axes.set_xlabel(f"{label(name, 20)}\n{height}x{width} pixels", fontsize=8, color=INK, parse_math=False)
    return figure


def _make_figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Make a figure for something of this size in inches."""
    figure = Figure(figsize=(max(5.5, width + 0.4), max(2.0, height + 0.9)), layout=make_layout())
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK, parse_math=False)
    add_caption(figure, caption)
    return figure


def _show(axes: Axes, image: np.ndarray) -> None:
    show_image(axes, np.clip(np.round(image), 0, 255).astype(np.uint8), framed=False)


def _to_picture(values: np.ndarray) -> np.ndarray:
    """Return [h, w, 3] of three channels; of others their mean, [h, w]."""
    return values if values.shape[-1] == 3 else values.mean(-1)


def _to_gray(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32).mean(-1)


def _stretch(values: np.ndarray) -> np.ndarray:
    """Return values from 0 to 1."""
    smallest, largest = values.min(), values.max()
    return (values - smallest) / (largest - smallest or 1.0)


def _around_gray(projections: np.ndarray) -> np.ndarray:
    """Return projections [n, h, w, C] as pixels of 0..1, of which 0.5 is no signal; each has its own contrast."""
    # A few pixels are far above all others.
    largest = np.quantile(np.abs(projections), 0.995, axis=(1, 2, 3), keepdims=True)
    return np.clip(0.5 + 0.5 * projections / np.maximum(largest, 1e-12), 0, 1)


def _tile(images: np.ndarray, side: int) -> np.ndarray:
    """Return images [n, h, w, C] as one of `side` rows and columns, with white between them and where none is left."""
    padded = np.pad(images, ((0, side * side - len(images)), (0, 0), (0, 0), (0, 0)), constant_values=1.0)
    line = max(1, padded.shape[1] // 20)
    padded = np.pad(padded, ((0, 0), (0, line), (0, line), (0, 0)), constant_values=1.0)
    rows = [np.concatenate(list(padded[start : start + side]), axis=1) for start in range(0, side * side, side)]
    return np.concatenate(rows, axis=0)[:-line, :-line]


def _tile_row(images: np.ndarray) -> np.ndarray:
    """Return up to four images [m, H, W, C] as one, two by two: uint8."""
    pixels = np.clip(np.round(images[:4]), 0, 255) / 255
    return np.round(255 * _tile(pixels, 2)).astype(np.uint8)
