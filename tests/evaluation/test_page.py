"""report.html: what it says is what the run's files say, and it needs nothing but itself."""

import json
import re

import pytest
from image_sets import write_image
from tiny_runs import train_once

from kpipe.config.loading import load_experiment
from kpipe.evaluation.page import write_page
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
    assert config.splitlines()[0] in page and "kpipe run --resume " in page


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
    assert "held out</th><td>none" in page and "<img" not in page and "train, during the best epoch" in page
