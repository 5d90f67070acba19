"""Shared by all tests: no TensorFlow chatter, runs under a temporary folder, Keras's globals as they were."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers

import gc
import itertools
import json
import shutil
import signal
import socket

import pytest

# What imports TensorFlow is imported where it is used: pytest-xdist reads this file in a process that runs no test.


def pytest_collection_modifyitems(items):
    """Run the longest files first, so that both workers end at the same time."""
    longest = (
        "training/test_trainer",
        "models/test_models",
        "runs/test_run",
        "commands/test_explain",
        "commands/test_plan",
        "models/test_geometry",
        "commands/test_evaluate",
        "explaining/test_explaining",
        "data/test_reading",
        "models/test_pretrained",
        "models/test_structure",
        "tuning/test_search",
    )

    def place(item):
        name = "/".join(item.path.with_suffix("").parts[-2:])
        return longest.index(name) if name in longest else len(longest)

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def what_stays_is_not_searched_for_garbage():
    """Save each collection, as at the end of each `kpipe plan`, up to a second: libraries, tests, traced functions."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "logs"))


@pytest.fixture(autouse=True)
def keras_as_it_was():
    import keras

    keras.utils.set_random_seed(0)  # Networks with weights of chance are the same ones in every order of the tests.
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(autouse=True)
def figures_are_drawn_where_they_are_tested(request, monkeypatch):
    """Save each run the half second that its figures take."""
    from tiny_runs import touch

    is_drawn = request.path.parent.name in ("figures", "commands") or request.path.stem == "test_tensorboard"
    if not is_drawn and "figures_are_drawn" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", touch)


@pytest.fixture
def without_weights():
    """Build networks whose variables have no values: what a test of their structure does not need takes no time."""
    from kpipe.models.building import deferred_initialization, discard_variables

    with deferred_initialization():
        yield
    discard_variables()


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def experiment(tmp_path, request):
    """The file of a tiny experiment: the module's own TINY, or that of `runs`."""
    from tiny_runs import TINY

    path = tmp_path / "tiny.yaml"
    path.write_text(getattr(request.module, "TINY", TINY))
    return str(path)


@pytest.fixture
def kpipe(capfd):
    """Run a verb in this process; return (exit code, standard output, standard error)."""
    from kpipe import cli

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}

    def kpipe(*arguments):
        code = cli.main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    yield kpipe
    for number, handler in handlers.items():  # a verb that was interrupted ignores them from then on
        signal.signal(number, handler)


@pytest.fixture
def no_home(monkeypatch):
    """A container's user, without HOME and without a line in the list of users."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.fixture
def first_epoch_is_best(monkeypatch):
    scores = itertools.count(0, -1)
    monkeypatch.setattr("kpipe.runs.recorder.score_epoch", lambda monitor, validation: [next(scores)])


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A run that is trained to its end and has not written its model, since the disk was full."""
    from tiny_runs import TINY, refuse_to_write, train_once

    scores = itertools.count(0, -1)  # the first epoch is the best
    replaced = [
        ("kpipe.experiment.save_portable", refuse_to_write),
        ("kpipe.runs.recorder.score_epoch", lambda monitor, validation: [next(scores)]),
    ]
    folder = tmp_path_factory.mktemp("made_once")
    train_once(folder, TINY, code=5, replaced=replaced)
    return folder / "logs"


@pytest.fixture(scope="session")
def finished(made_once, tmp_path_factory):
    """A copy of it that has been finished; tests copy it before they change anything."""
    from tiny_runs import only_run, touch

    from kpipe import cli

    logs = tmp_path_factory.mktemp("finished") / "logs"
    shutil.copytree(made_once, logs)
    run = only_run(logs)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("matplotlib.figure.Figure.savefig", touch)
        assert cli.main(["finish", str(run)]) == 0
    return run


@pytest.fixture
def figures_are_drawn():
    """Where `figures_are_drawn_where_they_are_tested` would leave them out."""


@pytest.fixture
def unfinished(made_once, logs):
    """A copy of it, which the same command resumes."""
    from tiny_runs import only_run

    shutil.copytree(made_once, logs)
    return only_run(logs)


@pytest.fixture
def start(tmp_path):
    """Start `kpipe ARGUMENTS`; whatever is left of it is ended after the test."""
    from processes import Started

    started = []

    def start(*arguments, blow=None, **environment):
        folder = tmp_path / f"process{len(started)}"
        started.append(Started(arguments, folder, dict(os.environ) | environment, blow))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.join()


@pytest.fixture
def start_two(start):
    """Start `kpipe ARGUMENTS` as two workers on this machine, the chief first."""

    def start_two(*arguments, each=((), ()), blows=(None, None), logs=None, **environment):
        with socket.socket() as one, socket.socket() as other:
            for free in (one, other):
                free.bind(("127.0.0.1", 0))
            addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in (one, other)]
        return [
            start(
                *arguments,
                *each[index],
                blow=blow,
                TF_CONFIG=json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
                **({"KPIPE_LOGS": str(logs[index])} if logs else {}),
                **environment,
            )
            for index, blow in enumerate(blows)
        ]

    return start_two
