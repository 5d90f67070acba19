"""What is said of the machine."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from kpipe import host
from kpipe.runs import environment
from kpipe.training import device


@pytest.mark.parametrize(
    ("meminfo", "limit", "stat", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    2000 kB\n", None, None, 2_048_000),
        ("MemAvailable:    2000 kB\n", "max\n", "anon 5\n", 2_048_000),
        ("MemAvailable:    2000 kB\n", "1000000\n", "file 9\nanon 300000\n", 700_000),
        ("MemAvailable:    2000 kB\n", "1000\n", "anon 300000\n", 0),
        ("MemAvailable:    2000 kB\n", "1000000\n", "file 9\n", 1_000_000),
        (None, None, None, None),
        ("MemTotal: 9 kB\n", None, None, None),
    ],
)
def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path, monkeypatch, meminfo, limit, stat, expected):
    monkeypatch.setattr(device.tf.config, "list_physical_devices", lambda kind: [])
    files = {"MEMINFO": ("meminfo", meminfo), "CONTAINER": ("memory.max", limit)}
    for name, text in (*files.values(), ("memory.stat", stat)):
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "CONTAINER", tmp_path)
    assert device.free_memory() == expected


def test_a_limit_of_the_address_space_counts_what_is_taken(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(device.tf.config, "list_physical_devices", lambda kind: [])
    with open("/proc/self/status") as status:
        taken = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmSize"))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (taken + 500_000_000, -1))
    assert device.free_memory() == pytest.approx(500_000_000, rel=0.1)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (taken // 2, -1))
    assert device.free_memory() == 0


def test_the_environment_says_what_the_last_bits_depend_on(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    found = environment.describe_environment()
    assert found["versions"]["tensorflow"] == tf.__version__
    assert found["onednn"] == "0"
    assert found["threads"][0] == tf.config.threading.get_intra_op_parallelism_threads()
    assert set(found["git"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}


def test_outside_a_checkout_there_is_no_commit(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment.describe_environment()["git"] is None


def test_the_peak_of_the_memory(tmp_path, monkeypatch):
    assert 10**8 < host.peak_memory() < 10**12
    monkeypatch.setattr(host, "STATUS", tmp_path / "status")
    assert host.peak_memory() is None
    host.STATUS.write_text("VmPeak:\t 9 kB\nVmHWM:\t    2000 kB\n")
    assert host.peak_memory() == 2_048_000


def pretend_gpus(monkeypatch, *details):
    """Let TensorFlow see GPUs of which it says this."""
    config = device.tf.config
    gpus = [config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(len(details))]
    known = dict(zip(gpus, details, strict=True))
    monkeypatch.setattr(config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(config.experimental, "get_device_details", known.get)


def test_gpus_are_described(monkeypatch):
    pretend_gpus(monkeypatch, {"device_name": "NVIDIA T4", "compute_capability": (7, 5)}, {})
    assert device.describe_gpus() == [
        "NVIDIA T4, compute capability 7.5",
        "/physical_device:GPU:1, no compute capability known",
    ]
    assert device.describe_device() == "GPU NVIDIA T4 (1 of 2)"
    assert device.describe_device(2) == "GPU NVIDIA T4 (2 of 2)"


def test_what_tensorflow_was_built_for(monkeypatch):
    build = {"is_cuda_build": True, "cuda_version": "12.5.1", "cudnn_version": "9"}
    monkeypatch.setattr(device.tf.sysconfig, "get_build_info", lambda: build)
    assert device.describe_cuda() == "12.5.1, cuDNN 9"
    build["is_cuda_build"] = False
    assert device.describe_cuda() is None


def test_gpus_that_are_not_used_are_said(monkeypatch):
    pretend_gpus(monkeypatch, {}, {})
    assert device.gpu_hint() == (
        "1 of the 2 GPUs that TensorFlow sees trains. CUDA_VISIBLE_DEVICES says which are seen"
    )
    assert device.gpu_hint(used=2) is None
    pretend_gpus(monkeypatch)
    monkeypatch.setattr("kpipe.host.shutil.which", lambda name: "/usr/bin/nvidia-smi")
    assert device.gpu_hint().endswith('pip install -e ".[gpu]"')


def test_the_version_of_the_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "NVIDIA_DRIVER", tmp_path / "version")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC 12.2.0\n"
    )
    assert host.nvidia_driver_version() == "550.54.15"
    (tmp_path / "version").unlink()
    monkeypatch.setattr(host.subprocess, "run", lambda *arguments, **options: SimpleNamespace(stdout="551.86\n"))
    assert host.nvidia_driver_version() == "551.86"

    def missing(*arguments, **options):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(host.subprocess, "run", missing)
    assert host.nvidia_driver_version() is None
