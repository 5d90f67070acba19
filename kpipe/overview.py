"""What a run says of itself before its first step and after its last one."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from kpipe.assembly import Prepared
from kpipe.config.schema import Experiment, Resolved, TrainingConfig
from kpipe.console import Screen, counted, describe_counts, describe_time
from kpipe.names import from_here, path_shown, shell_quoted
from kpipe.runs.dataset import UNREADABLE
from kpipe.runs.directory import Run
from kpipe.runs.resume import command_to_train_longer
from kpipe.runs.state import RunState
from kpipe.training.device import describe_device
from kpipe.training.distribution import count_devices
from kpipe.training.finetuning import describe_rules

_ENDED_BY = {
    "early_stopping": ", ended by early stopping",
    "max_minutes": ", ended by training.max_minutes",
    "finish": ", finished by hand",
}


def show_header(
    screen: Screen, experiment: Experiment, prepared: Prepared, run: Run, state: RunState, notes: Iterable[str]
) -> None:
    """Show what is trained, on what and where, and where a resumed run stands.

    Args:
        screen: where it is shown.
        experiment: what is trained, resolved.
        prepared: data and model.
        run: the run directory.
        state: of the run, before its first step in this process.
        notes: lines for the user.
    """
    config, training, splits = experiment.data, experiment.training, prepared.splits
    strategy = prepared.model.distribute_strategy
    counts = f"{describe_counts(splits.counts)}; {counted(len(splits.class_names), 'class')}"
    epochs = f"{counted(training.epochs, 'epoch')} of {counted(prepared.steps_per_epoch, 'step')}"
    rows = {
        "model": f"{experiment.model.name}, {prepared.model.count_params():,} parameters",
        **_describe_start(experiment, prepared),
        "data": f"{config.source}: {counts}; {'x'.join(map(str, splits.image_shape))}",
        "images": splits.describe_places(),
        "training": ", ".join(
            [epochs, _describe_batch(config.batch_size, prepared), training.optimizer.name, *describe_options(training)]
        ),
        "device": f"{describe_device(count_devices(strategy))}, {_describe_resolved(experiment.chosen)}",
        "run": from_here(run.path),
    }
    if run.resumed:
        rows["resumed"] = _describe_progress(state, training.epochs, prepared.steps_per_epoch)
    screen.header(f"kpipe {version('kpipe')}: {experiment.name}", rows, notes)


def _describe_batch(batch_size: int, prepared: Prepared) -> str:
    replicas = prepared.model.distribute_strategy.num_replicas_in_sync
    share = f" ({batch_size // replicas} on each of {replicas} devices)" if replicas > 1 else ""
    return f"batch size {batch_size}{share}"


def describe_options(training: TrainingConfig) -> list[str]:
    """Return in words what changes the steps of the optimizer, as far as the experiment asks for it."""
    words = []
    if training.accumulate > 1:
        words.append(f"each batch in {training.accumulate} pieces")
    if training.clip:
        kind, most = training.clip.chosen
        words.append(f"clipping by {kind.replace('_', ' ')} {most:g}")
    if smoothing := getattr(training.loss, "label_smoothing", 0):
        words.append(f"label smoothing {smoothing:g}")
    if training.average:
        words.append(f"averaged weights (decay {training.average.decay:g})")
    return words


def _describe_resolved(resolved: Resolved) -> str:
    return f"{resolved.precision} ({resolved.precision_reason})" + (", compiled by XLA" if resolved.xla else "")


def _describe_start(experiment: Experiment, prepared: Prepared) -> dict[str, str]:
    """Return where the weights come from and how the layers are trained, as far as that is not the usual."""
    rows, reuse, rules = {}, prepared.reuse, describe_rules(prepared.layer_rules)
    if reuse:
        new = f"new: {', '.join(reuse.new)}" if reuse.new else "none is new"
        layers = counted(len(reuse.reused), "layer")
        rows["weights"] = (
            f"{reuse.kind} ({path_shown(experiment.model.init_from)}): {layers} reused, {new}; normalization: "
            f"{prepared.normalization}"
        )
    return rows | ({"layers": rules} if rules else {})


def _describe_progress(state: RunState, epochs: int, steps_per_epoch: int) -> str:
    """Return where a resumed run stands, and how good it has been so far."""
    epoch = 1 + state.train.epoch(steps_per_epoch)
    place = f"in epoch {epoch} of {epochs}" if epoch <= epochs else "after the last epoch"
    best = state.describe_best()
    return f"after step {state.train.step:,}, {place}" + (f"; best so far: {best}" if best else "")


def show_result(
    screen: Screen,
    experiment: Experiment,
    prepared: Prepared,
    run: Run,
    state: RunState,
    summary: Mapping[str, Any],
    *,
    notes: Sequence[str] = (),
    shown: Sequence[str | None] = (),
) -> None:
    """Show the numbers of a finished run, where everything is, and what to do next.

    Args:
        screen: where it is shown.
        experiment: what was trained, resolved.
        prepared: data and model.
        run: the run directory.
        state: of the run, at its end.
        summary: what summary.json holds.
        notes: lines for the user.
        shown: the notes of the header, which are not repeated.
    """
    scores = {name: summary[name] for name in ("validation", "test") if name in summary}
    if summary["train"]:
        scores = {f"train, during epoch {state.best_epoch}": summary["train"], **scores}
    screen.result(scores)
    # Images that are decoded each time are counted when they are met.
    late = [line for line in prepared.splits.describe_conversions() if line not in shown]
    for note in [*late, *notes]:
        screen.line(f"note: {note}")
    if unreadable := {name: count for name, count in summary["unreadable"].items() if count}:
        names = from_here(run.path / UNREADABLE)
        screen.line(f"Unreadable and left out: {describe_counts(unreadable)}; their names are in {names}")
    ended, stopping = _ENDED_BY.get(summary["ended_by"], ""), experiment.training.early_stopping
    if summary["ended_by"] == "early_stopping" and stopping:
        ended += f": no better {experiment.training.monitor} for {counted(stopping.patience, 'epoch')}"
    screen.line(f"{describe_time(state.seconds)} of training{ended}. Kept are the weights of {state.kept}.")
    rows = {
        "model": from_here(run.model),
        **{kind: from_here(run.model_of(kind, state.preferred)) for kind in state.best if kind != state.preferred},
        "figures": from_here(run.path / "figures"),
        "report": from_here(run.path / "report.html"),
        "curves": f"tensorboard --logdir {shell_quoted(from_here(run.path.parent.parent))}",
        "longer": command_to_train_longer(run.path, experiment, summary["ended_by"]),
        "search": f"kpipe search {shell_quoted(from_here(run.path / 'config.yaml'))}",
    }
    if experiment.training.distribution == "multi_worker":
        rows["search"] += " training.distribution=none"
    if not experiment.logging.tensorboard:
        del rows["curves"]
    for name, text in rows.items():
        screen.line(f"  {name:<10} {text}")
