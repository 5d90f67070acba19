"""The screen of `kpipe export`: each file, how exactly it computes what the network computes, and how it is used."""

from collections.abc import Sequence

from kpipe.catalog.formats import FORMATS, NEEDS_KPIPE
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
    screen.prose(
        f"Checked on {card['checks']['images']}, each file in its own runtime. The difference is the largest between "
        f"the logits and the network's, relative to the largest logit; at most {card['checks']['bound']:g} is accepted."
    )


def _show(exported: Exported, screen: Screen) -> None:
    card, checks = exported.card, exported.card["checks"]
    size, difference = describe_size(exported.size), f"{checks['difference']:.1e}"
    needs = ", loads where kpipe is installed" if NEEDS_KPIPE in card["code"] else ""
    screen.prose(f"  {exported.format:<12} {size}, differs by {difference} ({checks['runtime']}){needs}", indent=15)
    for line in FORMATS[exported.format].code(from_here(exported.path)):
        screen.line(f"{'':<15}{line}")
    if int8 := checks.get("int8"):
        screen.prose(f"  {'int8':<12} {int8['file']}, {describe_int8(int8)}", indent=15)
