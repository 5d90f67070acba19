"""Disk full."""

import errno
import itertools
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import keras
from numbered_models import differing, make_lenet, set_values
from processes import Site, expect, prefixed
from run_files import check_no_debris, check_whole, pointed_step
from runs import SMALL, finish, only_run, reference, run_kpipe
from stock import _load_backup

from kpipe.training import checkpoints as checkpoints_module
from kpipe.training.checkpoints import Checkpoints

TMPFS_BYTES = 2_000_000


def disk_full(site: Site, count: int) -> Iterator[bool]:
    """A commit of a whole run finds no room: a limit to the size of files, a full tmpfs, ENOSPC where it can come.

    The last is given by write, fsync or rename, from a random call on; instead of a tmpfs where none may be mounted.
    Survived: the exit code is 5; the message names the path and how many bytes are missing where; the checkpoint before
    is whole and nothing lies about; with room again the same command goes on from a whole checkpoint and ends
    bit-identical to the undisturbed run, so that exactly what was saved was restored.
    """
    expected = reference(site, SMALL)
    kinds = ["limit", "tmpfs" if can_mount(site) else "write", "write", "fsync", "rename"]
    if site.quick:
        kinds = ["limit", kinds[1], site.random.choice(kinds[2:])]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        yield site.survives(fill_once, site, kind, expected)


def can_mount(site: Site) -> bool:
    try:
        with mounted(site.new("mount")):
            return True
    except (OSError, subprocess.SubprocessError):
        site.notes.append("disk full: no tmpfs may be mounted here; injected errors instead")
        return False


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", folder], **quiet)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], **quiet)


def fill_once(site: Site, kind: str, expected: Path) -> None:
    with ExitStack() as stack:
        logs = site.new(f"logs-{kind}")
        plan = SMALL.write(site.new("plan"))
        if kind == "tmpfs":
            stack.enter_context(mounted(logs))
        calls = {"write": 5, "fsync": 7, "rename": 3}.get(kind, 1)  # in one commit
        how = (kind, site.random.randint(2, 6), site.random.random(), site.random.randrange(calls))
        child = site.fork(run_kpipe, [plan], fill_disk, *how, str(logs), KPIPE_LOGS=str(logs))
        with prefixed(f"{kind}, {how[1:]}"):
            before, code = child.receive(), child.exit_code()
            said = child.said("err")
            expect(code == 5, f"the exit code is {code}: {said[-600:]}")
            run = only_run(logs)
            expect(str(run) in said and re.search(r"[\d,]+ bytes", said), f"path and bytes are not named: {said!r}")
            check_whole(run / "checkpoints" / f"step-{before:08}")
            check_no_debris(run)
            step = pointed_step(run)
            expect(step >= before, f"the pointer names step {step}, {before} was committed")
            (logs / "filler").unlink(missing_ok=True)
            expect(f"resumed after step {step}" in finish(site, plan, logs, expected), "it was not resumed")


def fill_disk(pipe, kind: str, nth: int, share: float, call: int, logs: str) -> None:
    """Arms it: the `nth` commit finds `share` of a checkpoint free, or its `call`th call of this kind fails."""
    commit, commits = Checkpoints.commit, itertools.count(1)

    def commit_on_a_full_disk(self, *arguments, **options):
        if next(commits) == nth:
            pipe.send(int(self.latest.name.removeprefix("step-")))
            sizes = [file.stat().st_size for file in self.latest.iterdir()]
            if kind == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * max(sizes)), resource.RLIM_INFINITY))
            elif kind == "tmpfs":
                leave_free(Path(logs), int(share * sum(sizes)))
            else:
                refuse_calls(kind, call, share)
        return commit(self, *arguments, **options)

    Checkpoints.commit = commit_on_a_full_disk


def leave_free(folder: Path, size: int) -> None:
    with open(folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - size))


def refuse_calls(kind: str, first: int, share: float) -> None:
    """From its call number `first` on, counted from 0, `kind` has no space left."""
    calls = itertools.count()

    def refuses(path) -> None:
        if next(calls) >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def refusing(function):
        return lambda path, *arguments: refuses(path) or function(path, *arguments)

    if kind == "fsync":
        os.fsync = refusing(os.fsync)
    elif kind == "rename":
        os.rename, os.replace = refusing(os.rename), refusing(os.replace)
    else:
        checkpoints_module.open = partial(_open_refusing, refuses, share)


def _open_refusing(refuses: Callable, share: float, path, mode: str = "r", **options):
    file = open(path, mode, **options)
    if "w" in mode:
        write = file.write
        refused = None
        try:
            refuses(path)
        except OSError as error:
            refused = error

        def write_some(content):
            if refused:
                write(bytes(content)[: int(share * len(content))])
                raise refused
            return write(content)

        return _Writer(file, write_some)
    return file


class _Writer:
    """A file whose `write` is another."""

    def __init__(self, file, write: Callable):
        self._file, self.write = file, write

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


def disk_full_stock(site: Site, count: int, *, how: str) -> Iterator[bool]:
    """The same limit and the same tmpfs for `model.save` to one path, or for BackupAndRestore.

    Survived: an earlier save, or the new one, can be loaded afterwards, with all its values. The tmpfs is milder to
    them than to kpipe: they overwrite the old file, which makes the room that the new one needs.
    """
    kinds = ["limit", "tmpfs"] if can_mount(site) else ["limit"]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        yield site.survives(fill_stock_once, site, kind, how)


def fill_stock_once(site: Site, kind: str, how: str) -> None:
    folder = site.new(f"stock-{kind}")
    with mounted(folder) if kind == "tmpfs" else ExitStack():
        child = site.fork(save_on_full_disk, folder, kind, how, site.random.random())
        answer = child.receive()
        child.end()
    expect(not answer, f"{kind}: {answer}")


def save_on_full_disk(pipe, folder: Path, kind: str, how: str, share: float) -> None:
    """Saves twice, the second time without room; sends what is wrong with what can be loaded then."""
    model = make_lenet()
    backup = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=1)
    backup.set_model(model)
    save = {"save": lambda: model.save(folder / "model.keras"), "backup": lambda: backup.on_train_batch_end(1)}[how]
    set_values(model, 1)
    save()
    size = max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), resource.RLIM_INFINITY))
    else:
        leave_free(folder, int(share * size))
    set_values(model, 2)
    with suppress(Exception):
        save()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "filler").unlink(missing_ok=True)
    try:
        if how == "save":
            model = keras.models.load_model(folder / "model.keras")
        else:
            set_values(model, -1)
            _load_backup(model, folder / "backup")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
        return
    wrong = [differing(model, step, metrics=False) for step in (1, 2)]
    pipe.send("" if "" in wrong else f"{wrong[0]} was restored wrongly")
