"""The look of figures: colors, fonts, margins and captions. Also how they are saved."""

import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from kpipe.errors import first_line
from kpipe.figures.labels import wrap
from kpipe.files import REFUSALS
from kpipe.layout import OWN_MARK
from kpipe.names import shorten

_DPI = 150
_TITLE, _CAPTION = 12, 8  # points
INK, CAPTION, FAINT, GRID = "#222222", "#666666", "#9a9a9a", "#e6e6e6"
# Of Okabe and Ito's palette: told apart under every common color blindness.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
# Red alone says nothing to some readers, so a wrong prediction also gets a frame and a cross.
RED = "#C1121F"
_SCRIPTS = (
    "Noto Sans CJK",
    "Source Han Sans",
    "WenQuanYi",
    "Microsoft YaHei",
    "PingFang",
    "Hiragino Sans",
    "Yu Gothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Noto Sans Devanagari",
    "Noto Sans Arabic",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
    "Nirmala UI",
    "Kohinoor",
    "Arial Unicode MS",
)
"""How the names of families begin that have scripts which the default font of Matplotlib lacks."""
_undrawn: set[str] = set()


def save_figure(figure: Figure, path: str | PathLike) -> None:
    """Write a figure to a PNG file of 150 dpi, with other fonts for characters that the default font lacks.

    Args:
        figure: what a `draw_*` function returned.
        path: the file; its folder exists.

    Raises:
        OSError: the file cannot be written.
    """
    lacking = _save(figure, path)
    if lacking and (families := _find_further_families()):
        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), *families])
        lacking = _save(figure, path)
    _undrawn.update(lacking)


def _save(figure: Figure, path: str | PathLike) -> set[str]:
    """Write a figure, and return the characters that are drawn as boxes because no font has them."""
    lacking = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, format="png", dpi=_DPI, facecolor="white", metadata={"Software": OWN_MARK.decode()})
    for each in caught:
        if glyph := re.match(r"Glyph (\d+) .*missing from", str(each.message)):
            lacking.add(chr(int(glyph[1])))
        elif not str(each.message).startswith("Matplotlib currently does not support"):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return lacking


@functools.cache
def _find_further_families() -> list[str]:
    """Return the families of _SCRIPTS that are installed."""
    # Matplotlib keeps its list of fonts; what has been installed since is not on it.
    known = {Path(font.fname).name for font in font_manager.fontManager.ttflist}
    prefixes = tuple(family.replace(" ", "") for family in _SCRIPTS)
    for file in font_manager.findSystemFonts():
        name = Path(file)
        if name.name not in known and name.name.startswith(prefixes) and name.stem.endswith(("-Regular", "-Bold")):
            with suppress(Exception):  # a damaged font, of which FreeType says so in many ways
                font_manager.fontManager.addfont(file)
    names = sorted({font.name for font in font_manager.fontManager.ttflist})
    return [name for family in _SCRIPTS for name in names if name.startswith(family)]


def describe_undrawn() -> str | None:
    """Return a note on the characters that no font had since the last call; None: there were none."""
    if not _undrawn:
        return None
    characters = "".join(sorted(_undrawn))
    _undrawn.clear()
    return (
        f"no font has the characters {shorten(characters, 40)}, so figures show boxes. Install a font that has them, "
        "such as fonts-noto-cjk (Chinese, Japanese, Korean) or fonts-noto-core of Debian and Ubuntu"
    )


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
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect=find_aspect(*pixels.shape[:2]))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=framed, color=RED, linewidth=2)


def find_aspect(height: float, width: float) -> str:
    """Return how matplotlib draws pixels: squares, but a long picture fills its axes."""
    # A long sequence, drawn in square pixels, would be a hairline.
    return "equal" if max(height, width) <= 4 * min(height, width) else "auto"


def is_sequence(image: np.ndarray) -> bool:
    """Return whether an image [..., H, 1, C] is a sequence of characters, each a row of channels."""
    return image.shape[-2] == 1 and image.shape[-1] > 3


def _displayable(image: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W] or [H, W, 3] of uint8 [H, W, C]; of two channels, the missing third is black.

    A sequence of one-hot characters, [L, 1, V], becomes the gray image [L, V].
    """
    if image.shape[-1] == 1:
        return image[..., 0]
    if is_sequence(image):
        return image[:, 0, :]
    channels = image[..., :3]
    return np.pad(channels, ((0, 0), (0, 0), (0, 3 - channels.shape[-1])))


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3] of an image as `show_image` shows it."""
    pixels = _displayable(image)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def make_layout() -> ConstrainedLayoutEngine:
    """Return the layout of a figure; one engine serves one figure."""
    return ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches; the default margin is too narrow


def add_title(figure: Figure, text: str) -> None:
    """Write the title of a whole figure, on as many lines as its width asks for."""
    text = wrap(text, figure.get_figwidth() - 0.2, _TITLE, bold=True)
    figure.suptitle(text, fontsize=_TITLE, fontweight="bold", color=INK, parse_math=False)


def add_caption(figure: Figure, text: str) -> None:
    """Write what a figure was drawn from below it, on as many lines as its width asks for."""
    if text:
        text = wrap(text, figure.get_figwidth() - 0.2, _CAPTION)
        figure.supxlabel(text, fontsize=_CAPTION, color=CAPTION, parse_math=False)


def style_axes(axes: Axes, *, title: str, grid: bool) -> None:
    """Set the title, and leave no more lines than a reader needs."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, parse_math=False)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    if grid:
        axes.spines["bottom"].set(visible=True, color=FAINT)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
