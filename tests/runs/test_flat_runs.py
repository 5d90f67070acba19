"""Long runs stay flat: their memory does not grow, and their last epochs take no longer than the early ones."""

import re
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
NETS = """\
import keras
from keras import layers


def small_vgg(input_shape, classes, preprocessing):
    images = keras.Input(input_shape)
    x = preprocessing(images)
    for block, filters in ((1, 4), (2, 8)):
        for number in (1, 2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{block}_{number}")(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(layers.Flatten()(x)))
    return keras.Model(images, layers.Dense(classes, dtype="float32", name="logits")(x))
"""
SMALL_VGG = """\
data: {source: synthetic, image_size: 16, batch_size: 4, augment: [translate], synthetic: {classes: 2, images: 1112}}
model: {name: "nets.py:small_vgg"}
training: {epochs: 100, log_every: {steps: 50}}
"""
SKIPPED = 0.2  # of a run: until then the allocators still take memory for what is used again and again
SLOWER = 1.25
NO_IMAGES = "logging.images=false"  # the first figures make room for themselves once, late in a run
BLOCKS = 100
"""Parts of a run whose CPU times are compared: one epoch is too short for the clock of a process."""


def test_a_thousand_epochs_of_the_quickstart(start):
    """With a tenth of its images, which leaves all that an epoch costs besides its steps."""
    run = start("run", str(QUICKSTART), "training.epochs=1000", "data.split.test=0.9", NO_IMAGES)
    assert_flat([run], 1000)


def test_twenty_thousand_steps_of_a_small_vgg(start, small_vgg):
    run = start("run", small_vgg, NO_IMAGES)
    assert_flat([run], 100)
    assert "100 epochs of 200 steps" in run.out


def test_two_workers(start_two, small_vgg):
    """With 2,000 steps, each of which waits for both. TensorFlow itself keeps a key of each collective operation."""
    overrides = ("training.distribution=multi_worker", "training.epochs=40", "data.synthetic.images=280")
    assert_flat(start_two("run", small_vgg, *overrides), 40, growth=0.06)


@pytest.fixture
def small_vgg(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "vgg.yaml").write_text(SMALL_VGG)
    return str(tmp_path / "vgg.yaml")


def assert_flat(runs, epochs, growth=0.02):
    """Watch processes that train together until their last epoch, and judge their memory and CPU times.

    Args:
        runs: what `start` returned; the first one prints its epochs.
        epochs: that they train.
        growth: fraction by which their memory may grow.
    """
    done, watched = watch(runs, epochs)
    late = (done >= SKIPPED * epochs) & (done < epochs)  # after its last epoch, a run is evaluated
    for place, (memory, cpu) in enumerate(watched):
        slope, _ = np.polyfit(done[late], memory[late], 1)
        grown, first = slope * (1 - SKIPPED) * epochs, memory[late][0]
        blocks = np.diff(np.interp(np.linspace(0, epochs, BLOCKS + 1), done, cpu))
        _, early, *_, last = np.median(blocks.reshape(10, -1), axis=1)
        assert grown < growth * first, f"process {place}: {grown / 1e6:.1f} MB more than {first / 1e6:.0f}"
        assert last < SLOWER * early, f"process {place}: {last:.3f} s of CPU at the end, {early:.3f} s before"


def watch(runs, epochs):
    """Return epochs done [samples], and for each process its resident memory and CPU seconds, [samples] each."""
    processes = [psutil.Process(run.pid) for run in runs]
    rows = []
    while not rows or rows[-1][0] < epochs:
        found = re.findall(r"^epoch +(\d+)/", runs[0].out, re.MULTILINE)
        number = int(found[-1]) if found else 0
        if found and (not rows or number > rows[-1][0]):
            cells = [(process.memory_info().rss, sum(process.cpu_times()[:2])) for process in processes]
            rows.append((number, *np.ravel(cells)))
        if not all(run.process.is_alive() for run in runs):
            pytest.fail("".join(run.out + run.err for run in runs))
        time.sleep(0.1)
    for run in runs:
        assert run.wait() == 0, run.err
    columns = np.array(rows, float).T
    return columns[0], [columns[first : first + 2] for first in range(1, len(columns), 2)]
