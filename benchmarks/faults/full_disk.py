"""Fault: the disk is full while a checkpoint is saved.

The disk is full in one of three ways: the size of files is limited (RLIMIT_FSIZE), the folder is a tmpfs on which only
a fraction of a checkpoint is free, or ENOSPC is injected from a random call of write, fsync or rename on. Where no
tmpfs may be mounted, kpipe gets injected write errors instead.

kpipe (`python -m kpipe.run`) survives if the exit code is 5; if the message names the path and how many bytes are
missing where; if the checkpoint before is whole and no half-written file is left; and if with room again the same
command resumes from what was saved and ends bit-identical to a run that nothing happened to.

Stock Keras (`model.save` to one path, or BackupAndRestore) meets the limit and the tmpfs. It survives if an earlier
save, or the new one, can be loaded afterwards with all its values. The tmpfs is milder to it than to kpipe: it
overwrites the old file, which makes the room that the new one needs.
"""

import builtins
import errno
import io
import itertools
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import keras
from expectations import expect, prefix_losses
from numbered_models import find_mixture, make_lenet, set_values
from patches import before_commit, replace
from processes import Sandbox
from run_files import check_checkpoint, check_no_debris, committed_step
from runs import SMALL, finish, fork_kpipe, only_run, undisturbed_run
from stock import load_backup, make_backup

TMPFS_BYTES = 2_000_000
CALLS = {"write": 5, "fsync": 7, "rename": 3}
"""How often a commit opens a file to write it, flushes a file or folder, and renames."""


def can_mount(sandbox: Sandbox) -> bool:
    try:
        with mount(sandbox.make_folder("mount")):
            return True
    except (OSError, subprocess.SubprocessError):
        sandbox.notes.append("disk full: no tmpfs may be mounted here; injected errors instead")
        return False


@contextmanager
def mount(folder: Path) -> Iterator[Path]:
    """Mount a small tmpfs on a folder."""
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", folder], **quiet)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], **quiet)


def limit_file_size(size: int) -> None:
    """Let this process write no file larger than `size` bytes; RLIM_INFINITY lifts the limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(folder: Path, free: int) -> None:
    """Leave only so many bytes free on the disk of a folder."""
    with open(folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - free))


def make_room(folder: Path) -> None:
    """Undo `fill`."""
    (folder / "filler").unlink(missing_ok=True)


# --- kpipe ------------------------------------------------------------------------------------------------------------


def fill_disk(sandbox: Sandbox, count: int) -> Iterator[bool]:
    """Let `count` runs meet a full disk, in every way in turn; yield whether each was survived."""
    undisturbed = undisturbed_run(sandbox, SMALL)
    kinds = ["limit", "tmpfs" if can_mount(sandbox) else "write", "write", "fsync", "rename"]
    if sandbox.quick:
        kinds = ["limit", kinds[1], sandbox.random.choice(kinds[2:])]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        yield sandbox.survives(fill_disk_once, sandbox, kind, undisturbed)


def fill_disk_once(sandbox: Sandbox, kind: str, undisturbed: Path) -> None:
    with ExitStack() as stack:
        logs = sandbox.make_folder(f"logs-{kind}")
        file = SMALL.write(sandbox.make_folder("experiment"))
        if kind == "tmpfs":
            stack.enter_context(mount(logs))
        nth, fraction = sandbox.random.randint(2, 6), sandbox.random.random()
        call = sandbox.random.randrange(CALLS.get(kind, 1))
        child = fork_kpipe(sandbox, [file], logs, fill_disk_at_commit, kind, nth, fraction, call, logs)
        with prefix_losses(f"{kind}, {(nth, fraction, call)}"):
            before, code = child.receive(), child.exit_code()
            message = child.stderr
            expect(code == 5, f"the exit code is {code}: {message[-600:]}")
            run = only_run(logs)
            named = str(run) in message and re.search(r"[\d,]+ bytes", message)
            expect(named, f"path and bytes are not named: {message!r}")
            check_checkpoint(run / "checkpoints" / f"step-{before:08}")
            check_no_debris(run)
            step = committed_step(run)
            expect(step >= before, f"the pointer names step {step}, {before} was committed")
            make_room(logs)
            output = finish(sandbox, file, logs, undisturbed)
            expect(f"resumed    after step {step:,}," in output, "it was not resumed")


def fill_disk_at_commit(pipe, kind: str, nth: int, fraction: float, call: int, logs: Path) -> None:
    """Let the `nth` commit find a full disk; send the step of the commit before it.

    Args:
        pipe: the connection to the parent process.
        kind: limit, tmpfs, write, fsync or rename.
        nth: the commit, counted from 1.
        fraction: how much of a file, of a checkpoint, or of the content of one write still finds room.
        call: the call of write, fsync or rename that fails first, counted from 0.
        logs: the folder of the runs.
    """

    def act(checkpoints) -> None:
        pipe.send(int(checkpoints.latest.name.removeprefix("step-")))
        sizes = [file.stat().st_size for file in checkpoints.latest.iterdir()]
        if kind == "limit":
            limit_file_size(int(fraction * max(sizes)))
        elif kind == "tmpfs":
            fill(logs, int(fraction * sum(sizes)))
        else:
            refuse_calls(kind, call, fraction)

    before_commit(nth, act)


def refuse_calls(kind: str, first: int, fraction: float) -> None:
    """Raise ENOSPC from call number `first` of write, fsync or rename on, counted from 0, in the whole process."""
    calls = itertools.count()

    def is_refused() -> bool:
        return next(calls) >= first

    def refusing(function):
        def call(path, *arguments, **options):
            if is_refused():
                raise no_space(path)
            return function(path, *arguments, **options)

        return call

    if kind == "write":
        open_file = builtins.open

        def open_on_full_disk(path, mode="r", *arguments, **options):
            if mode == "wb" and is_refused():
                return FullFile(path, fraction)
            return open_file(path, mode, *arguments, **options)

        replace(builtins, "open", open_on_full_disk)
    else:
        for name in {"fsync": ["fsync"], "rename": ["rename", "replace"]}[kind]:
            replace(os, name, refusing(getattr(os, name)))


def no_space(path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class FullFile(io.FileIO):
    """A new file that takes a fraction of what is written, and then raises ENOSPC."""

    def __init__(self, path, fraction: float):
        super().__init__(path, "wb")
        self._fraction = fraction

    def write(self, content) -> int:
        super().write(bytes(content)[: int(self._fraction * len(content))])
        raise no_space(self.name)


# --- stock Keras ------------------------------------------------------------------------------------------------------


def fill_disk_of_stock(sandbox: Sandbox, count: int, *, how: str) -> Iterator[bool]:
    """Save `count` times on a full disk, by "backup" or "save"; yield whether each was survived."""
    kinds = ["limit", "tmpfs"] if can_mount(sandbox) else ["limit"]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        yield sandbox.survives(fill_disk_of_stock_once, sandbox, kind, how)


def fill_disk_of_stock_once(sandbox: Sandbox, kind: str, how: str) -> None:
    folder = sandbox.make_folder(f"stock-{kind}")
    with mount(folder) if kind == "tmpfs" else ExitStack():
        child = sandbox.fork(save_on_full_disk, folder, kind, how, sandbox.random.random())
        answer = child.receive()
        child.kill()
    expect(not answer, f"{kind}: {answer}")


def save_on_full_disk(pipe, folder: Path, kind: str, how: str, fraction: float) -> None:
    """Save twice, the second time without room; send what is wrong with what can be loaded then."""
    model = make_lenet()
    backup = make_backup(model, folder / "backup", double=False)
    save = {"save": lambda: model.save(folder / "model.keras"), "backup": lambda: backup.on_train_batch_end(1)}[how]
    set_values(model, 1)
    save()
    size = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if kind == "limit":
        limit_file_size(int(fraction * size))
    else:
        fill(folder, int(fraction * size))
    set_values(model, 2)
    with suppress(Exception):
        save()
    limit_file_size(resource.RLIM_INFINITY)
    make_room(folder)
    try:
        if how == "save":
            model = keras.models.load_model(folder / "model.keras")
        else:
            set_values(model, -1)
            load_backup(model, folder / "backup")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send(find_mixture(model))
