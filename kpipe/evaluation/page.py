"""report.html: one page about a finished run that can be mailed and printed, made of the files of its directory."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from kpipe.config.schema import Experiment
from kpipe.console import counted, describe_counts, describe_time
from kpipe.evaluation.report import FIGURES, list_figures
from kpipe.figures.labels import isolated, label
from kpipe.files import read_json, read_names, write_text
from kpipe.names import from_here, printable, shell_quoted
from kpipe.runs.dataset import NAMES
from kpipe.runs.resume import command_to_train_longer, for_workers

PAGE = "report.html"
_WIDEST = 1400  # pixels of a figure: what a page shows on a screen with twice as many pixels
_SCALE = 96 / 150  # pixels of the page for one of a figure: its inches are those of the page
_QUALITY = 82  # of WebP, at which text in figures has no rims
_PACKAGES = {"python": "Python", "tensorflow": "TensorFlow", "keras": "Keras", "numpy": "NumPy"}
_ONEDNN = {"default": "as TensorFlow decides", "0": "off", "1": "on"}
_SPLITS = {"train": "train, during the best epoch", "validation": "validation", "test": "test"}


def write_page(run: Path, experiment: Experiment) -> Path:
    """Write report.html: what was trained on what, the results, the figures, the experiment, where, how to repeat it.

    The page holds its figures itself, and needs neither a network nor another file.

    Args:
        run: directory of a finished run.
        experiment: what was trained, resolved.

    Returns:
        The file.

    Raises:
        OSError: the disk refuses it.
    """
    summary = read_json(run / "summary.json")
    scores = {name: summary[name] for name in _SPLITS if summary.get(name)}
    best = next((name for name in ("test", "validation") if name in scores), None)
    template = jinja2.Environment(autoescape=True).from_string(
        Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=printable(experiment.name),
        run=printable(run.name),
        accuracy=_percent(scores[best]["accuracy"]) if best else None,
        accuracy_of=f"accuracy on the {counted(scores[best]['images'], 'image')} of the {best} split" if best else None,
        has_top5=any("top5" in numbers for numbers in scores.values()),
        results=[_describe_scores(_SPLITS[name], numbers) for name, numbers in scores.items()],
        facts=_collect_facts(run, experiment, summary),
        figures=[{"title": FIGURES[name], **_embed(file)} for name, file in list_figures(run).items()],
        commands=_list_commands(run, experiment, summary["ended_by"]),
        config=printable_lines((run / "config.yaml").read_text(encoding="utf-8")),
        environment=describe_environment(read_json(run / "environment.json")),
    )
    write_text(run / PAGE, page)
    return run / PAGE


def printable_lines(text: str) -> str:
    """Return text, each line printable."""
    return "\n".join(map(printable, text.rstrip().split("\n")))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _describe_scores(split: str, numbers: Mapping[str, float]) -> dict[str, str]:
    return {
        "split": split,
        "images": f"{numbers['images']:,}" if "images" in numbers else "",
        "loss": f"{numbers['loss']:.4f}",
        "accuracy": _percent(numbers["accuracy"]),
        "top5": _percent(numbers["top5"]) if "top5" in numbers else "",
    }


def _collect_facts(run: Path, experiment: Experiment, summary: Mapping[str, Any]) -> dict[str, str]:
    class_names = read_names(run / NAMES)
    names = ", ".join(isolated(label(name, 60)) for name in class_names[:20])
    more = ", ..." if len(class_names) > 20 else ""
    speed = summary.get("images_per_second")
    return {
        "network": f"{summary['model']}, {summary['parameters']:,} parameters",
        "data": f"{printable(experiment.data.source)}, images of {'x'.join(map(str, summary['image']))}",
        "images": describe_counts(summary["images"]),
        "classes": f"{len(class_names):,}: {names}{more}",
        "training": f"{counted(summary['epochs'], 'epoch')}, {counted(summary['steps'], 'step')} of "
        f"{experiment.data.batch_size} images, {experiment.training.optimizer.name}",
        "weights": f"of epoch {summary['best_epoch']}" if summary.get("best_epoch") else "of the last step",
        "time": describe_time(summary["seconds"]) + (f", {speed:,.0f} images/s" if speed else ""),
        "precision": summary["precision"],
        "seed": f"{summary['seed']}",
    }


def _list_commands(run: Path, experiment: Experiment, ended_by: str) -> dict[str, str]:
    path = shell_quoted(from_here(run))
    return {
        "the same training again": for_workers(f"kpipe run {shell_quoted(from_here(run / 'config.yaml'))}", experiment),
        "train longer": command_to_train_longer(run, experiment, ended_by),
        "score it again, ten crops, another set": f"kpipe evaluate {path}",
        "predict": f"kpipe predict {path} IMAGE",
        "see inside": f"kpipe explain {path}",
    }


def describe_environment(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return what environment.json says, in words; what it lacks is left out.

    Args:
        environment: as `kpipe.runs.environment` writes it.

    Returns:
        Texts by what they are of; of a process that has resumed the run, its command and what had changed.
    """
    rows = _describe_process(environment)
    for number, process in enumerate(environment.get("resumed", []), start=1):
        now = _describe_process(process)
        changed = [f"{name}: {text}" for name, text in now.items() if name != "command" and text != rows.get(name)]
        rows[f"resumed ({number})"] = "; ".join([now.get("command", ""), *changed])
    return rows


def _describe_process(process: Mapping[str, Any]) -> dict[str, str]:
    """Return a part of environment.json in words."""
    versions, git, threads = process.get("versions", {}), process.get("git"), process.get("threads")
    if threads:
        threads = f"{threads[0] or 'as many as TensorFlow chooses'}, on {counted(threads[1], 'processor')}"
    files = (f"{path} ({digest[:16]})" for path, digest in process.get("own_code", {}).items())
    rows = {
        "command": _as_typed(process["command"]) if process.get("command") else None,
        "versions": ", ".join(f"{_PACKAGES.get(name, name)} {number}" for name, number in versions.items()),
        "system": process.get("platform"),
        "device": process.get("device"),
        "threads": threads,
        "oneDNN": _ONEDNN.get(process.get("onednn"), process.get("onednn")),
        "precision": _with_reason(process.get("precision"), process.get("precision_reason")),
        "deterministic": {True: "yes", False: "no"}.get(process.get("deterministic")),
        "code": git and git["commit"] + (", with changes that were not committed" if git["dirty"] else ""),
        "own code": ", ".join(files),
    }
    return {name: printable(text) for name, text in rows.items() if text}


def _as_typed(command: Sequence[str]) -> str:
    program = Path(command[0])
    is_ours = program.stem == "kpipe" or program.parts[-2:] == ("kpipe", "__main__.py")
    return " ".join(["kpipe" if is_ours else shell_quoted(command[0]), *map(shell_quoted, command[1:])])


def _with_reason(precision: str | None, reason: str | None) -> str | None:
    return f"{precision} ({reason})" if precision and reason else precision


def _embed(figure: Path) -> dict[str, Any]:
    """Return a figure as base64 of a WebP file, which takes a fifth of the PNG, and its width in pixels of the page."""
    with Image.open(figure) as image:
        picture = image.convert("RGB")
    if picture.width > _WIDEST:
        picture = picture.resize((_WIDEST, round(picture.height * _WIDEST / picture.width)), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        picture.save(file, "WEBP", quality=_QUALITY)
        return {"data": base64.b64encode(file.getvalue()).decode(), "width": round(picture.width * _SCALE)}
