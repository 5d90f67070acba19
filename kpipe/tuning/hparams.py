"""TensorBoard's HParams of a search: every key with its domain, every trial with its score."""

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
from kpipe.tuning.records import Record, to_scalar

_STAGING = ".events"  # where TensorBoard's files are written; what a kill leaves there is removed later


def write_space(search: Path, dimensions: Sequence[Dimension], objective: str) -> None:
    """Write every key with its domain, and the metrics, into the folder of a search, once."""
    if any(search.glob("events.out.*")):
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
    with _new_events(search, search):
        _write_message(hparams.hparams_config_pb(hparams=domains, metrics=metrics))


def _domain(cases: Sequence[Dimension]) -> Any:
    """Return the domain of one key: the union over its cases."""
    if all(case.kind == "choice" for case in cases):
        values = [to_scalar(value) for case in cases for value in case.values]
        kinds = {type(value) for value in values}
        values = values if len(kinds) == 1 else [str(value) for value in values]
        return hparams.Discrete(list(dict.fromkeys(values)))
    numbers = [n for case in cases for n in (case.values if case.kind == "choice" else (case.low, case.high))]
    if all(case.kind == "int" for case in cases):
        return hparams.IntInterval(int(min(numbers)), int(max(numbers)))
    return hparams.RealInterval(float(min(numbers)), float(max(numbers)))


def write_session(search: Path, record: Record) -> None:
    """Write a trial's values, score and end beside the curves of its run, once."""
    run = search / record.run()
    run.mkdir(exist_ok=True)  # a trial that has failed before its first step has left nothing
    if any(run.glob("events.out.*")):
        return
    values = {key: to_scalar(value) for key, value in record.values.items()}
    ending = api_pb2.STATUS_FAILURE if record.status == "failed" else api_pb2.STATUS_SUCCESS
    began = record.ended - record.seconds
    scalars = {"epochs": record.epochs, "seconds": record.seconds}
    if record.has_score:
        scalars["score"] = record.score
    with _new_events(search, run):
        _write_message(hparams.hparams_pb(values, trial_id=record.run(), start_time_secs=began))
        _write_message(session_summary.session_end_pb(ending, end_time_secs=record.ended))
        for name, value in scalars.items():
            tf.summary.scalar(name, value, step=record.epochs)


def remove_unfinished(search: Path) -> None:
    """Remove what a kill has left of a file that was being written."""
    shutil.rmtree(search / _STAGING, ignore_errors=True)


@contextmanager
def _new_events(search: Path, folder: Path) -> Iterator[None]:
    """Move what is written to TensorBoard inside the `with` into a folder of the search, in one step."""
    remove_unfinished(search)
    staging = search / _STAGING
    with closing(tf.summary.create_file_writer(str(staging))) as writer, writer.as_default():
        yield
    for file in staging.iterdir():
        os.replace(file, folder / file.name)
    staging.rmdir()


def _write_message(message: Any) -> None:
    tf.summary.experimental.write_raw_pb(message.SerializeToString(), step=0)
