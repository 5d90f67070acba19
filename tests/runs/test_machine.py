"""What is resolved for a machine: precision, determinism, compilation."""

import json

import pytest
import yaml
from tiny_runs import TINY, arrays_of, only_run

from kpipe.config.schema import Experiment
from kpipe.errors import ConfigError
from kpipe.runs import machine
from kpipe.runs.directory import Run
from kpipe.runs.machine import check_precision, resolve_auto
from kpipe.training import device, precision

EXPERIMENT = {"name": "tiny", **yaml.safe_load(TINY.replace("precision: float32, ", ""))}


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """Pretend a machine: `pretend(flags="avx2")` or `pretend(capability=(9, 0))`."""

    def pretend(*, flags="avx512_bf16", capability=None, compiles=True):
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
        monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(precision, "gpu_capability", lambda: capability)
        monkeypatch.setattr(machine, "gpu_capability", lambda: capability)
        monkeypatch.setattr(machine, "can_compile", lambda: compiles)

    return pretend


def resolve(run=None, **training):
    return resolve_auto(Experiment.model_validate({**EXPERIMENT, "training": training}), run).chosen


def test_why_a_precision_is_what_it_is(pretend, tmp_path):
    pretend()
    assert resolve().precision_reason == "auto: this CPU multiplies bfloat16"
    assert resolve(precision="float32").precision_reason == "as training.precision says"
    before = {"precision": "float32", "deterministic": True}
    assert resolve(Run(tmp_path, resumed=True, resolved=before)).precision_reason == "as the run began"
    repeated = Experiment.model_validate({**EXPERIMENT, "chosen": before})
    assert resolve_auto(repeated).chosen.precision_reason == "as in the run of this file"
    pretend(capability=(8, 6))
    assert resolve().precision_reason == "auto: compute capability 8.6"


@pytest.mark.parametrize(
    ("pretended", "training", "deterministic", "xla"),
    [
        ({}, {}, True, False),
        ({}, {"xla": "on"}, False, True),
        ({}, {"xla": "on", "deterministic": True}, True, True),
        ({"capability": (8, 0)}, {}, False, True),
        ({"capability": (8, 0)}, {"deterministic": True}, True, False),
        ({"capability": (8, 0)}, {"xla": "off"}, False, False),
        ({"capability": (8, 0), "compiles": False}, {}, False, False),
        ({"capability": (8, 0), "compiles": False}, {"xla": "on"}, False, True),
    ],
)
def test_xla_and_determinism_on_cpu_and_gpu(pretend, pretended, training, deterministic, xla):
    pretend(**pretended)
    resolved = resolve(**training)
    assert (resolved.deterministic, resolved.xla) == (deterministic, xla)


def test_a_resumed_run_is_compiled_as_it_was(pretend, tmp_path):
    pretend(capability=(8, 0))
    before = {"precision": "float32", "deterministic": False, "xla": False}
    assert not resolve(Run(tmp_path, resumed=True, resolved=before)).xla
    assert resolve(Run(tmp_path, resumed=True, resolved=before | {"xla": True})).xla
    for training in ({"deterministic": True}, {"distribution": "mirrored"}):  # asked for now, and impossible with XLA
        assert not resolve(Run(tmp_path, resumed=True, resolved=before | {"xla": True}), **training).xla
    del before["xla"]  # of a version that never compiled
    assert not resolve(Run(tmp_path, resumed=True, resolved=before)).xla


def test_a_run_in_float16_is_not_resumed_without_a_gpu(pretend, tmp_path):
    pretend()
    before = {"precision": "mixed_float16", "deterministic": False, "xla": False}
    with pytest.raises(
        ConfigError,
        match="expected a GPU, since the run began in mixed_float16 on one, got none. Make one visible, or start "
        "another run with new=True",
    ):
        resolve(Run(tmp_path, resumed=True, resolved=before))
    with pytest.raises(
        ConfigError,
        match="^chosen.precision: expected a GPU, .* Make one visible, or give training.precision=float32$",
    ):
        resolve_auto(Experiment.model_validate({**EXPERIMENT, "chosen": before}))


@pytest.mark.parametrize(("error", "said"), [(0.34, "that differ by 34 %"), (float("inf"), "that are not finite")])
def test_a_precision_that_fails_is_replaced_or_refused(pretend, monkeypatch, error, said):
    pretend()
    monkeypatch.setattr(machine, "measure_error", lambda model: error)
    automatic = resolve_auto(Experiment.model_validate(EXPERIMENT))
    replaced, note = check_precision(automatic, None)
    assert replaced.chosen.precision == "float32"
    assert replaced.chosen.precision_reason == f"auto: its logits in mixed_bfloat16 are some {said}"
    assert note == f"in mixed_bfloat16, the first logits are some {said}, against float32; float32 is used instead"
    told = resolve_auto(Experiment.model_validate({**EXPERIMENT, "training": {"precision": "mixed_bfloat16"}}))
    with pytest.raises(
        ConfigError,
        match="training.precision: expected logits in mixed_bfloat16 within 25 % of those in float32, got some "
        f"{said}. Use training.precision=float32",
    ):
        check_precision(told, None)
    float32 = resolve_auto(Experiment.model_validate({**EXPERIMENT, "training": {"precision": "float32"}}))
    assert check_precision(float32, None) == (float32, None)


@pytest.mark.slow
def test_a_run_whose_precision_fails_is_one_in_float32(pretend, kpipe, experiment, logs, monkeypatch):
    kpipe("run", experiment)  # in float32
    pretend()
    monkeypatch.setattr(machine, "measure_error", lambda model: 1.0)
    overrides = ("training.precision=auto", "name=auto")
    code, out, _ = kpipe("run", experiment, *overrides)
    assert code == 0
    assert "float32 (auto: its logits in mixed_bfloat16 are some that differ by 100 %)" in " ".join(out.split())
    run = only_run(logs, "auto")
    environment = json.loads((run / "environment.json").read_text())
    assert environment["precision"] == "float32"
    assert environment["precision_reason"] == "auto: its logits in mixed_bfloat16 are some that differ by 100 %"
    assert yaml.safe_load((run / "config.yaml").read_text())["chosen"]["precision"] == "float32"
    expected = arrays_of(only_run(logs))
    for name, array in arrays_of(run).items():
        assert array.tobytes() == expected[name].tobytes(), name
    code, _, err = kpipe("run", experiment, "training.precision=mixed_bfloat16", "name=told")
    assert code == 2
    assert "got some that differ by 100 %. Use training.precision=float32" in err


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["auto", "mixed_bfloat16", "mixed_float16"])
def test_a_gpu_that_is_hidden(start, experiment, logs, asked):
    """Each precision is used, replaced or refused as it is configured."""
    process = start("run", experiment, f"training.precision={asked}", CUDA_VISIBLE_DEVICES="-1")
    if asked == "mixed_float16":
        assert process.wait() == 2
        assert "training.precision: mixed_float16 needs a GPU" in process.err
        return
    assert process.wait() == 0
    found = json.loads((only_run(logs) / "environment.json").read_text())
    assert found["device"].startswith("CPU")
    expected = precision._fastest_on_cpu() if asked == "auto" else asked
    reason = f"auto: {precision.explain_auto()}" if asked == "auto" else "as training.precision says"
    assert (found["precision"], found["precision_reason"]) == (expected, reason)
    assert f"{expected} ({reason})" in " ".join(process.out.split())


def test_memory_of_gpus_grows(monkeypatch, pretend):
    pretend()
    grown = []
    monkeypatch.setattr(device.tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    experimental = device.tf.config.experimental
    monkeypatch.setattr(experimental, "set_memory_growth", lambda gpu, on: grown.append((gpu, on)))
    resolve(precision="float32", xla="off", deterministic=False)
    assert grown == [("a", True), ("b", True)]

    def too_late(gpu, on):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(experimental, "set_memory_growth", too_late)
    device.grow_gpu_memory()
