"""What the layers cost that kpipe computes with other operations on a CPU: outputs and gradients, against Keras's own.

    python benchmarks/cpu_layers.py [--repetitions N] [--quick] [--json FILE]

The variants take turns in one process. Convolutions are measured on larger maps as well, for which a training uses
Keras's own. `--json` writes `{"date", "hardware", "versions", "rows"}` with medians.
"""

import argparse
from contextlib import nullcontext

import keras
import tensorflow as tf
from report import clock, median_row, write_json
from rich.console import Console
from rich.table import Table

from kpipe.training import cpu_layers

IMAGES = 128
MAPS = {32: 64, 16: 128, 8: 256, 4: 512, 2: 512}
"""Height and width of a map -> its channels, as in VGG-16 at 32 pixels."""
SECONDS = 0.2  # of a measurement, about


def normalize(policy: str) -> keras.Layer:
    return keras.layers.BatchNormalization(dtype=policy)


def convolve(policy: str, filters: int) -> keras.Layer:
    return keras.layers.Conv2D(filters, 3, padding="same", dtype=policy)


def make_step(layer: keras.Layer, shape: tuple[int, ...], *, is_faster: bool):
    """Return a compiled function of outputs and gradients of a layer, for images [B, H, W, C] of its dtype."""
    images = tf.cast(tf.random.normal(shape), layer.compute_dtype)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    upstream = tf.cast(tf.random.normal(layer(images).shape), layer.compute_dtype)

    @tf.function
    def step(images, upstream):
        with tf.GradientTape() as tape, cpu_layers.faster_on_cpu(model) if is_faster else nullcontext():
            tape.watch(images)
            outputs = layer(images, training=True)
        sources = [images, *(variable.value for variable in layer.trainable_variables)]
        return tape.gradient(outputs, sources, upstream)

    return lambda: step(images, upstream)


def measure(repetitions: int) -> list[dict]:
    """Return a row of each layer, map, precision and variant."""
    cpu_layers.LARGEST = max(MAPS)
    rows = []
    for side, channels in MAPS.items():
        layers = [("normalization", policy, normalize(policy)) for policy in ("float32", "mixed_bfloat16")]
        layers.append(("convolution", "mixed_bfloat16", convolve("mixed_bfloat16", channels)))
        for kind, policy, layer in layers:
            shape = (IMAGES, side, side, channels)
            steps = {name: make_step(layer, shape, is_faster=name == "kpipe") for name in ("kpipe", "keras")}
            for step in steps.values():
                step()  # traces
            runs = max(1, round(SECONDS / clock(steps["keras"])[1]))
            times = {name: [] for name in steps}
            for _ in range(repetitions):
                for name, step in steps.items():
                    times[name].append(clock(lambda step=step, runs=runs: [step() for _ in range(runs)]))
            work = f"{kind}, {policy.removeprefix('mixed_')}, {side}x{side}x{channels}"
            rows += [median_row(work, name, runs, seconds) for name, seconds in times.items()]
    return rows


def show(console: Console, rows: list[dict]) -> None:
    table = Table("layer", "kpipe, ms", "Keras, ms", "times wall")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        seconds = [row["wall_seconds"] / row["items"] for row in (ours, theirs)]
        table.add_row(ours["work"], *(f"{1000 * each:.2f}" for each in seconds), f"{seconds[1] / seconds[0]:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    parser.add_argument("--json", metavar="FILE", help="also write the raw numbers")
    options = parser.parse_args()
    rows = measure(1 if options.quick else options.repetitions)
    show(Console(), rows)
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
