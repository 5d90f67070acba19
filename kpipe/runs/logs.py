"""The logs of a run: metrics.jsonl and TensorBoard, which grow together and are cut back together."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

from kpipe.console import counted
from kpipe.errors import EnvironmentFault
from kpipe.files import finite_or_null
from kpipe.runs.tensorboard import make_layout, write_images

_SCALARS = (
    *("loss", "accuracy", "top5"),
    *("averaged_loss", "averaged_accuracy", "averaged_top5"),
    *("learning_rate", "gradient_norm", "loss_scale", "skipped_steps"),
    *("images_per_second", "waiting"),
)


class RunLog:
    """Writes the records of a run.

    Args:
        path: the run directory; `metrics.jsonl`, and for TensorBoard `train/` and `validation/`, are created in it.
        lengths: bytes that each log had at the checkpoint from which the run is resumed, as the method `lengths`
            returned them. What was written later is cut off. None for a new run.
        tensorboard: whether TensorBoard is written.

    Attributes:
        lost: a line about each log that is missing or shorter than it was at that checkpoint.

    Raises:
        EnvironmentFault: a log is a symbolic link, and cutting it would change another file.
    """

    def __init__(self, path: Path, lengths: dict[str, int] | None = None, *, tensorboard: bool = True):
        self._path = path
        self.lost = [] if lengths is None else self._cut_back(lengths)
        self._metrics = open(path / "metrics.jsonl", "a", encoding="utf-8", buffering=1)
        splits = ("train", "validation") if tensorboard else ()
        self._writers = {name: tf.summary.create_file_writer(str(path / name)) for name in splits}

    def write(self, record: dict[str, Any]) -> None:
        """Add one record: a line of metrics.jsonl, and scalars at its step in TensorBoard.

        TensorBoard's `loss`, `accuracy` and `top5` are means over the steps of a log line. `epoch_loss` and so on are
        means over a whole epoch, with training and validation in one chart. The test split has a single value
        and stands in metrics.jsonl alone. A value that is not finite is null in metrics.jsonl and left out of
        TensorBoard.

        Raises:
            FileNotFoundError: the run directory has been deleted.
        """
        self._require_directory()
        record = finite_or_null(record)
        self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        if record["split"] not in self._writers:
            return
        prefix = "epoch_" if record["span"] == "epoch" else ""
        values = {prefix + name: record[name] for name in _SCALARS if record.get(name) is not None}
        _write_scalars(self._writers[record["split"]], record["step"], values)

    def write_training_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values to TensorBoard's training run by tag, those that are finite.

        Raises:
            FileNotFoundError: the run directory has been deleted.
        """
        self._require_directory()
        if not self._writers:
            return
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        _write_scalars(self._writers["train"], step, finite)

    def write_images(self, step: int, files: Mapping[str, Path]) -> None:
        """Add figures of the validation split to TensorBoard's images by tag.

        Raises:
            FileNotFoundError: the run directory has been deleted.
        """
        self._require_directory()
        if self._writers:
            with self._writers["validation"].as_default(step=step):
                write_images(files)

    def write_histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Add histograms of values to TensorBoard's training run by tag.

        Raises:
            FileNotFoundError: the run directory has been deleted.
        """
        self._require_directory()
        if self._writers:
            with self._writers["train"].as_default(step=step):
                for tag, array in values.items():
                    tf.summary.histogram(tag, array)

    def write_start(self, config: Path, model: keras.Model, *, batch: np.ndarray | None, graph: bool) -> None:
        """Add the start of a run to TensorBoard.

        Args:
            config: the file of the experiment, which is shown as a text.
            model: the network.
            batch: the first batch as one image uint8 [H, W, 3]; None: it is not shown.
            graph: whether the graph of the network is shown.
        """
        if not self._writers:
            return
        lines = config.read_text(encoding="utf-8").splitlines()
        with self._writers["train"].as_default(step=0):
            layout = make_layout(has_top5="top5" in model.get_metrics_result())
            tf.summary.experimental.write_raw_pb(layout, step=0)
            tf.summary.text("config", "\n".join("    " + line for line in lines))
            if graph:
                tf.summary.graph(_trace_graph(model))
            if batch is not None:
                tf.summary.image("training_batch", batch[None])

    def lengths(self) -> dict[str, int]:
        """Flush the logs to the disk; return the bytes of each, by its path relative to the run.

        Raises:
            FileNotFoundError: the run directory has been deleted.
        """
        self._require_directory()
        self._metrics.flush()
        for writer in self._writers.values():
            writer.flush()
        return {file.relative_to(self._path).as_posix(): _synced_length(file) for file in self._files()}

    def close(self) -> None:
        """Close all files."""
        self._metrics.close()
        for writer in self._writers.values():
            writer.close()

    def _require_directory(self) -> None:
        os.stat(self._path)  # a file that is open can be written to after it has been deleted

    def _files(self) -> list[Path]:
        return [p for p in (self._path / "metrics.jsonl", *self._path.glob("*/events.out.*")) if p.exists()]

    def _cut_back(self, lengths: dict[str, int]) -> list[str]:
        lost = []
        for file in self._files():
            if file.is_symlink() or file.parent.is_symlink():
                raise EnvironmentFault(f"{file}: expected a log of this run, found a symbolic link; remove it")
            length = lengths.get(file.relative_to(self._path).as_posix())
            if length is None:
                file.unlink()
            elif length < (size := file.stat().st_size):
                os.truncate(file, length)
            elif length > size:
                lost.append(f"{file} has lost its last {counted(length - size, 'byte')}")
                if file.name == "metrics.jsonl":
                    os.truncate(file, file.read_bytes().rfind(b"\n") + 1)  # the next record begins a line
        return lost + [f"{name} is gone" for name in lengths if not (self._path / name).exists()]


def _write_scalars(writer: tf.summary.SummaryWriter, step: int, values: Mapping[str, float]) -> None:
    # As one message, because `tf.summary.scalar` takes as long for each number as for all of them here.
    summary = Summary()
    for tag, value in values.items():
        summary.MergeFrom(scalar_pb(tag, value))
    # NumPy's number, because TensorFlow keeps a tensor of each of Python's that it converts, for good.
    with writer.as_default(step=np.int64(step)):
        tf.summary.experimental.write_raw_pb(summary.SerializeToString())


def _synced_length(file: Path) -> int:
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())
        return os.fstat(handle.fileno()).st_size


def _trace_graph(model: keras.Model) -> tf.Graph:
    spec = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    return tf.function(lambda images: model(images, training=False)).get_concrete_function(spec).graph
