"""Time of a training step on this machine, and of whatever else takes turns with it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from kpipe.training.control import steps_within
from kpipe.training.distribution import distribute
from kpipe.training.trainer import Trainer

_MOST_STEPS = 20
_GROWTH = 4  # at most, from one run of a warm-up to the next: the first steps may be faster than all others


@dataclass(frozen=True)
class Turn:
    """Steps that were timed."""

    steps: int
    seconds: float
    result: Any
    """What came out of them."""

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps


def time_steps(
    trainer: Trainer, batch_size: int, classes: int, *, head: keras.Model | None = None, max_seconds: float = 10.0
) -> Turn:
    """Train a model for a few steps on made-up images, and return how long they take.

    The first step is left out, as it also allocates memory and chooses algorithms, unless it alone takes `max_seconds`.

    Args:
        trainer: of the model, whose weights change.
        batch_size: B.
        classes: K.
        head: the last layers of the model, which alone are run, on features instead of images.
        max_seconds: about how long the measured steps take together, if not a single one takes longer.
    """
    images = tf.zeros((batch_size, *head.input_shape[1:])) if head else _make_up_images(trainer.model, batch_size)
    labels = tf.random.uniform((batch_size,), 0, classes, "int32")
    iterator = repeat_batch(trainer, (images, labels))
    trainer.run_steps(iterator, 0, head)  # traces
    return _time(lambda steps: trainer.run_steps(iterator, steps, head), max_seconds)


def time_features(extractor: keras.Model, batch_size: int, *, max_seconds: float = 10.0) -> Turn:
    """Return how long a model takes for a batch where it is not trained.

    Args:
        extractor: takes images [B, H, W, C].
        batch_size, max_seconds: as in `time_steps`.
    """
    images = _make_up_images(extractor, batch_size)
    compute = tf.function(lambda: extractor(images, training=False)).get_concrete_function()

    def run(batches: int) -> None:
        for _ in range(batches):
            compute().numpy()

    return _time(run, max_seconds)


def repeat_batch(trainer: Trainer, batch: tuple[tf.Tensor, ...]) -> Iterator:
    """Return an iterator for `Trainer.run_steps` that gives one batch again and again, without any work."""
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    return iter(distribute(trainer.strategy, batches))


@dataclass(frozen=True)
class Work:
    """What takes turns with other work, so that all are measured under the same conditions."""

    run: Callable[[int], Any]
    """Does so many steps, and returns once they are done."""
    settle: Callable[[float], object] = lambda seconds_per_step: None
    """Called before each turn with the seconds that a step takes. It undoes what the turns of the others have left."""


def time_in_turns(
    works: Mapping[str, Work], *, rounds: int, turn_seconds: float, max_seconds: float
) -> dict[str, list[Turn]]:
    """Warm up each work and time it in several rounds, in which each work has a turn.

    Args:
        works: by name, in the order of their turns.
        rounds: at most so many.
        turn_seconds: about how long a turn takes, if not a single step takes longer.
        max_seconds: no round begins that would probably end later than this after the start.

    Returns:
        The turns of each work; where there was no time for a round, the last one of its warm-up.
    """
    start = time.perf_counter()
    warm = {name: _warm_up(work.run, turn_seconds) for name, work in works.items()}
    steps = {name: steps_within(turn_seconds, turn.seconds_per_step) for name, turn in warm.items()}
    # One more step each, as to settle may take one.
    round_seconds = sum((steps[name] + 1) * turn.seconds_per_step for name, turn in warm.items())
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for _ in range(rounds):
        if time.perf_counter() - start + round_seconds > max_seconds:
            break
        for name, work in works.items():
            work.settle(warm[name].seconds_per_step)
            turns[name].append(_take_turn(work.run, steps[name]))
    return {name: turns[name] or [warm[name]] for name in works}


def _warm_up(run: Callable[[int], Any], turn_seconds: float) -> Turn:
    """Run until a run takes half a turn; return that one. The first step also allocates memory."""
    turn = _take_turn(run, 1)
    while turn.seconds < turn_seconds / 2:
        turn = _take_turn(run, min(_GROWTH * turn.steps, steps_within(turn_seconds, turn.seconds_per_step)))
    return turn


def _take_turn(run: Callable[[int], Any], steps: int) -> Turn:
    start = time.perf_counter()
    result = run(steps)
    return Turn(steps, time.perf_counter() - start, result)


def _make_up_images(model: keras.Model, batch_size: int) -> tf.Tensor:
    """Return images of the kind that the input pipeline gives, uint8 [B, H, W, C]. What they show does not matter."""
    return tf.cast(tf.random.uniform((batch_size, *model.input_shape[1:]), 0, 256, "int32"), "uint8")


def _time(run: Callable[[int], object], max_seconds: float) -> Turn:
    """Time steps, of which `run` does as many as it is given."""
    turn = _take_turn(run, 1)
    if turn.seconds < max_seconds:
        turn = _take_turn(run, min(_MOST_STEPS, steps_within(max_seconds, turn.seconds)))
    return turn
