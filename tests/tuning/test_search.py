"""Whole searches through the command line: what they train, what is left on disk, and how they are resumed."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from tensorboard.plugins.hparams import plugin_data_pb2
from tiny_runs import TINY, assert_same_run, only_run, records_of
from tiny_searches import NAME, PEAK, PEAKS, rows_of, searches_of

from kpipe.config.loading import load_search
from kpipe.errors import DataError
from kpipe.tuning.directory import identity_of, open_search
from kpipe.tuning.records import read_records

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
    assert list(rows[0]) == ["rank", "trial", "status", "score", "epochs", "seconds", "run", PEAK, NAME, "message"]
    assert [row["rank"] for row in rows] == [*map(str, range(1, 1 + sum(r["score"] != "" for r in rows)))] + [
        "" for row in rows if row["score"] == ""
    ]
    scores = [float(row["score"]) for row in rows if row["score"]]
    assert scores == sorted(scores, reverse=True)
    assert {row["status"] for row in rows} == {"finished", "failed"}
    summary = json.loads((path / "search.json").read_text())
    assert (summary["status"], summary["trials"], summary["best"]["trial"]) == ("finished", 4, int(rows[0]["trial"]))

    # TensorBoard lists whatever lies below the folder of the runs: there are no trials among them.
    assert not list(logs.rglob("events.out.*"))
    assert len({file.parent.parent.name for file in path.glob("*/train/events.out.*")}) == 4

    # A trial is an ordinary run, without figures and without the test split.
    run = path / rows[0]["run"]
    assert {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "model.keras"} <= set(os.listdir(run))
    assert {record["split"] for record in records_of(run)} == {"train", "validation"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["chosen"]["precision"] == "mixed_bfloat16"
    assert f"{config['training']['learning_rate']['peak']:g}" == f"{float(rows[0][PEAK]):g}"
    kept = {row["run"] for row in rows if (path / row["run"] / "model.keras").exists()}
    assert kept == {rows[0]["run"]}

    # best.yaml reproduces the score, and the same weights.
    code, out, err = kpipe("run", str(path / "best.yaml"))
    assert (code, err) == (0, "")
    again = only_run(logs)
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
    (("kpipe.tuning.trials", None, "inherit_run", 1), "while a trial resumes another"),
    (("kpipe.tuning.trials", None, "write_record", 2), "while it ends a trial"),
    (("kpipe.training.checkpoints", "Checkpoints", "commit", 2), "in the middle of one"),
]


@pytest.mark.slow
def test_hyperband_killed_and_interrupted_is_as_if_it_had_not_been(
    kpipe, start, experiment, logs, search, tmp_path, monkeypatch
):
    command = ("search", experiment, "search.method=hyperband", "search.factor=2", "search.keep=5")
    for blow, when in KILLED:
        assert start(*command, blow=(*blow, signal.SIGKILL)).wait() == -signal.SIGKILL, when
    stopped = start(*command, blow=("kpipe.training.checkpoints", "Checkpoints", "commit", 1, signal.SIGINT))
    assert stopped.wait() == 130
    assert re.search(
        r"interrupted; \d trials? done. The same command resumes the search:\n  .*kpipe search", stopped.err
    )
    last = start(*command)
    assert last.wait() == 0, last.err
    assert re.search(r"^  resumed    after \d trials?; begun: \d$", last.out, re.M)
    there = search()
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "whole"))
    assert kpipe(*command)[0] == 0
    [other] = searches_of(tmp_path / "whole")
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(path)] for path in (there, other)]
    assert timeless[0] == timeless[1]
    assert len(timeless[0]) == 5  # 2 for one epoch, of which 1 is promoted; 2 in full

    # The promoted trial has the weights, the optimizer and the steps of a run that was never interrupted.
    [heir] = [record for record in read_records(there).values() if record.parent]
    run = there / heir.run()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"]) == (2, 18)
    epochs = [r["epoch"] for r in records_of(run) if (r["split"], r["span"]) == ("validation", "epoch")]
    assert epochs == [1, 2]
    [last] = (run / "checkpoints").glob("step-*")
    with np.load(last / "training.npz") as saved:
        iterations = [saved[name] for name in saved.files if name.startswith("optimizer/")][0]
    assert int(iterations) == 18
    assert_same_run(run, other / heir.run())


@pytest.mark.slow
def test_workers_and_one_that_is_killed(kpipe, experiment, search, logs):
    """Two workers beside the chief; one is killed in the middle of a trial and is given it again."""

    def strike():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for owner in logs.parent.glob("logs_searches/tiny/*/0*/.owner"):
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
    one, other = (rows_of(each) for each in searches_of(logs))
    assert [(r["trial"], r["score"]) for r in one] == [(r["trial"], r["score"]) for r in other]


# --- one search or another ------------------------------------------------------------------------------------------


def test_the_same_command_reports_a_finished_search_and_more_trials_extend_it(kpipe, experiment, search, trained, logs):
    code, first, _ = kpipe("search", experiment, "search.trials=3")
    assert (code, len(trained)) == (0, 3)
    code, again, _ = kpipe("search", experiment, "search.trials=3")
    assert (code, len(trained)) == (0, 3)
    assert "\n  resumed    after 3 trials\n" in again
    assert again.splitlines()[-9:-1] == first.splitlines()[-8:]
    assert again.splitlines()[-1] == (
        "This search was finished before, a larger search.trials extends it; --new starts another"
    )
    assert kpipe("search", experiment, "search.trials=5")[0] == 0
    assert (len(trained), len(rows_of(search()))) == (5, 5)
    assert kpipe("search", experiment, "search.trials=3", "--new")[0] == 0
    assert kpipe("search", experiment, "search.seed=1", "search.trials=3")[0] == 0
    assert (len(trained), len(searches_of(logs))) == (11, 3)


def test_another_search_that_is_unfinished_is_named(kpipe, experiment, search, trained):
    trained.errors = {2: DataError("gone")}
    assert kpipe("search", experiment, "search.trials=2")[0] == 3
    first = search()
    code, out, _ = kpipe("search", experiment, "search.trials=1", "search.seed=1")
    assert code == 0
    said = "another search is unfinished; it has another space or another experiment"
    assert f"  note: {said}:\n        {first}\n" in out


def test_two_searches_at_once(kpipe, experiment, trained, logs):
    loaded = load_search(experiment, ["search.trials=2"])
    with open_search(logs, "tiny", identity_of(loaded.experiment), {}) as path:
        code, _, err = kpipe("search", experiment, "search.trials=2")
    assert code == 5
    assert err.startswith(f"{path}: this search is still running (process {os.getpid()} on ")
    assert not trained


def test_sources_that_are_tried_are_checked_before_the_first_trial(kpipe, experiment, trained, logs):
    code, _, err = kpipe("search", experiment, "search.space.data.source=[digits,folder:/nowhere]")
    assert (code, err.partition(", got")[0]) == (3, "folder:/nowhere: expected a folder of images")
    assert not trained and not logs.exists()


def test_no_more_workers_than_trials_are_started(kpipe, experiment, trained):
    code, out, _ = kpipe("search", experiment, "search.trials=1", "--workers", "999999999999")
    assert (code, len(trained)) == (0, 1)
    assert " workers\n" not in out


def test_notes_about_what_will_be_tried(kpipe, experiment, trained):
    cases = f"{{cases: [{{choice: [0.1], when: {{{NAME}: sgd}}}}, {{choice: [0.01], when: {{{NAME}: adam}}}}]}}"
    text = TINY.replace("{epochs: 2,", "{epochs: 2, optimizer: {name: sgd, momentum: 0.9},")
    Path(experiment).write_text(f"{text}search: {{space: {{{NAME}: [sgd, adam, rmsprop], {PEAK}: {cases}}}}}\n")
    code, out, _ = kpipe("search", experiment, "search.trials=1")
    assert code == 0
    assert "  note: trials with another kind leave out what the file says of training.optimizer.momentum\n" in out
    assert f"  note: {PEAK} has no case for {NAME}: 'rmsprop'; there it stays as in the file\n" in out


def test_a_space_smaller_than_the_number_of_trials(kpipe, experiment, search, trained):
    code, out, _ = kpipe("search", experiment, f"search.space.{NAME}=[sgd,adam]", "search.trials=9")
    assert (code, len(trained)) == (0, 2)
    assert "The space has no more combinations; all have been tried" in out


def test_a_trial_is_trained_by_one_process(kpipe, experiment):
    code, _, err = kpipe("search", experiment, "training.distribution=multi_worker")
    assert code == 2
    assert (
        "training.distribution: expected none or mirrored in a search, got multi_worker. A search has workers of "
        in err
    )
    assert "which train a trial each: --workers" in err
