"""What a training step costs: kpipe, and what one would train the same network with instead.

    python benchmarks/train_step.py [--only WORK ...] [--repetitions N] [--quick] [--json FILE]

`pip install -e ".[bench]"` installs torch. Each variant of a work has a process of its own, in which it trains on one
batch of uint8 images that it casts and scales itself, on all cores. An epoch of its training is one turn. The first
epoch builds, traces and compiles; then the variants take turns, one at a time.

`--json` writes `{"date", "hardware", "versions", "rows"}` with medians, and beside them the seconds of each repetition
in the order in which they were measured.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from contextlib import ExitStack, nullcontext
from pathlib import Path

from report import write_json
from rich.console import Console
from rich.table import Table
from step_works import WORKS, Work
from turns import FORK, SPAWN, NotReady, Turns, VariantProcess, take_turns

from kpipe.streams import hold_back_libraries

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all variants train on the CPU
QUICK = ("fixed", "lenet5_b32", "vgg16_bn_32_b32")
VARIANTS = ("kpipe", "keras_fit", "keras_fit_50", "raw", "torch", "torch_compile")
BFLOAT16 = tuple(f"{variant}_bfloat16" for variant in VARIANTS if variant != "raw")
COMPILED = "torch_compile"
COMPILING = 60  # seconds


# --- measuring --------------------------------------------------------------------------------------------------------


def serve(turns: Turns, work: Work, variant: str, steps: int, folder: Path) -> None:
    """Train in a process of its own; each epoch but the first is a turn."""
    is_torch, epochs = variant.startswith("torch"), 0

    def end_epoch(parameters: int) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 1:
            turns.begin(parameters)
        else:
            turns.end()

    # Held back from the screen is what TensorFlow writes, which torch's process has not imported.
    with nullcontext() if is_torch else hold_back_libraries():
        if is_torch:
            # On free cores torch takes twice the wall time with threads that wait passively.
            os.environ.pop("OMP_WAIT_POLICY", None)
            from step_torch import train
        else:
            from step_keras import train
        train(work, variant, steps, folder, end_epoch)


def measure(name: str, variants: list[str], repetitions: int, quick: bool, console: Console) -> list[dict]:
    """Measure the variants of one work by turns; return a row of each."""
    work = WORKS[name]
    steps = max(1, work.steps // 10) if quick else work.steps
    with tempfile.TemporaryDirectory(prefix="kpipe-steps-") as folder, ExitStack() as stack:
        processes: dict[str, VariantProcess] = {}
        for variant in variants:
            own_folder = Path(folder) / variant
            own_folder.mkdir()
            try:
                process = start(work, variant, steps, own_folder)
            except NotReady as reason:
                if not variant.startswith(COMPILED):
                    raise
                console.print(f"{name}: {variant}: left out, {reason}")
                continue
            processes[variant] = stack.enter_context(process)
        parameters = {variant: process.facts for variant, process in processes.items()}
        if len(set(parameters.values())) > 1:
            raise RuntimeError(f"{name}: expected one network, got several by their trained parameters: {parameters}")
        return take_turns(name, steps, repetitions, processes)


def start(work: Work, variant: str, steps: int, folder: Path) -> VariantProcess:
    context = SPAWN if variant.startswith("torch") else FORK
    seconds = COMPILING if variant.startswith(COMPILED) else None
    return VariantProcess(serve, work, variant, steps, folder, context=context, seconds=seconds)


def choose_variants(work: Work, quick: bool, has_torch: bool, has_bfloat16: bool) -> list[str]:
    """Return the variants of a work: kpipe's come first in each precision."""
    variants = VARIANTS + (BFLOAT16 if work.bfloat16 and has_bfloat16 and not quick else ())
    return [
        variant
        for variant in variants
        if (has_torch or not variant.startswith("torch")) and not (quick and variant.startswith(COMPILED))
    ]


# --- the table --------------------------------------------------------------------------------------------------------


def show(console: Console, rows: list[dict]) -> None:
    table = Table("work", "variant", title="A training step")
    for column in ("CPU ms", "wall ms", "times CPU", "times wall", "target"):
        table.add_column(column, justify="right")
    table.caption = "Times: seconds of the variant over those of kpipe in the same precision."
    for row in rows:
        is_first = row["variant"] == "kpipe"
        if is_first:
            table.add_section()
        millis = [f"{1e3 * row[key] / row['items']:,.2f}" for key in ("cpu_seconds", "wall_seconds")]
        table.add_row(row["work"] if is_first else "", row["variant"], *millis, *compare(row, rows))
    console.print(table)


def compare(row: dict, rows: list[dict]) -> tuple[str, str, str]:
    """Return how many times kpipe's CPU and wall time a variant takes, and the target, as text."""
    kpipe = "kpipe_bfloat16" if row["variant"].endswith("_bfloat16") else "kpipe"
    if row["variant"] == kpipe:
        return "", "", ""
    [base] = (other for other in rows if (other["work"], other["variant"]) == (row["work"], kpipe))
    cpu, wall = (f"{row[key] / base[key]:.2f}" for key in ("cpu_seconds", "wall_seconds"))
    targets = zip(("wall", "CPU"), WORKS[row["work"]].targets.get(row["variant"], ()), strict=False)
    return cpu, wall, ", ".join(f"{least:.2g} {what}" for what, least in targets if least)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="WORK", choices=WORKS, help=", ".join(WORKS))
    parser.add_argument("--repetitions", type=int, default=5)
    quick = (
        f"one repetition of a tenth of the steps in float32, without torch.compile; by default of {', '.join(QUICK)}"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    with hold_back_libraries():
        run(options, Console(highlight=False, width=None if sys.stdout.isatty() else 120))


def run(options: argparse.Namespace, console: Console) -> None:
    from kpipe.training.precision import resolve_precision

    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        console.print('torch: left out, it is not installed; install it by pip install -e ".[bench]"')
    has_bfloat16 = resolve_precision("auto") == "mixed_bfloat16"
    if not has_bfloat16:
        console.print("bfloat16: left out, this CPU does not multiply it")
    rows = []
    for name in options.only or (QUICK if options.quick else WORKS):
        variants = choose_variants(WORKS[name], options.quick, has_torch, has_bfloat16)
        rows += measure(name, variants, 1 if options.quick else options.repetitions, options.quick, console)
        if options.json:  # after each work, as all of them take long
            write_json(options.json, rows, *(["torch"] if has_torch else []))
        console.print(f"{name}: done")
    show(console, rows)


if __name__ == "__main__":
    main()
