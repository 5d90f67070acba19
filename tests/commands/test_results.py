"""`kpipe results`: runs and searches in tables, for people and for programs."""

import csv
import io
import json
import shutil
import subprocess
import sys

import pytest
from filelock import FileLock
from rich.console import Console
from tiny_runs import TINY

from kpipe.commands.results import collect_results
from kpipe.commands.results_screen import show_results
from kpipe.console import Screen
from kpipe.files import read_json, read_yaml, write_json, write_yaml
from kpipe.tuning.records import Record, write_record

REMEDY = "Give the folder in which your runs are saved, or train a first one: kpipe run EXPERIMENT.yaml"


@pytest.fixture
def make_run(finished, logs):
    """Make a run out of a finished one, a minute after the last one."""
    minutes = iter(range(60))

    def make_run(*, folder=logs / "tiny", name=None, seed=0, test=None, status="finished", log=(), **values):
        path = folder / (name or f"2026-11-29_12-{next(minutes):02}-00")
        path.mkdir(parents=True)
        config, summary = read_yaml(finished / "config.yaml"), read_json(finished / "summary.json")
        for key, value in {"seed": seed, "name": folder.name, **values}.items():
            section, (*above, last) = config, key.split("__")
            for each in above:
                section = section[each]
            section[last] = value
        summary |= {"status": status}
        if test is not None:
            summary["test"] |= {"accuracy": test}
        write_yaml(path / "config.yaml", config)
        write_json(path / "summary.json", summary)
        shutil.copy(finished / "environment.json", path)
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in log))
        return path

    return make_run


@pytest.fixture
def listed(kpipe):
    """Return what `kpipe results ARGUMENTS --json` prints."""

    def listed(*arguments):
        code, out, err = kpipe("results", *map(str, arguments), "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return listed


def in_a_terminal(width, **arguments):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    show_results(collect_results(**arguments), Screen(console))
    return [line.rstrip() for line in file.getvalue().splitlines()]


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_with_all_that_is_known_of_it(finished, listed):
    summary, environment = (read_json(finished / name) for name in ("summary.json", "environment.json"))
    [row] = listed(finished)["runs"]
    day, time = finished.name.split("_")[:2]
    git = environment["git"]
    assert row == {
        "name": "tiny",
        "run": finished.name,
        "status": "finished",
        "network": "lenet5",
        "data": "synthetic",
        "val_accuracy": summary["validation"]["accuracy"],
        "test_accuracy": summary["test"]["accuracy"],
        "parameters": summary["parameters"],
        "epochs": 2,
        "time": summary["seconds"],
        "images/s": summary["images_per_second"],
        "precision": "float32",
        "seed": 0,
        "commit": git and git["commit"] + ("-dirty" if git["dirty"] else ""),
        "date": f"{day} {time.replace('-', ':')}",
        "path": str(finished),
    }


def test_a_run_on_the_screen(finished, kpipe):
    out = kpipe("results", str(finished))[1].splitlines()
    assert out[0] == f"1 run in {finished}"
    assert out[1:4] == ["  name           tiny", f"  run            {finished.name}", "  status         finished"]


def test_runs_of_all_experiments_the_newest_last(make_run, logs, listed):
    make_run(folder=logs / "other", name="2026-11-30_08-00-00")
    make_run(folder=logs / "tiny")
    assert [row["name"] for row in listed()["runs"]] == ["tiny", "other"]
    assert [row["name"] for row in listed(logs / "other")["runs"]] == ["other"]


# --- states ---------------------------------------------------------------------------------------------------------

EPOCHS = [
    {"step": 4, "epoch": 1, "split": "train", "span": "steps", "loss": 1.0, "accuracy": 0.9},
    {"step": 12, "epoch": 1, "split": "validation", "span": "epoch", "loss": 0.3, "accuracy": 0.6},
    {"step": 24, "epoch": 2, "split": "validation", "span": "epoch", "loss": 0.4, "accuracy": 0.7},
    {"step": 28, "epoch": 3, "split": "train", "span": "steps", "loss": 1.0, "accuracy": 0.9},
    [{"span": "epoch"}],
]


@pytest.mark.parametrize("status", ["interrupted", "diverged", "stuck"])
def test_an_unfinished_run_has_its_best_epoch_so_far_and_no_test(make_run, listed, status):
    make_run(status=status, log=EPOCHS)
    make_run(status=status, log=EPOCHS, training__monitor="val_loss")
    rows = listed()["runs"]
    assert [(row["status"], row["epochs"], row["test_accuracy"]) for row in rows] == 2 * [(status, 2, None)]
    assert [row["val_accuracy"] for row in rows] == [0.7, 0.6]


def test_a_run_that_was_killed_before_its_first_summary_is_interrupted(make_run, listed):
    (make_run() / "summary.json").unlink()
    [row] = listed()["runs"]
    assert (row["status"], row["parameters"], row["time"]) == ("interrupted", None, None)


def test_a_run_is_running_while_a_process_has_its_lock(make_run, listed):
    path = make_run(status="interrupted")
    with FileLock(path / ".lock"):
        assert listed()["runs"][0]["status"] == "running"
    assert (path / ".lock").exists()  # as a kill leaves it
    assert listed()["runs"][0]["status"] == "interrupted"


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("config.yaml", "data: [", "config.yaml is damaged"),
        ("config.yaml", "data: {source: digits}\nmodel: 3\n", "config.yaml is damaged"),
        ("config.yaml", None, "config.yaml is gone"),
        ("summary.json", '{"status": "fini', "summary.json is damaged"),
        ("summary.json", "[]", "summary.json is damaged"),
    ],
)
def test_a_damaged_run_is_shown_as_such(make_run, kpipe, listed, file, content, note):
    whole, damaged = make_run(), make_run()
    (damaged / file).unlink() if content is None else (damaged / file).write_text(content)
    assert [row["status"] for row in listed()["runs"]] == ["finished", "damaged"]
    code, out, err = kpipe("results")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"note: {damaged}: {note}"
    assert str(whole) not in out


def test_values_that_kpipe_does_not_write_are_left_out(make_run, kpipe, listed):
    path = make_run()
    damage = {"validation": [], "test": {"accuracy": "high"}, "seconds": None, "parameters": True, "epochs": "two"}
    write_json(path / "summary.json", read_json(path / "summary.json") | damage)
    write_json(path / "environment.json", {"git": {"commit": 7}})
    with open(path / "config.yaml", "a") as config:
        config.write("other: {since: 2026-11-29, 2026-11-30: 1}\n")
    unknown = ("val_accuracy", "test_accuracy", "time", "parameters", "epochs", "commit")
    [row] = listed()["runs"]
    assert {row[name] for name in unknown} == {None}
    assert kpipe("results")[0] == kpipe("results", "--filter", "since=2026*")[0] == 0


def test_runs_whose_files_say_less_are_shown(make_run, listed, kpipe):
    older, newer = make_run(test=0.5), make_run(test=0.9)
    write_yaml(older / "config.yaml", {"data": {"source": "digits"}, "model": {"name": "lenet5"}})
    write_json(older / "summary.json", {"status": "finished"})
    (older / "environment.json").unlink()
    rows = listed("--sort", "-test_accuracy")["runs"]
    assert [(row["path"], row["status"], row["test_accuracy"]) for row in rows] == [
        (str(newer), "finished", 0.9),
        (str(older), "finished", None),
    ]
    for arguments in ((), ("--csv",), ("--markdown",), ("--group", "--json"), ("--sort", "time"), ("--sort", "-seed")):
        assert kpipe("results", *arguments)[0::2] == (0, "")


# --- keys and seeds -------------------------------------------------------------------------------------------------


def test_keys_are_columns_where_the_runs_differ(make_run, listed):
    rate, sgd = "training__learning_rate__warmup", {"name": "sgd", "momentum": 0.9}
    make_run()
    make_run(**{rate: {"epochs": 3.0, "steps": None}}, data__batch_size=32)
    make_run(training__optimizer=sgd)
    found = listed()
    warmup, batch, optimizer = "training.learning_rate.warmup.epochs", "data.batch_size", "training.optimizer.name"
    # Not warmup.steps, which is null in all runs, nor what only one of the optimizers has.
    assert found["keys"] == [batch, optimizer, warmup]
    assert found["columns"][-3:] == found["keys"]
    rows = [[row[key] for key in found["keys"]] for row in found["runs"]]
    assert rows == [[16, "adam", None], [32, "adam", 3.0], [16, "sgd", None]]


def test_keys_that_change_no_result_are_no_columns(make_run, listed):
    make_run(training__epochs=2)
    make_run(training__log_every={"steps": 7}, training__when_stuck="stop", training__checkpoint={"keep": 5}, seed=1)
    assert listed()["keys"] == []
    assert [row["runs"] for row in listed("--group")["runs"]] == [2]
    make_run(training__epochs=9, status="interrupted")
    assert listed()["keys"] == []
    make_run(training__epochs=9)  # stopped after 2
    assert listed()["keys"] == ["training.epochs"]


def test_a_section_that_is_off_or_the_same_is_one_column(make_run, listed):
    make_run()
    make_run(training__average={"decay": 0.9, "warmup": True})
    assert listed()["keys"] == ["training.average.decay"]
    make_run(training__average={"decay": 0.9, "warmup": False})
    assert listed()["keys"] == ["training.average.warmup"]
    make_run(training__average={"decay": 0.99, "warmup": False})
    assert listed()["keys"] == ["training.average.decay", "training.average.warmup"]


def test_the_size_of_images_is_known_where_they_have_their_own(make_run, listed):
    make_run(data__image_size=12)
    path = make_run(data__image_size=None)
    write_json(path / "summary.json", read_json(path / "summary.json") | {"image": [28, 28, 1]})
    assert [row["data.image_size"] for row in listed()["runs"]] == [12, 28]


def test_lists_of_sections_are_shown_by_their_names(make_run, kpipe):
    make_run(data__augment=[{"random_crop": {}}, {"flip_horizontal": {}}])
    make_run(data__augment=[{"cutout": {"size": 4}}])
    make_run(data__augment=[])
    out = kpipe("results")[1]
    assert "random_crop, flip_horizontal" in out
    assert "cutout {size: 4}" in out
    assert "{random_crop" not in out


def test_seeds_become_one_row_on_the_screen(make_run, kpipe):
    for seed, accuracy in enumerate((0.9, 0.94)):
        make_run(seed=seed, test=accuracy)
    make_run(test=0.5, data__batch_size=8)
    lines = kpipe("results")[1].splitlines()
    assert lines[0].startswith("3 runs in ")
    assert lines[1].split()[:2] == ["run", "test_accuracy"]
    assert [line.split()[:5] for line in lines[3:5]] == [
        ["2", "runs", "92.00", "±", "2.83"],
        ["2026-11-29_12-02-00", "50.00", "%", "100.00", "%"],
    ]
    assert lines[5].startswith(
        "The same in all: name tiny, status finished, network lenet5, data synthetic, parameters 21 k, epochs 2, "
    )
    assert len([line for line in kpipe("results", "--runs")[1].splitlines() if line.startswith("2026-")]) == 3


def test_of_a_group_a_program_gets_means_and_the_runs(make_run, listed):
    for seed, accuracy in ((0, 0.1), (0, 0.9), (1, 0.8)):
        make_run(seed=seed, test=accuracy)
    make_run(seed=2, status="diverged")
    group, diverged = listed("--group")["runs"]
    assert group["runs"] == 2  # of the two with seed 0, the newer one
    assert (group["test_accuracy"], group["seed"]) == (pytest.approx(0.85), [0, 1])
    assert group["test_accuracy_std"] == pytest.approx(0.0707, abs=1e-4)
    assert group["run"] == ["2026-11-29_12-01-00", "2026-11-29_12-02-00"]
    assert (diverged["status"], diverged["runs"], diverged["test_accuracy_std"]) == ("diverged", 1, None)


def test_a_group_is_as_new_as_its_newest_run(make_run, listed):
    make_run(seed=0)
    make_run(data__batch_size=8)
    make_run(seed=1)
    assert [row["runs"] for row in listed("--group")["runs"]] == [1, 2]
    assert [row["runs"] for row in listed("--group", "--sort", "-runs")["runs"]] == [2, 1]


def test_runs_with_one_seed_are_no_group(make_run, listed):
    for _ in range(2):
        make_run()
    assert [row["runs"] for row in listed("--group")["runs"]] == [1, 1]


# --- sort and filter ------------------------------------------------------------------------------------------------


@pytest.fixture
def three(make_run):
    make_run(test=0.7, data__batch_size=8)
    make_run(test=0.9, data__batch_size=16)
    make_run(status="diverged", data__batch_size=128)


@pytest.mark.parametrize(
    ("column", "batch_sizes"),
    [
        ("test_accuracy", [8, 16, 128]),
        ("-test_accuracy", [16, 8, 128]),
        ("-batch_size", [128, 16, 8]),
        ("data.batch_size", [8, 16, 128]),
        ("status", [128, 8, 16]),
        ("-date", [128, 16, 8]),
    ],
)
def test_sorted_by_any_column_with_what_is_unknown_at_the_end(three, listed, column, batch_sizes):
    assert [row["data.batch_size"] for row in listed("--sort", column)["runs"]] == batch_sizes


@pytest.mark.parametrize(
    ("filters", "batch_sizes"),
    [
        (["status=finished"], [8, 16]),
        (["status!=finished"], [128]),
        (["status=f*d"], [8, 16]),
        (["status=Finished", "network=LeNet*"], [8, 16]),
        (["batch_size=16.0"], [16]),
        (["data.batch_size >= 16"], [16, 128]),
        (["test_accuracy>80%"], [16]),
        (["test_accuracy<0.8"], [8]),
        (["batch_size<=16", "batch_size>8"], [16]),
        (["date>2026-11-29 12:00:30"], [16, 128]),
        (["max_minutes=null"], [8, 16, 128]),
        (["cache=none"], []),
    ],
)
def test_filtered_by_any_column(three, listed, filters, batch_sizes):
    found = listed(*(part for each in filters for part in ("--filter", each)))
    assert [row["path"][-8:-3] for row in found["runs"]] == [
        {8: "12-00", 16: "12-01", 128: "12-02"}[size] for size in batch_sizes
    ]
    assert found["found"] == 3


def test_the_screen_says_of_how_many(three, kpipe, logs):
    assert kpipe("results", "--filter", "batch_size=16")[1].startswith(f"1 of 3 runs in {logs}\n")
    said = "note: --filter batch_size=17: no run has this value; there are 8, 16, 128\n"
    assert kpipe("results", "--filter", "batch_size=17")[1] == f"0 of 3 runs in {logs}\n{said}"
    said = "note: --filter seed=0,1: no run has this value; there are 0\n"
    assert kpipe("results", "--filter", "seed=0,1", "--csv")[2] == said
    none = "note: --filter max_minutes=3: no run has this value\n"
    assert kpipe("results", "--filter", "max_minutes=3")[1].endswith(none)


COLUMN = "expected a column, got"
KNOWN = (
    "(known: name, run, status, network, data, val_accuracy, test_accuracy, parameters, epochs, time, images/s, "
    "precision, seed, commit, date, path, and the keys of config.yaml)"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sort", "accuracy"], f"--sort: {COLUMN} 'accuracy', did you mean 'val_accuracy'?"),
        (["--sort", "-optimzer.name"], f"--sort: {COLUMN} 'optimzer.name', did you mean 'optimizer.name'?"),
        (["--sort", "weather"], f"--sort: {COLUMN} 'weather' {KNOWN}"),
        (["--sort", "every.epochs,"], f"--sort: {COLUMN} 'every.epochs,', did you mean 'every.epochs'?"),
        (["--filter", "stauts=finished"], f"--filter: {COLUMN} 'stauts', did you mean 'status'?"),
        (
            ["--filter", "steps=4"],
            "--filter: expected one column, got 'steps', which may be training.log_every.steps or a.steps",
        ),
        (
            ["--filter", "finished"],
            "--filter: expected a form such as status=finished or epochs>10, got 'finished'",
        ),
        (
            ["--filter", "test_accuracy>abc"],
            "--filter: expected a fraction of 1 or a percentage such as 97% to compare test_accuracy with, got 'abc'",
        ),
        (
            ["--filter", "val_accuracy>30"],
            "--filter: expected a fraction of 1 or a percentage such as 97% to compare val_accuracy with, got '30'",
        ),
        (
            ["--filter", "time>10s"],
            "--filter: expected a number of seconds to compare time with, got '10s'",
        ),
        (
            ["--filter", "batch_size<=many"],
            "--filter: expected a number to compare data.batch_size with, got 'many'",
        ),
    ],
)
def test_a_column_that_is_not_there(make_run, kpipe, arguments, message):
    make_run(a={"steps": 1})
    assert kpipe("results", *arguments) == (2, "", f"{message}\n")


# --- forms ----------------------------------------------------------------------------------------------------------


def test_csv_has_all_columns_and_a_line_for_each_run(make_run, kpipe, finished):
    make_run(seed=0, data__augment=[{"flip_horizontal": {}}])
    make_run(seed=1)
    code, out, err = kpipe("results", "--csv")
    assert (code, err) == (0, "")
    first, second = csv.DictReader(io.StringIO(out))
    summary = read_json(finished / "summary.json")
    assert float(first["test_accuracy"]) == summary["test"]["accuracy"]
    assert (first["data.augment"], second["data.augment"]) == ('[{"flip_horizontal": {}}]', "[]")
    assert [each["seed"] for each in (first, second)] == ["0", "1"]


def test_markdown(make_run, kpipe):
    for seed, accuracy in enumerate((0.9, 0.94)):
        make_run(seed=seed, test=accuracy)
    make_run(name="a|b", test=0.5, data__batch_size=8)
    lines = kpipe("results", "--markdown", "--filter", "test_accuracy<1")[1].splitlines()
    assert lines[0].startswith("| run | test_accuracy | ")
    assert lines[1] == "| " + " | ".join(["---"] * (lines[0].count("|") - 1)) + " |"
    assert lines[2].startswith("| 2 runs | 92.00 ± 2.83 % | ")
    assert lines[3].startswith("| a\\|b | 50.00 % | ")
    assert lines[4:6] == ["", next(line for line in lines if line.startswith("The same in all: name tiny, "))]


def test_one_form_at_a_time(kpipe):
    code, out, err = kpipe("results", "--csv", "--json")
    assert (code, out) == (2, "")
    assert err.endswith("Error: --csv, --markdown and --json: expected one of them, got several.\n")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_is_never_too_narrow(make_run, logs, width):
    make_run(name=f"2026-11-29_13-00-00_{'x' * 90}", test=0.1)
    make_run(status="diverged", data__source="folder:/a/long/path/to/photographs", data__batch_size=64, seed=1)
    lines = in_a_terminal(width, folder=str(logs))
    assert max(map(len, lines[1:])) <= width  # the first has a path, which people copy
    text = " ".join(lines)
    assert "2026-11-29_13-00-00" in text
    assert f" {'x' * 80}" not in text
    assert ("Not shown: " in text and "Take a wider terminal, or --json." in text) == (width < 120)


def test_what_a_run_is_and_gave_comes_before_its_keys(make_run, logs):
    make_run(seed=0, test=0.1)
    make_run(seed=1, test=0.2, data__batch_size=8, model__activation="tanh", training__max_minutes=3)
    header = in_a_terminal(80, folder=str(logs))[1:4]
    first = " ".join(" ".join(line.split()) for line in header)
    assert [name for name in ("accuracy", "seed", "batch_size") if name in first] == ["accuracy", "seed"], first


def test_columns_says_how_wide_a_pipe_is(make_run, kpipe, monkeypatch):
    make_run(name=f"2026-11-29_13-00-00_{'x' * 90}")
    make_run(data__source=f"folder:/{'y' * 90}")
    monkeypatch.setenv("COLUMNS", "80")
    out = kpipe("results")[1]
    assert max(map(len, out.splitlines()[1:])) <= 80
    assert "…" in out


def test_what_is_piped_is_never_cut(make_run, kpipe):
    name = f"2026-11-29_13-00-00_{'x' * 90}"
    make_run(name=name)
    make_run(data__source=f"folder:/{'y' * 90}")
    out = kpipe("results")[1]
    assert name in out
    assert f"folder:/{'y' * 90}" in out
    assert "…" not in out


# --- searches -------------------------------------------------------------------------------------------------------

PEAK = "training.learning_rate.peak"


@pytest.fixture
def search(logs, make_run):
    """A search of three trials: one is finished, one was stopped, and one had failed before it had a run."""
    path = logs.parent / "logs_searches" / "tiny" / "2026-11-29_11-00-00_01234567"
    (path / "trials").mkdir(parents=True)
    (path / "search.yaml").write_text(TINY + "name: tiny\nsearch: {trials: 4}\n")
    for number, status, score in ((1, "finished", 0.8), (2, "stopped", 0.6), (3, "failed", None)):
        record = Record(number, {}, {PEAK: number / 10}, status, score, [score] if score else [], message="no memory")
        write_record(path, record)
        if score:
            make_run(folder=path, name=f"{number:04}", training__learning_rate__peak=number / 10)
    return path


def finish(search):
    write_json(search / "search.json", {"status": "finished", "objective": "val_accuracy", "trials": 3})


def test_a_search_is_one_line(search, make_run, kpipe):
    make_run()
    finish(search)
    lines = kpipe("results")[1].splitlines()
    place = lines.index("1 search")
    assert lines[place + 1].split() == [
        "name", "search", "status", "trials", "best_score", "best_values", "objective", "best_trial", "failed", "date",
    ]  # fmt: skip
    assert lines[place + 3].split() == [
        "tiny", search.name, "finished", "3", "80.00", "%", "learning_rate.peak=0.1", "val_accuracy", "1", "1",
        "2026-11-29", "11:00",
    ]  # fmt: skip
    assert lines[place + 4 :] == ["The trials of the last one:", f"  kpipe results {search}"]


def test_filters_hold_for_searches(search, make_run, kpipe, listed):
    make_run(folder=search.parents[2] / "logs" / "other")
    finish(search)
    found = listed("--filter", "name=TINY")
    assert ([row["name"] for row in found["searches"]], found["runs"], found["notes"]) == (["tiny"], [], [])
    found = listed("--filter", "name=small")
    said = ["--filter name=small: no run has this value; there are other, tiny"]
    assert (found["searches"], found["notes"]) == ([], said)
    assert listed("--filter", "seed=0")["searches"] == []


def test_csv_says_that_it_has_no_searches(search, make_run, kpipe):
    make_run()
    finish(search)
    code, out, err = kpipe("results", "--csv")
    assert (code, err) == (0, "note: the searches are left out; --trials adds their trials\n")
    assert len(out.splitlines()) == 2
    assert kpipe("results", "--csv", "--trials")[2] == ""


def test_a_search_that_is_not_finished_says_how_many_trials_are_left(search, listed, logs):
    [row] = listed()["searches"]
    assert (row["status"], row["trials"], row["of"], row["objective"]) == ("interrupted", 3, 4, "val_accuracy")
    with FileLock(search / ".search.lock"):
        assert listed()["searches"][0]["status"] == "running"
    assert listed(logs.parent / "logs_searches")["searches"] == [row]
    (search / "search.yaml").write_text("model: [")
    assert listed()["searches"][0]["status"] == "damaged"


def test_trials_of_a_search_among_the_runs(search, make_run, kpipe, listed):
    make_run()
    assert len(listed()["runs"]) == 1
    rows = listed("--trials", "--sort", "peak", "--filter", "run=*/*")["runs"]
    assert [(row["run"].partition("/")[2], row["status"]) for row in rows] == [
        ("0001", "finished"),
        ("0002", "stopped"),
        ("0003", "failed"),
    ]
    assert "The trials of" not in kpipe("results", "--trials")[1]
    found = listed(search, "--sort", "peak")
    assert found["keys"] == [PEAK]
    assert [row[PEAK] for row in found["runs"]] == [0.1, 0.2, 0.3]
    assert found["runs"] == rows


def test_a_trial_of_five_digits_is_not_that_of_its_first_four(search, make_run, listed):
    for number, status in ((1000, "stopped"), (10000, "finished")):
        write_record(search, Record(number, {}, {}, status, 0.5, [0.5]))
        make_run(folder=search, name=f"{number:04}-seed1", training__learning_rate__peak=0.5)
    rows = listed(search, "--filter", "run=*/1000*")["runs"]
    assert [(row["run"].partition("/")[2], row["status"]) for row in rows] == [
        ("1000-seed1", "stopped"),
        ("10000-seed1", "finished"),
    ]


def test_searches_alone(search, kpipe, logs):
    assert not logs.exists()
    assert kpipe("results")[1].startswith("1 search\n")
    assert kpipe("results", "--markdown")[1].startswith("| name | search | status | ")


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_without_runs(tmp_path, kpipe, logs):
    assert kpipe("results") == (2, "", f"{logs}: expected a folder with runs, found no such folder. {REMEDY}\n")
    logs.mkdir()
    assert kpipe("results") == (2, "", f"{logs}: expected a folder with runs, got an empty one. {REMEDY}\n")
    (logs / "notes.txt").touch()
    assert kpipe("results") == (2, "", f"{logs}: expected a folder with runs, found none in it. {REMEDY}\n")
    file = tmp_path / "logs/notes.txt"
    assert kpipe("results", str(file)) == (2, "", f"{file}: expected a folder with runs, got a file. {REMEDY}\n")


def test_a_folder_that_may_not_be_read(logs, kpipe, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    logs.mkdir()
    monkeypatch.setattr("kpipe.commands.results.os.listdir", refuse)
    assert kpipe("results") == (5, "", f"{logs}: cannot be read (Permission denied)\n")


def test_neither_tensorflow_nor_numpy_is_imported(make_run, search, logs):
    make_run()
    finish(search)
    code = (
        "import sys; from kpipe import cli; code = cli.main(['results', sys.argv[1], '--trials']); "
        "sys.exit(code or sum(name in sys.modules for name in ('tensorflow', 'keras', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code, logs], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"4 runs in {logs}\n")
