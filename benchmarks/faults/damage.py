"""Fault: the files of a checkpoint are damaged between two starts.

Everything is saved twice, at step 1 and at step 2; then one file of the newer save is truncated at a random place, gets
one flipped bit, or is deleted. A kpipe checkpoint is also replaced by a symbolic link, given a pickle that would run
code, and its pointer `latest` is filled with nonsense.

kpipe (`Checkpoints.restore`) survives if it names the damaged checkpoint, restores the one before it with every
variable and the state exactly of that step, and runs no pickle. Damage to the pointer damages no checkpoint: then the
newest is expected, without a message.

Stock Keras (the files of BackupAndRestore with `double_checkpoint=True`, or of `save_weights`) survives if an error is
raised, or if weights, optimizer and epoch are those of one of the two saves.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from expectations import Lost, expect, prefix_losses
from numbered_models import commit, find_mixture, make_lenet, restore, set_values
from processes import Child, Sandbox
from run_files import MEMBERS, signature
from stock import load_backup, make_backup

from kpipe.training.checkpoints import Checkpoints


@dataclass(frozen=True)
class Damage:
    """What happens to one file.

    Attributes:
        kind: truncated, bit flipped, deleted, symlink, pickle or nonsense.
        file: the file's path in the folder that was saved.
        place: where it is truncated or a bit is flipped, as a fraction of its size.
        bit: which bit of that byte is flipped.
    """

    kind: str
    file: str
    place: float = 0.0
    bit: int = 0

    def do(self, folder: Path) -> None:
        path = folder / self.file
        size = path.stat().st_size
        place = min(int(self.place * size), size - 1)
        match self.kind:
            case "truncated":
                os.truncate(path, place)
            case "bit flipped":
                content = bytearray(path.read_bytes())
                content[place] ^= 1 << self.bit
                path.write_bytes(content)
            case "deleted":
                path.unlink()
            case "symlink":
                elsewhere = folder.parent / f"elsewhere-{path.name}"
                path.rename(elsewhere)
                path.symlink_to(elsewhere)
            case "pickle":
                plant_pickle(path, canary_of(folder))
            case "nonsense":
                path.write_bytes(b"\xff\x00step-")


def list_damages(sandbox: Sandbox, files: Sequence[str], places: int) -> list[Damage]:
    """List truncations and flipped bits at so many random places of every file, and its deletion."""
    damages = []
    for file in files:
        fractions = [0.0, 1.0, *(sandbox.random.random() for _ in range(places - 2))]
        damages += [Damage("truncated", file, fraction) for fraction in fractions]
        bits = ((sandbox.random.random(), sandbox.random.randrange(8)) for _ in range(places))
        damages += [Damage("bit flipped", file, *bit) for bit in bits]
        damages.append(Damage("deleted", file))
    return damages


def choose_by_kind(damages: list[Damage], count: int) -> list[Damage]:
    """Choose `count` damages of as many kinds as possible."""
    by_kind: dict[str, list[Damage]] = {}
    for damage in damages:
        by_kind.setdefault(damage.kind, []).append(damage)
    rounds = itertools.zip_longest(*by_kind.values())
    return [damage for one_of_each in rounds for damage in one_of_each if damage][:count]


Check = Callable[[Path, Damage, object], None]
"""Looks at a damaged folder, the damage, and the answer of the process that has loaded the folder."""


def attempt_damages(
    sandbox: Sandbox, damages: list[Damage], count: int, start: Callable[[Path], Child], check: Check
) -> Iterator[bool]:
    """Do `count` of the damages, each to a copy of what was saved; yield whether each was survived.

    Args:
        sandbox: where this happens.
        damages: to choose from.
        count: how many are done.
        start: starts a process that saves twice to an empty folder, says that it is ready, and answers the path of each
            damaged folder with what it could load.
        check: looks at an answer.
    """
    saved = sandbox.make_folder("saved")
    server = start(saved)
    server.receive()
    sandbox.random.shuffle(damages)
    for damage in choose_by_kind(damages, count):
        if server.exit_code(0) is not None:  # the damage before has crashed it
            server = start(saved)
            server.receive()
        yield sandbox.survives(attempt_damage, sandbox, server, saved, damage, check)


def attempt_damage(sandbox: Sandbox, server: Child, saved: Path, damage: Damage, check: Check) -> None:
    folder = sandbox.make_folder("damaged") / "files"
    shutil.copytree(saved, folder)
    damage.do(folder)
    server.pipe.send(folder)
    answer = server.receive()
    with prefix_losses(str(damage)):
        check(folder, damage, answer)


# --- kpipe ------------------------------------------------------------------------------------------------------------


def damage_checkpoints(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Damage the newer of two checkpoints `count` times; yield whether each damage was survived."""
    files = [f"step-00000002/{name}" for name in (*MEMBERS, "manifest.json")]
    damages = list_damages(sandbox, files, places=4)
    damages += [Damage("symlink", file) for file in files]
    damages += [Damage("pickle", file) for file in files[:2]]
    damages += [Damage(kind, "latest") for kind in ("deleted", "truncated", "nonsense")]

    def start(saved: Path) -> Child:
        return sandbox.fork(restore_on_request, saved)

    return attempt_damages(sandbox, damages, count, start, check_restored)


def restore_on_request(pipe, saved: Path) -> None:
    """Commit twice if there is nothing yet; then answer each folder with what is restored from it, or the error."""
    model = make_lenet()
    if not list(saved.iterdir()):
        for step in (1, 2):
            commit(model, Checkpoints(saved), step)
    pipe.send("ready")
    while True:
        folder = pipe.recv()
        try:
            pipe.send(restore(model, Checkpoints(folder)))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def check_restored(folder: Path, damage: Damage, answer: tuple | str) -> None:
    expect(not canary_of(folder).exists(), "the pickle was run")
    expect(not isinstance(answer, str), f"nothing was restored: {answer}")
    step, skipped, wrong = answer
    expect(not wrong, f"{wrong} is not of step {step}")
    harmless = damage.file == "latest"
    expect(step == (2 if harmless else 1), f"step {step} was restored")
    named = [str(folder / "step-00000002") in line for line in skipped]
    expect(named == ([] if harmless else [True]), f"the messages are {skipped}")


def canary_of(folder: Path) -> Path:
    """Return the path of the file that a planted pickle would leave."""
    return folder.parent / "canary"


class _Canary:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def plant_pickle(member: Path, canary: Path) -> None:
    """Put a pickled object among the arrays, and correct the manifest: the checksums match, the file is an attack."""
    with np.load(member) as file:
        arrays = dict(file)
    arrays[next(iter(arrays))] = np.array([_Canary(canary)], dtype=object)
    np.savez(member, **arrays)
    path = member.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    content = member.read_bytes()
    manifest["members"][member.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    path.write_text(json.dumps(manifest | {"sha256": signature(manifest)}))


# --- stock Keras ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StockFiles:
    """A way in which Keras saves to files: their names, and how they are saved to and loaded from a folder."""

    names: tuple[str, ...]
    save: Callable[[keras.Model, Path], None]
    load: Callable[[keras.Model, Path], None]


STOCK_FILES = {
    "backup": StockFiles(
        ("latest.weights.h5", "training_metadata.json"),
        lambda model, folder: make_backup(model, folder, double=True).on_train_batch_end(1),
        load_backup,
    ),
    "weights": StockFiles(
        ("all.weights.h5",),
        lambda model, folder: model.save_weights(folder / "all.weights.h5"),
        lambda model, folder: model.load_weights(folder / "all.weights.h5"),
    ),
}


def damage_stock(sandbox: Sandbox, count: int, *, how: str) -> Iterator[bool]:
    """Damage Keras's files `count` times; yield whether each damage was survived. `how`: a name of STOCK_FILES."""
    damages = list_damages(sandbox, STOCK_FILES[how].names, places=10)

    def start(saved: Path) -> Child:
        return sandbox.fork(load_on_request, saved, how)

    return attempt_damages(sandbox, damages, count, start, check_loaded)


def load_on_request(pipe, saved: Path, how: str) -> None:
    """Save twice if there is nothing yet; then answer each folder with what is wrong with what is loaded from it."""
    model, stock = make_lenet(), STOCK_FILES[how]
    if not list(saved.iterdir()):
        for step in (1, 2):
            set_values(model, step)
            stock.save(model, saved)
    pipe.send("ready")
    while True:
        folder = pipe.recv()
        set_values(model, -1)
        try:
            stock.load(model, folder)
        except Lost as loss:
            pipe.send(str(loss))
        except Exception:
            pipe.send("")  # the damage was noticed
        else:
            pipe.send(find_mixture(model))


def check_loaded(folder: Path, damage: Damage, answer: str) -> None:
    expect(not answer, answer)
