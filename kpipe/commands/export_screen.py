"""The screen of `kpipe export`: each file, how exactly it computes what the network computes, and how it is used."""

from collections.abc import Sequence
from pathlib import Path

from kpipe.catalog.formats import FORMATS, NEEDS_KPIPE, PAGE
from kpipe.console import Screen, counted, describe_size
from kpipe.exporting.card import Exported, describe_int8
from kpipe.names import from_here


def show_exports(exports: Sequence[Exported], screen: Screen | None = None) -> None:
    """Print what `export` returns.

    Args:
        exports: one or more, of one network.
        screen: default: standard output.
    """
    screen = screen or Screen()
    card = exports[0].card
    size = "x".join(map(str, (*card["images"]["image_size"], card["input"]["shape"][-1])))
    classes = counted(len(card["classes"]), "class")
    screen.line(f"{from_here(exports[0].model)}: images {size}, {classes}", style="bold")
    for each in exports:
        _show(each, screen)
    if "code" in card["images"]:
        page = from_here(exports[0].path.with_name(PAGE))
        screen.prose("`images` is float32 [batch, height, width, channels], 0 to 255. Lines that read them from files:")
        screen.line(f"  {page}")
    screen.prose(
        f"Checked on {card['checks']['images']}, each file in its own runtime. The difference is the largest between "
        f"the logits and the network's, relative to the largest logit; at most {card['checks']['bound']:g} is accepted."
    )


def _show(exported: Exported, screen: Screen) -> None:
    card, checks = exported.card, exported.card["checks"]
    size, difference = describe_size(exported.size), f"{checks['difference']:.1e}"
    needs = NEEDS_KPIPE if NEEDS_KPIPE in card["code"] else ""
    where = ", loads where kpipe is installed" if needs else ""
    screen.prose(f"  {exported.format:<12} {size}, differs by {difference} ({checks['runtime']}){where}", indent=15)
    if exported.replaced:
        screen.prose(f"{'':<15}replaces the export of {exported.replaced}", indent=15)
    _show_code(exported.format, exported.path, needs, screen)
    if int8 := checks.get("int8"):
        screen.prose(f"  {'int8':<12} {int8['file']}, {describe_int8(int8)}", indent=15)
        _show_code(exported.format, exported.path.with_name(int8["file"]), "", screen)


def _show_code(name: str, path: Path, needs: str, screen: Screen) -> None:
    for line in FORMATS[name].code(from_here(path), needs):
        screen.line(f"{'':<15}{line}")
