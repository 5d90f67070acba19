"""Says what is saved when a signal ends a run, and which command resumes it."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kpipe.caller import for_caller
from kpipe.errors import Interrupted
from kpipe.names import shell_quoted
from kpipe.runs.directory import Run, saved_step
from kpipe.signals import Stop


@contextmanager
def translate_interruption(run: Run, stop: Stop) -> Iterator[None]:
    """Turn an interruption into Interrupted, which says what is saved and how to resume."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        if not (isinstance(error, KeyboardInterrupt) or stop.raised):
            raise
        step = saved_step(run.path)
        if step is None:
            said, again = f"{stop.word} before the first step was saved: there is nothing to keep", "starts again"
        else:
            said, again = f"{stop.word}; the training is saved up to step {step:,}", "resumes it"
        raise Interrupted(f"{said}. {how_again(again, resumes=step is not None)}", stop.exit_code) from None


def how_again(what: str, *, resumes: bool) -> str:
    """Return `The same command resumes it:` and the command line of this process; from Python, `The same call ...`.

    Args:
        what: what the same command does.
        resumes: whether it resumes; it must not ask for a new run then.
    """
    return for_caller(f"The same command {what}:\n  {_command_again(resumes)}", f"The same call {what}.")


def _command_again(resumes: bool) -> str:
    script = os.path.basename(sys.argv[0])
    modules = {"run.py": "kpipe.run", "__main__.py": "kpipe"}
    program = [_typed(sys.executable, "python"), "-m", modules[script]] if script in modules else [_typed(sys.argv[0])]
    arguments = [argument for argument in sys.argv[1:] if not (resumes and argument == "--new")]
    return " ".join(map(shell_quoted, [*program, *arguments]))


def _typed(path: str, name: str = "kpipe") -> str:
    """Return `name` where the shell finds it beside `path`, else `path`."""
    found = shutil.which(name)
    return name if found and os.path.dirname(found) == os.path.dirname(path) else path
