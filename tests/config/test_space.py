"""What a search may try: every mistake named with its line, before TensorFlow is loaded."""

import itertools
import subprocess
import sys

import pytest

from kpipe.config.loading import load_experiment, load_search
from kpipe.config.space import combinations, decode, make_dimensions
from kpipe.errors import ConfigError

HEAD = """\
data: {source: digits, image_size: 28}
model: {name: lenet5}
"""
NAME, PEAK, MOMENTUM = "training.optimizer.name", "training.learning_rate.peak", "training.optimizer.momentum"
SIZE = "data.batch_size"


@pytest.fixture
def load(tmp_path):
    def load(search, *overrides):
        path = tmp_path / "exp.yaml"
        path.write_text(f"{HEAD}search:\n  " + search.replace("\n", "\n  ") + "\n")
        return load_search(path, overrides)

    return load


def space(*lines):
    return "space:\n" + "".join(f"  {line}\n" for line in lines)


BROKEN = [
    ("method: bayesan", "exp.yaml:4: search.method: unknown name 'bayesan', did you mean 'bayesian'?"),
    ("trials: 0", "exp.yaml:4: search.trials: expected at least 1, got 0"),
    ("method: grid\ninitial_trials: 3", "exp.yaml:5: search.initial_trials: unknown key"),
    ("objective: val_los", "exp.yaml:4: search.objective: expected one of val_accuracy, val_loss, got 'val_los'"),
    ("space: {}", "exp.yaml:4: search.space: expected at least one key of the experiment"),
    ("space: lr", "exp.yaml:4: search.space: expected one of learning_rate_and_optimizer, got 'lr'"),
    (space(f"{NAME}: 3"), f"exp.yaml:5: search.space.{NAME}: expected a list of values, or one of {{uniform: [a, b]}}"),
    (space(f"{NAME}: {{lgo: [1, 2]}}"), f"exp.yaml:5: search.space.{NAME}.lgo: unknown key, did you mean 'log'?"),
    (space("training.optimizr.name: [sgd]"), "unknown key 'optimizr', did you mean 'optimizer'?"),
    (space("lr: [0.1, 1]"), "search.space.lr: unknown key 'lr', did you mean 'training.learning_rate'?"),
    (space("optimizer.name: [sgd]"), "unknown key 'optimizer', did you mean 'training.optimizer.name'?"),
    (space("model.name.x: [1, 2]"), "search.space.model.name.x: unknown key 'x', model.name has no keys"),
    (space(f"{NAME}: [sgd, adm]"), f"cannot be tried with {{{NAME}: 'adm'}}: {NAME}: unknown name 'adm', did you mean"),
    (space(f"{NAME}: [sgd, sgd]"), f"exp.yaml:5: search.space.{NAME}: expected each value once, got 'sgd' twice"),
    (space(f"{PEAK}: {{log: [0, 1]}}"), f"search.space.{PEAK}: log: expected numbers above 0, got 0"),
    (space(f"{PEAK}: {{log: [1, 0.1]}}"), f"search.space.{PEAK}: expected [smallest, largest], got [1, 0.1]"),
    (space(f"{PEAK}: {{log: [0.1, 1, 2]}}"), f"search.space.{PEAK}.log: expected at most 2 entries, got [0.1, 1, 2]"),
    (space(f"{PEAK}: {{log: [0.1]}}"), f"search.space.{PEAK}.log: expected at least 2 entries, got [0.1]"),
    (space(f"{PEAK}: {{log: [0.1, a]}}"), f"search.space.{PEAK}.log.1: expected a number, got 'a'"),
    (space(f"{PEAK}: {{uniform: [-1, 1]}}"), f"cannot be tried with {{{PEAK}: -1.0}}: {PEAK}: expected more than 0"),
    (space(f"{PEAK}: {{log: [0.1, 1], step: 2}}"), f"search.space.{PEAK}: step belongs to int, not to log"),
    (space("data.batch_size: {int: [8, 8]}"), "search.space.data.batch_size: expected [smallest, largest], got [8, 8]"),
    ("method: grid", "search.space: learning_rate_and_optimizer has ranges of numbers, a grid needs lists of values"),
    ("method: grid\n" + space(f"{PEAK}: {{log: [0.1, 1]}}"), f"exp.yaml:6: search.space.{PEAK}: a grid needs a list"),
    (space("seed: [0, 1]"), "seed: belongs to method: grid; executions_per_trial repeats a trial with other seeds"),
    ("method: hyperband\n" + space("training.epochs: [1, 2]"), "hyperband itself decides how long a trial trains"),
    (space("name: [a, b]"), "search.space.name: cannot be searched"),
    (space("training.monitor: [val_loss, val_accuracy]"), "search.space.training.monitor: cannot be searched"),
    (space("training.xla: [on, off]"), "search.space.training.xla: cannot be searched"),
    (space("training.when_stuck: [warn, stop]"), "search.space.training.when_stuck: cannot be searched"),
    (space("logging.layer_statistics.steps: [5, 6]"), "search.space.logging.layer_statistics.steps: cannot be"),
    (
        space(f"{NAME}: [sgd, adam]", f"{MOMENTUM}: [0.0, 0.9]"),
        f"search.space.{MOMENTUM}: cannot be tried with {{{NAME}: 'adam', {MOMENTUM}: 0.0}}: {MOMENTUM}: unknown key",
    ),
    (
        space(f"{NAME}: [sgd, adam]", f"{MOMENTUM}: {{choice: [0.0, 0.9], when: {{training.optimizer.nme: sgd}}}}"),
        f"when: expected a key of the space that is a list, got 'training.optimizer.nme', did you mean '{NAME}'?",
    ),
    (
        space(f"{NAME}: [sgd, adam]", f"{MOMENTUM}: {{choice: [0.0, 0.9], when: {{{NAME}: rmsprop}}}}"),
        f"search.space.{MOMENTUM}: when: expected values of {NAME}, ['sgd', 'adam'], got 'rmsprop'",
    ),
    (
        space(f"{NAME}: [sgd, adam]", f"{PEAK}: {{cases: [{{choice: [1], when: {{{NAME}: sgd}}}}, [0.1]]}}"),
        "expected cases that exclude each other by when, got two that fit at once, 1 and 2",
    ),
    (
        space(f"{NAME}: [sgd, adam]", f"{PEAK}: {{cases: [{{log: [0.1, 1]}}], when: {{{NAME}: sgd}}}}"),
        "expected when in each case, got one beside cases",
    ),
    (
        space(f"{PEAK}: {{cases: [{{cases: [[0.1]]}}]}}"),
        f"search.space.{PEAK}: expected no cases inside a case",
    ),
    ("method: grid\nexecutions_per_trial: 2\n" + space("seed: [0, 1]"), "seed: each seed is a trial of its own; leave"),
    (
        space("training.optimizer: [{name: sgd}]", f"{NAME}: [sgd, adam]"),
        f"exp.yaml:6: search.space.{NAME}: lies in training.optimizer, which is a key of the space too; leave one of",
    ),
    (space("model.variant: [modern, true, 1]"), "cannot be tried with {model.variant: true}"),
    ("method: grid\n" + space("seed: {int: [0, 200000]}"), "expected a grid of fewer than 100,000 combinations, or"),
    (
        space("model.name: [lenet5, vgg11]", "data.image_size: [16, 32]"),
        "cannot be tried with {model.name: 'vgg11', data.image_size: 16}: data.image_size: vgg11 needs at least 17",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("search", "message"), BROKEN, ids=lambda value: value.split("\n")[-1][:40])
def test_every_mistake_is_named_with_its_line(load, search, message):
    with pytest.raises(ConfigError) as caught:
        load(search)
    assert message in str(caught.value)
    assert "exp.yaml:" in str(caught.value)


def test_other_mistakes_of_the_file(tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_text(HEAD + "training: {monitor: val_loss}\nsearch: {objective: val_accuracy}\n")
    with pytest.raises(ConfigError, match="exp.yaml:4: search.objective: differs from training.monitor; leave one"):
        load_search(path)
    path.write_text(HEAD.replace("28}", "28, split: {validation: 0}}"))
    with pytest.raises(
        ConfigError, match="exp.yaml:1: data.split.validation: a search needs a validation split, got 0"
    ):
        load_search(path)


def test_all_mistakes_of_keys_are_named_beside_those_of_the_file(tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_text(
        HEAD + f"training: {{ephocs: 3}}\nsearch: {{space: {{{PEAK}: {{log: [1, 0.1]}}, data.bach: [1]}}}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_search(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "training.ephocs",
        f"search.space.{PEAK}",
        "search.space.data.bach",
    ]


def test_a_key_that_is_searched_cannot_be_fixed_beside_it(load):
    with pytest.raises(ConfigError) as caught:
        load("method: random", f"{PEAK}=0.1")
    assert str(caught.value) == (
        f"command line: {PEAK}: is searched; to fix it, give search.space.{PEAK}=[...] with one value"
    )


def test_a_run_does_not_look_at_the_search(tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_text(HEAD + "search: {objective: val_accuracy, space: {data.batch_size: {log: [1, 0]}}}\n")
    load_experiment(path, ["training.monitor=val_loss", "data.split.validation=0"])


def test_a_space_is_a_list_of_dimensions_that_depend_on_earlier_ones(load):
    loaded = load(
        space(
            f"{PEAK}: {{cases: [{{log: [0.1, 1], when: {{{NAME}: sgd}}}}, {{log: [0.1, 1], when: {{{NAME}: adam}}}}]}}",
            f"{NAME}: [sgd, adam]",
            f"{MOMENTUM}: {{choice: [0.0, 0.9], when: {{{NAME}: sgd}}}}",
        )
    )
    found = make_dimensions(loaded.experiment.search)
    assert [each.name for each in found] == [NAME, PEAK, f"{PEAK}#2", MOMENTUM]
    assert decode(found, {NAME: 1, f"{PEAK}#2": 0.00123456789}) == {NAME: "adam", PEAK: 0.00123457}
    varied = loaded.vary({NAME: "sgd", MOMENTUM: 0.9, PEAK: 0.5}).training
    assert (varied.optimizer.name, varied.optimizer.momentum, varied.learning_rate.peak) == ("sgd", 0.9, 0.5)


def test_each_code_has_a_position_and_each_position_a_code(load):
    lines = [f"{NAME}: [sgd, rmsprop]", f"{PEAK}: {{log: [1e-4, 1]}}", f"{MOMENTUM}: {{uniform: [0.5, 0.9]}}"]
    dimensions = make_dimensions(load(space(*lines, f"{SIZE}: {{int: [8, 35], step: 8}}")).experiment.search)
    ends = [[each.code_at(position) for position in (0.0, 0.5, 1.0)] for each in dimensions]
    assert ends == [[0, 1, 1], pytest.approx([1e-4, 1e-2, 1]), pytest.approx([0.5, 0.7, 0.9]), [8, 24, 32]]
    for dimension, codes in zip(dimensions, ends, strict=True):
        assert [dimension.code_at(dimension.position(code)) for code in codes] == pytest.approx(codes)


def test_combinations_are_those_of_nested_loops(load):
    search = load(
        "method: grid\n"
        + space("seed: [0, 1]", f"{NAME}: [sgd, adam]", f"{MOMENTUM}: {{choice: [0.0, 0.9], when: {{{NAME}: sgd}}}}")
    ).experiment.search
    dimensions = make_dimensions(search)
    found = [decode(dimensions, codes) for codes in combinations(dimensions)]
    assert found == [
        {"seed": seed, NAME: name} | ({} if momentum is None else {MOMENTUM: momentum})
        for seed, name in itertools.product((0, 1), ("sgd", "adam"))
        for momentum in ((0.0, 0.9) if name == "sgd" else (None,))
    ]


def test_values_may_be_lists_and_sections(load):
    loaded = load(
        space("data.augment: [[], [flip_horizontal]]", "training.optimizer: [{name: sgd, momentum: 0.9}, {name: adam}]")
    )
    values = decode(make_dimensions(loaded.experiment.search), {"data.augment": 1, "training.optimizer": 0})
    varied = loaded.vary(values)
    assert varied.data.augment[0].chosen[0] == "flip_horizontal"
    assert varied.training.optimizer.momentum == 0.9


def test_the_command_line_reaches_into_the_space(load):
    loaded = load("method: random", "search.method=hyperband", f"search.space.{PEAK}.log=[1e-4,1e-2]",
                  f"search.space.{NAME}=[sgd,adam]")  # fmt: skip
    found = make_dimensions(loaded.experiment.search)
    assert {each.key: each.kind for each in found} == {PEAK: "log", NAME: "choice"}
    assert load("method: random\ntrials: 5", "search.method=hyperband").dropped == ("search.trials",)


REPLACED_KINDS = [
    (f"{PEAK}: {{log: [1e-3, 1e-2]}}", [f"{PEAK}.uniform=[0.001,0.1]"], {"uniform": [0.001, 0.1]}, ["log"]),
    (f"{PEAK}: [1e-3, 1e-2]", [f"{PEAK}.log=[0.001,0.1]"], {"log": [0.001, 0.1]}, ["choice"]),
    (f"{PEAK}: {{choice: [1e-3]}}", [f"{PEAK}.log=[0.001,0.1]"], {"log": [0.001, 0.1]}, ["choice"]),
    (f"{PEAK}: {{cases: [{{log: [1e-3, 1e-2]}}]}}", [f"{PEAK}.choice=[0.1]"], {"choice": [0.1]}, ["cases"]),
    (
        f"{PEAK}: {{log: [1e-3, 1e-2], when: {{{NAME}: sgd}}}}",
        [f"{PEAK}.choice=[0.1]"],
        {"choice": [0.1], "when": {NAME: "sgd"}},
        ["log"],
    ),
    (f"{PEAK}: {{log: [1e-3, 1e-2]}}", [f"{PEAK}.log=[0.1,1]"], {"log": [0.1, 1]}, []),
    (f"{PEAK}: {{log: [1e-3, 1e-2]}}", [f"{PEAK}=[0.1,1]"], {"choice": [0.1, 1]}, []),
    (f"{SIZE}: {{int: [16, 64], step: 16}}", [f"{SIZE}.choice=[16]"], {"choice": [16]}, ["int", "step"]),
    (f"{SIZE}: {{int: [16, 64], step: 16}}", [f"{SIZE}.int=[1e1,2e1]"], {"int": [10, 20], "step": 16}, []),
    (f"{SIZE}: {{int: [16, 64], step: 1.6e1}}", [f"{SIZE}.step=8"], {"int": [16, 64], "step": 8}, []),
    (f"{SIZE}: [16, 64]", [f"{SIZE}.int=[16,32]", f"{SIZE}.step=8"], {"int": [16, 32], "step": 8}, ["choice"]),
]


@pytest.mark.parametrize(("line", "overrides", "expected", "dropped"), REPLACED_KINDS)
def test_an_override_replaces_the_kind_of_values(load, line, overrides, expected, dropped):
    loaded = load(space(f"{NAME}: [sgd, adam]", line), *(f"search.space.{override}" for override in overrides))
    key = line.partition(":")[0]
    found = loaded.experiment.search.space[key].model_dump()
    assert found == expected and not any(isinstance(number, float) for number in found.get("int", []))
    assert loaded.dropped == tuple(f"search.space.{key}.{kind}" for kind in dropped)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{PEAK}.step=3"], f"search.space.{PEAK}: step belongs to int, not to log"),
        (
            [f"{PEAK}.uniform=[1,2]", f"{PEAK}.int=[1,2]"],
            f"search.space.{PEAK}: expected a list of values, or one of {{",
        ),
        (
            [f"{PEAK}.uniform=[0.2,0.1]"],
            f"command line: search.space.{PEAK}: expected [smallest, largest], got [0.2, 0.1]",
        ),
        (["log=[1,2]"], "search.space.log: unknown key 'log', did you mean 'logs'?"),
    ],
)
def test_overrides_of_a_space_that_stay_mistakes(load, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(space(f"{PEAK}: {{log: [1e-3, 1e-2]}}"), *(f"search.space.{override}" for override in overrides))
    assert message in str(caught.value)


def test_nothing_given_means_learning_rate_and_optimizer(tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_text(HEAD)
    search = load_search(path).experiment.search
    assert (search.method, search.trials) == ("random", 20)
    assert [(each.key, each.low, each.high) for each in make_dimensions(search)] == [
        (NAME, 0, 0),
        (PEAK, 1e-2, 1.0),
        (PEAK, 1e-4, 1e-2),
    ]


def test_a_mistake_costs_no_import_of_tensorflow(tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_text(f"{HEAD}search: {{space: {{training.learning_rate.peek: [0.1]}}}}\n")
    code = "import sys; from kpipe.cli import main; main(); print({'tensorflow', 'keras_tuner'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code, "search", str(path)], capture_output=True, text=True)
    assert "unknown key 'peek', did you mean 'peak'?" in done.stderr
    assert done.stdout == "set()\n"
