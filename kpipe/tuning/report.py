"""The report of a search: a table while it runs, files for other programs, TensorBoard, and a figure."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kpipe import figures
from kpipe.config.schema import Experiment
from kpipe.config.space import keys_of, make_dimensions
from kpipe.console import Screen, counted, describe_time
from kpipe.errors import some
from kpipe.files import write_json, write_text
from kpipe.names import shell_quoted, short_endings
from kpipe.tuning.coverage import count_rare_values, searched_keys
from kpipe.tuning.directory import SUMMARY
from kpipe.tuning.hparams import remove_unfinished, write_session, write_space
from kpipe.tuning.oracles import EPOCHS
from kpipe.tuning.records import (
    Record,
    group_over_seeds,
    objective_of,
    rank,
    show_value,
    write_groups,
    write_trials,
)
from kpipe.tuning.tables import first_sentence, groups_table, trials_table

_MOST_VALUES = 8  # that are listed as rarely tried
_ENDINGS = ("finished", "stopped", "failed")
BEST, TRIALS_CSV, GROUPS_CSV = "best.yaml", "trials.csv", "groups.csv"
FIGURE, KEYS_FIGURE = "search.png", "search_keys.png"


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
        self._names = short_endings(self._keys)
        self._is_shown = False
        self._records: dict[int, Record] = {}
        self._current = ""
        self._began = time.monotonic()
        self._done_before = 0

    @contextmanager
    def watching(self, records: Mapping[int, Record]) -> Iterator[None]:
        """Show the table on the screen inside the `with`, where that is a terminal."""
        self._records = dict(records)
        self._done_before = self._done
        with self._screen.showing(self, per_second=2) as refresh:
            self._is_shown = refresh is not None
            yield

    def __rich__(self) -> RenderableType:
        # Where the terminal is too low for the table, its end is left out.
        return Stack(Text(self._progress()), self._table(self._records.values()))

    def epoch(self, number: int, execution: int, epoch: int, logs: Mapping[str, float]) -> None:
        """Show that a trial has ended an epoch."""
        again = f", seed {execution + 1}" if execution else ""
        self._current = f"trial {number}{again}: epoch {epoch}, {self._objective} {logs[self._objective]:.4f}"

    def trials_ended(self, records: Mapping[int, Record]) -> None:
        """Show and write what has changed."""
        known = {record.number for record in self._records.values() if record.has_ended}
        ended = [record for record in records.values() if record.has_ended and record.number not in known]
        self._records, self._current = dict(records), ""
        if not self._is_shown:
            for record in ended:
                self._screen.line(self._line(record))
        self.write(records)

    def write(self, records: Mapping[int, Record]) -> None:
        """Write the files, TensorBoard's included."""
        path, ended = self._folder, [record for record in records.values() if record.has_ended]
        write_trials(path / TRIALS_CSV, records.values(), self._objective, self._keys)
        if _have_repetitions(self._keys, ended):
            write_groups(
                path / GROUPS_CSV,
                group_over_seeds(ended, self._objective),
                [key for key in self._keys if key != "seed"],
            )
        write_space(path, self._dimensions, self._objective)
        for record in ended:
            write_session(path, record)
        self._write_best(ended)

    def finish(self, records: Mapping[int, Record], *, is_exhausted: bool) -> dict[str, Any]:
        """Draw the figures, write search.json and show the result; return what search.json holds.

        Args:
            records: of all trials.
            is_exhausted: the space has fewer combinations than trials were requested.
        """
        self.write(records)
        order = sorted((r for r in records.values() if r.has_ended), key=lambda r: r.ended or 0)
        times = _times(order, records)
        best = rank(order, self._objective)
        undrawn = self._draw(order, times, best[0] if best else None)
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

    def _draw(self, order: Sequence[Record], times: Sequence[float], best: Record | None) -> list[str]:
        """Save the figures; return lines about those that cannot be drawn."""
        undrawn: list[str] = []
        scores = [record.score if record.has_score else None for record in order]
        with figures.noting_failures(undrawn, self._folder, FIGURE, KEYS_FIGURE):
            figure = figures.draw_search(scores, times, objective=self._objective)
            figures.save_figure(figure, self._folder / FIGURE)
            keys = searched_keys(self._dimensions, order, self._names)
            place = order.index(best) if best else None
            figure = figures.draw_search_keys(keys, scores, objective=self._objective, best=place)
            figures.save_figure(figure, self._folder / KEYS_FIGURE)
        return undrawn

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
        return f"about {describe_time(seconds)} left"

    def _line(self, record: Record) -> str:
        values = "  ".join(f"{self._names[key]} {show_value(value)}" for key, value in record.values.items())
        result = f"{self._objective} {record.score:.4f}" if record.has_score else record.status
        best = rank(self._records.values(), self._objective)[:1] == [record]
        epochs = counted(record.epochs, "epoch")
        text = f"trial {record.number} of {self._total}  {result}  {values}  {epochs}  {record.seconds:.1f} s"
        text += f"  (from trial {record.parent})" if record.parent else ""
        ending = "  best" if best else "  stopped" if record.status == "stopped" else ""
        return text + ending + (f"  ({first_sentence(record.message)})" if record.message else "")

    def _show_result(
        self,
        best: Sequence[Record],
        order: Sequence[Record],
        summary: Mapping[str, Any],
        is_exhausted: bool,
        undrawn: Sequence[str],
    ) -> None:
        line, prose, path = self._screen.line, self._screen.prose, self._folder
        if best:
            self._screen.console.print(self._table(order))
        if _have_repetitions(self._keys, order):
            line("")
            self._screen.console.print(self._group_table(order))
        line("")
        said = ", ".join(f"{summary[status]} {status}" for status in _ENDINGS if summary[status])
        prose(f"{counted(len(order), 'trial')} ({said}) in {describe_time(summary['seconds'])} of training")
        if is_exhausted:
            prose("The space has no more combinations; all have been tried")
        if rare := self._rarely_tried(order):
            prose(f"Rarely tried: {rare}")
        if len(order) < self._total:
            left = counted(self._total - len(order), "trial")
            prose(f"{left} could not resume another: too few of the others have a score")
        if not best:
            for message in dict.fromkeys(record.message for record in order):
                numbers = [str(record.number) for record in order if record.message == message]
                prose(f"  {'trial' if len(numbers) == 1 else 'trials'} {', '.join(numbers)}: {message}", indent=4)
        else:
            remark = self._remark(best[0])
            prose(
                f"Best: trial {best[0].number}, {self._objective} {best[0].score:.4f}{'; ' + remark if remark else ''}"
            )
            line("Train it:")
            line(f"  kpipe run {shell_quoted(str(path / BEST))}")
        drawn = "" if undrawn else f", with {FIGURE} and {KEYS_FIGURE} beside them"
        line(f"All trials{drawn}:")
        line(f"  {path / TRIALS_CSV}")
        for failure in undrawn:
            prose(f"note: {failure}")
        line("Curves and HParams:")
        line(f"  tensorboard --logdir {shell_quoted(str(path))}")

    def _table(self, records: Iterable[Record]) -> Table:
        return trials_table(records, self._objective, self._names, self._screen.console)

    def _group_table(self, ended: Iterable[Record]) -> Table:
        names = {key: name for key, name in self._names.items() if key != "seed"}
        groups = group_over_seeds(ended, self._objective)
        return groups_table(groups, self._objective, names, self._screen.console)

    def _rarely_tried(self, ended: Sequence[Record]) -> str:
        """Return the values of choices that at most one trial has had, and how often; empty where there are none."""
        found = [
            f"{self._names[key]} {value} ({'once' if count else 'never'})"
            for (key, value), count in count_rare_values(self._dimensions, ended).items()
        ]
        return some(found, show=str, most=_MOST_VALUES)

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
