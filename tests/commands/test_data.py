"""`kpipe data show` and `kpipe data check`, through the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from kpipe import figures

RANDOM = np.random.default_rng(0)
SIZES = ((20, 30), (30, 20), (24, 24))

TINY = """\
data:
  source: folder:photos
  image_size: 12
  stored_size: 16
  batch_size: 4
  augment: [{random_resized_crop: {area: [0.5, 1.0]}}, flip_horizontal, color_jitter]
model: {name: mlp}
training: {epochs: 1}
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """12 photographs of 2 classes, in the folder in which the command is given."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = SIZES[number % 3]
        Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def drawn(monkeypatch):
    """What `draw_image_grid` was asked to draw."""
    calls = []
    real = figures.draw_image_grid

    def draw_image_grid(rows, headings, *, title):
        calls.append((rows, headings, title))
        return real(rows, headings, title=title)

    monkeypatch.setattr("kpipe.figures.draw_image_grid", draw_image_grid)
    return calls


@pytest.mark.slow
def test_show_draws_each_stage(kpipe, photos, experiment, tmp_path, drawn):
    code, out, err = kpipe("data", "show", experiment, "--images", "3", "--views", "2")
    assert (code, err) == (0, "")
    assert out == f"3 of 8 images of the training split are drawn in\n  {tmp_path}/tiny_data.png\n"
    [(rows, headings, title)] = drawn
    assert headings == ["raw", "kept (crop)", "training 1", "training 2"]
    assert title == f"tiny: folder:{photos}"
    assert [row[0][1] for row in rows] == ["cat", "cat", "dog"]
    for (raw, _), (kept, sides), (first, _), (second, _) in rows:
        assert raw.shape[:2] in SIZES
        assert (kept.shape, sides) == ((16, 16, 3), "16x16")
        assert first.shape == second.shape == (12, 12, 3)
        assert (first != second).any()
    with Image.open(tmp_path / "tiny_data.png") as picture:
        assert picture.width > 600


@pytest.mark.slow
def test_show_keeps_an_image_in_its_row(kpipe, photos, experiment, drawn):
    kpipe("data", "show", experiment, "data.augment=[]", "--images", "4", "--views", "3")
    [(rows, _, _)] = drawn
    for row in rows:
        center = row[1][0][2:14, 2:14]
        for image, caption in row[2:]:
            np.testing.assert_array_equal(image, center)
            assert caption == ""


@pytest.mark.slow
def test_show_says_what_was_mixed(kpipe, experiment, drawn, tmp_path):
    code, _, err = kpipe(
        "data", "show", experiment, "data.source=digits", "data.stored_size=12", "data.augment=[mixup]",
        "--images", "6", "--views", "6", "--output", str(tmp_path / "mixed.png"),
    )  # fmt: skip
    assert (code, err) == (0, "")
    [(rows, _, _)] = drawn
    assert {row[0][0].shape for row in rows} == {(8, 8, 1)}  # raw: before they are resized to 12 pixels
    captions = [(row[0][1], caption) for row in rows for _, caption in row[2:]]
    assert all(name in caption for name, caption in captions if caption)
    assert all(" + " in caption for _, caption in captions if caption)
    assert any(caption for _, caption in captions)


@pytest.mark.slow
def test_show_leaves_out_what_the_training_would(kpipe, photos, experiment, drawn):
    (photos / "cat" / "0.png").write_text("no image")
    code, _, err = kpipe("data", "show", experiment, "--images", "8", "data.on_error=skip", "data.skip_limit=0.2")
    assert (code, err) == (0, "")
    code, _, err = kpipe("data", "show", experiment, "--images", "8")
    assert code == 3
    assert "0.png' (not an image, or of a format that kpipe does not read). Replace or remove it, or leave su" in err


def test_check_finds_nothing(kpipe, photos, experiment, tmp_path):
    code, out, err = kpipe("data", "check", experiment)
    assert (code, out, err) == (0, "train: 12 images, 0 of them unreadable\n", "")
    assert not list(tmp_path.glob("*.txt"))


def test_check_writes_the_names(kpipe, photos, experiment, tmp_path):
    broken = [photos / "cat" / "0.png", photos / "dog" / "5.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:100])
    broken[1].write_text("no image")
    code, out, err = kpipe("data", "check", experiment, "--output", "list.txt")
    reasons = "  1: cut off\n  1: not an image, or of a format that kpipe does not read\n"
    assert (code, out) == (3, f"train: 12 images, 2 of them unreadable\n{reasons}")
    assert err == (
        f"folder:{photos}: 2 images cannot be read. Replace or remove them, or leave them out with data.on_error=skip. "
        f"Their names are in\n  {tmp_path}/list.txt\n"
    )
    assert (tmp_path / "list.txt").read_text() == f"{photos}/cat/0.png\n{photos}/dog/5.png\n"
    broken[1].unlink()
    assert kpipe("data", "check", experiment, "--output", "list.txt")[2] == (
        f"folder:{photos}: 1 image cannot be read. Replace or remove it, or leave it out with data.on_error=skip. "
        f"Its name is in\n  {tmp_path}/list.txt\n"
    )


def test_the_list_has_a_line_for_a_name_of_any_kind(kpipe, photos, experiment, tmp_path):
    names = ["plain.png", "with space.png", "line\nbreak.png", "caf\udce9.png", "\x1b[31m.png"]
    broken = [photos / "cat" / name for name in names] + [photos / "a\nb\u202e" / "0.png"]
    for path in broken:
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
    code, out, err = kpipe("data", "check", experiment)
    assert (code, err.count("\n")) == (3, 2)
    assert out.endswith("unreadable\n  6: not an image, or of a format that kpipe does not read\n")
    lines = (tmp_path / "tiny_unreadable.txt").read_text("utf-8").splitlines()
    assert all(line.isprintable() for line in lines)
    assert f"{photos}/cat/plain.png" in lines and f"{photos}/cat/with space.png" in lines
    found = [json.loads(line) if line.startswith('"') else line for line in lines]
    assert sorted(found) == sorted(map(str, broken))


@pytest.mark.slow
def test_show_has_captions_for_names_of_any_kind(kpipe, photos, experiment, drawn):
    for old, new in (("cat", "caf\udce9\nx"), ("dog", "$x^$[b]\u202e")):
        (photos / old).rename(photos / new)
    renamed = photos.rename(photos.parent / "ph\udcff\notos")
    code, out, err = kpipe("data", "show", experiment, f"data.source=folder:{renamed}", "--images", "2", "--views", "1")
    assert (code, err, out.count("\n")) == (0, "", 2)
    assert {row[0][1] for row in drawn[0][0]} == {"caf\udce9\nx", "$x^$[b]\u202e"}


@pytest.mark.slow
def test_what_is_drawn_is_never_read_as_an_image(kpipe, photos, experiment):
    for folder in (photos, photos / "cat"):
        assert kpipe("data", "show", experiment, "--output", str(folder / "tiny_data.png"))[0] == 0
    assert kpipe("data", "check", experiment)[1] == "train: 12 images, 0 of them unreadable\n"
    (photos / "cat" / "my_data.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    assert kpipe("data", "check", experiment)[1] == "train: 13 images, 0 of them unreadable\n"


def test_embedded_images_need_no_check(kpipe, experiment):
    code, out, _ = kpipe("data", "check", experiment, "data.source=digits")
    assert (code, out) == (0, "train: 1,797 images, which come with kpipe\n")


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_folder_that_is_not_there(kpipe, experiment, verb, tmp_path):
    code, _, err = kpipe("data", verb, experiment, "data.source=digits", "--output", str(tmp_path / "no" / "x"))
    assert (code, err) == (2, f"--output: expected a file in a folder that exists, got {tmp_path / 'no' / 'x'}\n")


@pytest.fixture
def nothing_is_read(monkeypatch):
    for name in ("load_splits", "find_source"):
        monkeypatch.delattr(f"kpipe.commands.data.{name}")


@pytest.mark.parametrize(("verb", "name"), [("show", "tiny_data.png"), ("check", "tiny_unreadable.txt")])
def test_a_folder_for_a_file_is_refused_before_the_work(kpipe, experiment, verb, name, tmp_path, nothing_is_read):
    code, _, err = kpipe("data", verb, experiment, "--output", str(tmp_path))
    assert (code, err) == (2, f"--output: expected a file, got the folder {tmp_path}. Write {tmp_path}/{name}\n")


@pytest.mark.parametrize("name", ["x.jpg", "x", ".jpg"])
def test_a_picture_of_another_kind_is_refused_before_the_work(kpipe, experiment, name, tmp_path, nothing_is_read):
    code, _, err = kpipe("data", "show", experiment, "--output", str(tmp_path / name))
    instead = ".jpg.png" if name == ".jpg" else "x.png"
    said = f"--output: expected a name that ends with .png, got {tmp_path}/{name}. Write {tmp_path}/{instead}\n"
    assert (code, err) == (2, said)


def test_a_file_that_may_not_be_written_is_refused_before_the_work(
    kpipe, experiment, tmp_path, nothing_is_read, monkeypatch
):
    monkeypatch.setattr("kpipe.files.can_write_in", lambda folder: False)  # root may write everywhere
    code, _, err = kpipe("data", "check", experiment, "--output", str(tmp_path / "x.txt"))
    assert (code, err) == (2, f"--output: expected a file that you may write, got {tmp_path}/x.txt\n")


def test_a_mistake_in_the_file_is_found_first(kpipe, experiment):
    code, _, err = kpipe("data", "show", experiment, "data.augment=[rotat]")
    assert (code, err.strip()) == (2, "command line: data.augment.0: unknown 'rotat', did you mean 'rotate'?")


def test_rows_of_another_length():
    with pytest.raises(ValueError, match=r"draw_image_grid: expected 2 images in each row, got \[1\]\."):
        figures.draw_image_grid([[(np.zeros((2, 2, 1), np.uint8), "")]], ["a", "b"], title="t")
