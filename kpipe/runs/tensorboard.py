"""What a finished run adds to TensorBoard: its figures, precision-recall curves, and its line among the HParams.

A run that is extended ends again: what its earlier end has written is replaced.
"""

from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as layout_summary
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as session_summary
from tensorboard.plugins.pr_curve import summary as curve_summary

from kpipe.config.schema import Experiment

_WIDEST = 1000  # pixels of a figure
_CHARTS = {
    "loss": "epoch_loss",
    "accuracy": "epoch_accuracy",
    "top-5 accuracy": "epoch_top5",
    "learning rate": "learning_rate",
    "norm of the gradient": "gradient_norm",
    "images per second": "images_per_second",
    "time waiting for data": "waiting",
}


def make_layout(*, has_top5: bool) -> bytes:
    """Return TensorBoard's layout of custom scalars: training and validation on one chart for each metric."""
    charts = [
        layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$"]))
        for title, tag in _CHARTS.items()
        if has_top5 or tag != "epoch_top5"
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="kpipe", chart=charts)])
    return layout_summary.pb(layout).SerializeToString()


def write_ending(
    run: Path,
    experiment: Experiment,
    summary: Mapping[str, Any],
    figures: Mapping[str, Path],
    curves: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Write what a finished run adds, into its directory.

    Args:
        run: the run directory.
        experiment: what was trained, resolved.
        summary: what summary.json holds.
        figures: PNG files by their names.
        curves: counts of `kpipe.evaluation.thresholds.Thresholds` by the name of the class.

    Raises:
        OSError: the disk refuses it.
    """
    for earlier in run.glob("events.out.*"):
        with suppress(FileNotFoundError):
            earlier.unlink()
    with closing(tf.summary.create_file_writer(str(run))) as writer, writer.as_default(step=summary["steps"]):
        write_images(figures)
        for name, counts in curves.items():
            _write_message(curve_summary.raw_data_pb(f"precision_recall/{name}", **counts))
        _write_message(hparams.hparams_pb(_list_settings(experiment, summary), trial_id=run.name))
        for name, value in _list_results(summary).items():
            tf.summary.scalar(name, value)
        _write_message(session_summary.session_end_pb(api_pb2.STATUS_SUCCESS))


def _list_settings(experiment: Experiment, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by which runs are compared most: text, numbers, true and false."""
    training = experiment.training
    rate = training.learning_rate
    settings = {
        "network": experiment.model.name,
        "data": experiment.data.source,
        "image_size": summary["image"][0],
        "batch_size": experiment.data.batch_size,
        "augment": ", ".join(map(_name_of, experiment.data.model_dump(mode="json").get("augment") or [])),
        "optimizer": training.optimizer.name,
        "schedule": getattr(rate, "schedule", None),
        "learning_rate": getattr(rate, "peak", None),
        "epochs": training.epochs,
        "precision": experiment.chosen.precision,
        "seed": experiment.seed,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _name_of(entry: Any) -> str:
    """Return the name of an entry of a list: `cutout` of `cutout` and of `{cutout: {size: 4}}`."""
    return next(iter(entry)) if isinstance(entry, dict) else str(entry)


def _list_results(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return a finished run's numbers by tag; HParams shows the first five tags of all unless told otherwise."""
    numbers = {
        f"{metric}/{split}": summary[split][metric]
        for split in ("validation", "test")
        for metric in ("accuracy", "loss")
        if summary.get(split)
    }
    for name in ("parameters", "seconds", "images_per_second", "best_epoch"):
        numbers[f"result/{name}"] = summary.get(name)
    return {tag: float(value) for tag, value in numbers.items() if value is not None}


def write_images(files: Mapping[str, Path]) -> None:
    """Write PNG files by their tags, with the default writer."""
    for tag, file in files.items():
        tf.summary.image(tag, read_figure(file))


def read_figure(file: Path) -> tf.Tensor:
    """Return a figure as one image [1, H, W, 3], not too wide for an event file."""
    pixels = tf.io.decode_png(file.read_bytes(), channels=3)
    height, width = pixels.shape[:2]
    if width > _WIDEST:
        size = (round(height * _WIDEST / width), _WIDEST)
        pixels = tf.cast(tf.round(tf.image.resize(pixels, size, method="area")), tf.uint8)
    return pixels[None]


def _write_message(message: Any) -> None:
    tf.summary.experimental.write_raw_pb(message.SerializeToString(), step=tf.summary.experimental.get_step())
