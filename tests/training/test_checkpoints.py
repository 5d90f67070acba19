"""Checkpoints: what is committed survives, whatever happens to the next one, and nothing else is ever loaded."""

import contextlib
import errno
import hashlib
import json
import math
import os
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest

from kpipe.errors import ConfigError, Diverged, EnvironmentFault
from kpipe.runs.directory import saved_step
from kpipe.training import checkpoints as module
from kpipe.training.checkpoints import Checkpoints
from kpipe.training.precision import precision_scope
from kpipe.training.trainer import Trainer
from kpipe.training.variables import estimate_disk


def make_model(outputs=3, momentum=0.9, policy="float32"):
    with precision_scope(policy):
        layers = [keras.layers.Flatten(), keras.layers.Dropout(0.3, seed=1), keras.layers.Dense(outputs, name="logits")]
        model = keras.Sequential([keras.Input((4, 4, 1)), *layers], name="tiny")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=momentum), loss, metrics=["accuracy"], jit_compile=False)
    Trainer(model)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


def variables(model):
    return [*model.variables, *model.optimizer.variables]


def fill(model, number):
    """Every variable says the number, so that a mixture of two checkpoints is seen."""
    for variable in variables(model):
        variable.assign(np.full(variable.shape, number))


def filled_with(model):
    return {int(value) for variable in variables(model) for value in variable.numpy().ravel()}


@pytest.fixture
def folder(tmp_path, model):
    """Two checkpoints, of the steps 10 and 20; 10 is the best."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (10, 20):
        fill(model, step)
        checkpoints.commit(model, {"at": step}, step=step, best_steps=[10], logs={"metrics.jsonl": 7 * step})
    fill(model, 99)
    return tmp_path / "checkpoints"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_committed_is_restored(model, folder):
    restored = Checkpoints(folder).restore(model)
    assert (restored.step, restored.skipped) == (20, ())
    assert (restored.state, restored.logs) == ({"at": 20}, {"metrics.jsonl": 140})
    assert filled_with(model) == {20}


def test_a_directory_holds_what_the_docstring_says(model, folder):
    assert names(folder) == ["latest", "step-00000010", "step-00000020"]
    assert (folder / "latest").read_text() == "step-00000020\n"
    path = folder / "step-00000020"
    assert names(path) == ["manifest.json", "state.json", "training.npz", "weights.npz"]
    manifest = json.loads((path / "manifest.json").read_text())
    for name, member in manifest["members"].items():
        content = (path / name).read_bytes()
        assert member == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    arrays = {*np.load(path / "weights.npz").files, *np.load(path / "training.npz").files}
    assert {"network/tiny/logits/kernel", "optimizer/sgd/iteration"} <= arrays
    assert any(name.endswith("seed_generator_state") for name in arrays)


def test_state_may_hold_arrays_and_what_json_lacks(model, tmp_path):
    weights = np.arange(6.0).reshape(2, 3)
    state = {
        "best": math.inf,
        "callbacks": {"0": {"weights": [weights, weights.astype("int32")], "n": np.float32(0.5)}},
    }
    Checkpoints(tmp_path).commit(model, state, step=1)
    found = Checkpoints(tmp_path).restore(model).state
    assert found["best"] == math.inf
    assert found["callbacks"]["0"]["n"] == 0.5
    for array, expected in zip(found["callbacks"]["0"]["weights"], state["callbacks"]["0"]["weights"], strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype


def test_the_second_model_of_a_process_knows_the_checkpoint_of_the_first(folder):
    again = make_model()
    assert Checkpoints(folder).restore(again).step == 20
    assert filled_with(again) == {20}


def test_the_newest_and_every_best_of_them_stay(model, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best, kept in (
        (1, 1, [1]), (2, 2, [1, 2]), (3, 2, [2, 3]), (4, 2, [2, 3, 4]),
        (5, 5, [2, 4, 5]), (6, 5, [5, 6]), (7, 5, [5, 6, 7]),
    ):  # fmt: skip
        checkpoints.commit(model, {}, step=step, best_steps=[] if best is None else [best])
        assert names(tmp_path) == ["latest", *(f"step-{number:08d}" for number in kept)]
    checkpoints.finish(keep_last=True)
    assert names(tmp_path) == ["latest", "step-00000007"]
    checkpoints.finish(keep_last=False)
    assert names(tmp_path) == []


def test_the_best_of_an_older_checkpoint_is_there_when_the_newer_one_is_lost(model, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, best in ((1, 1), (2, 1), (3, 3)):
        checkpoints.commit(model, {}, step=step, best_steps=[] if best is None else [best])
    (tmp_path / "step-00000003" / "state.json").unlink()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(model).step == 2
    assert checkpoints.is_whole(1)


def test_steps_are_ordered_by_number_not_by_time_or_name(model, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (99_999_999, 100_000_000, 100_000_001):
        checkpoints.commit(model, {}, step=step)
    os.utime(tmp_path / "step-99999999")
    (tmp_path / "latest").unlink()
    assert Checkpoints(tmp_path).restore(model).step == 100_000_001


def test_a_step_is_committed_once(model, folder):
    checkpoints = Checkpoints(folder)
    checkpoints.restore(model)
    before = (folder / "step-00000020" / "manifest.json").stat()
    checkpoints.commit(model, {"other": 1}, step=20)
    assert (folder / "step-00000020" / "manifest.json").stat() == before


# --- damage ---------------------------------------------------------------------------------------------------------


def truncate(path, fraction=0.5):
    os.truncate(path, int(path.stat().st_size * fraction))


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def pickle_inside(path):
    """An archive of the right checksum that holds a pickle."""
    np.savez(path, **{"trainable_variables/x": np.array([{"code": 1}], dtype=object)})
    manifest = json.loads((path.parent / "manifest.json").read_text())
    content = path.read_bytes()
    member = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sign(path.parent / "manifest.json", members=manifest["members"] | {path.name: member})


def sign(path, **changes):
    """A manifest that says something else, with the checksum for it."""
    manifest = json.loads(path.read_text()) | changes
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def link_elsewhere(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE = [
    *((member, truncate, "bytes of") for member in ("weights.npz", "training.npz", "state.json")),
    *((member, flip, f"the checksum of {member} differs") for member in ("weights.npz", "training.npz", "state.json")),
    *((member, os.unlink, f"{member}: No such file") for member in ("weights.npz", "training.npz", "state.json")),
    *((member, link_elsewhere, f"{member} is a symbolic link") for member in ("weights.npz", "manifest.json")),
    ("weights.npz", pickle_inside, "Object arrays cannot be loaded when allow_pickle=False"),
    ("training.npz", pickle_inside, "Object arrays cannot be loaded when allow_pickle=False"),
    ("manifest.json", truncate, "manifest.json cannot be read"),
    ("manifest.json", lambda path: path.write_text("[]"), "manifest.json cannot be read"),
    ("manifest.json", lambda path: path.write_text("[" * 9999), "manifest.json cannot be read"),
    ("manifest.json", os.unlink, "manifest.json: No such file"),
    (
        "manifest.json",
        lambda path: sign(path, members={"../../../elsewhere": {"bytes": 1, "sha256": ""}}),
        "cannot be r",
    ),
    ("manifest.json", lambda path: sign(path, step="../10"), "manifest.json cannot be read"),
    ("manifest.json", lambda path: sign(path, logs=7), "manifest.json cannot be read"),
    ("manifest.json", lambda path: sign(path, members={}), "weights.npz is missing in manifest.json"),
    *(
        ("manifest.json", lambda path, at=at: flip(path, at / 20), "manifest.json ca|checksum of manif")
        for at in range(21)
    ),
]


@pytest.mark.parametrize(("member", "damage", "reason"), DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(model, folder, member, damage, reason):
    damage(folder / "step-00000020" / member)
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(model)
    assert (restored.step, filled_with(model)) == (10, {10})
    [said] = restored.skipped
    assert said.startswith(f"{folder}/step-00000020 is damaged (")
    assert said.endswith(")")
    assert any(text in said for text in reason.split("|"))
    checkpoints.commit(model, {}, step=15, best_steps=[10])
    assert names(folder) == ["latest", "step-00000010", "step-00000015"]


def test_a_directory_that_is_a_link_or_another_step_is_damaged(model, folder):
    (folder / "step-00000020").rename(folder / "step-00000030")
    (folder / "step-00000040").symlink_to(folder / "step-00000010")
    restored = Checkpoints(folder).restore(model)
    assert restored.step == 10
    linked, other = restored.skipped
    assert "it is a symbolic link" in linked
    assert "its manifest is that of step 20" in other


def test_when_nothing_is_whole_everything_is_named(model, folder):
    for path in folder.glob("step-*"):
        truncate(path / "weights.npz")
    with pytest.raises(EnvironmentFault) as caught:
        Checkpoints(folder).restore(model)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{folder}: no whole checkpoint to resume from; new=True starts another run:"
    assert [line.split()[0] for line in lines[1:]] == [f"{folder}/step-00000020", f"{folder}/step-00000010"]
    assert filled_with(model) == {99}
    with pytest.raises(EnvironmentFault, match="new=True starts another run:\n  there is none"):
        Checkpoints(folder / "nowhere").restore(model)


@pytest.mark.parametrize("text", [None, "", "step-00000777\n", "../../elsewhere\n", "\xff", "step-00000010\n"])
def test_a_lost_pointer_costs_nothing(model, folder, text):
    (folder / "latest").unlink()
    if text is not None:
        (folder / "latest").write_text(text, encoding="latin-1")
    assert Checkpoints(folder).restore(model).step == (10 if text == "step-00000010\n" else 20)


def test_what_was_not_acknowledged_gives_way(model, folder):
    """A kill between the two renames leaves a directory that the pointer does not know yet."""
    (folder / "latest").write_text("step-00000010\n")
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(model).step == 10
    checkpoints.commit(model, {"at": "again"}, step=20)
    assert Checkpoints(folder).restore(model).state == {"at": "again"}


def test_the_debris_of_crashes_is_removed(model, folder):
    for name in (".step-00000030.part", ".step-00000005.gone"):
        (folder / name).mkdir()
        (folder / name / "weights.npz").write_text("half")
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(model).step == 20
    assert names(folder) == ["latest", "step-00000010", "step-00000020"]
    checkpoints.commit(model, {}, step=30)
    assert Checkpoints(folder).restore(model).step == 30


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"outputs": 4}, r"network/tiny/logits/kernel: expected float32 \[16, 4\], got float32 \[16, 3\]"),
        (
            {"momentum": 0.0},
            r"optimizer/sgd/tiny_logits_kernel_momentum: expected none, got float32 \[16, 3\]",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(folder, other, message):
    other = make_model(**other)
    before = other.get_weights()
    with pytest.raises(ConfigError, match=f"the checkpoint is of another model: {message}"):
        Checkpoints(folder).restore(other)
    for array, expected in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_another_format_is_refused_not_passed_over(model, folder, monkeypatch):
    written = module.FORMAT
    monkeypatch.setattr(module, "FORMAT", written + 1)
    message = f"expected a checkpoint of format {written + 1}, got format {written}: another version of kpipe"
    with pytest.raises(EnvironmentFault, match=message):
        Checkpoints(folder).restore(model)


def test_weights_alone_are_checked_too(model, folder):
    checkpoints = Checkpoints(folder)
    checkpoints.load_weights(10, model)
    assert {int(value) for variable in model.variables for value in variable.numpy().ravel()} == {10}
    assert int(model.optimizer.iterations.numpy()) == 99
    assert checkpoints.is_whole(10)
    flip(folder / "step-00000010" / "weights.npz")
    assert not checkpoints.is_whole(10)
    assert checkpoints.has(10) and not checkpoints.has(11)
    with pytest.raises(
        EnvironmentFault, match=r"step-00000010 is damaged \(the checksum of weights.npz differs\); give"
    ):
        checkpoints.load_weights(10, model)


# --- what can go wrong while it is written --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [0, -1])
def test_numbers_that_are_not_finite_are_never_committed(model, folder, bad, index):
    variable = [v for v in variables(model) if "float" in v.dtype][index]
    variable.assign(np.full(variable.shape, bad))
    with pytest.raises(Diverged, match="is no longer finite; no checkpoint was written, the one before it stays"):
        Checkpoints(folder).commit(model, {}, step=30)
    assert names(folder) == ["latest", "step-00000010", "step-00000020"]


def refuse(target, number, code):
    """`target` fails at its n-th call."""

    def refused(*arguments, **options):
        nonlocal number
        number -= 1
        if number == 0:
            raise OSError(code, os.strerror(code))
        return target(*arguments, **options)

    return refused


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS])
@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        (np, "savez", 1),
        (np, "savez", 2),
        (os, "fsync", 1),
        (os, "fsync", 4),
        (os, "fsync", 5),
        (os, "rename", 1),
        (os, "fsync", 6),
    ],
)
def test_a_disk_that_refuses_costs_nothing(model, folder, monkeypatch, code, owner, name, number):
    checkpoints = Checkpoints(folder)
    checkpoints.restore(model)
    fill(model, 30)
    monkeypatch.setattr(owner, name, refuse(getattr(owner, name), number, code))
    message = (
        rf"step-00000030: the checkpoint of [\d,]+ bytes cannot be written \({os.strerror(code)}\); [\d,]+ bytes are "
    )
    remedies = {errno.ENOSPC: "make room", errno.EFBIG: r"raise the limit for the size of a file \(ulimit -f\)"}
    remedy = remedies.get(code, "make sure that you may write there")
    message += f"free there. The one before, step-00000020, is whole: {remedy} and give"
    with pytest.raises(EnvironmentFault, match=message):
        checkpoints.commit(model, {}, step=30)
    monkeypatch.undo()
    assert names(folder) == ["latest", "step-00000010", "step-00000020"]
    assert Checkpoints(folder).restore(model).step == 20
    assert filled_with(model) == {20}
    checkpoints.commit(model, {}, step=30)
    assert Checkpoints(folder).restore(model).step == 30


def test_a_pointer_that_cannot_be_moved_leaves_the_checkpoint_before(model, folder, monkeypatch):
    checkpoints = Checkpoints(folder)
    checkpoints.restore(model)
    monkeypatch.setattr(os, "replace", refuse(os.replace, 1, errno.EIO))
    with pytest.raises(EnvironmentFault, match="Input/output error.*The one before, step-00000020, is whole"):
        checkpoints.commit(model, {}, step=30)
    assert Checkpoints(folder).restore(model).step == 20


class Killed(BaseException):
    """Nobody catches this, as nobody sees a second Ctrl-C coming."""


@pytest.mark.parametrize(
    ("name", "number"), [*(("fsync", n) for n in range(1, 8)), *(("rename", n) for n in (1, 2, 3)), ("replace", 1)]
)
@pytest.mark.parametrize("before", [True, False])
def test_an_exception_anywhere_in_a_commit_leaves_one_that_is_whole(model, folder, monkeypatch, name, number, before):
    checkpoints = Checkpoints(folder)
    checkpoints.restore(model)
    fill(model, 30)
    real = getattr(os, name)

    def killed(*arguments, **options):
        nonlocal number
        number -= 1
        if number == 0 and before:
            raise Killed
        real(*arguments, **options)
        if number == 0:
            raise Killed

    monkeypatch.setattr(os, name, killed)
    with pytest.raises(Killed) if name != "rename" or number == 1 else contextlib.nullcontext():
        checkpoints.commit(model, {"at": 30}, step=30, best_steps=[10])
    monkeypatch.undo()
    fill(model, 99)
    restored = Checkpoints(folder).restore(model)
    assert restored.state == {"at": restored.step}
    assert filled_with(model) == {restored.step}
    assert restored.step == saved_step(folder.parent) in (20, 30)
    assert not [path for path in folder.iterdir() if path.name.startswith(".step")]


def test_the_first_checkpoint_that_does_not_fit_says_that_there_was_none_before(model, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", refuse(np.savez, 1, errno.ENOSPC))
    with pytest.raises(EnvironmentFault, match="There was none before: make room and give the same command again"):
        Checkpoints(tmp_path / "checkpoints").commit(model, {}, step=1)


LIMITED = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_checkpoints import Checkpoints, EnvironmentFault, fill, make_model
model, checkpoints = make_model(), Checkpoints({folder!r})
checkpoints.restore(model)
fill(model, 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    checkpoints.commit(model, {{}}, step=30)
except EnvironmentFault as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system knows no such limit")
def test_a_limit_of_the_size_of_files_costs_nothing(model, folder):
    script = LIMITED.format(tests=os.path.dirname(__file__), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "step-00000030: the checkpoint of " in done.stdout
    assert "cannot be written (File too large)" in done.stdout
    assert names(folder) == ["latest", "step-00000010", "step-00000020"]
    assert Checkpoints(folder).restore(model).step == 20


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system does not tell which file is flushed")
def test_everything_is_on_the_disk_before_it_gets_its_name(model, tmp_path, monkeypatch):
    calls = []

    def note(owner, name, describe):
        real = getattr(owner, name)

        def noted(*arguments, **options):
            calls.append((name, describe(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)

    note(os, "fsync", lambda descriptor: os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
    note(os, "rename", lambda source, target: target.name)
    note(os, "replace", lambda source, target: target.name)
    Checkpoints(tmp_path / "checkpoints").commit(model, {}, step=1)
    first = [("fsync", folder.name) for folder in (tmp_path, *tmp_path.parents[:2])]  # the folder itself is new
    assert calls == first + [
        ("fsync", "weights.npz"),
        ("fsync", "training.npz"),
        ("fsync", "state.json"),
        ("fsync", "manifest.json"),
        ("fsync", ".latest.part"),
        ("fsync", ".step-00000001.part"),
        ("rename", "step-00000001"),
        ("replace", "latest"),
        ("fsync", "checkpoints"),
    ]


def test_a_system_without_flushing_of_directories_saves_too(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CAN_SYNC_DIRECTORIES", False)
    monkeypatch.setattr(os, "open", None)
    Checkpoints(tmp_path / "checkpoints").commit(model, {}, step=1)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "checkpoints").restore(model).step == 1


def test_the_estimate_of_the_disk_is_what_the_files_take(model, folder):
    need = estimate_disk(model, model.optimizer.variables, keep=2)
    taken = sum(file.stat().st_size for file in (folder / "step-00000020").glob("*.npz"))
    assert need.checkpoint <= taken <= need.checkpoint + 6_000  # the names and headers of the arrays
    weights = 4 * (16 * 3 + 3) + 2 * 8  # kernel and bias, and two words of dropout's seed
    assert need.most == 4 * need.checkpoint + weights
    assert need.finished == need.checkpoint + weights
    assert estimate_disk(model, model.optimizer.variables, keep=2, keep_last=False).finished == weights
