"""The images of a split that could not be read."""

from collections.abc import Callable, Iterable

import numpy as np

from kpipe.errors import DataError, some


class Unreadable:
    """The images of a split that could not be read, as they are met.

    Args:
        where: the source and the split, for messages.
        total: images of the split.
        name: what image number i is called.
        limit: fraction of the images that may be left out; None: not one, and the message says how to allow it. Splits
            that are cut out of one have its limit together.
        are_files: the names are paths.
    """

    def __init__(
        self,
        where: str,
        total: int,
        name: Callable[[int], str],
        limit: float | None = None,
        *,
        are_files: bool = False,
    ):
        self.where, self.total, self.name, self.limit, self.are_files = where, total, name, limit, are_files
        self.numbers: set[int] = set()
        self.error: DataError | None = None
        """Error that `add` has raised. On its way out of a pipeline TensorFlow makes an error of its own of it."""
        self._note_at_source: Callable[[set[int]], None] = self._judge

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, numbers: Iterable[int]) -> None:
        """Note images; those that are known already count once.

        Raises:
            DataError: there are more than allowed, or it is not the image's fault that it cannot be read.
        """
        self._raise_again()
        new = {int(number) for number in numbers} - self.numbers
        self.numbers |= new
        try:
            self._note_at_source(new)
        except DataError as error:
            self.error = error
            raise

    def refuse(self, numbers: Iterable[int]) -> None:
        """Raise DataError for images that must be there: all can be read but those that are noted already."""
        self._raise_again()
        numbers = [int(number) for number in numbers]
        for number in numbers:
            self._check_access(number)
        if self.limit is None:
            self._raise(self._message(numbers))
        self._raise(
            f"{self.where}: expected images that could be read before, got {_files(numbers)} that cannot be decoded "
            f"any more: {some([self.name(number) for number in numbers])}. Give the same command again"
        )

    def give_up(self, images: int) -> None:
        """Keep the error that so many images in a row could not be read."""
        self.error = self.error or DataError(
            f"{self.where}: expected images, got not one that can be read of {images:,} in a row. Is the folder still "
            "there? The same command resumes when it is back"
        )

    def names(self) -> list[str]:
        return [self.name(number) for number in sorted(self.numbers)]

    def select(self, numbers: np.ndarray) -> "Unreadable":
        """Return those of the images with these numbers, which are then called 0, 1, ..."""
        chosen = numbers.tolist()
        split = Unreadable(
            self.where, len(chosen), lambda i: self.name(chosen[i]), self.limit, are_files=self.are_files
        )
        split.numbers = {i for i, number in enumerate(chosen) if number in self.numbers}
        split._note_at_source = lambda new: self.add([chosen[i] for i in new])
        return split

    def _judge(self, new: set[int]) -> None:
        for number in new:
            self._check_access(number)
        if len(self) > (self.limit or 0) * self.total:
            raise DataError(self._message(sorted(self.numbers)))

    def _check_access(self, number: int) -> None:
        """Raise DataError for a file that is there and may not be opened: it is no broken image."""
        if not self.are_files:
            return
        try:
            with open(self.name(number), "rb") as file:
                file.read(1)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._raise(f"{self.where}: {self.name(number)} cannot be read ({error.strerror})")

    def _raise_again(self) -> None:
        """Raise an earlier error again: a stream may run on after it, with gaps that mean nothing."""
        if self.error:
            raise self.error

    def _raise(self, message: str) -> None:
        self.error = DataError(message)
        raise self.error

    def _message(self, numbers: list[int]) -> str:
        shown, them = some([self.name(number) for number in numbers]), "it" if len(numbers) == 1 else "them"
        if self.limit is None:
            return (
                f"{self.where}: expected images, got {_files(numbers)} that cannot be decoded: {shown}. Replace or "
                f"remove {them}, or leave such files out with data.on_error=skip"
            )
        return (
            f"{self.where}: expected at most {100 * self.limit:.3g} % of {self.total:,} files to be unreadable "
            f"(data.skip_limit), got {len(numbers):,}: {shown}. Replace or remove {them}, or raise data.skip_limit"
        )


def _files(numbers: list[int]) -> str:
    return f"{len(numbers):,} {'file' if len(numbers) == 1 else 'files'}"
