"""What is said when something outside the program ends a run: a signal, the memory, the disk."""

import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from kpipe.console import describe_size
from kpipe.data import AnyPart, Records
from kpipe.errors import DataError, Interrupted, OutOfMemory
from kpipe.models.geometry import estimate_training_memory, fitting_batch_size
from kpipe.rundir import REFUSALS, Run, cannot_write, saved_step
from kpipe.signals import Stop
from kpipe.training.checkpoints import count_values
from kpipe.training.device import free_memory


@contextmanager
def worded_interruption(run: Run, stop: Stop) -> Iterator[None]:
    """Turns an interruption into Interrupted, which says what is saved and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if not (isinstance(error, KeyboardInterrupt) or stop.raised):
            raise
        step = saved_step(run.path)
        if step is None:
            said = (
                f"{stop.word} before the first step was saved: there is nothing to keep. The same command starts again"
            )
        else:
            said = f"{stop.word}; the training is saved up to step {step:,}. The same command goes on from there"
        raise Interrupted(f"{said}:\n  {command_again(resumes=step is not None)}", stop.exit_code) from None


def command_again(*, resumes: bool) -> str:
    """The command line of this process, to be pasted; one that resumes must not ask for a new run."""
    script = os.path.basename(sys.argv[0])
    modules = {"run.py": "kpipe.run", "__main__.py": "kpipe"}
    program = [_typed(sys.executable, "python"), "-m", modules[script]] if script in modules else [_typed(sys.argv[0])]
    arguments = [argument for argument in sys.argv[1:] if not (resumes and argument == "--new")]
    return shlex.join([*program, *arguments])


def _typed(path: str, name: str = "kpipe") -> str:
    """`name` where the shell finds it beside `path`, else `path`."""
    found = shutil.which(name)
    return name if found and os.path.dirname(found) == os.path.dirname(path) else path


@contextmanager
def worded_tensorflow_errors(run: Run, batch_size: int, model: keras.Model | None = None) -> Iterator[None]:
    """Turns too little memory, and a disk that refuses TensorFlow's logs, into an OutOfMemory or an
    EnvironmentFault.

    Args:
        run: what is being written.
        batch_size: B.
        model: what is trained, compiled and its optimizer built; None while it is made.
    """
    available = free_memory()
    try:
        yield
    except (MemoryError, tf.errors.OpError) as error:
        # TensorFlow's writer of events reports a full disk as it reports too little memory.
        if code := next((code for code in REFUSALS if os.strerror(code) in str(error)), None):
            raise cannot_write(run.path, code) from None
        if not isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
            raise
        free = f"{describe_size(available)} were free before" if available else "how much was free is not known"
        if model is None:
            raise OutOfMemory(
                f"out of memory while data and network were made ready ({free}); take a smaller "
                "data.image_size or network, or keep fewer images in memory: data.cache=none or data.cache=disk"
            ) from None
        fits = _fitting(model, batch_size, available)
        raise OutOfMemory(f"out of memory with data.batch_size={batch_size} ({free}); {fits}") from None


@contextmanager
def worded_reading_errors(parts: Iterable[AnyPart]) -> Iterator[None]:
    """Turns what TensorFlow makes of an image that cannot be read into the DataError that says which."""
    try:
        yield
    except tf.errors.OpError as error:
        read = [part for part in parts if part.unreadable is not None]
        if known := next((part.unreadable.error for part in read if part.unreadable.error), None):
            raise known from None
        streams = [part for part in read if isinstance(part, Records)]
        if streams and "IteratorGetNext" in str(error):  # it comes out of a pipeline
            raise DataError(
                f"{streams[0].unreadable.where}: expected {len(streams[0]):,} records that can be read, got an error "
                f"({_reason(error)}). kpipe data check finds them; data.on_error=skip leaves them out"
            ) from None
        raise


def _reason(error: tf.errors.OpError) -> str:
    """What TensorFlow says, without the operations around it: its last line before the first of them is named."""
    said = re.split(r"\[\[|\[Op:", str(error))[0].strip().splitlines() or [type(error).__name__]
    return re.sub(r"\{\{.*?\}\} ?", "", said[-1]).strip()


def memory_notes(model: keras.Model, batch_size: int) -> list[str]:
    """What to say before the first step, when the estimate for a batch is more than what is free."""
    available = free_memory()
    need = estimate_training_memory(model, batch_size, count_values(model.optimizer.variables)).total
    if available is None or need <= available:
        return []
    fits = _fitting(model, batch_size, available)
    return [f"the training needs about {describe_size(need)} of memory, {describe_size(available)} are free; {fits}"]


def _fitting(model: keras.Model, batch_size: int, available: int | None) -> str:
    fits = batch_size // 2  # at most: the estimate was too low, or something else takes memory
    if available is not None:
        memory = estimate_training_memory(model, batch_size, count_values(model.optimizer.variables))
        fits = min(fits, fitting_batch_size(memory, batch_size, available))
    if fits < 1:
        return "not even one image fits: take a smaller data.image_size or a smaller network"
    return f"data.batch_size={2 ** int(math.log2(fits))} should fit"
