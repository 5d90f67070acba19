"""keras-tuner's oracles, which say what to try next, made repeatable.

Each suggestion is a function of the search's seed, the number of the trial and the results of the trials before it. So
an oracle keeps no state of its own: it is rebuilt from the records of the trials, and a search that was killed tries
what it would have tried. (keras-tuner's state files can be half-written, its grid cannot be resumed, and its Gaussian
process begins with other random numbers after each reload.) `draws` says what covers the space, and `gaussian` what the
results so far promise.
"""

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles
from keras_tuner.engine import trial as engine_trial

from kpipe.catalog.search import SEARCH_METHODS, SearchOptions
from kpipe.config.space import Dimension, combinations, count_combinations, make_dimensions
from kpipe.tuning.draws import draw
from kpipe.tuning.gaussian import suggest
from kpipe.tuning.records import Record

EPOCHS, PARENT = "tuner/epochs", "tuner/trial_id"
"""Hyperband's names for how long a trial trains, and which trial it resumes."""
_ENDED = ("COMPLETED", "FAILED")


def make_oracle(
    search: SearchOptions, objective: str, epochs: int, records: Mapping[int, Record]
) -> keras_tuner.Oracle:
    """Make the oracle of a search, in its state after some trials.

    Args:
        search: the section of the experiment.
        objective: val_accuracy or val_loss.
        epochs: the most that a trial trains.
        records: of the trials so far, numbered 1, 2, ... without a gap.
    """
    direction = "max" if objective == "val_accuracy" else "min"
    oracle = SEARCH_METHODS[search.method].load()(
        search, make_dimensions(search), epochs, objective=keras_tuner.Objective(objective, direction)
    )
    oracle.verbose = 0
    oracle.remember(records)
    return oracle


def number_of(trial_id: str) -> int:
    """Return kpipe's number of a trial, from 1 on."""
    return int(trial_id) + 1


def make_generator(seed: int, trial_id: str) -> np.random.Generator:
    """Make the random numbers of one trial; those of another trial or seed are independent of them."""
    return np.random.default_rng([seed, number_of(trial_id)])


class _Repeatable:
    """A mixin for an oracle: suggestions that can be repeated, and a memory made from records.

    Attributes:
        dimensions: those of the searched space.
        requested: how many trials the search would have in an infinite space. None: all of the space.
    """

    requested: int | None

    def __init__(self, search: SearchOptions, dimensions: Sequence[Dimension], **options):
        super().__init__(
            hyperparameters=_hyperparameters(dimensions),
            allow_new_entries=False,
            seed=search.seed + 1,  # keras-tuner takes a random seed instead of 0
            max_consecutive_failed_trials=None,  # failed trials do not end the search
            **options,
        )
        self.dimensions = list(dimensions)
        self.requested = self.max_trials

    @property
    def total(self) -> int:
        """Number of trials that there will be, at most."""
        count = count_combinations(self.dimensions, self.requested)
        return self.requested if count is None else count

    def _tried(self) -> list[dict[str, Any]]:
        """Return the codes of the trials so far, without those that hyperband has promoted and what it adds."""
        names = {dimension.name for dimension in self.dimensions}
        trials = (trial.hyperparameters.values for trial in self.trials.values())
        return [{name: codes[name] for name in codes if name in names} for codes in trials if PARENT not in codes]

    def _draw(self, trial_id: str) -> dict[str, Any] | None:
        """Return a combination that has not been tried, so that the trials cover the space; None where none is left."""
        return draw(self.dimensions, self._tried(), make_generator(self.seed, trial_id))

    @keras_tuner.synchronized
    def end_trial(self, trial):
        super().end_trial(trial)
        if trial.trial_id in self._retry_queue:  # its worker has survived the chief that gave it
            self._retry_queue.remove(trial.trial_id)

    def remember(self, records: Mapping[int, Record]) -> None:
        """Restore the trials so far; those that have not ended are given out first."""
        unfinished = []
        for number in sorted(records):
            record = records[number]
            values = self.hyperparameters.copy()
            values.values = dict(record.codes)
            trial_id = f"{len(self.trials):0{len(str(self.max_trials))}d}"
            trial = engine_trial.Trial(values, trial_id)
            self.trials[trial_id] = trial
            self.start_order.append(trial_id)
            self._record_values(trial)
            self._on_remembered(trial)
            if not record.has_ended:
                trial.status = "INVALID"  # not running yet, and no score
                unfinished.insert(0, trial_id)
                continue
            trial.status = "COMPLETED" if record.has_score else "FAILED"
            self.end_order.append(trial_id)
            if record.has_score:
                trial.metrics.register(self.objective.name, self.objective.direction)
                trial.metrics.update(self.objective.name, record.score)
                self.score_trial(trial)
        self._retry_queue = unfinished  # taken from its end

    def _on_remembered(self, trial) -> None:
        """Restore what an oracle remembers beside its trials."""

    def weights_may_be_inherited(self, number: int) -> bool:
        """Return whether another trial may begin with the weights of this one."""
        return False

    # Who runs the trials writes the records. keras-tuner's own files are not written.

    def save(self) -> None:
        pass

    def _save_trial(self, trial) -> None:
        pass


class RandomOracle(_Repeatable, keras_tuner.Oracle):
    """Draws that cover the space, each combination once."""

    def __init__(self, search: SearchOptions, dimensions: Sequence[Dimension], epochs: int, **options):
        super().__init__(search, dimensions, max_trials=search.trials, **options)

    def populate_space(self, trial_id):
        return _answer(self._draw(trial_id))


class GridOracle(_Repeatable, keras_tuner.Oracle):
    """Every combination, in the order of the space, the last key changing fastest."""

    def __init__(self, search: SearchOptions, dimensions: Sequence[Dimension], epochs: int, **options):
        super().__init__(search, dimensions, max_trials=search.trials, **options)
        self._combinations = list(itertools.islice(combinations(self.dimensions), search.trials))

    def populate_space(self, trial_id):
        number = int(trial_id)
        return _answer(dict(self._combinations[number]) if number < len(self._combinations) else None)


class BayesianOracle(_Repeatable, keras_tuner.Oracle):
    """Draws that cover the space, and then what a Gaussian process over the results so far finds most promising."""

    def __init__(self, search: SearchOptions, dimensions: Sequence[Dimension], epochs: int, **options):
        super().__init__(search, dimensions, max_trials=search.trials, **options)
        self._initial_trials = search.initial_trials or 3 * len({dimension.key for dimension in dimensions})

    def populate_space(self, trial_id):
        values, trials = None, self.trials.values()
        if len(trials) >= self._initial_trials and any(trial.status == "COMPLETED" for trial in trials):
            losses = [self._loss(trial) for trial in trials]
            values = suggest(self.dimensions, self._tried(), losses, make_generator(self.seed, trial_id))
        return _answer(values or self._draw(trial_id))

    def _loss(self, trial) -> float | None:
        """Return a score of which smaller is better, infinity for a trial that has failed, None for one that runs."""
        if trial.status == "COMPLETED":
            return -trial.score if self.objective.direction == "max" else trial.score
        return math.inf if trial.status == "FAILED" else None


class HyperbandOracle(_Repeatable, oracles.HyperbandOracle):
    """Brackets of many short trials, of which the best are trained further (Li et al. 2018).

    keras-tuner promotes one trial less for each that has failed, and none when a third has. Here a round ends when
    each of its trials has ended, and the best of those that have a score are promoted.
    """

    def __init__(self, search: SearchOptions, dimensions: Sequence[Dimension], epochs: int, **options):
        super().__init__(
            search,
            dimensions,
            max_epochs=epochs,
            factor=search.factor,
            hyperband_iterations=search.iterations,
            **options,
        )

        self.requested = self._count(math.inf)

    @property
    def total(self) -> int:
        return self._count(count_combinations(self.dimensions, self.requested) or math.inf)

    def _count(self, combinations: float) -> int:
        """Count the trials of all brackets, with so many combinations to begin with."""
        count = 0
        for bracket in (*reversed(range(self._get_num_brackets())),) * self.hyperband_iterations:
            begin = running = min(combinations, self._get_size(bracket, 0))
            combinations -= begin
            for number in range(self._get_num_rounds(bracket)):
                running = min(running, self._get_size(bracket, number))
                count += running
        return count

    def populate_space(self, trial_id):
        for bracket in self._brackets:
            if self._has_room(bracket) and (values := self._draw(trial_id)) is not None:
                bracket["rounds"][0].append({"past_id": None, "id": trial_id})
                return {"status": "RUNNING", "values": values | self._stage(bracket["bracket_num"], 0)}
            if (values := self._promote(trial_id, bracket)) is not None:
                return {"status": "RUNNING", "values": values}
        if self._current_bracket == 0 and self._current_iteration + 1 >= self.hyperband_iterations:
            return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}
        self._increment_bracket_num()
        self._start_new_bracket()
        return self.populate_space(trial_id)

    def _has_room(self, bracket: dict[str, Any]) -> bool:
        """Return whether more trials may begin in a bracket."""
        return len(bracket["rounds"][0]) < self._get_size(bracket["bracket_num"], 0)

    def _stage(self, bracket: int, number: int) -> dict[str, int]:
        """Return what a trial of a round is told, by keras-tuner's names."""
        before = self._get_epochs(bracket, number - 1) if number else 0
        epochs = self._get_epochs(bracket, number)
        return {EPOCHS: epochs, "tuner/initial_epoch": before, "tuner/bracket": bracket, "tuner/round": number}

    def _promote(self, trial_id: str, bracket: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the next promoted trial of a bracket tries; None where none can be promoted yet."""
        number, rounds = bracket["bracket_num"], bracket["rounds"]
        for before, (entries, following) in enumerate(itertools.pairwise(rounds)):
            trials = [self.trials[entry["id"]] for entry in entries]
            if any(trial.status not in _ENDED for trial in trials):
                return None
            scored = [trial for trial in trials if trial.status == "COMPLETED"]
            scored.sort(key=lambda trial: trial.score, reverse=self.objective.direction == "max")
            if len(following) < min(len(scored), self._get_size(number, before + 1)):
                best = scored[len(following)]
                following.append({"past_id": best.trial_id, "id": trial_id})
                return best.hyperparameters.values | {PARENT: best.trial_id} | self._stage(number, before + 1)
        return None

    def _on_remembered(self, trial) -> None:
        values = trial.hyperparameters.values
        parent, number = values.get(PARENT), values["tuner/round"]
        if parent is None:
            while self._current_bracket != values["tuner/bracket"] or not self._has_room(self._brackets[-1]):
                self._increment_bracket_num()
                self._start_new_bracket()
            bracket = self._brackets[-1]
        else:
            bracket = next(
                each for each in self._brackets if any(entry["id"] == parent for entry in each["rounds"][number - 1])
            )
        bracket["rounds"][number].append({"past_id": parent, "id": trial.trial_id})

    def weights_may_be_inherited(self, number: int) -> bool:
        for bracket in self._brackets:
            for before, (entries, following) in enumerate(itertools.pairwise(bracket["rounds"])):
                if all(number_of(entry["id"]) != number for entry in entries):
                    continue
                heirs = [entry["id"] for entry in following if number_of(entry["past_id"]) == number]
                if heirs:  # it has copied the weights when it has ended, at the latest
                    return any(self.trials[heir].status not in _ENDED for heir in heirs)
                return len(following) < self._get_size(bracket["bracket_num"], before + 1)
        return False


def _hyperparameters(dimensions: Sequence[Dimension]) -> keras_tuner.HyperParameters:
    """Return the space as keras-tuner knows it; a choice is an index into its values, whatever these are."""
    space = keras_tuner.HyperParameters()
    for each in dimensions:
        with contextlib.ExitStack() as conditions:
            for parent, allowed in each.when.items():
                conditions.enter_context(space.conditional_scope(parent, list(allowed)))
            if each.kind == "choice":
                space.Choice(each.name, list(each.codes))
            elif each.kind == "int":
                space.Int(each.name, int(each.low), int(each.high), each.step)
            else:
                sampling = "log" if each.kind == "log" else "linear"
                space.Float(each.name, float(each.low), float(each.high), sampling=sampling)
    return space


def _answer(values: dict[str, Any] | None) -> dict[str, Any]:
    """Return what keras-tuner expects of `populate_space`; None for values: there is nothing more to try."""
    return {"status": "STOPPED"} if values is None else {"status": "RUNNING", "values": values}


def codes_of(trial: Any) -> dict[str, Any]:
    """Return what a trial tries, by the names of dimensions and those of hyperband."""
    return dict(trial.hyperparameters.values)
