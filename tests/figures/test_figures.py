import itertools
import math
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from kpipe import figures
from kpipe.figures import confusion, image_grids, style

LONG_NAMES = [f"a rather long class name, number {number}" for number in range(10)]
SIMILAR_NAMES = [f"class number {number} with a rather long name" for number in range(34)]


def png_size(path):
    """Width and height in pixels, and dots per meter, from the header of a PNG file."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    start = content.index(b"pHYs") + 4
    return struct.unpack(">II", content[16:24]), struct.unpack(">I", content[start : start + 4])[0]


def assert_saved(figure, folder):
    """Check for a PNG file of 150 dpi and a size that fits a screen."""
    path = folder / "figure.png"
    figures.save_figure(figure, path)
    (width, height), dots_per_meter = png_size(path)
    assert 300 < width < 4000
    assert 300 < height < 4000
    assert dots_per_meter == round(150 / 0.0254)


def record(step, split, span, loss, accuracy):
    return {"step": step, "epoch": 1, "split": split, "span": span, "loss": loss, "accuracy": accuracy}


ONE_EPOCH = [
    record(5, "train", "steps", 2.5, 0.125),
    record(10, "train", "steps", 1.5, 0.375),
    record(10, "train", "epoch", 2.0, 0.25),
    record(10, "validation", "epoch", 1.75, 0.5),
    record(10, "test", "epoch", 9.0, 0.9),
]


def drawn_lines(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


# Learning curves.

SINCE_THE_LINE = "train, mean of each log line"


def test_curves_hold_the_records():
    loss, accuracy = figures.draw_curves(ONE_EPOCH).axes
    assert loss.get_title("left") == "Loss"
    assert drawn_lines(loss) == {
        SINCE_THE_LINE: [[5, 2.5], [10, 1.5]],
        "train, mean of each epoch": [[10, 2.0]],
        "validation": [[10, 1.75]],
    }
    assert accuracy.get_title("left") == "Accuracy"
    assert drawn_lines(accuracy)[SINCE_THE_LINE] == [[5, 0.125], [10, 0.375]]
    assert drawn_lines(accuracy)["validation"] == [[10, 0.5]]


def test_a_single_epoch_is_marked():
    loss, _ = figures.draw_curves(ONE_EPOCH).axes
    markers = {line.get_label(): line.get_marker() for line in loss.get_lines()}
    assert markers["train, mean of each epoch"] == markers["validation"] == "o"
    assert markers[SINCE_THE_LINE] == ""


def test_many_epochs_have_no_markers():
    records = [record(step, "validation", "epoch", 1.0, 0.5) for step in range(1, 41)]
    assert figures.draw_curves(records).axes[0].get_lines()[0].get_marker() == ""


def test_accuracy_has_no_room_above_one():
    _, accuracy = figures.draw_curves([record(10, "train", "epoch", 0.1, 1.0)]).axes
    assert 1 < accuracy.get_ylim()[1] < 1.01


def test_the_best_epoch_is_marked_if_it_was_validated():
    def marked(records, best_epoch):
        figure = figures.draw_curves(records, best_epoch=best_epoch)
        return [drawn_lines(axes).get(f"best epoch: {best_epoch}") for axes in figure.axes]

    later = [entry | {"step": entry["step"] + 10, "epoch": 2} for entry in ONE_EPOCH]
    assert marked(ONE_EPOCH + later, 1) == [[[10, 0], [10, 1]]] * 2
    assert marked(ONE_EPOCH + later, 2) == [[[20, 0], [20, 1]]] * 2
    assert marked([entry for entry in ONE_EPOCH if entry["split"] == "train"], 1) == [None, None]
    assert marked(ONE_EPOCH, 3) == [None, None]  # its lines are lost


@pytest.mark.parametrize(
    ("rates", "scale", "limits"),
    [
        ([0.1, 0.1, 0.1], "linear", (0, 0.11)),
        ([0.2, 0.1, 0.02], "linear", (0, 0.22)),
        ([0.1, 0.01, 0.002], "log", (0.002 / 1.3, None)),
        ([0.1, 0.05, 1e-9], "log", (1e-4 / 1.3, None)),
        ([0.0, 0.0, 0.0], "linear", (0, 1.1)),
    ],
    ids=["constant", "a decade", "more than a decade", "ends near zero", "zero"],
)
def test_the_learning_rate_has_a_panel(rates, scale, limits):
    records = [
        record(step, "train", "steps", 1.0, 0.5) | {"learning_rate": rate}
        for step, rate in zip((5, 10, 15), rates, strict=True)
    ]
    axes = figures.draw_curves(records).axes[2]
    assert axes.get_title("left") == "Learning rate"
    [line] = axes.get_lines()
    assert line.get_xydata().tolist() == [[5, rates[0]], [10, rates[1]], [15, rates[2]]]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert (low, limits[1] and high) == pytest.approx(limits)


@pytest.mark.parametrize(
    "records",
    [
        ONE_EPOCH,
        [],
        [{"step": 10, "epoch": 1, "split": "train", "span": "epoch", "loss": 1.0, "accuracy": None}],
        [record(step, "train", "steps", value, 0.1) for step, value in ((1, 2.0), (2, math.inf), (3, math.nan))],
        [record(1, "train", "steps", math.nan, math.nan)],
    ],
    ids=["one epoch", "no record", "no accuracy", "diverged", "only nan"],
)
def test_curves_are_saved(tmp_path, records):
    assert_saved(figures.draw_curves(records, best_epoch=1, caption="x: folder:caf" * 20), tmp_path)


def test_a_panel_without_values_is_left_out():
    [loss] = figures.draw_curves([{"step": 1, "epoch": 1, "split": "train", "span": "epoch", "loss": 1.0}]).axes
    assert loss.get_title("left") == "Loss"
    assert texts_of(figures.draw_curves([])) == ["none"]


# Searches.


def test_a_search_is_drawn_against_trials_and_time():
    figure = figures.draw_search([0.5, None, 0.4, 0.8, 0.7], [10, 20, 30, 40, 50], objective="val_accuracy")
    trials, seconds = figure.axes
    assert (trials.get_title("left"), seconds.get_xlabel()) == ("val_accuracy against trials", "seconds of training")
    nan = pytest.approx(math.nan, nan_ok=True)
    assert drawn_lines(trials)["a trial"] == [[1, 0.5], [2, nan], [3, 0.4], [4, 0.8], [5, 0.7]]
    assert drawn_lines(seconds)["the best so far"] == [[10, 0.5], [20, 0.5], [30, 0.5], [40, 0.8], [50, 0.8]]


def test_the_best_loss_is_the_smallest_and_a_hopeless_trial_presses_nothing_together():
    trials, minutes = figures.draw_search([0.5, 0.4, 0.6, 9.0], [100, 200, 300, 400], objective="val_loss").axes
    assert minutes.get_xlabel() == "minutes of training"
    assert [y for _, y in drawn_lines(trials)["the best so far"]] == [0.5, 0.4, 0.4, 0.4]
    # Four times as far from the best, 0.4, as the median, 0.55.
    assert drawn_lines(trials)["a trial, worse than drawn"][3] == [4, pytest.approx(1.0)]
    assert trials.get_ylim()[1] < 1.1


def test_worse_trials_are_at_the_worse_edge_even_where_most_are_the_best():
    accuracy, _ = figures.draw_search([0.8, 1.0, 1.0, 1.0, 0.3], [1, 2, 3, 4, 5], objective="val_accuracy").axes
    assert drawn_lines(accuracy)["a trial, worse than drawn"][4] == [5, pytest.approx(0.8)]
    accuracy, _ = figures.draw_search([1.0, 1.0, 1.0, 0.3], [1, 2, 3, 4], objective="val_accuracy").axes
    assert drawn_lines(accuracy)["a trial"][3] == [4, 0.3]  # nothing to press together


@pytest.mark.parametrize(("objective", "edge"), [("val_accuracy", 0), ("val_loss", 1)])
def test_failed_trials_are_crosses_at_the_worse_edge(objective, edge):
    trials, seconds = figures.draw_search([0.5, None, 0.4, None], [10, 20, 30, 40], objective=objective).axes
    assert drawn_lines(trials)["a failed trial"] == [[2, edge], [4, edge]]
    assert drawn_lines(seconds)["a failed trial"] == [[20, edge], [40, edge]]
    [cross] = [line for line in trials.get_lines() if line.get_label() == "a failed trial"]
    assert (cross.get_marker(), cross.get_transform()) == ("x", trials.get_xaxis_transform())
    assert "a failed trial" in [text.get_text() for text in trials.figure.legends[0].get_texts()]


@pytest.mark.parametrize("scores", [[], [None], [None, None], [0.5], [0.5, 0.5]])
def test_searches_are_saved(tmp_path, scores):
    assert_saved(figures.draw_search(scores, [0.0] * len(scores), objective="val_accuracy"), tmp_path)


PEAK = figures.SearchedKey("learning_rate.peak", [0.1, 0.01, 0.3, 0.02], is_log=True)
OPTIMIZER = figures.SearchedKey("optimizer.name", ["sgd", "adam", "sgd", "adam"], ["sgd", "rmsprop", "adam"])
MOMENTUM = figures.SearchedKey("optimizer.momentum", [0.5, None, 0.9, None])


def test_scores_are_drawn_against_each_key():
    figure = figures.draw_search_keys(
        [PEAK, OPTIMIZER, MOMENTUM], [0.5, 0.7, None, 0.8], objective="val_accuracy", best=3
    )
    peak, optimizer, momentum = figure.axes
    nan = pytest.approx(math.nan, nan_ok=True)
    assert [axes.get_title("left") for axes in figure.axes] == [
        "learning_rate.peak",
        "optimizer.name",
        "optimizer.momentum",
    ]
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear", "linear"]
    assert drawn_lines(peak) == {
        "a trial": [[0.1, 0.5], [0.01, 0.7], [0.3, nan], [0.02, 0.8]],
        "a failed trial": [[0.3, 0]],
        "the best trial": [[0.02, 0.8]],
    }
    assert [tick.get_text() for tick in optimizer.get_xticklabels()] == ["sgd", "rmsprop", "adam"]
    assert {tick.get_rotation() for tick in optimizer.get_xticklabels()} == {0}
    places = [x for x, _ in drawn_lines(optimizer)["a trial"]]
    assert [round(x) for x in places] == [0, 2, 0, 2] and len(set(places)) == 4
    # A key is drawn with the trials to which it applies.
    assert drawn_lines(momentum)["a trial"] == [[0.5, 0.5], [nan, 0.7], [0.9, nan], [nan, 0.8]]


def test_a_key_that_applies_to_no_trial_and_more_keys_than_fit_are_left_out():
    unused = figures.SearchedKey("unused", [None] * 4)
    figure = figures.draw_search_keys([unused, *[PEAK] * 14], [0.5] * 4, objective="val_loss")
    assert [axes.get_title("left") for axes in figure.axes] == ["learning_rate.peak"] * 12


@pytest.mark.parametrize("count", [1, 2, 9])
def test_long_names_of_choices_are_horizontal_and_do_not_overlap(tmp_path, count):
    names = [f"[translate, {{cutout: {{size: {size}}}}}, {'x' * 30}]" for size in range(8)]
    choices = figures.SearchedKey("data.augment", names[:4], names)
    figure = figures.draw_search_keys([PEAK] * (count - 1) + [choices], [0.5] * 4, objective="val_accuracy")
    figure.draw_without_rendering()
    boxes = [tick.get_window_extent() for tick in figure.axes[-1].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    inside, outside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 <= outside.x0 and outside.x1 <= inside.x1
    assert_saved(figure, tmp_path)


@pytest.mark.parametrize("scores", [[], [None], [0.5]])
def test_keys_of_few_trials_are_saved(tmp_path, scores):
    keys = [figures.SearchedKey("x", ["a"] * len(scores), ["a"]), figures.SearchedKey("y", [0.1] * len(scores))]
    assert_saved(figures.draw_search_keys(keys, scores, objective="val_loss"), tmp_path)


# Confusion matrix.


def test_confusion_matrix_counts_and_fractions():
    # Class 2 is never predicted, class 3 has no images.
    matrix = [[3, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    axes = figures.draw_confusion(np.array(matrix), ["a", "b", "c", "d"]).axes[0]
    cells = {(round(text.get_position()[1]), round(text.get_position()[0])): text for text in axes.texts}
    counts = [[int(cells[row, column].get_text()) for column in range(4)] for row in range(4)]
    assert counts == matrix
    fractions = [[0.75, 0.25, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(axes.images[0].get_array(), fractions)
    assert axes.get_title("left") == "Confusion matrix: 6 images, 66.7% correct"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert to_hex(cells[0, 0].get_color()) == "#ffffff"  # on dark blue


def test_twenty_classes_are_written_and_more_are_not():
    def draw(classes):
        return figures.draw_confusion(np.eye(classes, dtype=int), [f"c{i}" for i in range(classes)]).axes[0]

    few, many = draw(20), draw(30)
    assert len(few.texts) == 400
    assert not many.texts
    assert [tick.get_text() for tick in many.get_xticklabels()] == [f"c{label}" for label in range(30)]


def test_of_many_classes_the_most_frequent_confusions_are_drawn():
    counts = 5 * np.eye(1000, dtype=int)
    counts[3, 7], counts[7, 3], counts[500, 0] = 4, 2, 9
    axes = figures.draw_confusion(counts, [f"c{label}" for label in range(1000)]).axes[0]
    assert axes.get_title("left") == "The 3 most frequent confusions: 5,015 images, 15 wrong"
    pairs = ["c500 taken for c0", "c3 taken for c7", "c7 taken for c3"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == pairs
    assert [bar.get_width() for bar in axes.patches] == [9, 4, 2]
    assert [text.get_text() for text in axes.texts] == ["9 of 14", "4 of 9", "2 of 7"]
    assert axes.get_xlabel() == "images, and of how many of the true class"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    none = figures.draw_confusion(np.eye(31, dtype=int), list(map(str, range(31)))).axes[0]
    assert none.get_title("left") == "No confusions"


def test_the_accuracy_of_each_class_the_lowest_first():
    counts = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    axes = figures.draw_class_accuracy(counts, ["cat", "dog", "eel"]).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog"]
    assert [bar.get_width() for bar in axes.patches] == [0.75, 1.0]
    assert [text.get_text() for text in axes.texts] == ["n = 4", "n = 2"]
    assert axes.get_title("left") == "Accuracy of each class"
    assert axes.get_xlabel() == "accuracy (dotted line: all images, 83.3%)\nn = images per class"
    many = figures.draw_class_accuracy(np.eye(100, dtype=int), list(map(str, range(100)))).axes[0]
    assert many.get_title("left") == "The 40 classes with the lowest accuracy, of 100"
    assert len(many.patches) == 40


def test_where_accuracies_are_zero_the_title_says_so_and_large_classes_come_first():
    counts = np.roll(np.diag(1 + np.arange(50)), 1, axis=1)
    axes = figures.draw_class_accuracy(counts, list(map(str, range(50)))).axes[0]
    assert axes.get_title("left") == "50 of 50 classes have an accuracy of 0: the 40 with the most images"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(number) for number in range(49, 9, -1)]
    few = figures.draw_class_accuracy(counts[:3, :3], ["cat", "dog", "eel"]).axes[0]
    assert few.get_title("left") == "Accuracy of each class: all are 0"


@pytest.mark.parametrize("draw", [figures.draw_confusion, figures.draw_class_accuracy])
def test_only_drawn_classes_are_labeled(monkeypatch, draw):
    labeled = []
    labels = confusion.distinct_labels
    monkeypatch.setattr(confusion, "distinct_labels", lambda names, most: labels(labeled.append(names) or names, most))
    counts = np.roll(np.eye(1000, dtype=int), 1, axis=1)
    draw(counts, [f"class {number}" for number in range(1000)])
    assert [len(names) for names in labeled] == [41 if draw is figures.draw_confusion else 40]


def test_long_class_names_are_shortened_at_the_ticks():
    axes = figures.draw_confusion(np.eye(10, dtype=int), LONG_NAMES).axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == [f"a rather lon…e, number {number}" for number in range(10)]


def test_names_that_differ_in_the_middle_stay_different():
    axes = figures.draw_confusion(np.roll(np.eye(34, dtype=int), 1, axis=1), SIMILAR_NAMES).axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names[:2] == [
        "class number 0…long name taken for class number 1…long name",
        "class number 1…long name taken for class number 2…long name",
    ]
    assert len(set(names)) == 34


def test_names_written_from_right_to_left_reorder_nothing():
    counts = np.roll(np.eye(31, dtype=int), 1, axis=1)
    axes = figures.draw_confusion(counts, ["قط", "כלב", *map(str, range(29))]).axes[0]
    assert axes.get_yticklabels()[0].get_text() == "\u2068قط\u2069 taken for \u2068כלב\u2069"
    figure = figures.draw_predictions(*rows_of_predictions(1, names=("قط", "dog")), title="")
    assert figure.axes[0].get_title() == "true: \u2068قط\u2069\npredicted: \u2068قط\u2069 (100%)"


@pytest.mark.parametrize(
    ("names", "rotation"),
    [
        (["ants", "bees"], 0),
        (["German short-haired pointer", "golden retriever", "Labrador retriever"], 0),
        ("airplane automobile bird cat deer dog frog horse ship truck".split(), 0),
        (LONG_NAMES, 45),
        ([f"class {number}" for number in range(30)], 45),
    ],
    ids=["2", "3", "10", "10 long", "30"],
)
def test_names_of_few_classes_are_horizontal(names, rotation):
    axes = figures.draw_confusion(np.eye(len(names), dtype=int), names).axes[0]
    assert {tick.get_rotation() for tick in axes.get_xticklabels()} == {rotation}
    if not rotation:
        axes.figure.draw_without_rendering()
        cell = axes.get_window_extent().width / len(names)
        assert all(tick.get_window_extent().width < cell for tick in axes.get_xticklabels())


@pytest.mark.parametrize(
    "names",
    [["a", "b"], LONG_NAMES[:2], LONG_NAMES, SIMILAR_NAMES, [f"class {number}" for number in range(100)]],
    ids=["2", "2 long", "10", "34", "100"],
)
@pytest.mark.parametrize("draw", [figures.draw_confusion, figures.draw_class_accuracy])
def test_nothing_is_clipped(names, draw):
    caption = "experiment · 2026-11-29_10-12-13 · validation split, 12,345 images · weights of epoch 17"
    figure = draw(np.full((len(names), len(names)), 1234), names, caption=caption)
    figure.draw_without_rendering()
    inside, outside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 <= outside.x0 and inside.y0 <= outside.y0
    assert outside.x1 <= inside.x1 and outside.y1 <= inside.y1


@pytest.mark.parametrize(
    ("images", "names"),
    [(0, ["a", "b"]), (50, LONG_NAMES), (300, list(map(str, range(150)))), (5, ["$a$", "猫"])],
)
def test_confusion_matrices_are_saved(tmp_path, images, names):
    rng = np.random.default_rng(0)
    counts = rng.multinomial(images, [1 / len(names) ** 2] * len(names) ** 2).reshape(len(names), len(names))
    assert_saved(figures.draw_confusion(counts, names), tmp_path)


HOSTILE_NAMES = {
    **{"caf\udce9": r"caf\xe9", "a\nb": r"a\nb", "\x1b[31m": r"\x1b[31m", "a\u202eb": r"a\u202eb", "\ud800": r"\ud800"},
    **{name: name for name in ("[/x]", "$a^$b_{", "\\frac{", "كلب", "देव")},
    "  ": "'  '",
}
"""Names of classes, and what is drawn."""


@pytest.mark.filterwarnings("error")
def test_names_of_any_kind_are_drawn(tmp_path):
    labels = np.arange(len(HOSTILE_NAMES))
    matrix = figures.draw_confusion(np.eye(len(labels), dtype=int), list(HOSTILE_NAMES))
    assert [tick.get_text() for tick in matrix.axes[0].get_yticklabels()] == list(HOSTILE_NAMES.values())
    assert_saved(matrix, tmp_path)
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    predictions = figures.draw_predictions(images, labels, labels, np.ones(len(labels)), list(HOSTILE_NAMES), title="")
    assert_saved(predictions, tmp_path)
    rows = [[(image, name)] * 2 for image, name in zip(images, HOSTILE_NAMES, strict=True)]
    assert_saved(figures.draw_image_grid(rows, ["raw", "kept"], title="x: folder:caf\udce9\n"), tmp_path)


def test_large_counts_fit_their_cell():
    axes = figures.draw_confusion(12345 * np.eye(20, dtype=int), list(map(str, range(20)))).axes[0]
    axes.figure.draw_without_rendering()
    cell = axes.get_window_extent().width / 20
    assert all(text.get_window_extent().width < cell for text in axes.texts)


# Predictions.


def rows_of_predictions(count, *, channels=1, names=("cat", "dog")):
    images = np.full((count, 8, 8, channels), 200, np.uint8)
    labels = np.arange(count) % 2
    predictions = np.zeros(count, np.int32)
    return images, labels, predictions, np.linspace(1.0, 0.6, count), list(names)


def test_predictions_are_titled_and_mistakes_are_marked():
    figure = figures.draw_predictions(*rows_of_predictions(2), title="Predictions", caption="of a run")
    right, wrong = figure.axes
    assert figure.get_suptitle() == "Predictions"
    assert figure.get_supxlabel() == "of a run"
    assert right.get_title() == "true: cat\npredicted: cat (100%)"
    assert wrong.get_title() == "true: dog\n✗ predicted: cat (60%)"
    assert to_hex(right.title.get_color()) == "#222222"
    assert to_hex(wrong.title.get_color()) == "#c1121f"
    assert wrong.spines["left"].get_visible() and not right.spines["left"].get_visible()


def test_an_image_of_unknown_class_is_neither_right_nor_wrong():
    images, _, *others = rows_of_predictions(1)
    [axes] = figures.draw_predictions(images, [figures.UNKNOWN], *others, title="").axes
    assert axes.get_title() == "predicted: cat (100%)"
    assert not axes.spines["left"].get_visible()


def test_long_class_names_have_a_line_of_their_own():
    figure = figures.draw_predictions(*rows_of_predictions(2, names=("golden retriever puppy", "dog")), title="")
    assert [axes.get_title() for axes in figure.axes] == [
        "true: golden retriever puppy\npredicted (100%):\ngolden retriever puppy",
        "true: dog\n✗ predicted (60%):\ngolden retriever puppy",
    ]
    figure = figures.draw_predictions(*rows_of_predictions(1, names=("German short-haired pointer dog", "a")), title="")
    assert figure.axes[0].get_title().endswith("\nGerman short-ha…ed pointer dog")


def test_only_classes_that_are_drawn_are_labeled(monkeypatch):
    labeled = []
    monkeypatch.setattr(image_grids, "distinct_labels", lambda names, most: labeled.extend(names) or names)
    images, labels, predictions, probabilities, _ = rows_of_predictions(3)
    labels = np.array([7, figures.UNKNOWN, 999])
    names = [f"class {number}" for number in range(1000)]
    figures.draw_predictions(images, labels, predictions, probabilities, names, title="", most=2)
    assert labeled == ["class 0", "class 7"]


def drawn_image(image):
    """What a figure shows of one image."""
    figure = figures.draw_predictions(image[None], [0], [0], [1.0], ["cat"], title="")
    [shown] = figure.axes[0].images
    return np.asarray(shown.get_array())


@pytest.mark.parametrize(("channels", "shape"), [(1, (8, 8)), (2, (8, 8, 3)), (3, (8, 8, 3)), (5, (8, 8, 3))])
def test_channels(channels, shape):
    image = np.arange(64 * channels, dtype=np.uint8).reshape(8, 8, channels)
    shown = drawn_image(image)
    assert shown.shape == shape and shown.dtype == np.uint8
    expected = np.zeros((8, 8, 3), np.uint8)
    expected[..., : min(channels, 3)] = image[..., :3]
    np.testing.assert_array_equal(shown, image[..., 0] if channels == 1 else expected)


def test_a_sequence_of_characters_is_drawn_as_one_image():
    text = np.zeros((128, 1, 27), np.uint8)
    text[np.arange(128), 0, np.arange(128) % 27] = 255
    np.testing.assert_array_equal(drawn_image(text), text[:, 0])


def test_gray_is_not_stretched():
    figure = figures.draw_predictions(*rows_of_predictions(1), title="")
    [shown] = figure.axes[0].images
    assert shown.get_clim() == (0, 255)
    assert shown.get_cmap().name == "gray"


def test_without_an_image_the_title_is_all():
    figure = figures.draw_predictions(*rows_of_predictions(0), title="No mistakes")
    assert not figure.axes
    assert texts_of(figure) == ["No mistakes"]


@pytest.mark.parametrize(
    ("count", "most", "grid"),
    [(1, 25, (1, 1)), (3, 25, (1, 3)), (9, 4, (1, 4)), (7, 25, (2, 4)), (30, 25, (5, 5)), (40, 36, (6, 6))],
)
def test_predictions_are_drawn_as_a_grid_without_empty_columns(count, most, grid):
    figure = figures.draw_predictions(*rows_of_predictions(count, channels=4), title="P", most=most)
    assert len(figure.axes) == min(count, most)
    assert figure.axes[0].get_gridspec().get_geometry() == grid


@pytest.mark.parametrize("count", [0, 3])
def test_predictions_are_saved(tmp_path, count):
    assert_saved(figures.draw_predictions(*rows_of_predictions(count), title="P", caption="of a run"), tmp_path)


def test_names_in_any_script_are_drawn_as_they_are(tmp_path):
    columns = rows_of_predictions(2, names=("$x_1$", "猫\n犬"))
    figure = figures.draw_predictions(*columns, title="50 $ of $")
    assert figure.axes[1].get_title() == "true: 猫\\n犬\n✗ predicted: $x_1$ (60%)"
    assert_saved(figure, tmp_path)


# Mistakes of the caller, and manners.


def test_unknown_classes_are_refused():
    with pytest.raises(ValueError, match=r"draw_confusion: expected counts \[2, 2\], got \[3, 3\]\."):
        figures.draw_confusion(np.eye(3, dtype=int), ["a", "b"])
    images, ones = np.zeros((2, 8, 8, 1), np.uint8), np.ones(2)
    with pytest.raises(ValueError, match=r"draw_predictions: expected predictions in 0\.\.1, got 0\.\.2\."):
        figures.draw_predictions(images, np.array([0, 1]), np.array([0, 2]), ones, ["a", "b"], title="P")
    with pytest.raises(ValueError, match=r"draw_predictions: expected labels in 0\.\.1, got -2\.\.0\."):
        figures.draw_predictions(images, np.array([0, -2]), np.array([0, 1]), ones, ["a", "b"], title="P")


def test_different_lengths_are_refused():
    images, labels, predictions, probabilities, names = rows_of_predictions(3)
    with pytest.raises(ValueError, match="expected as many predictions as labels, got 2 and 3"):
        figures.draw_predictions(images, labels, predictions[:2], probabilities, names, title="P")
    with pytest.raises(ValueError, match=r"as labels \(3\), got 2 images and 3 probabilities"):
        figures.draw_predictions(images[:2], labels, predictions, probabilities, names, title="P")


def test_global_settings_stay(tmp_path):
    before = dict(matplotlib.rcParams)
    figures.save_figure(figures.draw_curves(ONE_EPOCH), tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before


# Fonts.


def save_titled(text, folder):
    figure = Figure()
    figure.suptitle(text)
    figures.save_figure(figure, folder / "figure.png")
    return figure


def test_characters_that_the_font_lacks_are_drawn_in_another(tmp_path, monkeypatch):
    """STIX, which comes with Matplotlib, has a letter that its default font lacks."""
    # The user's cached list of fonts may be older and lack it.
    style.font_manager.fontManager.addfont(Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))
    figures.describe_undrawn()
    monkeypatch.setattr(style, "_find_further_families", lambda: ["STIXGeneral"])
    assert "STIXGeneral" in save_titled("\u1d81 cat", tmp_path).texts[0].get_fontfamily()
    assert figures.describe_undrawn() is None
    assert "STIXGeneral" not in save_titled("cat", tmp_path).texts[0].get_fontfamily()


def test_characters_that_no_font_has_are_named_once(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "_find_further_families", lambda: [])
    figures.describe_undrawn()
    for text in ("猫犬", "猫 cat"):
        save_titled(text, tmp_path)
    assert figures.describe_undrawn().startswith(
        "no font has the characters 犬猫, so figures show boxes. Install a font that has them, such as fonts-noto-cjk ("
    )
    assert figures.describe_undrawn() is None


def test_further_families_are_installed(monkeypatch):
    """Those that Matplotlib knows, and those whose files it has not listed, in the order of their scripts."""
    known = [SimpleNamespace(name=name, fname=f"/{name}.ttf") for name in ("Malgun Gothic", "DejaVu Sans")]
    manager = SimpleNamespace(ttflist=known)

    def add(file):
        if "Tamil" in file:
            raise RuntimeError("a damaged font")
        known.append(SimpleNamespace(name=Path(file).stem, fname=file))

    manager.addfont = add
    monkeypatch.setattr(style.font_manager, "fontManager", manager)
    files = [f"/{name}.ttc" for name in ("NotoSansCJK-Regular", "NotoSansCJK-Thin", "Other-Regular", "Malgun Gothic")]
    files.append("/NotoSansTamil-Regular.ttf")
    monkeypatch.setattr(style.font_manager, "findSystemFonts", lambda: files)
    monkeypatch.setattr(style, "_SCRIPTS", ("NotoSansCJK", "Malgun Gothic", "NotoSansTamil"))
    assert style._find_further_families.__wrapped__() == ["NotoSansCJK-Regular", "Malgun Gothic"]
    assert "/NotoSansCJK-Thin.ttc" not in [font.fname for font in known]


def test_other_warnings_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: warnings.warn("too large", stacklevel=1))
    with pytest.warns(UserWarning, match="^too large$"):
        save_titled("cat", tmp_path)
