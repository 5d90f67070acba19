import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import top_k_accuracy_score

from kpipe.catalog.training import LOSSES
from kpipe.errors import ConfigError
from kpipe.models.googlenet import WithAuxiliaryHeads, googlenet
from kpipe.training.losses import CrossEntropy, Euclidean, MapCriterion, make_loss
from kpipe.training.metrics import Accuracy, Top5Accuracy, make_metrics

OPTIONS = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.1}),
    ("euclidean", {}),
    ("euclidean", {"output": "linear"}),
    ("map", {}),
    ("map", {"j": 2.5}),
]
all_losses = pytest.mark.parametrize("name, options", OPTIONS)

LABELS = np.int32([3, 0, 1, 3])
LOGITS = np.random.default_rng(0).uniform(-3, 3, (4, 5)).astype("float32")


def by_numpy(name, labels, logits, *, label_smoothing=0.0, output="tanh", j=1.0) -> np.ndarray:
    """float64 [B], from the formulas of the docstrings."""
    logits = np.float64(logits)
    true = logits[np.arange(len(labels)), labels]
    if name == "cross_entropy":
        smooth = label_smoothing * logits.mean(axis=1) + (1 - label_smoothing) * true
        return np.log(np.exp(logits).sum(axis=1)) - smooth
    if name == "map":
        penalties = -logits
        return -true + np.log(np.exp(-j) + np.exp(-penalties).sum(axis=1))
    codes = np.where(np.arange(logits.shape[1]) == labels[:, None], 1.0, -1.0)
    outputs = np.tanh(logits) if output == "tanh" else logits
    return ((outputs - codes) ** 2).sum(axis=1) / 2


def value(loss, labels, logits) -> float:
    return float(loss(np.int32(labels), np.float32(logits)))


# --- values and gradients -----------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    logits = np.log([[1.0, 2.0, 5.0]])
    assert value(CrossEntropy(), [2], logits) == pytest.approx(-np.log(5 / 8), rel=1e-6)
    assert value(CrossEntropy(), [0], logits) == pytest.approx(np.log(8), rel=1e-6)


def test_label_smoothing_by_hand():
    """0.3 of the label is spread over three classes: 0.1, 0.1 and 0.8."""
    logits = np.log([[1.0, 2.0, 5.0]])
    expected = 0.1 * np.log(8) + 0.1 * np.log(8 / 2) + 0.8 * np.log(8 / 5)
    assert value(CrossEntropy(0.3), [2], logits) == pytest.approx(expected, rel=1e-6)
    # Half and half of the first two classes: 0.45, 0.45 and 0.1.
    soft, expected = [[0.5, 0.5, 0.0]], 0.45 * np.log(8) + 0.45 * np.log(4) + 0.1 * np.log(8 / 5)
    assert float(CrossEntropy(0.3)(np.float32(soft), np.float32(logits))) == pytest.approx(expected, rel=1e-6)


def test_euclidean_by_hand():
    logits = [[1.0, -1.0, -1.0]]
    assert value(Euclidean("linear"), [0], logits) == 0.0
    assert value(Euclidean("linear"), [1], logits) == 4.0  # two outputs are off by 2
    assert value(Euclidean("linear"), [1], [[0.0, 3.0, -1.0]]) == 2.5
    assert value(Euclidean(), [0], [[50.0, -50.0, -50.0]]) == pytest.approx(0.0, abs=1e-6)
    assert value(Euclidean(), [1], [[0.0, 0.0, 0.0]]) == 1.5


def test_map_criterion_by_hand():
    penalties = np.array([[1.0, 2.0, 3.0]])
    total = np.exp(-0.5) + np.exp(-1) + np.exp(-2) + np.exp(-3)
    assert value(MapCriterion(0.5), [1], -penalties) == pytest.approx(2.0 + np.log(total), rel=1e-6)
    # A true class at no distance with all others far away costs log(1 + exp(-j)): the junk class alone.
    assert value(MapCriterion(2.0), [0], [[0.0, -90.0]]) == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-5)
    # And where everything is far away, the distance to the true class less j.
    assert value(MapCriterion(2.0), [0], [[-1e4, -2e4]]) == pytest.approx(1e4 - 2.0, rel=1e-6)


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS[:, None], LABELS[:, None].astype("float32")], ids=["flat", "column", "floats"]
)
@all_losses
def test_one_loss_per_image(name, options, labels):
    losses = make_loss(name, options).call(tf.constant(labels), tf.constant(LOGITS))
    assert losses.shape == (4,)
    np.testing.assert_allclose(losses, by_numpy(name, LABELS, LOGITS, **options), rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1)], ids=str)
@all_losses
def test_training_takes_the_mean(name, options, shape):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Activation("linear")])
    model.compile(loss=make_loss(name, options))
    reported = model.test_on_batch(LOGITS, LABELS.reshape(shape))
    np.testing.assert_allclose(reported, by_numpy(name, LABELS, LOGITS, **options).mean(), rtol=1e-5)


@all_losses
def test_logits_of_half_precision_are_computed_in_float32(name, options):
    logits = tf.cast(LOGITS, "bfloat16")
    loss = make_loss(name, options)(LABELS, logits)
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, by_numpy(name, LABELS, tf.cast(logits, "float32"), **options).mean(), rtol=1e-5)


@all_losses
def test_gradients_are_the_finite_differences(name, options):
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(make_loss(name, options).call(tf.constant(LABELS), logits))
    gradient = tape.gradient(total, logits)
    expected = np.empty(LOGITS.shape)
    for place in np.ndindex(*LOGITS.shape):
        step = np.zeros(LOGITS.shape)
        step[place] = 1e-4
        above, below = (by_numpy(name, LABELS, LOGITS + sign * step, **options).sum() for sign in (1, -1))
        expected[place] = (above - below) / 2e-4
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("j", [0.5, 3.0])
def test_map_criterion_pulls_the_true_class_and_pushes_the_near_others(j):
    """By the penalties: 1 - posterior of the true class, minus that of each other, over all K and the junk class."""
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(MapCriterion(j).call(tf.constant(LABELS), logits))
    by_penalties = -np.asarray(tape.gradient(total, logits))
    near = np.exp(np.float64(LOGITS))
    posteriors = near / (np.exp(-j) + near.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(by_penalties, np.eye(5)[LABELS] - posteriors, rtol=1e-4, atol=1e-6)


# --- soft labels --------------------------------------------------------------------------------------------

SOFT = np.random.default_rng(6).dirichlet(np.ones(5), 4).astype("float32")


def of_soft_labels(name, labels, logits, **options) -> np.ndarray:
    """float64 [B]. Two of the losses are linear in the label: the mean of what the classes would cost."""
    if name == "euclidean":
        outputs = np.tanh(np.float64(logits)) if options.get("output", "tanh") == "tanh" else np.float64(logits)
        return ((outputs - (2 * labels - 1)) ** 2).sum(axis=1) / 2
    costs = [by_numpy(name, np.full(len(logits), k), logits, **options) for k in range(logits.shape[1])]
    return (labels * np.stack(costs, axis=1)).sum(axis=1)


@all_losses
def test_soft_labels_weight_the_classes(name, options):
    losses = make_loss(name, options).call(tf.constant(SOFT), tf.constant(LOGITS))
    np.testing.assert_allclose(losses, of_soft_labels(name, SOFT, LOGITS, **options), rtol=1e-5)


@all_losses
def test_soft_labels_of_a_single_class_cost_what_the_class_costs(name, options):
    loss = make_loss(name, options)
    whole = loss.call(tf.one_hot(LABELS, 5), tf.constant(LOGITS))
    np.testing.assert_allclose(whole, loss.call(tf.constant(LABELS), tf.constant(LOGITS)), rtol=1e-6)


def test_cross_entropy_is_keras_s_own_in_both_forms():
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    dense = keras.losses.CategoricalCrossentropy(from_logits=True)
    assert float(CrossEntropy()(LABELS, LOGITS)) == float(sparse(LABELS, LOGITS))
    assert float(CrossEntropy()(SOFT, LOGITS)) == float(dense(SOFT, LOGITS))
    weights = np.float32([1, 0, 2, 0.5])
    assert float(CrossEntropy()(SOFT, LOGITS, weights)) == float(dense(SOFT, LOGITS, weights))


def test_label_smoothing_is_keras_s_own():
    dense = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    weights = np.float32([1, 0, 2, 0.5])
    for ours, theirs in ((LABELS, np.eye(5, dtype="float32")[LABELS]), (SOFT, SOFT)):
        expected = float(dense(theirs, LOGITS, weights))
        assert float(CrossEntropy(0.1)(ours, LOGITS, weights)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_label_smoothing_is_torch_s_own():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for labels in (LABELS.astype("int64"), SOFT):
        expected = float(theirs(torch.from_numpy(LOGITS), torch.from_numpy(labels)))
        assert float(CrossEntropy(0.1)(labels, LOGITS)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_makes_no_one_hot_labels_of_classes(label_smoothing):
    loss = CrossEntropy(label_smoothing)
    spec = [tf.TensorSpec((None,), "int32"), tf.TensorSpec((None, 1000))]
    traced = tf.function(lambda labels, logits: loss(labels, logits)).get_concrete_function(*spec)
    assert "OneHot" not in {operation.type for operation in traced.graph.get_operations()}


def test_soft_labels_and_weights_by_hand():
    """Labels of half and half; the weight of 3 multiplies what the image costs."""

    def weighted(loss, labels, logits):
        return float(loss(np.float32([labels]), np.float32([logits]), np.float32([3])))

    # The code is (0, 0, -1): one output is off by 1.
    assert weighted(Euclidean("linear"), [0.5, 0.5, 0.0], [1.0, 0.0, -1.0]) == 3 * 0.5
    expected = 2.0 + np.log(np.exp(-1) + np.exp(-1) + np.exp(-3))  # penalties of 1 and 3, and j = 1
    assert weighted(MapCriterion(), [0.5, 0.5], [-1.0, -3.0]) == pytest.approx(3 * expected, rel=1e-6)


@all_losses
def test_the_shape_says_which_form_it_is_when_the_loss_is_traced(name, options):
    loss = make_loss(name, options)
    spec = [tf.TensorSpec((None, 5)), tf.TensorSpec((None, 5))]
    traced = tf.function(lambda labels, logits: loss(labels, logits)).get_concrete_function(*spec)
    expected = of_soft_labels(name, SOFT, LOGITS, **options).mean()
    np.testing.assert_allclose(traced(tf.constant(SOFT), tf.constant(LOGITS)), expected, rtol=1e-5)


def test_labels_of_a_single_class_are_not_soft():
    assert value(CrossEntropy(), [[0], [0]], [[3.0], [-1.0]]) == 0.0


# --- accuracy -----------------------------------------------------------------------------------------------


def test_accuracy_takes_both_forms_in_one_life():
    metric = Accuracy()
    assert metric.name == "accuracy"
    right = LOGITS.argmax(axis=1).astype("int32")
    metric.update_state(np.eye(5, dtype="float32")[right] * 0.6 + 0.08, LOGITS)
    assert float(metric.result()) == 1.0
    metric.update_state((right + np.int32([0, 1, 1, 1])) % 5, LOGITS)
    assert float(metric.result()) == 5 / 8
    metric.update_state(right[:, None].astype("float32"), LOGITS)
    assert float(metric.result()) == 9 / 12


def test_accuracy_is_keras_s_own():
    logits = np.random.default_rng(7).normal(size=(50, 5)).astype("float32")
    labels = np.random.default_rng(8).integers(0, 5, 50).astype("int32")
    for theirs, ours in (
        (keras.metrics.SparseCategoricalAccuracy(), labels),
        (keras.metrics.CategoricalAccuracy(), np.eye(5, dtype="float32")[labels]),
    ):
        theirs.update_state(ours, logits)
        metric = keras.metrics.deserialize(keras.metrics.serialize(Accuracy()))
        metric.update_state(ours, logits)
        assert float(metric.result()) == float(theirs.result())


# --- top-5 accuracy -----------------------------------------------------------------------------------------


def test_top_5_accuracy_is_keras_s_and_scikit_learn_s_own():
    logits = np.random.default_rng(7).normal(size=(50, 12)).astype("float32")
    labels = np.random.default_rng(8).integers(0, 12, 50).astype("int32")
    theirs = keras.metrics.SparseTopKCategoricalAccuracy(5)
    theirs.update_state(labels, logits)
    assert float(theirs.result()) == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(12)))
    for ours in (labels, labels[:, None].astype("float32"), np.eye(12, dtype="float32")[labels] * 0.6 + 0.1):
        metric = keras.metrics.deserialize(keras.metrics.serialize(Top5Accuracy()))
        metric.update_state(ours, logits)
        assert (metric.name, float(metric.result())) == ("top5", float(theirs.result()))


def test_of_equal_logits_the_first_five_count():
    """A network that says nothing is right in 5 of 8 classes. So scikit-learn counts, from the last class on."""
    logits, labels = np.zeros((8, 8), "float32"), np.arange(8)
    top1, top5 = Accuracy(), Top5Accuracy()
    for metric in (top1, top5):
        metric.update_state(labels, logits)
    assert (float(top1.result()), float(top5.result())) == (1 / 8, 5 / 8)
    assert top_k_accuracy_score(labels, logits, k=5) == 5 / 8
    top5.reset_state()
    top5.update_state(np.int32([6, 7]), np.float32([[9, 9, 9, 9, 0, 0, 0, 0], [9, 9, 9, 9, 0, 0, 0, 1]]))
    assert float(top5.result()) == 0.5  # class 4 is the fifth of the first, class 7 of the second


def test_top_5_accuracy_is_that_of_more_than_five_classes():
    assert [metric.name for metric in make_metrics(5)] == ["accuracy"]
    assert [metric.name for metric in make_metrics(6)] == ["accuracy", "top5"]


# --- by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_signatures_equal_the_table(name):
    parameters = inspect.signature(LOSSES[name].load()).parameters
    defaults = {key: value.default for key, value in parameters.items() if key not in ("name", "kwargs")}
    assert defaults == {key: field.default for key, field in LOSSES[name].options.model_fields.items()}


def test_every_loss_is_tested_here():
    assert {name for name, _ in OPTIONS} == set(LOSSES)


@all_losses
def test_a_loss_from_its_config(name, options):
    loss = make_loss(name, options)
    revived = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(revived) is type(loss)
    assert {key: getattr(revived, key) for key in options} == options
    assert revived(LABELS, LOGITS) == loss(LABELS, LOGITS)


@pytest.mark.parametrize(
    "loss, own",
    [
        (CrossEntropy(0.2, name="mine", reduction="sum"), {"label_smoothing": 0.2}),
        (Euclidean("linear", name="mine", reduction="sum"), {"output": "linear"}),
        (MapCriterion(3.0, name="mine", reduction="sum"), {"j": 3.0}),
    ],
)
def test_the_config_gives_back_the_arguments(loss, own):
    config = type(loss).from_config(loss.get_config()).get_config()
    assert config == {"name": "mine", "reduction": "sum", **own}


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "cross_entorpy",
            None,
            "training.loss: expected a known name, got 'cross_entorpy', did you mean 'cross_entropy'?",
        ),
        ("hinge", {}, "training.loss: expected a known name, got 'hinge' (known: cross_entropy, euclidean, map)"),
        ("cross_entropy", {"label_smoothing": 1}, "training.loss.label_smoothing: expected less than 1, got 1"),
        ("cross_entropy", {"label_smoothing": -0.1}, "training.loss.label_smoothing: expected at least 0, got -0.1"),
        ("euclidean", {"output": "relu"}, "training.loss.output: expected one of tanh, linear, got 'relu'"),
        ("map", {"j": 0}, "training.loss.j: expected more than 0, got 0"),
        ("map", {"j": -1.5}, "training.loss.j: expected more than 0, got -1.5"),
        ("map", {"j": float("nan")}, "training.loss.j: expected a finite number, got nan"),
    ],
)
def test_mistakes(name, options, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_loss(name, options)


@pytest.mark.parametrize("name", LOSSES)
def test_an_option_that_a_loss_does_not_have(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'smoothing'"):
        make_loss(name, {"smoothing": 0.1})


# --- auxiliary heads ----------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 1)).astype("float32")


@pytest.fixture(scope="module")
def with_heads():
    keras.utils.set_random_seed(0)
    model = googlenet((32, 32, 1), 5, auxiliary_heads=True)
    # Eager, because its graph takes long to build.
    model.compile("sgd", make_loss("cross_entropy"), metrics=[Accuracy()], run_eagerly=True)
    return model


def three_logits():
    return [np.random.default_rng(seed).uniform(-3, 3, (4, 5)).astype("float32") for seed in (2, 3, 4)]


def weighted(name, losses_of, weights=1.0):
    """The main loss and that of training, from the three logits."""
    main, *heads = [(by_numpy(name, LABELS, logits) * weights).mean() for logits in losses_of]
    return main, main + 0.3 * sum(heads)


@pytest.mark.parametrize("weights", [None, np.float32([1, 0, 2, 0.5])], ids=["plain", "weighted"])
def test_heads_count_in_training_only(with_heads, weights):
    logits = three_logits()
    main, training = weighted("cross_entropy", logits, 1.0 if weights is None else weights)

    def loss(**options):
        return float(with_heads.compute_loss(IMAGES, tf.constant(LABELS), logits, weights, **options))

    assert loss(training=False) == pytest.approx(main, rel=1e-5)
    assert loss(training=True) == pytest.approx(training, rel=1e-5)
    assert loss() == pytest.approx(training, rel=1e-5)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft labels"])
@all_losses
def test_heads_count_with_every_loss_both_forms_of_labels_and_weights(name, options, soft):
    labels, formula = (SOFT, of_soft_labels) if soft else (LABELS, by_numpy)
    logits, weights = three_logits(), np.float32([1, 0, 2, 0.5])
    main, *heads = [(formula(name, labels, each, **options) * weights).mean() for each in logits]
    model = small_with_heads()
    model.compile(loss=make_loss(name, options))
    for training, expected in ((False, main), (True, main + 0.3 * sum(heads))):
        loss = model.compute_loss(None, tf.constant(labels), logits, weights, training=training)
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_metrics_know_the_first_output_only(with_heads):
    right, wrong = (10 * np.eye(5, dtype="float32")[labels] for labels in (LABELS, (LABELS + 1) % 5))
    for logits, expected in (([right, wrong, wrong], 1.0), ([wrong, right, right], 0.0)):
        with_heads.reset_metrics()
        metrics = with_heads.compute_metrics(IMAGES, tf.constant(LABELS), [tf.constant(one) for one in logits])
        assert float(metrics["accuracy"]) == expected
    with_heads.reset_metrics()


def test_googlenet_evaluates_and_predicts_by_the_first_output(with_heads):
    outputs = with_heads(IMAGES)
    assert [tuple(logits.shape) for logits in outputs] == [(4, 5)] * 3
    predicted = with_heads.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(predicted, outputs[0], rtol=1e-5, atol=1e-6)
    scores = with_heads.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert scores["loss"] == pytest.approx(by_numpy("cross_entropy", LABELS, predicted).mean(), rel=1e-4)
    assert scores["accuracy"] == (predicted.argmax(axis=1) == LABELS).mean()


def small_with_heads():
    inputs = keras.Input((3,))
    start = keras.initializers.RandomNormal(seed=0)
    outputs = [keras.layers.Dense(5, kernel_initializer=start.clone(), name=f"out{i}")(inputs) for i in range(3)]
    return WithAuxiliaryHeads(inputs, outputs)


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_step_trains_with_the_heads(name, tmp_path):
    model = small_with_heads()
    model.compile(keras.optimizers.SGD(0.1), make_loss(name))
    x = np.random.default_rng(5).uniform(-1, 1, (4, 3)).astype("float32")
    before = model.get_weights()
    main, training = weighted(name, model(x))
    assert model.test_on_batch(x, LABELS) == pytest.approx(main, rel=1e-5)
    assert model.train_on_batch(x, LABELS) == pytest.approx(training, rel=1e-5)
    assert all(np.abs(new - old).max() > 0 for new, old in zip(model.get_weights(), before, strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, WithAuxiliaryHeads)
    np.testing.assert_allclose(loaded.predict_on_batch(x), model(x)[0], rtol=1e-5, atol=1e-6)
