"""Standard output and error: without what libraries write, and quiet when they fail. A run outlives its terminal."""

import errno
import faulthandler
import io
import os
import select
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

from kpipe.errors import KpipeError


class Output:
    """Standard output of a verb, and whether any of it was lost.

    Attributes:
        is_needed: False for a verb that does its work without a reader.
    """

    def __init__(self, stream: TextIO, error: OSError | None = None):
        self.is_needed = True
        self._stream, self._error = stream, error

    @property
    def error(self) -> OSError | None:
        """What has made the output go quiet; None: nothing has."""
        self._stream.flush()
        return self._error or getattr(_raw(self._stream), "error", None)

    def is_read(self) -> bool:
        """Return whether what is printed may still reach somebody."""
        return self.error is None


@contextmanager
def quiet_streams() -> Iterator[Output]:
    """Let `sys.stdout` and `sys.stderr` go quiet inside the `with` when they fail, or where they were closed before."""
    _occupy_descriptors()
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        out, err = (
            stack.enter_context(open(os.devnull, "w", encoding="utf-8")) if stream is None else going_quiet(stream)
            for stream in before
        )
        sys.stdout, sys.stderr = out, err
        closed = OSError(errno.EBADF, os.strerror(errno.EBADF)) if before[0] is None else None
        try:
            yield Output(out, closed)
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = before


_announced = ""


def announce(text: str) -> None:
    """Say on a terminal what is going on before there is anything to show. The next call replaces it."""
    global _announced
    if (text or _announced) and sys.stdout is not None and sys.stdout.isatty():
        blank = " " * len(_announced)  # a terminal may not know how to clear a line
        sys.stdout.write(f"\r{blank}\r{text}" if blank else text)
        sys.stdout.flush()
    _announced = text


@contextmanager
def hold_back_libraries() -> Iterator[None]:
    """Keep what libraries write to standard error off the screen, and show it after an unforeseen error.

    TensorFlow's C++ runtime writes to file descriptor 2 whatever the log level, so the descriptor itself is redirected.
    An error of kpipe's own kinds explains itself. After any other exception, the text that was held back is replayed.
    """
    _occupy_descriptors()
    _flush_stderr()
    screen = os.dup(2)
    explains_crashes = faulthandler.is_enabled()  # as in Jupyter
    if not explains_crashes:
        # A crash inside native code leaves at least its Python stack on the screen.
        faulthandler.enable(file=screen)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (KpipeError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            _flush_stderr()
            held.seek(0)
            with suppress(OSError):
                os.write(screen, held.read())
            raise
        finally:
            _flush_stderr()
            os.dup2(screen, 2)
            if not explains_crashes:
                faulthandler.disable()
            os.close(screen)


def going_quiet(stream: TextIO) -> TextIO:
    """Return a stream to the same descriptor that goes quiet when it fails; one without a descriptor is returned.

    What the encoding lacks is written as an escape sequence: a name in another script is no reason to stop either.
    """
    if not isinstance(stream, io.TextIOWrapper) or isinstance(_raw(stream), _Quiet):
        return stream
    try:
        raw = _Quiet(stream.fileno(), "w", closefd=False)
        raw.older = stream
    except (OSError, ValueError):  # it has none, or is closed
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Quiet(io.FileIO):
    """Writes to a descriptor. Once that has failed, the descriptor leads nowhere, for native code as well.

    Attributes:
        error: of the write that has failed, or None.
        older: another stream to this descriptor. What it holds back was printed before.
    """

    error: OSError | None = None
    older: TextIO | None = None

    def write(self, data) -> int:
        rest = memoryview(data)
        try:
            if self.older and not self.older.closed:
                self.older.flush()
            while rest:
                written = super().write(rest)
                if written is None:  # another process has made the descriptor non-blocking
                    select.select([], [self], [])
                else:
                    rest = rest[written:]
        except OSError as error:
            self.error = self.error or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        return len(data)


def _raw(stream: TextIO) -> io.RawIOBase | None:
    """Return the file below the buffer of a stream, where there is one."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _flush_stderr() -> None:
    if sys.stderr is not None:  # a program without a console has none
        sys.stderr.flush()


def _occupy_descriptors() -> None:
    """Open descriptors 0, 1 and 2 where they are closed.

    Else the next files that are opened get these numbers, and what TensorFlow says is written into metrics.jsonl.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
