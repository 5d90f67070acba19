import keras
import numpy as np
import pytest

from kpipe.catalog.networks import MODELS
from kpipe.errors import ConfigError
from kpipe.models.building import build_model
from kpipe.training import precision
from kpipe.training.precision import LARGEST_ERROR, explain_auto, measure_error, precision_scope, resolve_precision


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


@pytest.mark.parametrize(
    ("pretended", "reason"),
    [
        ({"flags": "avx512_bf16"}, "this CPU multiplies bfloat16"),
        ({"flags": "avx2"}, "this CPU does not multiply bfloat16"),
        ({"capability": (7, 5)}, "compute capability 7.5"),
        ({"capability": (0, 0)}, "the GPU does not say its compute capability"),
    ],
)
def test_why_auto_is_what_it_is(machine, pretended, reason):
    machine(**pretended)
    assert explain_auto() == reason


# --- against float32 --------------------------------------------------------------------------------


def make_network(policy, *, factor=1.0):
    """Multiply images by a factor, and back."""
    with precision_scope(policy):
        images = keras.Input((4, 4, 1))
        x = keras.layers.Dropout(0.5)(keras.layers.Rescaling(factor)(images))
        x = keras.layers.Rescaling(1 / factor, dtype="float32")(keras.layers.BatchNormalization()(x))
        return keras.Model(images, keras.layers.Dense(3, dtype="float32")(keras.layers.Flatten()(x)))


def test_nothing_of_a_network_changes_while_it_is_measured():
    model = make_network("mixed_bfloat16")
    weights, dtypes = model.get_weights(), [layer.compute_dtype for layer in model.layers]
    seed = model.layers[2].seed_generator.state.numpy()
    assert 0 < measure_error(model) < 0.02
    assert measure_error(model) == measure_error(model)
    assert [layer.compute_dtype for layer in model.layers] == dtypes
    assert "bfloat16" in dtypes
    assert model.layers[2].rate == 0.5
    np.testing.assert_array_equal(model.layers[2].seed_generator.state.numpy(), seed)
    for weight, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, before)


def test_numbers_too_large_for_float16_are_found():
    assert measure_error(make_network("mixed_float16", factor=1e4)) == float("inf")
    assert measure_error(make_network("mixed_bfloat16", factor=1e4)) < LARGEST_ERROR


def test_numbers_too_small_for_float16_are_found():
    assert measure_error(make_network("mixed_float16", factor=1e-12)) == pytest.approx(1)


def test_batch_normalization_counts_as_it_is_in_training():
    """Before the first step it divides by nothing in inference, and numbers of this size would be lost."""

    with precision_scope("mixed_float16"):
        images = keras.Input((4, 4, 1))
        x = keras.layers.BatchNormalization(epsilon=1e-14)(keras.layers.Rescaling(1e-7)(images))
        x = keras.layers.Rescaling(1e-5)(x)
        model = keras.Model(images, keras.layers.Dense(3, dtype="float32")(keras.layers.Flatten()(x)))
    assert measure_error(model) < LARGEST_ERROR


def test_a_network_that_fails_in_float32_too_has_no_error_of_its_precision():
    assert measure_error(make_network("mixed_bfloat16", factor=3e38)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "most"), [("mixed_bfloat16", 0.02), ("mixed_float16", 0.08)])
def test_the_networks_agree_with_themselves_in_float32(policy, most):
    cases = [(name, {}) for name in MODELS if name not in ("go_policy", "speech_cnn", "text_cnn")]
    cases += [("googlenet", {"variant": "batch_norm"}), ("vgg19", {"batch_norm": True})]
    for name, options in cases:
        with precision_scope(policy):
            model = build_model(name, options, input_shape=(64, 64, 3), classes=10)
        assert measure_error(model) < most, name
