"""What only a GPU can show: `pytest -m gpu`. Nothing else asks for one."""

import json

import pytest
import tensorflow as tf
import yaml
from tiny_runs import assert_same_run, only_run, records_of

from kpipe.errors import OutOfMemory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU"),
]
QUICKSTART = ("run", "experiments/quickstart.yaml")
STOPPED = ("kpipe.training.checkpoints", None, "_write", 3, 9)  # killed while it writes the third checkpoint


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_the_quickstart_trains_on_the_gpu(kpipe, logs):
    assert kpipe(*QUICKSTART, "training.epochs=3")[0] == 0
    run = only_run(logs, "quickstart")
    found = json.loads((run / "environment.json").read_text())
    assert found["device"].startswith("GPU")
    assert not found["deterministic"]
    assert json.loads((run / "summary.json").read_text())["test"]["accuracy"] > 0.9
    assert tf.config.experimental.get_memory_info("GPU:0")["peak"] > 0


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_deterministic_run_is_resumed_to_the_last_bit(start, logs, precision):
    """In processes of their own: determinism cannot be switched off again."""
    options = ("training.deterministic=true", f"training.precision={precision}", "training.epochs=4")
    assert start(*QUICKSTART, *options, f"logs={logs}/whole").wait() == 0
    assert start(*QUICKSTART, *options, f"logs={logs}/resumed", blow=STOPPED).wait() == -9
    assert start(*QUICKSTART, *options, f"logs={logs}/resumed").wait() == 0
    assert_same_run(only_run(logs / "resumed", "quickstart"), only_run(logs / "whole", "quickstart"))


def test_float16_logs_its_loss_scale(kpipe, logs):
    assert kpipe(*QUICKSTART, "training.epochs=3", "training.precision=mixed_float16")[0] == 0
    lines = [record for record in records_of(only_run(logs, "quickstart")) if record["span"] == "steps"]
    assert all(line["loss_scale"] >= 1 and line["skipped_steps"] < 50 for line in lines)


def test_a_compiled_step_learns_what_one_that_is_not_does(kpipe, logs):
    losses = {}
    for xla in ("on", "off"):
        options = (f"name={xla}", f"training.xla={xla}", "training.precision=float32", "training.epochs=1")
        assert kpipe(*QUICKSTART, *options)[0] == 0
        run = only_run(logs, xla)
        assert yaml.safe_load((run / "config.yaml").read_text())["chosen"]["xla"] == (xla == "on")
        losses[xla] = json.loads((run / "summary.json").read_text())["validation"]["loss"]
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-2)


def test_too_large_a_batch_is_said(kpipe, monkeypatch):
    monkeypatch.setattr("kpipe.assembly.check_memory", lambda *arguments: None)
    options = ("data.source=synthetic", "data.image_size=512", "data.batch_size=4096", "data.synthetic.images=8192")
    code, _, err = kpipe(*QUICKSTART, "model.name=vgg16", *options)
    assert code == OutOfMemory.exit_code
    assert "out of memory with data.batch_size=4096" in err
    assert "data.batch_size=" in err.partition("; ")[2]


def test_memory_grows(kpipe):
    kpipe("doctor")
    for gpu in tf.config.list_physical_devices("GPU"):
        assert tf.config.experimental.get_memory_growth(gpu)


def test_doctor_trains_on_it(kpipe):
    code, out, _ = kpipe("doctor")
    assert code == 0
    assert "NVIDIA driver" in out and "compute capability" in out and "cuDNN" in out
    assert "trained on the GPU" in " ".join(out.split())
