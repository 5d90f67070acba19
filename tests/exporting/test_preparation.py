"""The lines of Python in a card read an image file as the network saw it in training."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image

import kpipe
from kpipe.config.schema import DataConfig
from kpipe.data.pipeline import evaluation_batches
from kpipe.exporting.preparation import describe_preparation


def photograph(width=403, height=301, has_alpha=False):
    """Return smooth colors with some noise, which has all frequencies."""
    generator = np.random.default_rng(0)
    shape = (4,) if has_alpha else (3,)
    smooth, noise = (
        Image.fromarray(generator.integers(0, 256, (*sides, *shape), "uint8")) for sides in ((8, 9), (height, width))
    )
    return Image.blend(smooth.resize((width, height), Image.Resampling.BICUBIC), noise, 0.2)


def compare(path, channels=3, image_size=64, **data):
    """Return differences between the images [1, H, W, C] of the lines and of kpipe, and the preparation."""
    source = f"folder:{path.parents[1]}"
    described = describe_preparation(
        SimpleNamespace(
            image_shape=(image_size, image_size, channels),
            data=DataConfig(source=source, image_size=image_size, channels=channels, **data),
        )
    )
    names = {}
    exec("\n".join(described["code"]).replace('"photograph.jpg"', repr(str(path))), names)  # noqa: S102
    splits = kpipe.load_dataset(source, image_size=image_size, channels=channels, **data)
    [(expected, _), *_] = evaluation_batches(splits, "train", 1).as_numpy_iterator()
    assert names["images"].dtype == np.float32 and names["images"].shape == expected.shape
    return np.abs(names["images"] - expected), described


@pytest.fixture
def save(tmp_path):
    def save(image, name="image.png", **options):
        for place in ("cat", "cow"):
            (tmp_path / place).mkdir()
            image.save(tmp_path / place / name, **options)
        return tmp_path / "cat" / name

    return save


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"channels": 1},
        {"stored_size": 91},
        {"resize": "pad"},
        {"resize": "squash"},
        {"resize": "pad", "stored_size": 80, "channels": 1},
        {"image_size": 500},
    ],
)
def test_the_lines_read_the_pixels_of_training(save, data):
    difference, _ = compare(save(photograph()), **data)
    assert difference.max() <= 1


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
def test_a_large_jpeg_that_lies_on_its_side(save, resize):
    """It is decoded at an eighth of its size. TensorFlow's decoder rounds otherwise than Pillow's."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    difference, _ = compare(save(photograph(1601, 1207), "image.jpg", exif=exif), resize=resize)
    assert difference.max() <= 2


def test_a_jpeg_that_only_tensorflow_decodes(save):
    difference, _ = compare(save(photograph(), "image.jpg"))
    assert difference.max() <= 2


def test_transparent_pixels_show_the_background(save):
    difference, described = compare(save(photograph(has_alpha=True)), background=[9, 99, 199])
    assert difference.max() <= 1
    assert described["background"] == [9, 99, 199]


def test_what_is_said_of_the_images(save):
    _, described = compare(save(photograph(80, 70)), stored_size=70)
    code = described.pop("code")
    assert described == {
        "image_size": [64, 64],
        "stored_size": 70,
        "resize": "crop",
        "background": "white",
        "interpolation": "bilinear",
        "antialias": True,
        "rounding": "nearest, half to even",
        "orientation": "EXIF, applied first",
    }
    assert code[:2] == ["import numpy as np", "from PIL import Image, ImageOps"]


def test_images_that_are_no_photographs_are_not_resized():
    planes = SimpleNamespace(image_shape=(9, 9, 4), data=DataConfig(source="python:boards.py:read"))
    assert describe_preparation(planes) == {"image_size": [9, 9]}
