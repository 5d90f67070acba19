"""Shared by all tests: no TensorFlow chatter, runs under a temporary folder, Keras's globals as they were."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "logs"))


@pytest.fixture(autouse=True)
def keras_as_it_was():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
