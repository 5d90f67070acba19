"""The card of an exported network: what its user must know, for programs (JSON) and for people (Markdown)."""

import hashlib
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.catalog.formats import FORMATS, IMAGES, LOGITS
from kpipe.console import counted, describe_counts, describe_size
from kpipe.exporting.preparation import describe_images, describe_method, describe_preparation
from kpipe.models.keras_files import find_normalization
from kpipe.names import as_line
from kpipe.normalization import describe_normalization
from kpipe.trained import Trained

_PACKAGES = ("kpipe", "tensorflow", "keras", "numpy")
_COLORS = {1: "gray", 3: "red, green, blue"}


@dataclass(frozen=True)
class Exported:
    """A network that was written in a format."""

    format: str
    path: Path
    """The file, or SavedModel's folder."""
    model: Path
    """The model file that it was made of."""
    card: dict[str, Any] = field(repr=False)
    """What model_card.json says."""
    replaced: str | None = None
    """The weights of an earlier export that it has replaced, in words; None: there was none, or of the same weights."""

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files)


def make_card(
    trained: Trained,
    model: keras.Model,
    name: str,
    checks: dict[str, Any],
    *,
    needs: str = "",
    written: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Return what is known of an exported network, as plain data.

    Args:
        trained: the network as it was loaded.
        model: the network as it was written.
        name: of the format.
        checks: what was found when the written file was checked.
        needs: line of Python that imports what the file needs besides the runtime; may be empty.
        written: versions of the format that the file has, by name.

    Returns:
        What model_card.json holds: of plain types, each with its name.
    """
    run, how = trained.run, FORMATS[name]
    summary = run.read_json("summary.json") if run else {}
    return {
        "format": name,
        "file": how.file,
        "network": trained.experiment.model.model_dump() if trained.experiment else {"name": model.name},
        "parameters": model.count_params(),
        "weights": {
            "run": run.path.name if run else None,
            "file": trained.file.name,
            "kind": _kind_of_weights(trained, summary),
        },
        **_describe_ends(trained, model),
        "classes": list(trained.class_names),
        "images": describe_preparation(trained),
        "normalization": _describe_first_layer(model),
        "scores": {split: summary[split] for split in ("validation", "test") if split in summary}
        if run and trained.file == run.model
        else {},
        "data": _describe_data(trained.data.source, run.read_json("data.json").get("splits", {})) if run else {},
        "checks": checks,
        "code": how.code(how.file, needs),
        **({"int8_code": how.code(checks["int8"]["file"])} if "int8" in checks else {}),
        "versions": _describe_versions(trained, how.runtime) | ({"file format": written} if written else {}),
    }


def _kind_of_weights(trained: Trained, summary: dict[str, Any]) -> str | None:
    if trained.run and trained.file == trained.run.model:
        return summary.get("weights")
    return trained.file.stem.removeprefix("model_") if trained.run else None


def _describe_data(source: str, splits: dict[str, Any]) -> dict[str, Any]:
    """Return what the run was trained on, with one fingerprint of all; None where the source always gives the same."""
    is_known = any(digest for split in splits.values() for _, digest in split.values())
    fingerprint = hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:16] if is_known else None
    return {"source": source, "fingerprint": fingerprint, "splits": splits}


def _describe_ends(trained: Trained, model: keras.Model) -> dict[str, Any]:
    """Return what goes into the network, and what comes out."""
    height, width, channels = model.input_shape[1:]
    return {
        "input": {
            "name": IMAGES,
            "dtype": "float32",
            "shape": ["batch", height, width, channels],
            "range": [0, 255],
            "channels": _COLORS.get(channels, str(channels)),
        },
        "output": {"name": LOGITS, "dtype": "float32", "shape": ["batch", len(trained.class_names)]},
    }


def _describe_first_layer(model: keras.Model) -> dict[str, Any]:
    """Return what the network itself does to the raw images; constants only where there are a few."""
    normalization, has_one = find_normalization(model)
    if normalization is None:
        return {"name": "of its own" if has_one else "none"}
    described = {"name": describe_normalization(normalization), "kind": normalization.kind}
    if normalization.per_channel:
        mean, std = (np.ravel(values).tolist() for values in (normalization.mean, normalization.std))
        described |= {"mean": mean, "std": std}
    return described


def _describe_versions(trained: Trained, runtime: str) -> dict[str, dict[str, str]]:
    environment = trained.run.read_json("environment.json") if trained.run else {}
    packages = {package: version(package) for package in (*_PACKAGES, runtime)}
    return {
        "trained with": environment.get("versions", {}),
        "exported with": {"python": platform.python_version(), **packages},
    }


def write_markdown(card: dict[str, Any]) -> str:
    """Return the card as a page for people.

    Args:
        card: what `make_card` returns.
    """
    classes = card["classes"]
    sides = "x".join(_list_sides(card))
    title = f"# {_as_code(card['network']['name'])}, {sides}, {counted(len(classes), 'class')}"
    lines = [title, "", *_table(_list_rows(card)), "", "## Use", "", *_list_code(card)]
    if card["scores"]:
        lines += ["## Scores of the run", "", *_table_of_scores(card["scores"]), ""]
    lines += ["## Checks", "", *(f"- {line}" for line in _describe_checks(card["checks"])), ""]
    lines += ["## Classes", "", "In the order of the logits:", ""]
    lines += [f"{number}. {_as_code(name)}" for number, name in enumerate(classes)]
    return "\n".join(lines) + "\n"


def _list_code(card: dict[str, Any]) -> list[str]:
    """Return the lines of Python, each part with a sentence."""
    parts = {}
    if "code" in card["images"]:
        parts[
            "Read image files as in training. Values differ from the run's by at most 2 of 255, in a small JPEG by 4: "
            "Pillow and TensorFlow round differently. Convert images of 16 bits to 8 bits first."
        ] = card["images"]["code"]
    parts["Compute the logits."] = card["code"]
    if "int8_code" in card:
        parts["The int8 file takes and returns the same."] = card["int8_code"]
    return [line for said, code in parts.items() for line in (said, "", "```python", *code, "```", "")]


def _list_sides(card: dict[str, Any]) -> list[str]:
    return [str(side or "any") for side in card["input"]["shape"][1:]]


def _list_rows(card: dict[str, Any]) -> dict[str, str]:
    """Return the rows of the first table."""
    normalization = card["normalization"]["name"]
    rows = {
        "network": f"{_as_code(card['network']['name'])}, {counted(card['parameters'], 'parameter')}",
        "input": f"`{IMAGES}`: float32 [batch, {', '.join(_list_sides(card))}], raw pixels 0 to 255, "
        f"{card['input']['channels']}",
        "output": f"`{LOGITS}`: float32 [batch, {len(card['classes'])}], one for each class; the largest is the "
        "prediction",
        "images": describe_images(card["images"]),
        **({"scaling": describe_method(card["images"])} if "antialias" in card["images"] else {}),
        "normalization": normalization if normalization == "none" else f"{normalization}; the network does it itself",
    }
    if card["data"]:
        counts = {name: sum(count for count, _ in split.values()) for name, split in card["data"]["splits"].items()}
        divided = f", as it comes: {describe_counts(counts)}" if counts else ""
        rows["data"] = f"{_as_code(card['data']['source'])}{divided}"
        if fingerprint := card["data"]["fingerprint"]:
            rows["fingerprint"] = f"`{fingerprint}`, of the images' names and their number in each class"
    if kind := card["weights"]["kind"]:
        run = f" of the run {_as_code(card['weights']['run'])}" if card["weights"]["run"] else ""
        rows["weights"] = f"{kind}, of {_as_code(card['weights']['file'])}{run}"
    for title, versions in card["versions"].items():
        rows[title] = ", ".join(f"{name} {number}" for name, number in versions.items())
    return rows


def _describe_checks(checks: dict[str, Any]) -> list[str]:
    """Return in words what was found when a written file was checked."""
    lines = [
        f"Logits in {checks['runtime']} differ from the network's by at most {checks['difference']:.1e} of the largest "
        f"(bound {checks['bound']:g}), on {checks['images']}."
    ]
    if int8 := checks.get("int8"):
        lines.append(
            f"{int8['file']}: int8, {describe_int8(int8)}. Its logits differ by at most {int8['difference']:.1e} of "
            f"the largest (bound {int8['bound']:g})."
        )
    return lines


def describe_int8(int8: dict[str, Any]) -> str:
    """Return in words what quantization costs."""
    accuracy, float32 = (f"{100 * int8[key]:.2f} %" for key in ("accuracy", "float32_accuracy"))
    size = describe_size(int8["bytes"])
    return f"{size}, calibrated on {int8['calibration']}: accuracy {accuracy}, in float32 {float32}, on {int8['split']}"


def _as_code(name: str) -> str:
    """Return a name as Markdown shows it letter by letter, between more backticks than it has in a row."""
    line = as_line(name)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _table(rows: dict[str, str]) -> list[str]:
    escaped = {name: value.replace("|", "\\|") for name, value in rows.items()}
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in escaped.items())]


def _table_of_scores(scores: dict[str, dict[str, float]]) -> list[str]:
    columns: Sequence[str] = list(dict.fromkeys(key for numbers in scores.values() for key in numbers))
    head = [f"| split | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return head + [
        f"| {split} | {' | '.join(_number(numbers.get(key)) for key in columns)} |" for split, numbers in scores.items()
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
