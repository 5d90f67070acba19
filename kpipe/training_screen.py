"""The screen of a training: two bars and a row for each epoch. Without a terminal, lines with the same numbers."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from kpipe.console import Screen, describe_time
from kpipe.errors import some

_WIDTHS = {"epoch": 7, "loss": 8, "acc": 7, "top5": 7, "val_loss": 9, "val_acc": 8, "val_top5": 9, "avg_acc": 8}
_WIDTHS |= {"lr": 9, "time": 8, "left": 8}
"""Columns of a row that shows an epoch. It fits into 80 with `best` and without what `epoch` leaves out."""


@contextmanager
def training_screen(
    screen: Screen, *, epochs: int, steps_per_epoch: int, last_thaw: float = 0
) -> Iterator["TrainingScreen"]:
    """Show a training inside the `with`; its bars are gone afterwards. The arguments are those of `TrainingScreen`."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[left]}", justify="right"),
        TextColumn("{task.fields[values]}"),
    ]
    progress = Progress(*columns, console=screen.console)
    for name, total in (("preparing", steps_per_epoch), ("run", epochs * steps_per_epoch)):
        progress.add_task(name, total=total, left="", values="")
    length = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "last_thaw": last_thaw}
    with screen.showing(progress) as refresh:
        shown = {"progress": progress, "refresh": refresh} if refresh else {}
        yield TrainingScreen(screen, **length, **shown)


class TrainingScreen:
    """Shows what a trainer reports.

    Args:
        screen: where it is shown, and whose log it is written to.
        epochs, steps_per_epoch: length of the training.
        last_thaw: the step from which all layers are trained that are to be trained. How long the training takes is
            not known before.
        progress: one bar for the epoch and one for the whole run; None: there is no terminal.
        refresh: draws the bars at once.
    """

    def __init__(
        self,
        screen: Screen,
        *,
        epochs: int,
        steps_per_epoch: int,
        last_thaw: float = 0,
        progress: Progress | None = None,
        refresh: Callable[[], None] = lambda: None,
    ):
        self._screen = screen
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._clock = _Clock(steps_per_epoch, epochs * steps_per_epoch, last_thaw)
        self._progress, self._refresh = progress, refresh
        self._has_column_names = False

    def activity(self, text: str) -> None:
        """Say what is done instead of training steps: `compiling` or `validating`."""
        if self._progress is not None:
            self._progress.reset(self._progress.tasks[0].id, total=None, description=text, left="", values="")
            self._refresh()
        elif text == "compiling":  # which may take a minute
            self._screen.line("compiling the training step ...")

    def begin(self, seconds_left: float = math.inf) -> None:
        """Start the clock: the first step is about to be done.

        Args:
            seconds_left: time after which the training ends in any case.
        """
        self._clock.begin(seconds_left)

    def thaw(self, step: int, layers: Sequence[str]) -> None:
        """Say which layers are trained from a step on, and measure the time of a step anew."""
        self._clock.forget_speed()
        self._screen.prose(
            f"step {step:,}: {some(layers, show=str)} {'is' if len(layers) == 1 else 'are'} trained from here on"
        )

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bars to a global step.

        Args:
            step: steps done.
            metrics: the means of this epoch so far, and the learning rate and speed of the latest steps.
        """
        self._clock.see(step)
        if self._progress is None:
            return
        epoch, position = divmod(max(step - 1, 0), self._steps_per_epoch)
        left = self._clock.time_left(step)
        left_of_epoch, left_of_run = (_describe_left(seconds) for seconds in left)
        of_epoch, of_run = (task.id for task in self._progress.tasks)
        self._progress.update(
            of_epoch,
            total=self._steps_per_epoch,
            completed=position + 1,
            description=f"epoch {epoch + 1}/{self._epochs}",
            left=left_of_epoch,
            values=f"loss {metrics['loss']:.4f}  acc {metrics['accuracy']:.4f}",
        )
        values = f"lr {metrics['learning_rate']:.3g}  {metrics['images_per_second']:,.0f} images/s"
        self._progress.update(of_run, completed=step, left=left_of_run, values=values)

    def log_line(self, record: Mapping[str, Any]) -> None:
        """Print a log line where there is no bar, which shows the same."""
        fields = [f"step {record['step']}", f"epoch {record['epoch']}/{self._epochs}"]
        fields += [f"{name} {value}" for name, value in _describe_metrics(record).items()]
        fields.append(f"{record['images_per_second']:,.0f} images/s")
        for name, seconds in zip(("epoch", "run"), self._clock.time_left(record["step"]), strict=True):
            fields += [] if seconds is None else [f"{name} {_describe_left(seconds)}"]
        write = self._screen.line if self._progress is None else self._screen.log
        write("  ".join(fields))

    def epoch(self, epoch: int, step: int, logs: Mapping[str, float], best: bool) -> None:
        """Print the metrics of an epoch: on a terminal as the row of a table, elsewhere with their names.

        Args:
            epoch: its number, from 1 on.
            step: steps done.
            logs: what Keras's callbacks get at the end of an epoch.
            best: whether it is the best so far.
        """
        _, left = self._clock.time_left(step)
        row = {
            "epoch": f"{epoch:>{len(str(self._epochs))}}/{self._epochs}",
            **_describe_metrics(logs),
            "time": describe_time(self._clock.end_epoch()),
            "left": "" if left is None else describe_time(left),
        }
        mark = "  best" if best else ""
        labelled = "  ".join(f"{name} {value}" for name, value in row.items() if value) + mark
        if self._progress is None:
            self._screen.line(labelled)
            return
        self._screen.log(labelled)
        if "avg_acc" in row:
            del row["time"]  # the terminal may have no more than 80 columns
        if "val_top5" in row:
            del row["top5"]
        widths = _WIDTHS | {"epoch": max(_WIDTHS["epoch"], len(row["epoch"]))}
        if not self._has_column_names:
            self._has_column_names = True
            self._screen.show("".join(f"{name:>{widths[name]}}" for name in row), style="bold")
        self._screen.show("".join(f"{value:>{widths[name]}}" for name, value in row.items()) + mark)


class _Clock:
    """Says how long a training still takes, from the steps that this process has done.

    Its first chunk of steps does not count: in it, buffers are filled.
    """

    def __init__(self, steps_per_epoch: int, total_steps: int, last_thaw: float = 0):
        self._steps_per_epoch, self._total_steps, self._last_thaw = steps_per_epoch, total_steps, last_thaw
        self.begin(math.inf)

    def begin(self, seconds_left: float) -> None:
        """Start, with at most so much time."""
        now = time.monotonic()
        self._epoch_began, self._ends = now, now + seconds_left
        self.forget_speed()

    def forget_speed(self) -> None:
        """Measure the speed from the next step on."""
        self._first: tuple[int, float] | None = None

    def see(self, step: int) -> None:
        """Note the time of a step, from which the speed is measured if it is the first one."""
        self._first = self._first or (step, time.monotonic())

    def time_left(self, step: int) -> tuple[float | None, float | None]:
        """Return the seconds that are left of the epoch and of the training, validations included; None: unknown."""
        if self._first is None or step <= self._first[0]:
            return None, None
        now = time.monotonic()
        per_step = (now - self._first[1]) / (step - self._first[0])
        end_of_epoch = -(-step // self._steps_per_epoch) * self._steps_per_epoch
        of_epoch, of_run = (
            max(0.0, min((end - step) * per_step, self._ends - now)) for end in (end_of_epoch, self._total_steps)
        )
        return of_epoch, of_run if self._first[0] >= self._last_thaw else None

    def end_epoch(self) -> float:
        """Return the seconds of the epoch that ends now."""
        now = time.monotonic()
        seconds, self._epoch_began = now - self._epoch_began, now
        return seconds


def _describe_left(seconds: float | None) -> str:
    return "" if seconds is None else f"{describe_time(seconds)} left"


def _describe_metrics(values: Mapping[str, float]) -> dict[str, str]:
    """Return what is shown of the metrics of a log line or of an epoch, by its name on the screen."""
    names = [f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", "accuracy", "top5")]
    shown = {name.replace("accuracy", "acc"): name for name in names} | {"avg_acc": "val_averaged_accuracy"}
    metrics = {short: f"{values[name]:.4f}" for short, name in shown.items() if name in values}
    return {**metrics, "lr": f"{values['learning_rate']:.3g}"}
