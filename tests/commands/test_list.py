"""`kpipe list`: sections, names and options, in short, in full and for programs."""

import inspect
import io
import json

import pytest
from rich.console import Console

from kpipe.catalog.tables import TABLES
from kpipe.commands.list import describe_names, show_names
from kpipe.config.loading import load_experiment
from kpipe.console import Screen
from kpipe.errors import ConfigError

EVERY_NAME = [(section, name) for section, rows in TABLES.items() for name in rows]


def in_a_terminal(width, *arguments):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    show_names(*arguments, screen=Screen(console))
    return file.getvalue()


def test_each_section_and_name_with_its_options(kpipe):
    code, out, err = kpipe("list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:4] == [
        "Each option is followed by its values or its type, and by its default. To see one name in full:",
        "  kpipe list models vgg16",
        "",
        "models",
    ]
    assert [line for line in lines if line.isidentifier()] == list(TABLES)
    place = lines.index("  sgd: stochastic gradient descent, with momentum if given")
    options = "weight_decay: {value, kind} = none, momentum: number = 0, nesterov: true|false = false"
    assert lines[place + 1] == f"    {options}"
    assert "    head: fc|gap = fc" not in lines  # in a pipe, a name has all its options on one line


def test_one_section(kpipe):
    code, out, err = kpipe("list", "normalizations")
    assert (code, err) == (0, "")
    assert "  mean_image: subtract the mean of each pixel, as AlexNet did\n" in out
    assert "    components: integer (required)\n" in out
    assert "vgg16:" not in out


@pytest.mark.parametrize("width", [60, 80])
def test_a_terminal_cuts_no_word_and_no_option(width):
    lines = in_a_terminal(width).splitlines()
    too_long = "    activation: relu|leaky_relu|sigmoid|tanh|scaled_tanh|maxout = relu,"
    assert [line for line in lines if len(line) > width] == []
    assert (too_long in lines) == (width == 80)
    assert "    batch_norm: true|false = false, head: fc|gap = fc," in " ".join(lines)


def test_a_name_in_full(kpipe):
    code, out, err = kpipe("list", "optimizers", "adamw")
    assert (code, err) == (0, "")
    assert out.splitlines()[:9] == [
        "adamw",
        "Adam with decoupled decay, Loshchilov and Hutter 2019",
        'I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019',
        "",
        "  weight_decay: {value, kind} = {value: 0.004, kind: decoupled}",
        "      How the weights decay.",
        "      value: number (at least 0) (required)",
        "          How strongly weights are drawn to zero, such as 5e-4.",
        "      kind: l2|decoupled = decoupled",
    ]
    assert "  beta_1: number (at least 0, below 1) = 0.9\n      Decay of the running mean of gradients.\n" in out
    example = "training: {optimizer: {name: adamw, weight_decay: {value: 0.004, kind: decoupled}, beta_1: 0.9}}"
    assert out.endswith(f"\nIn an experiment:\n  {example}\n")


def test_of_several_keys_one_is_given(kpipe):
    out = kpipe("list", "schedules", "multistep")[1]
    assert "  milestones: {epochs|steps|images|percent} = {percent: [50, 75]}\n" in out
    assert "      steps: list of integers (at least 1)\n          Numbers of training steps after the start.\n" in out


def test_an_example_stays_on_one_line_of_a_narrow_terminal():
    lines = in_a_terminal(40, "augmentations", "random_resized_crop").splitlines()
    assert lines[-1] == "  data: {augment: [{random_resized_crop: {area: [0.08, 1], aspect: [0.75, 1.33333]}}]}"


def test_the_names_for_programs(kpipe):
    found = json.loads(kpipe("list", "--json")[1])
    assert {section: list(names) for section, names in found.items()} == {
        section: list(rows) for section, rows in TABLES.items()
    }
    [(name, vgg16)] = json.loads(kpipe("list", "models", "vgg16", "--json")[1])["models"].items()
    assert (name, vgg16["summary"]) == ("vgg16", "VGG net D: 13 convolutions, 3 dense layers")
    assert "ICLR 2015" in vgg16["paper"]
    assert vgg16["example"] == "model: {name: vgg16, batch_norm: false, head: fc}"
    width = vgg16["options"]["properties"]["width"]
    assert (width["type"], width["minimum"], width["default"]) == ("integer", 1, 4096)
    assert vgg16["options"]["properties"]["head"]["enum"] == ["fc", "gap"]


def undescribed(schema):
    sections = [schema, *schema.get("$defs", {}).values()]
    return [name for section in sections for name, key in section["properties"].items() if "description" not in key]


@pytest.mark.parametrize(("section", "name"), EVERY_NAME)
def test_every_option_is_described_and_every_example_is_valid(section, name, tmp_path):
    found = describe_names(section, name)[section][name]
    assert undescribed(found["options"]) == []
    given = {"data": "data: {source: digits}", "model": "model: {name: mlp}"}
    given[found["example"].partition(":")[0]] = found["example"]
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(given.values()))
    size = 128 if section == "models" else 32
    images = ["data.source=tfds:cifar10", f"data.image_size={size}", f"data.stored_size={size + 8}"]
    assert load_experiment(path, [] if section == "sources" else images)


def test_a_network_s_paper_is_that_of_its_module():
    for name, row in TABLES["models"].items():
        documentation = " ".join(inspect.getdoc(inspect.getmodule(row.load())).split())
        assert row.paper is None or row.paper in documentation, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimisers"], "list: expected a section, got 'optimisers', did you mean 'optimizers'?"),
        (["figures"], "list: expected a section, got 'figures' (known: models, sources, normalizations, augment"),
        (["vgg16"], "list: expected a section, got 'vgg16'. Write kpipe list models vgg16"),
        (["models", "vgg_16"], "list models: expected a name, got 'vgg_16', did you mean 'vgg16'?"),
        (["losses", "zzz"], "list losses: expected a name, got 'zzz' (known: cross_entropy, euclidean, map)"),
    ],
)
def test_mistakes(kpipe, arguments, message):
    code, out, err = kpipe("list", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    with pytest.raises(ConfigError):
        describe_names(*arguments)
