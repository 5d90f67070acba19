"""Figures of explanations, drawn from small arrays. What the arrays hold is tested in tests/explaining."""

import numpy as np
import pytest

from kpipe.figures import explanations, save_figure

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 16, 3)).astype(np.float32)
SEQUENCE = 255.0 * np.eye(6)[RNG.integers(0, 6, 40)][:, None].astype(np.float32)
LONG = "a picture with a very long name of a file 2026-11-29.png: true class name 93%, predicted another class 4%"
CAPTION = (
    "experiment · 2026-11-29_10-12-13 · validation split, 12,345 images · weights of epoch 17 · seed 3 · best.keras"
)
TITLE = "What excites feature maps of inception_5b_concatenated most: projections and the images"
LOOKS = {"title": TITLE, "caption": CAPTION}
NAMES = ["a $\\frac$ b", "猫と犬と" * 8, *(f"class number {number} with a rather long name" for number in range(4))]


def draw_heat_of(image, names, **look):
    values = RNG.random((4, 4))
    heats = [explanations.Heat("fall of the strongest feature map", values, **look)]
    heats.append(explanations.Heat("Grad-CAM", values, **look))
    return explanations.draw_heat([(image, name, heats) for name in names], **LOOKS)


def draw_curves(image, name, count=5):
    curve = (np.linspace(0, 90, count), *RNG.random((3, count)))
    names = ["shift (pixels)", "rotation (degrees)", f"scale of {name}"]
    curves, examples = dict.fromkeys(names, curve), dict.fromkeys(names, np.stack([image] * 4))
    return explanations.draw_invariance(curves, examples, class_name=name, **LOOKS)


def draw_maps(image, *, size=4):
    maps = {f"{depth}: inception_{depth}_{LONG}": RNG.random((size, size, 5)) for depth in ("low", "middle")}
    return explanations.draw_feature_maps(image, maps, **LOOKS)


def draw_projected(channels, maps=1, count=9):
    stack = RNG.normal(size=(maps, count, 6, 6, channels))
    return explanations.draw_projections(range(maps), stack, 100 + stack, **LOOKS)


def draw_pairs(images):
    rows = [[(image, f"{name}\n93%") for image in images for name in NAMES]] * 2
    return explanations.draw_pictures(rows, ["with L2", "without: fooling, a long heading $\\frac$"], **LOOKS)


FIGURES = {
    "six filters": lambda: explanations.draw_filters(RNG.normal(size=(5, 5, 1, 6)), caption=CAPTION),
    "one filter": lambda: explanations.draw_filters(np.ones((1, 1, 3, 1)), caption=CAPTION),
    "maps": lambda: draw_maps(IMAGE),
    "maps of one pixel": lambda: draw_maps(IMAGE, size=1),
    "maps of a sequence": lambda: draw_maps(SEQUENCE),
    "projections": lambda: draw_projected(3),
    "projections of one": lambda: draw_projected(1, count=1),
    "projections of many channels": lambda: draw_projected(70, maps=5),
    "heat": lambda: draw_heat_of(IMAGE, NAMES),
    "heat of one": lambda: draw_heat_of(IMAGE, [LONG], limits=(0, 1)),
    "heat of a sequence": lambda: draw_heat_of(SEQUENCE, [LONG]),
    "heat of a wide image": lambda: draw_heat_of(np.hstack([IMAGE] * 8), [LONG]),
    "pictures": lambda: draw_pairs([IMAGE]),
    "curves": lambda: draw_curves(IMAGE, NAMES[0]),
    "curves of a sequence": lambda: draw_curves(SEQUENCE, LONG),
    "curves of one amount": lambda: draw_curves(IMAGE, NAMES[1], 1),
    "fields": lambda: explanations.draw_receptive_fields(IMAGE, {name: (-9, 2, 31, 31) for name in NAMES}, **LOOKS),
    "field of a sequence": lambda: explanations.draw_receptive_fields(SEQUENCE, {LONG: (-3, 0, 80, 1)}, **LOOKS),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_nothing_is_clipped_or_covered(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    inside, outside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 <= outside.x0 and inside.y0 <= outside.y0
    assert outside.x1 <= inside.x1 and outside.y1 <= inside.y1
    shown = [axes for axes in figure.axes if axes.axison]
    labels = [text for axes in shown for text in (axes.xaxis.label, axes.title) if text.get_text()]
    boxes = [text.get_window_extent() for text in labels]
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


@pytest.mark.parametrize("name", ["curves", "fields", "heat"])
@pytest.mark.filterwarnings("error")
def test_names_of_any_kind_are_saved(name, tmp_path):
    save_figure(FIGURES[name](), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


# Filters, maps and projections.


def test_the_caption_says_how_many_filters_are_left_out():
    figure = explanations.draw_filters(RNG.normal(size=(3, 3, 3, 128)), caption="of a run")
    assert figure.get_suptitle() == "Filters of the first convolution: 128 of 3x3"
    assert figure.get_supxlabel() == "the first 100 of 128 · of a run"
    assert sum(len(axes.images) for axes in figure.axes) == 100


def test_each_filter_has_a_frame():
    axes = explanations.draw_filters(np.ones((3, 3, 1, 1))).axes[0]
    assert axes.axison and all(spine.get_visible() for spine in axes.spines.values())


def test_the_channels_of_a_sequence_are_drawn_side_by_side():
    axes = explanations.draw_filters(RNG.normal(size=(7, 1, 27, 2))).axes[0]
    assert axes.images[0].get_array().shape == (7, 27)


def test_the_maps_of_a_row_share_a_scale():
    maps = {
        "low: a": np.stack([np.full((2, 2), 4.0), np.full((2, 2), 1.0)], axis=-1),
        "high: b": np.full((1, 1, 2), -2.0),
    }
    image, first, second, *others = explanations.draw_feature_maps(IMAGE, maps, title="T", most=2).axes
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 4)
    assert image.get_ylabel() == "low:\na"
    assert others[1].images[0].get_clim() == pytest.approx((-2, -2))


def test_projections_of_many_channels_are_drawn_as_their_mean():
    projections = np.zeros((1, 1, 4, 4, 70))
    projections[0, 0, 0, 0, 5] = 1.0
    [axes] = explanations.draw_projections([3], projections, 255 * np.ones_like(projections), title="T").axes
    shown = np.asarray(axes.images[0].get_array())
    assert shown.ndim == 2
    assert shown[0, 0] == 1.0
    assert shown[1, 1] == 0.5


def test_missing_projections_are_white():
    projections = np.zeros((1, 2, 4, 4, 3))
    projections[0, 1] = np.nan
    [axes] = explanations.draw_projections([3], projections, projections, title="T").axes
    shown = np.asarray(axes.images[0].get_array())
    assert np.isfinite(shown).all()
    assert (shown[:4, :4] == 0.5).all()
    assert (shown[:4, 5:9] == 1.0).all()


# Heat.


def heat_of(values, **look):
    """Axes of one heat over a gray image."""
    heat = explanations.Heat("heat", np.array(values), **look)
    return explanations.draw_heat([(IMAGE, "x", [heat])], title="T").axes[1]


@pytest.mark.parametrize(
    ("heat", "limits", "text"),
    [
        ([[1.0]], (0, 1), "0 to 1"),
        ([[0.0]], (0, 1e-12), "0 to 1e-12"),
        ([[-2.0, 0.5]], (-2, 0.5), "-2 to 0.5"),
        ([[3.0, np.nan]], (0, 3), "0 to 3"),
    ],
)
def test_a_constant_positive_heat_is_bright(heat, limits, text):
    axes = heat_of(heat)
    assert axes.images[-1].get_clim() == limits
    assert axes.get_xlabel() == text


def test_a_heat_has_a_look_of_its_own():
    axes = heat_of([[1.0, 2.0]], limits=(0, 4), extent=(1.5, 9.5, 12.5, 2.5), smooth=False, text="none")
    heat = axes.images[-1]
    assert heat.get_clim() == (0, 4)
    assert heat.get_extent() == [1.5, 9.5, 12.5, 2.5]
    assert heat.get_interpolation() == "nearest"
    assert axes.get_xlabel() == "none"
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 15.5), (15.5, -0.5))
    plain = heat_of([[1.0, 2.0]], limits=(0, 1)).images[-1]
    assert plain.get_clim() == (0, 1)
    assert plain.get_interpolation() == "bilinear"


def test_a_long_picture_fills_its_axes():
    figure = FIGURES["heat of a sequence"]()
    assert {axes.get_aspect() for axes in figure.axes} == {"auto"}
    assert heat_of([[1.0]]).get_aspect() == 1


# Curves and fields.


def test_degrees_are_marked_by_quarters_and_pixels_by_whole_numbers():
    figure = draw_curves(IMAGE, "cat")
    shift, turn = figure.axes[1], figure.axes[5]
    assert all(float(tick).is_integer() for tick in shift.get_xticks())
    assert all(tick % 90 == 0 for tick in turn.get_xticks())


@pytest.mark.parametrize(("count", "marker"), [(1, "o"), (2, "o"), (3, "")])
def test_few_amounts_are_marked(count, marker):
    assert draw_curves(IMAGE, "cat", count).axes[1].lines[0].get_marker() == marker


def test_a_box_larger_than_the_image_is_seen():
    [axes] = explanations.draw_receptive_fields(IMAGE, {"deep": (-20, -10, 60, 40)}, title="T").axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((-10.5, 29.5), (39.5, -20.5))
    assert axes.images[0].get_extent() == [-0.5, 15.5, 15.5, -0.5]
