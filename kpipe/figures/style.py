"""The look of figures: colors, fonts, margins and captions. Also how they are saved."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kpipe.errors import first_line
from kpipe.files import REFUSALS
from kpipe.layout import OWN_MARK
from kpipe.names import printable, quoted, shorten

_DPI = 150
INK, CAPTION, FAINT, GRID = "#222222", "#666666", "#9a9a9a", "#e6e6e6"
# Of Okabe and Ito's palette: told apart under every common color blindness.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
# Red alone says nothing to some readers, so a wrong prediction also gets a frame and a cross.
RED = "#C1121F"


def save_figure(figure: Figure, path: str | PathLike) -> None:
    """Write a figure to a PNG file of 150 dpi.

    Args:
        figure: what a `draw_*` function returned.
        path: the file; its folder exists.

    Raises:
        OSError: the file cannot be written.
    """
    with warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes. That is no reason to warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font|Matplotlib currently does not support")
        figure.savefig(path, format="png", dpi=_DPI, facecolor="white", metadata={"Software": OWN_MARK.decode()})


@contextmanager
def noting_failures(failures: list[str], folder: Path, *names: str) -> Iterator[None]:
    """Draw and save figures inside the `with`, of something that is finished and worth more than they are.

    Args:
        failures: gets a line for the user if the figures cannot be drawn.
        folder: where they are saved.
        names: of their files in the folder. After a failure, those that are there are removed: they show less.

    Raises:
        OSError: the disk refuses what is written.
    """
    try:
        yield
    except Exception as error:  # of any kind: fonts, sizes, names, memory
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise
        for name in names:
            with suppress(OSError):
                (folder / name).unlink()
        failures.append(f"{', '.join(names)} could not be drawn: {first_line(error)}")


def show_image(axes: Axes, image: np.ndarray, *, framed: bool) -> None:
    """Show uint8 [H, W, C] without ticks, in a red frame if `framed`."""
    pixels = _displayable(image)
    height, width = pixels.shape[:2]
    # A long sequence, drawn in square pixels, would be a hairline.
    aspect = "equal" if max(height, width) <= 4 * min(height, width) else "auto"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect=aspect)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=framed, color=RED, linewidth=2)


def _displayable(image: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W] or [H, W, 3] of uint8 [H, W, C]; of two channels, the missing third is black.

    A sequence of one-hot characters, [L, 1, V], becomes the gray image [L, V].
    """
    if image.shape[-1] == 1:
        return image[..., 0]
    if image.shape[1] == 1 and image.shape[-1] > 3:
        return image[:, 0, :]
    channels = image[..., :3]
    return np.pad(channels, ((0, 0), (0, 0), (0, 3 - channels.shape[-1])))


def label(name: str, most: int) -> str:
    """Return the name of a class on one line of at most `most` characters; one of spaces alone is put in quotes."""
    text = printable(name)
    return _shorten_between_words(quoted(text) if text.isspace() else " ".join(text.split()), most)


def _shorten_between_words(text: str, most: int) -> str:
    """Return text of at most `most` characters without the words in its middle: `German … pointer`.

    Names often differ at their end, so words of both ends stay. A first word that is too long is cut itself.
    """
    if len(text) <= most:
        return text
    words = re.split(r"(?<=[ _-])", text)  # each with what stands between it and the next
    head, tail = "", ""
    for number in range(len(words)):
        longer = (head + words[number // 2], tail) if number % 2 == 0 else (head, words[-1 - number // 2] + tail)
        if len(" … ".join(longer)) > most:
            break
        head, tail = longer
    return f"{head.rstrip(' _-')} … {tail}".rstrip() if head else shorten(text, most)


def make_layout() -> ConstrainedLayoutEngine:
    """Return the layout of a figure; one engine serves one figure."""
    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches; the default margin is too narrow


def add_caption(figure: Figure, text: str) -> None:
    """Write what a figure was drawn from below it, on as many lines as its width asks for."""
    if text:
        figure.supxlabel(text, fontsize=8, color=CAPTION, wrap=True, parse_math=False)


def style_axes(axes: Axes, *, title: str, grid: bool) -> None:
    """Set the title, and leave no more lines than a reader needs."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    if grid:
        axes.spines["bottom"].set(visible=True, color=FAINT)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
