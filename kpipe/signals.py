"""SIGINT and SIGTERM: stop at once where nothing would be lost, else after the current chunk of steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Signals received so far.

    At first a signal raises a KeyboardInterrupt, also a SIGTERM: only that passes through libraries that catch every
    Exception. After `defer`, a signal is stored in `number` for a loop that asks.

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
        """`terminated` or `interrupted`, for messages."""
        return "terminated" if self.number == signal.SIGTERM else "interrupted"

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
    """Receive SIGINT and SIGTERM inside the `with`. Outside of the main thread, where Python forbids it, do nothing.

    Inside another such `with`, yield the same Stop.
    """
    outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    if isinstance(outer, Stop):
        yield outer
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop.receive:  # else somebody has decided to ignore it
                signal.signal(number, handler)
