import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.catalog.training import LayerOptions, ReusedLayers
from kpipe.errors import ConfigError
from kpipe.training.control import Cadence
from kpipe.training.durations import steps_of
from kpipe.training.finetuning import LayerRule, make_layer_rules
from kpipe.training.optimizers import make_optimizer
from kpipe.training.trainer import Trainer

NAMES = ["conv1_1", "conv1_2", "conv2_1", "fc6", "logits"]


def steps_in(duration):
    return steps_of(duration, steps_per_epoch=10, total_steps=100)


def rules(layers=(), **options):
    entries = [LayerOptions(**entry) for entry in layers]
    return make_layer_rules(NAMES, entries=entries, steps_of=steps_in, total_steps=100, **options)


def test_layers_are_trained_from_the_first_step_at_the_same_rate():
    assert rules() == {name: LayerRule(1.0, None, 0) for name in NAMES}


def test_reused_layers_wait_and_learn_slower():
    got = rules(reused=NAMES[:3], reused_layers=ReusedLayers(rate=0.1, frozen={"epochs": 3}))
    assert got == {name: LayerRule(0.1, None, 30) for name in NAMES[:3]} | {name: LayerRule() for name in NAMES[3:]}


def test_the_first_entry_that_matches_counts_over_reused_layers():
    got = rules(
        [
            {"match": "conv1_.*", "frozen": "all"},
            {"match": "conv.*", "frozen": "none"},
            {"match": "logits", "rate": 10.0, "weight_decay": 0.0},
        ],
        reused=NAMES[:3],
        reused_layers=ReusedLayers(rate=0.1, frozen={"percent": 50}),
    )
    assert got == {
        "conv1_1": LayerRule(0.1, None, math.inf),
        "conv1_2": LayerRule(0.1, None, math.inf),
        "conv2_1": LayerRule(0.1, None, 0),
        "fc6": LayerRule(),
        "logits": LayerRule(10.0, 0.0, 0),
    }


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [{"match": "conv[12]", "frozen": "all"}],
            r"training.layers.0.match: expected a pattern that matches the name of a layer, got 'conv\[12\]', did",
        ),
        ([{"match": "logit", "rate": 2}], "training.layers.0.match: .* got 'logit', did you mean 'logits'"),
        ([{"match": "fc6"}], "training.layers.0.match: expected rate, weight_decay or frozen beside it; alone it "),
        (
            [{"match": "fc6", "frozen": "all", "rate": 2}],
            r"training.layers.0.rate: means nothing for layers that keep their weights \(frozen: all\)",
        ),
        (
            [{"match": "fc6", "rate": 2}, {"match": "conv("}],
            "training.layers.1.match: expected a regular expression, got 'conv\\('",
        ),
        (
            [{"match": "conv.*", "frozen": {"steps": 100}}],
            r"training.layers.0.frozen: expected a length shorter than the training \(100 steps\), got 100 steps; ",
        ),
        (
            [{"match": ".*", "frozen": {"epochs": 1}}],
            "training: expected a layer that is trained from the first step on, but all are frozen",
        ),
    ],
)
def test_a_rule_that_cannot_work_is_refused(layers, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        rules(layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [],
            "training.reused_layers: expected a layer that is trained from the first step on, but all are frozen and "
            "none is new. Leave frozen out, or train the last layer: "
            r"training.layers=\[{match: logits, frozen: none}\]$",
        ),
        (
            [{"match": "fc6", "rate": 2.0}],
            r"training.layers.0: says how fc6 is trained, but training.reused_layers keeps its weights \(frozen: all\)"
            ". Add frozen: none, or a length such as {epochs: 3}$",
        ),
    ],
)
def test_layers_that_are_all_reused_and_frozen_cannot_be_trained(layers, message):
    frozen = {"reused": NAMES, "reused_layers": ReusedLayers(frozen="all")}
    with pytest.raises(ConfigError, match=f"^{message}"):
        rules(layers, **frozen)
    assert rules([{"match": "logits", "frozen": "none"}], **frozen)["logits"] == LayerRule()


# --- training by the rules ------------------------------------------------------------------------------------

STEPS = 12


def make_trainer(thaws, optimizer="sgd", **options):
    keras.utils.set_random_seed(0)
    images = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(3, 3, name="conv")(images)
    x = keras.layers.BatchNormalization(name="bn")(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    model = keras.Model(images, keras.layers.Dense(3, name="logits", dtype="float32")(x), name="tiny")
    made = make_optimizer(optimizer, {"momentum": 0.9} if optimizer == "sgd" else {}, 0.01, **options)
    model.compile(made, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return Trainer(model, thaws=thaws)


def batches_from(first):
    def make_batch(step):
        images = tf.random.stateless_uniform((6, 4, 4, 1), (7, step))
        return images, tf.cast(tf.reduce_sum(images, (1, 2, 3)), tf.int32) % 3

    return tf.data.Dataset.range(first, STEPS).map(make_batch)


def fit(trainer, chunk=None, seen=None):
    hooks = {}
    if seen is not None:
        from kpipe.training.control import Hooks

        hooks["hooks"] = Hooks(on_progress=lambda step, metrics: seen.append((step, weights_of(trainer))))
    return trainer.fit(
        batches_from, steps_per_epoch=STEPS, epochs=1, cadence=Cadence(log_every=STEPS, chunk=chunk), **hooks
    )


def weights_of(trainer):
    return {variable.path: variable.numpy() for variable in trainer.model.weights}


def test_frozen_layers_keep_their_weights_until_they_thaw():
    trainer, seen = make_trainer({"conv": 5, "bn": 5}), []
    before = weights_of(trainer)
    fit(trainer, chunk=1, seen=seen)
    for step, weights in seen:
        changed = {path for path, value in weights.items() if not np.array_equal(value, before[path])}
        frozen = {path for path in weights if not path.startswith("logits")}
        assert changed.isdisjoint(frozen) if step <= 5 else frozen <= changed, step


def test_frozen_batch_normalization_uses_its_running_statistics():
    """With the initial ones, mean 0 and variance 1, the first step is that of a network without it."""
    trainer = make_trainer({"conv": math.inf, "bn": math.inf})
    model = trainer.model
    images, labels = next(iter(batches_from(0)))
    flat = tf.reshape(tf.nn.relu(model.get_layer("conv")(images) / np.sqrt(1 + 1e-3)), (6, -1))
    kernel, bias = model.get_layer("logits").weights
    with tf.GradientTape() as tape:
        logits = flat @ kernel.value + bias.value
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    expected = kernel.numpy() - 0.01 * tape.gradient(loss, kernel.value).numpy()
    trainer.run_steps(iter(batches_from(0)), 1)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_layers_that_are_frozen_for_good_have_no_optimizer_variables():
    assert not [v.path for v in make_trainer({"conv": math.inf}).model.optimizer.variables if "conv" in v.path]
    assert [v.path for v in make_trainer({"conv": 5}).model.optimizer.variables if "conv" in v.path]


@pytest.mark.parametrize(
    ("optimizer", "chunk"), [("sgd", 1), *(pytest.param("adam", chunk, marks=pytest.mark.slow) for chunk in (5, 7))]
)
def test_thawing_does_not_depend_on_the_chunks(optimizer, chunk):
    whole, chunked = (make_trainer({"conv": 5, "bn": 7}, optimizer) for _ in range(2))
    fit(whole)
    fit(chunked, chunk)
    for path, value in weights_of(whole).items():
        np.testing.assert_array_equal(value, weights_of(chunked)[path], err_msg=path)


def test_a_thawed_layer_moves_as_if_the_training_began_there():
    """With plain SGD, whose momentum of the frozen layer is 0: the first update is the rate times the gradient."""
    trainer = make_trainer({"conv": 5, "bn": math.inf})
    seen = []
    fit(trainer, chunk=1, seen=seen)
    steps = dict(seen)
    twin = make_trainer({"bn": math.inf})
    for variable in twin.model.weights:
        variable.assign(steps[5][variable.path])
    twin.run_steps(iter(batches_from(5)), 1)
    np.testing.assert_allclose(weights_of(twin)["conv/kernel"], steps[6]["conv/kernel"], rtol=1e-6)
