"""The files of a run, read without kpipe: an error in its own reading cannot hide an error in its writing."""

import hashlib
import itertools
import json
import zipfile
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf
from expectations import expect

MEMBERS = ("weights.npz", "training.npz", "state.json")
"""The files of a checkpoint that its manifest describes."""

Arrays = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Dtype, shape and bytes of arrays by name: equal only if every bit is."""


def signature(manifest: dict) -> str:
    """Return the checksum that a manifest holds of itself."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def check_checkpoint(checkpoint: Path) -> None:
    """Expect a manifest with its own checksum, and every member with the size and checksum in the manifest."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    expect(manifest.pop("sha256") == signature(manifest), f"{checkpoint}: the manifest is damaged")
    expect(checkpoint.name == f"step-{manifest['step']:08}", f"{checkpoint}: is of step {manifest['step']}")
    expect(set(manifest["members"]) == set(MEMBERS), f"{checkpoint}: members {sorted(manifest['members'])}")
    for name, member in manifest["members"].items():
        content = (checkpoint / name).read_bytes()
        expect(len(content) == member["bytes"], f"{checkpoint / name}: has {len(content)} of {member['bytes']} bytes")
        expect(hashlib.sha256(content).hexdigest() == member["sha256"], f"{checkpoint / name}: another checksum")


def committed_step(run: Path) -> int | None:
    """Return the step that the file `latest` names; None if nothing was committed."""
    try:
        return int((run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    except FileNotFoundError:
        return None


def check_no_debris(folder: Path) -> None:
    """Expect no hidden and no half-written file at any depth."""
    debris = [path for path in folder.rglob("*") if path.name[0] == "." or path.suffix in (".part", ".tmp", ".gone")]
    expect(not debris, f"debris: {[str(path.relative_to(folder)) for path in debris]}")


def read_network(path: Path) -> Arrays:
    """Read the weights in a .keras file."""
    arrays = {}

    def add(name, node):
        if isinstance(node, h5py.Dataset):
            arrays[name] = (str(node.dtype), node.shape, node[()].tobytes())

    with zipfile.ZipFile(path) as archive, h5py.File(BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(add)
    return arrays


def read_arrays(path: Path) -> Arrays:
    """Read an .npz file."""
    with np.load(path) as file:
        return {name: (str(file[name].dtype), file[name].shape, file[name].tobytes()) for name in file.files}


def read_metrics(run: Path) -> list[dict]:
    """Read the lines of metrics.jsonl without times and speeds, the only values that differ between equal runs."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.endswith(("seconds", "per_second"))}
        for line in lines
    ]


def read_charts(run: Path) -> dict[tuple[str, str], list[int]]:
    """Read the steps of every TensorBoard chart, by split and tag, in the order of the event files."""
    steps: dict[tuple[str, str], list[int]] = {}
    for file in sorted(run.glob("*/events.out.*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                steps.setdefault((file.parent.name, value.tag), []).append(event.step)
    return steps


def compare_runs(run: Path, undisturbed: Path, *, tidy: bool = True) -> None:
    """Expect the network, the last checkpoint and the logs to be equal to the last bit.

    Args:
        run: a finished run.
        undisturbed: a run of the same experiment that nothing has happened to.
        tidy: whether to expect that no half-written file is left.
    """
    expect(read_network(run / "model.keras") == read_network(undisturbed / "model.keras"), "model.keras differs")
    step = committed_step(run)
    expect(step is not None and step == committed_step(undisturbed), f"the last checkpoint is of step {step}")
    actual, expected = (path / "checkpoints" / f"step-{step:08}" for path in (run, undisturbed))
    check_checkpoint(actual)
    for name in ("weights.npz", "training.npz"):
        expect(read_arrays(actual / name) == read_arrays(expected / name), f"{name} of the last checkpoint differs")
    expect(read_metrics(run) == read_metrics(undisturbed), "metrics.jsonl differs")
    charts = read_charts(run)
    for (split, tag), steps in charts.items():
        increase = all(a < b for a, b in itertools.pairwise(steps))
        expect(increase, f"TensorBoard: the steps of {split}/{tag} do not always increase: {steps}")
    expect(charts == read_charts(undisturbed), "TensorBoard shows other steps than for the undisturbed run")
    if tidy:
        check_no_debris(run)
