"""The report of a search: a table while it runs, files for other programs, TensorBoard, and a figure."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from kpipe import figures
from kpipe.config.schema import Experiment
from kpipe.config.space import keys_of, make_dimensions
from kpipe.console import Screen, counted
from kpipe.files import write_json, write_text
from kpipe.names import printable, shell_quoted
from kpipe.search.directory import SUMMARY
from kpipe.search.hparams import remove_unfinished, write_session, write_space
from kpipe.search.oracles import EPOCHS
from kpipe.search.records import (
    Group,
    Record,
    group_over_seeds,
    objective_of,
    rank,
    write_groups,
    write_trials,
)

_SHOWN = 10  # trials in the table
_ENDINGS = ("finished", "stopped", "failed")
BEST, TRIALS_CSV, GROUPS_CSV, FIGURE = "best.yaml", "trials.csv", "groups.csv", "search.png"


class Report:
    """The report of one search, updated whenever a trial has ended.

    Args:
        folder: of the search, where the report is written.
        experiment: what is searched.
        total: how many trials there will be, at most.
        screen: where the user sees it.
    """

    def __init__(self, folder: Path, experiment: Experiment, *, total: int, screen: Screen):
        self._folder = folder
        self._dimensions = make_dimensions(experiment.search)
        self._keys = keys_of(experiment.search)
        self._objective = objective_of(experiment)
        self._total = total
        self._epochs = experiment.training.epochs
        self._screen = screen
        self._names = _short_names(self._keys)
        self._live: Live | None = None
        self._records: dict[int, Record] = {}
        self._current = ""
        self._began = time.monotonic()
        self._done_before = 0

    @contextmanager
    def watching(self, records: Mapping[int, Record]) -> Iterator[None]:
        """Show the table on the screen inside the `with`, where that is a terminal."""
        self._records = dict(records)
        self._done_before = self._done
        if not self._screen.console.is_terminal:
            yield
            return
        with Live(self, console=self._screen.console, refresh_per_second=2, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None

    def __rich__(self) -> Table:
        table = self._table(rank(self._records.values(), self._objective))
        table.caption, table.caption_justify = self._progress(), "left"
        return table

    def epoch(self, number: int, execution: int, epoch: int, logs: Mapping[str, float]) -> None:
        """Show that a trial has ended an epoch."""
        again = f", seed {execution + 1}" if execution else ""
        self._current = f"trial {number}{again}: epoch {epoch}, {self._objective} {logs[self._objective]:.4f}"

    def trials_ended(self, records: Mapping[int, Record]) -> None:
        """Show and write what has changed."""
        known = {record.number for record in self._records.values() if record.has_ended}
        ended = [record for record in records.values() if record.has_ended and record.number not in known]
        self._records, self._current = dict(records), ""
        if self._live is None:
            for record in ended:
                self._screen.line(self._line(record))
        self.write(records)

    def write(self, records: Mapping[int, Record]) -> None:
        """Write the files, TensorBoard's included."""
        path, ended = self._folder, [record for record in records.values() if record.has_ended]
        write_trials(path / TRIALS_CSV, records.values(), self._objective, self._keys)
        if _have_repetitions(self._keys, ended):
            write_groups(path / GROUPS_CSV, group_over_seeds(ended, self._objective), self._keys_but_seed)
        write_space(path, self._dimensions, self._objective)
        for record in ended:
            write_session(path, record)
        self._write_best(ended)

    def finish(self, records: Mapping[int, Record], *, is_exhausted: bool) -> dict[str, Any]:
        """Draw the figure, write search.json and show the result; return what search.json holds.

        Args:
            records: of all trials.
            is_exhausted: the space has fewer combinations than trials were requested.
        """
        self.write(records)
        order = sorted((r for r in records.values() if r.has_ended), key=lambda r: r.ended or 0)
        scores = [record.score if record.has_score else None for record in order]
        times = _times(order, records)
        undrawn: list[str] = []
        with figures.noting_failures(undrawn, self._folder, FIGURE):
            figure = figures.draw_search(scores, times, objective=self._objective)
            figures.save_figure(figure, self._folder / FIGURE)
        best = rank(order, self._objective)
        counts = {status: sum(record.status == status for record in order) for status in _ENDINGS}
        summary = {
            "status": "finished",
            "objective": self._objective,
            "trials": len(order),
            **counts,
            "seconds": round(max(times, default=0.0), 2),
            "best": {"trial": best[0].number, "score": best[0].score, "values": best[0].values} if best else None,
        }
        write_json(self._folder / SUMMARY, summary)
        remove_unfinished(self._folder)
        self._show_result(best, order, summary, is_exhausted, undrawn)
        return summary

    # --- on the screen ----------------------------------------------------------------------------------------------

    @property
    def _done(self) -> int:
        return sum(record.has_ended for record in self._records.values())

    def _progress(self) -> str:
        failed = sum(record.status == "failed" for record in self._records.values())
        texts = [
            f"{self._done} of {counted(self._total, 'trial')}" + (f", {failed} failed" if failed else ""),
            self._current,
            self._time_left(),
        ]
        return "; ".join(text for text in texts if text)

    def _time_left(self) -> str:
        """Estimate from the trials of this process, however many epochs each had."""
        done = self._done - self._done_before
        if not done or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self._total - self._done)
        return f"about {_duration(seconds)} left"

    def _line(self, record: Record) -> str:
        values = "  ".join(f"{self._names[key]} {_shown(value)}" for key, value in record.values.items())
        result = f"{self._objective} {record.score:.4f}" if record.has_score else record.status
        best = rank(self._records.values(), self._objective)[:1] == [record]
        epochs = counted(record.epochs, "epoch")
        text = f"trial {record.number} of {self._total}  {result}  {values}  {epochs}  {record.seconds:.1f} s"
        text += f"  (from trial {record.parent})" if record.parent else ""
        ending = "  best" if best else "  stopped" if record.status == "stopped" else ""
        return text + ending + (f"  ({_first_sentence(record.message)})" if record.message else "")

    @property
    def _keys_but_seed(self) -> list[str]:
        return [key for key in self._keys if key != "seed"]

    def _table(self, order: Sequence[Record]) -> Table:
        rows = [
            ((f"{record.number}", f"{record.score:.4f}"), record.values, (f"{record.epochs}", f"{record.seconds:.1f}"))
            for record in order[:_SHOWN]
        ]
        return self._ranking(("trial", self._objective), self._keys, ("epochs", "s"), rows)

    def _group_table(self, groups: Sequence[Group]) -> Table:
        rows = [
            ((f"{group.mean:.4f}", f"{group.std:.4f}", f"{len(group.scores)}"), group.values, ())
            for group in groups[:_SHOWN]
        ]
        columns = (f"mean {self._objective}", "std", "trainings")
        return self._ranking(columns, self._keys_but_seed, (), rows)

    def _ranking(
        self, before: Sequence[str], keys: Sequence[str], after: Sequence[str], rows: Sequence[tuple]
    ) -> Table:
        """Make a table of rows (numbers, values by key, numbers), the best first."""
        table = Table(show_edge=False, box=None, header_style="bold")
        for column in ("rank", *before):
            table.add_column(column, justify="right", no_wrap=True)
        for key in keys:
            table.add_column(self._names[key], overflow="fold")
        for column in after:
            table.add_column(column, justify="right", no_wrap=True)
        for place, (first, values, last) in enumerate(rows, 1):
            # As Text, in which rich does not read brackets as markup.
            cells = (Text(_shown(values[key]) if key in values else "") for key in keys)
            table.add_row(f"{place}", *first, *cells, *last)
        return table

    def _show_result(
        self,
        best: Sequence[Record],
        order: Sequence[Record],
        summary: Mapping[str, Any],
        is_exhausted: bool,
        undrawn: Sequence[str],
    ) -> None:
        line, path = self._screen.line, self._folder
        if best:
            self._screen.console.print(self._table(best))
        if _have_repetitions(self._keys, order):
            line("")
            self._screen.console.print(self._group_table(group_over_seeds(order, self._objective)))
        line("")
        said = ", ".join(f"{summary[status]} {status}" for status in _ENDINGS if summary[status])
        line(f"{counted(len(order), 'trial')} ({said}) in {_duration(summary['seconds'])} of training")
        if is_exhausted:
            line("The space has no more combinations; all have been tried")
        if len(order) < self._total:
            left = counted(self._total - len(order), "trial")
            line(f"{left} could not resume another: too few of the others have a score")
        if not best:
            for message in dict.fromkeys(record.message for record in order):
                numbers = ", ".join(str(record.number) for record in order if record.message == message)
                line(f"  trial {numbers}: {message}")
        else:
            remark = self._remark(best[0])
            line(
                f"Best: trial {best[0].number}, {self._objective} {best[0].score:.4f}{'; ' + remark if remark else ''}"
            )
            line(f"Train it: kpipe run {shell_quoted(str(path / BEST))}")
        line(f"All trials: {path / TRIALS_CSV}" + ("" if undrawn else f"; {path / FIGURE}"))
        for failure in undrawn:
            line(f"note: {failure}")
        line(f"Curves and HParams: tensorboard --logdir {shell_quoted(str(path))}")

    def _remark(self, best: Record) -> str:
        """Return what to know before training best.yaml; empty where that reproduces the score."""
        epochs = best.codes.get(EPOCHS, self._epochs)
        if epochs < self._epochs and best.epochs >= epochs:  # else early stopping has ended it, and would again
            return f"after {epochs} of {self._epochs} epochs: trained in full, its score will differ"
        if len(best.scores) > 1:
            return f"the mean over {len(best.scores)} seeds; best.yaml has the first seed, with {best.scores[0]:.4f}"
        if "seed" in self._keys:
            return f"with seed {best.values['seed']} only; {GROUPS_CSV} has the means over the seeds"
        return ""

    def _write_best(self, ended: Sequence[Record]) -> None:
        best = next(iter(rank(ended, self._objective)), None)
        config = best and self._folder / best.run() / "config.yaml"
        if config is None or not config.exists():  # somebody has removed it
            (self._folder / BEST).unlink(missing_ok=True)
            return
        lines = [
            f"The best of {counted(len(ended), 'trial')}: trial {best.number}, {self._objective} {best.scores[0]:.6g}."
        ]
        if best.codes.get(EPOCHS, self._epochs) == self._epochs:
            lines.append("On the same machine, kpipe run reproduces this score to the last bit.")
        if remark := self._remark(best):
            lines.append(f"{remark[0].upper()}{remark[1:]}.")
        head = "".join(f"# {line}\n" for line in lines)
        write_text(self._folder / BEST, head + config.read_text(encoding="utf-8"))


def _times(order: Sequence[Record], records: Mapping[int, Record]) -> list[float]:
    """Return when each trial ended, in seconds of training, as if all workers were one."""
    total, times = 0.0, []
    for record in order:
        parent = records.get(record.parent)
        total += record.seconds - (parent.seconds if parent else 0.0)
        times.append(total)
    return times


def _have_repetitions(keys: Sequence[str], records: Iterable[Record]) -> bool:
    """Return whether some trainings differ only in their seed."""
    return "seed" in keys or any(len(record.scores) > 1 for record in records)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unique end of each dotted key, of at least two words."""
    names = {}
    for key in keys:
        words = key.split(".")
        lengths = range(min(2, len(words)), len(words) + 1)
        ends = (".".join(words[-length:]) for length in lengths)
        names[key] = next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)
    return names


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value) if isinstance(value, str) else json.dumps(value).replace('"', "")


def _first_sentence(message: str) -> str:
    return message.splitlines()[0].split("; ")[0].split(". ")[0].removesuffix(".")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
