"""What is on the disk, read without kpipe."""

import hashlib
import itertools
import json
import zipfile
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf
from processes import expect

MEMBERS = ("weights.npz", "training.npz", "state.json")


def signature(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_whole(checkpoint: Path) -> None:
    """Every member as the manifest describes it, and the manifest as it was signed."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    expect(manifest.pop("sha256") == signature(manifest), f"{checkpoint}: the manifest is damaged")
    expect(checkpoint.name == f"step-{manifest['step']:08}", f"{checkpoint}: is of step {manifest['step']}")
    expect(set(manifest["members"]) == set(MEMBERS), f"{checkpoint}: members {sorted(manifest['members'])}")
    for name, said in manifest["members"].items():
        content = (checkpoint / name).read_bytes()
        expect(len(content) == said["bytes"], f"{checkpoint / name}: has {len(content)} bytes of {said['bytes']}")
        expect(hashlib.sha256(content).hexdigest() == said["sha256"], f"{checkpoint / name}: another checksum")


def pointed_step(run: Path) -> int | None:
    """The step that `latest` names; None: nothing was committed."""
    try:
        return int((run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    except FileNotFoundError:
        return None


def check_no_debris(folder: Path) -> None:
    """No file that is hidden or half-written, at any depth."""
    found = [path for path in folder.rglob("*") if path.name[0] == "." or path.suffix in (".part", ".tmp", ".gone")]
    expect(not found, f"debris: {[str(path.relative_to(folder)) for path in found]}")


def timeless(record: dict) -> dict:
    return {key: value for key, value in record.items() if not key.endswith(("seconds", "per_second"))}


def network_of(path: Path) -> dict[str, bytes]:
    """The arrays of a .keras file."""
    arrays = {}

    def keep(name, found):
        if isinstance(found, h5py.Dataset):
            arrays[name] = (str(found.dtype), found.shape, found[()].tobytes())

    with zipfile.ZipFile(path) as archive, h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(keep)
    return arrays


def arrays_of(path: Path) -> dict[str, tuple]:
    with np.load(path) as file:
        return {name: (str(file[name].dtype), file[name].shape, file[name].tobytes()) for name in file.files}


def charts_of(run: Path) -> dict[tuple[str, str], list[int]]:
    """The steps of every tag of TensorBoard, in the order of the event files."""
    steps: dict[tuple[str, str], list[int]] = {}
    for file in sorted(run.glob("*/events.out.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                steps.setdefault((file.parent.name, value.tag), []).append(event.step)
    return steps


def is_finished(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.exists() and json.loads(summary.read_text())["status"] == "finished"


def compare_runs(run: Path, expected: Path, *, tidy: bool = True) -> None:
    """Network, last checkpoint and logs to the last bit, but for what is a time; and, if `tidy`, no debris."""
    expect(network_of(run / "model.keras") == network_of(expected / "model.keras"), "model.keras differs")
    step = pointed_step(run)
    expect(step is not None and step == pointed_step(expected), f"the last checkpoint is of step {step}")
    ours, theirs = (path / "checkpoints" / f"step-{step:08}" for path in (run, expected))
    check_whole(ours)
    for name in ("weights.npz", "training.npz"):
        expect(arrays_of(ours / name) == arrays_of(theirs / name), f"{name} of the last checkpoint differs")
    lines = [[timeless(json.loads(line)) for line in open(path / "metrics.jsonl")] for path in (run, expected)]
    expect(lines[0] == lines[1], "metrics.jsonl differs")
    charts = charts_of(run)
    for (part, tag), steps in charts.items():
        rises = all(a < b for a, b in itertools.pairwise(steps))
        expect(rises, f"TensorBoard: the steps of {part}/{tag} do not always increase: {steps}")
    expect(charts == charts_of(expected), "TensorBoard shows other steps than the undisturbed run")
    if tidy:
        check_no_debris(run)
