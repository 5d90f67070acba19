"""What a run says of itself before its first step and after its last one."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from kpipe.assembly import Prepared
from kpipe.config.schema import Experiment
from kpipe.console import Screen, counted, describe_counts, describe_time
from kpipe.names import shell_quoted
from kpipe.runs.directory import Run
from kpipe.runs.resume import command_to_train_longer
from kpipe.runs.state import RunState
from kpipe.training.device import describe_device


def show_header(
    screen: Screen, experiment: Experiment, prepared: Prepared, run: Run, state: RunState, notes: Iterable[str]
) -> None:
    """Show what is trained, on what and where, and where a resumed run stands.

    Args:
        screen: where to.
        experiment: what is trained, resolved.
        prepared: data and model.
        run: the run directory.
        state: of the run, before its first step in this process.
        notes: lines for the user.
    """
    config, training, splits = experiment.data, experiment.training, prepared.splits
    counts = f"{describe_counts(splits.counts)}; {counted(len(splits.class_names), 'class')}"
    epochs = f"{counted(training.epochs, 'epoch')} of {counted(prepared.steps_per_epoch, 'step')}"
    rows = {
        "model": f"{experiment.model.name}, {prepared.model.count_params():,} parameters",
        "data": f"{config.source}: {counts}; {'x'.join(map(str, splits.image_shape))}",
        "images": splits.describe_places(),
        "training": f"{epochs}, batch size {config.batch_size}, {training.optimizer.name}",
        "device": f"{describe_device()}, {experiment.chosen.precision}",
        "run": str(run.path),
    }
    if run.resumed:
        rows["resumed"] = _describe_progress(training.epochs, prepared.steps_per_epoch, state)
    screen.header(f"kpipe {version('kpipe')}: {experiment.name}", rows, notes)


def _describe_progress(epochs: int, steps_per_epoch: int, state: RunState) -> str:
    """Return where a resumed run stands, and how good it has been so far."""
    step = state.train.step
    place = f"in epoch {1 + step // steps_per_epoch} of {epochs}"
    if step >= steps_per_epoch * epochs:
        place = "after the last epoch"
    text = f"after step {step:,}, {place}"
    if state.best_step and state.best_score:
        *accuracy, loss = state.best_score
        values = [f"val_accuracy {value:.4f}" for value in accuracy] + [f"val_loss {-loss:.4f}"]
        text += f"; best so far: epoch {state.best_epoch}, {', '.join(values)}"
    return text


def show_result(
    screen: Screen,
    experiment: Experiment,
    run: Run,
    state: RunState,
    summary: Mapping[str, Any],
    *,
    notes: Iterable[str] = (),
    unreadable: Mapping[str, int] | None = None,
) -> None:
    """Show the numbers of a finished run, where everything is, and what to do next.

    Args:
        screen: where to.
        experiment: what was trained, resolved.
        run: the run directory.
        state: of the run, at its end.
        summary: what summary.json holds.
        notes: lines for the user.
        unreadable: how many files could not be read, by split.
    """
    scores = {name: summary[name] for name in ("validation", "test") if name in summary}
    if summary["train"]:
        images = experiment.data.batch_size * (state.images["train"] // experiment.data.batch_size)
        scores = {f"train, during epoch {state.best_epoch}": {**summary["train"], "images": images}, **scores}
    screen.result(scores)
    for note in notes:
        screen.line(f"note: {note}")
    if unreadable:
        names = run.path / "unreadable.txt"
        screen.line(f"Unreadable and left out: {describe_counts(unreadable)}; their names are in {names}")
    screen.line(f"{describe_time(state.seconds)} of training. Kept are the weights of {state.kept}.")
    rows = {
        "model": str(run.model),
        "figures": str(run.path / "figures"),
        "curves": f"tensorboard --logdir {shell_quoted(str(run.path.parent.parent))}",
        "longer": command_to_train_longer(run.path, experiment, summary["ended_by"]),
        "better": f"kpipe search {shell_quoted(str(run.path / 'config.yaml'))}",
    }
    for name, text in rows.items():
        screen.line(f"  {name:<8} {text}")
