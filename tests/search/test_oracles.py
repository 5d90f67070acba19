"""What is tried next: a function of the seed and the results so far, whatever happens in between."""

import math
import random
import statistics

import pytest

from kpipe.config.schema import Experiment
from kpipe.search.oracles import EPOCHS, PARENT, codes_of, make_oracle, number_of
from kpipe.search.records import Record

NAME, PEAK = "training.optimizer.name", "training.learning_rate.peak"
GRID = {
    "seed": [0, 1],
    NAME: ["sgd", "adam"],
    "training.optimizer.momentum": {"choice": [0.0, 0.9], "when": {NAME: "sgd"}},
}
SEARCHES = {
    "random": {"trials": 8},
    "bayesian": {"trials": 10, "initial_trials": 4},
    "hyperband": {},
    "grid": {"space": GRID},
}


def section(method, **options):
    data = {"source": "digits", "image_size": 28}
    raw = {"name": "x", "data": data, "model": {"name": "lenet5"}, "search": {"method": method, **options}}
    return Experiment.model_validate(raw).search


def score(codes):
    return random.Random(str(sorted((k, v) for k, v in codes.items() if "/" not in k))).random()


def run_trials(search, records, *, until=None, failing=(), epochs=9):
    """Run a search with made-up scores from where it stands, to the middle of trial `until`."""
    records = dict(records)
    oracle = make_oracle(search, "val_accuracy", epochs, records)
    while True:
        trial = oracle.create_trial("tuner0")
        if trial.status != "RUNNING":
            return records
        number, codes = number_of(trial.trial_id), codes_of(trial)
        parent = codes.get(PARENT)
        records[number] = Record(number, codes, {}, parent=None if parent is None else number_of(parent))
        if number == until:
            return records
        if number in failing:
            trial.status, ending = "FAILED", {"status": "failed"}
        else:
            trial.status, ending = "COMPLETED", {"status": "finished", "score": score(codes), "scores": [score(codes)]}
            oracle.update_trial(trial.trial_id, {"val_accuracy": score(codes)})
        oracle.end_trial(trial)
        records[number] = Record(number, codes, {}, parent=records[number].parent, **ending)


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_that_is_killed_anywhere_tries_what_it_would_have_tried(method):
    search = section(method, **SEARCHES[method])
    whole = run_trials(search, {}, failing=(2,))
    assert list(whole) == list(range(1, len(whole) + 1))
    for killed in range(1, len(whole) + 1, 2):
        half = run_trials(search, {}, until=killed, failing=(2,))
        assert run_trials(search, half, failing=(2,)) == whole
    assert run_trials(search, whole) == whole  # a finished search has nothing left to do


def test_hyperband_in_a_small_space_promotes_what_there_is():
    """Three combinations instead of nine: one of them is promoted twice; nothing is left for the other brackets."""
    search = section("hyperband", space={NAME: ["sgd", "rmsprop", "adam"]})
    records = run_trials(search, {})
    assert [record.codes[EPOCHS] for record in records.values()] == [1, 1, 1, 3, 3, 3, 9]
    oracle = make_oracle(search, "val_accuracy", 9, {})
    assert (oracle.total, oracle.requested) == (7, 23)
    for killed in range(1, 8):
        assert run_trials(search, run_trials(search, {}, until=killed)) == records


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_every_trial_is_another_one_to_the_last_of_the_space(method):
    space = {NAME: ["sgd", "rmsprop", "adam"], "data.batch_size": {"int": [8, 32], "step": 8}}
    for trials, expected in ((12, 12), (40, 12), (7, 7)):
        records = run_trials(section(method, trials=trials, space=space), {})
        assert len({str(record.codes) for record in records.values()}) == len(records) == expected


def test_more_trials_extend_the_same_search():
    for method in ("random", "bayesian"):
        first = run_trials(section(method, trials=5), {})
        assert run_trials(section(method, trials=8), first) == run_trials(section(method, trials=8), {})


def test_seeds_differ_and_zero_is_one_of_them():
    def of(seed):
        return [record.codes for record in run_trials(section("random", trials=4, seed=seed), {}).values()]

    assert of(0) == of(0)
    assert len({str(of(seed)) for seed in range(4)}) == 4


def test_a_bayesian_search_finds_the_best_of_a_smooth_function_sooner(monkeypatch):
    """On a parabola of the learning rate's logarithm; median over three seeds."""

    def parabola(codes):
        return 1 - (math.log10(codes[PEAK]) + 2.3) ** 2

    monkeypatch.setattr(f"{__name__}.score", parabola)
    errors = {
        method: statistics.median(
            1 - max(r.score for r in run_trials(section(method, trials=8, seed=seed, space=space), {}).values())
            for seed in range(3)
        )
        for space in ({PEAK: {"log": [1e-4, 1.0]}},)
        for method in ("random", "bayesian")
    }
    assert errors["bayesian"] < errors["random"] / 10


def test_hyperband_trains_as_its_brackets_say():
    """Sizes and epochs for at most 9 epochs and factor 3; Li et al. 2018, table 1, has its first bracket."""
    records = run_trials(section("hyperband"), {})
    brackets = {}
    for record in records.values():
        brackets.setdefault(record.codes["tuner/bracket"], []).append(record.codes[EPOCHS])
    assert brackets == {2: [1] * 9 + [3] * 3 + [9], 1: [3] * 5 + [9] * 2, 0: [9] * 3}
    assert make_oracle(section("hyperband"), "val_accuracy", 9, {}).total == len(records) == 23
    first = [records[number] for number in range(1, 10)]
    best = sorted(first, key=lambda record: -record.score)[:3]
    assert [records[number].parent for number in (10, 11, 12)] == [record.number for record in best]
    assert records[10].codes[NAME] == best[0].codes[NAME]


@pytest.mark.parametrize(("failing", "heirs"), [((1, 2, 3, 4), 3), ((1, 2, 3, 4, 5, 6, 7), 2), (range(1, 10), 0)])
def test_hyperband_promotes_the_best_of_those_that_have_not_failed(failing, heirs):
    records = run_trials(section("hyperband"), {}, failing=failing)
    parents = [r.parent for r in records.values() if r.codes["tuner/bracket"] == 2 and r.codes[EPOCHS] == 3]
    assert len(parents) == heirs and not set(parents) & set(failing)


def test_weights_are_kept_while_another_trial_may_begin_with_them():
    search = section("hyperband")

    def needed(until):
        records = run_trials(search, {}, until=until)
        oracle = make_oracle(search, "val_accuracy", 9, records)
        return {number for number in records if oracle.weights_may_be_inherited(number)}

    assert needed(9) == set(range(1, 10))
    whole = run_trials(search, {})
    best = {record.number for record in sorted((whole[n] for n in range(1, 10)), key=lambda r: -r.score)[:3]}
    assert best & needed(12) == {whole[12].parent}  # it may not have copied them yet
    assert needed(13) >= {whole[13].parent}
    assert not make_oracle(search, "val_accuracy", 9, whole).weights_may_be_inherited(1)
