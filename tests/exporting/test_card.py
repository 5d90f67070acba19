"""The card of an exported network, as a page for people."""

import copy

import pytest

from kpipe.exporting.card import write_markdown
from kpipe.exporting.preparation import METHOD

CARD = {
    "network": {"name": "lenet5"},
    "parameters": 61706,
    "weights": {"run": "tiny-1", "file": "model.keras", "kind": "raw"},
    "input": {"shape": ["batch", 32, 32, 3], "channels": "red, green, blue"},
    "classes": ["cat", "dog"],
    "images": {"image_size": [32, 32], "stored_size": None, "resize": "crop", "background": "white"},
    "normalization": {"name": "imagenet"},
    "scores": {"validation": {"loss": 0.5, "images": 50_000}, "test": {"loss": 0.25, "top5": 1.0, "images": 1_281_167}},
    "data": {
        "source": "tfds:pets",
        "fingerprint": "0123456789abcdef",
        "splits": {"train": {"cat": [4, "0a"], "dog": [5, "0b"]}, "test": {"": [3, "0c"]}},
    },
    "checks": {"runtime": "keras 3", "difference": 1e-6, "bound": 1e-4, "images": "16 images of the test split"},
    "code": ["import keras"],
    "versions": {"trained with": {"keras": "3"}},
}


def page(**changes):
    return write_markdown(copy.deepcopy(CARD) | changes)


def test_what_is_known_is_in_the_page():
    lines = page().splitlines()
    assert lines[0] == "# `lenet5`, 32x32x3, 2 classes"
    for line in (
        "| network | `lenet5`, 61,706 parameters |",
        "| input | `images`: float32 [batch, 32, 32, 3], raw pixels 0 to 255, red, green, blue |",
        "| normalization | imagenet; the network does it itself |",
        "| data | `tfds:pets`, as it comes: 9 train, 3 test |",
        "| fingerprint | `0123456789abcdef`, of the images' names and their number in each class |",
        "| weights | raw, of `model.keras` of the run `tiny-1` |",
        "| trained with | keras 3 |",
        "| split | loss | images | top5 |",
        "| validation | 0.5 | 50,000 |  |",
        "| test | 0.25 | 1,281,167 | 1 |",
        "- Logits in keras 3 differ from the network's by at most 1.0e-06 of the largest (bound 0.0001), on 16 images "
        "of the test split.",
        "0. `cat`",
        "1. `dog`",
    ):
        assert line in lines


def test_a_network_that_normalizes_nothing():
    assert "| normalization | none |\n" in page(normalization={"name": "none"})


def test_names_are_shown_letter_by_letter():
    shown = page(
        classes=["a`b", "``", "*c*", "d\ne"],
        network={"name": "a|b.py:net"},
        data=CARD["data"] | {"source": "x|y", "splits": {}},
    )
    assert '\n0. `` a`b ``\n1. ``` `` ```\n2. `*c*`\n3. `"d\\ne"`\n' in shown
    assert "| network | `a\\|b.py:net`, 61,706 parameters |\n" in shown
    assert "| data | `x\\|y` |\n" in shown


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({}, "scale the shorter side to 32 pixels and crop the center; transparent pixels show white"),
        (
            {"stored_size": 40, "background": "black"},
            "scale the shorter side to 40 pixels and crop the center, then crop the center of 32x32; transparent "
            "pixels show black",
        ),
        (
            {"resize": "pad"},
            "scale the longer side to 32 pixels and fill the rest with black; transparent pixels show white",
        ),
        (
            {"resize": "squash", "background": [1, 2, 3]},
            "scale both sides to 32 pixels; transparent pixels show (1, 2, 3)",
        ),
    ],
)
def test_how_images_are_prepared(images, words):
    assert f"| images | {words} |\n" in page(images=CARD["images"] | images)


def test_images_that_are_not_resized():
    assert "| images | 40x80, not resized |\n| normalization |" in page(images={"image_size": [40, 80]})


def test_lines_of_python_for_all_that_was_written():
    shown = page(images=CARD["images"] | METHOD | {"code": ["import numpy"]}, int8_code=["import int8"])
    assert "\n```python\nimport numpy\n```\n\nCompute the logits.\n\n```python\nimport keras\n```\n" in shown
    assert "\n\nThe int8 file takes and returns the same.\n\n```python\nimport int8\n```\n" in shown
    assert (
        "| scaling | bilinear, with antialiasing (always so in Pillow, `antialias` in TensorFlow and torchvision), "
        "after the EXIF orientation; values are rounded (nearest, half to even); where what is cropped or filled is "
        "odd, the bottom and the right get the odd pixel |\n" in shown
    )
