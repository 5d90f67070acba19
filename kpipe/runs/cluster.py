"""One run directory for several workers: the chief owns and writes it, the others read it."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from kpipe.config.schema import Experiment, Resolved
from kpipe.errors import ConfigError, DataError, EnvironmentFault, KpipeError, first_line
from kpipe.names import path_shown
from kpipe.runs.dataset import RECORD
from kpipe.runs.directory import Run, open_run, saved_step
from kpipe.runs.interruption import how_again
from kpipe.training.distribution import Workers

_TOKEN = ".workers"  # a file of the run directory by which the others see that it is shared
_LARGEST_COPIED = 2**20  # bytes of a file of the run that the others read
_NO_REASON = re.compile(r"The error could be from a previous operation.*|Graph execution error:")
_OWN_FAULTS = (  # of this worker; it is another one that has ended behind all other errors
    tf.errors.ResourceExhaustedError,
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.NotFoundError,
    tf.errors.DataLossError,
)


@contextmanager
def open_run_together(workers: Workers, *arguments: Any, **options: Any) -> Iterator[Run]:
    """Open a run as `open_run` does, in the process of the chief; give the others a copy that they may write to.

    A copy has the small files of the run and a link to its checkpoints. It is deleted at the end.

    Args:
        workers: that train together.
        arguments, options: those of `open_run`.

    Raises:
        EnvironmentFault: as `open_run`; not all workers see the run directory.
    """
    if workers.count == 1:
        with open_run(*arguments, **options) as run:
            yield run
        return
    with ExitStack() as stack:
        if workers.is_chief:
            try:
                run = stack.enter_context(open_run(*arguments, **options))
            except KpipeError as error:
                workers.share(json.dumps({"failure": first_line(error)}))
                raise
            _offer(run, workers)
        else:
            run = _copy(json.loads(workers.share()), Path(stack.enter_context(tempfile.TemporaryDirectory())), workers)
        yield run


def _offer(run: Run, workers: Workers) -> None:
    """Tell the others which run it is, and wait until they have made their copies."""
    token = f"{os.getpid()} {run.path.name}"
    (run.path / _TOKEN).write_text(token, encoding="utf-8")
    told = {"path": str(run.path.absolute()), "resumed": run.resumed, "resolved": run.resolved, "status": run.status}
    try:
        workers.share(json.dumps(told | {"token": token}))
        is_missed = _one_fails(False, workers)
    finally:
        (run.path / _TOKEN).unlink(missing_ok=True)
    if is_missed:
        raise _not_shared(run.path)


def _copy(told: dict[str, Any], folder: Path, workers: Workers) -> Run:
    """Return a copy of the run that the chief has told of."""
    if "failure" in told:
        raise EnvironmentFault(f"the first worker could not open a run: {told['failure']}")
    path, token = Path(told["path"]), None
    with suppress(OSError):
        token = (path / _TOKEN).read_text(encoding="utf-8")
    if token == told["token"]:
        for file in path.iterdir():
            if file.is_file() and not file.name.startswith(".") and file.stat().st_size < _LARGEST_COPIED:
                shutil.copy(file, folder)
        (folder / "checkpoints").symlink_to(path / "checkpoints")
    if _one_fails(token != told["token"], workers):
        raise _not_shared(path)
    return Run(folder, told["resumed"], told["resolved"], told["status"])


def _not_shared(path: Path) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path_shown(path)}: expected a run directory that all workers see, and not all do. Put the runs on a disk "
        "that all machines share, under the same path: logs=FOLDER or KPIPE_LOGS"
    )


def share_resolved(experiment: Experiment, workers: Workers) -> Experiment:
    """Return the experiment with what the chief has resolved for its machine, on all workers."""
    resolved = Resolved.model_validate_json(workers.share(experiment.chosen.model_dump_json()))
    return experiment if workers.is_chief else experiment.model_copy(update={"chosen": resolved})


def check_same_experiment(experiment: Experiment, workers: Workers) -> None:
    """Raise ConfigError unless all workers train the same experiment. Their folders of runs and of data may differ."""
    own = experiment.model_dump_json(exclude={"chosen": True, "logs": True, "data": {"source"}})
    if _differs(own, workers):
        raise ConfigError("the workers train different experiments; start the same command on all of them")


def check_same_data(run: Run, workers: Workers) -> None:
    """Raise DataError unless all workers have found the same classes and images, which `record_data` has written."""
    if _differs(json.dumps(run.read_json(RECORD), sort_keys=True), workers):
        raise DataError("the workers have found different data; they need the same images under data.source")


def _differs(own: str, workers: Workers) -> bool:
    """Return whether a worker has another text than the chief has."""
    digest = hashlib.sha256(own.encode()).hexdigest()
    return _one_fails(workers.share(digest) != digest, workers)


def _one_fails(flag: bool, workers: Workers) -> bool:
    """Return whether `flag` is set on one of the workers. All of them know it before one of them may end for it."""
    fails = workers.agree(flag)
    if fails:
        with suppress(tf.errors.OpError):  # another one has ended already
            workers.wait()
    return fails


@contextmanager
def translate_lost_workers(workers: Workers, run: Run | None = None) -> Iterator[None]:
    """Turn TensorFlow's error about a worker that has ended into EnvironmentFault, which says how to resume.

    Args:
        workers: that train together.
        run: the run directory; None: it is not known yet.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if workers.count == 1 or isinstance(error, _OWN_FAULTS):
            raise
        step = run and saved_step(run.path)
        saved = "nothing is saved yet" if step is None else f"the training is saved up to step {step:,}"
        raise EnvironmentFault(
            f"another worker has ended, or cannot be reached{_reason(error)}; {saved}. Start all of them again. "
            f"{how_again('resumes it' if step is not None else 'starts again', resumes=step is not None)}"
        ) from None


def _reason(error: tf.errors.OpError) -> str:
    """Return the line of an error that says what has failed, after the many that say where, in parentheses."""
    lines = [_NO_REASON.sub("", line).strip() for line in error.message.splitlines()]
    lines = [line for line in lines if line and not line.startswith("[[")]
    return f" ({first_line(lines[-1])})" if lines else ""
