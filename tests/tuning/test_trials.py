"""What a search asks of its trials, and what becomes of trials that cannot work."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from image_sets import write_classes
from tiny_searches import PEAK, PEAKS, rows_of, score

from kpipe.catalog.search import RandomSearchOptions
from kpipe.errors import ConfigError, DataError, Diverged, OutOfMemory
from kpipe.tuning import trials
from kpipe.tuning.records import Record, read_records


def test_data_are_read_once_for_trials_that_read_the_same(kpipe, experiment, trained, monkeypatch):
    reads = []
    real = trials.load_splits
    monkeypatch.setattr("kpipe.tuning.trials.load_splits", lambda *a, **o: reads.append(1) or real(*a, **o))
    grid = ("search.method=grid", "search.space.data.batch_size=[8,16]", "search.space.data.augment=[[],[translate]]")
    assert kpipe("search", experiment, *grid)[0] == 0
    assert (len(trained), len(reads)) == (4, 1)
    assert len({id(splits) for _, _, splits in trained}) == 1
    assert len({options.constants for _, options, _ in trained}) == 1
    assert kpipe("search", experiment, "search.method=grid", "search.space.data.image_size=[16,20]")[0] == 0
    assert len(reads) == 3
    # A crop of the images in their files needs other data than a crop of the resized images.
    crops = "search.space.data.augment=[[translate],[random_resized_crop]]"
    assert kpipe("search", experiment, "search.method=grid", crops)[0] == 0
    assert len(reads) == 5


def test_weights_bring_their_constants_to_their_own_trials_alone(kpipe, experiment, trained, tmp_path):
    (tmp_path / "own.weights.h5").write_bytes(b"\x89HDF")
    space = ("search.method=grid", f"search.space.model.init_from=[{tmp_path}/own.weights.h5,null]")
    assert kpipe("search", experiment, *space, "training.reused_layers.rate=0.5")[0] == 2
    assert kpipe("search", experiment, *space)[0] == 0
    shared = {each.model.init_from is None: options.constants for each, options, _ in trained}
    assert (shared[False], shared[True].suffix) == (None, ".npz")


def test_weights_that_are_tried_are_looked_at_before_anything_is_trained(kpipe, experiment, trained, tmp_path):
    space = (f"search.space.model.init_from=[{tmp_path}/nowhere.keras]", "training.reused_layers.rate=0.5")
    code, _, err = kpipe("search", experiment, "search.method=grid", *space)
    assert (code, len(trained)) == (2, 0)
    assert err == f"model.init_from: {tmp_path}/nowhere.keras: expected weights, got no such file or directory.\n"


def test_weights_of_the_other_trials_are_removed(tmp_path):
    records = [Record(n, {}, {}, status="finished", score=n / 10, ended=1.0) for n in (1, 2)]
    for record in records:
        for name in ("model.keras", "model_averaged.keras", "summary.json", "checkpoints/latest"):
            path = tmp_path / record.run(0) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    trials.prune_weights(tmp_path, records, RandomSearchOptions(keep=1), "val_accuracy")
    left = [sorted(path.name for path in (tmp_path / record.run(0)).iterdir()) for record in records]
    assert left == [["summary.json"], ["checkpoints", "model.keras", "model_averaged.keras", "summary.json"]]


def test_a_search_is_not_resumed_on_other_data(kpipe, tmp_path, experiment, search, trained):
    write_classes(tmp_path / "photos", {"cat": 12, "dog": 12})
    folder = (f"data.source=folder:{tmp_path / 'photos'}", "search.trials=1")
    assert kpipe("search", experiment, *folder)[0] == 0
    next((tmp_path / "photos" / "dog").iterdir()).unlink()
    code, _, err = kpipe("search", experiment, *folder[:1], "search.trials=2")
    assert (code, len(trained)) == (3, 1)
    assert err.startswith(f"{search()}: the data are not those that the search began with: ")
    assert err.endswith("12 images of class 'dog' then, 11 now. Restore them, or start another search with --new\n")


def test_executions_have_other_seeds_and_the_score_is_their_mean(kpipe, experiment, search, trained):
    options = ("search.trials=2", "search.executions_per_trial=3", "seed=7")
    code, out, _ = kpipe("search", experiment, *options)
    assert code == 0
    assert [each.seed for each, _, _ in trained] == [7, 8, 9, 7, 8, 9]
    assert [options.path.name for _, options, _ in trained][:3] == ["0001", "0001-seed1", "0001-seed2"]
    best = rows_of(search())[0]
    assert float(best["score"]) == pytest.approx(np.mean([score(each) for each, _, _ in trained if
                                                          f"{each.training.learning_rate.peak:g}" ==
                                                          f"{float(best[PEAK]):g}"]))  # fmt: skip
    assert re.search(
        r"^Best: trial \d, val_accuracy \d\.\d{4}; the mean over 3 seeds; best.yaml has the first seed, with", out, re.M
    )
    [first, second] = rows_of(search(), "groups.csv")
    assert (first["trainings"], float(first["deviation"])) == ("3", pytest.approx(0.001))
    assert re.search(r"^ rank +mean val_accuracy +std +trainings", out, re.M)
    head = (search() / "best.yaml").read_text().splitlines()
    assert head[2].startswith("# The mean over 3 seeds; best.yaml has the first seed, with ")


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
    assert "Best: trial 1, val_accuracy 1.0000; with seed 0 only; groups.csv has the means over the seeds\n" in out
    assert "# With seed 0 only; groups.csv has the means over the seeds.\n" in (search() / "best.yaml").read_text()


def test_the_objective_decides_the_score_and_the_weights(kpipe, experiment, search, trained):
    code, out, _ = kpipe("search", experiment, "search.objective=val_loss", "search.trials=3")
    assert code == 0
    assert {each.training.monitor for each, _, _ in trained} == {"val_loss"}
    rows = rows_of(search())
    assert [float(row["score"]) for row in rows] == sorted(float(row["score"]) for row in rows)
    assert "3 trials of 2 epochs, by val_loss" in out


def test_hyperband_says_when_its_best_was_not_trained_in_full(kpipe, experiment, search, trained, monkeypatch):
    trained.score = lambda experiment: 0.5  # the first of equal ones is the best
    code, out, _ = kpipe("search", experiment, "search.method=hyperband", "search.factor=2")
    assert code == 0
    assert "after 1 of 2 epochs: trained in full, its score will differ" in out
    assert {each.training.epochs for each, _, _ in trained} == {2}  # its schedule is that of all epochs
    assert [options.epochs for _, options, _ in trained] == [1, 1, 2, 2, 2]


# --- bad trials -----------------------------------------------------------------------------------------------------


def test_trials_that_cannot_work_fail_and_the_search_goes_on(kpipe, experiment, search, trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    trained.errors = {
        1: Diverged("the loss became nan at step 3; likely causes: ..."),
        2: OutOfMemory("out of memory with 512"),
        3: ConfigError("vgg11 needs 17 pixels"),
    }
    code, out, _ = kpipe("search", experiment, "search.trials=5")
    assert code == 0
    rows = {row["trial"]: row for row in rows_of(search())}
    assert [rows[str(n)]["status"] for n in range(1, 6)] == ["failed"] * 3 + ["finished"] * 2
    assert all(rows[n]["score"] == rows[n]["rank"] == "" for n in "123")
    assert [rows[n]["message"] for n in "345"] == ["vgg11 needs 17 pixels", "", ""]
    assert re.search(r"^ +3  failed: vgg11 needs 17 pixels +\w+ +[\d.e-]+ +0  [\d.]+ ?$", out, re.M)
    assert "(the loss became nan at step 3)" in out and "(out of memory with 512)" in out
    assert "5 trials (2 finished, 3 failed)" in out
    assert json.loads((search() / "search.json").read_text())["best"]["trial"] in (4, 5)


def test_a_programming_error_ends_the_search_with_its_traceback(kpipe, experiment, search, trained):
    trained.errors = {2: RuntimeError("a mistake in the code")}
    with pytest.raises(RuntimeError, match="a mistake in the code") as caught:
        kpipe("search", experiment, "search.trials=5")
    assert [entry.name for entry in caught.traceback][-1] == "train"
    assert len(trained) == 1
    assert [record.status for record in read_records(search()).values()] == ["finished", "running"]


def test_an_error_of_the_data_ends_the_search(kpipe, experiment, trained):
    trained.errors = {1: DataError("photos/: expected images, found none")}
    code, _, err = kpipe("search", experiment, "search.trials=3")
    assert (code, err) == (3, "photos/: expected images, found none\n")


def test_data_without_a_validation_split(kpipe, experiment, trained, monkeypatch):
    real = trials.load_splits

    def without(*arguments, **options):
        return replace(real(*arguments, **options), validation=None)

    monkeypatch.setattr("kpipe.tuning.trials.load_splits", without)
    code, _, err = kpipe("search", experiment)
    assert (code, err) == (
        3,
        "synthetic: a search needs a validation split, which this data does not give; take a larger "
        "data.split.validation, or more images per class\n",
    )


def test_a_search_without_one_score(kpipe, experiment, search, trained):
    trained.errors = {number: Diverged("the loss became nan at step 3; likely causes: ...") for number in (1, 2)}
    code, out, err = kpipe("search", experiment, "search.trials=2")
    assert code == 4
    assert err == f"{search()}: expected a trial with a score, got none in 2 trials; see the reasons above\n"
    assert "  trials 1, 2: the loss became nan at step 3; likely causes: ..." in out
    assert not (search() / "best.yaml").exists()


@pytest.mark.parametrize("moment", ["its data are read", "it is trained", "another has ended"])
def test_a_search_that_is_deleted_ends_with_a_sentence(kpipe, experiment, search, trained, monkeypatch, moment):
    deleted, real = [], trials.load_splits

    def delete(*arguments, **options):
        deleted.append(search())
        shutil.rmtree(search().parent)

    if moment == "its data are read":
        monkeypatch.setattr("kpipe.tuning.trials.load_splits", lambda *a, **o: delete() or real(*a, **o))
    trained.errors[2 if moment == "another has ended" else 1] = delete
    code, _, err = kpipe("search", experiment, "search.trials=3")
    said = "this folder has been deleted or moved while kpipe was writing to it, so nothing can be saved any more. "
    assert (code, err) == (5, f"{deleted[0]}: {said}Give the same command again to start anew.\n")
    assert not deleted[0].parent.exists()


def test_records_that_are_deleted_under_a_search_are_named(kpipe, experiment, search, trained):
    trained.errors[2] = lambda options: shutil.rmtree(search() / "trials")
    code, _, err = kpipe("search", experiment, "search.trials=3")
    said = f"{search()}/trials: has been deleted while kpipe needed it. Give the same command again.\n"
    assert (code, err) == (5, said)
