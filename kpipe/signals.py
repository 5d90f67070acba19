"""SIGINT and SIGTERM: leave at once while nothing would be lost, finish the chunk of steps while something would."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """What the signals have asked for so far.

    At first a signal interrupts whatever is going on, by a KeyboardInterrupt for both: only that passes unharmed
    through libraries that catch every Exception. After `defer` it is noted in `number`, for a loop that asks.

    Attributes:
        number: of the first signal that came; None: none has.
        raised: a KeyboardInterrupt has been raised. Native code in the middle of which that happens may turn it into
            another error, so whoever catches it looks here.
    """

    def __init__(self):
        self.number: int | None = None
        self.raised = False
        self._defers = False

    def defer(self) -> None:
        """From here on a loop asks for `number` between its steps. A second SIGINT still interrupts."""
        self._defers = True

    def obey(self) -> None:
        """From here on a signal interrupts again; one that has been noted does so now, as KeyboardInterrupt."""
        self._defers = False
        if self.number is not None:
            self._interrupt()

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    @property
    def word(self) -> str:
        """For messages."""
        return "terminated" if self.number == signal.SIGTERM else "interrupted"

    def receive(self, number: int, frame) -> None:
        """The signal handler."""
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
    """Receives SIGINT and SIGTERM inside the `with`; nothing outside of the main thread, where Python forbids it.

    Inside another such `with` it is the same Stop.
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
