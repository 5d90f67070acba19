"""The papers' recipes for ImageNet in experiments/reproduce: complete, planned without images, and trained on a few."""

import json
import re
from pathlib import Path

import keras
import pytest
from image_sets import tfds_in, write_image
from tiny_runs import only_run, records_of

from kpipe.config.loading import load_experiment

FOLDER = Path(__file__).parents[1] / "experiments" / "reproduce"
PARAMETERS = {
    "alexnet": 60_965_224,
    "zfnet": 62_357_608,
    "googlenet": 13_378_280,  # with its auxiliary heads
    "vgg_a": 132_863_336,
    "vgg_b": 133_047_848,
    "vgg_c": 133_638_952,
    "vgg_d": 138_357_544,
    "vgg_e": 143_667_240,
}
IMAGES = 1_281_167  # of ImageNet's training split
STEPS = {"googlenet": 2_400_000} | {f"vgg_{net}": 370_000 for net in "abcde"}
recipes = pytest.mark.parametrize("recipe", PARAMETERS)


def path_of(recipe):
    return FOLDER / f"{recipe}_imagenet.yaml"


def comment_of(recipe):
    """The lines above the experiment, without their line breaks."""
    lines = path_of(recipe).read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def test_every_recipe_is_tested():
    assert {path.stem for path in FOLDER.glob("*_imagenet.yaml")} == {f"{recipe}_imagenet" for recipe in PARAMETERS}


@recipes
def test_the_plan_needs_no_images(recipe, kpipe, tmp_path):
    with tfds_in(tmp_path):
        code, out, err = kpipe("plan", str(path_of(recipe)), "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["trainable_parameters"] == PARAMETERS[recipe]
    assert (plan["data"]["image"], plan["data"]["classes"]) == ([224, 224, 3], 1000)
    assert plan["data"]["missing"].startswith("tfds:imagenet2012: is not prepared in ")
    training = plan["training"]
    assert (training["optimizer"], training["loss"]) == ("sgd", "cross_entropy")
    if recipe in STEPS:
        assert training["epochs"] * IMAGES / training["batch_size"] == pytest.approx(STEPS[recipe], rel=0.002)


@recipes
def test_every_override_in_the_comment_works(recipe):
    comment = comment_of(recipe)
    assert comment.split("   ")[1].startswith(f"python -m kpipe.run experiments/reproduce/{recipe}_imagenet.yaml ")
    assert "Not trained to the end with kpipe: only its first steps were." in comment
    override = r"(?:data|model|training)\.[\w.]+=[^\s,;]*[^\s,;:.)]"
    together = re.findall(rf"\b{override}(?: {override})*", comment)
    assert together
    for overrides in together:
        load_experiment(path_of(recipe), [each for each in overrides.split() if not each.endswith(("PATH", "<run>"))])


# --- two steps each, on a few small photographs -------------------------------------------------------------

SMALL = ["data.image_size=32", "data.stored_size=40", "data.batch_size=4", "training.epochs=2"]


@pytest.fixture
def photographs(tmp_path):
    for split, name in (("train", "ape"), ("train", "zebra"), ("val", "ape"), ("val", "zebra")):
        for number in range(2):
            write_image(tmp_path / "photographs" / split / name / f"{number}.jpg", size=(48, 64))
    return tmp_path / "photographs"


@pytest.fixture
def train_two_steps(kpipe, logs, photographs):
    """Train a recipe for two epochs of one step, between which its learning rate falls; return the run."""

    def train_two_steps(recipe, *overrides):
        own = ["training.learning_rate.milestones.epochs=[1]", "model.width=8"]
        if recipe == "googlenet":
            own = ["training.learning_rate.every.epochs=1"]
        source = f"data.source=folder:{photographs}"
        code, out, err = kpipe("run", str(path_of(recipe)), source, *SMALL, *own, *overrides)
        assert (code, err) == (0, ""), out
        return only_run(logs, f"{recipe}_imagenet")

    return train_two_steps


@pytest.mark.slow
@recipes
def test_two_steps(recipe, train_two_steps):
    run = train_two_steps(recipe)
    epochs = [record for record in records_of(run) if record["split"] == "train" and record["span"] == "epoch"]
    assert [record["step"] for record in epochs] == [1, 2]
    factor = 0.96 if recipe == "googlenet" else 0.1
    assert [record["learning_rate"] for record in epochs] == pytest.approx([0.01, 0.01 * factor])
    assert len(list(run.glob("model*.keras"))) == (2 if recipe == "googlenet" else 1)  # its weights are averaged
    assert keras.models.load_model(run / "model.keras").output_shape == (None, 2)


@pytest.mark.slow
def test_a_deeper_net_starts_from_net_a(train_two_steps):
    net_a = train_two_steps("vgg_a")
    run = train_two_steps("vgg_e", f"model.init_from={net_a}", "data.normalize=auto")
    reused = json.loads((run / "init_from.json").read_text())["reused"]
    assert reused == ["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "logits"]
