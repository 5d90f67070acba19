"""What TensorBoard's HParams shows of a search: every key with its domain, every trial with its score."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as session_summary

from kpipe.config.space import Dimension
from kpipe.search.records import Record, plain

PART = ".events"  # where TensorBoard's files are written; what a kill leaves there goes at the next or at the end


def write_space(path: Path, dimensions: Sequence[Dimension], objective: str) -> None:
    """Every key with its domain, and the metrics, once."""
    if any(path.glob("events.out.*")):
        return
    keys = dict.fromkeys(dimension.key for dimension in dimensions)
    domains = [hparams.HParam(key, _domain([each for each in dimensions if each.key == key])) for key in keys]
    metrics = [
        hparams.Metric("score", display_name=f"{objective} (score)"),
        hparams.Metric("epoch_accuracy", group="validation", display_name="val_accuracy, last epoch"),
        hparams.Metric("epoch_loss", group="validation", display_name="val_loss, last epoch"),
        hparams.Metric("epoch_loss", group="train", display_name="loss, last epoch"),
        hparams.Metric("epochs"),
        hparams.Metric("seconds"),
    ]
    with _new_events(path, path):
        _write_message(hparams.hparams_config_pb(hparams=domains, metrics=metrics))


def _domain(cases: Sequence[Dimension]) -> Any:
    """Of one key: the union over its cases."""
    if all(case.kind == "choice" for case in cases):
        values = [plain(value) for case in cases for value in case.values]
        kinds = {type(value) for value in values}
        values = values if len(kinds) == 1 else [str(value) for value in values]
        return hparams.Discrete(list(dict.fromkeys(values)))
    numbers = [n for case in cases for n in (case.values if case.kind == "choice" else (case.low, case.high))]
    if all(case.kind == "int" for case in cases):
        return hparams.IntInterval(int(min(numbers)), int(max(numbers)))
    return hparams.RealInterval(float(min(numbers)), float(max(numbers)))


def write_session(path: Path, record: Record) -> None:
    """A trial's values, score and end, beside the curves of its run, once."""
    run = path / record.run()
    run.mkdir(exist_ok=True)  # one that has failed before its first step has left nothing
    if any(run.glob("events.out.*")):
        return
    values = {key: plain(value) for key, value in record.values.items()}
    ending = api_pb2.STATUS_FAILURE if record.status == "failed" else api_pb2.STATUS_SUCCESS
    began = record.ended - record.seconds
    scalars = {"epochs": record.epochs, "seconds": record.seconds}
    if record.has_score:
        scalars["score"] = record.score
    with _new_events(path, run):
        _write_message(hparams.hparams_pb(values, trial_id=record.run(), start_time_secs=began))
        _write_message(session_summary.session_end_pb(ending, end_time_secs=record.ended))
        for name, value in scalars.items():
            tf.summary.scalar(name, value, step=record.epochs)


@contextmanager
def _new_events(search: Path, folder: Path) -> Iterator[None]:
    """What is written to TensorBoard inside comes to stand in a folder of the search in one step."""
    part = search / PART
    shutil.rmtree(part, ignore_errors=True)
    with closing(tf.summary.create_file_writer(str(part))) as writer, writer.as_default():
        yield
    for file in part.iterdir():
        os.replace(file, folder / file.name)
    part.rmdir()


def _write_message(message: Any) -> None:
    tf.summary.experimental.write_raw_pb(message.SerializeToString(), step=0)
