"""`kpipe explain`: the figures of a trained network, in TensorBoard as well, and what it refuses."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_sets import write_image
from matplotlib.figure import Figure
from PIL import Image
from tiny_runs import WITHOUT_FIGURES, train_once

from kpipe import explain
from kpipe.assembly import load_splits
from kpipe.catalog.explanations import EXPLANATIONS
from kpipe.commands.explain import print_kernels
from kpipe.console import Screen, quiet_console
from kpipe.data import make_evaluation_pipeline, unlabeled_files
from kpipe.errors import ConfigError, DataError
from kpipe.explaining.class_models import maximize_classes
from kpipe.explaining.occlusion import Occlusion, occlude
from kpipe.explaining.receptive_fields import find_receptive_fields
from kpipe.models import build_model
from kpipe.trained import load_trained

TINY = """\
data: {source: synthetic, image_size: 16, stored_size: 20, batch_size: 16, synthetic: {classes: 3, images: 120}}
model: {name: lenet5}
training: {epochs: 1, precision: mixed_bfloat16}
"""
PNG = tf.io.encode_png(np.zeros((2, 2, 3), np.uint8)).numpy()
FIGURES = {
    "filters": ["filters"],
    "feature_maps": ["feature_maps_1", "feature_maps_2", "feature_maps_3"],
    "deconvnet": ["deconvnet_c3"],
    **{
        kind: [kind] for kind in ("saliency", "occlusion", "class_models", "invariance", "receptive_fields", "heat_map")
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_once(tmp_path_factory.mktemp("explain"), TINY, replaced=[WITHOUT_FIGURES])


@pytest.fixture
def quiet():
    return Screen(quiet_console())


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr("kpipe.commands.explain._STEPS", 2)


@pytest.mark.slow
def test_all_kinds_are_drawn_and_stand_in_tensorboard(kpipe, run, tmp_path):
    assert list(EXPLANATIONS) == list(FIGURES)
    code, out, err = kpipe("explain", str(run), "--output", str(tmp_path / "drawn"))
    assert (code, err) == (0, "")
    names = [name for kind in FIGURES.values() for name in kind]
    assert out.splitlines() == [str(tmp_path / "drawn" / f"{name}.png") for name in names]
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / "drawn" / f"{name}.png").convert("L"))
        assert pixels.std() > 5 and min(pixels.shape) > 200, name
    assert tags_in(tmp_path / "drawn") == sorted(f"explain/{name}" for name in names)


def tags_in(folder):
    files = (folder / "tensorboard").iterdir()
    events = [event for file in files for event in tf.compat.v1.train.summary_iterator(str(file))]
    return sorted(value.tag for event in events for value in event.summary.value)


@pytest.mark.slow
def test_what_is_explained_has_a_folder_of_its_own(run, tmp_path, quiet):
    """So the figures of one image do not replace those of another, nor in TensorBoard."""
    for name in ("cat", "a dog"):
        write_image(tmp_path / f"{name}.png", size=(30, 24), channels=3)
        [found] = explain(run, tmp_path / f"{name}.png", kinds=["saliency"], screen=quiet)
        assert found.path == run / "explain" / name.replace(" ", "-") / "saliency.png"
    [found] = explain(run, class_name=load_trained(run).class_names[1], kinds=["saliency"], screen=quiet)
    assert found.path.parent.parent == run / "explain"
    explain(run, tmp_path / "cat.png", kinds=["saliency"], screen=quiet)
    tags = tags_in(run / "explain")
    assert len(tags) == len({*tags}) and {"explain/cat/saliency", "explain/a-dog/saliency"} < {*tags}


@pytest.mark.slow
def test_captions_say_the_true_class_and_the_prediction(run, quiet, monkeypatch):
    names = []
    monkeypatch.setattr(
        "kpipe.commands.explain.drawing.draw_heat",
        lambda rows, **options: names.append([row[1] for row in rows]) or Figure(),
    )
    first, second = load_trained(run).class_names[:2]
    for name in (first, second):
        explain(run, kinds=["saliency"], class_name=name, screen=quiet)
    for rows, name in zip(names, (first, second), strict=True):
        for row in rows:
            above, below = row.split("\n")
            assert re.fullmatch(r"image \d+, true: (?:\S+ ?)+", above)
            assert below.startswith(f"{name} (")
    assert any("%), predicted: " in row for rows in names for row in rows)


def test_images_are_explained_as_evaluation_sees_them(run, quiet, monkeypatch):
    """Of images that are stored larger, the center; and they are images of the test split."""
    shown = []
    monkeypatch.setattr(
        "kpipe.commands.explain.saliency", lambda model, images, labels: shown.append(images) or images[..., 0]
    )
    explain(run, kinds=["saliency"], screen=quiet)
    trained = load_trained(run)
    splits = load_splits(trained.data)
    seen = np.concatenate([images for images, _ in make_evaluation_pipeline(splits.test, 16, image_size=16)])
    numbers = [int(np.flatnonzero((seen == image).all((1, 2, 3)))[0]) for image in shown[0]]
    assert len(set(numbers)) == 3


def test_some_kinds_of_images_of_the_user(run, tmp_path, quiet):
    for number in range(5):
        write_image(tmp_path / "images" / f"{number}.png", size=(30, 24), channels=3)
    found = explain(run, tmp_path / "images", kinds=["deconvnet", "saliency"], layer="c1", screen=quiet)
    assert [(each.kind, each.path) for each in found] == [
        ("saliency" if "sal" in name else "deconvnet", run / "explain" / "images" / f"{name}.png")
        for name in ("deconvnet_c1", "saliency")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["salience"]}, r"^kinds: expected known names, got 'salience', did you mean 'saliency'\?$"),
        ({"layer": "c2"}, r"^layer: expected a layer of the network, got 'c2' \(known: c1, c3\)$"),
        ({"class_name": "cat"}, "^class_name: expected a class of the network, got 'cat'"),
    ],
)
def test_what_cannot_be_explained(run, quiet, options, message):
    with pytest.raises(ConfigError, match=message):
        explain(run, screen=quiet, **options)


def test_images_that_cannot_be_read(run, tmp_path, quiet):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"text.jpg: cannot be read \(.+\)$"):
        explain(run, tmp_path / "text.jpg", screen=quiet)


def test_one_broken_file_among_several(kpipe, run, tmp_path, quiet):
    for name in "abd":
        write_image(tmp_path / "images" / f"{name}.png", size=(30, 24), channels=3)
    (tmp_path / "images" / "b.png").write_text("no image")
    code, out, err = kpipe(
        "explain", str(run), str(tmp_path / "images"), "--kind", "saliency", "--output", str(tmp_path)
    )
    assert (code, out) == (3, f"{tmp_path / 'saliency.png'}\n")
    assert "b.png: cannot be read (" in err and "1 of 3 files cannot be read. Replace or remove it\n" in err
    [figure] = explain(run, tmp_path / "images", kinds=["saliency"], output=tmp_path, screen=quiet)
    assert figure.path == tmp_path / "saliency.png"


def test_python_notes_a_broken_file(run, tmp_path, capsys):
    write_image(tmp_path / "a.png", size=(30, 24), channels=3)
    (tmp_path / "b.png").write_text("no image")
    explain(run, [tmp_path / "a.png", tmp_path / "b.png"], kinds=["saliency"], output=tmp_path)
    assert re.search(r"note: \S+b.png: cannot be read \(.+\), so it is left out", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((30, 24), (30, 24)),
        ((160, 80), (48, 24)),  # the longer side is three times the network's
        ((200, 20), (48, 16)),  # the shorter side is not below the network's; the middle of the longer one
        ((30, 14), (16, 48)),  # too small: three images side by side
        ((16, 16), (16, 48)),
    ],
)
def test_a_heat_map_is_of_the_whole_image_of_the_user(run, tmp_path, quiet, monkeypatch, size, shape):
    seen = []
    monkeypatch.setattr(
        "kpipe.commands.explain.compute_heat_map",
        lambda model, image, labels: seen.append(image) or np.zeros((*image.shape[:2], len(labels)), np.float32),
    )
    monkeypatch.setattr("kpipe.commands.explain.save_figure", lambda figure, path: path.write_bytes(PNG))
    write_image(tmp_path / "a.png", size=size, channels=3)
    explain(run, [tmp_path / "a.png"] * 3, kinds=["heat_map"], output=tmp_path, screen=quiet)
    assert seen[0].shape == (*shape, 3) and seen[0].max() > 1


def test_occlusion_names_the_class_that_wins_instead(run, tmp_path, quiet, monkeypatch):
    drawn = []
    found = Occlusion(np.ones((2, 2)), np.array([[0, 2], [2, 1]]), None, None, 1.0, None, *np.array([[0, 8]] * 2), 8)
    monkeypatch.setattr("kpipe.commands.explain.occlude", lambda *a, **k: found)
    monkeypatch.setattr("kpipe.commands.explain.drawing.draw_heat", lambda rows, **looks: drawn.append(rows) or 1)
    monkeypatch.setattr("kpipe.commands.explain.save_figure", lambda figure, path: path.write_bytes(PNG))
    for name, text in (("class_1", "most often class_2"), ("class_2", "most often class_0")):
        explain(run, kinds=["occlusion"], class_name=name, output=tmp_path, screen=quiet)
        heat = drawn[-1][0][2][-1]
        assert (heat.heading, heat.text) == ("another class wins", text)


@pytest.fixture
def model_file(run, tmp_path):
    """A model file beside its class names alone."""
    for name in ("model.keras", "classes.txt"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path / "model.keras"


def test_a_model_file_alone_needs_images(kpipe, model_file, tmp_path, quiet):
    said = "^images: expected image files or folders for .*/model.keras, which has no data of its own, got none. Give"
    for kinds in ([], ["filters", "saliency"]):
        with pytest.raises(ConfigError, match=said):
            explain(model_file, kinds=kinds, screen=quiet)
    write_image(tmp_path / "a.png", size=(30, 24), channels=3)
    code, out, err = kpipe("explain", str(model_file), str(tmp_path / "a.png"), "--kind", "saliency")
    assert (code, out) == (0, f"{tmp_path / 'explain' / 'a' / 'saliency.png'}\n")
    assert err.startswith("note: no model_card.json says how the images of its training were read; here they become 16")


def test_python_shows_the_notes_on_a_network(model_file, capsys):
    explain(model_file, kinds=["filters"])
    assert "note: no model_card.json says how the images of its training were read; " in capsys.readouterr().out


def test_filters_and_class_models_need_no_images(run, model_file, quiet, monkeypatch):
    """So no data are loaded, and the first classes are drawn."""
    monkeypatch.setattr("kpipe.commands.explain.load_splits", lambda *a, **k: pytest.fail("data are loaded"))
    climbs = []
    monkeypatch.setattr(
        "kpipe.commands.explain.maximize_classes",
        lambda model, labels, **options: climbs.append(labels) or maximize_classes(model, labels, **options),
    )
    for path in (run, model_file):
        found = explain(path, kinds=["class_models", "filters"], screen=quiet)
        assert [each.kind for each in found] == ["filters", "class_models"]
    explain(run, kinds=["class_models"], class_name="class_2", screen=quiet)
    assert climbs == [[0, 1, 2] * 2, [0, 1, 2] * 2, [2, 0, 1] * 2]


def test_of_many_files_no_more_are_read_than_shown(kpipe, run, tmp_path, quiet, monkeypatch):
    """Or than the search for the strongest activations asks for, spread over all of them."""
    monkeypatch.setattr("kpipe.commands.explain.MOST_SEARCHED", 9)
    monkeypatch.setattr("kpipe.commands.explain.save_figure", lambda figure, path: path.write_bytes(PNG))
    read = []
    monkeypatch.setattr(
        "kpipe.explaining.images.data.unlabeled_files",
        lambda files, form: read.append([int(Path(file).stem) for file in files]) or unlabeled_files(files, form),
    )
    for number in range(33):
        write_image(tmp_path / "images" / f"{number:02}.png", size=(16, 16), channels=3)
    (tmp_path / "images" / "01.png").write_text("no image")
    command = ("explain", str(run), str(tmp_path / "images"), "--output", str(tmp_path))
    code, out, err = kpipe(*command, "--kind", "saliency")
    assert (code, read) == (3, [[0, 1, 2], [3, 4, 5]])
    assert err.startswith("note: of 33 images, the first 3 are explained one by one\n")
    assert "1 of 6 files cannot be read" in err
    code, out, err = kpipe(*command, "--kind", "deconvnet")
    assert (code, read[2:]) == (3, [[0, 1, 2], [3, 4, 5], list(range(0, 33, 4))])
    assert "note: 9 of 33 images are read for deconvnet, spread evenly over all\n" in err
    assert "1 of 13 files cannot be read" in err


@pytest.mark.slow
def test_a_network_for_images_of_any_size(kpipe, tmp_path):
    """Is explained for images of one."""
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(keras.layers.Rescaling(1 / 255)(images))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="top")(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(images, x).save(tmp_path / "any.keras")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    write_image(tmp_path / "a.png", size=(30, 24), channels=3)
    arguments = (str(tmp_path / "any.keras"), str(tmp_path / "a.png"), "--image-size", "16")
    code, out, err = kpipe("explain", *arguments)
    assert code == 0 and "skipped" not in err
    drawn = {Path(line).stem.partition("_")[0] for line in out.splitlines()}
    assert drawn == {kind.partition("_")[0] for kind in EXPLANATIONS}


@pytest.mark.parametrize(
    ("kind", "where"), [("saliency", "the network"), ("class_models", "class_models"), (None, "the network")]
)
def test_a_network_whose_logits_are_not_finite(run, quiet, tmp_path, monkeypatch, kind, where):
    def load_broken(*arguments, **options):
        trained = load_trained(*arguments, **options)
        layer = trained.model.layers[-1]
        layer.set_weights([np.full_like(weight, np.nan) for weight in layer.get_weights()])
        return trained

    monkeypatch.setattr("kpipe.commands.explain.load_trained", load_broken)
    said = f"^{where}: expected finite logits, got some that are not. "
    with pytest.raises(ConfigError, match=said):
        explain(run, kinds=[kind] if kind else [], output=tmp_path, screen=quiet)


def test_fixed_kernels_need_no_run(kpipe, tmp_path):
    code, out, err = kpipe("explain", "--kernels", "--output", str(tmp_path))
    assert (code, out.split(), err) == (0, [str(tmp_path / "kernels.png")], "")
    write_image(tmp_path / "a.png", size=(30, 24), channels=3)
    figures = []
    print_kernels([tmp_path / "a.png"], figures.append, pytest.fail, output=tmp_path / "b")
    assert [figure.path.exists() for figure in figures] == [True]


def test_fixed_kernels_of_a_folder(kpipe, tmp_path, monkeypatch):
    """Of the first images, without those that cannot be read."""
    drawn = []
    monkeypatch.setattr("kpipe.commands.explain.drawing.draw_pictures", lambda rows, *a, **k: drawn.append(rows) or 1)
    monkeypatch.setattr("kpipe.commands.explain.save_figure", lambda figure, path: None)
    for number in range(10):
        write_image(tmp_path / "images" / f"{number}.png", size=(30, 24), channels=3)
    (tmp_path / "images" / "1.png").write_text("no image")
    code, out, err = kpipe("explain", "--kernels", str(tmp_path / "images"), "--output", str(tmp_path))
    assert (code, len(drawn[0]), out) == (3, 8, f"{tmp_path / 'kernels.png'}\n")
    assert err.startswith("note: of 10 images, the first 8 are drawn\n")
    assert err.endswith("1 of 10 files cannot be read. Replace or remove it\n")


def test_a_run_is_needed(kpipe):
    code, _, err = kpipe("explain")
    assert code == 2 and "Missing argument 'RUN'. Give the directory of a run, or --kernels." in err


@pytest.mark.parametrize(
    ("name", "layer", "field"),
    [  # facts of the papers: LeNet-5's C3, AlexNet's fifth and VGG-16's last convolution
        ("lenet5", "c3", (14, 14)),
        ("alexnet", "conv5", (163, 163)),
        ("vgg16", "conv5_3", (196, 196)),
    ],
)
def test_receptive_fields_of_the_papers(name, layer, field):
    sides = {"lenet5": 28}.get(name, 224)
    options = {} if name == "lenet5" else {"width": 8}
    boxes = find_receptive_fields(build_model(name, options, input_shape=(sides, sides, 3), classes=2))
    top, left, height, width = boxes[layer]
    assert (height, width) == field
    # That of the middle position lies around the middle of the image.
    assert abs(top + height / 2 - sides / 2) <= 16 and abs(left + width / 2 - sides / 2) <= 16


def test_a_position_sees_its_receptive_field_and_nothing_else():
    """The pixels with a gradient, for a network without zeros in its weights."""
    model = build_model("vgg11", {"width": 8}, input_shape=(64, 64, 3), classes=2)
    for layer, (top, left, height, width) in find_receptive_fields(model).items():
        part = tf.keras.Model(model.inputs[0], model.get_layer(layer).output)
        row, column = (side // 2 for side in part.output.shape[1:3])
        images = tf.random.stateless_uniform((1, 64, 64, 3), [0, 0], 0, 255)
        with tf.GradientTape() as tape:
            tape.watch(images)
            value = tf.reduce_sum(part(images)[:, row, column])
        seen = np.argwhere(np.abs(tape.gradient(value, images)[0]).max(-1) > 0)
        assert (seen.min(0) >= [max(0, top), max(0, left)]).all(), layer
        assert (seen.max(0) < [top + height, left + width]).all(), layer
    # Of the first layer, every pixel counts.
    assert find_receptive_fields(model)["conv1_1"] == (31, 31, 3, 3)


def test_a_second_call_replaces_what_tensorboard_shows(run, tmp_path, quiet):
    """And no event file that is not its own."""
    other = tmp_path / "tensorboard" / "events.out.tfevents.1.host.1.0.v2"
    other.parent.mkdir()
    other.touch()
    for _ in range(2):
        explain(run, kinds=["filters"], output=tmp_path, screen=quiet)
    files = list(other.parent.iterdir())
    assert other in files and len(files) == 2


def test_class_models_start_at_the_mean_of_the_training_images(run, tmp_path, quiet, monkeypatch):
    given = []

    def climb(model, labels, **options):
        given.append(options["mean"])
        return maximize_classes(model, labels, **options)

    monkeypatch.setattr("kpipe.commands.explain.maximize_classes", climb)
    explain(run, kinds=["class_models"], output=tmp_path, screen=quiet)
    assert len(given) == 1
    np.testing.assert_allclose(given[0], np.load(run / "normalization.npz")["mean"], rtol=1e-6)


def test_a_large_network_sees_fewer_images(run, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr("kpipe.commands.explain._MACS", 1)
    drawn = []
    monkeypatch.setattr("kpipe.commands.explain.drawing.draw_projections", lambda *a, **k: drawn.append(k["caption"]))
    monkeypatch.setattr("kpipe.commands.explain.drawing.draw_pictures", lambda rows, *a, **k: drawn.append(rows))
    monkeypatch.setattr("kpipe.commands.explain.save_figure", lambda figure, path: path.write_bytes(PNG))
    explain(run, kinds=["deconvnet", "class_models"], output=tmp_path, screen=quiet)
    assert drawn[0].startswith("the strongest activations among 9 images · ")
    assert [len(row) for row in drawn[1]] == [2, 2]


@pytest.mark.parametrize(("macs", "stride"), [(1e15, 1), (1, 2)])
def test_squares_take_larger_steps_over_images_of_a_large_network(run, tmp_path, quiet, monkeypatch, macs, stride):
    """And still overlap: they have three pixels a side."""
    given = []
    monkeypatch.setattr("kpipe.commands.explain._MACS", macs)
    monkeypatch.setattr(
        "kpipe.commands.explain.occlude", lambda *a, **k: given.append((k["side"], k["stride"])) or occlude(*a, **k)
    )
    explain(run, kinds=["occlusion"], output=tmp_path, screen=quiet)
    assert set(given) == {(3, stride)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "skipped"),
    [
        ("{name: mlp, width: 8}", {"filters", "feature_maps", "deconvnet", "invariance", "receptive_fields"}),
        ("{name: googlenet, auxiliary_heads: true}", set()),
        ("{name: vgg11, batch_norm: true, head: gap}", set()),
        ("{name: alexnet, width: 8}", set()),
        ("{name: lenet5, variant: original}", {"heat_map"}),
    ],
)
def test_every_family_is_explained(kpipe, tmp_path, model, skipped):
    text = TINY.replace("{name: lenet5}", model).replace("16, stored_size: 20", "32")
    run = train_once(tmp_path, text, "data.channels=1" if "original" in model else "seed=0")
    code, out, err = kpipe("explain", str(run))
    assert code == 0 and {line.split()[1] for line in err.splitlines()} == skipped
    drawn = {Path(line).stem for line in out.splitlines()}
    assert {kind for kind in EXPLANATIONS if any(name.startswith(kind) for name in drawn)} == {*EXPLANATIONS} - skipped


def test_options_that_fixed_kernels_do_not_have(kpipe):
    for option, value in (("--layer", "c1"), ("--class", "cat"), ("--kind", "filters"), ("--weights", "raw")):
        code, _, err = kpipe("explain", "--kernels", option, value)
        assert code == 2
        assert f"--kernels: expected only --output beside it, got {option}. Fixed kernels need no network." in err


def test_mistakes_are_found_before_the_import(kpipe, run):
    code, _, err = kpipe("explain", str(run), "--kind", "salience")
    assert code == 2 and err.startswith("--kind: expected known names, got 'salience', did you mean 'saliency'?")


def test_a_command_says_which_characters_it_could_not_draw(kpipe, tmp_path, monkeypatch):
    monkeypatch.setattr("kpipe.figures.style._find_further_families", lambda: [])
    monkeypatch.setattr("kpipe.commands.explain.KERNELS", {"猫": np.ones((1, 1))})
    code, _, err = kpipe("explain", "--kernels", "--output", str(tmp_path))
    assert code == 0 and err.startswith("note: no font has the characters 猫, so figures show boxes. Install a font")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("class_models", "can be changed one by one, got boards or texts, in which one channel of each pixel is on. "),
        ("invariance", "can be interpolated, got boards or texts, in which one channel of each pixel is on. "),
        ("heat_map", "of which a larger one can be made, got boards, or a single text. "),
    ],
)
def test_boards_are_neither_changed_nor_put_side_by_side(run, quiet, monkeypatch, kind, message):
    boards = (255 * np.eye(3)[np.random.default_rng(0).integers(0, 3, (3, 16, 16))]).astype(np.uint8)
    monkeypatch.setattr("kpipe.commands.explain.SplitImages.choose", lambda *a: (boards, list("abc"), np.zeros(3, int)))
    monkeypatch.setattr("kpipe.commands.explain.takes_photographs", lambda trained: False)
    with pytest.raises(ConfigError, match=rf"^{kind}: expected .*{message}Leave out the kind {kind}$"):
        explain(run, kinds=[kind], screen=quiet)


def test_empty_squares_cover_boards(run, tmp_path, quiet, monkeypatch):
    boards, given = np.zeros((1, 16, 16, 3), np.uint8), []
    boards[..., 1] = 255
    monkeypatch.setattr("kpipe.commands.explain.SplitImages.choose", lambda *a: (boards, ["a"], np.zeros(1, int)))
    monkeypatch.setattr("kpipe.commands.explain.occlude", lambda *a, **k: given.append(k["gray"]) or occlude(*a, **k))
    explain(run, kinds=["occlusion"], output=tmp_path, screen=quiet)
    assert given == [0.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "skipped"),
    [
        ("board", "{name: go_policy, depth: 3, width: 8}", {"class_models", "invariance", "heat_map"}),
        ("spectrogram", "{name: speech_cnn, width: 8}", set()),
        ("text", "{name: text_cnn, width: 8, hidden: 16}", {"class_models", "invariance"}),
    ],
)
def test_networks_for_boards_sounds_and_texts(kpipe, tmp_path, kind, model, skipped):
    data = f"{{source: synthetic, synthetic: {{kind: {kind}, images: 120}}}}"
    text = f"data: {data}\nmodel: {model}\ntraining: {{epochs: 1}}\n"
    run = train_once(tmp_path, text)
    code, out, err = kpipe("explain", str(run))
    assert code == 0 and {line.split()[1] for line in err.splitlines()} == skipped
    write_image(tmp_path / "a.png", size=(30, 24), channels=3)
    code, _, err = kpipe("explain", str(run), str(tmp_path / "a.png"))
    assert code == 2 and f" ({kind}). Give no files, so that images of its own data are explained" in err
