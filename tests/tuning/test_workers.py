"""Several workers: who they are, what they say, and how they end."""

import re

import grpc
import pytest


@pytest.fixture
def worker_says(monkeypatch, tmp_path):
    """Replace the workers by a shell script."""

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
                     r"for 2 workers\? Its log: .*worker-\d.log. The same command resumes.", err)  # fmt: skip


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
        f"{logs}_searches/tiny: expected the folder of the chief's search, found none of this experiment. Workers need "
        "the chief's experiment, and its folder of logs on a shared disk (KPIPE_LOGS).\n"
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
        "the chief at 127.0.0.1:8000 is gone or does not answer (UNAVAILABLE: failed to connect). Start it again, and "
        "then this worker: the search resumes\n"
    )


def test_an_option_that_is_not_for_workers(kpipe, experiment, as_worker):
    as_worker(lambda client: None)
    for option in (("--workers", "2"), ("--new",)):
        code, _, err = kpipe("search", experiment, *option)
        assert (code, err.startswith("workers, new: expected neither where KERASTUNER_TUNER_ID says")) == (2, True)


def test_an_error_of_the_chief_is_its_own(kpipe, experiment, worker_says, monkeypatch):
    """It is reported neither as the worker's nor as one of the protocol."""
    monkeypatch.setattr("kpipe.tuning.tuner.Tuner.search", lambda tuner: 1 / 0)
    worker_says("sleep 60")
    with pytest.raises(ZeroDivisionError):
        kpipe("search", experiment, "--workers", "2")


def test_a_worker_that_comes_too_late_is_not_waited_for(kpipe, experiment, worker_says, monkeypatch, tmp_path):
    """keras-tuner's chief has told all that it knew to stop; another would wait for it an hour."""
    monkeypatch.setattr("kpipe.tuning.tuner.Tuner.search", lambda tuner: None)
    worker_says(f"sleep 60; touch {tmp_path}/waited_for")
    code, _, err = kpipe("search", experiment, "--workers", "2")
    assert (code, "expected a trial with a score, got none in 0 trials" in err) == (4, True)
    assert not (tmp_path / "waited_for").exists()


def test_an_incomplete_address_of_the_chief(kpipe, experiment, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    code, _, err = kpipe("search", experiment)
    assert code == 2
    assert err == (
        "KERASTUNER_ORACLE_IP is set: expected KERASTUNER_ORACLE_PORT and KERASTUNER_TUNER_ID as well, for several "
        "workers\n"
    )
