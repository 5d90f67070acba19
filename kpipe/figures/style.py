"""The look of figures: colors, fonts, margins and captions. Also how they are saved."""

import functools
import math
import re
import textwrap
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from kpipe.files import REFUSALS
from kpipe.layout import OWN_MARK
from kpipe.names import printable, quoted, shorten

_DPI = 150
_POINTS_PER_INCH = 72
_CHARACTER, _BOLD = 0.6, 0.7  # em: the width of an average character of the default font, at most
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


def distinct_labels(names: Iterable[str], most: int) -> list[str]:
    """Return the names of a figure as `label` does, but different names stay different.

    Args:
        names: of classes, files or layers.
        most: characters of each; fewer where some are as wide as Chinese ones.
    """
    names = list(names)
    return _label_distinctly(names, _narrow("".join(names), most))


def _narrow(text: str, most: int) -> int:
    """Return how many characters fit where `most` of average width do."""
    return max(4, most // 2) if any(unicodedata.east_asian_width(each) in "WF" for each in text) else most


def _label_distinctly(names: Sequence[str], most: int) -> list[str]:
    different = list(dict.fromkeys(names))
    labels = {name: label(name, most) for name in different}
    groups: dict[str, list[str]] = {}
    for name in different:
        groups.setdefault(labels[name], []).append(name)
    for group in groups.values():
        if len(group) > 1:
            texts = [label(name, len(printable(name)) + 2) for name in group]
            labels.update(zip(group, _shorten_around_difference(texts, most), strict=True))
    _number_equal(labels, most)
    return [labels[name] for name in names]


def _shorten_around_difference(texts: Sequence[str], most: int) -> list[str]:
    """Return of each text the words that the texts do not share, and what fits of the words before these."""
    split = [re.split(r"(?<=[ _-])", text) for text in texts]
    fewest = min(map(len, split))
    start = next((place for place in range(fewest) if len({words[place] for words in split}) > 1), fewest)
    ends = range(fewest - start)
    end = next((place for place in ends if len({words[-1 - place] for words in split}) > 1), len(ends))
    shortened = []
    for words in split:
        before, middle = "".join(words[:start]), "".join(words[start : len(words) - end]).rstrip(" _-")
        closing = "…" if end else ""
        room = most - len(middle) - len(closing) - 2
        head = before if len(before) <= room + 2 else "".join(_first_words(words, room)).rstrip(" _-") + "…"
        shortened.append(shorten(f"{head}{middle}{closing}", most))
    return shortened


def _first_words(words: Sequence[str], most: int) -> Sequence[str]:
    lengths = [len("".join(words[: count + 1])) for count in range(len(words))]
    return words[: sum(length <= most + 1 for length in lengths)]


def _number_equal(labels: dict[str, str], most: int) -> None:
    """Number labels that are still equal."""
    counts, taken = Counter(labels.values()), set(labels.values())
    for name, text in labels.items():
        if counts[text] > 1:
            endings = (f" ({number})" for number in range(1, len(labels) * 2 + 1))
            new = (shorten(text, most - len(ending)) + ending for ending in endings)
            labels[name] = next(each for each in new if each not in taken)
            taken.add(labels[name])


def two_lines(texts: Iterable[str], most: int) -> list[str]:
    """Return captions of at most two lines of `most` characters; different ones stay different.

    Args:
        texts: captions; a line break in one stays where it is.
        most: characters of a line.
    """
    texts = list(texts)
    most = _narrow("".join(texts), most)
    parts = [text.partition("\n") for text in texts]
    above = _label_distinctly([first for first, line_break, _ in parts if line_break], most)
    below = _label_distinctly([" ".join(rest.split()) for _, line_break, rest in parts if line_break], most)
    # Words do not fill a line to its end.
    whole = iter(_label_distinctly([first for first, line_break, _ in parts if not line_break], most * 7 // 4))
    broken = iter(zip(above, below, strict=True))
    return ["\n".join(next(broken)) if line_break else _break(next(whole), most) for _, line_break, _ in parts]


def _break(text: str, most: int) -> str:
    """Break a text of less than two lines, between words where that is enough."""
    lines = textwrap.wrap(text, most)
    return "\n".join(lines if len(lines) <= 2 else [text[:most], text[most:]])


def fit(inches: float, size: float) -> int:
    """Return how many characters of a size in points fit in a width."""
    return max(4, int(inches * _POINTS_PER_INCH / (_CHARACTER * size)))


def wrap(text: str, inches: float, size: float, *, bold: bool = False) -> str:
    """Return a text of which no line is wider than this; parts of a broken line are about equally long."""
    most = _narrow(text, max(4, int(inches * _POINTS_PER_INCH / ((_BOLD if bold else _CHARACTER) * size))))
    return "\n".join(_break_evenly(line, most) for line in text.split("\n"))


def _break_evenly(line: str, most: int) -> str:
    count = math.ceil(len(line) / most)
    for width in range(math.ceil(len(line) / max(1, count)), most + 1):
        lines = textwrap.wrap(line, max(1, width))
        if len(lines) <= count:
            return "\n".join(lines)
    return textwrap.fill(line, most)


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
