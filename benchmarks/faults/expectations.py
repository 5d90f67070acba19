"""Expectations: an attempt in which one of them does not hold counts as lost."""

from collections.abc import Iterator
from contextlib import contextmanager


class Lost(Exception):
    """Something that was promised does not hold."""


def expect(condition: object, message: str) -> None:
    """Raise Lost with this message unless the condition holds."""
    if not condition:
        raise Lost(message)


@contextmanager
def prefix_losses(prefix: str) -> Iterator[None]:
    """Say in front of the message of a Lost raised inside what was attempted."""
    try:
        yield
    except Lost as loss:
        raise Lost(f"{prefix}: {loss}") from None
