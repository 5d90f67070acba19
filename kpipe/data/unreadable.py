"""Images of a split that could not be read."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from kpipe.caller import setting
from kpipe.console import counted
from kpipe.data.image_files import why_unreadable
from kpipe.errors import DataError, some
from kpipe.names import quoted


class Unreadable:
    """Images of a split that could not be read, noted when they are met.

    Args:
        where: the source and the split, for messages.
        total: number of images of the split.
        name: returns the name of image number i.
        limit: fraction of the images that may be left out; None: not one, and the message says how to allow it. Splits
            that are cut out of one have its limit together.
        are_files: the names are paths.
        folder: of the set, in which the files lie; empty where they lie anywhere.
    """

    def __init__(
        self,
        where: str,
        total: int,
        name: Callable[[int], str],
        limit: float | None = None,
        *,
        are_files: bool = False,
        folder: str = "",
    ):
        self.where, self.total, self.name, self.limit, self.are_files = where, total, name, limit, are_files
        self.folder = folder
        self.numbers: set[int] = set()
        self.error: DataError | None = None
        """Error that `add` has raised. Out of a pipeline it comes as an error of TensorFlow's own."""
        self._note_at_source: Callable[[set[int]], None] = self._enforce_limit

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, numbers: Iterable[int]) -> None:
        """Note images; one that is noted twice counts once.

        Raises:
            DataError: there are more than allowed, or a file is intact and may not be opened.
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
        """Raise DataError for images that must be readable, since all others are noted already."""
        self._raise_again()
        numbers = [int(number) for number in numbers]
        for number in numbers:
            self._check_access(number)
        if self.limit is None:
            self._raise(self._message(numbers))
        self._raise(
            f"{self.where}: expected images that could be read before, got {counted(len(numbers), 'file')} that "
            f"cannot be decoded any more: {some([self.name(number) for number in numbers])}. Give the same command "
            "again"
        )

    def give_up(self, images: int) -> None:
        """Keep an error which says that so many images in a row could not be read."""
        self.error = self.error or DataError(
            f"{self.where}: expected images, got not one that can be read of {images:,} in a row. Is the folder still "
            "there? The same command resumes when it is back"
        )

    def names(self) -> list[str]:
        """Return the names of the images that could not be read, in their order."""
        return [self.name(number) for number in sorted(self.numbers)]

    def count_reasons(self) -> dict[str, int]:
        """Return how many files could not be read for each reason, the most frequent first."""
        return dict(Counter(map(why_unreadable, self.names()) if self.are_files else ()).most_common())

    def select(self, numbers: np.ndarray) -> "Unreadable":
        """Return those of the images with these numbers, which are then called 0, 1, ..."""
        what = {"are_files": self.are_files, "folder": self.folder}
        split = Unreadable(self.where, len(numbers), lambda i: self.name(int(numbers[i])), self.limit, **what)
        split.numbers = set(np.flatnonzero(np.isin(numbers, list(self.numbers))).tolist())
        split._note_at_source = lambda new: self.add(numbers[list(new)])
        return split

    def _enforce_limit(self, new: set[int]) -> None:
        for number in new:
            self._check_access(number)
        if len(self) > (self.limit or 0) * self.total:
            raise DataError(self._message(sorted(self.numbers)))

    def _check_access(self, number: int) -> None:
        """Raise DataError for a file that may not be opened, and so may be intact. `kpipe data check` notes it, too."""
        if not self.are_files or self.limit == 1:
            return
        try:
            with open(self.name(number), "rb") as file:
                file.read(1)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._raise(f"{self.where}: {quoted(self.name(number))} cannot be read ({error.strerror})")

    def _describe(self, numbers: list[int]) -> str:
        """Return the names of images, and of files also what is wrong with them."""
        names = [self.name(number) for number in numbers]
        if not self.are_files:
            return some(names)
        return some(names, lambda name: f"{quoted(name)} ({why_unreadable(name)})")

    def _raise_again(self) -> None:
        """Raise a known error again. A stream may run on after it, with gaps that mean nothing."""
        if self.error:
            raise self.error

    def _raise(self, message: str) -> None:
        self.error = DataError(message)
        raise self.error

    def _message(self, numbers: list[int]) -> str:
        shown, them = self._describe(numbers), "it" if len(numbers) == 1 else "them"
        if self.limit is None:
            return (
                f"{self.where}: expected images, got {counted(len(numbers), 'file')} that cannot be decoded: {shown}. "
                f"Replace or remove {them}, or leave such files out with {setting('on_error', 'skip')}"
            )
        return (
            f"{self.where}: expected at most {100 * self.limit:.3g} % of {counted(self.total, 'file')} to be "
            f"unreadable ({setting('skip_limit')}), got {len(numbers):,}: {shown}. Replace or remove {them}, or "
            f"raise {setting('skip_limit')}"
        )
