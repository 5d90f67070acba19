import keras
import pytest

from kpipe.errors import ConfigError
from kpipe.training import precision
from kpipe.training.precision import precision_scope, resolve_precision


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend a machine: `machine(flags="avx2")` or `machine(capability=(9, 0))`."""

    def pretend(*, flags=None, capability=None):
        path = tmp_path / "cpuinfo"
        if flags is not None:
            path.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\nbugs\t\t: amx_bf16\n")
        monkeypatch.setattr(precision, "CPU_INFO", path)
        monkeypatch.setattr(precision, "gpu_capability", lambda: capability)

    return pretend


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        ("avx512_bf16", "mixed_bfloat16"),
        ("amx_tile amx_bf16", "mixed_bfloat16"),
        ("avx2 avx512f", "float32"),
        (None, "float32"),
    ],
)
def test_auto_on_a_cpu_follows_its_flags(machine, flags, policy):
    machine(flags=flags)
    assert resolve_precision("auto") == policy


@pytest.mark.parametrize(
    ("capability", "policy"),
    [
        ((9, 0), "mixed_bfloat16"),
        ((8, 0), "mixed_bfloat16"),
        ((7, 5), "mixed_float16"),
        ((6, 1), "float32"),
        ((0, 0), "float32"),
    ],
)
def test_auto_on_a_gpu_follows_its_compute_capability(machine, capability, policy):
    machine(flags="amx_bf16", capability=capability)
    assert resolve_precision("auto") == policy


def test_a_named_precision_is_taken_as_it_is(machine):
    machine(flags="")
    assert resolve_precision("mixed_bfloat16") == "mixed_bfloat16"
    assert resolve_precision("float32") == "float32"
    machine(capability=(7, 0))
    assert resolve_precision("mixed_float16") == "mixed_float16"


def test_float16_without_a_gpu_is_refused(machine):
    machine(flags="amx_bf16")
    with pytest.raises(ConfigError, match="a CPU is 40 to 270 times slower in it; use auto, mixed_bfloat16 or float32"):
        resolve_precision("mixed_float16")


def test_an_unknown_name_is_refused_with_the_nearest():
    message = "training.precision: expected a known name, got 'float3', did you mean 'float32'"
    with pytest.raises(ConfigError, match=message):
        resolve_precision("float3")


def test_the_weakest_gpu_counts(monkeypatch):
    details = {"a": {"compute_capability": (9, 0)}, "b": {"compute_capability": (7, 0)}, "c": {}}
    config = precision.tf.config
    monkeypatch.setattr(config.experimental, "get_device_details", details.get)
    for gpus, expected in (([], None), (["a"], (9, 0)), (["a", "b"], (7, 0)), (["a", "c"], (0, 0))):
        monkeypatch.setattr(config, "list_physical_devices", lambda kind, gpus=gpus: gpus)
        assert precision.gpu_capability() == expected


def test_layers_keep_the_policy_and_the_process_gets_its_own_back():
    before = keras.config.dtype_policy().name
    with pytest.raises(RuntimeError, match="stop"), precision_scope("mixed_bfloat16"):
        layer = keras.layers.Dense(1)
        raise RuntimeError("stop")
    assert layer.compute_dtype == "bfloat16"
    assert layer.variable_dtype == "float32"
    assert keras.config.dtype_policy().name == before
