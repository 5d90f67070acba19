"""kpipe in a notebook: the one in docs/ runs, the screen is readable, and Ctrl-C leaves the kernel alive."""

import contextlib
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"
TINY = """\
data: {source: synthetic, image_size: 16, batch_size: 8, synthetic: {classes: 2, images: 400}}
model: {name: lenet5}
training: {epochs: 500, checkpoint: {every: {steps: 20}}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder beside `experiments`, as docs/ is."""
    monkeypatch.setenv("KPIPE_LOGS", str(tmp_path / "logs"))
    (tmp_path / "experiments").symlink_to(DOCS.parent / "experiments")
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.slow
def test_the_notebook_runs(folder):
    notebook = nbformat.read(DOCS / "notebook.ipynb", 4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in codes)
    pytest.importorskip("onnxruntime", reason="the notebook exports to ONNX, with the extra `export`")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in codes for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    said = {cell.source.partition("\n")[0]: text_of(cell) for cell in codes}
    training = next(text for text in said.values() if "kpipe 0.1.0: quickstart" in text)
    rows = [line.split() for line in training.splitlines() if "/8 " in line]
    assert [row[0] for row in rows] == [f"{epoch}/8" for epoch in range(1, 9)]
    assert "% on 360 test images" in "".join(said.values())
    # What was shown while the training went on is gone, and was rich's own output.
    shown = [output for output in outputs if output.output_type == "display_data" and "image/png" not in output.data]
    assert shown and all(output.data["text/plain"] == "" for output in shown)


@contextlib.contextmanager
def kernel_in(folder):
    manager, client = start_new_kernel(cwd=str(folder))
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run_cell(client, code, until=None):
    """Run a cell; return its messages, as (type, content). `until`: called with each, True ends the reading."""
    sent, messages = client.execute(code, stop_on_error=False), []
    while True:
        message = client.get_iopub_msg(timeout=120)
        if message["parent_header"].get("msg_id") != sent:
            continue
        messages.append((message["msg_type"], message["content"]))
        if messages[-1] == ("status", {"execution_state": "idle"}) or (until and until(*messages[-1])):
            return messages


def printed(messages):
    return "".join(content["text"] for kind, content in messages if kind == "stream")


@pytest.mark.slow
def test_an_interrupted_training_leaves_the_kernel_alive_and_is_resumed(folder):
    (folder / "tiny.yaml").write_text(TINY)
    with kernel_in(folder) as (manager, client):
        run_cell(client, "import kpipe\nexperiment = kpipe.load_experiment('tiny.yaml')")
        shown = run_cell(client, "kpipe.train(experiment)", until=lambda kind, content: kind == "update_display_data")
        assert "run" in printed(shown)
        # The bars are rich's, as HTML and as text.
        bars = next(content["data"] for kind, content in shown if kind == "display_data")
        assert set(bars) == {"text/html", "text/plain"} and "%" in bars["text/plain"]
        time.sleep(3)
        manager.interrupt_kernel()
        while (message := client.get_iopub_msg(timeout=120))["msg_type"] != "error":
            pass
        said = "".join(message["content"]["traceback"])
        assert said.startswith("Interrupted: interrupted; the training is saved up to step ")
        assert said.endswith(". The same call resumes it.")
        step = int(said.split("step ")[1].split(".")[0].replace(",", ""))
        assert printed(run_cell(client, "print(6 * 7)")) == "42\n"
        ends = f"kpipe.train(kpipe.load_experiment('tiny.yaml'), kpipe.RunOptions(epochs={step // 40 + 2}))"
        again = printed(run_cell(client, ends))
        assert f"after step {step:,}" in again


@pytest.mark.slow
def test_a_mistake_is_a_message_and_no_traceback(folder):
    (folder / "tiny.yaml").write_text(TINY.replace("epochs", "epoch"))
    with kernel_in(folder) as (_, client):
        messages = run_cell(client, "import kpipe\nkpipe.load_experiment('tiny.yaml', {'model.nam': 'vgg16'})")
        [traceback] = [content["traceback"] for kind, content in messages if kind == "error"]
    assert traceback == [
        "ConfigError: tiny.yaml:3: training.epoch: unknown key, did you mean 'epochs'?\n"
        "overrides: model.nam: unknown key, did you mean 'name'?"
    ]
