"""keras-tuner's oracles, which say what to try next, without what they lose.

Each suggestion is a function of the search's seed, the number of the trial and the results of the trials before it. So
an oracle keeps no state of its own: it is rebuilt from the records of the trials, and a search that was killed goes on
as it would have gone on. (keras-tuner's state files can be half-written, its grid cannot be resumed, and its Gaussian
process begins with other random numbers after each reload.)
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles
from keras_tuner.engine import trial as engine_trial
from threadpoolctl import threadpool_limits

from kpipe.config.space import Dimension, combinations, make_dimensions
from kpipe.search.records import Record
from kpipe.tables import SEARCH_METHODS, SearchOptions, resolve

EPOCHS, PARENT = "tuner/epochs", "tuner/trial_id"
"""Under what names hyperband says how long a trial trains, and which one it goes on from."""
_ENDED = ("COMPLETED", "FAILED")
_MOST_COLLISIONS = 10_000  # draws of what has been tried before, after which a space counts as exhausted
_DRAWS = 1_000_000  # more numbers than a trial draws


def make_oracle(
    search: SearchOptions,
    objective: str,
    epochs: int,
    records: Mapping[int, Record],
    on_end: Callable[[], None] = lambda: None,
) -> keras_tuner.Oracle:
    """The oracle of a search, as it stands after some trials.

    Args:
        search: the section of the experiment.
        objective: val_accuracy or val_loss.
        epochs: the most that a trial trains.
        records: of the trials so far.
        on_end: called whenever a trial has ended.
    """
    dimensions = make_dimensions(search)
    direction = "max" if objective == "val_accuracy" else "min"
    oracle = resolve(SEARCH_METHODS[search.method])(
        search, dimensions, epochs, objective=keras_tuner.Objective(objective, direction)
    )
    oracle.verbose = 0
    oracle.remember(records)
    oracle.on_end = on_end
    return oracle


def number_of(trial_id: str) -> int:
    """kpipe's number of a trial, from 1 on."""
    return int(trial_id) + 1


class _Repeatable:
    """Mixed into an oracle: suggestions that can be repeated, and a memory of its own."""

    def __init__(self, search: SearchOptions, dimensions: Sequence[Dimension], **options):
        super().__init__(
            hyperparameters=_hyperparameters(dimensions),
            allow_new_entries=False,
            seed=search.seed + 1,  # keras-tuner takes a random seed instead of 0
            max_consecutive_failed_trials=None,  # the search goes on, as long as it does no harm
            **options,
        )
        self.dimensions = list(dimensions)
        self.on_end = lambda: None
        self._max_collisions = _MOST_COLLISIONS

    def populate_space(self, trial_id):
        self._seed_state = (self.seed * 1000 + int(trial_id)) * _DRAWS
        return self._populate(trial_id)

    def _populate(self, trial_id):
        return super().populate_space(trial_id)

    @keras_tuner.synchronized
    def end_trial(self, trial):
        super().end_trial(trial)
        self.on_end()

    def remember(self, records: Mapping[int, Record]) -> None:
        """Takes in the trials so far; those that have not ended, or whose record is lost, are begun again first."""
        unfinished = []
        for number in range(1, max(records, default=0) + 1):
            record = records.get(number)
            trial = self._suggest_again() if record is None else self._take_in(record)
            if trial is not None and (record is None or not record.has_ended):
                trial.status = "INVALID"  # not running yet, and no score
                unfinished.insert(0, trial.trial_id)
        self._retry_queue = unfinished  # taken from its end

    def _suggest_again(self):
        trial = self.create_trial("lost")
        self.ongoing_trials.pop("lost", None)
        self.tuner_ids.discard("lost")
        return trial if trial.trial_id in self.trials else None

    def _take_in(self, record: Record):
        values = self.hyperparameters.copy()
        values.values = dict(record.codes)
        trial_id = f"{len(self.trials):0{len(str(self.max_trials))}d}"
        trial = engine_trial.Trial(values, trial_id, "COMPLETED" if record.has_score else "FAILED")
        self.trials[trial_id] = trial
        self.start_order.append(trial_id)
        self._record_values(trial)
        self._took_in(trial)
        if record.has_score:
            trial.metrics.register(self.objective.name, self.objective.direction)
            trial.metrics.update(self.objective.name, record.score)
            self.score_trial(trial)
        if record.has_ended:
            self.end_order.append(trial_id)
        return trial

    def _took_in(self, trial) -> None:
        """For oracles that remember more than their trials."""

    @property
    def total(self) -> int:
        """How many trials there will be, at most."""
        if not all(dimension.is_finite for dimension in self.dimensions):
            return self.max_trials
        return sum(1 for _ in itertools.islice(combinations(self.dimensions), self.max_trials))

    def may_go_on(self, number: int) -> bool:
        """Whether another trial may begin with the weights of this one."""
        return False

    # The records are written by those who run the trials; keras-tuner's own files are not.

    def save(self) -> None:
        pass

    def _save_trial(self, trial) -> None:
        pass

    def _check_consecutive_failures(self) -> None:
        pass


class RandomOracle(_Repeatable, oracles.RandomSearchOracle):
    """Independent draws, each combination once."""

    def __init__(self, search, dimensions, epochs, **options):
        super().__init__(search, dimensions, max_trials=search.trials, **options)


class GridOracle(_Repeatable, keras_tuner.Oracle):
    """Every combination, in the order of the space, the last key changing fastest."""

    def __init__(self, search, dimensions, epochs, **options):
        super().__init__(search, dimensions, max_trials=search.trials, **options)
        self._combinations = list(combinations(self.dimensions))

    def _populate(self, trial_id):
        if int(trial_id) < len(self._combinations):
            return {"status": "RUNNING", "values": dict(self._combinations[int(trial_id)])}
        return {"status": "STOPPED"}


class BayesianOracle(_Repeatable, oracles.BayesianOptimizationOracle):
    """A Gaussian process over the results so far, and the point whose lower bound is the best."""

    def __init__(self, search, dimensions, epochs, **options):
        keys = len({dimension.key for dimension in dimensions})
        points = search.initial_trials or 3 * max(keys, 1)
        super().__init__(search, dimensions, max_trials=search.trials, num_initial_points=points, **options)

    def _populate(self, trial_id):
        self._random_state = np.random.RandomState([self.seed, int(trial_id)])
        # Its matrices are so small that several threads only wait for each other.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn: a length scale of the kernel is at its bound
            found = super()._populate(trial_id)
        if found["status"] == "RUNNING" and self._duplicate(found["values"]):
            return self._random_populate_space()
        return found


class HyperbandOracle(_Repeatable, oracles.HyperbandOracle):
    """Brackets of many short trials, of which the best go on (Li et al. 2018).

    keras-tuner promotes one trial less for each that has failed, and none when a third has. Here a round ends when
    each of its trials has ended, and the best of those that have a score go on.
    """

    def __init__(self, search, dimensions, epochs, **options):
        super().__init__(
            search,
            dimensions,
            max_epochs=epochs,
            factor=search.factor,
            hyperband_iterations=search.iterations,
            **options,
        )

    def _populate(self, trial_id):
        for bracket in self._brackets:
            if len(bracket["rounds"][0]) < self._get_size(bracket["bracket_num"], 0):
                return self._random_trial(trial_id, bracket)
            if (values := self._promote(trial_id, bracket)) is not None:
                return {"status": "RUNNING", "values": values}
        if self._current_bracket == 0 and self._current_iteration + 1 == self.hyperband_iterations:
            return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}
        self._increment_bracket_num()
        self._start_new_bracket()
        return self._random_trial(trial_id, self._brackets[-1])

    def _promote(self, trial_id: str, bracket: dict[str, Any]) -> dict[str, Any] | None:
        """What the next trial that goes on in a bracket tries; None: none can, yet."""
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
                return best.hyperparameters.values | {
                    PARENT: best.trial_id,
                    EPOCHS: self._get_epochs(number, before + 1),
                    "tuner/initial_epoch": self._get_epochs(number, before),
                    "tuner/bracket": number,
                    "tuner/round": before + 1,
                }
        return None

    def _took_in(self, trial) -> None:
        parent = trial.hyperparameters.values.get(PARENT)
        entry = {"past_id": parent, "id": trial.trial_id}
        if parent is None:
            if len(self._brackets[-1]["rounds"][0]) >= self._get_size(self._brackets[-1]["bracket_num"], 0):
                self._increment_bracket_num()
                self._start_new_bracket()
            self._brackets[-1]["rounds"][0].append(entry)
            return
        for bracket in self._brackets:
            for number, entries in enumerate(bracket["rounds"][:-1]):
                if any(each["id"] == parent for each in entries):
                    bracket["rounds"][number + 1].append(entry)

    def may_go_on(self, number: int) -> bool:
        for bracket in self._brackets:
            for before, (entries, following) in enumerate(itertools.pairwise(bracket["rounds"])):
                if all(number_of(entry["id"]) != number for entry in entries):
                    continue
                heirs = [entry["id"] for entry in following if number_of(entry["past_id"]) == number]
                if heirs:  # it has copied the weights when it has ended, at the latest
                    return any(self.trials[heir].status not in _ENDED for heir in heirs)
                return len(following) < self._get_size(bracket["bracket_num"], before + 1)
        return False

    @property
    def total(self) -> int:
        sizes = [
            self._get_size(bracket, number)
            for bracket in range(self._get_num_brackets())
            for number in range(self._get_num_rounds(bracket))
        ]
        return self.hyperband_iterations * sum(sizes)


def _hyperparameters(dimensions: Sequence[Dimension]) -> keras_tuner.HyperParameters:
    """The space as keras-tuner knows it; a choice is one of the indices of its values, whatever these are."""
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


def codes_of(trial: Any) -> dict[str, Any]:
    """What a trial tries, by the names of dimensions and those of hyperband."""
    return dict(trial.hyperparameters.values)
