"""What stands on the screen while a search runs."""

import io
from types import SimpleNamespace

from rich.console import Console
from tiny_searches import PEAK, PEAKS

from kpipe.config.loading import load_search
from kpipe.console import Screen
from kpipe.search.records import Record
from kpipe.search.report import Report


def test_the_table_on_a_terminal(experiment, tmp_path, monkeypatch):
    """At 80 columns, 60 seconds after the search began."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("kpipe.search.report.time", SimpleNamespace(monotonic=lambda: clock.now))
    loaded = load_search(experiment, ["search.space.data.augment=[[],[translate]]", f"{PEAKS}.log=[0.001,0.1]"])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    report = Report(tmp_path, loaded.experiment, total=5, screen=Screen(console))
    values = {"data.augment": ["translate"], PEAK: 0.0123456}
    records = {n: Record(n, {}, values, "finished", n / 10, [n / 10], 0.5, 2, 3.25, ended=n) for n in (1, 2)}
    with report.watching({}):
        report.trials_ended(records)
        report.epoch(3, 0, 1, {"val_accuracy": 0.75})
        clock.now = 60.0
        console.print(report)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert " rank  trial  val_accuracy  data.augment  learning_rate.peak  epochs    s" in lines
    assert "    1      2        0.2000  [translate]   0.01235                  2  3.2" in lines
    assert "2 of 5 trials; trial 3: epoch 1, val_accuracy 0.7500; about 90 s left" in lines


def test_a_figure_that_cannot_be_drawn_costs_no_search(experiment, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("no such font")

    monkeypatch.setattr("kpipe.figures.draw_search", refuse)
    (tmp_path / "search.png").write_text("of an earlier end")
    loaded = load_search(experiment, [f"{PEAKS}.log=[0.001,0.1]"])
    console = Console(file=io.StringIO(), width=300)
    records = {1: Record(1, {}, {PEAK: 0.01}, "finished", 0.5, [0.5], 0.5, 2, 3.25, ended=1.0)}
    summary = Report(tmp_path, loaded.experiment, total=1, screen=Screen(console)).finish(records, is_exhausted=False)
    assert summary["status"] == "finished"
    lines = console.file.getvalue().splitlines()
    assert "note: search.png could not be drawn: no such font" in lines
    assert f"All trials: {tmp_path / 'trials.csv'}" in lines
    assert not (tmp_path / "search.png").exists()
