"""The words that messages share."""

import pytest

from kpipe.errors import did_you_mean, first_line, some

NETWORKS = ["lenet5", "alexnet", "vgg11", "vgg13", "vgg16", "vgg16_c", "vgg19", "mlp"]
ALL_VGG = ", did you mean 'vgg11', 'vgg13', 'vgg16', 'vgg16_c' or 'vgg19'?"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vgg17", ALL_VGG),
        ("VGG17", ALL_VGG),
        ("vgg", ALL_VGG),
        ("vgg16c", ", did you mean 'vgg16_c'?"),
        ("vgg_16", ", did you mean 'vgg16'?"),
        ("VGG19x", ", did you mean 'vgg19'?"),
        ("lenet", ", did you mean 'lenet5'?"),
        ("alexnt", ", did you mean 'alexnet'?"),
        ("mpl", ", did you mean 'mlp'?"),
        ("17", f" (known: {', '.join(NETWORKS)})"),
        ("resnet50", f" (known: {', '.join(NETWORKS)})"),
        ("nonet", f" (known: {', '.join(NETWORKS)})"),
    ],
)
def test_the_nearest_name_is_proposed_and_of_a_numbered_family_all(name, said):
    assert did_you_mean(name, NETWORKS) == said


def test_a_word_that_only_one_name_contains_means_that_name():
    precisions = ["float32", "mixed_bfloat16", "mixed_float16", "mixed_int8"]
    assert did_you_mean("bfloat16", precisions) == ", did you mean 'mixed_bfloat16'?"
    assert did_you_mean("int8", precisions) == ", did you mean 'mixed_int8'?"
    assert did_you_mean("mixed", precisions) == f" (known: {', '.join(precisions)})"


def test_a_large_family_is_not_listed():
    assert did_you_mean("run100", [f"run{number}" for number in range(90)]) == ", did you mean 'run10'?"


def test_some_names_are_quoted_and_counted():
    assert some(["a\nb", "it's"]) == "'a\\nb', \"it's\""
    assert some([str(number) for number in range(1_205)]) == "'0', '1', '2', '3', '4' and 1,200 more"


def test_the_first_line_of_an_error_is_printable():
    assert first_line(ValueError("\n a\x1b[31m\nmore")) == r"a\x1b[31m"
    assert first_line(KeyError()) == "KeyError"
    assert len(first_line("x" * 1000)) == 150


def test_a_long_line_ends_with_a_sentence_or_else_with_a_word():
    assert first_line(f"{'word ' * 20}is gone. Make it again with {'all ' * 20}") == f"{'word ' * 20}is gone"
    assert first_line("word " * 100) == "word " * 29 + "…"
