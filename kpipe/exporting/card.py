"""The card of an exported network: what its user must know, for programs (JSON) and for people (Markdown)."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import keras

from kpipe.console import counted, describe_counts, describe_size
from kpipe.exporting.formats import FORMATS, IMAGES, LOGITS
from kpipe.models.keras_files import find_normalization
from kpipe.names import as_line
from kpipe.normalization import describe_normalization
from kpipe.trained import Trained

_PACKAGES = ("kpipe", "tensorflow", "keras", "numpy")
_COLORS = {1: "gray", 3: "red, green, blue"}


def make_card(trained: Trained, model: keras.Model, name: str, checks: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of an exported network, as plain data.

    Args:
        trained: the network as it was loaded.
        model: the network as it was written.
        name: of the format.
        checks: what was found when the written file was checked.
    """
    run, how, data = trained.run, FORMATS[name], trained.data
    summary = run.read_json("summary.json") if run else {}
    environment = run.read_json("environment.json") if run else {}
    height, width, channels = model.input_shape[1:]
    return {
        "format": name,
        "file": how.file,
        "network": trained.experiment.model.model_dump() if trained.experiment else {"name": model.name},
        "parameters": model.count_params(),
        "weights": {"file": trained.file.name, "kind": _kind_of_weights(trained, summary)},
        "input": {
            "name": IMAGES,
            "dtype": "float32",
            "shape": ["batch", height, width, channels],
            "range": [0, 255],
            "channels": _COLORS.get(channels, str(channels)),
        },
        "output": {"name": LOGITS, "dtype": "float32", "shape": ["batch", len(trained.class_names)]},
        "classes": list(trained.class_names),
        "images": {
            "image_size": list(trained.image_shape[:2]),
            "stored_size": data.stored_size,
            "resize": data.resize,
            "background": data.background,
        },
        "normalization": _describe_first_layer(model),
        "scores": {split: summary[split] for split in ("validation", "test") if split in summary}
        if run and trained.file == run.model
        else {},
        "data": {"source": data.source, "splits": run.read_json("data.json").get("splits", {})} if run else {},
        "checks": checks,
        "code": [how.imports, *how.code(how.file)],
        "versions": {
            "trained with": environment.get("versions", {}),
            "exported with": {
                "python": platform.python_version(),
                **{package: version(package) for package in (*_PACKAGES, how.runtime)},
            },
        },
    }


def _kind_of_weights(trained: Trained, summary: dict[str, Any]) -> str | None:
    if trained.run and trained.file == trained.run.model:
        return summary.get("weights")
    return trained.file.stem.removeprefix("model_") if trained.run else None


def _describe_first_layer(model: keras.Model) -> dict[str, Any]:
    """Return what the network itself does to the raw images; constants only where there are a few."""
    normalization, has_one = find_normalization(model)
    if normalization is None:
        return {"name": "of its own" if has_one else "none"}
    described = {"name": describe_normalization(normalization), "kind": normalization.kind}
    if normalization.per_channel:
        mean, std = ([float(each) for each in values.ravel()] for values in (normalization.mean, normalization.std))
        described |= {"mean": mean, "std": std}
    return described


def write_markdown(card: dict[str, Any]) -> str:
    """Return the card as a page for people."""
    shape, classes, images = card["input"]["shape"], card["classes"], card["images"]
    sides = "x".join(str(side or "any") for side in shape[1:])
    rows = {
        "network": f"{card['network']['name']}, {counted(card['parameters'], 'parameter')}",
        "input": f"`{IMAGES}`: float32 [batch, {', '.join(str(side or 'any') for side in shape[1:])}], "
        f"raw pixels 0 to 255, {card['input']['channels']}",
        "output": f"`{LOGITS}`: float32 [batch, {len(classes)}], one for each class; the largest is the prediction",
        "images": describe_images(images),
        "normalization": f"{card['normalization']['name']}; the network does it itself",
    }
    if card["data"]:
        counts = {name: sum(count for count, _ in split.values()) for name, split in card["data"]["splits"].items()}
        rows["data"] = ": ".join(filter(None, (card["data"]["source"], describe_counts(counts))))
    if kind := card["weights"]["kind"]:
        rows["weights"] = f"{kind}, of {card['weights']['file']}"
    for title, versions in card["versions"].items():
        rows[title] = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [f"# {card['network']['name']}, {sides}, {counted(len(classes), 'class')}", "", *_table(rows), ""]
    lines += ["## Use", "", "```python", *card["code"], "```", ""]
    if card["scores"]:
        lines += ["## Scores of the run", "", *_table_of_scores(card["scores"]), ""]
    lines += ["## Checks", "", *(f"- {line}" for line in describe_checks(card["checks"])), ""]
    lines += ["## Classes", "", "In the order of the logits:", ""]
    lines += [f"{number}. `{as_line(name)}`" for number, name in enumerate(classes)]
    return "\n".join(lines) + "\n"


def describe_images(images: dict[str, Any]) -> str:
    """Return in words how an image file becomes what the network sees."""
    height, width = images["image_size"]
    stored = images["stored_size"] or height
    if images["resize"] == "squash":
        how = f"scale both sides to {stored} pixels"
    elif images["resize"] == "pad":
        how = f"scale the longer side to {stored} pixels and fill the rest with black"
    else:
        how = f"scale the shorter side to {stored} pixels and crop the center"
    if images["stored_size"] not in (None, height):
        how += f", then crop the center of {height}x{width}"
    background = images["background"]
    return f"{how}; transparent pixels show {background if isinstance(background, str) else tuple(background)}"


def describe_checks(checks: dict[str, Any]) -> list[str]:
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


def _table(rows: dict[str, str]) -> list[str]:
    return [
        "| | |",
        "|---|---|",
        *(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()),
    ]


def _table_of_scores(scores: dict[str, dict[str, float]]) -> list[str]:
    columns: Sequence[str] = list(dict.fromkeys(key for numbers in scores.values() for key in numbers))
    head = [f"| split | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return head + [
        f"| {split} | {' | '.join(f'{numbers[key]:.6g}' if key in numbers else '' for key in columns)} |"
        for split, numbers in scores.items()
    ]
