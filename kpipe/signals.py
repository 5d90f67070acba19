"""SIGINT, SIGTERM and SIGHUP: stop at once where nothing would be lost, else after the current chunk of steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_NUMBERS = [getattr(signal, name) for name in _WORDS if hasattr(signal, name)]  # Windows has no SIGHUP
_IGNORABLE = [number for number in _NUMBERS if number != signal.SIGTERM]


class Stop:
    """Signals received so far.

    At first any signal raises a KeyboardInterrupt: only that passes through libraries that catch every Exception. After
    `defer`, a signal is stored in `number` for a loop that asks.

    Attributes:
        number: number of the first signal; None: there was none.
        raised: whether a KeyboardInterrupt has been raised. Native code that it interrupts may turn it into another
            error, so whoever catches one checks this.
    """

    def __init__(self):
        self.number: int | None = None
        self.raised = False
        self._defers = False

    def defer(self) -> None:
        """Store signals in `number` from now on, for a loop that asks. A second SIGINT still interrupts."""
        self._defers = True

    def obey(self) -> None:
        """Interrupt on signals again; one that has been stored raises its KeyboardInterrupt now."""
        self._defers = False
        if self.number is not None:
            self._interrupt()

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    @property
    def word(self) -> str:
        """`interrupted`, `terminated` or `hung up`, for messages."""
        return _WORDS[signal.Signals(self.number or signal.SIGINT).name]

    def receive(self, number: int, frame) -> None:
        """Handle a signal."""
        again = self.number is not None
        self.number = self.number or number
        impatient = again and number == signal.SIGINT
        if impatient or not (self._defers or again):
            self._interrupt()

    def _interrupt(self) -> None:
        self.raised = True
        raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Receive the signals inside the `with`. Outside of the main thread, where Python forbids it, do nothing.

    A SIGINT or SIGHUP that this process was started to ignore stays ignored: a shell's `kpipe run x.yaml &`, or nohup.
    Inside another such `with`, yield the same Stop.
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, Stop):
        yield outer
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    ignored = [number for number in _IGNORABLE if signal.getsignal(number) == signal.SIG_IGN]
    before = {number: signal.signal(number, stop.receive) for number in _NUMBERS if number not in ignored}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop.receive:  # else somebody has decided to ignore it
                signal.signal(number, handler)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let signals end the process inside the `with`, where native code waits and Python would not hear of them.

    TensorFlow takes SIGTERM for itself when it joins other workers: inside the `with` that one is lost, and afterwards
    it is heard again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in _NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_repetitions() -> None:
    """Ignore Ctrl-C and the end of the terminal from now on. Both may be sent again while a process ends."""
    for number in _IGNORABLE:
        signal.signal(number, signal.SIG_IGN)
