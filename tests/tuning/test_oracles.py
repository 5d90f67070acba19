"""What is tried next: a function of the seed and the results so far, whatever happens in between."""

import math
import random
import statistics
from collections import Counter

import pytest

from kpipe.config.schema import Experiment
from kpipe.config.space import make_dimensions
from kpipe.tuning.oracles import EPOCHS, PARENT, codes_of, make_generator, make_oracle, number_of
from kpipe.tuning.records import Record

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
        if number in failing or score(codes) is None:
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


COVERED = {
    "one range each": {
        NAME: ["sgd", "rmsprop", "adam"],
        PEAK: {
            "cases": [
                {"log": [1e-2, 1.0], "when": {NAME: "sgd"}},
                {"uniform": [1e-3, 2e-3], "when": {NAME: "rmsprop"}},
                {"log": [1e-4, 1e-2], "when": {NAME: "adam"}},
            ]
        },
    },
    "a shared range": "learning_rate_and_optimizer",
    "independent keys": {
        NAME: ["sgd", "adam"],
        PEAK: {"log": [1e-4, 1.0]},
        "data.batch_size": {"int": [8, 40], "step": 8},
        "training.loss.label_smoothing": {"uniform": [0.0, 0.2]},
    },
    "finite": {NAME: ["sgd", "rmsprop", "adam"], "data.batch_size": {"int": [8, 64], "step": 8}},
}


@pytest.mark.parametrize("space", COVERED)
@pytest.mark.parametrize("method", ["random", "bayesian", "hyperband"])
def test_draws_cover_every_choice_and_every_range(method, space):
    options = {"random": {"trials": 16}, "bayesian": {"trials": 16, "initial_trials": 16}, "hyperband": {"factor": 2}}
    for seed in range(20):
        search = section(method, space=COVERED[space], seed=seed, **options[method])
        # Hyperband's first bracket: 16 draws that train for one epoch.
        records = run_trials(search, {}, until=16, epochs=16 if method == "hyperband" else 9)
        assert len(records) == 16 and all(record.parent is None for record in records.values())
        for dimension in make_dimensions(search):
            codes = [record.codes[dimension.name] for record in records.values() if dimension.name in record.codes]
            for count in range(1, len(codes) + 1):
                if dimension.is_finite:
                    drawn, least = Counter(codes[:count]), count // len(dimension.codes)
                    repeats = space == "finite" and count == 16  # one less, where the alternative would be a repetition
                    assert min(drawn[code] for code in dimension.codes) >= least - repeats
                if not dimension.is_finite and count in (2, 4, 8, 16):
                    assert {int(count * dimension.position(code)) for code in codes[:count]} == set(range(count))


@pytest.mark.parametrize("space", ["one range each", "a shared range"])
def test_each_optimizer_is_tried_with_a_small_and_a_large_rate(space):
    for seed in range(20):
        search = section("bayesian", trials=6, space=COVERED[space], seed=seed)
        _, *ranges = make_dimensions(search)
        tried = {
            (record.codes[NAME], rate.position(record.codes[rate.name]) < 0.5)
            for record in run_trials(search, {}).values()
            for rate in ranges
            if rate.name in record.codes
        }
        assert len(tried) == 6


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_a_choice_that_has_no_numbers_to_vary_is_tried_once(method):
    space = {NAME: ["sgd", "adam"], PEAK: {"log": [1e-2, 1.0], "when": {NAME: "sgd"}}}
    records = run_trials(section(method, trials=10, space=space), {})
    assert Counter(record.codes[NAME] for record in records.values()) == {0: 9, 1: 1}


def test_seeds_differ_and_zero_is_one_of_them():
    def of(seed):
        return [record.codes for record in run_trials(section("random", trials=4, seed=seed), {}).values()]

    assert of(0) == of(0)
    assert len({str(of(seed)) for seed in range(4)}) == 4


def test_no_two_trials_of_any_seeds_share_their_random_numbers():
    numbers = {make_generator(seed, str(trial)).random() for seed in range(3) for trial in range(2500)}
    assert len(numbers) == 3 * 2500


def parabola(codes):
    """1 at a learning rate of 0.005, less elsewhere."""
    return 1 - (math.log10(codes[PEAK]) + 2.3) ** 2


def optimizers(codes):
    """Best for adam at 0.001, nearly as good for rmsprop, never for sgd."""
    name = codes[NAME]
    exponent = math.log10(codes[PEAK] if name == 0 else codes[f"{PEAK}#2"])
    return (0.5, 0.9, 1.0)[name] - (exponent + (1, 2.5, 3)[name]) ** 2


@pytest.mark.parametrize(
    ("function", "space", "trials"),
    [(parabola, {PEAK: {"log": [1e-4, 1.0]}}, 8), (optimizers, "learning_rate_and_optimizer", 14)],
)
def test_a_bayesian_search_finds_the_best_sooner(monkeypatch, function, space, trials):
    """Its error is less than a third, in the median of three seeds."""
    monkeypatch.setattr(f"{__name__}.score", function)

    def error(method, seed):
        records = run_trials(section(method, trials=trials, seed=seed, space=space), {})
        return 1 - max(record.score for record in records.values())

    errors = {m: statistics.median(error(m, seed) for seed in range(3)) for m in ("random", "bayesian")}
    assert errors["bayesian"] < errors["random"] / 3


def test_a_bayesian_search_avoids_where_trials_fail(monkeypatch):
    """The larger the rate the better, but above 0.1 all trials fail."""
    monkeypatch.setattr(f"{__name__}.score", lambda codes: math.log10(codes[PEAK]) if codes[PEAK] < 0.1 else None)
    search = section("bayesian", trials=12, initial_trials=4, space={PEAK: {"log": [1e-4, 1.0]}})
    records = run_trials(search, {})
    assert 1 <= sum(record.status == "failed" for record in records.values()) <= 4
    assert max(record.codes[PEAK] for record in records.values() if record.has_score) > 0.07


def test_workers_that_guess_at_once_try_different_things(monkeypatch):
    monkeypatch.setattr(f"{__name__}.score", parabola)
    search = section("bayesian", trials=12, initial_trials=4, space={PEAK: {"log": [1e-4, 1.0]}})
    oracle = make_oracle(search, "val_accuracy", 9, run_trials(search, {}, until=5))
    rates = [math.log10(codes_of(oracle.create_trial(f"tuner{worker}"))[PEAK]) for worker in range(4)]
    assert max(rates) - min(rates) > 0.1  # the same guess four times, but for the candidates, would differ by 0.01


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
