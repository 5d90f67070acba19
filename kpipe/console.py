"""The screen: lines, progress bars and a table on standard output, and the same in the log of a run."""

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kpipe.errors import KpipeError
from kpipe.names import printable, shorten
from kpipe.streams import announce, going_quiet


def describe_size(number: int) -> str:
    """Return a number of bytes as people say it: 1.5 GB."""
    return _with_unit(number, {"GB": 1e9, "MB": 1e6, "kB": 1e3}) or counted(number, "byte")


def describe_count(number: int) -> str:
    """Return a count with three digits: 999, 12.3 k, 1.85 G."""
    return _with_unit(number, {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}) or f"{number}"


def _with_unit(number: int, units: Mapping[str, float]) -> str:
    """Return a number with three digits, and more only in the largest unit; empty below the smallest unit."""
    rounded = float(f"{number:.3g}")
    for unit, size in units.items():
        if rounded >= size:
            return f"{rounded / size:.3g} {unit}" if rounded < 1000 * size else f"{number / size:,.0f} {unit}"
    return ""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 epoch`, `2 epochs`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def describe_time(seconds: float) -> str:
    """Return a time as a clock shows it: 1.2 s, 23 s, 1:05, 2:03:04."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{min(seconds, 59):.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_counts(counts: Mapping[str, int]) -> str:
    """`{"train": 1293, "test": 360}` as `1,293 train, 360 test`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def width_of(table: Table, console: Console) -> int:
    """Return the width that a table takes where nothing limits it, in characters."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum


LONG = 5  # seconds after which a user wonders what is happening
_WIDEST = 60  # characters in front of a progress bar
_OF_A_CELL = 100  # characters of a line below a cell of a notebook
_NOTEBOOK_PAUSE = 0.5  # seconds between two states of a bar in a notebook, each of which is a message to the browser


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


def _console_of_standard_output() -> Console:
    """Return a console bound to what is standard output now: a search keeps keras-tuner's prints off it."""
    if sys.stdout is None:
        return quiet_console()
    # Piped output is not cut at 80 columns: its reader has no terminal. A notebook shows bold text as a terminal does.
    is_terminal = sys.stdout.isatty() or _notebook() is not None
    width = None if sys.stdout.isatty() else shutil.get_terminal_size((160, 24)).columns
    width = _OF_A_CELL if _notebook() else width
    return Console(
        file=going_quiet(sys.stdout),
        highlight=False,
        soft_wrap=not is_terminal,
        width=width,
        force_terminal=is_terminal,  # FORCE_COLOR makes no terminal of a log file
        force_jupyter=False,
    )


def _notebook() -> Any | None:
    """Return IPython's shell of a notebook; None: this is none, or an IPython in a terminal."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    shell = get_ipython()
    return shell if hasattr(shell, "kernel") else None


class _Cell(JupyterMixin):
    """What rich draws, as an output of a cell: HTML, and plain text for frontends without it."""

    def __init__(self, renderable: RenderableType):
        self._renderable = renderable

    def __rich__(self) -> RenderableType:
        return self._renderable


@contextmanager
def _showing_in_notebook(renderable: RenderableType) -> Iterator[Callable[[], None]]:
    """Show below the cell what is changing, until the `with` ends. It needs no extension of Jupyter, as widgets do."""
    from IPython.display import display

    cell, done = _Cell(renderable), threading.Event()
    handle = display(cell, display_id=True)

    def update() -> None:
        while not done.wait(_NOTEBOOK_PAUSE):
            handle.update(cell)

    thread = threading.Thread(target=update, daemon=True)
    thread.start()
    try:
        yield lambda: handle.update(cell)
    finally:
        done.set()
        thread.join()
        handle.update({"text/plain": ""}, raw=True)


@contextmanager
def screen_on_standard_error() -> Iterator["Screen"]:
    """Give a screen for progress bars where standard output is read by a program.

    It is on what is standard error now, before `hold_back_libraries`. Without a terminal there, it shows nothing.
    """
    with open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as stream:
        is_terminal = stream.isatty()
        yield Screen(Console(file=stream, highlight=False, force_terminal=is_terminal, quiet=not is_terminal))


def quiet_console() -> Console:
    """Return a console that prints nothing, for a verb whose output is for programs."""
    return Console(quiet=True)


class Screen:
    """Shows a run, or another verb, on standard output.

    Args:
        console: where to print; default: standard output. Where it is not a terminal there are no bars, but plain
            lines.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or _console_of_standard_output()
        self._is_in_notebook = console is None and _notebook() is not None
        self._log_file: TextIO | None = None

    @property
    def has_width(self) -> bool:
        """Whether what is shown must fit: the reader of a pipe has a screen of any width, unless COLUMNS says which."""
        return self.console.is_terminal or bool(os.environ.get("COLUMNS"))

    @contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        """Append what is shown inside the `with` to a file, with date and time, and the error that ends it."""
        self._log_file = open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)
        try:
            yield
        except BaseException as error:
            self.log(str(error) if isinstance(error, KpipeError) else repr(error))
            raise
        finally:
            self._close_log()

    def log(self, text: str) -> None:
        """Write lines to the log alone. A log that cannot be written any more ends no training."""
        if self._log_file is None:
            return
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            self._log_file.writelines(f"{now}  {printable(line)}\n" for line in text.rstrip().split("\n"))
        except OSError:
            self._close_log()

    def _close_log(self) -> None:
        file, self._log_file = self._log_file, None
        with suppress(OSError):  # what is still in its buffer cannot be written either
            if file is not None:
                file.close()

    def line(self, text: str, style: str | None = None) -> None:
        """Print one line of plain text, in which neither [bold] nor :cat: means more than it says."""
        self.log(text)
        self.show(text, style)

    def prose(self, text: str, indent: int = 0) -> None:
        """Print text that is broken between words only, to fit; paths and commands, which people copy, get a `line`.

        Args:
            text: one paragraph.
            indent: spaces in front of all lines but the first.
        """
        self.log(text)
        width = self.console.width if self.has_width else max(len(text), 1)
        for line in textwrap.wrap(
            printable(text), width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        ):
            self.show(line)

    def header(self, title: str, rows: dict[str, str], notes: Iterable[str] = ()) -> None:
        """Print a title and below it rows of a name and a value, then notes."""
        self.line(title, style="bold")
        for name, value in rows.items():
            self.prose(f"  {name:<10} {value}", indent=13)
        for note in notes:
            self.prose(f"  note: {note}", indent=8)

    @contextmanager
    def showing(self, renderable: RenderableType, per_second: int = 10) -> Iterator[Callable[[], None] | None]:
        """Show what is changing, such as a bar, for as long as the `with` lasts.

        Args:
            renderable: what rich draws anew each time.
            per_second: times on a terminal. A notebook gets it less often.

        Yields:
            A function that draws it at once; None where it is not shown, without a terminal or a notebook.
        """
        if not self.console.is_terminal:
            yield None
        elif self._is_in_notebook:
            with _showing_in_notebook(renderable) as refresh:
                yield refresh
        else:
            with Live(renderable, console=self.console, transient=True, refresh_per_second=per_second) as live:
                yield live.refresh

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Say what is done inside the `with`, for as long as it lasts; without a terminal, in a line."""
        text = f"{text} ..."
        if not self.console.is_terminal:
            self.line(text)
            yield
            return
        announce("")
        self.log(text)
        with self.showing(Spinner("dots", Text(text))):
            yield

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
        announce("")
        start, seen = time.monotonic(), 0
        task = shorten(printable(task), _WIDEST)
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(bar_width=20), _Speed(), TimeRemainingColumn())
        bar = Progress(*columns, console=self.console)
        bar_task = bar.add_task(task, total=images)
        with self.showing(bar):

            def advance(more: int) -> None:
                nonlocal seen
                seen += more
                bar.advance(bar_task, more)

            yield advance
        seconds = time.monotonic() - start
        if seconds > LONG:
            self.line(f"{task}: {counted(seen, 'image')} in {seconds:.0f} s")

    def fitting_table(
        self, columns: Mapping[str, Sequence[str]], *make_tables: Callable[[Mapping[str, Sequence[str]]], Table]
    ) -> None:
        """Print a table that fits the screen, without its last columns where it is too narrow for them.

        Args:
            columns: cells by the name of their column, the most important columns first.
            make_tables: ways to make a table of columns, the widest first.
        """
        columns, left_out = dict(columns), []
        while True:
            tables = [make_table(columns) for make_table in make_tables]
            fitting = [table for table in tables if width_of(table, self.console) <= self.console.width]
            if fitting or len(columns) <= 2:
                break
            left_out.insert(0, columns.popitem()[0])
        self.console.print((fitting or tables[-1:])[0])
        if left_out:
            names = " and ".join([", ".join(left_out[:-1]), left_out[-1]] if left_out[1:] else left_out)
            self.prose(f"Not shown: {names}. Take a wider terminal, or --json.")

    def result(self, splits: Mapping[str, Mapping[str, float]]) -> None:
        """Print the last table: one row for each split, and top-5 accuracy where it was measured."""
        table = Table()
        accuracies = ["accuracy", *(["top5"] if any("top5" in numbers for numbers in splits.values()) else [])]
        for column in ("split", "images", "loss", *accuracies):
            table.add_column(column, justify="left" if column == "split" else "right")
        for name, numbers in splits.items():
            loss = f"{numbers['loss']:.4f}"
            percentages = {each: f"{100 * numbers[each]:.2f} %" for each in accuracies}
            table.add_row(name, f"{numbers['images']:,}", loss, *percentages.values())
            shown = ", ".join(f"{each} {percentage}" for each, percentage in percentages.items())
            self.log(f"{name}: {numbers['images']:,} images, loss {loss}, {shown}")
        self.console.print(table)

    def show(self, text: str, style: str | None = None) -> None:
        """Print one line as `line` does, and keep it out of the log."""
        announce("")
        self.console.print(printable(text), style=style, markup=False, emoji=False, soft_wrap=True)
