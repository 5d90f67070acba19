"""The screen of a run: a header, a progress bar, one table. Without a terminal, plain lines."""

import faulthandler
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kpipe.errors import KpipeError
from kpipe.names import printable, shorten
from kpipe.streams import going_quiet


@contextmanager
def hold_back_libraries() -> Iterator[None]:
    """Keep what libraries write to standard error off the screen, and show it after an unforeseen error.

    TensorFlow's C++ runtime writes to file descriptor 2 whatever the log level, so the descriptor itself is redirected.
    An error of kpipe's own kinds explains itself. After any other exception, the text that was held back is replayed.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    # A crash inside native code leaves at least its Python stack on the screen.
    faulthandler.enable(file=screen)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (KpipeError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            with suppress(OSError):
                os.write(screen, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            faulthandler.disable()
            os.close(screen)


def describe_size(number: int) -> str:
    """Return a number of bytes as people say it: 1.5 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return counted(number, "byte")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 epoch`, `2 epochs`, `3 classes`."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def describe_counts(counts: Mapping[str, int]) -> str:
    """`{"train": 1293, "test": 360}` as `1,293 train, 360 test`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


LONG = 5  # seconds after which a user wonders what is happening
_WIDEST = 60  # characters in front of a progress bar


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed * task.fields['batch_size']:,.0f} images/s" if task.speed else "")


def _console_of_standard_output() -> Console:
    """Return a console bound to what is standard output now: a search keeps keras-tuner's prints off it."""
    if sys.stdout is None:
        return Console(quiet=True)
    # Piped output is not cut at 80 columns: its reader has no terminal.
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else shutil.get_terminal_size((160, 24)).columns
    return Console(file=going_quiet(sys.stdout), highlight=False, soft_wrap=not is_terminal, width=width)


class Screen:
    """Show one run on standard output.

    Args:
        console: where to print; default: standard output. Where it is not a terminal there are no bars, but one plain
            line for each log line and each epoch.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or _console_of_standard_output()
        self._progress: Progress | None = None
        self._task = None

    def line(self, text: str) -> None:
        """Print one line of plain text, in which neither [bold] nor :cat: means more than it says."""
        self.console.print(printable(text), markup=False, emoji=False, soft_wrap=True)

    def header(self, title: str, rows: dict[str, str], notes: Iterable[str] = ()) -> None:
        """Print a title and below it rows of a name and a value, then notes."""
        self.console.print(Text(printable(title), style="bold"))
        for name, value in rows.items():
            self.line(f"  {name:<10} {value}")
        for note in notes:
            self.line(f"  note: {note}")

    @contextmanager
    def progress(self, task: str, images: int) -> Iterator[Callable[[int], None]]:
        """Report the progress of reading data: a `ProgressReporter` for `kpipe.data`.

        A bar on a terminal, elsewhere one line if reading took more than a few seconds.

        Args:
            task: what is done, in front of the bar.
            images: number of images to read.

        Yields:
            A function to call with the number of images read since the last call.
        """
        start, seen = time.monotonic(), 0
        task = shorten(printable(task), _WIDEST)
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(bar_width=20), _Speed(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            bar_task = bar.add_task(task, total=images, batch_size=1)

            def advance(more: int) -> None:
                nonlocal seen
                seen += more
                bar.advance(bar_task, more)

            yield advance
        seconds = time.monotonic() - start
        if seconds > LONG:
            self.line(f"{task}: {counted(seen, 'image')} in {seconds:.0f} s")

    @contextmanager
    def training(self, *, epochs: int, steps_per_epoch: int, batch_size: int) -> Iterator[None]:
        """Show a training. Inside the `with`, `step`, `log` and `epoch` may be called."""
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
        )
        columns += (
            _Speed(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[loss]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            self._task = self._progress.add_task("", total=None, batch_size=batch_size, loss="")
            try:
                yield
            finally:
                self._progress, self._task = None, None

    def step(self, step: int) -> None:
        """Move the bar of the epoch to a global step."""
        if self._progress is None:
            return
        epoch, position = divmod(max(step - 1, 0), self._steps_per_epoch)
        description = f"epoch {epoch + 1}/{self._epochs}"
        if self._progress.tasks[0].description != description:
            self._progress.reset(self._task, total=self._steps_per_epoch, description=description)
        self._progress.update(self._task, completed=position + 1)

    def log(self, record: dict) -> None:
        """Show logged metrics: on a terminal in the bar, elsewhere in a line of their own."""
        loss = f"loss {record['loss']:.4f}"
        if self._progress is not None:
            self._progress.update(self._task, loss=loss)
        elif not self.console.is_terminal:
            self.line(
                f"step {record['step']}  epoch {record['epoch']}/{self._epochs}  {loss}  "
                f"acc {record['accuracy']:.4f}  {record['images_per_second']:,.0f} images/s"
            )

    def epoch(self, epoch: int, logs: dict, best: bool) -> None:
        """Print the metrics of an epoch."""
        width = len(str(self._epochs))
        text = f"epoch {epoch:>{width}}/{self._epochs}  loss {logs['loss']:.4f}  acc {logs['accuracy']:.4f}"
        if "val_loss" in logs:
            text += f"  val_loss {logs['val_loss']:.4f}  val_acc {logs['val_accuracy']:.4f}"
        self.line(text + ("  best" if best else ""))

    def result(self, splits: dict[str, dict]) -> None:
        """Print the last table: one row for each split."""
        table = Table()
        for column in ("split", "images", "loss", "accuracy"):
            table.add_column(column, justify="left" if column == "split" else "right")
        for name, numbers in splits.items():
            accuracy = f"{100 * numbers['accuracy']:.2f} %"
            table.add_row(name, f"{numbers['images']:,}", f"{numbers['loss']:.4f}", accuracy)
        self.console.print(table)
