"""What a run leaves, read in a browser: its pages in TensorBoard, and report.html."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.wait import WebDriverWait
from tiny_runs import records_of, train_once

pytestmark = pytest.mark.slow

TINY = """\
data: {source: synthetic, image_size: 16, batch_size: 16, synthetic: {images: 400}}
model: {name: lenet5}
training: {epochs: 2, precision: float32, log_every: {steps: 4}, learning_rate: {schedule: constant, peak: 0.001}}
"""
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --window-size=1400,1800"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("expected chromium and chromedriver; apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as browser:
        yield browser


@pytest.fixture(scope="module")
def run(browser, tmp_path_factory):
    return train_once(tmp_path_factory.mktemp("run"), TINY)


@pytest.fixture(scope="module")
def summary(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def tensorboard(browser, run):
    """The address of a TensorBoard that has read the run."""
    command = [sys.executable, "-m", "tensorboard.main", "--host=127.0.0.1", "--port=0", f"--logdir={run.parents[1]}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/", said)):
                line = server.stderr.readline()
                assert line, said
                said += line
            address = found[0]

            def count_runs(browser):
                browser.get(address + "data/plugin/scalars/tags")
                return browser.page_source.count(run.name)

            wait_until_equal(browser, count_runs, 3)
            yield address
        finally:
            server.terminate()


@pytest.fixture
def read_page(browser, tensorboard):
    """Open a page of TensorBoard, and wait until it shows some texts."""

    def read_page(name, *texts):
        browser.get("about:blank")  # an address that differs by its fragment alone is not loaded anew
        browser.get(f"{tensorboard}#{name}")
        wait_for_texts(browser, *texts)

    return read_page


def wait_until_equal(browser, function, expected):
    with suppress(TimeoutException):
        WebDriverWait(browser, 20).until(lambda browser: function(browser) == expected)
    assert function(browser) == expected


def wait_for_texts(browser, *texts):
    def missing(browser):
        shown = text_of(browser)
        return [text for text in texts if text not in shown]

    wait_until_equal(browser, missing, [])


def look(browser, expression):
    """Return the value of a JavaScript expression of `shown`, the visible elements, in shadow roots as well."""
    return browser.execute_script(f"""
        const shown = [];
        (function visit(root) {{
          for (const element of root.querySelectorAll("*")) {{
            if (element.checkVisibility()) shown.push(element);
            if (element.shadowRoot) visit(element.shadowRoot);
          }}
        }})(document);
        return {expression};""")


def text_of(browser):
    own = 'shown.map(each => [...each.childNodes].map(n => n.nodeType == Node.TEXT_NODE ? n.data : "").join(""))'
    return " ".join(" ".join(look(browser, own)).split())


def loaded_images(browser):
    """Return for each image whether it is loaded."""
    return look(browser, "shown.filter(each => each.tagName == 'IMG').map(each => each.naturalWidth > 0)")


def test_scalars(read_page, run):
    [*_, last] = [record for record in records_of(run) if record["span"] != "epoch" and record["split"] == "train"]
    tags = ("loss", "accuracy", "learning_rate", "images_per_second", "epoch_loss", "epoch_accuracy")
    read_page("timeseries", *(f" {tag} " for tag in tags), f"tiny/{run.name}/train", f"{last['accuracy']:.4}")


def test_training_and_validation_share_a_chart(read_page, browser, run):
    read_page("custom_scalars", "loss", "accuracy", "learning rate", "images per second", "Matches (2)")
    look(browser, "shown.filter(each => each.matches('.toggle-matches-button')).forEach(each => each.click())")
    wait_for_texts(browser, *(f"epoch_loss (tiny/{run.name}/{split})" for split in ("train", "validation")))


def test_figures(read_page, browser, run):
    figures = ["training_batch", *(path.stem for path in (run / "figures").iterdir())]
    read_page("images", f"tiny/{run.name}", *figures)
    closed = "button.heading:not([open-button])"
    look(browser, f"shown.filter(each => each.matches('{closed}')).forEach(each => each.click())")
    wait_until_equal(browser, loaded_images, [True] * len(figures))


def test_graph(read_page, browser):
    read_page("graphs", "Main Graph", "?×16×16×3", " lenet5")
    nodes = look(browser, "shown.filter(each => each.matches('g.node')).map(each => each.dataset.name)")
    assert {"images", "Identity"} < set(nodes)


def test_hparams(read_page, run, summary):
    settings = ("network lenet5", "optimizer adam", "precision float32", "schedule constant")
    accuracies = [f"{summary[split]['accuracy']:.5f}" for split in ("validation", "test")]
    read_page("hparams", run.name, *settings, *accuracies)


def test_config(read_page):
    read_page("text", "config", "image_size: 16", "name: lenet5", "peak: 0.001")


def test_precision_recall_curves(read_page, run, summary):
    classes = [f"precision_recall/class_{k}" for k in range(10)]
    read_page("pr_curves", f"tiny/{run.name} is at step {summary['steps']}", *classes)


@pytest.mark.parametrize("width, height", [(1400, 1800), (390, 844)], ids=["desktop", "phone"])
def test_report(browser, run, summary, width, height):
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get("about:blank")
    browser.get_log("performance")  # the requests until now
    page = (run / "report.html").as_uri()
    browser.get(page)
    text = text_of(browser)
    for expected in (f"{summary['test']['accuracy']:.2%}".replace("%", " %"), "class_9", "peak: 0.001", "kpipe run"):
        assert expected in text
    assert loaded_images(browser) == [True] * len([*(run / "figures").iterdir()])
    assert browser.execute_script("return innerWidth") == width
    wider = "shown.filter(each => each.clientWidth && each.scrollWidth > each.clientWidth).length"
    assert not look(browser, wider)
    figure, tap = "document.querySelector('figure')", "document.querySelector('.zoom').click()"
    browser.execute_script(tap)
    assert browser.execute_script(f"return {figure}.scrollWidth > {figure}.clientWidth") == (width < 600)
    assert not look(browser, "shown.filter(each => each.matches('html') && each.scrollWidth > each.clientWidth).length")
    browser.execute_script(tap)
    assert not look(browser, wider)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert requests[0] == page and all(url.startswith("data:") for url in requests[1:])
