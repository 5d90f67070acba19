"""report.html: what it says is what the run's files say, and it needs nothing but itself."""

import json
import re

import pytest
from image_sets import write_image
from tiny_runs import train_once

from kpipe.config.loading import load_experiment
from kpipe.evaluation.page import describe_environment, write_page
from kpipe.evaluation.report import FIGURES

NAMES = ("<b>ants", "bees & wasps", "猫")
TINY = """\
data: {source: "folder:photos", image_size: 16, batch_size: 4}
model: {name: lenet5}
training: {epochs: 1}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for name in NAMES:
        for number in range(8):
            write_image(folder / "photos" / name / f"{number}.png", size=(20, 24), channels=3)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return train_once(folder, TINY)


def test_the_page_of_a_run(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    summary = json.loads((run / "summary.json").read_text())
    for name in ("validation", "test"):
        assert f"{100 * summary[name]['accuracy']:.2f} %" in page and f"{summary[name]['loss']:.4f}" in page
    assert f"{summary['parameters']:,} parameters" in page
    assert "&lt;b&gt;ants, bees &amp; wasps, 猫" in page and "<b>" not in page
    assert [title for title in re.findall("<h2>(.*)</h2>", page) if title in FIGURES.values()] == [*FIGURES.values()]
    assert "mixed_bfloat16" in page or "float32" in page
    config = (run / "config.yaml").read_text().rstrip()
    assert config.splitlines()[0] in page


def test_it_counts_the_images_of_all_splits(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    held_out = [json.loads((run / "summary.json").read_text())[name]["images"] for name in ("validation", "test")]
    counts = "{} train, {} validation, {} test".format(24 - sum(held_out), *held_out)
    assert f"<th>images</th><td>{counts}</td>" in page
    row = re.search(r"<tr><td>train, during the best epoch</td>.*", page)[0]
    assert re.findall(r'<td class="number">([^<]*)</td>', row)[0] == "16"  # four whole batches


@pytest.mark.parametrize(("schedule", "extends"), [("cosine", False), ("constant", True)])
def test_its_command_to_train_longer_is_one_that_works(run, tmp_path, schedule, extends):
    for name in ("config.yaml", "classes.txt", "environment.json", "summary.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    loaded = load_experiment(run / "config.yaml", [f"training.learning_rate.schedule={schedule}"])
    [command] = re.findall("# train longer\n(.*)", write_page(tmp_path, loaded.experiment).read_text())
    what = f"--resume {tmp_path}" if extends else f"{tmp_path}/config.yaml"
    assert command == f"kpipe run {what} training.epochs=2"


def test_the_environment_is_in_words(run):
    recorded = json.loads((run / "environment.json").read_text())
    git = {"commit": "b4cffde1", "dirty": True}
    command = ["/x/kpipe/__main__.py", "run", "tiny.yaml", "data.source=folder:my photos"]
    again = {**recorded, "git": git, "command": ["/usr/bin/kpipe", "run", "tiny.yaml"], "device": "1 GPU"}
    rows = describe_environment({**recorded, "git": git, "command": command, "threads": [0, 2], "resumed": [again]})
    assert rows["command"] == "kpipe run tiny.yaml 'data.source=folder:my photos'"
    assert rows["versions"].startswith("Python 3.") and "TensorFlow 2." in rows["versions"]
    assert rows["threads"] == "as many as TensorFlow chooses, on 2 processors"
    assert rows["code"] == "b4cffde1, with changes that were not committed"
    assert rows["deterministic"] in ("yes", "no")
    assert rows["resumed (1)"].startswith("kpipe run tiny.yaml; device: 1 GPU")
    assert describe_environment({"command": ["my script.py", "1"]}) == {"command": "'my script.py' 1"}
    assert describe_environment({}) == {}


def test_it_needs_no_network_and_no_other_file(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'src="([^;]*);', page)) == {"data:image/webp"}
    assert not re.search(r"https?://|<link|<script|@import", page)
    assert len(page) < 3_000_000


def test_a_run_without_held_out_images_or_figures_has_a_page(run, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    for name in ("config.yaml", "classes.txt", "environment.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "summary.json").write_text(
        json.dumps({k: v for k, v in summary.items() if k not in ("validation", "test")})
    )
    page = write_page(tmp_path, load_experiment(run / "config.yaml").experiment).read_text()
    assert "<img" not in page and "train, during the best epoch" in page
