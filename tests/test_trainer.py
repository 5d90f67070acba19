import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kpipe.errors import ConfigError, DataError, Diverged, EnvironmentFault
from kpipe.training.checkpoints import load_checkpoint, save_checkpoint
from kpipe.training.distribution import make_strategy
from kpipe.training.precision import precision_scope
from kpipe.training.trainer import Trainer, TrainState

STEPS_PER_EPOCH, EPOCHS, BATCH = 20, 3, 8


def make_model(learning_rate=0.05, policy="float32", batch_norm=True):
    keras.utils.set_random_seed(0)
    with precision_scope(policy):
        model = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Conv2D(3, 3, name="conv1"),
                keras.layers.BatchNormalization(name="norm1") if batch_norm else keras.layers.Identity(),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.3, seed=1),
                keras.layers.Dense(3, name="logits", dtype="float32"),
            ],
            name="tiny",
        )
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def make_batch(step):
    draws = tf.random.stateless_uniform((BATCH, 4, 4, 1), (7, step), 0, 256, tf.int32)
    labels = tf.cast(tf.reduce_sum(draws, (1, 2, 3)) % 3, tf.int32)
    return tf.cast(draws, tf.uint8), labels


def batches_from(first, last=STEPS_PER_EPOCH * EPOCHS):
    return tf.data.Dataset.range(first, last).map(make_batch)


def make_part(images=21):
    """The last batch is partial."""
    return batches_from(1000, 1010).unbatch().take(images).batch(BATCH)


def fit(trainer, batches=batches_from, **options):
    settings = {"steps_per_epoch": STEPS_PER_EPOCH, "epochs": EPOCHS, "log_every": 10}
    return trainer.fit(batches, **(settings | options))


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {f"{index} {variable.name}": variable.numpy() for index, variable in enumerate(variables)}


def assert_same(model, other, tolerance=0.0):
    expected = state_of(other)
    for name, value in state_of(model).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def reference():
    """Trained in chunks as long as they get, with what was logged."""
    records = []
    trainer = Trainer(make_model())
    fit(trainer, on_log=records.append, validation=make_part())
    return trainer.model, records


def without_speed(records):
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]


class Stopper:
    """`should_stop` that says yes when `step` is reached."""

    def __init__(self, step):
        self.step, self.reached = step, 0

    def see(self, step, metrics):
        self.reached = step

    def __call__(self):
        return self.reached >= self.step


class Recorder(keras.callbacks.Callback):
    """Writes down each call of Keras, and the names of the logs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __getattribute__(self, name):
        if name.startswith("on_") and name.endswith(("train_begin", "train_end", "test_begin", "test_end")):
            return lambda logs=None: self.calls.append((name, *sorted(logs or ())))
        return super().__getattribute__(name)

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("on_epoch_begin", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("on_epoch_end", epoch, *sorted(logs)))

    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("on_train_batch_begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("on_train_batch_end", batch, *sorted(logs)))


# --- the loop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 10])
def test_the_cut_into_chunks_changes_nothing(reference, chunk):
    model, expected = reference
    records = []
    trainer = Trainer(make_model())
    fit(trainer, chunk=chunk, on_log=records.append, validation=make_part())
    assert_same(trainer.model, model)
    assert without_speed(records) == without_speed(expected)


# With batch normalisation the loop and `fit` were measured to differ in the last bits, without it in none.
@pytest.mark.parametrize(("batch_norm", "tolerance"), [(False, 0.0), (True, 2e-6)])
def test_equals_keras_fit(batch_norm, tolerance):
    records = []
    trainer, model = Trainer(make_model(batch_norm=batch_norm)), make_model(batch_norm=batch_norm)
    fit(trainer, on_log=records.append)
    history = model.fit(
        batches_from(0), steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS, shuffle=False, verbose=0
    ).history
    assert_same(trainer.model, model, tolerance)
    lines = [line for line in records if line["span"] == "epoch"]
    np.testing.assert_allclose([line["loss"] for line in lines], history["loss"], rtol=1e-5)
    np.testing.assert_allclose([line["accuracy"] for line in lines], history["accuracy"], rtol=1e-5)


def test_one_trace_for_all_chunks():
    trainer = Trainer(make_model())
    fit(trainer, chunk=7)
    fit(trainer, lambda first: batches_from(first, 80), epochs=4, state=TrainState(step=60, line_step=60))
    assert trainer._run_steps.experimental_get_tracing_count() == 1


def test_the_time_of_a_chunk_is_bounded():
    steps = []
    trainer = Trainer(make_model())
    fit(trainer, epochs=1, max_chunk_seconds=0.0, on_progress=lambda step, metrics: steps.append(step))
    assert steps == list(range(1, STEPS_PER_EPOCH + 1))


def test_log_lines_say_what_the_mean_is_over(reference):
    records = reference[1][:4]
    where = [(line["step"], line["epoch"], line["split"], line["span"]) for line in records]
    assert where == [
        (10, 1, "train", "steps"),
        (20, 1, "train", "steps"),
        (20, 1, "train", "epoch"),
        (20, 1, "validation", "epoch"),
    ]
    first, second, epoch, validation = records
    assert epoch["loss"] == pytest.approx((first["loss"] + second["loss"]) / 2)
    assert first["learning_rate"] == pytest.approx(0.05)
    assert first["images_per_second"] > 0 and epoch["images_per_second"] > 0
    assert set(validation) == {"step", "epoch", "split", "span", "loss", "accuracy"}


def test_an_epoch_that_ends_between_two_lines_is_counted_whole(reference):
    records = []
    fit(Trainer(make_model()), log_every=13, on_log=records.append)
    assert [line["step"] for line in records if line["span"] == "steps"] == [13, 26, 39, 52]
    epochs = [line["loss"] for line in records if line["span"] == "epoch"]
    expected = [line["loss"] for line in reference[1] if (line["split"], line["span"]) == ("train", "epoch")]
    np.testing.assert_allclose(epochs, expected, rtol=1e-6)


def test_half_precision_trains():
    records = []
    fit(Trainer(make_model(policy="mixed_bfloat16")), epochs=1, on_log=records.append)
    assert math.isfinite(records[-1]["loss"])


def test_there_is_one_strategy():
    assert make_strategy() is make_strategy()


# --- stop and resume --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [33, 40])
def test_a_resumed_training_equals_an_uninterrupted_one(reference, tmp_path, step):
    model, expected = reference
    records, stopper = [], Stopper(step)
    options = {"chunk": 1, "on_log": records.append, "validation": make_part(), "on_progress": stopper.see}
    trainer = Trainer(make_model())
    state = fit(trainer, should_stop=stopper, **options)
    assert (state.step, state.interrupted) == (step, True)
    save_checkpoint(tmp_path / "last.npz", trainer.model, state.to_dict())

    trainer = Trainer(make_model(learning_rate=0.7))
    state = TrainState(**load_checkpoint(tmp_path / "last.npz", trainer.model))
    state = fit(trainer, state=state, **options)
    assert (state.step, state.interrupted) == (STEPS_PER_EPOCH * EPOCHS, False)
    assert_same(trainer.model, model)
    assert without_speed(records) == without_speed(expected)


def test_a_finished_training_is_left_alone():
    state = TrainState(step=STEPS_PER_EPOCH * EPOCHS)
    assert fit(Trainer(make_model()), None, state=state).step == STEPS_PER_EPOCH * EPOCHS


def early_stopping():
    return keras.callbacks.EarlyStopping(monitor="accuracy", mode="max", patience=4, min_delta=2.0)


def test_early_stopping_stops_and_remembers(tmp_path):
    """With a gain of 2 nothing improves: wait grows in each epoch, over the interruption as well."""
    stopper, batches = Stopper(50), lambda first: batches_from(first, 200)
    trainer = Trainer(make_model())
    state = fit(
        trainer,
        batches,
        epochs=10,
        chunk=5,
        callbacks=[early_stopping()],
        should_stop=stopper,
        on_progress=stopper.see,
    )
    save_checkpoint(tmp_path / "last.npz", trainer.model, state.to_dict())
    trainer = Trainer(make_model())
    state = TrainState(**load_checkpoint(tmp_path / "last.npz", trainer.model))
    assert state.callbacks["0 EarlyStopping"]["wait"] == 1
    state = fit(trainer, batches, epochs=10, state=state, callbacks=[early_stopping()])
    assert (state.step, state.stopped, state.interrupted) == (5 * STEPS_PER_EPOCH, True, False)
    assert fit(trainer, None, epochs=10, state=state).step == 5 * STEPS_PER_EPOCH


def test_the_state_is_json_also_with_numpy_scalars():
    class Best(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.best = np.float32(0.5)

    states = []
    state = fit(Trainer(make_model()), epochs=1, callbacks=[Best()], on_epoch=lambda *args: states.append(args))
    assert json.loads(json.dumps(state.to_dict()))["callbacks"]["0 Best"]["best"] == 0.5
    [(given, logs)] = states
    assert given is state
    assert set(logs) == {"loss", "accuracy", "learning_rate"}


# --- callbacks --------------------------------------------------------------------------------------


def test_callbacks_are_called_as_under_fit():
    ours, theirs = Recorder(), Recorder()
    fit(Trainer(make_model()), chunk=1, callbacks=[ours], validation=make_part())
    make_model().fit(
        batches_from(0),
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[theirs],
        validation_data=make_part(),
    )
    # Ours know the learning rate as well.
    assert [tuple(part for part in call if part != "learning_rate") for call in ours.calls] == theirs.calls


def test_batch_methods_are_called_once_a_chunk_with_the_true_step():
    recorder = Recorder()
    fit(Trainer(make_model()), epochs=2, chunk=7, callbacks=[recorder])
    ends = [call[1] for call in recorder.calls if call[0] == "on_train_batch_end"]
    begins = [call[1] for call in recorder.calls if call[0] == "on_train_batch_begin"]
    assert begins == [0, 7, 10, 17] * 2
    assert ends == [6, 9, 16, 19] * 2


def test_a_callback_may_stop_within_an_epoch():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 4

    records = []
    state = fit(Trainer(make_model()), chunk=1, callbacks=[Stop()], on_log=records.append)
    assert (state.step, state.stopped) == (5, True)
    assert [(line["step"], line["span"]) for line in records] == [(5, "epoch")]


# Keras makes a NumPy array of a TensorFlow tensor, as NumPy 2 no longer wants it.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_reduce_lr_on_plateau_reduces():
    callback = keras.callbacks.ReduceLROnPlateau("accuracy", mode="max", min_delta=2.0, patience=1, factor=0.5)
    trainer = Trainer(make_model())
    fit(trainer, callbacks=[callback])
    assert float(trainer.model.optimizer.learning_rate) == pytest.approx(0.05 / 4)


# --- mistakes ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_reported_with_its_steps():
    def make_float(image, label):
        return tf.cast(image, tf.float32), label

    def batches(first):
        clean = batches_from(0, 12).map(make_float)
        return clean.concatenate(batches_from(12).map(make_float).map(lambda x, y: (x * float("nan"), y)))

    message = "the loss became nan between steps 11 and 20; likely causes: the learning rate is too high"
    with pytest.raises(Diverged, match=message):
        fit(Trainer(make_model()), batches)


def test_batches_must_reach_to_the_end():
    with pytest.raises(ConfigError, match="expected 60 to the end of the training, got 59"):
        fit(Trainer(make_model()), lambda first: batches_from(first, 59))
    message = r"expected 60 to the end of the training, got an unknown number \(use assert_cardinality\)"
    with pytest.raises(ConfigError, match=message):
        fit(Trainer(make_model()), lambda first: batches_from(first).filter(lambda *batch: True))


def test_batches_must_be_of_one_size():
    with pytest.raises(ConfigError, match=r"expected batches of one size, got any \(use drop_remainder=True\)"):
        fit(Trainer(make_model()), lambda first: make_part().repeat())


# --- evaluation -------------------------------------------------------------------------------------


def test_evaluate_equals_keras(reference):
    model = reference[0]
    result = Trainer(model).evaluate(make_part())
    expected = model.evaluate(make_part(), verbose=0, return_dict=True)
    assert result.pop("images") == 21
    assert result == pytest.approx(expected, rel=1e-6)


def test_evaluate_leaves_clean_metrics():
    trainer = Trainer(make_model())
    trainer.evaluate(make_part())
    assert all(not variable.numpy().any() for variable in trainer.model.metrics_variables)


def test_evaluate_wants_images():
    with pytest.raises(DataError, match="evaluation: expected at least one image, got none"):
        Trainer(make_model()).evaluate(make_part().take(0))


# --- checkpoints ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.npz"
    save_checkpoint(path, Trainer(make_model()).model, {"step": 5, "best": math.inf})
    return path


def test_a_checkpoint_gives_back_variables_and_state(saved):
    trainer = Trainer(make_model())
    fit(trainer, epochs=1)
    assert load_checkpoint(saved, trainer.model) == {"step": 5, "best": math.inf}
    assert_same(trainer.model, Trainer(make_model()).model)
    assert [path.name for path in saved.parent.iterdir()] == ["last.npz"]


def test_a_checkpoint_is_named_by_layers(saved):
    names = set(np.load(saved).files)
    assert {"trainable_variables/tiny/conv1/kernel", "optimizer_variables/sgd/iteration", "state"} <= names


def test_a_checkpoint_of_another_model_is_refused(saved):
    model = make_model()
    other = keras.Sequential(
        [keras.Input((4, 4, 1)), *model.layers[:-1], keras.layers.Dense(4, name="logits")], name="tiny"
    )
    other.compile(keras.optimizers.SGD(0.1, momentum=0.9), model.loss, metrics=["accuracy"])
    before = Trainer(other).model.get_weights()
    message = r"another model: trainable_variables/tiny/logits/kernel: expected float32 \[12, 4\], got .*\[12, 3\]"
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(saved, other)
    np.testing.assert_array_equal(other.get_weights()[0], before[0])


def test_a_checkpoint_with_other_variables_is_refused(saved):
    model = make_model()
    model.compile(keras.optimizers.SGD(0.1), model.loss, metrics=["accuracy"])
    Trainer(model)
    message = r"optimizer_variables/sgd/tiny_conv1_kernel_momentum: expected none, got float32 \[3, 3, 1, 3\]"
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(saved, model)


def test_a_damaged_checkpoint_is_refused(saved):
    model = Trainer(make_model()).model
    whole = saved.read_bytes()
    flipped = bytearray(whole)
    place = whole.index(b"NUMPY") + 200
    flipped[place] ^= 255
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], bytes(flipped)):
        saved.write_bytes(content)
        with pytest.raises(EnvironmentFault, match=r"last.npz: the checkpoint is damaged .*; use --new"):
            load_checkpoint(saved, model)
    np.savez(saved, weights=np.zeros(1))
    with pytest.raises(EnvironmentFault, match=r"damaged \(no state\); use --new"):
        load_checkpoint(saved, model)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(EnvironmentFault, match="none.npz: there is no such checkpoint; use --new to start again"):
        load_checkpoint(tmp_path / "none.npz", Trainer(make_model()).model)


def test_a_failed_save_keeps_the_checkpoint_before(saved, monkeypatch):
    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(EnvironmentFault, match="last.npz: the checkpoint cannot be written: No space left on device"):
        save_checkpoint(saved, Trainer(make_model()).model, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last.npz"]


def test_weights_that_are_not_finite_are_never_saved(saved):
    model = Trainer(make_model()).model
    model.get_layer("conv1").bias.assign([0.0, math.nan, 0.0])
    before = saved.read_bytes()
    with pytest.raises(Diverged, match="trainable_variables/tiny/conv1/bias is no longer finite; no checkpoint"):
        save_checkpoint(saved, model, {})
    assert saved.read_bytes() == before
