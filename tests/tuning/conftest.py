"""Searches whose trials are not trained: what tests ask about a search takes no training."""

import json
from types import SimpleNamespace

import pytest
from tiny_searches import score, searches_of

from kpipe.files import write_json, write_yaml


@pytest.fixture
def search(logs):
    """The folder of the only search."""

    def search(name="tiny"):
        [path] = searches_of(logs, name)
        return path

    return search


class Trained(list):
    """Stand-in for `train` that holds (experiment, options, splits) of each call that has not failed.

    Attributes:
        score: of an experiment.
        errors: by number of the trial, what is raised instead of training, or a function of the options.
    """

    def __init__(self):
        super().__init__()
        self.score = score
        self.errors = {}

    def train(self, experiment, options, *, splits, screen):
        error = self.errors.get(int(options.path.name[:4]))
        if callable(error):
            error(options)
        elif error is not None:
            raise error
        self.append((experiment, options, splits))
        return SimpleNamespace(summary=self.write_run(experiment, options))

    def write_run(self, experiment, options):
        path, accuracy = options.path, self.score(experiment)
        path.mkdir(exist_ok=True)
        write_yaml(path / "config.yaml", experiment.identity())
        (path / "model.keras").write_text("weights")
        (path / "checkpoints").mkdir(exist_ok=True)
        lines, model = [], SimpleNamespace(stop_training=False)
        for epoch in range(options.epochs or experiment.training.epochs):
            logs = {"loss": 1.0, "val_accuracy": accuracy, "val_loss": 1 - accuracy}
            lines.append({"split": "validation", "accuracy": accuracy, "loss": 1 - accuracy})
            for callback in options.callbacks:
                callback.set_model(model)
                callback.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = {
            "status": "finished",
            "epochs": len(lines),
            "seconds": 1.0,
            "ended_by": "early_stopping" if model.stop_training else "epochs",
        }
        summary["validation"] = {"accuracy": accuracy, "loss": 1 - accuracy}
        write_json(path / "summary.json", summary)
        return summary


@pytest.fixture
def trained(monkeypatch):
    """The calls of `train`, which trains nothing."""
    trained = Trained()
    monkeypatch.setattr("kpipe.tuning.trials.train", trained.train)
    return trained
