"""Figures of explanations: filters, feature maps, projections, heat over images, curves.

N images, H height, W width, C channels, F filters or feature maps, h and w their height and width, K classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, MultipleLocator

from kpipe.figures.labels import distinct_labels, fit, label, two_lines, wrap
from kpipe.figures.style import (
    BLUE,
    CAPTION,
    FAINT,
    GREEN,
    GRID,
    INK,
    VERMILION,
    add_caption,
    add_title,
    find_aspect,
    is_sequence,
    make_layout,
    show_image,
    style_axes,
)

_INCH = 1.0  # of a small image
_MOST_FILTERS = 100
_WIDEST = 24  # inches, of a row of wide images
_HEAT = "magma"


def draw_filters(filters: np.ndarray, *, caption: str = "") -> Figure:
    """Draw the filters of a first convolution, each stretched to the whole range of gray or color.

    Args:
        filters: float [h, w, C, F]. Three channels are drawn in color, others as their mean in gray, but those of a
            sequence side by side. Of more than 100 filters the first 100 are drawn, and the caption says so.
        caption: below.
    """
    height, width, _, count = filters.shape
    title = f"Filters of the first convolution: {count} of {height}x{width}"
    shown = filters[..., :_MOST_FILTERS]
    if shown.shape[-1] < filters.shape[-1]:
        drawn = f"the first {shown.shape[-1]} of {filters.shape[-1]}"
        caption = f"{drawn} · {caption}" if caption else drawn
    columns = math.ceil(math.sqrt(shown.shape[-1] * 1.5))
    rows = math.ceil(shown.shape[-1] / columns)
    side = min(max(4 / columns, 0.7), 1.1) * _INCH
    figure = _make_figure(columns * side, rows * side, title, caption, least=3.6)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[shown.shape[-1] :]:
        axes.axis("off")
    for axes, picture in zip(grid, _to_pictures(np.moveaxis(shown, -1, 0)), strict=False):
        axes.imshow(_stretch(_to_picture(picture)), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        # White pixels would vanish into the page.
        axes.spines[:].set(color=FAINT, linewidth=0.6)
    return figure


def draw_feature_maps(
    image: np.ndarray, maps: Mapping[str, np.ndarray], *, title: str, caption: str = "", most: int = 12
) -> Figure:
    """Draw an image and the feature maps that it excites most, a row for each layer, each row on one scale.

    Args:
        image: [H, W, C], 0..255.
        maps: float [h, w, F] by the heading of the row, such as `low: conv1_1`.
        title, caption: above and below.
        most: feature maps in a row.
    """
    most = min(most, max(stack.shape[-1] for stack in maps.values()))
    figure = _make_figure((most + 1) * _INCH, len(maps) * 1.2 * _INCH, title, caption)
    grid = figure.subplots(len(maps), most + 1, squeeze=False)
    headings = two_lines([heading.replace(": ", ":\n", 1) for heading in maps], fit(1.0, 8))
    for row, heading, stack in zip(grid, headings, maps.values(), strict=True):
        _show(row[0], image)
        row[0].set_ylabel(heading, fontsize=8, color=INK, parse_math=False)
        order = np.argsort(-stack.mean((0, 1)), kind="stable")[:most]
        smallest, largest = _find_limits(stack[..., order])
        aspect = find_aspect(*stack.shape[:2])
        for axes in row[1:]:
            axes.axis("off")
        for axes, number in zip(row[1:], order, strict=False):
            look = {"cmap": _HEAT, "interpolation": "nearest", "aspect": aspect}
            axes.imshow(stack[..., number], vmin=smallest, vmax=largest, **look)
            axes.set_title(f"{number}", fontsize=7, color=CAPTION, pad=2)
    return figure


def draw_projections(
    maps: Sequence[int], projections: np.ndarray, patches: np.ndarray, *, title: str, caption: str = ""
) -> Figure:
    """Draw what has excited feature maps: for each, the projections of its strongest activations beside the patches.

    Args:
        maps: numbers of M feature maps.
        projections: float [M, n, h, w, C], of which 0 is drawn gray. Three channels are drawn in color, others as their
            mean. NaN is drawn white, for an activation that is missing.
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
            left = _tile(_around_gray(_to_pictures(projections[place])), side)
            right = _to_pictures(patches[place].astype(np.float32) / 255)
            right = _tile(np.where(np.isnan(right), 1.0, right), side)
            gap = np.ones((left.shape[0], max(2, left.shape[1] // 30), left.shape[2]))
            picture = _to_picture(np.concatenate([left, gap, right], axis=1))
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=find_aspect(*picture.shape[:2]))
            axes.set_title(f"feature map {maps[place]}", fontsize=8, color=INK, pad=3)
    return figure


@dataclass(frozen=True, eq=False)
class Heat:
    """What is laid over an image."""

    heading: str
    values: np.ndarray
    """float [h, w]."""
    limits: tuple[float, float] | None = None
    """Values of the darkest and the brightest heat; None: 0 or the smallest value, and the largest."""
    extent: tuple[float, float, float, float] | None = None
    """(left, right, bottom, top) in pixels of the image; None: the whole image."""
    smooth: bool | None = None
    """Whether it is interpolated; None: where its size is not that of the image."""
    text: str | None = None
    """What stands below; None: the limits."""


def draw_heat(rows: Sequence[tuple[np.ndarray, str, Sequence[Heat]]], *, title: str, caption: str = "") -> Figure:
    """Draw images, and heat over each of them.

    Args:
        rows: (image [H, W, C] of 0..255, its caption, heats) each. All rows have the same headings.
        title, caption: above and below.
    """
    columns = 1 + len(rows[0][2])
    wide = min(max(1.0, rows[0][0].shape[1] / rows[0][0].shape[0]), _WIDEST / (columns * 2.1))
    figure = _make_figure(columns * 2.1 * wide * _INCH, len(rows) * 2.5 * _INCH, title, caption)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    texts = two_lines([text for _, text, _ in rows], fit(2.0 * wide, 8))
    headings = two_lines([heat.heading for heat in rows[0][2]], fit(2.0 * wide, 9))
    for axes, heading in zip(grid[0][1:], headings, strict=True):
        axes.set_title(heading, fontsize=9, color=INK, parse_math=False)
    for row, text, (image, _, heats) in zip(grid, texts, rows, strict=True):
        _show(row[0], image)
        row[0].set_xlabel(text, fontsize=8, color=INK, parse_math=False)
        for axes, heat in zip(row[1:], heats, strict=True):
            _lay_over(axes, image, heat)
    return figure


def _lay_over(axes: Axes, image: np.ndarray, heat: Heat) -> None:
    """Draw heat over an image in gray."""
    _show(axes, image if is_sequence(image) else image.astype(np.float32).mean(-1, keepdims=True))
    height, width = image.shape[:2]
    smallest, largest = heat.limits or _find_limits(heat.values)
    smooth = heat.values.shape != (height, width) if heat.smooth is None else heat.smooth
    axes.imshow(
        heat.values,
        cmap=_HEAT,
        alpha=0.6,
        extent=heat.extent or _extent_of(image),
        interpolation="bilinear" if smooth else "nearest",
        aspect=find_aspect(height, width),
        vmin=smallest,
        vmax=largest,
    )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    below = f"{smallest:.3g} to {largest:.3g}" if heat.text is None else wrap(heat.text, 2.0, 7)
    axes.set_xlabel(below, fontsize=7, color=CAPTION, parse_math=False)


def draw_pictures(
    rows: Sequence[Sequence[tuple[np.ndarray, str]]], headings: Sequence[str], *, title: str, caption: str = ""
) -> Figure:
    """Draw rows of pictures, each with one or two lines below it.

    Args:
        rows: (image [H, W, C] of 0..255, text) each.
        headings: of the rows.
        title, caption: above and below.
    """
    columns = max(map(len, rows))
    figure = _make_figure(columns * 1.7 * _INCH, len(rows) * 2.1 * _INCH, title, caption)
    texts = iter(two_lines([text for row in rows for _, text in row], fit(1.6, 8)))
    for line, heading, row in zip(figure.subplots(len(rows), columns, squeeze=False), headings, rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (image, _) in zip(line, row, strict=False):
            axes.axis("on")
            _show(axes, image)
            axes.set_xlabel(next(texts), fontsize=8, color=INK, parse_math=False)
        line[0].set_ylabel(wrap(heading, 1.5, 9), fontsize=9, color=INK, parse_math=False)
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
        curves: (amounts, distances of the first layer, distances of the last hidden one, probabilities), each float
            [n], by the name of the change and its unit, such as `shift (pixels)`.
        examples: some of the changed images, [m, H, W, C] of 0..255, by the same names.
        class_name: of the probabilities.
        title, caption: above and below.
    """
    figure = _make_figure(11, len(curves) * 2.6, title, caption)
    grid = figure.subplots(len(curves), 4, squeeze=False)
    for row, (name, (amounts, low, high, probabilities)) in zip(grid, curves.items(), strict=True):
        show_image(row[0], _tile_row(examples[name]), framed=False)
        row[0].set_ylabel(wrap(name, 2.1, 9), fontsize=9, color=INK, parse_math=False)
        for axes, values, heading, color in (
            (row[1], low, "first layer: distance", BLUE),
            (row[2], high, "last hidden layer: distance", VERMILION),
            (row[3], probabilities, f"probability of {label(class_name, 18)}", GREEN),
        ):
            # A line of one point is nothing, and one of two hides how few they are.
            axes.plot(amounts, values, color=color, linewidth=1.8, marker="o" if len(amounts) < 3 else "")
            style_axes(axes, title=wrap(heading, 2.2, 9, bold=True), grid=True)
            axes.title.set_fontsize(9)
            axes.set_xlabel(wrap(name, 2.2, 8), fontsize=8, color=CAPTION, parse_math=False)
            axes.set_ylim(0, 1.05 if axes is row[3] else None)
            if "degrees" in name:
                axes.xaxis.set_major_locator(MultipleLocator(90))
            elif "pixels" in name:
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def draw_receptive_fields(
    image: np.ndarray, boxes: Mapping[str, tuple[int, int, int, int]], *, title: str, caption: str = ""
) -> Figure:
    """Draw what the middle position of each layer sees of an image.

    Args:
        image: [H, W, C], 0..255.
        boxes: (top, left, height, width) in pixels by the name of the layer; what lies outside of the image
            is drawn gray.
        title, caption: above and below.
    """
    columns = min(6, len(boxes))
    rows = math.ceil(len(boxes) / columns)
    figure = _make_figure(columns * 1.7 * _INCH, rows * 2.0 * _INCH, title, caption)
    for axes in (grid := list(figure.subplots(rows, columns, squeeze=False).flat)):
        axes.axis("off")
    names = distinct_labels(boxes, fit(1.6, 8))
    for axes, name, (top, left, height, width) in zip(grid, names, boxes.values(), strict=False):
        axes.axis("on")
        _show(axes, image)
        box = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=VERMILION, linewidth=1.8)
        box.set_clip_on(False)  # half of the line at an edge would be cut off
        axes.add_patch(box)
        right, bottom = max(image.shape[1], left + width) - 0.5, max(image.shape[0], top + height) - 0.5
        axes.set(xlim=(min(0, left) - 0.5, right), ylim=(bottom, min(0, top) - 0.5), facecolor=GRID)
        axes.set_xlabel(f"{name}\n{height}x{width} pixels", fontsize=8, color=INK, parse_math=False)
    return figure


def _make_figure(width: float, height: float, title: str, caption: str, *, least: float = 5.5) -> Figure:
    """Make a figure for something of this size in inches, at least this wide."""
    figure = Figure(figsize=(max(least, width + 0.4), max(2.0, height + 0.9)), layout=make_layout())
    add_title(figure, title)
    add_caption(figure, caption)
    # Further lines get room of their own.
    lines = 0.2 * figure.get_suptitle().count("\n") + 0.15 * figure.get_supxlabel().count("\n")
    figure.set_figheight(figure.get_figheight() + lines)
    return figure


def _show(axes: Axes, image: np.ndarray) -> None:
    """Show an image; the axes count its pixels, also where a sequence is drawn as wide as it has channels."""
    show_image(axes, np.clip(np.round(image), 0, 255).astype(np.uint8), framed=False)
    axes.images[-1].set_extent(_extent_of(image))
    axes.set_aspect(find_aspect(*image.shape[:2]))


def _extent_of(image: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, right, bottom and top of an image [H, W, C] in pixels."""
    return -0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5


def _find_limits(values: np.ndarray) -> tuple[float, float]:
    """Return the values of the darkest and the brightest heat: of a constant positive heat, all is bright."""
    known = values[np.isfinite(values)]
    smallest = min(0.0, float(known.min(initial=0.0)))
    largest = float(known.max()) if known.size else 0.0
    return smallest, max(largest, smallest + 1e-12)


def _to_pictures(images: np.ndarray) -> np.ndarray:
    """Return [n, h, w, 3] of three channels, of others their mean, [n, h, w, 1]; sequences as [n, L, C, 1]."""
    if is_sequence(images) and images.shape[1] > 1:
        return np.swapaxes(images, 2, 3)
    return images if images.shape[-1] == 3 else images.mean(-1, keepdims=True)


def _to_picture(values: np.ndarray) -> np.ndarray:
    """Return [h, w, 3] of three channels; of others their mean, [h, w]."""
    return values if values.shape[-1] == 3 else values.mean(-1)


def _stretch(values: np.ndarray) -> np.ndarray:
    """Return values from 0 to 1."""
    smallest, largest = values.min(), values.max()
    return (values - smallest) / (largest - smallest or 1.0)


def _around_gray(projections: np.ndarray) -> np.ndarray:
    """Return projections [n, h, w, C] as pixels of 0..1, each with its own contrast: 0.5 is no signal, NaN is 1."""
    sizes = np.abs(np.nan_to_num(projections))
    # A few pixels are far above all others; if only these are not 0, the largest counts.
    largest = np.quantile(sizes, 0.995, axis=(1, 2, 3), keepdims=True)
    largest = np.where(largest > 0, largest, sizes.max((1, 2, 3), keepdims=True))
    pixels = np.clip(0.5 + 0.5 * projections / np.maximum(largest, 1e-12), 0, 1)
    return np.where(np.isnan(pixels), 1.0, pixels)


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
    pixels = _to_pictures(pixels) if is_sequence(pixels) else pixels
    return np.round(255 * _tile(pixels, 2)).astype(np.uint8)
