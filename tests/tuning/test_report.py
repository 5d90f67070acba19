"""What stands on the screen while a search runs and at its end, and what is kept of it."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny_searches import NAME, PEAK, PEAKS, rows_of

from kpipe.config.loading import load_search
from kpipe.console import Screen
from kpipe.tuning.records import Record
from kpipe.tuning.report import Report

MESSAGE = "the loss became nan at step 3; likely causes: ..."
FAILED = Record(3, {}, {PEAK: 3e30}, "failed", seconds=0.5, message=MESSAGE, ended=2.0)


@pytest.fixture
def make_report(experiment, tmp_path):
    """Return a report of a search, and the console of 80 columns on which it appears."""

    def make_report(*overrides, total=5, is_terminal=True):
        loaded = load_search(experiment, overrides)
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80, color_system=None)
        return Report(tmp_path, loaded.experiment, total=total, screen=Screen(console)), console

    return make_report


def lines_of(console):
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def finished(number, values, score):
    return Record(number, {}, values, "finished", score, [score], 0.5, 2, 3.25, ended=number)


def test_the_table_on_a_terminal(make_report, monkeypatch):
    """60 seconds after the search began."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("kpipe.tuning.report.time", SimpleNamespace(monotonic=lambda: clock.now))
    report, console = make_report("search.space.data.augment=[[],[translate]]", f"{PEAKS}.log=[0.001,0.1]")
    values = {"data.augment": ["translate"], PEAK: 0.0123456}
    records = {n: finished(n, values, n / 10) for n in (1, 2)} | {3: FAILED}
    with report.watching({}):
        report.trials_ended(records)
        report.epoch(4, 0, 1, {"val_accuracy": 0.75})
        clock.now = 60.0
        console.print(report)
    shown = """
3 of 5 trials, 1 failed; trial 4: epoch 1, val_accuracy 0.7500; about 40 s left
 rank  trial    val_accuracy  data.augment  learning_rate.peak  epochs    s
    1      2          0.2000  [translate]   0.01235                  2  3.2
    2      1          0.1000  [translate]   0.01235                  2  3.2
           3  failed: the                   3e+30                    0  0.5
              loss became
              nan at step 3
"""
    assert shown in "\n".join(lines_of(console))


def test_more_keys_than_fit_beside_each_other_share_a_column(make_report):
    space = (f"search.space.{key}=[1,2]" for key in (PEAK, "data.batch_size", "seed"))
    report, console = make_report(*space, f"search.space.{NAME}=[sgd]", "search.method=grid")
    values = {PEAK: 0.01, "data.batch_size": 16, "seed": 1, NAME: "sgd"}
    report.finish({1: finished(1, values, 0.5), 3: FAILED}, is_exhausted=False)
    table = lines_of(console)[:7]
    assert table == [
        " rank  trial    val_accuracy  values                                epochs    s",
        "    1      1          0.5000  learning_rate.peak=0.01,                   2  3.2",
        "                              data.batch_size=16, seed=1,",
        "                              optimizer.name=sgd",
        "           3  failed: the     learning_rate.peak=3e+30                   0  0.5",
        "              loss became",
        "              nan at step 3",
    ]


def test_the_end_says_where_everything_is(make_report, tmp_path):
    report, console = make_report(f"{PEAKS}.log=[0.001,0.1]", total=2)
    records = {1: finished(1, {PEAK: 0.01}, 0.5), 3: FAILED}
    (tmp_path / "0001").mkdir()
    (tmp_path / "0001" / "config.yaml").write_text("name: x\n")
    report.finish(records, is_exhausted=False)
    assert lines_of(console)[4:] == [
        "",
        "2 trials (1 finished, 1 failed) in 3.8 s of training",
        "Best: trial 1, val_accuracy 0.5000",
        "Train it:",
        f"  kpipe run {tmp_path}/best.yaml",
        "All trials, with search.png and search_keys.png beside them:",
        f"  {tmp_path}/trials.csv",
        "Curves and HParams:",
        f"  tensorboard --logdir {tmp_path}",
    ]
    assert [row["message"] for row in rows_of(tmp_path)] == ["", MESSAGE]


def test_values_that_were_hardly_tried_are_named(make_report):
    space = [f"search.space.{NAME}=[sgd,rmsprop,adam]", "search.space.data.augment=[[],[translate]]"]
    values = {NAME: "sgd", "data.augment": []}
    tried = {n: finished(n, values, 0.5) for n in (1, 2)} | {3: finished(3, values | {NAME: "adam"}, 0.5)}

    def said(records, *more):
        report, console = make_report(*space, *more)
        report.finish(records, is_exhausted=False)
        return [line for line in lines_of(console) if line.startswith("Rarely tried")]

    assert said(tried)[0] == "Rarely tried: optimizer.name rmsprop (never), optimizer.name adam (once),"
    # A trial that resumes another tries nothing else, so adam has still been tried once.
    heir = replace(tried[3], number=4, parent=3)
    assert said(tried | {4: heir}) == said(tried)
    # The numbers of a range are not counted.
    assert said(tried, f"{PEAKS}.log=[0.001,0.1]", f"search.space.{NAME}=[sgd]", "search.space.data.augment=[[]]") == []


def test_a_space_that_has_been_tried_whole_has_no_rarely_tried_values(make_report):
    report, console = make_report(f"search.space.{NAME}=[sgd,adam]", "search.method=grid")
    report.finish({n: finished(n, {NAME: ("sgd", "adam")[n - 1]}, 0.5) for n in (1, 2)}, is_exhausted=False)
    assert "Rarely" not in console.file.getvalue()


def test_many_values_that_were_never_tried_stay_one_line(make_report):
    report, console = make_report(
        f"search.space.data.batch_size=[{','.join(map(str, range(1, 21)))}]", is_terminal=False
    )
    report.finish({1: finished(1, {"data.batch_size": 1}, 0.5)}, is_exhausted=False)
    [line] = [line for line in lines_of(console) if line.startswith("Rarely")]
    assert line.startswith("Rarely tried: data.batch_size 1 (once), data.batch_size 2 (never), ")
    assert line.endswith("data.batch_size 8 (never) and 12 more")


def test_a_figure_that_cannot_be_drawn_costs_no_search(make_report, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("no such font")

    monkeypatch.setattr("kpipe.figures.draw_search", refuse)
    for name in ("search.png", "search_keys.png"):
        (tmp_path / name).write_text("of an earlier end")
    report, console = make_report(f"{PEAKS}.log=[0.001,0.1]", total=1)
    assert report.finish({1: finished(1, {PEAK: 0.01}, 0.5)}, is_exhausted=False)["status"] == "finished"
    lines = lines_of(console)
    assert "note: search.png, search_keys.png could not be drawn: no such font" in lines
    assert lines[lines.index("All trials:") + 1] == f"  {tmp_path / 'trials.csv'}"
    assert not [*tmp_path.glob("*.png")]
