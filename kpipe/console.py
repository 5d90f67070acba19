"""The screen of a run: a header, progress bars, a row for each epoch, one table. Without a terminal, plain lines."""

import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kpipe.errors import KpipeError
from kpipe.names import printable, shorten
from kpipe.streams import announce, going_quiet


def describe_size(number: int) -> str:
    """Return a number of bytes as people say it: 1.5 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return counted(number, "byte")


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
    return Console(
        file=going_quiet(sys.stdout), highlight=False, soft_wrap=not is_terminal, width=width, force_jupyter=False
    )


class _Clock:
    """Says how long a training still takes, from the steps that this process has done.

    Args:
        steps_per_epoch, total_steps: of the training.
        max_seconds: after which it ends in any case.
    """

    def __init__(self, steps_per_epoch: int, total_steps: int, max_seconds: float = math.inf):
        self._steps_per_epoch, self._total_steps, self._max_seconds = steps_per_epoch, total_steps, max_seconds
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start, when so many steps have been done."""
        self._first_step, self._began = step, time.monotonic()
        self._epoch_began = self._began

    def time_left(self, step: int) -> tuple[float, float] | None:
        """Return the seconds that are left of the epoch and of the training, validations included."""
        if step <= self._first_step:
            return None
        elapsed = time.monotonic() - self._began
        per_step = elapsed / (step - self._first_step)
        end_of_epoch = -(-step // self._steps_per_epoch) * self._steps_per_epoch
        ends = (min(end, self._total_steps) for end in (end_of_epoch, self._total_steps))
        of_epoch, of_run = (min((end - step) * per_step, self._max_seconds - elapsed) for end in ends)
        return max(of_epoch, 0.0), max(of_run, 0.0)

    def end_epoch(self) -> float:
        """Return the seconds of the epoch that ends now."""
        now = time.monotonic()
        seconds, self._epoch_began = now - self._epoch_began, now
        return seconds


_WIDTHS = {"epoch": 7, "loss": 9, "acc": 8, "val_loss": 10, "val_acc": 9, "lr": 10, "time": 9, "left": 9}
"""Columns of a row that shows an epoch; with `best` behind, it fits into 80."""


class Screen:
    """Show one run on standard output.

    Args:
        console: where to print; default: standard output. Where it is not a terminal there are no bars, but one plain
            line for each log line and each epoch.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or _console_of_standard_output()
        self._log_file: TextIO | None = None
        self._progress: Progress | None = None

    @contextmanager
    def kept_in(self, path: Path) -> Iterator[None]:
        """Append what is shown inside the `with` to a file, with date and time, and the error that ends it."""
        with open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1) as self._log_file:
            try:
                yield
            except BaseException as error:
                self._keep(str(error) if isinstance(error, KpipeError) else repr(error))
                raise
            finally:
                self._log_file = None

    def _keep(self, text: str) -> None:
        if self._log_file is not None:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            self._log_file.writelines(f"{now}  {printable(line)}\n" for line in text.rstrip().split("\n"))

    def line(self, text: str, style: str | None = None) -> None:
        """Print one line of plain text, in which neither [bold] nor :cat: means more than it says."""
        self._keep(text)
        self._print(text, style)

    def prose(self, text: str, indent: int = 0) -> None:
        """Print text that a terminal breaks between words only; paths and commands, which people copy, get a `line`.

        Args:
            text: one paragraph.
            indent: spaces in front of all lines but the first.
        """
        width = self.console.width if self.console.is_terminal else max(len(text), 1)
        for line in textwrap.wrap(
            text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        ):
            self.line(line)

    def header(self, title: str, rows: dict[str, str], notes: Iterable[str] = ()) -> None:
        """Print a title and below it rows of a name and a value, then notes."""
        self.line(title, style="bold")
        for name, value in rows.items():
            self.line(f"  {name:<10} {value}")
        for note in notes:
            self.line(f"  note: {note}")

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Say what is done inside the `with`, for as long as it lasts; without a terminal, in a line."""
        announce("")
        self._keep(f"{text} ...")
        if self.console.is_terminal:
            with self.console.status(f"{text} ..."):
                yield
        else:
            self.console.print(f"{text} ...")
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
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            bar_task = bar.add_task(task, total=images)

            def advance(more: int) -> None:
                nonlocal seen
                seen += more
                bar.advance(bar_task, more)

            yield advance
        seconds = time.monotonic() - start
        if seconds > LONG:
            self.line(f"{task}: {counted(seen, 'image')} in {seconds:.0f} s")

    @contextmanager
    def training(self, *, epochs: int, steps_per_epoch: int, max_seconds: float = math.inf) -> Iterator[None]:
        """Show a training. Inside the `with`, the methods below it may be called."""
        self._epochs, self._steps_per_epoch, self._total_steps = epochs, steps_per_epoch, epochs * steps_per_epoch
        self._clock = _Clock(steps_per_epoch, self._total_steps, max_seconds)
        self._has_column_names = False
        if not self.console.is_terminal:
            yield
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[left]}", justify="right"),
            TextColumn("{task.fields[values]}"),
        ]
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            for name, total in (("preparing", steps_per_epoch), ("run", self._total_steps)):
                self._progress.add_task(name, total=total, left="", values="")
            try:
                yield
            finally:
                self._progress = None

    def doing(self, what: str) -> None:
        """Say what is done instead of training steps: `compiling` or `validating`."""
        if self._progress is not None:
            self._progress.update(self._progress.tasks[0].id, description=what, left="")
        elif what == "compiling":  # which may take a minute
            self.line("compiling the training step ...")

    def begin(self, step: int) -> None:
        """Start the clock: the next step is about to be done, after so many."""
        self._clock.begin(step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bars to a global step.

        Args:
            step: steps done.
            metrics: the means of this epoch so far, and the learning rate and speed of the latest steps.
        """
        if self._progress is None:
            return
        epoch, position = divmod(max(step - 1, 0), self._steps_per_epoch)
        left = self._clock.time_left(step)
        left_of_epoch, left_of_run = (f"{describe_time(seconds)} left" for seconds in left) if left else ("", "")
        of_epoch, of_run = (task.id for task in self._progress.tasks)
        self._progress.update(
            of_epoch,
            completed=position + 1,
            description=f"epoch {epoch + 1}/{self._epochs}",
            left=left_of_epoch,
            values=f"loss {metrics['loss']:.4f}  acc {metrics['accuracy']:.4f}",
        )
        values = f"lr {metrics['learning_rate']:.3g}  {metrics['images_per_second']:,.0f} images/s"
        self._progress.update(of_run, completed=step, left=left_of_run, values=values)

    def log(self, record: Mapping[str, Any]) -> None:
        """Print a log line where there is no bar, which shows the same."""
        fields = [f"step {record['step']}", f"epoch {record['epoch']}/{self._epochs}"]
        fields += [f"{name} {value}" for name, value in _describe_metrics(record).items()]
        fields.append(f"{record['images_per_second']:,.0f} images/s")
        for name, seconds in zip(("epoch", "run"), self._clock.time_left(record["step"]) or (), strict=False):
            fields.append(f"{name} {describe_time(seconds)} left")
        self._keep("  ".join(fields)) if self._progress is not None else self.line("  ".join(fields))

    def epoch(self, epoch: int, step: int, logs: Mapping[str, float], best: bool) -> None:
        """Print the metrics of an epoch: on a terminal as the row of a table, elsewhere with their names.

        Args:
            epoch: its number, from 1 on.
            step: steps done.
            logs: what Keras's callbacks get at the end of an epoch.
            best: whether it is the best so far.
        """
        left = self._clock.time_left(step)
        row = {
            "epoch": f"{epoch:>{len(str(self._epochs))}}/{self._epochs}",
            **_describe_metrics(logs),
            "time": describe_time(self._clock.end_epoch()),
            "left": describe_time(left[1]) if left else "",
        }
        mark = "  best" if best else ""
        labelled = "  ".join(f"{name} {value}" for name, value in row.items()) + mark
        if self._progress is None:
            self.line(labelled)
            return
        self._keep(labelled)
        widths = {name: max(_WIDTHS[name], len(row["epoch"]) if name == "epoch" else 0) for name in row}
        if not self._has_column_names:
            self._has_column_names = True
            self._print("".join(f"{name:>{widths[name]}}" for name in row), style="bold")
        self._print("".join(f"{value:>{widths[name]}}" for name, value in row.items()) + mark)

    def result(self, splits: Mapping[str, Mapping[str, float]]) -> None:
        """Print the last table: one row for each split."""
        table = Table()
        for column in ("split", "images", "loss", "accuracy"):
            table.add_column(column, justify="left" if column == "split" else "right")
        for name, numbers in splits.items():
            accuracy = f"{100 * numbers['accuracy']:.2f} %"
            table.add_row(name, f"{numbers['images']:,}", f"{numbers['loss']:.4f}", accuracy)
            self._keep(f"{name}: {numbers['images']:,} images, loss {numbers['loss']:.4f}, accuracy {accuracy}")
        self.console.print(table)

    def _print(self, text: str, style: str | None = None) -> None:
        announce("")
        self.console.print(printable(text), style=style, markup=False, emoji=False, soft_wrap=True)


def _describe_metrics(values: Mapping[str, float]) -> dict[str, str]:
    """Return what is shown of the metrics of a log line or of an epoch, by its name on the screen."""
    shown = {"loss": "loss", "acc": "accuracy", "val_loss": "val_loss", "val_acc": "val_accuracy"}
    metrics = {short: f"{values[name]:.4f}" for short, name in shown.items() if name in values}
    return {**metrics, "lr": f"{values['learning_rate']:.3g}"}
