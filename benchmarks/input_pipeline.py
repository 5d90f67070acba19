"""What it costs to feed a network: CPU seconds of kpipe's pipeline, and of what else one would write.

    python benchmarks/input_pipeline.py [--only WORK ...] [--folder DIR] [--repetitions N] [--quick] [--json FILE]

`pip install -e ".[bench]"` installs the libraries that kpipe is compared with. Each variant of a work has a process of
its own, in which everything is built, traced and compiled before the first measurement. Then the variants take turns,
one at a time. What counts is CPU time, of all threads and of worker processes: even where a fast device hides the wall
time of the input, the input takes CPU cores from the training.

`--json` writes `{"date", "hardware", "versions", "rows"}` with medians, and beside them the seconds of each repetition
in the order in which they were measured.
"""

import argparse
import importlib.util
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from report import write_json
from rich.console import Console
from rich.table import Table
from turns import Turns, VariantProcess, take_turns

from kpipe.streams import hold_back_libraries

LIBRARIES = {"torch": "torch", "torch_workers": "torch", "numba": "numba"}
"""The library that a variant needs and kpipe does not."""


@dataclass(frozen=True)
class Work:
    """What is done to images, and by whom.

    Attributes:
        batch_size: images in a batch.
        num_batches: how many batches one measurement handles.
        variants: names of ways to do it, see `input_variants.py`.
        targets: how many times the CPU time of kpipe a variant should take, at least. In training there is a target for
            kpipe alone: the fraction of the CPU time that its input should take, at most.
    """

    batch_size: int
    num_batches: int
    variants: tuple[str, ...]
    targets: dict[str, float] = field(default_factory=dict)


SMALL = ("kpipe", "naive", "autotune", "keras_layers")
JPEG = ("kpipe", "naive", "torch", "torch_workers")
LAYER = Work(32, 12, ("kpipe", "keras_layers"), {"keras_layers": 5})
WORKS = {
    "augment32": Work(
        256, 195, (*SMALL, "torch", "torch_workers", "numba", "limit"), {"naive": 12, "torch": 5, "numba": 0.5}
    ),
    "train_lenet5_b256": Work(256, 60, (*SMALL, "limit"), {"kpipe": 0.10}),
    "train_vgg16": Work(128, 4, (*SMALL, "limit"), {"kpipe": 0.01}),
    "jpeg224_first_epoch": Work(32, 20, JPEG, {"naive": 1.4}),
    "jpeg224_later_epochs": Work(32, 20, JPEG, {"naive": 13}),
    "list_130k": Work(130_000, 1, ("kpipe", "image_folder"), {"image_folder": 1 / 3}),
    "color_jitter224": LAYER,
    "rotate224": LAYER,
    "rand_augment224": LAYER,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def serve(turns: Turns, name: str, variant: str, folder: Path, quick: bool) -> None:
    """Get one variant ready, in a process of its own, and let it handle its batches at each of its turns."""
    with hold_back_libraries():
        from input_variants import make_run

        work = WORKS[name]
        run, num_batches = make_run(name, variant, work.batch_size, folder), _count_batches(work, quick)
        run(max(2, num_batches // 5))  # warms up
        turns.begin()
        while True:
            run(num_batches)
            turns.end()


def _count_batches(work: Work, quick: bool) -> int:
    return max(1, work.num_batches // 10) if quick else work.num_batches


def measure(name: str, folder: Path, repetitions: int, quick: bool) -> list[dict]:
    """Measure the variants of one work by turns; return a row of each, with all repetitions beside their medians."""
    with ExitStack() as stack:
        processes = {
            variant: stack.enter_context(VariantProcess(serve, name, variant, folder, quick))
            for variant in filter(is_installed, WORKS[name].variants)
        }
        images = WORKS[name].batch_size * _count_batches(WORKS[name], quick)
        return take_turns(name, images, repetitions, processes)


def is_installed(variant: str) -> bool:
    """Return whether the library of a variant is installed."""
    library = LIBRARIES.get(variant)
    return library is None or importlib.util.find_spec(library) is not None


# --- the table --------------------------------------------------------------------------------------------------------


def show(console: Console, rows: list[dict], photographs: str) -> None:
    table = Table("work", "variant", title="Input of training: what an image costs")
    for column in ("images", "CPU µs", "wall µs", "reached", "target"):
        table.add_column(column, justify="right")
    table.caption = (
        "Reached: CPU time of the variant over that of kpipe; in training, the fraction of the CPU time that is input. "
        f"Shuffling and gathering are not subtracted. Photographs: {photographs}."
    )
    for row in rows:
        micros = [f"{1e6 * row[key] / row['items']:,.1f}" for key in ("cpu_seconds", "wall_seconds")]
        reached, target = compare(row, {other["variant"]: other for other in rows if other["work"] == row["work"]})
        is_first = row["variant"] == "kpipe"
        if is_first:
            table.add_section()
        table.add_row(row["work"] if is_first else "", row["variant"], f"{row['items']:,}", *micros, reached, target)
    console.print(table)


def compare(row: dict, others: dict[str, dict]) -> tuple[str, str]:
    """Return what was reached, and the target, as text; `others` are the rows of the same work by variant."""
    name, variant = row["work"], row["variant"]
    target = WORKS[name].targets.get(variant.removesuffix("_workers"))
    if name.startswith("train_"):
        if variant == "limit":
            return "", ""
        fraction = 1 - others["limit"]["cpu_seconds"] / row["cpu_seconds"]
        return f"{100 * fraction:.1f} %", f"at most {100 * target:g} %" if target else ""
    if variant == "kpipe":
        return "", ""
    return f"{row['cpu_seconds'] / others['kpipe']['cpu_seconds']:.2f}", f"at least {target:.3g}" if target else ""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="WORK", choices=WORKS, default=list(WORKS), help=", ".join(WORKS))
    parser.add_argument("--folder", type=Path, help="JPEG photographs, a folder for each class; default: made-up ones")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repetition of a tenth of the batches")
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    with hold_back_libraries():
        run(options, Console(highlight=False, width=None if sys.stdout.isatty() else 120))


def run(options: argparse.Namespace, console: Console) -> None:
    variants = {variant for name in options.only for variant in WORKS[name].variants}
    for variant in sorted(variant for variant in variants if not is_installed(variant)):
        console.print(
            f'{variant}: left out, {LIBRARIES[variant]} is not installed; install it by pip install -e ".[bench]"'
        )
    rows = []
    with tempfile.TemporaryDirectory(prefix="kpipe-photographs-") as temporary:
        folder = options.folder
        if folder is None and any(name.startswith("jpeg") for name in options.only):
            from input_variants import make_photographs

            folder = Path(temporary)
            make_photographs(folder)
        if "list_130k" in options.only:
            from input_variants import make_links

            make_links(Path(temporary) / "links", WORKS["list_130k"].batch_size)
        for name in options.only:
            where = Path(temporary) / "links" if name == "list_130k" else folder
            rows += measure(name, where, 1 if options.quick else options.repetitions, options.quick)
            console.print(f"{name}: done")
    show(console, rows, str(options.folder or "made up; --folder DIR takes real ones"))
    if options.json:
        write_json(options.json, rows, *sorted(filter(is_installed, set(LIBRARIES.values()))))


if __name__ == "__main__":
    main()
