"""Whole searches through the command line: what stands on the screen, what is left on disk, what bad trials get."""

import csv
import io
import json
import math
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from rich.console import Console
from tensorboard.plugins.hparams import plugin_data_pb2
from tiny_runs import TINY, assert_same_run, records_of

from kpipe.catalog.search import MedianStopping
from kpipe.config.loading import load_search
from kpipe.config.space import make_dimensions
from kpipe.console import Screen
from kpipe.errors import ConfigError, DataError, Diverged, OutOfMemory
from kpipe.files import write_json, write_yaml
from kpipe.search.records import Record, read_records, write_record
from kpipe.search.report import Report
from kpipe.search.stopping import StopBelowMedian

PEAK, NAME = "training.learning_rate.peak", "training.optimizer.name"
PEAKS = f"search.space.{PEAK}"


@pytest.fixture
def search(logs):
    """The folder of the only search."""

    def search(name="tiny"):
        [path] = (logs / name).glob("search-*")
        return path

    return search


def rows_of(path, file="trials.csv"):
    with open(path / file, newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def trained(monkeypatch):
    """Stands for the training: a score that follows from the experiment; returns what was asked for."""
    asked = []

    def train(experiment, *, splits, screen, trial):
        asked.append((experiment, trial, splits))
        epochs = trial.epochs or experiment.training.epochs
        trial.path.mkdir(exist_ok=True)
        write_yaml(trial.path / "config.yaml", experiment.identity())
        (trial.path / "model.keras").write_text("weights")
        (trial.path / "checkpoints").mkdir(exist_ok=True)
        accuracy = score(experiment)
        lines = []
        model = SimpleNamespace(stop_training=False)
        for epoch in range(epochs):
            logs = {"val_accuracy": accuracy, "val_loss": 1 - accuracy}
            screen.epoch(epoch + 1, logs, False)
            lines.append({"split": "validation", "accuracy": accuracy, "loss": 1 - accuracy})
            for callback in trial.callbacks:
                callback.set_model(model)
                callback.on_epoch_end(epoch, logs)
            if model.stop_training:
                epochs = epoch + 1
                break
        (trial.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = {"status": "finished", "epochs": epochs, "seconds": 1.0, "stopped_early": model.stop_training}
        summary["validation"] = {"accuracy": accuracy, "loss": 1 - accuracy}
        write_json(trial.path / "summary.json", summary)
        return SimpleNamespace(summary=summary)

    monkeypatch.setattr("kpipe.search.trials.train", train)
    return asked


def score(experiment):
    """Best at a peak of 0.01; the seed shifts it a little."""
    return round(1 - abs(math.log10(experiment.training.learning_rate.peak) + 2) / 10 - experiment.seed / 1000, 6)


# --- real trainings ---------------------------------------------------------------------------------------------


def test_a_search_from_file_to_best(kpipe, experiment, logs, search):
    space = (f"{PEAKS}=[0.001,3e30]", f"search.space.{NAME}=[sgd,adam]", "search.method=grid", "search.keep=1")
    code, out, err = kpipe("search", experiment, *space, "training.precision=mixed_bfloat16")
    assert (code, err) == (0, "")
    path = search()
    assert re.search(r"^  search     grid, 4 trials of 2 epochs, by val_accuracy$", out, re.M)
    assert re.search(
        rf"^trial 1 of 4  val_accuracy \d\.\d{{4}}  {PEAK[9:]} 0\.001  optimizer.name sgd  2 epochs", out, re.M
    )
    assert re.search(r"^trial \d of 4  failed  .*0 epochs  \d\.\d s  \(the loss became nan", out, re.M)
    rows = rows_of(path)
    assert list(rows[0]) == ["rank", "trial", "status", "score", "epochs", "seconds", "run", PEAK, NAME]
    assert [row["rank"] for row in rows] == [*map(str, range(1, 1 + sum(r["score"] != "" for r in rows)))] + [
        "" for row in rows if row["score"] == ""
    ]
    scores = [float(row["score"]) for row in rows if row["score"]]
    assert scores == sorted(scores, reverse=True)
    assert {row["status"] for row in rows} == {"finished", "failed"}
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["status"], summary["trials"], summary["best"]["trial"]) == ("finished", 4, int(rows[0]["trial"]))

    # A trial is an ordinary run, without figures and without a look at the test part.
    run = path / rows[0]["run"]
    assert {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "model.keras"} <= set(os.listdir(run))
    assert {record["split"] for record in records_of(run)} == {"train", "validation"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["chosen"]["precision"] == "mixed_bfloat16"
    assert f"{config['training']['learning_rate']['peak']:g}" == f"{float(rows[0][PEAK]):g}"
    kept = {row["run"] for row in rows if (path / row["run"] / "model.keras").exists()}
    assert kept == {rows[0]["run"]}

    # best.yaml gives the score again, and the same weights.
    code, out, err = kpipe("run", str(path / "best.yaml"))
    assert (code, err) == (0, "")
    [again] = [each for each in (logs / "tiny").iterdir() if each.is_dir() and each != path]
    assert json.loads((again / "summary.json").read_text())["validation"]["accuracy"] == float(rows[0]["score"])
    weights = [keras.models.load_model(each / "model.keras").get_weights() for each in (run, again)]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*weights, strict=True))

    check_tensorboard(path, rows)


def check_tensorboard(path, rows):
    """HParams: each key with its domain, the metrics, and each trial's values, end and score."""

    def summaries(folder):
        [file] = folder.glob("events.out.*")
        return [v for event in tf.compat.v1.train.summary_iterator(str(file)) for v in event.summary.value]

    def content(value):
        return plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)

    [config] = [content(value).experiment for value in summaries(path)]
    domains = {info.name: [*info.domain_discrete.values] for info in config.hparam_infos}
    assert [value.string_value for value in domains[NAME]] == ["adam", "sgd"]
    assert [value.number_value for value in domains[PEAK]] == [0.001, 3e30]
    assert {("score", ""), ("epoch_accuracy", "validation"), ("epoch_loss", "train")} <= {
        (info.name.tag, info.name.group) for info in config.metric_infos
    }
    for row in rows:
        found = {value.tag: value for value in summaries(path / row["run"])}
        values = content(found["_hparams_/session_start_info"]).session_start_info.hparams
        assert values[NAME].string_value == row[NAME]
        assert values[PEAK].number_value == float(row[PEAK])
        failed = row["status"] == "failed"
        assert content(found["_hparams_/session_end_info"]).session_end_info.status == (2 if failed else 1)
        if not failed:
            assert float(tf.make_ndarray(found["score"].tensor)) == pytest.approx(float(row["score"]))


KILLED = [
    (("kpipe.search.trials", None, "_inherit", 1), "while a trial goes on from another"),
    (("kpipe.search.trials", None, "write_record", 2), "while it ends a trial"),
    (("kpipe.training.checkpoints", "Checkpoints", "commit", 2), "in the middle of one"),
]


def test_hyperband_killed_and_interrupted_is_as_if_it_had_not_been(
    kpipe, start, experiment, logs, search, tmp_path, monkeypatch
):
    command = ("search", experiment, "search.method=hyperband", "search.factor=2", "search.keep=5")
    for blow, when in KILLED:
        assert start(*command, blow=(*blow, signal.SIGKILL)).wait() == -signal.SIGKILL, when
    stopped = start(*command, blow=("kpipe.training.checkpoints", "Checkpoints", "commit", 1, signal.SIGINT))
    assert stopped.wait() == 130
    assert re.search(
        r"interrupted; \d trials? done. The same command goes on from there:\n  .*kpipe search", stopped.err
    )
    last = start(*command)
    assert last.wait() == 0, last.err
    assert re.search(r"resumed after \d trial", last.out)
    there = search()
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    assert kpipe(*command)[0] == 0
    [other] = (tmp_path / "whole" / "tiny").glob("search-*")
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(path)] for path in (there, other)]
    assert timeless[0] == timeless[1]
    assert len(timeless[0]) == 5  # 2 for one epoch, of which 1 goes on; 2 in full

    # The one that went on has the weights, the optimizer and the steps of a run that was never interrupted.
    [heir] = [record for record in read_records(there).values() if record.parent]
    run = there / heir.run()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"]) == (2, 18)
    epochs = [r["epoch"] for r in records_of(run) if (r["split"], r["span"]) == ("validation", "epoch")]
    assert epochs == [1, 2]
    [last] = (run / "checkpoints").glob("step-*")
    with np.load(last / "training.npz") as saved:
        iterations = [saved[name] for name in saved.files if name.startswith("optimizer_variables")][0]
    assert int(iterations) == 18
    assert_same_run(run, other / heir.run())


def test_workers_and_one_that_is_killed(kpipe, experiment, search, logs):
    """Two workers beside the chief; one is killed in the middle of a trial and is given it again."""

    def strike():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for owner in logs.glob("tiny/search-*/0*/.owner"):
                if (owner.parent / "metrics.jsonl").exists():
                    os.kill(json.loads(owner.read_text())["pid"], signal.SIGKILL)
                    return
            time.sleep(0.01)

    striker = threading.Thread(target=strike)
    striker.start()
    command = ("search", experiment, "search.trials=4", "training.epochs=1")
    code, out, err = kpipe(*command, "--workers", "2")
    striker.join()
    assert (code, err) == (0, "")
    assert "random, 4 trials of 1 epoch, by val_accuracy, 2 workers" in out
    assert len(re.findall(r"^trial \d of 4 ", out, re.M)) == 4
    path = search()
    assert sorted(read_records(path)) == [1, 2, 3, 4]
    logs_of_workers = [(path / f"worker-{i}.log").read_text() for i in (1, 2)]
    assert sum(text.count("working on") for text in logs_of_workers) == 3  # one of them twice
    assert re.search(r"^worker-\d was killed \(exit code -9\) and is started again, 1 of 3$", out, re.M)
    assert not [name for name in os.environ if name.startswith("KERASTUNER")]
    # The workers have computed what one process computes.
    code, out, _ = kpipe(*command, "--new")
    one, other = (rows_of(each) for each in sorted((logs / "tiny").glob("search-*")))
    assert [(r["trial"], r["score"]) for r in one] == [(r["trial"], r["score"]) for r in other]


# --- what a search asks of its trials -------------------------------------------------------------------------------


def test_the_same_command_reports_a_finished_search_and_more_trials_go_on(kpipe, experiment, search, trained, logs):
    code, first, _ = kpipe("search", experiment, "search.trials=3")
    assert (code, len(trained)) == (0, 3)
    code, again, _ = kpipe("search", experiment, "search.trials=3")
    assert (code, len(trained)) == (0, 3)
    assert "resumed after 3 trials" in again
    assert again.splitlines()[-6:-1] == first.splitlines()[-5:]
    assert again.splitlines()[-1] == "It was finished before, more search.trials go on with it; --new starts another"
    assert kpipe("search", experiment, "search.trials=5")[0] == 0
    assert (len(trained), len(rows_of(search()))) == (5, 5)
    assert kpipe("search", experiment, "search.trials=3", "--new")[0] == 0
    assert kpipe("search", experiment, "search.seed=1", "search.trials=3")[0] == 0
    assert (len(trained), len([*(logs / "tiny").glob("search-*")])) == (11, 3)


def test_data_are_read_once_for_trials_that_read_the_same(kpipe, experiment, trained, monkeypatch):
    from kpipe.search import trials

    reads = []
    real = trials.load_splits
    monkeypatch.setattr("kpipe.search.trials.load_splits", lambda *a, **o: reads.append(1) or real(*a, **o))
    grid = ("search.method=grid", "search.space.data.batch_size=[8,16]", "search.space.data.augment=[[],[translate]]")
    assert kpipe("search", experiment, *grid)[0] == 0
    assert (len(trained), len(reads)) == (4, 1)
    assert len({id(splits) for _, _, splits in trained}) == 1
    assert len({trial.constants for _, trial, _ in trained}) == 1
    assert kpipe("search", experiment, "search.method=grid", "search.space.data.image_size=[16,20]")[0] == 0
    assert len(reads) == 3
    # A window that looks at the files needs other images than one that looks at what is kept.
    windows = "search.space.data.augment=[[translate],[random_resized_crop]]"
    assert kpipe("search", experiment, "search.method=grid", windows)[0] == 0
    assert len(reads) == 5


def test_executions_have_other_seeds_and_the_score_is_their_mean(kpipe, experiment, search, trained):
    options = ("search.trials=2", "search.executions_per_trial=3", "seed=7")
    code, out, _ = kpipe("search", experiment, *options)
    assert code == 0
    assert [each.seed for each, _, _ in trained] == [7, 8, 9, 7, 8, 9]
    assert [trial.path.name for _, trial, _ in trained][:3] == ["0001", "0001-seed1", "0001-seed2"]
    best = rows_of(search())[0]
    assert float(best["score"]) == pytest.approx(np.mean([score(each) for each, _, _ in trained if
                                                          f"{each.training.learning_rate.peak:g}" ==
                                                          f"{float(best[PEAK]):g}"]))  # fmt: skip
    assert re.search(
        r"^Best: trial \d, val_accuracy \d\.\d{4}; the mean over 3 seeds; best.yaml has the first, with", out, re.M
    )
    [first, second] = rows_of(search(), "groups.csv")
    assert (first["trainings"], float(first["deviation"])) == ("3", pytest.approx(0.001))
    assert "deviation" in out
    head = (search() / "best.yaml").read_text().splitlines()
    assert head[2].startswith("# The mean over 3 seeds; best.yaml has the first, with ")


def test_an_ablation_is_a_grid_over_seeds(kpipe, experiment, search, trained):
    grid = ("search.method=grid", f"{PEAKS}=[0.01,0.1]", "search.space.seed=[0,1,2,3]")
    code, out, _ = kpipe("search", experiment, *grid)
    assert code == 0
    assert [each.seed for each, _, _ in trained] == [0, 1, 2, 3] * 2
    groups = rows_of(search(), "groups.csv")
    assert list(groups[0]) == ["rank", "trainings", "mean", "deviation", PEAK]
    assert [(g["trainings"], float(g["mean"]), float(g[PEAK])) for g in groups] == [
        ("4", pytest.approx(0.9985), 0.01),
        ("4", pytest.approx(0.8985), 0.1),
    ]
    expected = np.std([score(each) for each, _, _ in trained[:4]], ddof=1)
    assert float(groups[0]["deviation"]) == pytest.approx(expected)
    assert re.search(r"^ +1 +0\.9985 +0\.0013 +4 +0\.01", out, re.M)
    assert "Best: trial 1, val_accuracy 1.0000; with seed 0 alone; groups.csv has the means over the seeds\n" in out
    assert "# With seed 0 alone; groups.csv has the means over the seeds.\n" in (search() / "best.yaml").read_text()


def test_the_objective_decides_the_score_and_the_weights(kpipe, experiment, search, trained):
    code, out, _ = kpipe("search", experiment, "search.objective=val_loss", "search.trials=3")
    assert code == 0
    assert {each.training.monitor for each, _, _ in trained} == {"val_loss"}
    rows = rows_of(search())
    assert [float(row["score"]) for row in rows] == sorted(float(row["score"]) for row in rows)
    assert "3 trials of 2 epochs, by val_loss" in out


def test_hyperband_says_when_its_best_was_not_trained_in_full(kpipe, experiment, search, trained, monkeypatch):
    monkeypatch.setitem(globals(), "score", lambda experiment: 0.5)  # the first of equal ones is the best
    code, out, _ = kpipe("search", experiment, "search.method=hyperband", "search.factor=2")
    assert code == 0
    assert "after 1 of 2 epochs: trained in full it gets another score" in out
    assert {each.training.epochs for each, _, _ in trained} == {2}  # its schedule is that of all epochs
    assert [trial.epochs for _, trial, _ in trained] == [1, 1, 2, 2, 2]


def test_the_median_rule_stops_what_is_worse_than_the_others(kpipe, experiment, search, trained):
    rule = ("search.median_stopping.epochs=1", "search.median_stopping.trials=2")
    grid = ("search.method=grid", f"{PEAKS}=[0.01,0.02,0.5,0.011]", *rule)
    code, out, _ = kpipe("search", experiment, *grid)
    assert code == 0
    rows = {row["trial"]: row for row in rows_of(search())}
    assert [rows[number]["status"] for number in "1234"] == ["finished", "finished", "stopped", "finished"]
    assert (rows["3"]["epochs"], rows["4"]["epochs"]) == ("1", "2")
    assert re.search(r"^trial 3 of 4 .* 1 epoch  1.0 s  stopped$", out, re.M)


def test_the_median_rule_by_hand():
    """Running means of the others at epoch 2: 0.6, 0.7, 0.8; their median is 0.7."""
    curves = [[0.5, 0.7], [0.6, 0.8], [0.7, 0.9], [0.9]]

    def is_stopped(*scores, **rule):
        callback = StopBelowMedian(MedianStopping(**rule), "val_accuracy", curves, epochs=3)
        model = SimpleNamespace(stop_training=False)
        callback.set_model(model)
        for epoch, value in enumerate(scores):
            callback.on_epoch_end(epoch, {"val_accuracy": value})
        assert callback.has_stopped(scores) == model.stop_training
        return model.stop_training

    assert is_stopped(0.1, 0.69, trials=3, epochs=2)
    assert not is_stopped(0.1, 0.71, trials=3, epochs=2)
    assert not is_stopped(0.75, 0.1, trials=3, epochs=2)  # its best epoch counts
    assert not is_stopped(0.1, 0.69, trials=4, epochs=2)  # only three have come so far
    assert not is_stopped(0.1, trials=3, epochs=2)
    assert not is_stopped(0.1, 0.1, 0.1, trials=1, epochs=3)  # there is nothing left to stop


def test_the_median_rule_and_a_lost_record(kpipe, experiment, search, trained):
    """A trial that the rule has stopped is still stopped when its record is lost, however many executions it has."""
    rule = ("search.median_stopping.trials=2", "search.executions_per_trial=2")
    grid = ("search.method=grid", f"{PEAKS}=[0.01,0.02,0.5]", *rule)
    kpipe("search", experiment, *grid)
    before = read_records(search())
    assert (before[3].status, len(before[3].scores), len(trained)) == ("stopped", 1, 5)
    (search() / "trials" / "0003.json").unlink()
    (search() / "trials" / "0002.json").write_text("{")
    code, out, _ = kpipe("search", experiment, *grid)
    assert code == 0
    assert "  note: a record is lost or damaged; these trials are looked up in their runs again: 2\n" in out
    timeless = [{n: replace(r, ended=None) for n, r in found.items()} for found in (before, read_records(search()))]
    assert timeless[0] == timeless[1]
    assert len(trained) == 5


def test_notes_about_what_will_be_tried(kpipe, experiment, trained):
    cases = f"{{cases: [{{choice: [0.1], when: {{{NAME}: sgd}}}}, {{choice: [0.01], when: {{{NAME}: adam}}}}]}}"
    text = TINY.replace("{epochs: 2,", "{epochs: 2, optimizer: {name: sgd, momentum: 0.9},")
    Path(experiment).write_text(f"{text}search: {{space: {{{NAME}: [sgd, adam, rmsprop], {PEAK}: {cases}}}}}\n")
    code, out, _ = kpipe("search", experiment, "search.trials=1")
    assert code == 0
    assert "  note: trials with another kind leave out what the file says of training.optimizer.momentum\n" in out
    assert f"  note: {PEAK} has no case for {NAME}: 'rmsprop'; there it stays as in the file\n" in out


def test_another_search_that_is_unfinished_is_named(kpipe, experiment, search, fails, trained):
    fails({2: DataError("gone")})
    assert kpipe("search", experiment, "search.trials=2")[0] == 3
    first = search()
    code, out, _ = kpipe("search", experiment, "search.trials=1", "search.seed=1")
    assert code == 0
    assert f"  note: {first} is unfinished; it has another space or another experiment\n" in out


def test_a_pipe_whose_reader_has_gone_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        screen = Screen()
        screen.console.file = pipe
        screen.line("nobody reads this")
        screen.line("nor this")
    assert screen.console.quiet


def test_the_table_on_a_terminal(experiment, tmp_path):
    """What stands there while a search goes on, at 80 columns."""
    loaded = load_search(experiment, ["search.space.data.augment=[[],[translate]]", f"{PEAKS}.log=[0.001,0.1]"])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    report = Report(
        tmp_path,
        loaded.experiment,
        make_dimensions(loaded.experiment.search),
        objective="val_accuracy",
        total=5,
        screen=Screen(console),
    )
    values = {"data.augment": ["translate"], PEAK: 0.0123456}
    records = {n: Record(n, {}, values, "finished", n / 10, [n / 10], 0.5, 2, 3.25) for n in (1, 2)}
    with report.watching({}):
        report.epoch(3, 0, 1, {"val_accuracy": 0.75})
        report._records = records
        report._began -= 60
        console.print(report)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert " rank  trial  val_accuracy  data.augment  learning_rate.peak  epochs    s" in lines
    assert "    1      2        0.2000  [translate]   0.01235                  2  3.2" in lines
    assert "2 of 5 trials; trial 3: epoch 1, val_accuracy 0.7500; about 90 s left" in lines


# --- bad trials -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fails(trained, monkeypatch):
    """Lets some trials fail."""
    from kpipe.search import trials

    def fails(errors):
        good = trials.train

        def train(experiment, *, trial, **options):
            error = errors.get(int(trial.path.name))
            if error is None:
                return good(experiment, trial=trial, **options)
            if callable(error):
                return error(trial)
            raise error

        monkeypatch.setattr(trials, "train", train)

    return fails


def test_trials_that_cannot_work_fail_and_the_search_goes_on(kpipe, experiment, search, fails):
    fails({1: Diverged("the loss became nan at step 3; likely causes: ..."), 2: OutOfMemory("out of memory with 512"),
           3: ConfigError("vgg11 needs 17 pixels")})  # fmt: skip
    code, out, _ = kpipe("search", experiment, "search.trials=5")
    assert code == 0
    rows = {row["trial"]: row for row in rows_of(search())}
    assert [rows[str(n)]["status"] for n in range(1, 6)] == ["failed"] * 3 + ["finished"] * 2
    assert all(rows[n]["score"] == rows[n]["rank"] == "" for n in "123")
    assert "(the loss became nan at step 3)" in out and "(out of memory with 512)" in out
    assert "5 trials (2 finished, 3 failed)" in out
    assert json.loads((search() / "summary.json").read_text())["best"]["trial"] in (4, 5)


def test_a_loss_of_guessing_ends_a_trial(kpipe, experiment, search, fails):
    """Two classes: ln 2 = 0.693; within 2 % is 0.679 to 0.707."""

    def losses(*values):
        def watched(trial):
            for step, loss in enumerate(values, 1):
                trial.watch({"split": "train", "span": "steps", "step": 10 * step, "loss": loss})
                trial.watch({"split": "train", "span": "epoch", "step": 10 * step, "loss": 0.693})
            raise Diverged("it was not stuck")

        return watched

    fails({1: losses(0.693, 0.693, 0.70), 2: losses(0.693, 0.693, 0.6), 3: losses(0.6, 0.72, 0.68)})
    kpipe("search", experiment, "search.trials=4", "search.stuck_after=30")
    messages = {n: record.message for n, record in read_records(search()).items()}
    assert messages[1] == (
        "stuck: the training loss is 0.700 after 30 steps, within 2% of 0.693, that of guessing among 2 classes"
    )
    assert messages[2] == "it was not stuck"
    assert messages[3].startswith("stuck: the training loss is 0.680")
    assert messages[4] is None


def test_auxiliary_heads_guess_too(kpipe, experiment, search, fails):
    """ln 2, and 0.3 times that for each of two heads: 1.109."""
    guess = {"split": "train", "span": "steps", "step": 100, "loss": 1.11}
    fails({1: lambda trial: trial.watch(guess)})
    kpipe(
        "search",
        experiment,
        "search.trials=1",
        "model.name=googlenet",
        "model.auxiliary_heads=true",
        "data.image_size=20",
    )
    assert read_records(search())[1].message.startswith(
        "stuck: the training loss is 1.110 after 100 steps, within 2% of 1.109"
    )


def test_a_loss_that_is_no_cross_entropy_has_no_such_mark(kpipe, experiment, search, fails):
    fails({1: lambda trial: trial.watch({"split": "train", "span": "steps", "step": 999, "loss": 0.693}) or 1 / 0})
    with pytest.raises(ZeroDivisionError):
        kpipe("search", experiment, "search.trials=1", "training.loss.name=euclidean")


def test_a_programming_error_ends_the_search_with_its_traceback(kpipe, experiment, search, fails, trained):
    fails({2: RuntimeError("a mistake in the code")})
    with pytest.raises(RuntimeError, match="a mistake in the code") as caught:
        kpipe("search", experiment, "search.trials=5")
    assert [entry.name for entry in caught.traceback][-1] == "train"
    assert len(trained) == 1
    assert [record.status for record in read_records(search()).values()] == ["finished", "running"]


def test_an_error_of_the_data_ends_the_search(kpipe, experiment, fails):
    fails({1: DataError("photos/: expected images, found none")})
    code, _, err = kpipe("search", experiment, "search.trials=3")
    assert (code, err) == (3, "photos/: expected images, found none\n")


def test_data_without_a_validation_part(kpipe, experiment, trained, monkeypatch):
    from kpipe.search import trials

    real = trials.load_splits

    def without(*arguments, **options):
        return replace(real(*arguments, **options), validation=None)

    monkeypatch.setattr("kpipe.search.trials.load_splits", without)
    code, _, err = kpipe("search", experiment)
    assert (code, err) == (
        3,
        "synthetic: a search needs a validation part, which this data does not give; take a larger "
        "data.split.validation, or more images a class\n",
    )


def test_a_search_without_one_score(kpipe, experiment, search, fails):
    fails({number: Diverged("the loss became nan at step 3; likely causes: ...") for number in (1, 2)})
    code, out, err = kpipe("search", experiment, "search.trials=2")
    assert code == 4
    assert err == f"{search()}: not one of 2 trials has a score; the reasons stand above\n"
    assert "  trial 1, 2: the loss became nan at step 3; likely causes: ..." in out
    assert not (search() / "best.yaml").exists()


def test_a_space_smaller_than_the_number_of_trials(kpipe, experiment, search, trained):
    code, out, _ = kpipe("search", experiment, f"search.space.{NAME}=[sgd,adam]", "search.trials=9")
    assert (code, len(trained)) == (0, 2)
    assert "The space has no more combinations; all have been tried" in out


# --- what is remembered ---------------------------------------------------------------------------------------------


METHODS = (["search.trials=5"], ["search.method=hyperband", "search.factor=2", "training.epochs=4"])


@pytest.mark.parametrize("method", METHODS, ids=["random", "hyperband"])
@pytest.mark.parametrize("damage", ["cut", "gone", "another format", "not an object", "two of them"])
def test_damaged_records_are_found_again(kpipe, experiment, search, trained, damage, method):
    command = ("search", experiment, *method)
    kpipe(*command)
    before = {number: replace(record, ended=None) for number, record in read_records(search()).items()}
    paths = sorted((search() / "trials").iterdir())
    for path in paths if damage != "two of them" else (paths[2], paths[-2]):
        text = path.read_text()
        new = {"cut": text[: len(text) // 2], "another format": text.replace('"format": 1', '"format": 99')}
        path.unlink() if damage == "gone" else path.write_text(new.get(damage, "[]"))
    for name in ("summary.json", "trials.csv", "config.yaml", "best.yaml"):
        (search() / name).write_text("{")
    done = len(trained)
    code, out, _ = kpipe(*command)
    assert (code, len(trained)) == (0, done)  # their runs are finished
    assert {number: replace(record, ended=None) for number, record in read_records(search()).items()} == before
    assert len(rows_of(search())) == len(before)


def test_records_are_written_and_read(tmp_path):
    (tmp_path / "trials").mkdir()
    record = Record(3, {"a": 1, "tuner/epochs": 2}, {"a.b": [1, "x"]}, "finished", 0.5, [0.4, 0.6], 0.1, 2, 3.5, 1)
    write_record(tmp_path, record)
    (tmp_path / "trials" / "0004.json").write_text((tmp_path / "trials" / "0003.json").read_text())  # a copy
    assert read_records(tmp_path) == {3: record}


def test_two_searches_at_once(kpipe, experiment, trained, logs):
    from kpipe.search.directory import open_search

    loaded = load_search(experiment, ["search.trials=2"])
    identity = loaded.experiment.identity() | {"search": loaded.experiment.search.model_dump(mode="json")}
    with open_search(logs, "tiny", identity, {}) as path:
        code, _, err = kpipe("search", experiment, "search.trials=2")
    assert code == 5
    assert err.startswith(f"{path}: this search is still going on (process {os.getpid()} on ")
    assert not trained


def test_a_run_beside_a_search_does_not_see_it(kpipe, experiment, search, trained, logs):
    kpipe("search", experiment, "search.trials=2")
    code, out, _ = kpipe("run", experiment, "training.epochs=1")
    assert code == 0
    assert "note" not in out


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker_says(monkeypatch, tmp_path):
    """Puts a shell script in the place of the workers."""

    def worker_says(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(path))

    return worker_says


def test_a_worker_that_is_killed_again_and_again_ends_the_search(kpipe, experiment, search, worker_says):
    worker_says("kill -9 $$")
    code, _, err = kpipe("search", experiment, "search.trials=2", "--workers", "2")
    assert code == 5
    assert re.search(r"worker-\d was killed 4 times \(exit code -9\), so the search ends here; is the memory too small "
                     r"for 2 workers\? Its log: .*worker-\d.log. The same command goes on.", err)  # fmt: skip


def test_what_a_worker_says_is_said_by_the_search(kpipe, experiment, worker_says):
    worker_says("echo 'photos/: expected images, found none'; exit 3")
    code, _, err = kpipe("search", experiment, "--workers", "2")
    assert code == 3
    assert re.search(r"^worker-\d: photos/: expected images, found none$", err, re.M)
    worker_says("echo 'Traceback: a mistake in the code'; exit 1")
    with pytest.raises(RuntimeError, match=r"(?s)worker-\d ended with exit code 1.*a mistake in the code"):
        kpipe("search", experiment, "--workers", "2")


@pytest.fixture
def as_worker(monkeypatch):
    """This process is a worker; the chief answers what is given."""
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker-1")

    def as_worker(answer):
        monkeypatch.setattr("keras_tuner.src.distribute.oracle_client.OracleClient.get_space", answer)

    return as_worker


def test_a_worker_of_another_experiment(kpipe, experiment, as_worker, logs):
    as_worker(lambda client: None)
    code, out, err = kpipe("search", experiment)
    assert (code, out) == (5, "waiting for the chief at 127.0.0.1:8000\n")
    assert err == (
        f"{logs / 'tiny'}: expected the folder of the chief's search, found none of this experiment. Workers need the "
        "chief's experiment, and its folder of logs on a shared disk (KPIPE_LOGS).\n"
    )


def test_a_chief_that_is_gone(kpipe, experiment, as_worker):
    class Gone(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.UNAVAILABLE

        def details(self):
            return "failed to connect"

    def answer(client):
        raise Gone

    as_worker(answer)
    code, _, err = kpipe("search", experiment)
    assert code == 5
    assert err == (
        "the chief at 127.0.0.1:8000 has gone or does not answer (UNAVAILABLE: failed to connect). Start it again, and "
        "this worker: the search goes on\n"
    )


def test_an_option_that_is_not_for_workers(kpipe, experiment, as_worker):
    as_worker(lambda client: None)
    for option in (("--workers", "2"), ("--new",)):
        code, _, err = kpipe("search", experiment, *option)
        assert (code, err.startswith("--workers, --new: expected neither where KERASTUNER_TUNER_ID says")) == (2, True)


def test_an_error_of_the_chief_is_its_own(kpipe, experiment, worker_says, monkeypatch):
    """Not one of the worker, and not one of the protocol."""
    monkeypatch.setattr("kpipe.search.tuner._Tuner.search", lambda tuner: 1 / 0)
    worker_says("sleep 60")
    with pytest.raises(ZeroDivisionError):
        kpipe("search", experiment, "--workers", "2")


def test_a_worker_that_comes_too_late_is_not_waited_for(kpipe, experiment, worker_says, monkeypatch):
    """keras-tuner's chief has told all that it knew to stop; another would wait for it an hour."""
    monkeypatch.setattr("kpipe.search.tuner._Tuner.search", lambda tuner: None)
    worker_says("sleep 60")
    begun = time.monotonic()
    code, _, err = kpipe("search", experiment, "--workers", "2")
    assert (code, "not one of 0 trials has a score" in err) == (4, True)
    assert time.monotonic() - begun < 20


def test_an_incomplete_address_of_the_chief(kpipe, experiment, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    code, _, err = kpipe("search", experiment)
    assert code == 2
    assert err == (
        "KERASTUNER_ORACLE_IP is set: expected KERASTUNER_ORACLE_PORT and KERASTUNER_TUNER_ID as well, for several "
        "workers\n"
    )
