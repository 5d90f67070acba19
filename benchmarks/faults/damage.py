"""Damaged checkpoints."""

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
from numbered_models import differing, make_lenet, restore, set_values, state_at
from processes import Child, Lost, Site, expect, prefixed
from run_files import MEMBERS, signature
from stock import _back_up, _load_backup

from kpipe.training.checkpoints import Checkpoints


@dataclass(frozen=True)
class Damage:
    """What happens to one file."""

    kind: str
    file: str
    place: float = 0.0
    """As a share of the file."""
    bit: int = 0

    def do(self, folder: Path, canary: Path) -> None:
        path = folder / self.file
        place = min(int(self.place * path.stat().st_size), path.stat().st_size - 1)
        if self.kind == "truncated":
            os.truncate(path, place)
        elif self.kind == "bit flipped":
            content = bytearray(path.read_bytes())
            content[place] ^= 1 << self.bit
            path.write_bytes(content)
        elif self.kind == "deleted":
            path.unlink()
        elif self.kind == "symlink":
            elsewhere = folder.parent / f"elsewhere-{path.name}"
            path.rename(elsewhere)
            path.symlink_to(elsewhere)
        elif self.kind == "pickle":
            plant_pickle(path, canary)
        elif self.kind == "nonsense":
            path.write_bytes(b"\xff\x00step-")


def list_damages(site: Site, files: Sequence[str], places: int) -> list[Damage]:
    """Truncated, bits flipped and deleted, over all files."""
    found = []
    for file in files:
        shares = [0.0, 1.0, *(site.random.random() for _ in range(places - 2))]
        found += [Damage("truncated", file, share) for share in shares]
        bits = ((site.random.random(), site.random.randrange(8)) for _ in range(places))
        found += [Damage("bit flipped", file, *bit) for bit in bits]
        found.append(Damage("deleted", file))
    return found


def take_by_kind(damages: list[Damage], count: int) -> list[Damage]:
    """`count` of them, of as many kinds and files as possible."""
    by_kind: dict[str, list[Damage]] = {}
    for damage in damages:
        by_kind.setdefault(damage.kind, []).append(damage)
    rows = itertools.zip_longest(*by_kind.values())
    return [damage for row in rows for damage in row if damage][:count]


class _Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def plant_pickle(member: Path, canary: Path) -> None:
    """An object among the arrays, and a manifest that says that this is as it should be."""
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


def damaged_checkpoints(site: Site, count: int) -> Iterator[bool]:
    """Two commits; then the files of the newer one are truncated, flipped, deleted, made links, given a pickle.

    Survived: restoring names the damaged one, takes the one before, with every variable and the state exactly of that
    step, and no pickle was run. Without a legible pointer nothing is damaged: the newest is taken without a word.
    """
    files = [f"step-00000002/{name}" for name in (*MEMBERS, "manifest.json")]
    damages = list_damages(site, files, places=4)
    damages += [Damage("symlink", file) for file in files]
    damages += [Damage("pickle", file) for file in files[:2]]
    damages += [Damage("deleted", "latest"), Damage("truncated", "latest"), Damage("nonsense", "latest")]
    whole = site.new("whole")
    child = site.fork(restore_on_request, whole)
    child.receive()
    site.random.shuffle(damages)
    for damage in take_by_kind(damages, count):
        if child.exit_code(0) is not None:
            child = site.fork(restore_on_request, whole)
            child.receive()
        yield site.survives(damage_once, site, child, whole, damage)


def restore_on_request(pipe, whole: Path) -> None:
    """Commits twice if there is nothing yet; then answers each folder with what is restored from it."""
    model = make_lenet()
    if not list(whole.iterdir()):
        for step in (1, 2):
            set_values(model, step)
            Checkpoints(whole).commit(model, state_at(step), step=step)
    pipe.send("ready")
    while True:
        folder = pipe.recv()
        try:
            pipe.send(restore(model, Checkpoints(folder)))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def damage_once(site: Site, child: Child, whole: Path, damage: Damage) -> None:
    folder = site.new("damaged") / "checkpoints"
    shutil.copytree(whole, folder)
    canary = folder.parent / "canary"
    damage.do(folder, canary)
    child.pipe.send(folder)
    answer = child.receive()
    with prefixed(str(damage)):
        expect(not canary.exists(), "the pickle was run")
        expect(not isinstance(answer, str), f"nothing was restored: {answer}")
        step, skipped, wrong = answer
        expect(not wrong, f"{wrong} is not of step {step}")
        harmless = damage.file == "latest"
        expect(step == (2 if harmless else 1), f"step {step} was restored")
        named = [str(folder / "step-00000002") in line for line in skipped]
        expect(named == ([] if harmless else [True]), f"said: {skipped}")


@dataclass(frozen=True)
class StockFile:
    """How Keras keeps a training in files."""

    files: tuple[str, ...]
    save: Callable[[keras.Model, Path], None]
    load: Callable[[keras.Model, Path], None]


BACKUP = StockFile(("latest.weights.h5", "training_metadata.json"), _back_up, _load_backup)
WEIGHTS_FILE = StockFile(
    ("all.weights.h5",),
    lambda model, folder: model.save_weights(folder / "all.weights.h5"),
    lambda model, folder: model.load_weights(folder / "all.weights.h5"),
)
STOCK_FILES = {"backup": BACKUP, "weights": WEIGHTS_FILE}


def damaged_stock(site: Site, count: int, *, how: str) -> Iterator[bool]:
    """The same damage to the files of BackupAndRestore (with double_checkpoint=True) or of `save_weights`.

    Survived: an error is raised, or weights, optimizer and epoch are those of one of the two saves.
    """
    damages = list_damages(site, STOCK_FILES[how].files, places=10)
    whole = site.new("whole")
    child = site.fork(load_on_request, whole, how)
    child.receive()
    site.random.shuffle(damages)
    for damage in take_by_kind(damages, count):
        if child.exit_code(0) is not None:
            child = site.fork(load_on_request, whole, how)
            child.receive()
        yield site.survives(damage_stock_once, site, child, whole, damage)


def load_on_request(pipe, whole: Path, how: str) -> None:
    model, stock = make_lenet(), STOCK_FILES[how]
    if not list(whole.iterdir()):
        for step in (1, 2):
            set_values(model, step)
            stock.save(model, whole)
    pipe.send("ready")
    while True:
        folder = pipe.recv()
        set_values(model, -1)
        try:
            stock.load(model, folder)
        except Lost as loss:
            pipe.send(str(loss))
        except Exception:
            pipe.send("")  # it is noticed
        else:
            wrong = [differing(model, step, metrics=False) for step in (1, 2)]
            pipe.send("" if "" in wrong else f"{wrong[1]} was restored wrongly")


def damage_stock_once(site: Site, child: Child, whole: Path, damage: Damage) -> None:
    folder = site.new("damaged") / "files"
    shutil.copytree(whole, folder)
    damage.do(folder, folder)
    child.pipe.send(folder)
    answer = child.receive()
    expect(not answer, f"{damage}: {answer}")
